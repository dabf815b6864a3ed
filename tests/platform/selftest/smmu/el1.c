/*
 * Self-test of the Arm machine: what EL1 is given of the interrupt controller's
 * system registers, and what becomes of its walks through device memory. Arm
 * IHI 0069 (ICC_SRE_EL1, ICC_SRE_EL2), Arm DDI 0487 (HCR_EL2.PTW, ESR_ELx).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

/* el1.S */
uint64_t el1_enter(void (*code)(void), uint64_t x0);
uint64_t at_s1e1r(uint64_t address);
void el1_read_sre(void);
void el1_write_sre(void);
void el1_read_pmr(void);
void el1_load(void);
extern uint64_t el1_x0;

#define READ(name) ({ uint64_t v_; \
    asm volatile("mrs %0, " name : "=r"(v_) : : "memory"); v_; })
#define WRITE(name, value) \
    asm volatile("msr " name ", %0; isb" : : "r"((uint64_t)(value)) : "memory")
#define SRE_EL1 "S3_0_C12_C12_5"
#define SRE_EL2 "S3_4_C12_C9_5"
#define SRE BIT(0)
#define BYPASS_OFF (BIT(1) | BIT(2))
#define ENABLE BIT(3)

/* HCR_EL2 */
#define HCR_VM BIT(0)
#define HCR_PTW BIT(2)
#define HCR_FMO BIT(3)
#define HCR_IMO BIT(4)
#define HCR_RW BIT(31)

/* ESR_ELx */
enum { EC_HVC = 0x16, EC_MSR = 0x18, EC_ABORT_LOWER = 0x24, EC_ABORT = 0x25 };
#define EC(esr) ((esr) >> 26)
#define DFSC(esr) ((esr) & 0x3f)
#define S1PTW BIT(7)
enum { EXTERNAL_ON_WALK_2 = 0x16, PERMISSION = 0x0c };
/* How EL1 came back: at the end of its code, or by an exception of its own */
#define DONE ((uint64_t)EC_HVC << 26 | BIT(25))
#define TOOK (DONE | 1)
/* Access to ICC_SRE_EL1, X0 */
#define TRAPPED(read) ((uint64_t)EC_MSR << 26 | BIT(25) | 3 << 20 | 5 << 17 | \
    12 << 10 | 12 << 1 | (read))

/* EL1 with SRE clear has no ICC registers; the trap is its own. */
static void pmr_is_off(void)
{
    CHECK_EQ(el1_enter(el1_read_pmr, 0), TOOK);
    CHECK_EQ(EC(READ("esr_el1")), EC_MSR);
}

static void test_sre_with(uint64_t hcr)
{
    WRITE("hcr_el2", HCR_RW | hcr);
    WRITE(SRE_EL2, 0);
    CHECK_EQ(READ(SRE_EL2), BYPASS_OFF | SRE);
    WRITE(SRE_EL1, 0);
    CHECK_EQ(READ(SRE_EL1), BYPASS_OFF);
    /* EL2's own registers do not depend on it. */
    (void)READ("S3_0_C4_C6_0");
    CHECK_EQ(el1_enter(el1_read_sre, 0), TRAPPED(1));
    CHECK_EQ(el1_enter(el1_write_sre, SRE), TRAPPED(0));
    CHECK_EQ(READ(SRE_EL1), BYPASS_OFF);
    pmr_is_off();
    WRITE(SRE_EL1, SRE);
    CHECK_EQ(el1_enter(el1_read_pmr, 0), DONE);

    WRITE(SRE_EL2, ENABLE);
    CHECK_EQ(READ(SRE_EL2), ENABLE | BYPASS_OFF | SRE);
    CHECK_EQ(el1_enter(el1_read_sre, 0), DONE);
    CHECK_EQ(el1_x0, BYPASS_OFF | SRE);
    CHECK_EQ(el1_enter(el1_write_sre, 0), DONE);
    CHECK_EQ(READ(SRE_EL1), BYPASS_OFF);
    pmr_is_off();
    CHECK_EQ(el1_enter(el1_write_sre, SRE), DONE);
    CHECK_EQ(el1_enter(el1_read_pmr, 0), DONE);
}

void test_sre(void)
{
    test_sre_with(0);
    /* The virtual registers as the physical ones */
    test_sre_with(HCR_IMO | HCR_FMO);
    WRITE("hcr_el2", HCR_RW);
}

/*
 * Tables of EL1 and of stage 2, both of 39 bits. EL1 has RAM as it is, and a
 * word of it at SEEN_AT, if its second level is @l2.
 */
static uint64_t l1[512] ALIGNED(4096), l2[512] ALIGNED(4096);
static uint64_t l3[512] ALIGNED(4096), s2[512] ALIGNED(4096);
static volatile uint64_t word ALIGNED(4096) = 0x5a;
#define SEEN_AT 0x1000
#define DEVICE 0x08000000ULL    /* the distributor */
#define TABLE 3ULL
#define BLOCK (1ULL | BIT(10))
#define INNER (3ULL << 8)
#define TCR (25ULL | 1ULL << 8 | 1ULL << 10 | 3ULL << 12 | BIT(23) | 2ULL << 32)
#define VTCR (25ULL | 1ULL << 6 | 1ULL << 8 | 1ULL << 10 | 3ULL << 12 | \
    2ULL << 16 | BIT(31))
#define S2_NORMAL (0xfULL << 2)
#define S2_DEVICE (1ULL << 2)
#define S2_RW (3ULL << 6)
#define SCTLR 0x30d00801ULL     /* RES1 bits, and M */

static uint64_t load_with(uint64_t hcr, uint64_t table)
{
    l1[0] = table | TABLE;
    WRITE("hcr_el2", HCR_RW | hcr);
    asm volatile("dsb sy; tlbi alle1; dsb sy; isb" : : : "memory");
    return el1_enter(el1_load, SEEN_AT);
}

void test_walks(void)
{
    WRITE("mair_el1", 0xff);
    WRITE("tcr_el1", TCR);
    WRITE("ttbr0_el1", (uint64_t)l1);
    WRITE("sctlr_el1", SCTLR);
    l1[1] = RAM | BLOCK | INNER;
    l2[0] = (uint64_t)l3 | TABLE;
    l3[1] = (uint64_t)&word | TABLE | BIT(10) | INNER;
    s2[0] = BLOCK | S2_RW | S2_DEVICE;
    s2[1] = RAM | BLOCK | INNER | S2_RW | S2_NORMAL;
    WRITE("vtcr_el2", VTCR);
    WRITE("vttbr_el2", (uint64_t)s2);

    for (unsigned stage2 = 0; stage2 < 2; stage2++) {
        uint64_t vm = stage2 ? HCR_VM : 0;

        CHECK_EQ(load_with(vm, (uint64_t)l2), DONE);
        CHECK_EQ(el1_x0, 0x5a);
        CHECK_EQ(at_s1e1r(SEEN_AT), 0);

        CHECK_EQ(load_with(vm, DEVICE), TOOK);
        CHECK_EQ(EC(READ("esr_el1")), EC_ABORT);
        CHECK_EQ(DFSC(READ("esr_el1")), EXTERNAL_ON_WALK_2);
        CHECK_EQ(READ("far_el1"), SEEN_AT);
        /* The same walk for EL2 is EL2's abort. */
        CHECK_EQ(EC(at_s1e1r(SEEN_AT)), EC_ABORT);
    }
    /* Stage 2 says what is a device, and stops the walk before it is there. */
    uint64_t esr = load_with(HCR_VM | HCR_PTW, DEVICE);
    CHECK_EQ(EC(esr), EC_ABORT_LOWER);
    CHECK_EQ(DFSC(esr) & ~3, PERMISSION);
    CHECK_TRUE(esr & S1PTW);
    CHECK_EQ(load_with(HCR_VM | HCR_PTW, (uint64_t)l2), DONE);
    WRITE("hcr_el2", HCR_RW);
}
