/*
 * Self-test of the DSA model: VT-d in scalable mode, driven from here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include "selftest.h"

#define VTD_BASE 0xfed90000
static volatile uint8_t *vtd;
enum { V_CAP = 8, V_ECAP = 0x10, V_GCMD = 0x18, V_GSTS = 0x1c, V_RTADDR = 0x20,
       V_FSTS = 0x34, V_IQT = 0x88, V_IQA = 0x90, V_IRTA = 0xb8 };
/* tables, by offset in the DMA memory; one page each */
enum { T_ROOT = O_VTD, T_CTX = O_VTD + 0x1000, T_DIR = O_VTD + 0x2000,
       T_PASID = O_VTD + 0x3000, T_QI = O_VTD + 0x4000, T_SS = O_VTD + 0x8000,
       T_IRT = O_VTD + 0x20000, T_PID = O_VTD + 0x21000 };

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
    qi(0x4, 0);                                 /* interrupt entries, global */
    *word = 0;
    qi(0x5 | BIT(5) | 1ULL << 32, PA(T_QI) + 0x2000);
    *(volatile uint64_t *)(vtd + V_IQT) = (uint64_t)qi_tail << 5;
    CHECK_TRUE(wait_bit(word, 1, true));
}

/*
 * Second-stage tables for one PASID: I/O virtual addresses 0x10000000 on are
 * mapped to the DMA memory from @to on, 0x100000 bytes in pages at most;
 * @writable or not.
 */
static void vtd_space(unsigned n, unsigned to, bool writable)
{
    unsigned base = T_SS + n * 0x4000;
    uint64_t *l4 = table(base), *l3 = table(base + 0x1000);
    uint64_t *l2 = table(base + 0x2000), *l1 = table(base + 0x3000);

    memset(l4, 0, 0x4000);
    l4[0] = PA(base + 0x1000) | 3;
    l3[0] = PA(base + 0x2000) | 3;
    l2[IOVA >> 21] = PA(base + 0x3000) | 3;
    for (unsigned i = 0; i < 256 && to + i * PAGE < HUGE; i++) {
        l1[i] = (PA(to) + i * PAGE) | (writable ? 3 : 1);
    }
}

static void vtd_pasid(unsigned pasid, unsigned space, unsigned did)
{
    uint64_t *e = table(T_PASID) + 8 * (pasid & 63);

    e[1] = did;
    e[0] = 1 | 2 << 2 | 2 << 6 | PA(T_SS + space * 0x4000);
}

void vtd_start(void)
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
    /* An earlier test may have left all on; the queue then starts over. */
    vtd_gcmd_off(25);
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
    vtd_space(2, O_OTHER, true);
    vtd_pasid(5, 0, 5);
    vtd_pasid(6, 1, 6);
    vtd_pasid(7, 2, 7);
    *(volatile uint64_t *)(vtd + V_RTADDR) = PA(T_ROOT) | 1 << 10;
    vtd_gcmd(30);
    *(volatile uint64_t *)(vtd + V_IQT) = 0;
    *(volatile uint64_t *)(vtd + V_IQA) = PA(T_QI) | BIT(11);
    vtd_gcmd(26);
    qi_flush();
    vtd_gcmd(31);
}

void vtd_clear_faults(void)
{
    unsigned fro = (*(volatile uint64_t *)(vtd + V_CAP) >> 24 & 0x3ff) * 16;
    unsigned nfr = (*(volatile uint64_t *)(vtd + V_CAP) >> 40 & 0xff) + 1;

    for (unsigned i = 0; i < nfr; i++) {
        *(volatile uint32_t *)(vtd + fro + 16 * i + 12) = BIT(31);
    }
    *(volatile uint32_t *)(vtd + V_FSTS) = 1;
}

uint64_t iova(unsigned o) { return IOVA + o; }

/*
 * Interrupt remapping: what request @n of the device comes to is a bit in a
 * descriptor in memory, and nobody is told. Messages in the other format, of
 * the kernel's devices, are left alone.
 */
#define IR_REQUESTS 16

static volatile uint64_t *posted_descriptor(unsigned n)
{
    return table(T_PID) + 8 * n;
}

void vtd_post(unsigned n, unsigned requester)
{
    uint64_t pda = PA(T_PID) + 64 * n, *e = table(T_IRT) + 2 * n;

    posted_descriptor(n)[4] = BIT(1);           /* SN */
    e[1] = (pda & ~0xffffffffULL) | BIT(18) | requester;
    e[0] = pda << 32 | n << 16 | BIT(15) | 1;   /* posted, present */
    qi_flush();
}

void vtd_post_start(void)
{
    for (unsigned n = 0; n < IR_REQUESTS; n++) {
        vtd_post(n, devfn());
    }
    *(volatile uint64_t *)(vtd + V_IRTA) = PA(T_IRT) | 7;
    vtd_gcmd(24);
    qi_flush();
    vtd_gcmd(25);
}

void vtd_post_stop(void)
{
    vtd_gcmd_off(25);
}

uint32_t vtd_posted(void)
{
    uint32_t posted = 0;

    /* What the device completed it has sent before it answers this. */
    r32(GENSTS);
    for (unsigned n = 0; n < IR_REQUESTS; n++) {
        volatile uint64_t *pid = posted_descriptor(n);

        posted |= (pid[0] >> n & 1) << n;
        pid[0] = 0;
    }
    return posted;
}
