/*
 * Self-test of the DSA model: what its parts share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SELFTEST_H
#define SELFTEST_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HUGE (2UL << 20)
#define PAGE 4096UL
#define WQS 8
#define BIT(n) (1ULL << (n))

/* Registers of BAR0 */
enum {
    VERSION = 0x00, GENCAP = 0x10, WQCAP = 0x20, GRPCAP = 0x30, ENGCAP = 0x38,
    OPCAP = 0x40, OFFSETS = 0x60, GENCFG = 0x80, GENCTRL = 0x88, GENSTS = 0x90,
    INTCAUSE = 0x98, CMD = 0xa0, CMDSTS = 0xa8, CMDCAP = 0xb0, SWERR = 0xc0,
    MSIXPERM = 0x400, GRPCFG = 0x600, WQCFG = 0x800,
    MSIX_TABLE = 0x2000, MSIX_PBA = 0x3000, IMS = 0x8000,
};
#define GRP_WQS(g) (GRPCFG + 64 * (g))
#define GRP_ENGINES(g) (GRPCFG + 64 * (g) + 32)
#define GRP_FLAGS(g) (GRPCFG + 64 * (g) + 40)
#define WQ_DW(w, n) (WQCFG + 32 * (w) + 4 * (n))
#define IMS_DW(i, n) (IMS + 16 * (i) + 4 * (n))
/* Of handle commands: the index is one of Interrupt Message Storage. */
#define OF_IMS (1 << 16)

/* Commands */
enum {
    ENABLE = 1, DISABLE, DRAIN_ALL, ABORT_ALL, RESET, ENABLE_WQ, DISABLE_WQ,
    DRAIN_WQ, ABORT_WQ, RESET_WQ, DRAIN_PASID, ABORT_PASID, REQ_HANDLE,
    REL_HANDLE,
};

/* Operations and flags of a descriptor */
enum {
    NOOP = 0, BATCH = 1, DRAIN = 2, MEMMOVE = 3, FILL = 4, COMPARE = 5,
    COMPAT = 6, DUALCAST = 9, CRC = 0x10, COPYCRC = 0x11, CFLUSH = 0x20,
};
enum {
    FENCE = BIT(0), CRAV = BIT(2), RCR = BIT(3), RCI = BIT(4), CHECK = BIT(7),
    CC = BIT(8), SEED = BIT(16), BYPASS = BIT(17), NOREFLECT = BIT(18),
};
#define CR_FLAGS (CRAV | RCR)

struct desc {
    uint32_t pasid_priv;
    uint32_t op_flags;
    uint64_t cr, src, dst;
    uint32_t size;
    uint16_t handle, rsvd;
    uint8_t op[24];
} __attribute__((packed, aligned(64)));

struct cr {
    uint8_t status, result;
    uint16_t rsvd;
    uint32_t done;
    uint64_t fault;
    uint32_t info, info2;
    uint64_t rest;
} __attribute__((aligned(32)));

extern unsigned checks, failed;
extern volatile uint8_t *bar0, *bar2;
extern uint8_t *mem;            /* HUGE bytes of DMA memory ... */
extern uint64_t mem_pa;         /* ... that are contiguous here */
extern unsigned cur_wq;         /* where descriptors go */

#define CHECK_EQ(got, want) check_eq(__FILE__, __LINE__, #got, got, want)
#define CHECK_TRUE(c) check_eq(__FILE__, __LINE__, #c, !!(c), 1)
bool check_eq(const char *file, int line, const char *what, uint64_t got,
              uint64_t want);
/* Ends the program: the machine is not one the test can run on. */
void die(const char *what);

/* Registers */
static inline uint32_t r32(unsigned o) { return *(volatile uint32_t *)(bar0 + o); }
static inline uint64_t r64(unsigned o) { return *(volatile uint64_t *)(bar0 + o); }
static inline void w32(unsigned o, uint32_t v) { *(volatile uint32_t *)(bar0 + o) = v; }
static inline void w64(unsigned o, uint64_t v) { *(volatile uint64_t *)(bar0 + o) = v; }

/* Configuration space */
#define PCI_COMMAND 0x04
#define DEVCTL (0x40 + 8)
#define DEVCTL_FLR 0x8000
#define ATS_CTRL (0x220 + 6)
#define PASID_CTRL (0x230 + 6)
#define PRI_CTRL (0x240 + 4)
#define PRI_ALLOC (0x240 + 12)
#define MSIX_CTRL (0x80 + 2)
uint32_t cfg_read(unsigned o, unsigned len);
void cfg_write(unsigned o, uint32_t v, unsigned len);
unsigned devfn(void);
/* Base addresses and enables, which a function reset clears */
void save_bars(void);
void restore_bars(void);

uint64_t now_ms(void);
/* Waits for the bits of @mask in *@p to be set, or clear; the limit is a failure, no pace. */
bool wait_bit(volatile uint32_t *p, uint32_t mask, bool set);

/* Commands: the value of CMDSTS */
uint32_t cmd_start(unsigned code, uint32_t operand);
uint32_t cmd_wait(void);
uint32_t cmd(unsigned code, uint32_t operand);
void swerr_clear(void);

/* DMA memory: fixed places, by offset */
enum {
    O_CR = 0x0, O_LIST = 0x1000, O_MSI = 0x8000, O_SRC = 0x10000,
    O_DST = 0x40000, O_DST2 = 0x80000, O_VTD = 0x100000, O_OTHER = 0x140000,
};
#define PA(o) (mem_pa + (o))

/* The device's property latency-ns, where a test wants one */
#define LATENCY_MS 100

/* Submission */
void movdir64b(volatile void *dst, const void *src);
bool enqcmd(volatile void *dst, const void *src);
volatile void *portal(unsigned wq, unsigned page);
volatile struct cr *cr_at(unsigned n);
struct desc mk(unsigned op, uint32_t flags, uint64_t src, uint64_t dst,
               uint32_t size);
/* Submits to cur_wq and returns the status in the first completion record. */
uint8_t submit_wait(struct desc *d);
uint8_t run(unsigned op, uint32_t flags, uint64_t src, uint64_t dst,
            uint32_t size);
/* For descriptors that leave no completion record: what SWERR says. */
uint64_t run_swerr(struct desc *d);
void pattern(uint8_t *p, unsigned len, unsigned seed);

/* A device that is reset; a queue in group 0; queue 0 dedicated and enabled */
void fresh(void);
void setup_wq(unsigned wq, unsigned size, uint32_t dw2);
void start_dwq(void);

/* MSI-X entry n writes 0x100 + n to word n of O_MSI. */
volatile uint32_t *msi_word(unsigned n);
void msix_setup(void);

void map_device(void);
void map_memory(void);

/*
 * VT-d: the spaces of PASIDs. In those of 5 and 6 I/O virtual addresses from
 * IOVA on are the DMA memory's, PASID 6 may only read; in that of 7 they are
 * O_OTHER's. PASID 9 has none.
 */
#define IOVA 0x10000000UL
uint64_t iova(unsigned o);
void vtd_start(void);
void vtd_clear_faults(void);
/* Interrupt requests 0 to 15 of the device, which are posted, nobody told */
void vtd_post_start(void);
void vtd_post_stop(void);
/* From now on it is @requester that may make request @n. */
void vtd_post(unsigned n, unsigned requester);
/* The requests since the last call, bit n for request n */
uint32_t vtd_posted(void);
/* The address of the message that makes request @n, and another with its data added to it */
#define MESSAGE(n) (0xfee00010ULL | (n) << 5)
#define MESSAGE_PLUS(n) (MESSAGE(n) | BIT(3))

/* The tests */
void test_registers(void);
void test_ims_registers(void);
void test_commands(void);
void test_operations(void);
void test_bad_descriptors(void);
void test_posted_writes(void);
void test_batch(void);
void test_interrupts(void);
void test_latency(void);
void test_hang(void);
void test_no_ims(void);
void test_pasid(void);
void test_ims(void);
void test_shared(void);
void test_shared_latency(void);
void test_fuzz(void);

#endif
