/*
 * Self-test of the processor's SVM: which instruction meets which intercept,
 * and what the exit tells of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

/* EXITINFO1 of MOV from or to a control register: bit 63 and the register */
#define MOV_CR(gpr) (BIT(63) | (gpr))
enum { RBX = 3, RSI = 6, R9 = 9 };
/* What software left in the VMCB's fields */
#define LEFT 0x5a5a5a5a5a5a5a5aULL
#define LEFT_BYTE 0x5a
#define ABSENT 0x40000000ULL    /* that the nested tables do not map */
#define UNMAPPED 0x200000000ULL /* that the guest's do not */

GUEST(read_cr0, "mov %cr0, %rbx");
GUEST(read_cr2, "mov %cr2, %rsi");
GUEST(read_cr3, "mov %cr3, %r9");
GUEST(read_cr4, "mov %cr4, %rbx");
GUEST(read_cr8, "mov %cr8, %rbx");
GUEST(smsw, "smsw %bx");
GUEST(write_cr0, "mov %rbx, %cr0");
GUEST(write_cr2, "mov %r9, %cr2");
GUEST(write_cr3, "mov %rbx, %cr3");
GUEST(write_cr4, "mov %rbx, %cr4");
GUEST(write_cr8, "mov %rbx, %cr8");
GUEST(lmsw, "lmsw %bx");
GUEST(clts, "clts");
GUEST(read_dr0, "mov %dr0, %rsi");
GUEST(read_dr7, "mov %dr7, %rbx");
GUEST(write_dr3, "mov %r9, %dr3");
GUEST(write_dr7, "mov %rbx, %dr7");
GUEST(rdtsc, "rdtsc");
GUEST(rdtscp, "rdtscp");
GUEST(cpuid, "cpuid");
GUEST(int_80, "int $0x80");
GUEST(hlt, "hlt");
GUEST(invlpg, "invlpg 0x1234(%rbx)");
GUEST(io, "in $0x80, %al");
GUEST(msr, "mov $0xc0000080, %ecx; rdmsr");
GUEST(nothing, "nop");
GUEST(load, "mov (%rbx), %rcx");
GUEST(jump, "jmp *%rbx");

static const struct {
    const char *what;
    const uint8_t *code, *end;
    /* Where the intercept's bit is, and which of that word are others' */
    unsigned word, size;
    uint64_t bit, others;
    uint64_t exit, info;
} ROWS[] = {
#define ROW(name, ...) { #name, name, name##_end, __VA_ARGS__ }
#define CR(name, word, exit, n, info) \
    ROW(name, word, 2, BIT(n), 0xffff & ~BIT(n), (exit) + (n), info)
#define MISC(name, exit, info) \
    ROW(name, MISC1, 4, MISC1_BIT(exit), 0, exit, info)
    CR(read_cr0, CR_READ, EXIT_READ_CR0, 0, MOV_CR(RBX)),
    CR(read_cr2, CR_READ, EXIT_READ_CR0, 2, MOV_CR(RSI)),
    CR(read_cr3, CR_READ, EXIT_READ_CR0, 3, MOV_CR(R9)),
    CR(read_cr4, CR_READ, EXIT_READ_CR0, 4, MOV_CR(RBX)),
    CR(read_cr8, CR_READ, EXIT_READ_CR0, 8, MOV_CR(RBX)),
    CR(smsw, CR_READ, EXIT_READ_CR0, 0, 0),
    CR(write_cr0, CR_WRITE, EXIT_WRITE_CR0, 0, MOV_CR(RBX)),
    CR(write_cr2, CR_WRITE, EXIT_WRITE_CR0, 2, MOV_CR(R9)),
    CR(write_cr3, CR_WRITE, EXIT_WRITE_CR0, 3, MOV_CR(RBX)),
    CR(write_cr4, CR_WRITE, EXIT_WRITE_CR0, 4, MOV_CR(RBX)),
    CR(write_cr8, CR_WRITE, EXIT_WRITE_CR0, 8, MOV_CR(RBX)),
    CR(lmsw, CR_WRITE, EXIT_WRITE_CR0, 0, 0),
    CR(clts, CR_WRITE, EXIT_WRITE_CR0, 0, 0),
    CR(read_dr0, DR_READ, EXIT_READ_DR0, 0, RSI),
    CR(read_dr7, DR_READ, EXIT_READ_DR0, 7, RBX),
    CR(write_dr3, DR_WRITE, EXIT_WRITE_DR0, 3, R9),
    CR(write_dr7, DR_WRITE, EXIT_WRITE_DR0, 7, RBX),
    ROW(rdtsc, MISC1, 4, MISC1_BIT(EXIT_RDTSC), MISC1_BIT(EXIT_CPUID),
        EXIT_RDTSC, 0),
    ROW(rdtscp, MISC2, 4, MISC2_RDTSCP, 0, EXIT_RDTSCP, 0),
    MISC(cpuid, EXIT_CPUID, 0),
    MISC(int_80, EXIT_SWINT, 0x80),
    MISC(hlt, EXIT_HLT, 0),
    MISC(invlpg, EXIT_INVLPG, 0x200000 + 0x1234),
};

/* What RBX has to be for a write that changes nothing */
static uint64_t harmless(unsigned word, uint64_t exit)
{
    if (word == CR_WRITE) {
        switch (exit - EXIT_WRITE_CR0) {
        case 0: return get(CR0, 8);
        case 3: return get(CR3, 8);
        case 4: return get(CR4, 8);
        }
        return 0;
    }
    return word == DR_WRITE ? 0x400 : 0x200000;
}

static void prepare(const uint8_t *code)
{
    guest_prepare(code);
    set(NRIP, 8, LEFT);
    set(INSN_LEN, 1, LEFT_BYTE);
}

/* The fields that not every processor writes */
static void check_assists(const char *what, uint64_t next_rip,
                          uint64_t insn_len)
{
    CHECK_EQ(what, get(NRIP, 8), has_next_rip() ? next_rip : LEFT);
    CHECK_EQ(what, get(INSN_LEN, 1),
             has_decode_assists() ? insn_len : LEFT_BYTE);
}

void test_intercepts(void)
{
    for (unsigned i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
        const char *what = ROWS[i].what;
        uint64_t kept;

        prepare(ROWS[i].code);
        kept = get(ROWS[i].word, ROWS[i].size);
        registers.rbx = harmless(ROWS[i].word, ROWS[i].exit);
        set(ROWS[i].word, ROWS[i].size, kept | ROWS[i].bit);
        CHECK_EQ(what, guest_run(), ROWS[i].exit);
        CHECK_EQ(what, get(RIP, 8), (uint64_t)ROWS[i].code);
        CHECK_EQ(what, get(EXITINFO1, 8),
                 has_decode_assists() ? ROWS[i].info : 0);
        check_assists(what, (uint64_t)ROWS[i].end, 0);

        if (ROWS[i].others) {
            prepare(ROWS[i].code);
            registers.rbx = harmless(ROWS[i].word, ROWS[i].exit);
            set(ROWS[i].word, ROWS[i].size, kept | ROWS[i].others);
            CHECK_EQ(what, guest_run(), EXIT_VMMCALL);
            check_assists(what, (uint64_t)ROWS[i].end + 3, 0);
        }
    }

    prepare(rdtscp);
    set(MISC1, 4, MISC1_BIT(EXIT_RDTSC));
    CHECK_EQ("rdtscp", guest_run(), EXIT_VMMCALL);

    prepare(io);
    set(MISC1, 4, MISC1_BIT(EXIT_IOIO));
    CHECK_EQ("io", guest_run(), EXIT_IOIO);
    CHECK_EQ("io", get(EXITINFO2, 8), (uint64_t)io_end);
    check_assists("io", (uint64_t)io_end, 0);

    prepare(msr);
    set(MISC1, 4, MISC1_BIT(EXIT_MSR));
    CHECK_EQ("msr", guest_run(), EXIT_MSR);
    check_assists("msr", (uint64_t)msr_end, 0);
}

static void check_bytes(const char *what, const uint8_t *code)
{
    for (unsigned i = 0; has_decode_assists() && i < 15; i++) {
        CHECK_EQ(what, get(INSN_BYTES + i, 1), code[i]);
    }
}

/* Page faults tell the instruction's bytes, but not where the next one is. */
void test_faults_of_memory(void)
{
    prepare(load);
    registers.rbx = ABSENT;
    CHECK_EQ("nested fault", guest_run(), EXIT_NPF);
    CHECK_EQ("nested fault", get(EXITINFO2, 8), ABSENT);
    check_assists("nested fault", 0, 15);
    check_bytes("nested fault", load);

    prepare(load);
    registers.rbx = UNMAPPED;
    CHECK_EQ("page fault", guest_run(), EXIT_PF);
    CHECK_EQ("page fault", get(EXITINFO2, 8), UNMAPPED);
    check_assists("page fault", 0, 15);
    check_bytes("page fault", load);

    prepare(jump);
    registers.rbx = ABSENT;
    CHECK_EQ("fetch", guest_run(), EXIT_NPF);
    check_assists("fetch", 0, 0);

    /* The bytes end where the next page is not there. */
    uint8_t *last = (uint8_t *)(ABSENT - 3);
    memcpy(last, load, 3);
    prepare(last);
    registers.rbx = ABSENT;
    CHECK_EQ("at the edge", guest_run(), EXIT_NPF);
    check_assists("at the edge", 0, 3);
}
