/*
 * Self-test of the SMMUv3 model: translation tables and context descriptors.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define PTE_TABLE 3ULL
#define PTE_PAGE (3ULL | 1ULL << 6 | 3ULL << 8 | BIT(10))   /* RW, AF */
#define PTE_S2_BLOCK(s2ap) (1ULL | (s2ap) << 6 | 3ULL << 8 | BIT(10))
#define GIB BIT(30)

#define CD_T0SZ 25ULL           /* 39 bits: three levels of 4 KiB tables */
#define CD_EPD1 BIT(30)
#define CD_AA64 BIT(41)
#define CD_R BIT(45)
#define CD_A BIT(46)
#define CD_ASET BIT(47)
#define CD_IPS_44 4ULL

uint64_t stage2[512] ALIGNED(4096);

void context_init(struct context *c)
{
    memset(c, 0, sizeof(*c));
    for (unsigned i = 0; i < PAGES; i++) {
        c->l3[i] = (uint64_t)(c->data + i * 4096) | PTE_PAGE;
    }
    c->l2[0] = (uint64_t)c->l3 | PTE_TABLE;
    c->l1[IOVA / GIB] = (uint64_t)c->l2 | PTE_TABLE;
    for (unsigned i = 0; i < 256; i++) {
        c->data[O_SRC + i] = (uint8_t)(i * 7 + (uint64_t)c / 4096);
    }
}

void context_map(struct context *c, unsigned offset, uint64_t address)
{
    c->l3[offset / 4096] = address | PTE_PAGE;
    asm volatile("dsb sy" : : : "memory");
}

void cd_write(volatile uint64_t *cd, const struct context *c, uint16_t asid)
{
    cd[1] = (uint64_t)c->l1;
    cd[0] = CD_T0SZ | CD_EPD1 | CD_V | CD_IPS_44 << CD_IPS_SHIFT | CD_AA64 |
            CD_R | CD_A | CD_ASET | (uint64_t)asid << 48;
    asm volatile("dsb sy" : : : "memory");
}

void stage2_init(void)
{
    for (unsigned i = 0; i < FAR_IPA / GIB; i++) {
        stage2[i] = i * GIB | PTE_S2_BLOCK((uint64_t)(S2_READ | S2_WRITE));
    }
    stage2_far(S2_READ | S2_WRITE);
}

void stage2_far(uint64_t s2ap)
{
    stage2[FAR_IPA / GIB] = RAM | PTE_S2_BLOCK(s2ap);
    asm volatile("dsb sy" : : : "memory");
}
