/*
 * Self-test of the SMMUv3 model: the accelerator as a source of requests with
 * and without PASIDs, and the interconnect before its portals.
 *
 * Source: Intel DSA Architecture Specification, 341204.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define CONFIG (0x4010000000ULL + ((uint64_t)DSA_SID << 12))
#define BAR0 0x10000000ULL
#define BAR2 0x10020000ULL
enum { PCI_COMMAND = 0x04, PCI_BAR0 = 0x10, PCI_BAR2 = 0x18, MSIX_CTRL = 0x82,
       PASID_CTRL = 0x236 };

enum {
    INTCAUSE = 0x98, CMD = 0xa0, CMDSTS = 0xa8, SWERR = 0xc0, GRPCFG = 0x600,
    WQCFG = 0x800, MSIX_TABLE = 0x2000, IMS = 0x8000,
};
enum { ENABLE = 1, DRAIN_ALL = 3, RESET = 5, ENABLE_WQ = 6, DISABLE_WQ = 7,
       REQUEST_HANDLE = 13 };
#define OF_IMS BIT(16)
enum { NOOP = 0, MEMMOVE = 3 };
#define CMD_INT BIT(31)
#define CRAV_RCR (BIT(2) | BIT(3))
#define RCI BIT(4)
#define SWERR_CR_FAULT 0x1a

struct descriptor {
    uint64_t word[8];
} ALIGNED(64);

static uint32_t command(uint32_t code, uint32_t operand)
{
    w32(BAR0 + CMD, code << 20 | operand);
    CHECK_TRUE(wait32(BAR0 + CMDSTS, BIT(31), 0));
    return r32(BAR0 + CMDSTS) & 0xff;
}

void dsa_start(void)
{
    uint32_t id = r32(CONFIG);

    CHECK_TRUE(id == 0x11fb8086 || id == 0x0b258086);
    w32(CONFIG + PCI_BAR0, BAR0);
    w32(CONFIG + PCI_BAR0 + 4, 0);
    w32(CONFIG + PCI_BAR2, BAR2);
    w32(CONFIG + PCI_BAR2 + 4, 0);
    *(volatile uint16_t *)(CONFIG + PASID_CTRL) = 1;
    *(volatile uint16_t *)(CONFIG + PCI_COMMAND) = 6;
    CHECK_EQ(command(RESET, 0), 0);
    w32(BAR0 + WQCFG, 16);                      /* size */
    w32(BAR0 + WQCFG + 4, 8);
    w32(BAR0 + WQCFG + 8, 1 | 5 << 4);          /* dedicated, priority */
    w32(BAR0 + WQCFG + 12, 21 | 5 << 5);
    w64(BAR0 + GRPCFG, 1);
    w64(BAR0 + GRPCFG + 32, 1);
    CHECK_EQ(command(ENABLE, 0), 0);
    CHECK_EQ(command(ENABLE_WQ, 0), 0);
}

static uint64_t portal(unsigned slot)
{
    return BAR2 + 0x1000 + 64 * slot;
}

static void store(unsigned slot, unsigned from, unsigned to,
                  const struct descriptor *d)
{
    asm volatile("dsb sy" : : : "memory");
    for (unsigned i = from; i < to; i++) {
        w64(portal(slot) + 8 * i, d->word[i]);
    }
}

static struct descriptor descriptor(unsigned op, uint64_t base)
{
    struct descriptor d = { .word = {
        [0] = (uint64_t)(op << 24 | CRAV_RCR) << 32, [1] = base + O_CR,
    } };

    if (op == MEMMOVE) {
        d.word[2] = base + O_SRC;
        d.word[3] = base + O_DST;
        d.word[4] = 256;
    }
    return d;
}

/* The queue's requests get that PASID, or none. */
static void tag(int ssid)
{
    uint32_t dw2 = 1 | 5 << 4;

    if (ssid != UNTAGGED) {
        dw2 |= (uint32_t)ssid << 8 | BIT(28);
    }
    CHECK_EQ(command(DISABLE_WQ, 1), 0);
    w32(BAR0 + WQCFG + 8, dw2);
    CHECK_EQ(command(ENABLE_WQ, 0), 0);
}

static void begin(volatile uint8_t *seen)
{
    w64(BAR0 + SWERR, 3);
    w64((uint64_t)(seen + O_CR), 0);
}

/* Drained is completed: then there is a record, or there never will be. */
static unsigned end(volatile uint8_t *seen)
{
    unsigned status;

    CHECK_EQ(command(DRAIN_ALL, 0), 0);
    status = seen[O_CR];
    if (!status) {
        CHECK_EQ(r64(BAR0 + SWERR) & 0xff01, SWERR_CR_FAULT << 8 | 1);
    }
    return status;
}

static unsigned run(const struct descriptor *d, int ssid,
                    volatile uint8_t *seen)
{
    tag(ssid);
    begin(seen);
    store(0, 0, 8, d);
    return end(seen);
}

unsigned dsa_copy(int ssid, uint64_t base, volatile uint8_t *seen)
{
    return dsa_copy_from(ssid, base + O_SRC, base, seen);
}

unsigned dsa_copy_from(int ssid, uint64_t source, uint64_t base,
                       volatile uint8_t *seen)
{
    struct descriptor d = descriptor(MEMMOVE, base);

    d.word[2] = source;
    return run(&d, ssid, seen);
}

unsigned dsa_copy_word(int ssid, uint64_t destination, uint64_t base,
                       volatile uint8_t *seen)
{
    struct descriptor d = descriptor(MEMMOVE, base);

    d.word[3] = destination;
    d.word[4] = 4;
    return run(&d, ssid, seen);
}

unsigned dsa_probe(int ssid, uint64_t base, volatile uint8_t *seen)
{
    struct descriptor d = descriptor(NOOP, base);

    return run(&d, ssid, seen);
}

void dsa_fire(int ssid, uint64_t base)
{
    struct descriptor d = descriptor(NOOP, base);

    tag(ssid);
    store(0, 0, 8, &d);
    CHECK_EQ(command(DRAIN_ALL, 0), 0);
}

void dsa_interrupt(uint64_t address, uint32_t data)
{
    w64(BAR0 + MSIX_TABLE, address);
    w32(BAR0 + MSIX_TABLE + 8, data);
    w32(BAR0 + MSIX_TABLE + 12, 0);
    *(volatile uint16_t *)(CONFIG + MSIX_CTRL) = 0x8000;
    w32(BAR0 + INTCAUSE, ~0u);
    w32(BAR0 + CMD, CMD_INT | DRAIN_ALL << 20);
    CHECK_TRUE(wait32(BAR0 + CMDSTS, BIT(31), 0));
    *(volatile uint16_t *)(CONFIG + MSIX_CTRL) = 0;
}

void dsa_interrupt_of_ims(uint64_t address, uint32_t data)
{
    struct descriptor d = { .word = { [0] = (RCI | NOOP << 24) << 32 } };

    w64(BAR0 + IMS, address);
    w64(BAR0 + IMS + 8, data);
    CHECK_EQ(command(REQUEST_HANDLE, OF_IMS), 0);
    d.word[4] = (uint64_t)(r32(BAR0 + CMDSTS) >> 8 & 0xffff) << 32;
    tag(UNTAGGED);
    asm volatile("dsb sy" : : : "memory");
    for (unsigned i = 0; i < 8; i++) {
        w64(BAR2 + 0x2000 + 8 * i, d.word[i]);
    }
    CHECK_EQ(command(DRAIN_ALL, 0), 0);
}

/* The SMMU lets everything without PASID pass. */
void test_portal(void)
{
    static struct context memory[2];
    struct descriptor d[2];

    ste_use(STE_V | STE_CONFIG(BYPASS), 0, 0, 0);
    for (unsigned i = 0; i < 2; i++) {
        context_init(&memory[i]);
        d[i] = descriptor(NOOP, (uint64_t)memory[i].data);
    }
    tag(UNTAGGED);

    /* Stores of 16 bytes are two of 8 */
    begin(memory[0].data);
    asm volatile("dsb sy" : : : "memory");
    for (unsigned i = 0; i < 8; i += 2) {
        asm volatile("stp %0, %1, [%2]" : : "r"(d[0].word[i]),
                     "r"(d[0].word[i + 1]), "r"(portal(1) + 8 * i) : "memory");
    }
    CHECK_EQ(end(memory[0].data), CR_SUCCESS);

    /* What another slot interrupts is dropped, and its rest is too */
    begin(memory[0].data);
    w64((uint64_t)memory[1].data, 0);
    store(2, 0, 4, &d[0]);
    store(3, 0, 8, &d[1]);
    store(2, 4, 8, &d[0]);
    CHECK_EQ(command(DRAIN_ALL, 0), 0);
    CHECK_EQ(memory[0].data[O_CR], 0);
    CHECK_EQ(memory[1].data[O_CR], CR_SUCCESS);

    /* A gap, another order, another size */
    store(4, 0, 3, &d[0]);
    store(4, 4, 8, &d[0]);
    store(5, 4, 8, &d[0]);
    store(5, 0, 4, &d[0]);
    store(6, 0, 7, &d[0]);
    w32(portal(6) + 56, 0);
    w32(portal(6) + 60, 0);
    CHECK_EQ(command(DRAIN_ALL, 0), 0);
    CHECK_EQ(memory[0].data[O_CR], 0);
    CHECK_EQ(r64(BAR0 + SWERR) & 1, 0);

    /* Starting again in the same slot is allowed */
    store(7, 0, 5, &d[0]);
    store(7, 0, 8, &d[0]);
    CHECK_EQ(end(memory[0].data), CR_SUCCESS);
}
