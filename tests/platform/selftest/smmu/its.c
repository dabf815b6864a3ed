/*
 * Self-test of the SMMUv3 model: the accelerator's interrupts reach the ITS
 * through the SMMU, and what is no interrupt of the device does not.
 *
 * Source: Arm GIC architecture version 3 and 4, IHI 0069, 5.3, 12.9 to 12.12
 * and 12.18.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define GICD 0x08000000ULL
#define GITS 0x08080000ULL
#define GICR 0x080a0000ULL
enum { GICD_CTLR = 0x0, GICR_CTLR = 0x0, GICR_WAKER = 0x14,
       GICR_PROPBASER = 0x70, GICR_PENDBASER = 0x78, GITS_CTLR = 0x0,
       GITS_CBASER = 0x80, GITS_CWRITER = 0x88, GITS_CREADR = 0x90,
       GITS_BASER = 0x100, GITS_TRANSLATER = 0x10040 };
#define GICD_CTLR_ENABLE_GRP1 BIT(1)
#define GICD_CTLR_ARE BIT(4)
#define WAKER_PROCESSOR_SLEEP BIT(1)
#define WAKER_CHILDREN_ASLEEP BIT(2)
#define PENDBASER_PTZ BIT(62)
#define BASER_VALID BIT(63)
#define BASER_TYPE(v) ((v) >> 56 & 7)
enum { BASERS = 8, TYPE_DEVICES = 1, TYPE_COLLECTIONS = 4 };
enum { ITS_SYNC = 0x05, MAPD = 0x08, MAPC = 0x09, MAPTI = 0x0a, INV = 0x0c };

#define LPI_BITS 14
#define FIRST_LPI 8192
#define LPI_PRIORITY_ENABLED 0xa1
#define NONE 1023               /* no interrupt is pending */
#define OUTSIDE_IMS_WINDOW 0x100000
#define EVENT_BITS 5
#define EVENT 3                 /* the one that is mapped ... */
#define LPI (FIRST_LPI + 7)     /* ... to this interrupt */

static uint8_t lpi_config[(1 << LPI_BITS) - FIRST_LPI] ALIGNED(4096);
static uint8_t lpi_pending[65536] ALIGNED(65536);
static uint64_t tables[BASERS][512] ALIGNED(4096);
static uint64_t commands[512] ALIGNED(4096);
static uint64_t events[64] ALIGNED(256);

static void its_command(uint64_t w0, uint64_t w1, uint64_t w2)
{
    uint64_t offset = r64(GITS + GITS_CWRITER);
    uint64_t *slot = commands + offset / 8;

    slot[0] = w0;
    slot[1] = w1;
    slot[2] = w2;
    slot[3] = 0;
    offset = (offset + 32) % sizeof(commands);
    asm volatile("dsb sy" : : : "memory");
    w64(GITS + GITS_CWRITER, offset);
    CHECK_TRUE(wait32(GITS + GITS_CREADR, ~0u, offset));
}

static void its_start(void)
{
    const uint64_t device = (uint64_t)DSA_SID << 32;

    w32(GICD + GICD_CTLR, GICD_CTLR_ARE);
    w32(GICD + GICD_CTLR, GICD_CTLR_ARE | GICD_CTLR_ENABLE_GRP1);
    w32(GICR + GICR_WAKER, r32(GICR + GICR_WAKER) & ~WAKER_PROCESSOR_SLEEP);
    CHECK_TRUE(wait32(GICR + GICR_WAKER, WAKER_CHILDREN_ASLEEP, 0));
    lpi_config[LPI - FIRST_LPI] = LPI_PRIORITY_ENABLED;
    w64(GICR + GICR_PROPBASER, (uint64_t)lpi_config | (LPI_BITS - 1));
    w64(GICR + GICR_PENDBASER, (uint64_t)lpi_pending | PENDBASER_PTZ);
    w32(GICR + GICR_CTLR, 1);
    for (unsigned i = 0; i < BASERS; i++) {
        uint64_t baser = r64(GITS + GITS_BASER + 8 * i);

        if (BASER_TYPE(baser) == TYPE_DEVICES ||
            BASER_TYPE(baser) == TYPE_COLLECTIONS) {
            /* One flat page of 4 KiB */
            w64(GITS + GITS_BASER + 8 * i, (uint64_t)tables[i] | BASER_VALID);
        }
    }
    w64(GITS + GITS_CBASER, (uint64_t)commands | BASER_VALID);
    w64(GITS + GITS_CWRITER, 0);
    w32(GITS + GITS_CTLR, 1);
    its_command(MAPC, 0, BASER_VALID);          /* collection 0: processor 0 */
    its_command(MAPD | device, EVENT_BITS - 1, (uint64_t)events | BASER_VALID);
    its_command(MAPTI | device, EVENT | (uint64_t)LPI << 32, 0);
    its_command(INV | device, EVENT, 0);
    its_command(ITS_SYNC, 0, 0);
    asm volatile("msr icc_sre_el2, %0; isb; msr icc_pmr_el1, %1;"
                 "msr icc_igrpen1_el1, %2; isb"
                 : : "r"(0xfULL), "r"(0xffULL), "r"(1ULL));
}

/* The interrupt that is pending, which it then is no more */
static unsigned taken(void)
{
    uint64_t id;

    asm volatile("mrs %0, icc_iar1_el1; dsb sy" : "=r"(id));
    if (id < NONE - 3 || id > NONE) {
        asm volatile("msr icc_eoir1_el1, %0; isb" : : "r"(id));
    }
    return id;
}

void test_its(void)
{
    const uint64_t doorbell = IOVA + O_MSI + GITS_TRANSLATER % 4096;

    its_start();
    contexts();
    context_map(&c, O_MSI, GITS + GITS_TRANSLATER / 4096 * 4096);
    use_linear(3, 2);
    CHECK_EQ(taken(), NONE);
    dsa_interrupt(doorbell, EVENT);
    CHECK_EQ(taken(), LPI);
    CHECK_EQ(taken(), NONE);
    no_event();

    /* By Interrupt Message Storage, within the range that ims-window names */
    dsa_interrupt_of_ims(doorbell, EVENT);
    CHECK_EQ(taken(), LPI);
    dsa_interrupt_of_ims(doorbell ^ OUTSIDE_IMS_WINDOW, EVENT);
    CHECK_EQ(taken(), NONE);
    no_event();

    /* Mapped to no interrupt; no event of the device's */
    dsa_interrupt(doorbell, EVENT + 1);
    dsa_interrupt(doorbell, 1 << EVENT_BITS);
    CHECK_EQ(taken(), NONE);

    /* Not translated: no doorbell in this context, or no context at all */
    dsa_interrupt(GITS + GITS_TRANSLATER, EVENT);
    one_event(F_TRANSLATION, UNTAGGED);
    use_linear(3, 0);
    dsa_interrupt(doorbell, EVENT);
    one_event(F_STREAM_DISABLED, UNTAGGED);
    CHECK_EQ(taken(), NONE);

    /*
     * A copy is a write like another: whose context maps the doorbell can
     * raise the device's interrupts. A context without it cannot.
     */
    cd_write(linear[7], &c, 15);
    use_linear(3, 0);
    *(volatile uint32_t *)(c.data + O_SRC) = EVENT;
    CHECK_EQ(dsa_copy_word(7, doorbell, IOVA, c.data), CR_SUCCESS);
    CHECK_EQ(taken(), LPI);
    *(volatile uint32_t *)(a.data + O_SRC) = EVENT;
    CHECK_EQ(dsa_copy_word(5, doorbell, IOVA, a.data), CR_SUCCESS);
    CHECK_EQ(*(uint32_t *)(a.data + O_MSI + GITS_TRANSLATER % 4096), EVENT);
    CHECK_EQ(taken(), NONE);
    no_event();
}
