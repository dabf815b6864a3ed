/*
 * Self-test of the DSA model: drain, disable, abort and resets with work in flight.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

/* Needs latency-ns of LATENCY_MS: what is in flight can be looked at. */
void test_latency(void)
{
    struct desc d, other;
    uint64_t start;

    fresh();
    setup_wq(0, 4, 1);
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    cur_wq = 0;
    memset((void *)cr_at(0), 0, 32 * 16);
    start = now_ms();
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    CHECK_TRUE(now_ms() - start >= LATENCY_MS - 1);

    /* four engines' worth, then a full queue, then one too many */
    memset((void *)cr_at(0), 0, 32 * 16);
    for (unsigned i = 0; i < 6; i++) {
        d = mk(NOOP, CR_FLAGS, 0, 0, 0);
        d.cr += 32 * i;
        movdir64b(portal(0, 1), &d);
        if (i == 1) {
            /* two engines take the first two */
            uint64_t end = now_ms() + 1000;
            while (r32(WQ_DW(0, 6)) & 0xffff && now_ms() < end) {
            }
        }
    }
    CHECK_EQ(r32(WQ_DW(0, 6)) & 0xffff, 4);
    CHECK_EQ(r64(SWERR) & 1, 0);
    movdir64b(portal(0, 0), &d);
    CHECK_EQ(r64(SWERR) & 0xff00ff09, 0x00005309 & 0xff00ff09);
    swerr_clear();
    /* Drain waits for all of them */
    CHECK_EQ(cmd_start(DRAIN_WQ, 1) >> 31, 1);
    CHECK_EQ(cr_at(5)->status, 0);
    w32(CMD, DRAIN_ALL << 20);
    CHECK_EQ(r64(SWERR) & 0xff01, 0x5201);
    swerr_clear();
    CHECK_EQ(cmd_wait(), 0);
    for (unsigned i = 0; i < 6; i++) {
        CHECK_EQ(cr_at(i)->status, 1);
    }

    /* the Drain descriptor too */
    memset((void *)cr_at(0), 0, 32 * 16);
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    movdir64b(portal(0, 1), &d);
    other = mk(DRAIN, CR_FLAGS, 0, 0, 0);
    other.cr += 32;
    movdir64b(portal(0, 1), &other);
    start = now_ms();
    CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(1), 0xff, true));
    CHECK_EQ(cr_at(0)->status, 1);
    /* two latencies, one after the other, less what a slow guest lost */
    CHECK_TRUE(now_ms() - start > LATENCY_MS + LATENCY_MS / 4);

    /* Abort: nothing is written afterwards */
    memset((void *)cr_at(0), 0, 32 * 16);
    *(uint32_t *)(mem + O_DST) = 0;
    d = mk(FILL, CR_FLAGS, 0x1111111111111111, PA(O_DST), 64);
    for (unsigned i = 0; i < 4; i++) {
        movdir64b(portal(0, 1), &d);
    }
    CHECK_EQ(cmd(ABORT_WQ, 1), 0);
    CHECK_EQ(r32(WQ_DW(0, 6)) & 0xffff, 0);
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    CHECK_EQ(*(uint32_t *)(mem + O_DST), 0);

    /* Disable lets queued work end, and takes none */
    memset((void *)cr_at(0), 0, 32 * 16);
    movdir64b(portal(0, 1), &d);
    CHECK_EQ(cmd_start(DISABLE_WQ, 1) >> 31, 1);
    CHECK_EQ(cmd_wait(), 0);
    CHECK_EQ(cr_at(0)->status, 1);
    CHECK_EQ(r32(WQ_DW(0, 6)) >> 30, 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    movdir64b(portal(0, 1), &d);
    cmd_start(DISABLE, 0);
    CHECK_TRUE(wait_bit((volatile uint32_t *)(bar0 + GENSTS), 2, true));
    CHECK_EQ(cmd_wait(), 0);
    CHECK_EQ(r32(GENSTS), 0);

    /* function reset in the middle of work */
    start_dwq();
    *(uint32_t *)(mem + O_DST) = 0;
    movdir64b(portal(0, 1), &d);
    cfg_write(DEVCTL, DEVCTL_FLR, 2);
    restore_bars();
    CHECK_EQ(r32(GENSTS), 0);
    CHECK_EQ(r64(WQ_DW(0, 0)), 0);
    start_dwq();
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    CHECK_EQ(*(uint32_t *)(mem + O_DST), 0);
}

/* Needs drain-hang: commands that wait never end, resets work. */
void test_hang(void)
{
    start_dwq();
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    cmd_start(DRAIN_WQ, 1);
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
    usleep(100000);
    CHECK_EQ(r32(CMDSTS) >> 31, 1);
    cfg_write(DEVCTL, DEVCTL_FLR, 2);
    restore_bars();
    CHECK_EQ(r32(CMDSTS), 0);
    start_dwq();
    CHECK_EQ(run(NOOP, CR_FLAGS, 0, 0, 0), 1);
}
