/*
 * Self-test of the processor's SVM: values that a control register, EFER or a
 * debug register does not take are general-protection faults, in a guest
 * before any intercept.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

GUEST(to_cr0, "mov %rbx, %cr0");
GUEST(to_cr3, "mov %rbx, %cr3");
GUEST(to_cr4, "mov %rbx, %cr4");
GUEST(to_cr8, "mov %rbx, %cr8");
GUEST(to_dr7, "mov %rbx, %dr7");
GUEST(to_msr, "wrmsr");
GUEST(after_a_move, "mov $0x1234, %ecx; mov %rbx, %cr4");
GUEST(cr8_and_back, "mov %rbx, %cr8; mov %cr8, %rcx");

/* @change is what differs from the guest's @now. */
static void check_fault(const char *what, const uint8_t *code, unsigned now,
                        uint64_t change)
{
    uint64_t before;

    guest_prepare(code);
    set(CR_WRITE, 2, 0xffff);
    before = now ? get(now, 8) : 0;
    registers.rbx = before ^ change;
    if (now == EFER) {
        registers.rcx = MSR_EFER;
        set(RAX, 8, (uint32_t)(before ^ change));
        registers.rdx = (before ^ change) >> 32;
    }
    CHECK_EQ(what, guest_run(), EXIT_GP);
    CHECK_EQ(what, get(EXITINFO1, 8), 0);
    CHECK_EQ(what, get(RIP, 8), (uint64_t)code);
    if (now) {
        CHECK_EQ(what, get(now, 8), before);
    }
}

void test_faults_of_registers(void)
{
    check_fault("CR0 bit 32", to_cr0, CR0, BIT(32));
    check_fault("CR0.PG without PE", to_cr0, CR0, CR0_PE);
    check_fault("CR0.NW without CD", to_cr0, CR0, CR0_NW);
    check_fault("CR0.PG off in 64-bit mode", to_cr0, CR0, CR0_PG);
    check_fault("CR3 bit 52", to_cr3, CR3, BIT(52));
    check_fault("CR4 bit 15", to_cr4, CR4, BIT(15));
    check_fault("CR4.PCIDE without CPUID", to_cr4, CR4, BIT(17));
    check_fault("CR4 bit 63", to_cr4, CR4, BIT(63));
    check_fault("CR4.PAE off in long mode", to_cr4, CR4, CR4_PAE);
    check_fault("CR4.LA57 in long mode", to_cr4, CR4, CR4_LA57);
    check_fault("CR8 bit 4", to_cr8, 0, BIT(4));
    check_fault("DR7 bit 32", to_dr7, DR7, BIT(32));
    check_fault("EFER bit 1", to_msr, EFER, BIT(1));
    check_fault("EFER bit 63", to_msr, EFER, BIT(63));
    check_fault("EFER.LMA off", to_msr, EFER, EFER_LMA);
    check_fault("EFER.LME off while paging", to_msr, EFER, EFER_LME);

    /* What was moved just before is there after the fault. */
    guest_prepare(after_a_move);
    registers.rbx = BIT(15);
    CHECK_EQ("after a move", guest_run(), EXIT_GP);
    CHECK_EQ("after a move", registers.rcx, 0x1234);

    guest_prepare(cr8_and_back);
    registers.rbx = 7;
    CHECK_EQ("CR8", guest_run(), EXIT_VMMCALL);
    CHECK_EQ("CR8", registers.rcx, 7);
    CHECK_EQ("CR8", get(VINTR, 1), 7);
}

static void write_efer(uint64_t value)
{
    wrmsr(MSR_EFER, value);
}

void test_host_efer(void)
{
    uint64_t efer = rdmsr(MSR_EFER);

    CHECK_EQ("EFER as it is", try(write_efer, efer), -1);
    CHECK_EQ("EFER bit 1", try(write_efer, efer | BIT(1)), 13);
    CHECK_EQ("EFER.LMA off", try(write_efer, efer & ~EFER_LMA), 13);
    CHECK_EQ("EFER.LME off", try(write_efer, efer & ~EFER_LME), 13);
    CHECK_EQ("EFER.NXE off", try(write_efer, efer & ~EFER_NXE), -1);
    CHECK_EQ("EFER.NXE off", rdmsr(MSR_EFER), efer & ~EFER_NXE);
    write_efer(efer);
}
