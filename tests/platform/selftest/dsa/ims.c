/*
 * Self-test of the DSA model: Interrupt Message Storage.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define ENTRIES 2048
enum { ADDRESS = 0, ADDRESS_HIGH, DATA, CONTROL };
enum { MASKED = BIT(0), PENDING = BIT(1), PASID_EN = BIT(3) };
#define FOR_PASID(pasid) (PASID_EN | (pasid) << 12)
#define AT_RESET 0xfee00000

static bool is_as_after_reset(unsigned n)
{
    return r64(IMS_DW(n, ADDRESS)) == AT_RESET &&
           r64(IMS_DW(n, DATA)) == (uint64_t)MASKED << 32;
}

static unsigned changed(void)
{
    unsigned count = 0;

    for (unsigned n = 0; n < ENTRIES; n++) {
        count += !is_as_after_reset(n);
    }
    return count;
}

void test_ims_registers(void)
{
    uint32_t sts;

    fresh();
    CHECK_EQ(changed(), 0);
    /* what can be written: not that an interrupt is pending */
    w32(IMS_DW(ENTRIES - 1, ADDRESS), ~0u);
    CHECK_EQ(r64(IMS_DW(ENTRIES - 1, ADDRESS)), 0xfffffffc);
    w32(IMS_DW(ENTRIES - 1, ADDRESS_HIGH), ~0u);
    w32(IMS_DW(ENTRIES - 1, DATA), ~0u);
    w32(IMS_DW(ENTRIES - 1, CONTROL), ~0u);
    CHECK_EQ(r64(IMS_DW(ENTRIES - 1, ADDRESS)), ~3ULL);
    CHECK_EQ(r32(IMS_DW(ENTRIES - 1, ADDRESS_HIGH)), ~0u);
    CHECK_EQ(r32(IMS_DW(ENTRIES - 1, DATA)), ~0u);
    CHECK_EQ(r64(IMS_DW(ENTRIES - 1, DATA)), 0xfffff00dffffffff);
    /* by 64 bits, and by less than 32 */
    w64(IMS_DW(5, ADDRESS), 0x1fee12340);
    w64(IMS_DW(5, DATA), 0xabcde00900004321);
    CHECK_EQ(r32(IMS_DW(5, ADDRESS)), 0xfee12340);
    CHECK_EQ(r32(IMS_DW(5, ADDRESS_HIGH)), 1);
    CHECK_EQ(r32(IMS_DW(5, DATA)), 0x4321);
    CHECK_EQ(r32(IMS_DW(5, CONTROL)), 0xabcde009);
    bar0[IMS_DW(5, DATA) + 1] = 0x99;
    CHECK_EQ(r32(IMS_DW(5, DATA)), 0x9921);
    CHECK_EQ(*(volatile uint16_t *)(bar0 + IMS_DW(5, CONTROL) + 2), 0xabcd);
    CHECK_EQ(changed(), 2);
    CHECK_EQ(cmd(RESET, 0), 0);
    CHECK_EQ(changed(), 0);
    w32(IMS_DW(7, DATA), 1);
    cfg_write(DEVCTL, DEVCTL_FLR, 2);
    restore_bars();
    CHECK_EQ(changed(), 0);

    /* handles: none of the other table's, nor beyond the last entry */
    CHECK_EQ(cmd(REQ_HANDLE, OF_IMS | ENTRIES), 0x41);
    sts = cmd(REQ_HANDLE, OF_IMS | (ENTRIES - 1));
    CHECK_EQ(sts & 0xff, 0);
    CHECK_EQ(cmd(REL_HANDLE, sts >> 8), 0x41);
    CHECK_EQ(cmd(REL_HANDLE, OF_IMS | 1), 0x41);
    CHECK_EQ(cmd(REL_HANDLE, OF_IMS | sts >> 8), 0);
    CHECK_EQ(cmd(REL_HANDLE, OF_IMS | sts >> 8), 0x41);
    CHECK_EQ(cmd(REQ_HANDLE, OF_IMS | 1) & 0xff, 0);
    CHECK_EQ(cmd(REL_HANDLE, 1), 0x41);
    CHECK_EQ(cmd(REL_HANDLE, OF_IMS | 1), 0);
    CHECK_EQ(cmd(REQ_HANDLE, BIT(17) | 1), 0x04);
    CHECK_TRUE(cmd(REQ_HANDLE, OF_IMS | 1) >> 8 != cmd(REQ_HANDLE, 1) >> 8);
}

/* Needs ims-size=0. */
void test_no_ims(void)
{
    struct desc d;

    start_dwq();
    CHECK_EQ(r64(GENCAP) >> 25 & 0x3f, 0);
    CHECK_EQ(r64(OFFSETS) >> 48, 0);
    w64(IMS, ~0ULL);
    CHECK_EQ(r64(IMS), 0);
    CHECK_EQ(cmd(REQ_HANDLE, OF_IMS), 0x41);
    /* the portals are there, and whatever they are given is no handle */
    d = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
    memset((void *)cr_at(0), 0, 32);
    movdir64b(portal(0, 3), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(0), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 0x19);
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    memset((void *)cr_at(0), 0, 32);
    movdir64b(portal(0, 2), &d);
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(0), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 1);
}

static void set_entry(unsigned n, uint64_t address, uint32_t data,
                      uint32_t control)
{
    w64(IMS_DW(n, ADDRESS), address);
    w64(IMS_DW(n, DATA), data | (uint64_t)control << 32);
}

static unsigned handle_of(unsigned n)
{
    uint32_t sts = cmd(REQ_HANDLE, OF_IMS | n);

    CHECK_EQ(sts & 0xff, 0);
    return sts >> 8;
}

/* Submits by a page of the queue's portals; returns the status. */
static uint8_t submit_by(unsigned page, struct desc *d)
{
    memset((void *)cr_at(0), 0, 32);
    movdir64b(portal(cur_wq, page), d);
    wait_bit((volatile uint32_t *)cr_at(0), 0xff, true);
    return cr_at(0)->status;
}

/* Through queue 0, of PASID 5, and queue 1, without one; requests are posted. */
static void start(void)
{
    vtd_start();
    vtd_post_start();
    fresh();
    cfg_write(PASID_CTRL, 1, 2);
    /* MSI-X has no say in it */
    cfg_write(MSIX_CTRL, 0, 2);
    w32(GENCFG, 96 | BIT(12));
    setup_wq(0, 16, 1 | 5 << 8 | BIT(28));
    setup_wq(1, 16, 1);
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 1), 0);
    cur_wq = 0;
}

void test_ims(void)
{
    struct desc d, *member = (struct desc *)(mem + O_LIST);
    unsigned last;

    start();
    d = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
    d.cr = iova(O_CR);
    d.handle = handle_of(10);
    set_entry(10, MESSAGE(3), 0, FOR_PASID(5));
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(3));
    CHECK_EQ(submit_by(3, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(3));
    /* nobody asked for it */
    d.op_flags &= ~RCI;
    d.handle = 0;
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), 0);
    d.op_flags |= RCI;
    /* with data; the last entry is as good */
    last = handle_of(ENTRIES - 1);
    set_entry(ENTRIES - 1, MESSAGE_PLUS(3), 4, FOR_PASID(5));
    d.handle = last;
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(7));

    /* an entry for another PASID, for none, and a PASID that is not enabled */
    d.handle = handle_of(10);
    w32(IMS_DW(10, CONTROL), FOR_PASID(6));
    CHECK_EQ(submit_by(2, &d), 0x19);
    w32(IMS_DW(10, CONTROL), 0);
    CHECK_EQ(submit_by(2, &d), 0x19);
    w32(IMS_DW(10, CONTROL), 5 << 12);
    CHECK_EQ(submit_by(2, &d), 0x19);
    /* refused is not pending */
    w32(IMS_DW(10, CONTROL), MASKED | FOR_PASID(6));
    CHECK_EQ(submit_by(2, &d), 0x19);
    CHECK_EQ(r32(IMS_DW(10, CONTROL)) & PENDING, 0);
    CHECK_EQ(vtd_posted(), 0);

    /* masked: pending, sent once when it is unmasked */
    w32(IMS_DW(10, CONTROL), MASKED | FOR_PASID(5));
    CHECK_EQ(r32(IMS_DW(10, CONTROL)), MASKED | FOR_PASID(5));
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), 0);
    CHECK_EQ(r32(IMS_DW(10, CONTROL)), MASKED | PENDING | FOR_PASID(5));
    CHECK_EQ(r64(IMS_DW(10, DATA)) >> 32, MASKED | PENDING | FOR_PASID(5));
    /* a write without that bit does not take it back, nor one elsewhere send it */
    w32(IMS_DW(10, CONTROL), MASKED | FOR_PASID(5));
    w32(IMS_DW(10, DATA), 0);
    CHECK_EQ(r32(IMS_DW(10, CONTROL)), MASKED | PENDING | FOR_PASID(5));
    CHECK_EQ(vtd_posted(), 0);
    w32(IMS_DW(10, CONTROL), FOR_PASID(5));
    CHECK_EQ(vtd_posted(), BIT(3));
    CHECK_EQ(r32(IMS_DW(10, CONTROL)), FOR_PASID(5));
    w32(IMS_DW(10, CONTROL), MASKED | FOR_PASID(5));
    w32(IMS_DW(10, CONTROL), FOR_PASID(5));
    CHECK_EQ(vtd_posted(), 0);

    /* the handle of an entry, where the portal means the other table */
    CHECK_EQ(submit_by(0, &d), 0x19);
    CHECK_EQ(submit_by(1, &d), 0x19);
    /* an index is no handle, nor is what was given back */
    d.handle = 10;
    CHECK_EQ(submit_by(2, &d), 0x19);
    d.handle = last;
    CHECK_EQ(cmd(REL_HANDLE, OF_IMS | last), 0);
    CHECK_EQ(submit_by(2, &d), 0x19);
    CHECK_EQ(vtd_posted(), 0);

    /* an address that is none of messages: neither sent nor kept */
    d.handle = handle_of(10);
    *msi_word(0) = 0;
    w64(IMS_DW(10, ADDRESS), PA(O_MSI));
    w32(IMS_DW(10, DATA), 0x55);
    CHECK_EQ(submit_by(2, &d), 1);
    w64(IMS_DW(10, ADDRESS), MESSAGE(3) + 0x100000);
    CHECK_EQ(submit_by(2, &d), 1);
    w64(IMS_DW(10, ADDRESS), MESSAGE(3) | 1ULL << 32);
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), 0);
    CHECK_EQ(*msi_word(0), 0);
    w64(IMS_DW(10, ADDRESS), MESSAGE(3));
    w32(IMS_DW(10, DATA), 0);
    CHECK_EQ(vtd_posted(), 0);

    /* it is the device that asks: for another requester VT-d refuses */
    vtd_post(3, devfn() ^ 1);
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), 0);
    vtd_post(3, devfn());
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(3));
    vtd_clear_faults();
    /* and what has a PASID is no message, whatever its address */
    d = mk(FILL, CR_FLAGS, 0, MESSAGE(3) & ~31, 32);
    d.cr = iova(O_CR);
    CHECK_EQ(submit_by(2, &d) & 0x3f, 3);
    CHECK_EQ(vtd_posted(), 0);
    vtd_clear_faults();

    /* members of a batch have its portal */
    for (unsigned i = 0; i < 2; i++) {
        member[i] = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
        member[i].cr = iova(O_CR) + 32 * (i + 1);
        member[i].handle = handle_of(10 + i);
    }
    set_entry(11, MESSAGE(4), 0, FOR_PASID(6));
    d = mk(BATCH, CR_FLAGS, iova(O_LIST), 0, 2);
    d.cr = iova(O_CR);
    CHECK_EQ(submit_by(2, &d), 5);
    CHECK_EQ(cr_at(1)->status, 1);
    CHECK_EQ(cr_at(2)->status, 0x19);
    CHECK_EQ(vtd_posted(), BIT(3));
    w32(IMS_DW(11, CONTROL), FOR_PASID(5));
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(3) | BIT(4));
    CHECK_EQ(submit_by(1, &d), 5);
    CHECK_EQ(vtd_posted(), 0);

    /* a queue without PASIDs, and an entry for one */
    cur_wq = 1;
    d = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
    d.handle = handle_of(10);
    CHECK_EQ(submit_by(2, &d), 0x19);
    w32(IMS_DW(10, CONTROL), PASID_EN);
    CHECK_EQ(submit_by(2, &d), 0x19);
    CHECK_EQ(vtd_posted(), 0);
    w32(IMS_DW(10, CONTROL), 5 << 12);
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(vtd_posted(), BIT(3));

    /* what is pending does not outlive a reset */
    w32(IMS_DW(10, CONTROL), MASKED);
    CHECK_EQ(submit_by(2, &d), 1);
    CHECK_EQ(r32(IMS_DW(10, CONTROL)), MASKED | PENDING);
    CHECK_EQ(cmd(RESET, 0), 0);
    CHECK_EQ(changed(), 0);
    set_entry(10, MESSAGE(3), 0, 0);
    CHECK_EQ(vtd_posted(), 0);
    vtd_post_stop();
}
