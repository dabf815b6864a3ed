/*
 * Self-test of the DSA model: descriptors that are refused, faults, batches, interrupts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_bad_descriptors(void)
{
    struct desc d;

    start_dwq();
    CHECK_EQ(run(0x3f, CR_FLAGS, 0, 0, 0), 0x10);
    CHECK_EQ(run(0x07, CR_FLAGS, 0, 0, 0), 0x10);
    CHECK_EQ(run(0xff, CR_FLAGS, 0, 0, 0), 0x10);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS | FENCE | BIT(14), PA(O_SRC), PA(O_DST), 64), 0x11);
    CHECK_EQ(cr_at(0)->info, FENCE | BIT(14));
    CHECK_EQ(run(COMPARE, CRAV, PA(O_SRC), PA(O_DST), 64), 0x11);
    CHECK_EQ(run(DRAIN, CRAV, 0, 0, 0), 0x11);
    CHECK_EQ(run(NOOP, CR_FLAGS, 1, 0, 0), 0x12);
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 1, 0), 0x12);
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 1), 0x12);
    d = mk(MEMMOVE, CR_FLAGS, PA(O_SRC), PA(O_DST), 64);
    d.op[23] = 1;
    CHECK_EQ(submit_wait(&d), 0x12);
    d.op[23] = 0;
    d.rsvd = 1;
    CHECK_EQ(submit_wait(&d), 0x12);
    d.rsvd = 0;
    d.pasid_priv = BIT(20);
    CHECK_EQ(submit_wait(&d), 0x12);
    d.pasid_priv = BIT(31) | 77;        /* ignored in a dedicated queue */
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS, PA(O_SRC), PA(O_DST), 0), 0x13);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS, PA(O_SRC), PA(O_DST), (2 << 20) + 1), 0x13);
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 1), 0x14);
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 33), 0x14);
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST) + 32, 0, 2), 0x18);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS | RCI, PA(O_SRC), PA(O_DST), 64), 0x19);

    /* what only SWERR tells */
    d = mk(MEMMOVE, RCR, PA(O_SRC), PA(O_DST), 64);
    CHECK_EQ(run_swerr(&d) & 0xff0000ff0dULL, 0x030000110dULL & 0xff0000ff0dULL);
    CHECK_EQ(r64(SWERR) >> 8 & 0xff, 0x11);
    CHECK_EQ(r64(SWERR + 8) >> 32, RCR);
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    d.cr += 8;
    CHECK_EQ(run_swerr(&d) >> 8 & 0xff, 0x1b);
    CHECK_EQ(r64(SWERR + 16), d.cr);
    d.cr = 0xffffff0000000000ULL;
    CHECK_EQ(run_swerr(&d) >> 8 & 0xff, 0x1a);
    CHECK_EQ(r64(SWERR) >> 5 & 1, 1);
    /* a second error only shows as overflow */
    movdir64b(portal(0, 1), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)(bar0 + SWERR), 2, true));
    swerr_clear();
    CHECK_EQ(r64(SWERR) & 3, 0);

    /* faults: what was done before, and where */
    pattern(mem + HUGE - 0x3000, 0x3000, 5);
    CHECK_EQ(run(MEMMOVE, CR_FLAGS, 0xffffff0000000000ULL, PA(O_DST), 100), 3);
    CHECK_EQ(cr_at(0)->fault, 0xffffff0000000000ULL);
    CHECK_EQ(run(FILL, CR_FLAGS, 0, 0xffffff0000000800ULL, 100), 0x83);
    CHECK_EQ(cr_at(0)->done, 0);

    /* ordinary writes to a portal, and 64-byte ones to queues that are off */
    *(volatile uint64_t *)portal(0, 1) = 0;
    *(volatile uint32_t *)portal(0, 1) = 0;
    CHECK_EQ(*(volatile uint32_t *)portal(0, 1), 0);
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    memset((void *)cr_at(0), 0, 32);
    movdir64b(portal(5, 1), &d);
    d.cr += 32;
    memset((void *)cr_at(1), 0, 32);
    movdir64b(portal(0, 1), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(1), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 0);
    CHECK_EQ(r64(SWERR) & 1, 0);
}

/* Nothing is there. */
#define NOWHERE 0xffffff0000000000ULL

/* Nobody answers a write: unless the device asks for translations, one that is denied is lost. */
void test_posted_writes(void)
{
    struct desc d;

    start_dwq();
    CHECK_EQ(run(FILL, CR_FLAGS, 0, NOWHERE, 100), 1);
    CHECK_EQ(cr_at(0)->fault, 0);
    /* so is a completion record */
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    d.cr = NOWHERE;
    movdir64b(portal(0, 1), &d);
    CHECK_EQ(run(DRAIN, CR_FLAGS, 0, 0, 0), 1);
    CHECK_EQ(r64(SWERR) & 1, 0);
    /* reads have answers */
    CHECK_EQ(run(MEMMOVE, CR_FLAGS, NOWHERE, PA(O_DST), 100), 3);
    CHECK_EQ(cr_at(0)->fault, NOWHERE);
    /* it halts a device that is enabled */
    fresh();
    cfg_write(ATS_CTRL, 0x8000, 2);
    start_dwq();
    CHECK_EQ(run(FILL, CR_FLAGS, 0, NOWHERE, 100), 0x83);
    CHECK_EQ(cr_at(0)->fault, NOWHERE);
    fresh();
    cfg_write(ATS_CTRL, 0, 2);
    start_dwq();
    CHECK_EQ(run(FILL, CR_FLAGS, 0, NOWHERE, 100), 1);
}

static struct desc *member(unsigned i)
{
    return (struct desc *)(mem + O_LIST) + i;
}

void test_batch(void)
{
    uint8_t *src = mem + O_SRC, *dst = mem + O_DST;

    start_dwq();
    pattern(src, 0x10000, 2);
    memset(dst, 0, 0x10000);
    for (unsigned i = 0; i < 8; i++) {
        *member(i) = mk(MEMMOVE, CR_FLAGS, PA(O_SRC) + i * 5000, PA(O_DST) + i * 5000, 5000);
        member(i)->cr += 32 * (i + 1);
        memset((void *)cr_at(i + 1), 0, 32);
    }
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 8), 1);
    CHECK_EQ(cr_at(0)->done, 8);
    CHECK_TRUE(!memcmp(src, dst, 40000));
    CHECK_EQ(cr_at(8)->status, 1);

    /* one that fails; those after it go on, but not past a fence */
    member(2)->size = 0;
    memset(dst, 0, 0x10000);
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 8), 5);
    CHECK_EQ(cr_at(0)->done, 8);
    CHECK_EQ(cr_at(3)->status, 0x13);
    CHECK_TRUE(!memcmp(src + 35000, dst + 35000, 5000));
    member(5)->op_flags |= FENCE;
    memset(dst, 0, 0x10000);
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 8), 5);
    CHECK_EQ(cr_at(0)->done, 5);
    CHECK_EQ(dst[25000] | dst[25001], 0);
    member(2)->size = 5000;
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 8), 1);

    /* what a batch may not hold */
    *member(1) = mk(BATCH, CR_FLAGS, PA(O_LIST), 0, 2);
    member(1)->cr += 64;
    *member(2) = mk(DRAIN, CR_FLAGS, 0, 0, 0);
    member(2)->cr += 96;
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 3), 5);
    CHECK_EQ(cr_at(2)->status, 0x10);
    CHECK_EQ(cr_at(3)->status, 0x10);
    /* a member without a completion record */
    *member(1) = mk(MEMMOVE, 0, PA(O_SRC), PA(O_DST), 0);
    swerr_clear();
    CHECK_EQ(run(BATCH, CR_FLAGS, PA(O_LIST), 0, 2), 5);
    CHECK_EQ(r64(SWERR) & 0xff1d, 0x131d);
    CHECK_EQ(r64(SWERR + 8) & 0xffff, 1);
    CHECK_EQ(run(BATCH, CR_FLAGS, 0xffffff0000000000ULL, 0, 2), 6);
    CHECK_EQ(cr_at(0)->fault, 0xffffff0000000000ULL);
    swerr_clear();
}

void test_interrupts(void)
{
    struct desc d;
    uint32_t sts;

    start_dwq();
    msix_setup();
    w32(GENCTRL, 3);
    sts = cmd(REQ_HANDLE, 1);
    CHECK_EQ(sts & 0xff, 0);
    CHECK_EQ(*msi_word(0), 0);
    d = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
    d.handle = sts >> 8;
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(wait_bit(msi_word(1), ~0u, true));
    CHECK_EQ(*msi_word(1), 0x101);
    /* a handle nobody requested, the index itself, and the table not there */
    d.handle = (sts >> 8) + 1;
    CHECK_EQ(submit_wait(&d), 0x19);
    CHECK_EQ(r64(SWERR) >> 8 & 0xff, 0x19);
    CHECK_TRUE(wait_bit(msi_word(0), ~0u, true));
    CHECK_EQ(r32(INTCAUSE), 1);
    w32(INTCAUSE, 1);
    CHECK_EQ(r32(INTCAUSE), 0);
    d.handle = 1;
    CHECK_EQ(submit_wait(&d), 0x19);
    d.handle = sts >> 8;
    memset((void *)cr_at(0), 0, 32);
    movdir64b(portal(0, 3), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(0), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 0x19);
    /* an entry that is for a PASID refuses a queue without one */
    w32(MSIXPERM + 8, BIT(3));
    CHECK_EQ(submit_wait(&d), 0x19);
    w32(MSIXPERM + 8, 0);
    CHECK_EQ(submit_wait(&d), 1);
    /* masked: pending until it is unmasked */
    CHECK_TRUE(wait_bit(msi_word(1), ~0u, true));
    *msi_word(1) = 0;
    w32(MSIX_TABLE + 16 + 12, 1);
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(wait_bit((volatile uint32_t *)(bar0 + MSIX_PBA), 2, true));
    CHECK_EQ(*msi_word(1), 0);
    w32(MSIX_TABLE + 16 + 12, 0);
    CHECK_TRUE(wait_bit(msi_word(1), ~0u, true));
    /* a command with an interrupt; one while another is active is an error */
    swerr_clear();
    w32(INTCAUSE, ~0u);
    *msi_word(0) = 0;
    w32(CMD, BIT(31) | REQ_HANDLE << 20 | 1);
    CHECK_TRUE(wait_bit(msi_word(0), ~0u, true));
    CHECK_EQ(r32(INTCAUSE), 2);
    CHECK_EQ(r32(CMDSTS), sts);
}
