/*
 * Self-test of the DSA model: registers and commands.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_registers(void)
{
    fresh();
    CHECK_EQ(r32(VERSION), 0x100);
    CHECK_EQ(r64(GENCAP) >> 31 & 1, 1);
    CHECK_EQ(r64(GENCAP) >> 16 & 0x1f, 31);
    CHECK_EQ(r64(GENCAP) >> 25 & 0x3f, 8);
    CHECK_EQ(r64(WQCAP) & 0xffff, 128);
    CHECK_EQ(r64(WQCAP) >> 16 & 0xff, WQS);
    CHECK_EQ(r64(WQCAP) >> 24 & 0xf, 0);
    CHECK_EQ(r64(GRPCAP) & 0xff, 4);
    CHECK_EQ(r64(ENGCAP), 4);
    CHECK_EQ(r64(OPCAP), 0x10003027fULL & ~(BIT(7) | BIT(8)));
    CHECK_EQ(r64(OFFSETS), 0x80000400080006ULL);
    CHECK_EQ(r32(CMDCAP), 0x7ffe);
    CHECK_EQ(r32(GENCFG), 96);
    /* accesses narrower than the register */
    CHECK_EQ(*(volatile uint16_t *)(bar0 + GENCAP + 2), r64(GENCAP) >> 16 & 0xffff);
    CHECK_EQ(bar0[WQCAP + 2], WQS);
    w32(GENCAP, 0);
    CHECK_EQ(r64(GENCAP) >> 31 & 1, 1);
    bar0[GENCFG + 1] = 0x10;
    CHECK_EQ(r32(GENCFG), 0x1060);
    w32(GENCTRL, ~0u);
    CHECK_EQ(r32(GENCTRL), 3);
    w32(WQ_DW(7, 0), ~0u);
    w32(WQ_DW(7, 1), ~0u);
    w32(WQ_DW(7, 2), ~0u);
    w32(WQ_DW(7, 3), ~0u);
    w32(WQ_DW(7, 4), ~0u);
    CHECK_EQ(r64(WQ_DW(7, 0)), 0xffff0000ffffULL);
    CHECK_EQ(r32(WQ_DW(7, 2)), 0x3ffffff7);
    CHECK_EQ(r32(WQ_DW(7, 3)), 0x1ff);
    CHECK_EQ(r64(WQ_DW(7, 4)), 0);
    w64(GRP_WQS(3), ~0ULL);
    w64(GRP_ENGINES(3), ~0ULL);
    w64(GRP_FLAGS(3), ~0ULL);
    CHECK_EQ(r64(GRP_WQS(3)), 0xff);
    CHECK_EQ(r64(GRP_ENGINES(3)), 0xf);
    CHECK_EQ(r64(GRP_FLAGS(3)), 0x0ff0ffbf);
    w32(MSIXPERM + 8 * 8, ~0u);
    CHECK_EQ(r32(MSIXPERM + 8 * 8), 0xfffff00c);
    CHECK_EQ(cmd(RESET, 0), 0);
    CHECK_EQ(r64(WQ_DW(7, 0)), 0);
    CHECK_EQ(r64(GRP_WQS(3)), 0);
    CHECK_EQ(r64(GRP_FLAGS(3)), 96 << 20);
    CHECK_EQ(r32(MSIXPERM + 8 * 8), 0);
    CHECK_EQ(r32(GENCTRL), 0);
    CHECK_EQ(r32(GENCFG), 96);
    /* extended capabilities: AER, ATS, PASID of 20 bits with privilege, PRI */
    CHECK_EQ(cfg_read(0x220, 2), 0x0f);
    CHECK_EQ(cfg_read(0x230, 2), 0x1b);
    CHECK_EQ(cfg_read(0x234, 2), 0x1404);
    CHECK_EQ(cfg_read(0x240, 2), 0x13);
    CHECK_EQ(cfg_read(0x44, 4) >> 28 & 1, 1);
}

void test_commands(void)
{
    struct desc d;

    fresh();
    CHECK_EQ(cmd(0, 0), 0x01);
    CHECK_EQ(cmd(15, 0), 0x01);
    CHECK_EQ(cmd(ENABLE, 1), 0x04);
    CHECK_EQ(cmd(DISABLE, 0), 0x31);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x20);
    CHECK_EQ(cmd(ENABLE_WQ, WQS), 0x02);
    CHECK_EQ(cmd(DISABLE_WQ, 1), 0x32);
    CHECK_EQ(cmd(DRAIN_WQ, 1), 0x32);
    CHECK_EQ(cmd(ABORT_WQ, 0x100), 0x02);
    CHECK_EQ(cmd(RESET_WQ, 1 << 16 | 1), 0x02);
    CHECK_EQ(cmd(RESET_WQ, 1), 0);
    CHECK_EQ(cmd(DRAIN_ALL, 0), 0);
    CHECK_EQ(cmd(ABORT_ALL, 0), 0);
    CHECK_EQ(cmd(DRAIN_PASID, 5), 0);
    CHECK_EQ(cmd(ABORT_PASID, 5), 0);

    /* what keeps the device from being enabled */
    cfg_write(PCI_COMMAND, 2, 2);
    CHECK_EQ(cmd(ENABLE, 0), 0x12);
    cfg_write(PCI_COMMAND, 6, 2);
    cfg_write(PRI_CTRL, 1, 2);
    CHECK_EQ(cmd(ENABLE, 0), 0x13);
    cfg_write(PRI_ALLOC, 32, 4);
    CHECK_EQ(cmd(ENABLE, 0), 0x1a);
    cfg_write(ATS_CTRL, 0x8000, 2);
    CHECK_EQ(cmd(ENABLE, 0), 0x1b);
    cfg_write(PRI_CTRL, 0, 2);
    cfg_write(ATS_CTRL, 0, 2);
    w32(GENCFG, 97);
    CHECK_EQ(cmd(ENABLE, 0), 0x11);
    w32(GENCFG, 96);
    w32(WQ_DW(0, 0), 129);
    CHECK_EQ(cmd(ENABLE, 0), 0x14);
    w32(WQ_DW(0, 0), 16);
    CHECK_EQ(cmd(ENABLE, 0), 0x16);
    w64(GRP_WQS(0), 1);
    CHECK_EQ(cmd(ENABLE, 0), 0x15);
    w64(GRP_ENGINES(0), 1);
    w64(GRP_WQS(1), 1);
    w64(GRP_ENGINES(1), 2);
    CHECK_EQ(cmd(ENABLE, 0), 0x16);
    w64(GRP_WQS(1), 2);
    CHECK_EQ(cmd(ENABLE, 0), 0x16);
    w32(WQ_DW(1, 0), 8);
    w64(GRP_ENGINES(1), 1);
    CHECK_EQ(cmd(ENABLE, 0), 0x17);
    w64(GRP_ENGINES(1), 2);
    w64(GRP_FLAGS(1), 97ULL << 20);
    CHECK_EQ(cmd(ENABLE, 0), 0x18);
    w64(GRP_FLAGS(1), 96ULL << 20 | 90 << 8);
    w64(GRP_FLAGS(0), 96ULL << 20 | 7 << 8);
    CHECK_EQ(cmd(ENABLE, 0), 0x18);
    w64(GRP_FLAGS(0), 96ULL << 20);
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(r32(GENSTS), 1);
    CHECK_EQ(cmd(ENABLE, 0), 0x10);

    /* what can no longer be written */
    w64(GRP_WQS(0), 0);
    CHECK_EQ(r64(GRP_WQS(0)), 1);
    w32(WQ_DW(0, 0), 1);
    CHECK_EQ(r32(WQ_DW(0, 0)), 16);
    w32(GENCFG, 1);
    CHECK_EQ(r32(GENCFG), 96);

    /* what keeps a queue from being enabled */
    CHECK_EQ(cmd(ENABLE_WQ, 2), 0x22);
    w32(WQ_DW(0, 3), 21 | 5 << 5);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x23);
    w32(WQ_DW(0, 2), 1 << 4 | 1 | BIT(1));
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x25);
    w32(WQ_DW(0, 2), 1 << 4);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x26);
    w32(WQ_DW(0, 2), 1 << 4 | 1 | BIT(28));
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x26);
    w32(WQ_DW(0, 2), 1 << 4 | 1);
    w32(WQ_DW(0, 3), 21);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x27);
    w32(WQ_DW(0, 3), 21 | 11 << 5);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x27);
    w32(WQ_DW(0, 3), 21 | 5 << 5);
    w32(WQ_DW(0, 2), 1 << 4 | 1 | BIT(2));
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x2c);
    w32(WQ_DW(0, 2), 1 << 4 | 1 | BIT(29));
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x21);
    CHECK_EQ(r32(WQ_DW(0, 6)) >> 30, 1);
    w32(WQ_DW(0, 2), 0);
    CHECK_EQ(r32(WQ_DW(0, 2)), 1 << 4 | 1 | BIT(29));
    w32(WQ_DW(0, 1), 3);
    CHECK_EQ(r32(WQ_DW(0, 1)), 3);
    CHECK_EQ(cmd(RESET_WQ, 1), 0);
    CHECK_EQ(r32(WQ_DW(0, 6)) >> 30, 0);
    CHECK_EQ(r32(WQ_DW(0, 0)), 16);
    CHECK_EQ(r32(WQ_DW(0, 2)), 0);
    CHECK_EQ(cmd(DISABLE, 0), 0);
    CHECK_EQ(r32(GENSTS), 0);

    /* interrupt handles */
    CHECK_EQ(cmd(REQ_HANDLE, 9) & 0xff, 0x41);
    uint32_t sts = cmd(REQ_HANDLE, 3);
    CHECK_EQ(sts & 0xff, 0);
    CHECK_EQ(cmd(REL_HANDLE, sts >> 8), 0);
    CHECK_EQ(cmd(REL_HANDLE, sts >> 8), 0x41);
    CHECK_EQ(cmd(REQ_HANDLE, 3) & 0xff, 0);
    CHECK_EQ(cmd(REL_HANDLE, 3), 0);

    /* half a command is none; a changed translation mode halts */
    w32(CMDSTS, 0);
    bar0[CMD + 2] = 0x10;
    CHECK_EQ(r32(GENSTS), 0);
    start_dwq();
    cfg_write(PASID_CTRL, 1, 2);
    CHECK_EQ(r32(GENSTS) & 0xf, 3);
    CHECK_EQ(r64(SWERR) & 0xff01, 0x5101);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0x05);
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    memset((void *)cr_at(0), 0, sizeof(*cr_at(0)));
    movdir64b(portal(0, 0), &d);
    usleep(10000);
    CHECK_EQ(cr_at(0)->status, 0);
    CHECK_EQ(cmd(RESET, 0), 0);
    CHECK_EQ(r64(SWERR) & 0xff01, 0x5101);
    cfg_write(PASID_CTRL, 0, 2);
    start_dwq();
    cfg_write(PCI_COMMAND, 2, 2);
    CHECK_EQ(r32(GENSTS) & 0xf, 3);

    /* function reset: also what a device reset preserves */
    fresh();
    setup_wq(0, 16, 1);
    cfg_write(PASID_CTRL, 5, 2);
    w32(MSIX_TABLE + 8, 0x55);
    cfg_write(DEVCTL, DEVCTL_FLR, 2);
    CHECK_EQ(cfg_read(PCI_COMMAND, 2), 0);
    CHECK_EQ(cfg_read(PASID_CTRL, 2), 0);
}
