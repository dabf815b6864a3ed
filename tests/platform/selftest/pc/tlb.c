/*
 * Self-test of the processor's SVM: translations belong to an ASID and stay in
 * use until a flush is asked for, whatever the tables say by then. (A real
 * part may forget them earlier; this one does not, so that a flush that was
 * left out is seen.)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define GIB 0x40000000ULL
#define LEAF 0x87 /* present, writable, for everybody, large */

GUEST(load, "mov (%rbx), %rcx");
GUEST(load_twice, "mov (%rbx), %rcx; mov %cr3, %rax; mov %rax, %cr3;"
                  "mov (%rbx), %rdx");

enum { NOTHING = 0, ALL = 1, THIS_ASID = 3, NOT_GLOBAL = 7 };

extern uint64_t host_pdpt[], nested_pdpt[];
static uint64_t guest_pml4[512] PAGE_ALIGNED, guest_pdpt[512] PAGE_ALIGNED;
/* The same variable in the second GiB has the other value. */
static volatile uint64_t value;

static volatile uint64_t *in_gib(unsigned gib)
{
    return (volatile uint64_t *)((uintptr_t)&value + gib * GIB);
}

/* What a guest of @asid reads in its third GiB. */
static uint64_t read_as(unsigned asid, unsigned tlb_control)
{
    guest_prepare(load);
    set(ASID, 4, asid);
    set(TLB_CONTROL, 1, tlb_control);
    set(CR3, 8, (uint64_t)guest_pml4);
    registers.rbx = (uint64_t)in_gib(2);
    CHECK_EQ("a guest reads", guest_run(), EXIT_VMMCALL);
    return registers.rcx;
}

static void check_nested(const char *what, unsigned tlb_control, uint64_t want)
{
    nested_pdpt[2] = LEAF;
    CHECK_EQ(what, read_as(1, ALL), 1);
    nested_pdpt[2] = GIB | LEAF;
    CHECK_EQ(what, read_as(1, tlb_control), want);
}

static void check_invlpga(const char *what, unsigned asid, uint64_t want)
{
    guest_pdpt[2] = LEAF;
    CHECK_EQ(what, read_as(1, ALL), 1);
    guest_pdpt[2] = GIB | LEAF;
    asm volatile("invlpga" : : "a"(in_gib(2)), "c"(asid) : "memory");
    CHECK_EQ(what, read_as(1, NOTHING), want);
}

void test_translations(void)
{
    uint64_t before[] = { host_pdpt[2], host_pdpt[3], nested_pdpt[1],
                          nested_pdpt[2] };

    guest_pml4[0] = (uint64_t)guest_pdpt + 7;
    memcpy(guest_pdpt, host_pdpt, sizeof(guest_pdpt));
    *in_gib(0) = 1;
    *in_gib(1) = 2;

    check_nested("nested table changed, no flush", NOTHING, 1);
    check_nested("nested table changed, all flushed", ALL, 2);
    check_nested("nested table changed, ASID flushed", THIS_ASID,
                 has_flush_by_asid() ? 2 : 1);
    check_nested("nested table changed, ASID flushed but for global",
                 NOT_GLOBAL, has_flush_by_asid() ? 2 : 1);

    nested_pdpt[2] = LEAF;
    CHECK_EQ("another ASID", read_as(1, ALL), 1);
    nested_pdpt[2] = GIB | LEAF;
    CHECK_EQ("another ASID", read_as(2, NOTHING), 2);

    nested_pdpt[1] = GIB | LEAF;
    check_invlpga("INVLPGA of the host's", 0, 1);
    check_invlpga("INVLPGA of another guest's", 2, 1);
    check_invlpga("INVLPGA of the guest's", 1, 2);

    /* A new root in the VMCB is no flush; the guest's own move is. */
    guest_pdpt[2] = LEAF;
    CHECK_EQ("a new root", read_as(1, ALL), 1);
    guest_pdpt[2] = GIB | LEAF;
    guest_prepare(load_twice);
    set(TLB_CONTROL, 1, NOTHING);
    set(CR3, 8, (uint64_t)guest_pml4);
    registers.rbx = (uint64_t)in_gib(2);
    CHECK_EQ("a new root", guest_run(), EXIT_VMMCALL);
    CHECK_EQ("a new root", registers.rcx, 1);
    CHECK_EQ("a guest moves to CR3", registers.rdx, 2);

    /* The host's outlive the run of a guest. */
    host_pdpt[3] = LEAF;
    asm volatile("invlpg (%0)" : : "r"(in_gib(3)) : "memory");
    CHECK_EQ("the host's", *in_gib(3), 1);
    host_pdpt[3] = GIB | LEAF;
    read_as(1, THIS_ASID);
    CHECK_EQ("the host's, after a guest", *in_gib(3), 1);
    asm volatile("invlpg (%0)" : : "r"(in_gib(3)) : "memory");
    CHECK_EQ("the host's, invalidated", *in_gib(3), 2);

    host_pdpt[2] = before[0];
    host_pdpt[3] = before[1];
    nested_pdpt[1] = before[2];
    nested_pdpt[2] = before[3];
    asm volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}
