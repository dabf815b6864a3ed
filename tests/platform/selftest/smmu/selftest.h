/*
 * Self-test of the SMMUv3 model: what its parts share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SELFTEST_H
#define SELFTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n) (1ULL << (n))
#define ALIGNED(n) __attribute__((aligned(n)))

/* Reports (report.c) */
#define CHECK_EQ(got, want) check_eq(__FILE__, __LINE__, #got, got, want)
#define CHECK_TRUE(c) check_eq(__FILE__, __LINE__, #c, !!(c), 1)
bool check_eq(const char *file, int line, const char *what, uint64_t got,
              uint64_t want);
void print(const char *text);
/* Prints the number of checks, and of those that failed. */
void summary(void);
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);

/* Registers */
static inline uint32_t r32(uint64_t a) { return *(volatile uint32_t *)a; }
static inline uint64_t r64(uint64_t a) { return *(volatile uint64_t *)a; }
static inline void w32(uint64_t a, uint32_t v) { *(volatile uint32_t *)a = v; }
static inline void w64(uint64_t a, uint64_t v) { *(volatile uint64_t *)a = v; }
/* Waits for (*a & mask) == want; the limit of some seconds is a failure. */
bool wait32(uint64_t a, uint32_t mask, uint32_t want);

/* The accelerator (dsa.c) */
enum { UNTAGGED = -1 };
enum { CR_SUCCESS = 1, CR_FAULT = 3 };
/* Offsets in a context's memory: completion record, source, destination */
enum { O_CR = 0, O_SRC = 0x1000, O_DST = 0x2000, O_MSI = 0x3000 };
#define DSA_SID 0x20            /* 00:04.0 */
void dsa_start(void);
/*
 * Makes the device copy 256 bytes at address @base: from O_SRC to O_DST, with
 * its completion record at O_CR, where the CPU reads it at @seen. Requests
 * carry the PASID @ssid, or none. Returns the status, or 0 when even the
 * record could not be written.
 */
unsigned dsa_copy(int ssid, uint64_t base, volatile uint8_t *seen);
/* The same with the source at that address. */
unsigned dsa_copy_from(int ssid, uint64_t source, uint64_t base,
                       volatile uint8_t *seen);
/* Four bytes from O_SRC to that address. */
unsigned dsa_copy_word(int ssid, uint64_t destination, uint64_t base,
                       volatile uint8_t *seen);
/* Only writes a completion record. */
unsigned dsa_probe(int ssid, uint64_t base, volatile uint8_t *seen);
/* The same, whatever becomes of it. */
void dsa_fire(int ssid, uint64_t base);
/* Sends the interrupt of a command as a write of @data to @address. */
void dsa_interrupt(uint64_t address, uint32_t data);
/* The same for the interrupt of a descriptor, by Interrupt Message Storage. */
void dsa_interrupt_of_ims(uint64_t address, uint32_t data);
/* Submissions that the interconnect must merge, or must not. */
void test_portal(void);

/* The SMMU (smmu.c) */
#define SMMU 0x09050000ULL
enum { IDR0 = 0x0, IDR1 = 0x4 };
enum {
    C_BAD_STREAMID = 0x02, C_BAD_STE = 0x04, F_STREAM_DISABLED = 0x06,
    C_BAD_SUBSTREAMID = 0x08, F_CD_FETCH = 0x09, C_BAD_CD = 0x0a,
    F_TRANSLATION = 0x10, F_PERMISSION = 0x13,
};
enum {
    CFGI_STE = 0x03, CFGI_STE_RANGE = 0x04, CFGI_CD = 0x05, CFGI_CD_ALL = 0x06,
    TLBI_NH_ASID = 0x11, TLBI_NH_VA = 0x12, TLBI_EL3_ALL = 0x18,
    TLBI_EL2_ALL = 0x20, TLBI_NSNH_ALL = 0x30, ATC_INV = 0x40, PRI_RESP = 0x41,
    RESUME = 0x44, STALL_TERM = 0x45, SYNC = 0x46,
};
enum { CERROR_ILL = 1 };
struct event { uint32_t word[8]; };
void smmu_start(void);
/* One command; returns the error code and takes the command out then. */
unsigned smmu_command(uint64_t lo, uint64_t hi);
/* The oldest event that has not been seen; false when there is none. */
bool smmu_event(struct event *e);
/* Whether records were lost since the last call. */
bool smmu_overflowed(void);
#define EVENTS 128              /* that the queue holds */
/* How many streams there are, and whether others are reported */
void smmu_streams(unsigned log2, bool report_others);
/* The STE of the accelerator, without invalidating anything */
void ste_write(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3);
/* ... and with invalidating all that there is */
void ste_use(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3);
static inline void cfgi_cd(uint32_t ssid, bool leaf)
{
    smmu_command(CFGI_CD | (uint64_t)ssid << 12 | (uint64_t)DSA_SID << 32, leaf);
}

/* STE fields */
#define STE_V BIT(0)
#define STE_CONFIG(c) ((uint64_t)(c) << 1)
enum { ABORT = 0, BYPASS = 4, STAGE1 = 5, STAGE2 = 6, NESTED = 7 };
enum { LINEAR = 0, LEAF_4K = 1, LEAF_64K = 2 };
#define STE_S1(table, fmt, cdmax) \
    ((uint64_t)(table) | (uint64_t)(fmt) << 4 | (uint64_t)(cdmax) << 59)

/* Contexts (contexts.c): memory with stage-1 tables that map it at IOVA */
#define IOVA 0x80000000ULL
#define PAGES 4
struct context {
    uint8_t data[PAGES * 4096];
    uint64_t l1[512], l2[512], l3[512];
} ALIGNED(4096);
typedef uint64_t cd_t[8];
#define CD_V BIT(31)
#define CD_IPS_SHIFT 32
void context_init(struct context *c);
/* Maps the page of its memory at @offset to the page at @address instead. */
void context_map(struct context *c, unsigned offset, uint64_t address);
void cd_write(volatile uint64_t *cd, const struct context *c, uint16_t asid);
/* Stage 2: 4 GiB identical, and FAR_IPA to the start of RAM */
#define RAM 0x40000000ULL
#define FAR_IPA 0x100000000ULL
extern uint64_t stage2[512];
#define STE_S2_W2 (25ULL << 32 | 1ULL << 38 | 4ULL << 48 | BIT(51) | BIT(58))
/* What the mapping at FAR_IPA allows: S2AP */
enum { S2_READ = 1, S2_WRITE = 2 };
void stage2_init(void);
void stage2_far(uint64_t s2ap);

/* Requests and what became of them (requests.c) */
extern struct context a, b, c;
extern cd_t linear[8];
/* Fresh contexts; of @linear, 0 is of c, 5 of a, 6 of b, the others invalid */
void contexts(void);
/* Stage 1 with the first 2^cdmax CDs of @linear; nothing is cached */
void use_linear(unsigned cdmax, unsigned s1dss);
/* A copy with that PASID stays within the memory of @in. */
void reaches(int ssid, struct context *in);
/* A request with that PASID is refused with exactly one event. */
void refused(int ssid, unsigned type);
/* There was no event, or one: of that type, telling what it can of @ssid. */
void no_event(void);
void one_event(unsigned type, int ssid);
/* Where the context's memory is behind FAR_IPA */
uint64_t far(const struct context *in);

/* The tests */
void test_sre(void);
void test_walks(void);
void test_linear(void);
void test_two_level(void);
void test_default_substream(void);
void test_other_configurations(void);
void test_nested(void);
void test_stale_cd(void);
void test_stale_tables(void);
void test_stale_ste(void);
void test_stale_translation(void);
void test_events(void);
void test_permissions(void);
void test_overflow(void);
void test_bad_stream(void);
void test_commands(void);
void test_interrupt(void);
void test_its(void);
void test_fuzz(void);

#endif
