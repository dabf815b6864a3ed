/*
 * Self-test of the PC: enqueue stores to a shared work queue of the
 * accelerator. Who submitted, and with which privilege, is in the command.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual,
 * ENQCMD, ENQCMDS; Intel DSA Architecture Specification, 341204.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <cpuid.h>
#include "selftest.h"

enum { UD = 6, GP = 13, PF = 14, NOTHING = -1 };

/* Configuration space of q35, all 4096 bytes of a function's */
#define ECAM 0xb0000000ULL
#define PCIEXBAR 0x60
#define DSA_CONFIG (ECAM + (4 << 15))
enum { PCI_COMMAND = 0x04, PCI_BAR0 = 0x10, PCI_BAR2 = 0x18, PASID_CTRL = 0x234 };
#define PASID_ENABLE BIT(16)
#define PASID_PRIV BIT(18)

#define BAR0 0xc0000000ULL
#define BAR2 0xc0020000ULL
enum { CMD = 0xa0, CMDSTS = 0xa8, SWERR = 0xc0, GRPCFG = 0x600, WQCFG = 0x800 };
enum { ENABLE = 1 << 20, RESET = 5 << 20, ENABLE_WQ = 6 << 20, DISABLE_WQ = 7 << 20 };
#define CRAV_RCR ((BIT(2) | BIT(3)) << 32)
#define PRIV BIT(31)
enum { CR_ALIGN = 0x1b, NOT_PRIVILEGED = 0x1d };
/* Of SWERR: the error, and whose it is */
#define SAID(error, pasid, priv) \
    (BIT(0) | (priv) << 6 | (error) << 8 | (uint64_t)(pasid) << 40)
#define SAID_MASK SAID(0xff, 0xfffff, 1ULL)

#define IA32_PASID 0xd93
#define VALID BIT(31)
#define ALL_FLAGS 0x8d5ULL      /* OF, SF, ZF, AF, PF, CF */
#define ZF 0x40ULL
#define LIMIT 1000000

static uint64_t command[8] __attribute__((aligned(64)));
static uint64_t memory[8] __attribute__((aligned(64)));

static bool has_enqcmd(void)
{
    unsigned a, b, c, d;

    __cpuid_count(7, 0, a, b, c, d);
    return c >> 29 & 1;
}

/* Each returns the flags it leaves, of ALL_FLAGS that were set before. */
#define ENQUEUE(prefix, to) ({ \
    uint64_t flags = ALL_FLAGS; \
    asm volatile("pushfq; or %0, (%%rsp); popfq;" \
                 ".byte " prefix ", 0x0f, 0x38, 0xf8, 0x02; pushfq; pop %0" \
                 : "+r"(flags) : "a"(to), "d"(command) : "memory", "cc"); \
    flags & ALL_FLAGS; })

static uint64_t enqcmd(uint64_t to)
{
    return ENQUEUE("0xf2", to);
}

static uint64_t enqcmds(uint64_t to)
{
    return ENQUEUE("0xf3", to);
}

static void try_enqcmd(uint64_t to)
{
    enqcmd(to);
}

static void try_enqcmds(uint64_t to)
{
    enqcmds(to);
}

static void write_ia32_pasid(uint64_t value)
{
    wrmsr(IA32_PASID, value);
}

static void dsa_command(uint32_t what)
{
    unsigned left = LIMIT;

    w32(BAR0 + CMD, what);
    while (r32(BAR0 + CMDSTS) & BIT(31) && --left) {
    }
    CHECK_EQ("a command of the accelerator", r32(BAR0 + CMDSTS), 0);
}

/* Queue 0, shared, with four places */
static void dsa_start(uint32_t pasid_control)
{
    dsa_command(RESET);
    w32(DSA_CONFIG + PASID_CTRL, pasid_control);
    w32(BAR0 + WQCFG, 4);
    w32(BAR0 + WQCFG + 4, 2);
    w32(BAR0 + WQCFG + 8, BIT(28) | 5 << 4);
    w32(BAR0 + WQCFG + 12, 21 | 5 << 5);
    w64(BAR0 + GRPCFG, 1);
    w64(BAR0 + GRPCFG + 32, 1);
    dsa_command(ENABLE);
    dsa_command(ENABLE_WQ);
}

/* What the accelerator says about a command, of SAID_MASK */
static uint64_t said(void)
{
    unsigned left = LIMIT;
    uint64_t swerr;

    while (!(r32(BAR0 + SWERR) & 1) && --left) {
    }
    swerr = r64(BAR0 + SWERR);
    w64(BAR0 + SWERR, 3);
    return swerr & SAID_MASK;
}

static void test_submitters(void)
{
    /* A completion record at no place where one can be */
    command[0] = CRAV_RCR | 0x54321;
    command[1] = 8;
    CHECK_EQ("ENQCMDS is accepted", enqcmds(BAR2), 0);
    CHECK_EQ("the PASID of the command", said(), SAID(CR_ALIGN, 0x54321, 0));
    command[0] = CRAV_RCR | PRIV | 0x12345;
    CHECK_EQ("a privileged command is accepted", enqcmds(BAR2 + 0x1fc0), 0);
    CHECK_EQ("nobody is privileged", said(), SAID(NOT_PRIVILEGED, 0x12345, 1));
    wrmsr(IA32_PASID, VALID | 0x777);
    CHECK_EQ("IA32_PASID", rdmsr(IA32_PASID), VALID | 0x777);
    CHECK_EQ("ENQCMD is accepted", enqcmd(BAR2), 0);
    CHECK_EQ("the PASID of IA32_PASID", said(), SAID(CR_ALIGN, 0x777, 0));
    wrmsr(IA32_PASID, VALID | 0xfffff);
    CHECK_EQ("ENQCMD is accepted", enqcmd(BAR2), 0);
    CHECK_EQ("the highest PASID", said(), SAID(CR_ALIGN, 0xfffff, 0));

    dsa_start(PASID_ENABLE | PASID_PRIV);
    CHECK_EQ("a privileged command is accepted", enqcmds(BAR2), 0);
    CHECK_EQ("somebody is privileged", said(), SAID(CR_ALIGN, 0x12345, 1));
    dsa_start(PASID_ENABLE);
}

static void test_retry(void)
{
    for (unsigned i = 0; i < 8; i++) {
        memory[i] = i;
    }
    CHECK_EQ("ENQCMDS to memory", enqcmds((uint64_t)memory), ZF);
    CHECK_EQ("ENQCMD to memory", enqcmd((uint64_t)memory), ZF);
    for (unsigned i = 0; i < 8; i++) {
        CHECK_EQ("memory is left alone", memory[i], i);
    }
    CHECK_EQ("ENQCMDS to a register", enqcmds(BAR0 + WQCFG), ZF);
    CHECK_EQ("the register is left alone", r32(BAR0 + WQCFG), 4);
    CHECK_EQ("ENQCMDS to another queue", enqcmds(BAR2 + 0x4000), ZF);
    w32(BAR0 + WQCFG + 4, 0);
    CHECK_EQ("ENQCMDS beyond the threshold", enqcmds(BAR2 + 0x1000), ZF);
    w32(BAR0 + WQCFG + 4, 2);
    dsa_command(DISABLE_WQ | 1);
    CHECK_EQ("ENQCMDS to a queue that is off", enqcmds(BAR2), ZF);
    CHECK_EQ("ENQCMD to a queue that is off", enqcmd(BAR2), ZF);
    dsa_command(ENABLE_WQ);
    CHECK_EQ("no error of the accelerator's", r64(BAR0 + SWERR) & 1, 0);
}

static void test_faults(void)
{
    const uint64_t unmapped = 1ULL << 33, not_canonical = 1ULL << 63;

    CHECK_EQ("ENQCMDS, not aligned", try(try_enqcmds, BAR2 + 32), GP);
    CHECK_EQ("ENQCMD, not aligned", try(try_enqcmd, BAR2 + 1), GP);
    CHECK_EQ("ENQCMDS to memory, not aligned",
             try(try_enqcmds, (uint64_t)memory + 16), GP);
    CHECK_EQ("ENQCMDS to nowhere", try(try_enqcmds, unmapped), PF);
    CHECK_EQ("ENQCMD to nowhere", try(try_enqcmd, unmapped), PF);
    CHECK_EQ("ENQCMDS to what is no address", try(try_enqcmds, not_canonical), GP);
    for (unsigned bit = 20; bit < 31; bit++) {
        command[0] ^= BIT(bit);
        CHECK_EQ("ENQCMDS with a reserved bit", try(try_enqcmds, BAR2), GP);
        /* it does not look there */
        CHECK_EQ("ENQCMD with it", try(try_enqcmd, (uint64_t)memory), NOTHING);
        command[0] ^= BIT(bit);
    }
    for (unsigned bit = 20; bit < 64; bit++) {
        CHECK_EQ("IA32_PASID with one more bit",
                 try(write_ia32_pasid, VALID ^ BIT(bit)),
                 bit == 31 ? NOTHING : GP);
    }
    wrmsr(IA32_PASID, 0x777);
    CHECK_EQ("ENQCMD without PASID", try(try_enqcmd, BAR2), GP);
    CHECK_EQ("ENQCMDS needs none", try(try_enqcmds, (uint64_t)memory), NOTHING);
    CHECK_EQ("what faults reaches nobody", r64(BAR0 + SWERR) & 1, 0);
}

void test_enqueue(void)
{
    if (!has_enqcmd()) {
        CHECK_EQ("ENQCMD is absent", try(try_enqcmd, (uint64_t)memory), UD);
        CHECK_EQ("ENQCMDS is absent", try(try_enqcmds, (uint64_t)memory), UD);
        return;
    }
    outl(0xcf8, BIT(31) | PCIEXBAR);
    outl(0xcfc, ECAM | 1);
    w32(DSA_CONFIG + PCI_BAR0, BAR0);
    w32(DSA_CONFIG + PCI_BAR2, BAR2);
    w32(DSA_CONFIG + PCI_COMMAND, 6);
    dsa_start(PASID_ENABLE);
    test_submitters();
    test_retry();
    test_faults();
    dsa_command(RESET);
    w32(DSA_CONFIG + PASID_CTRL, 0);
}
