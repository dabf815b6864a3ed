/*
 * Self-test of the DSA model: DMA and interrupts of queues with PASIDs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

void test_pasid(void)
{
    uint8_t *src = mem + O_SRC, *dst = mem + O_DST;
    struct desc d;
    uint32_t sts;

    vtd_start();

    fresh();
    cfg_write(PASID_CTRL, 1, 2);
    msix_setup();
    w32(GENCFG, 96);
    setup_wq(0, 16, 1 | 5 << 8 | BIT(28));              /* dedicated, PASID 5 */
    setup_wq(1, 16, 1 | 6 << 8 | BIT(28));              /* dedicated, PASID 6 */
    setup_wq(3, 16, 1 | 7 << 8 | BIT(28) | BIT(29));    /* privileged */
    setup_wq(4, 16, 1 | 9 << 8 | BIT(28));              /* PASID without entry */
    setup_wq(5, 16, 1);                                 /* no PASID */
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 3), 0x2a);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 1), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 4), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 5), 0);

    /* a copy through PASID 5 */
    pattern(src, 0x8000, 6);
    memset(dst, 0, 0x8000);
    cur_wq = 0;
    d = mk(MEMMOVE, CR_FLAGS, iova(O_SRC) + 1, iova(O_DST) + 3, 20000);
    d.cr = iova(O_CR);
    d.pasid_priv = 6;                                   /* ignored */
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(!memcmp(src + 1, dst + 3, 20000));
    /* past its end: the fault, and what was done before */
    d = mk(MEMMOVE, CR_FLAGS, iova(0x100000) - 5000, iova(O_DST), 9000);
    d.cr = iova(O_CR);
    CHECK_EQ(submit_wait(&d), 3);
    CHECK_EQ(cr_at(0)->done, 5000);
    CHECK_EQ(cr_at(0)->fault, iova(0x100000));
    vtd_clear_faults();
    /* backwards: result says so */
    d = mk(MEMMOVE, CR_FLAGS, iova(0x100000) - 8000, iova(0x100000) - 3000, 9000);
    d.cr = iova(O_CR);
    CHECK_EQ(submit_wait(&d) & 0x3f, 3);
    CHECK_EQ(cr_at(0)->result, 1);
    vtd_clear_faults();
    /* addresses of memory mean nothing here */
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    CHECK_EQ(run_swerr(&d) >> 8 & 0xff, 0x1a);
    CHECK_EQ(r64(SWERR) >> 40 & 0xfffff, 5);
    CHECK_EQ(r64(SWERR + 16) & ~31ULL, PA(O_CR));
    vtd_clear_faults();
    /* the same through PASID 6: it can be read, but the record not written */
    cur_wq = 1;
    d = mk(NOOP, CR_FLAGS, 0, 0, 0);
    d.cr = iova(O_CR);
    CHECK_EQ(run_swerr(&d) >> 8 & 0xff, 0x1a);
    CHECK_EQ(r64(SWERR) >> 40 & 0xfffff, 6);
    vtd_clear_faults();
    cur_wq = 4;
    CHECK_EQ(run_swerr(&d) >> 8 & 0xff, 0x1a);
    CHECK_EQ(r64(SWERR) >> 40 & 0xfffff, 9);
    vtd_clear_faults();
    /* without PASID: as before */
    cur_wq = 5;
    CHECK_EQ(run(MEMMOVE, CR_FLAGS, PA(O_SRC), PA(O_DST), 4096), 1);

    /* interrupts: illegal from user space unless GENCFG allows them */
    sts = cmd(REQ_HANDLE, 1);
    cur_wq = 0;
    d = mk(NOOP, CR_FLAGS | RCI, 0, 0, 0);
    d.cr = iova(O_CR);
    d.handle = sts >> 8;
    CHECK_EQ(submit_wait(&d), 0x11);
    CHECK_EQ(cr_at(0)->info, RCI);
    CHECK_EQ(cmd(DISABLE, 0), 0);
    w32(GENCFG, 96 | BIT(12));
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
    CHECK_EQ(submit_wait(&d), 0x19);
    CHECK_EQ(*msi_word(1), 0);
    w32(MSIXPERM + 8, BIT(3) | 6 << 12);
    CHECK_EQ(submit_wait(&d), 0x19);
    w32(MSIXPERM + 8, 5 << 12);
    CHECK_EQ(submit_wait(&d), 0x19);
    CHECK_EQ(*msi_word(1), 0);
    w32(MSIXPERM + 8, BIT(3) | 5 << 12);
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(wait_bit(msi_word(1), ~0u, true));

    /* PASID switched off under the queues: halt */
    swerr_clear();
    cfg_write(PASID_CTRL, 0, 2);
    CHECK_EQ(r32(GENSTS) & 3, 3);
    CHECK_EQ(cmd(RESET, 0), 0);
}

/*
 * Descriptors and register writes at random, from a fixed seed. What they do
 * is not looked at, only that the machine survives and the device works after
 * a reset. Their DMA cannot leave the space of PASID 5; registers that aim
 * interrupts at memory are left alone.
 */
#define FUZZ_ROUNDS 200
#define FUZZ_DESCRIPTORS 64
#define FUZZ_WRITES 32

static uint64_t fuzz_state = 0x9e3779b97f4a7c15;

static uint64_t fuzz(void)
{
    fuzz_state ^= fuzz_state << 13;
    fuzz_state ^= fuzz_state >> 7;
    fuzz_state ^= fuzz_state << 17;
    return fuzz_state;
}

static struct desc fuzz_descriptor(void)
{
    static const uint8_t ops[] = {
        NOOP, BATCH, DRAIN, MEMMOVE, FILL, COMPARE, COMPAT, DUALCAST, CRC,
        COPYCRC, CFLUSH,
    };
    struct desc d = mk(ops[fuzz() % sizeof(ops)], CR_FLAGS,
                       iova(fuzz() % 0x110000), iova(fuzz() % 0x110000),
                       fuzz() % 0x20000);

    d.cr = iova(O_CR) + fuzz() % 64 * 32;
    if (d.op_flags >> 24 == BATCH) {
        d.src = iova(O_LIST) + fuzz() % 16 * 64;
        d.size = fuzz() % 34;
    }
    if (fuzz() % 4 == 0) {
        ((uint8_t *)&d)[fuzz() % sizeof(d)] = fuzz();
    }
    return d;
}

static void fuzz_registers(void)
{
    static const struct { unsigned first, last; } ranges[] = {
        { GENCAP, CMDCAP }, { SWERR, SWERR + 31 }, { MSIXPERM, MSIXPERM + 71 },
        { GRPCFG, GRPCFG + 255 }, { WQCFG, WQCFG + 255 },
    };

    for (unsigned i = 0; i < FUZZ_WRITES; i++) {
        unsigned r = fuzz() % (sizeof(ranges) / sizeof(ranges[0]));
        unsigned o = ranges[r].first +
                     fuzz() % (ranges[r].last - ranges[r].first + 1);

        switch (fuzz() % 4) {
        case 0:
            bar0[o] = fuzz();
            break;
        case 1:
            *(volatile uint16_t *)(bar0 + (o & ~1u)) = fuzz();
            break;
        case 2:
            w32(o & ~3u, fuzz());
            break;
        case 3:
            w64(o & ~7u, fuzz());
            break;
        }
        if (fuzz() % 2) {
            w32(CMD, fuzz() % 16 << 20 | (fuzz() % 2 ? fuzz() & 0xfffff : 1));
        }
    }
}

static void fuzz_queue(void)
{
    fresh();
    setup_wq(0, 128, 1 | 5 << 8 | BIT(28));
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 0), 0);
}

void test_fuzz(void)
{
    struct desc d;

    vtd_start();
    for (unsigned round = 0; round < FUZZ_ROUNDS; round++) {
        cfg_write(PASID_CTRL, 1, 2);
        fuzz_queue();
        for (unsigned i = 0; i < FUZZ_DESCRIPTORS; i++) {
            *((struct desc *)(mem + O_LIST) + i) = fuzz_descriptor();
        }
        for (unsigned i = 0; i < FUZZ_DESCRIPTORS; i++) {
            d = fuzz_descriptor();
            movdir64b(portal(0, fuzz() % 4), &d);
        }
        fuzz_registers();
        /* before the registers can be aimed at a queue without PASID */
        cmd_wait();
        if (round % 8 == 0) {
            cfg_write(DEVCTL, DEVCTL_FLR, 2);
            restore_bars();
        }
    }
    vtd_clear_faults();
    cfg_write(PASID_CTRL, 1, 2);
    fuzz_queue();
    cur_wq = 0;
    pattern(mem + O_SRC, 0x4000, 8);
    d = mk(MEMMOVE, CR_FLAGS, iova(O_SRC), iova(O_DST), 0x4000);
    d.cr = iova(O_CR);
    CHECK_EQ(submit_wait(&d), 1);
    CHECK_TRUE(!memcmp(mem + O_SRC, mem + O_DST, 0x4000));
}
