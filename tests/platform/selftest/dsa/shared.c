/*
 * Self-test of the DSA model: shared work queues. What distinguishes their
 * clients is the PASID of each descriptor.
 *
 * User space has ENQCMD, whose PASID is that of IA32_PASID; what only
 * ENQCMDS can do is with the self-test of the PC.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include "selftest.h"

#define IA32_PASID 0xd93
#define VALID BIT(31)
/* The queue, shared, and a dedicated one */
enum { SHARED = 2, DEDICATED = 0, ABSENT = 6 };
#define SHARED_DW2 BIT(28)
/* Clients, and where the space of each begins in memory */
enum { CLIENT = 5, OTHER = 7, NOBODY = 9 };
enum { SMALL = 4, ENGINES = 2 };

static int msr;

/* Whether there is ENQCMD: then IA32_PASID has to be there, too. */
static bool open_msr(void)
{
    unsigned a, b, c = 0, d;
    cpu_set_t cpu0;

    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    if (!(c >> 29 & 1)) {
        printf("dsa-selftest: no ENQCMD, shared queues not tried\n");
        return false;
    }
    msr = open("/dev/cpu/0/msr", O_RDWR);
    if (msr < 0) {
        die("/dev/cpu/0/msr");
    }
    CPU_ZERO(&cpu0);
    CPU_SET(0, &cpu0);
    sched_setaffinity(0, sizeof(cpu0), &cpu0);
    return true;
}

static void set_pasid(uint64_t value)
{
    CHECK_EQ(pwrite(msr, &value, 8, IA32_PASID), 8);
}

static unsigned space_of(unsigned pasid)
{
    return pasid == OTHER ? O_OTHER : 0;
}

static uint8_t *in_space(unsigned pasid, unsigned o)
{
    return mem + space_of(pasid) + o;
}

/* Completion record @n of a client, each in its own space at the same address */
static volatile struct cr *record(unsigned pasid, unsigned n)
{
    return (volatile struct cr *)in_space(pasid, O_CR) + n;
}

static struct desc noop(unsigned n)
{
    struct desc d = mk(NOOP, CR_FLAGS, 0, 0, 0);

    d.cr = iova(O_CR) + 32 * n;
    return d;
}

/* Submits as that client; whether it was accepted. */
static bool submit(unsigned pasid, unsigned page, struct desc *d)
{
    set_pasid(VALID | pasid);
    return enqcmd(portal(SHARED, page), d);
}

/* The same for an empty operation that writes record @n. */
static bool submit_noop(unsigned pasid, unsigned page, unsigned n)
{
    struct desc d = noop(n);

    *(volatile uint32_t *)record(pasid, n) = 0;
    return submit(pasid, page, &d);
}

static bool ends(unsigned pasid, unsigned n)
{
    return wait_bit((volatile uint32_t *)record(pasid, n), 0xff, true);
}

static unsigned occupancy(void)
{
    return r32(WQ_DW(SHARED, 6)) & 0xffff;
}

static void wait_for_occupancy(unsigned count)
{
    uint64_t end = now_ms() + 5000;

    while (occupancy() != count && now_ms() < end) {
    }
    CHECK_EQ(occupancy(), count);
}

static void start(unsigned size)
{
    vtd_start();
    vtd_post_start();
    fresh();
    cfg_write(PASID_CTRL, 1, 2);
    w32(GENCFG, 96 | BIT(12));
    setup_wq(SHARED, size, SHARED_DW2 | 1 << 8);        /* its PASID is ignored */
    setup_wq(DEDICATED, 4, 1 | CLIENT << 8 | BIT(28));
    CHECK_EQ(cmd(ENABLE, 0), 0);
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0);
    CHECK_EQ(cmd(ENABLE_WQ, DEDICATED), 0);
    memset(in_space(CLIENT, O_CR), 0, PAGE);
    memset(in_space(OTHER, O_CR), 0, PAGE);
}

/* Each client's descriptors reach its own space, at the same addresses. */
static void test_spaces(void)
{
    static const unsigned clients[] = { CLIENT, OTHER };
    const unsigned count = 8, size = 3000;
    struct desc d;

    for (unsigned c = 0; c < 2; c++) {
        pattern(in_space(clients[c], O_SRC), count * size, 10 + c);
        memset(in_space(clients[c], O_DST), 0, count * size);
    }
    for (unsigned i = 0; i < count; i++) {
        for (unsigned c = 0; c < 2; c++) {
            d = mk(MEMMOVE, CR_FLAGS, iova(O_SRC) + i * size,
                   iova(O_DST) + i * size, size);
            d.cr = iova(O_CR) + 32 * i;
            /* both are the instruction's to say */
            d.pasid_priv = BIT(31) | (clients[!c] ^ 1);
            CHECK_TRUE(submit(clients[c], 0, &d));
        }
    }
    for (unsigned c = 0; c < 2; c++) {
        for (unsigned i = 0; i < count; i++) {
            CHECK_TRUE(ends(clients[c], i));
            CHECK_EQ(record(clients[c], i)->status, 1);
        }
        CHECK_TRUE(!memcmp(in_space(clients[c], O_SRC),
                           in_space(clients[c], O_DST), count * size));
    }
    /* one that has no space */
    swerr_clear();
    d = noop(0);
    CHECK_TRUE(submit(NOBODY, 1, &d));
    CHECK_TRUE(wait_bit((volatile uint32_t *)(bar0 + SWERR), 1, true));
    CHECK_EQ(r64(SWERR) >> 8 & 0xffff, SHARED << 8 | 0x1a);
    CHECK_EQ(r64(SWERR) >> 40 & 0xfffff, NOBODY);
    vtd_clear_faults();
    swerr_clear();
}

/* Each has an entry of Interrupt Message Storage, and no other. */
static void test_interrupts_of_clients(void)
{
    static const unsigned clients[] = { CLIENT, OTHER };
    unsigned handles[2];

    for (unsigned c = 0; c < 2; c++) {
        handles[c] = cmd(REQ_HANDLE, OF_IMS | (20 + c)) >> 8;
        w64(IMS_DW(20 + c, 0), MESSAGE(2 + c));
        w64(IMS_DW(20 + c, 2), (uint64_t)(BIT(3) | clients[c] << 12) << 32);
    }
    for (unsigned c = 0; c < 2; c++) {
        for (unsigned of = 0; of < 2; of++) {
            struct desc d = noop(0);

            *(volatile uint32_t *)record(clients[c], 0) = 0;
            d.op_flags |= RCI;
            d.handle = handles[of];
            CHECK_TRUE(submit(clients[c], 3, &d));
            CHECK_TRUE(ends(clients[c], 0));
            CHECK_EQ(record(clients[c], 0)->status, c == of ? 1 : 0x19);
            CHECK_EQ(vtd_posted(), c == of ? BIT(2 + c) : 0);
        }
    }
    swerr_clear();
}

static void test_refusals(void)
{
    struct desc d = noop(0);

    set_pasid(VALID | CLIENT);
    CHECK_TRUE(!enqcmd(portal(DEDICATED, 1), &d));
    CHECK_TRUE(!enqcmd(portal(ABSENT, 1), &d));
    CHECK_TRUE(!enqcmd(mem + O_DST, &d));               /* memory takes none */
    /* the threshold is for the limited portals */
    w32(WQ_DW(SHARED, 1), 0);
    for (unsigned page = 0; page < 4; page++) {
        CHECK_EQ(submit_noop(CLIENT, page, page), !(page & 1));
    }
    w32(WQ_DW(SHARED, 1), 2);
    CHECK_EQ(cmd(DRAIN_PASID, CLIENT), 0);
    for (unsigned page = 0; page < 4; page++) {
        CHECK_EQ(record(CLIENT, page)->status, !(page & 1));
    }
    /* a posted write is ignored, and is no error */
    *(volatile uint32_t *)record(CLIENT, 0) = 0;
    d.pasid_priv = CLIENT;
    for (unsigned page = 0; page < 4; page++) {
        movdir64b(portal(SHARED, page), &d);
    }
    CHECK_EQ(cmd(DRAIN_WQ, BIT(SHARED)), 0);
    CHECK_EQ(record(CLIENT, 0)->status, 0);
    CHECK_EQ(r64(SWERR) & 1, 0);

    /* Disable WQ and Reset WQ */
    CHECK_EQ(cmd(DISABLE_WQ, BIT(SHARED)), 0);
    CHECK_TRUE(!submit_noop(CLIENT, 0, 0));
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0);
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(ends(CLIENT, 0));
    CHECK_EQ(cmd(RESET_WQ, BIT(SHARED)), 0);
    CHECK_TRUE(!submit_noop(CLIENT, 0, 0));
    CHECK_EQ(r32(WQ_DW(SHARED, 0)), 16);
    CHECK_EQ(r32(WQ_DW(SHARED, 1)) | r32(WQ_DW(SHARED, 2)) | r32(WQ_DW(SHARED, 3)), 0);
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0x23);
    /* it cannot be without PASIDs */
    w32(WQ_DW(SHARED, 2), 5 << 4);
    w32(WQ_DW(SHARED, 3), 21 | 5 << 5);
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0x26);
    w32(WQ_DW(SHARED, 2), SHARED_DW2 | 5 << 4);
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0);
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(ends(CLIENT, 0));
    CHECK_EQ(cmd(DISABLE, 0), 0);
    CHECK_TRUE(!submit_noop(CLIENT, 0, 0));
}

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
    siglongjmp(after_fault, signal);
}

/* The signal that an attempt meets, or 0: what the processor refuses */
static int fault_of(void (*attempt)(const struct desc *d))
{
    struct sigaction old, catch = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
    struct desc d = noop(0);
    volatile int found;

    sigaction(SIGSEGV, &catch, &old);
    found = sigsetjmp(after_fault, 1);
    if (!found) {
        attempt(&d);
    }
    sigaction(SIGSEGV, &old, NULL);
    return found;
}

static void attempt_enqcmd(const struct desc *d)
{
    enqcmd(portal(SHARED, 0), d);
}

static void attempt_unaligned(const struct desc *d)
{
    enqcmd(portal(SHARED, 0) + 32, d);
}

static void attempt_enqcmds(const struct desc *d)
{
    asm volatile(".byte 0xf3, 0x0f, 0x38, 0xf8, 0x02"
                 : : "a"(portal(SHARED, 0)), "d"(d) : "memory", "cc");
}

static void test_faults(void)
{
    const uint64_t reserved = VALID | BIT(20), valid = VALID | CLIENT;

    set_pasid(VALID | CLIENT);
    CHECK_EQ(fault_of(attempt_enqcmd), 0);
    CHECK_EQ(fault_of(attempt_unaligned), SIGSEGV);
    CHECK_EQ(fault_of(attempt_enqcmds), SIGSEGV);
    set_pasid(CLIENT);
    CHECK_EQ(fault_of(attempt_enqcmd), SIGSEGV);
    CHECK_TRUE(pwrite(msr, &reserved, 8, IA32_PASID) < 0);
    CHECK_EQ(pwrite(msr, &valid, 8, IA32_PASID), 8);
    CHECK_EQ(fault_of(attempt_enqcmd), 0);
}

void test_shared(void)
{
    if (!open_msr()) {
        return;
    }
    start(16);
    test_spaces();
    test_interrupts_of_clients();
    test_faults();
    test_refusals();

    /* a device in Halt takes nothing */
    start(16);
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(ends(CLIENT, 0));
    cfg_write(PASID_CTRL, 0, 2);
    CHECK_EQ(r32(GENSTS) & 3, 3);
    CHECK_TRUE(!submit_noop(CLIENT, 0, 0));
    CHECK_EQ(cmd(RESET, 0), 0);
    swerr_clear();
    vtd_post_stop();
}

/* As many as the queue has places for, and the engines */
static void test_capacity(void)
{
    unsigned n = 0;

    for (; n < ENGINES; n++) {
        CHECK_TRUE(submit_noop(CLIENT, 1, n));
    }
    wait_for_occupancy(0);
    /* half of them by the limited portal, whoever comes */
    CHECK_TRUE(submit_noop(CLIENT, 1, n++));
    CHECK_TRUE(submit_noop(OTHER, 3, n++));
    CHECK_TRUE(!submit_noop(CLIENT, 1, n));
    CHECK_TRUE(!submit_noop(OTHER, 3, n));
    CHECK_TRUE(submit_noop(OTHER, 0, n++));
    CHECK_TRUE(submit_noop(CLIENT, 2, n++));
    for (unsigned page = 0; page < 4; page++) {
        CHECK_TRUE(!submit_noop(OTHER, page, n));
    }
    CHECK_EQ(occupancy(), SMALL);
    CHECK_EQ(n, SMALL + ENGINES);
    CHECK_EQ(cmd(DRAIN_WQ, BIT(SHARED)), 0);
    for (unsigned i = 0; i < n; i++) {
        bool others = i == 3 || i == 4;

        CHECK_EQ(record(others ? OTHER : CLIENT, i)->status, 1);
    }
    /* what was refused never came */
    CHECK_EQ(record(OTHER, n)->status, 0);
    CHECK_EQ(r64(SWERR) & 1, 0);
}

/* One of each client in the engines, then by turns until the queue is full. */
static void fill_by_turns(void)
{
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(submit_noop(OTHER, 0, 0));
    wait_for_occupancy(0);
    for (unsigned n = 1; n <= SMALL / 2; n++) {
        CHECK_TRUE(submit_noop(CLIENT, 0, n));
        CHECK_TRUE(submit_noop(OTHER, 0, n));
    }
}

static void test_drain_pasid(void)
{
    /* none of its own: it waits for nobody */
    fill_by_turns();
    CHECK_EQ(cmd(DRAIN_PASID, NOBODY), 0);
    CHECK_EQ(record(CLIENT, 0)->status | record(OTHER, 0)->status, 0);
    CHECK_EQ(cmd(DRAIN_WQ, BIT(SHARED)), 0);

    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(submit_noop(OTHER, 0, 0));
    wait_for_occupancy(0);
    for (unsigned n = 1; n <= SMALL; n++) {
        CHECK_TRUE(submit_noop(OTHER, 0, n));
    }
    CHECK_EQ(cmd(DRAIN_PASID, CLIENT), 0);
    CHECK_EQ(record(CLIENT, 0)->status, 1);
    CHECK_EQ(record(OTHER, SMALL)->status, 0);
    CHECK_EQ(cmd(DRAIN_PASID, OTHER), 0);
    CHECK_EQ(record(OTHER, SMALL)->status, 1);
}

static void test_abort_pasid(void)
{
    fill_by_turns();
    CHECK_EQ(cmd(ABORT_PASID, CLIENT), 0);
    CHECK_EQ(cmd(DRAIN_PASID, OTHER), 0);
    for (unsigned n = 0; n <= SMALL / 2; n++) {
        CHECK_EQ(record(CLIENT, n)->status, 0);
        CHECK_EQ(record(OTHER, n)->status, 1);
    }
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(ends(CLIENT, 0));
    CHECK_EQ(record(CLIENT, 1)->status | record(CLIENT, 2)->status, 0);
}

/* The descriptor Drain waits for those of its PASID. */
static void test_drain(void)
{
    struct desc d = mk(DRAIN, CR_FLAGS, 0, 0, 0);

    d.cr = iova(O_CR) + 32;
    *(volatile uint32_t *)record(OTHER, 1) = 0;
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(submit(OTHER, 0, &d));
    wait_for_occupancy(0);
    CHECK_EQ(record(CLIENT, 0)->status, 0);
    CHECK_EQ(cmd(DRAIN_WQ, BIT(SHARED)), 0);
    CHECK_EQ(record(OTHER, 1)->status, 1);

    *(volatile uint32_t *)record(CLIENT, 1) = 0;
    CHECK_TRUE(submit_noop(CLIENT, 0, 0));
    CHECK_TRUE(submit(CLIENT, 0, &d));
    wait_for_occupancy(0);
    CHECK_EQ(record(CLIENT, 0)->status, 1);
    CHECK_TRUE(ends(CLIENT, 1));
    CHECK_EQ(record(CLIENT, 1)->status, 1);
}

static void test_disable_and_reset(void)
{
    fill_by_turns();
    CHECK_EQ(cmd_start(DISABLE_WQ, BIT(SHARED)) >> 31, 1);
    CHECK_TRUE(!submit_noop(NOBODY, 0, SMALL));
    CHECK_EQ(cmd_wait(), 0);
    for (unsigned n = 0; n <= SMALL / 2; n++) {
        CHECK_EQ(record(CLIENT, n)->status, 1);
        CHECK_EQ(record(OTHER, n)->status, 1);
    }
    CHECK_EQ(r32(WQ_DW(SHARED, 6)) >> 30, 0);
    CHECK_EQ(cmd(ENABLE_WQ, SHARED), 0);

    fill_by_turns();
    CHECK_EQ(cmd(RESET_WQ, BIT(SHARED)), 0);
    CHECK_EQ(r32(WQ_DW(SHARED, 6)), 0);
    usleep(2 * LATENCY_MS * 1000);
    for (unsigned n = 0; n <= SMALL / 2; n++) {
        CHECK_EQ(record(CLIENT, n)->status | record(OTHER, n)->status, 0);
    }
}

/* Needs latency-ns of LATENCY_MS. */
void test_shared_latency(void)
{
    if (!open_msr()) {
        return;
    }
    start(SMALL);
    test_capacity();
    test_drain_pasid();
    test_abort_pasid();
    test_drain();
    test_disable_and_reset();
    vtd_post_stop();
}
