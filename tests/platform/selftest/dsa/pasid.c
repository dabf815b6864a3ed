/*
 * Self-test of the DSA model: DMA and interrupts of queues with PASIDs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include "selftest.h"

/* PASID: VT-d in scalable mode, driven from here */

#define VTD_BASE 0xfed90000
static volatile uint8_t *vtd;
enum { V_CAP = 8, V_ECAP = 0x10, V_GCMD = 0x18, V_GSTS = 0x1c, V_RTADDR = 0x20,
       V_FSTS = 0x34, V_IQT = 0x88, V_IQA = 0x90 };
/* tables, by offset in the DMA memory; one page each */
enum { T_ROOT = O_VTD, T_CTX = O_VTD + 0x1000, T_DIR = O_VTD + 0x2000,
       T_PASID = O_VTD + 0x3000, T_QI = O_VTD + 0x4000, T_SS = O_VTD + 0x8000 };

static uint64_t *table(unsigned o) { return (uint64_t *)(mem + o); }

static void vtd_gcmd(unsigned bit)
{
    uint32_t sts = *(volatile uint32_t *)(vtd + V_GSTS);

    *(volatile uint32_t *)(vtd + V_GCMD) = (sts & 0x96ffffff) | 1u << bit;
    CHECK_TRUE(wait_bit((volatile uint32_t *)(vtd + V_GSTS), 1u << bit, true));
}

/* The same bit off again. */
static void vtd_gcmd_off(unsigned bit)
{
    uint32_t sts = *(volatile uint32_t *)(vtd + V_GSTS);

    *(volatile uint32_t *)(vtd + V_GCMD) = sts & 0x96ffffff & ~(1u << bit);
    CHECK_TRUE(wait_bit((volatile uint32_t *)(vtd + V_GSTS), 1u << bit, false));
}

static unsigned qi_tail;

static void qi(uint64_t lo, uint64_t hi)
{
    uint64_t *slot = table(T_QI) + 4 * qi_tail;

    slot[0] = lo;
    slot[1] = hi;
    slot[2] = slot[3] = 0;
    qi_tail = (qi_tail + 1) % 128;
}

static void qi_flush(void)
{
    volatile uint32_t *word = (volatile uint32_t *)(mem + T_QI + 0x2000);

    qi(0x1 | 1 << 4, 0);                        /* context cache, global */
    qi(0x7 | 3 << 4, 0);                        /* PASID cache, global */
    qi(0x2 | 1 << 4, 0);                        /* IOTLB, global */
    *word = 0;
    qi(0x5 | BIT(5) | 1ULL << 32, PA(T_QI) + 0x2000);
    *(volatile uint64_t *)(vtd + V_IQT) = (uint64_t)qi_tail << 5;
    CHECK_TRUE(wait_bit(word, 1, true));
}

/*
 * Second-stage tables for one PASID: I/O virtual addresses 0x10000000 on are
 * mapped to the DMA memory, 0x100000 bytes in pages; @writable or not.
 */
#define IOVA 0x10000000UL
static void vtd_space(unsigned n, unsigned to, bool writable)
{
    unsigned base = T_SS + n * 0x4000;
    uint64_t *l4 = table(base), *l3 = table(base + 0x1000);
    uint64_t *l2 = table(base + 0x2000), *l1 = table(base + 0x3000);

    memset(l4, 0, 0x4000);
    l4[0] = PA(base + 0x1000) | 3;
    l3[0] = PA(base + 0x2000) | 3;
    l2[IOVA >> 21] = PA(base + 0x3000) | 3;
    for (unsigned i = 0; i < 256; i++) {
        l1[i] = (PA(to) + i * PAGE) | (writable ? 3 : 1);
    }
}

static void vtd_pasid(unsigned pasid, unsigned space, unsigned did)
{
    uint64_t *e = table(T_PASID) + 8 * (pasid & 63);

    e[1] = did;
    e[0] = 1 | 2 << 2 | 2 << 6 | PA(T_SS + space * 0x4000);
}

static void vtd_start(void)
{
    int fd = open("/dev/mem", O_RDWR | O_SYNC);
    uint64_t *ctx;

    if (fd < 0) {
        die("/dev/mem");
    }
    vtd = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, VTD_BASE);
    if (vtd == MAP_FAILED) {
        die("map VT-d");
    }
    /* An earlier test may have left both on; the queue then starts over. */
    vtd_gcmd_off(31);
    vtd_gcmd_off(26);
    qi_tail = 0;
    memset(mem + O_VTD, 0, HUGE - O_VTD);
    table(T_ROOT)[0] = PA(T_CTX) | 1;
    ctx = table(T_CTX) + 4 * devfn();
    ctx[0] = 1 | 1 << 3 | PA(T_DIR);            /* P, PASIDE, 128 entries */
    ctx[1] = 0;
    table(T_DIR)[0] = PA(T_PASID) | 1;
    /* requests without PASID pass through, as PASID 0 */
    table(T_PASID)[1] = 1;
    table(T_PASID)[0] = 1 | 2 << 2 | 4 << 6;
    vtd_space(0, O_SRC & ~0xfffff, true);
    vtd_space(1, O_SRC & ~0xfffff, false);
    vtd_pasid(5, 0, 5);
    vtd_pasid(6, 1, 6);
    *(volatile uint64_t *)(vtd + V_RTADDR) = PA(T_ROOT) | 1 << 10;
    vtd_gcmd(30);
    *(volatile uint64_t *)(vtd + V_IQT) = 0;
    *(volatile uint64_t *)(vtd + V_IQA) = PA(T_QI) | BIT(11);
    vtd_gcmd(26);
    qi_flush();
    vtd_gcmd(31);
}

static void vtd_clear_faults(void)
{
    unsigned fro = (*(volatile uint64_t *)(vtd + V_CAP) >> 24 & 0x3ff) * 16;
    unsigned nfr = (*(volatile uint64_t *)(vtd + V_CAP) >> 40 & 0xff) + 1;

    for (unsigned i = 0; i < nfr; i++) {
        *(volatile uint32_t *)(vtd + fro + 16 * i + 12) = BIT(31);
    }
    *(volatile uint32_t *)(vtd + V_FSTS) = 1;
}

/* A descriptor in addresses of a PASID's space. */
static uint64_t iova(unsigned o) { return IOVA + o; }

void test_pasid(void)
{
    uint8_t *src = mem + O_SRC, *dst = mem + O_DST;
    struct desc d;
    uint32_t sts;
    int msr;

    vtd_start();

    fresh();
    cfg_write(PASID_CTRL, 1, 2);
    msix_setup();
    w32(GENCFG, 96);
    setup_wq(0, 16, 1 | 5 << 8 | BIT(28));              /* dedicated, PASID 5 */
    setup_wq(1, 16, 1 | 6 << 8 | BIT(28));              /* dedicated, PASID 6 */
    setup_wq(2, 16, 0 | 1 << 8 | BIT(28));              /* shared */
    setup_wq(3, 16, 1 | 7 << 8 | BIT(28) | BIT(29));    /* privileged */
    setup_wq(4, 16, 1 | 9 << 8 | BIT(28));              /* PASID without entry */
    setup_wq(5, 16, 1);                                 /* no PASID */
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, 3), 0x2a);
    for (unsigned i = 0; i < 6; i++) {
        CHECK_EQ(i == 3 ? 0 : cmd(ENABLE_WQ, i), 0);
    }

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
    CHECK_EQ(cmd(ENABLE_WQ, 2), 0);
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

    /* a shared queue: PASID from the submitter, and no other way in */
    cur_wq = 2;
    msr = open("/dev/cpu/0/msr", O_RDWR);
    if (msr >= 0) {
        uint64_t ia32_pasid = BIT(31) | 5;
        cpu_set_t cpu0;

        CPU_ZERO(&cpu0);
        CPU_SET(0, &cpu0);
        sched_setaffinity(0, sizeof(cpu0), &cpu0);
        CHECK_EQ(pwrite(msr, &ia32_pasid, 8, 0xd93), 8);
        memset((void *)cr_at(0), 0, 32);
        d = mk(MEMMOVE, CR_FLAGS, iova(O_SRC), iova(O_DST) + 7, 5000);
        d.cr = iova(O_CR);
        memset(dst, 0, 0x8000);
        CHECK_TRUE(enqcmd(portal(2, 1), &d));
        CHECK_TRUE(wait_bit((volatile uint32_t *)cr_at(0), 0xff, true));
        CHECK_EQ(cr_at(0)->status, 1);
        CHECK_TRUE(!memcmp(src, dst + 7, 5000));
        CHECK_TRUE(!enqcmd(portal(0, 1), &d));          /* dedicated */
        CHECK_TRUE(!enqcmd(portal(6, 1), &d));          /* not enabled */
        w32(WQ_DW(2, 1), 0);
        CHECK_TRUE(!enqcmd(portal(2, 1), &d));          /* threshold */
        CHECK_TRUE(enqcmd(portal(2, 0), &d));
        w32(WQ_DW(2, 1), 8);
        CHECK_EQ(cmd(DRAIN_PASID, 5), 0);
        memset((void *)cr_at(0), 0, 32);
        movdir64b(portal(2, 1), &d);                    /* ignored */
        CHECK_EQ(cmd(DRAIN_WQ, 4), 0);
        CHECK_EQ(cr_at(0)->status, 0);
    } else {
        printf("dsa-selftest: no /dev/cpu/0/msr, shared queues not tried\n");
    }

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
