/*
 * Self-test of the processor's SVM: what VMRUN refuses, when it delivers a
 * virtual interrupt, and machine checks while a guest runs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

GUEST(idle, "nop");
GUEST(spin, "jmp spin");

static void check_refused(const char *what, unsigned offset, unsigned size,
                          uint64_t change)
{
    guest_prepare(idle);
    set(offset, size, get(offset, size) ^ change);
    CHECK_EQ(what, guest_run(), EXIT_INVALID);
}

void test_vmrun(void)
{
    guest_prepare(idle);
    CHECK_EQ("as it is", guest_run(), EXIT_VMMCALL);
    check_refused("VMRUN not intercepted", MISC2, 4, MISC2_VMRUN);
    check_refused("ASID 0", ASID, 4, 1);
    check_refused("EFER.SVME clear", EFER, 8, EFER_SVME);
    check_refused("EFER bit 1", EFER, 8, BIT(1));
    check_refused("CR0 bit 32", CR0, 8, BIT(32));
    check_refused("CR0.NW without CD", CR0, 8, CR0_NW);
    check_refused("CR3 bit 52", CR3, 8, BIT(52));
    check_refused("CR4 bit 15", CR4, 8, BIT(15));
    check_refused("CR4.PCIDE without CPUID", CR4, 8, BIT(17));
    check_refused("CR4.PAE clear in long mode", CR4, 8, CR4_PAE);
    check_refused("CR0.PE clear in long mode", CR0, 8, CR0_PE);
    check_refused("CS.L and CS.D", CS + 2, 2, BIT(10));
    check_refused("DR6 bit 32", DR6, 8, BIT(32));
    check_refused("DR7 bit 32", DR7, 8, BIT(32));
    check_refused("nested table bit 52", N_CR3, 8, BIT(52));
    check_refused("PAT with type 2", G_PAT, 8, 6 ^ 2);
    check_refused("PAT with type 8", G_PAT, 8, BIT(63));
    check_refused("I/O map beyond memory", IOPM_BASE, 8, BIT(52));
    check_refused("MSR map beyond memory", MSRPM_BASE, 8, BIT(52));
    check_refused("event of type 1", EVENTINJ, 4, BIT(31) | 1 << 8 | 32);
    check_refused("exception 2", EVENTINJ, 4, BIT(31) | 3 << 8 | 2);
}

/* Interrupts of a class that V_TPR holds back wait. */
static void check_priority(unsigned class, uint64_t tpr, bool delivered)
{
    guest_prepare(idle);
    set(VINTR, 4, V_INTR_MASKING | V_IRQ | V_INTR_PRIO(class) | tpr);
    set(VINTR_VECTOR, 4, VECTOR);
    set(RFLAGS, 8, 0x202);
    CHECK_EQ("virtual interrupt", guest_run(), EXIT_VMMCALL);
    CHECK_EQ("virtual interrupt", get(RIP, 8),
             (uint64_t)(delivered ? interrupted : idle_end));
    CHECK_EQ("virtual interrupt", !(get(VINTR, 4) & V_IRQ), delivered);
}

void test_priority(void)
{
    check_priority(5, 0, true);
    check_priority(5, 4, true);
    check_priority(5, 5, false);
    check_priority(5, 6, false);
    check_priority(5, 5 | V_IGN_TPR, true);
}

/*
 * Somebody outside makes the machine check when asked; until the guest runs,
 * the clear GIF holds it back.
 */
static void check_machine_check(const char *ask, uint64_t mce, uint64_t exit)
{
    guest_prepare(spin);
    set(CR4, 8, (get(CR4, 8) & ~CR4_MCE) | mce);
    asm volatile("clgi");
    print(ask);
    CHECK_EQ("machine check", guest_run(), exit);
}

void test_machine_check(void)
{
    check_machine_check("pc-selftest wants a machine check with CR4.MCE\n",
                        CR4_MCE, EXIT_MC);
    check_machine_check("pc-selftest wants a machine check without CR4.MCE\n",
                        0, EXIT_SHUTDOWN);
}
