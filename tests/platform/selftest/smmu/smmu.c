/*
 * Self-test of the SMMUv3 model: queues, the stream table.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

enum {
    CR0 = 0x20, CR0ACK = 0x24, CR2 = 0x2c, GBPA = 0x44, GERROR = 0x60, GERRORN = 0x64,
    STRTAB_BASE = 0x80, STRTAB_BASE_CFG = 0x88, CMDQ_BASE = 0x90,
    CMDQ_PROD = 0x98, CMDQ_CONS = 0x9c, EVENTQ_BASE = 0xa0,
    EVENTQ_PROD = 0x100a8, EVENTQ_CONS = 0x100ac,
};
#define CR0_SMMUEN BIT(0)
#define CR0_EVENTQEN BIT(2)
#define CR0_CMDQEN BIT(3)
#define CR2_RECINVSID BIT(1)
#define OVFLG BIT(31)           /* OVACKFLG in EVENTQ_CONS */
#define GBPA_ABORT BIT(20)
#define GBPA_UPDATE BIT(31)

#define STRTAB_LOG2 6           /* enough for DSA_SID */
#define CMDQ_LOG2 8
#define EVENTQ_LOG2 7           /* EVENTS */

static uint64_t strtab[8 << STRTAB_LOG2] ALIGNED(4096);
static volatile uint64_t cmdq[2 << CMDQ_LOG2] ALIGNED(4096);
static volatile uint32_t eventq[8 << EVENTQ_LOG2] ALIGNED(4096);
static uint32_t produced, events_seen;

static void control(uint32_t bits)
{
    w32(SMMU + CR0, bits);
    CHECK_TRUE(wait32(SMMU + CR0ACK, ~0u, bits));
}

void smmu_start(void)
{
    w32(SMMU + GBPA, GBPA_ABORT | GBPA_UPDATE);
    control(0);
    w64(SMMU + STRTAB_BASE, (uint64_t)strtab);
    w32(SMMU + STRTAB_BASE_CFG, STRTAB_LOG2);
    w64(SMMU + CMDQ_BASE, (uint64_t)cmdq | CMDQ_LOG2);
    w32(SMMU + CMDQ_PROD, 0);
    w32(SMMU + CMDQ_CONS, 0);
    w64(SMMU + EVENTQ_BASE, (uint64_t)eventq | EVENTQ_LOG2);
    w32(SMMU + EVENTQ_PROD, 0);
    w32(SMMU + EVENTQ_CONS, 0);
    control(CR0_CMDQEN);
    smmu_command(CFGI_STE_RANGE, 31);
    smmu_command(TLBI_NSNH_ALL, 0);
    control(CR0_CMDQEN | CR0_EVENTQEN | CR0_SMMUEN);
}

unsigned smmu_command(uint64_t lo, uint64_t hi)
{
    const uint32_t index_mask = (2 << CMDQ_LOG2) - 1;
    volatile uint64_t *slot = cmdq + 2 * (produced & ((1 << CMDQ_LOG2) - 1));
    unsigned error = 0;

    slot[0] = lo;
    slot[1] = hi;
    produced = (produced + 1) & index_mask;
    asm volatile("dsb sy" : : : "memory");
    w32(SMMU + CMDQ_PROD, produced);
    while ((r32(SMMU + CMDQ_CONS) & index_mask) != produced) {
        if ((r32(SMMU + GERROR) ^ r32(SMMU + GERRORN)) & 1) {
            error = r32(SMMU + CMDQ_CONS) >> 24 & 0x7f;
            /* Something harmless in its place, then go on */
            slot[0] = SYNC;
            slot[1] = 0;
            asm volatile("dsb sy" : : : "memory");
            w32(SMMU + GERRORN, r32(SMMU + GERROR));
        }
    }
    return error;
}

bool smmu_event(struct event *e)
{
    const uint32_t index_mask = (2 << EVENTQ_LOG2) - 1;
    volatile uint32_t *record;

    if ((r32(SMMU + EVENTQ_PROD) & index_mask) == events_seen) {
        return false;
    }
    record = eventq + 8 * (events_seen & ((1 << EVENTQ_LOG2) - 1));
    for (unsigned i = 0; i < 8; i++) {
        e->word[i] = record[i];
    }
    events_seen = (events_seen + 1) & index_mask;
    w32(SMMU + EVENTQ_CONS, events_seen | (r32(SMMU + EVENTQ_CONS) & OVFLG));
    return true;
}

bool smmu_overflowed(void)
{
    uint32_t flag = r32(SMMU + EVENTQ_PROD) & OVFLG;
    bool lost = flag != (r32(SMMU + EVENTQ_CONS) & OVFLG);

    CHECK_EQ(r32(SMMU + GERROR) ^ r32(SMMU + GERRORN), 0);
    w32(SMMU + EVENTQ_CONS, events_seen | flag);
    return lost;
}

void smmu_streams(unsigned log2, bool report_others)
{
    control(CR0_CMDQEN | CR0_EVENTQEN);
    w32(SMMU + STRTAB_BASE_CFG, log2);
    w32(SMMU + CR2, report_others ? CR2_RECINVSID : 0);
    smmu_command(CFGI_STE_RANGE, 31);
    control(CR0_CMDQEN | CR0_EVENTQEN | CR0_SMMUEN);
}

void ste_write(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3)
{
    volatile uint64_t *ste = strtab + 8 * DSA_SID;

    ste[1] = w1;
    ste[2] = w2;
    ste[3] = w3;
    ste[0] = w0;
    asm volatile("dsb sy" : : : "memory");
}

void ste_use(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3)
{
    ste_write(w0, w1, w2, w3);
    smmu_command(CFGI_STE | (uint64_t)DSA_SID << 32, 1);
    smmu_command(TLBI_NSNH_ALL, 0);
    smmu_command(SYNC, 0);
}
