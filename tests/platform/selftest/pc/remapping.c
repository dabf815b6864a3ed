/*
 * Self-test of the PC: interrupt remapping by VT-d. Messages of the
 * accelerator and of the I/O APIC go to this processor's APIC, or are posted.
 *
 * Source: Intel Virtualization Technology for Directed I/O, 5.1, 5.2, 6.5.2,
 * 7.3.1, 9.9 to 9.11.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define VTD 0xfed90000ULL
enum { CAP = 0x08, ECAP = 0x10, GCMD = 0x18, GSTS = 0x1c, FSTS = 0x34,
       IQT = 0x88, IQA = 0x90, IRTA = 0xb8 };
#define CAP_FRO(v) ((v) >> 24 & 0x3ff)
#define CAP_NFR(v) ((v) >> 40 & 0xff)
#define CAP_PI BIT(59)
#define ECAP_EIM BIT(4)
#define IRTA_EIME BIT(11)
#define SIRTP BIT(24)
#define IRE BIT(25)
#define QIE BIT(26)
#define FSTS_PFO BIT(0)
enum { IEC = 4, WAIT = 5 };
#define IEC_INDEX(index, mask) \
    (BIT(4) | (uint64_t)(mask) << 27 | (uint64_t)(index) << 32)
#define WAIT_STATUS BIT(5)
enum { INDEX_OVER = 0x21, NOT_PRESENT = 0x22, IRTE_RESERVED = 0x24,
       WRONG_SOURCE = 0x26, PID_ACCESS = 0x27, PID_RESERVED = 0x28 };

#define PRESENT BIT(0)
#define NO_FAULT BIT(1)
#define URG BIT(14)
#define POSTED BIT(15)
#define SVT BIT(18)

#define ON BIT(0)
#define SN BIT(1)
enum { CONTROL = 4, PID_WORDS = 8 };
#define OTHERS 0x8100000000000081ULL    /* what is requested already */

#define NOT_RAM 0xfed00000ULL           /* registers of the HPET */
#define INDEX_BITS 8
#define LIMIT 100000000                 /* passes of a loop that waits */

static uint64_t table[1 << INDEX_BITS][2] PAGE_ALIGNED;
static uint64_t queue[256][2] PAGE_ALIGNED;
static volatile uint64_t pid[PID_WORDS] __attribute__((aligned(64)));
static bool eime;

static void wait32(uint64_t address, uint32_t mask, uint32_t want)
{
    unsigned left = LIMIT;

    while ((r32(address) & mask) != want && --left) {
    }
    CHECK_EQ("the hardware answers", left > 0, true);
}

static void invalidate(uint64_t what)
{
    static volatile uint32_t done;
    static uint32_t sequence;
    unsigned tail = r64(VTD + IQT) / sizeof(queue[0]);

    queue[tail][0] = IEC | what;
    queue[tail][1] = 0;
    tail = (tail + 1) % (sizeof(queue) / sizeof(queue[0]));
    queue[tail][0] = WAIT | WAIT_STATUS | (uint64_t)++sequence << 32;
    queue[tail][1] = (uint64_t)&done;
    tail = (tail + 1) % (sizeof(queue) / sizeof(queue[0]));
    asm volatile("" : : : "memory");
    w64(VTD + IQT, tail * sizeof(queue[0]));
    wait32((uint64_t)&done, ~0u, sequence);
}

static void start(void)
{
    w64(VTD + IRTA, (uint64_t)table | (eime ? IRTA_EIME : 0) | (INDEX_BITS - 1));
    w32(VTD + GCMD, r32(VTD + GSTS) | SIRTP);
    wait32(VTD + GSTS, SIRTP, SIRTP);
    if (!(r32(VTD + GSTS) & QIE)) {
        w64(VTD + IQT, 0);
        w64(VTD + IQA, (uint64_t)queue);
        w32(VTD + GCMD, r32(VTD + GSTS) | QIE);
        wait32(VTD + GSTS, QIE, QIE);
    }
    invalidate(0);
    w32(VTD + GCMD, r32(VTD + GSTS) | IRE);
    wait32(VTD + GSTS, IRE, IRE);
}

/* The reason of the one fault since the last call, or 0. */
static unsigned fault(void)
{
    uint64_t cap = r64(VTD + CAP);
    unsigned found = 0, count = 0;

    for (unsigned i = 0; i <= CAP_NFR(cap); i++) {
        uint64_t record = VTD + 16 * (CAP_FRO(cap) + i);

        if (r64(record + 8) & BIT(63)) {
            found = r64(record + 8) >> 32 & 0xff;
            count++;
            w32(record + 12, BIT(31));
        }
    }
    w32(VTD + FSTS, FSTS_PFO);
    return count > 1 ? 0x100 * count : found;
}

/* The accelerator: config space by ports, BAR 0 in the hole below 4 GiB */
#define DSA_SID 0x20
#define BAR0 0xc0000000ULL
enum { PCI_COMMAND = 0x04, PCI_BAR0 = 0x10, MSIX = 0x80 };
enum { DSA_CMD = 0xa0, DSA_CMDSTS = 0xa8, DSA_MSIX_TABLE = 0x2000 };
#define DSA_INTERRUPT BIT(31)
#define DSA_DRAIN_ALL (3 << 20)
#define MESSAGE(index) (0xfee00010 | (index) << 5)

static void config(unsigned offset, uint32_t value)
{
    outl(0xcf8, BIT(31) | DSA_SID << 8 | offset);
    outl(0xcfc, value);
}

static void dsa_start(void)
{
    outl(0xcf8, BIT(31) | DSA_SID << 8);
    CHECK_EQ("the accelerator's vendor", inl(0xcfc) & 0xffff, 0x8086);
    config(PCI_BAR0, BAR0);
    config(PCI_BAR0 + 4, 0);
    config(PCI_COMMAND, 6);
    config(MSIX, BIT(31));
    w32(BAR0 + DSA_MSIX_TABLE + 12, 0);
}

/* Its interrupt at the end of a command; when that is told, it is sent. */
static void send(unsigned index)
{
    w64(BAR0 + DSA_MSIX_TABLE, MESSAGE(index));
    w32(BAR0 + DSA_MSIX_TABLE + 8, 0);
    w32(BAR0 + DSA_CMD, DSA_INTERRUPT | DSA_DRAIN_ALL);
    wait32(BAR0 + DSA_CMDSTS, BIT(31), 0);
}

/* This processor's APIC: it takes no interrupt, so each vector serves once. */
static unsigned vector = 0x30;

static void apic_start(void)
{
    enum { APIC_BASE = 0x1b, SVR = 0x80f };

    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | BIT(10) | BIT(11));
    wrmsr(SVR, 0x1ff);
}

static bool came(unsigned vector)
{
    enum { IRR = 0x820 };

    return rdmsr(IRR + vector / 32) >> vector % 32 & 1;
}

static uint64_t apic_id(void)
{
    enum { ID = 0x802 };

    return rdmsr(ID);
}

/* Entries */
static void remapped(unsigned index, unsigned vector)
{
    table[index][1] = SVT | DSA_SID;
    table[index][0] = apic_id() << (eime ? 32 : 40) | vector << 16 | PRESENT;
}

static void posted_at(unsigned index, unsigned vector, uint64_t address)
{
    table[index][1] = (address & ~0xffffffffULL) | SVT | DSA_SID;
    table[index][0] = (address & 0xffffffc0) << 32 | vector << 16 | POSTED |
                      PRESENT;
    invalidate(IEC_INDEX(index, 0));
}

static void posted(unsigned index, unsigned vector)
{
    posted_at(index, vector, (uint64_t)pid);
}

/* An empty descriptor that notifies by the next vector */
static void pid_prepare(uint64_t flags)
{
    for (unsigned i = 0; i < PID_WORDS; i++) {
        pid[i] = 0;
    }
    vector++;
    pid[CONTROL] = apic_id() << (eime ? 32 : 40) | vector << 16 | flags;
}

static void test_cache(void)
{
    unsigned old = ++vector, next = ++vector, last = ++vector;

    remapped(5, old);
    invalidate(IEC_INDEX(5, 0));
    send(5);
    CHECK_EQ("a remapped interrupt", came(old), true);

    /* The entry stays as it was until an invalidation names it. */
    remapped(5, next);
    send(5);
    invalidate(IEC_INDEX(4, 0));
    invalidate(IEC_INDEX(8, 3));
    w64(VTD + IRTA, r64(VTD + IRTA));
    w32(VTD + GCMD, r32(VTD + GSTS) | SIRTP);
    send(5);
    CHECK_EQ("a stale entry", came(next), false);
    invalidate(IEC_INDEX(5, 0));
    send(5);
    CHECK_EQ("an entry that was forgotten", came(next), true);
    remapped(5, last);
    invalidate(IEC_INDEX(7, 2));
    send(5);
    CHECK_EQ("forgotten among four", came(last), true);
    last = ++vector;
    remapped(5, last);
    invalidate(0);
    send(5);
    CHECK_EQ("forgotten with all", came(last), true);

    /* What is not present is not remembered. */
    table[6][0] = 0;
    send(6);
    CHECK_EQ("an absent entry", fault(), NOT_PRESENT);
    remapped(6, ++vector);
    send(6);
    CHECK_EQ("an entry without invalidation", came(vector), true);
    table[6][0] = 0;
    send(6);
    CHECK_EQ("a stale absence", fault(), 0);
    invalidate(IEC_INDEX(6, 0));
    send(6);
    CHECK_EQ("an absence that is known", fault(), NOT_PRESENT);
    send(1 << INDEX_BITS);
    CHECK_EQ("an index beyond the table", fault(), INDEX_OVER);
}

static void test_posting(void)
{
    static const uint8_t vectors[] = { 0x10, 0x3f, 0x40, 0x7f, 0x80, 0xc3, 0xff };

    for (unsigned i = 0; i < sizeof(vectors); i++) {
        posted(7, vectors[i]);
        pid_prepare(0);
        for (unsigned word = 0; word < CONTROL; word++) {
            pid[word] = OTHERS & ~BIT(vectors[i] % 64);
        }
        uint64_t control = pid[CONTROL];

        send(7);
        for (unsigned word = 0; word < CONTROL; word++) {
            uint64_t others = OTHERS & ~BIT(vectors[i] % 64);
            bool here = word == vectors[i] / 64u;

            CHECK_EQ("requests", pid[word],
                     here ? others | BIT(vectors[i] % 64) : others);
        }
        CHECK_EQ("ON is set", pid[CONTROL], control | ON);
        CHECK_EQ("the notification", came(vector), true);
        CHECK_EQ("no fault", fault(), 0);
    }

    /* Who has been told is not told again. */
    posted(7, 0x91);
    pid_prepare(ON);
    send(7);
    CHECK_EQ("posted to a PID with ON", pid[2], BIT(0x91 - 128));
    CHECK_EQ("a second notification", came(vector), false);
    pid_prepare(SN);
    send(7);
    CHECK_EQ("posted to a PID with SN", pid[2], BIT(0x91 - 128));
    CHECK_EQ("ON with SN", pid[CONTROL] & (ON | SN), SN);
    CHECK_EQ("a notification with SN", came(vector), false);
    table[7][0] |= URG;
    invalidate(IEC_INDEX(7, 0));
    send(7);
    CHECK_EQ("ON by an urgent one", pid[CONTROL] & (ON | SN), ON | SN);
    CHECK_EQ("an urgent notification", came(vector), true);
    pid_prepare(SN | ON);
    send(7);
    CHECK_EQ("an urgent one to a PID with ON", came(vector), false);

    /* From the one to the other */
    remapped(7, ++vector);
    send(7);
    CHECK_EQ("a stale posted entry", came(vector), false);
    invalidate(IEC_INDEX(7, 0));
    send(7);
    CHECK_EQ("remapped again", came(vector), true);
}

static void check_refused(const char *what, uint64_t low, uint64_t high,
                          unsigned reason)
{
    uint64_t control = pid[CONTROL];

    table[7][1] ^= high;
    table[7][0] ^= low;
    invalidate(IEC_INDEX(7, 0));
    send(7);
    CHECK_EQ(what, fault(), reason);
    CHECK_EQ(what, pid[2] | (pid[CONTROL] ^ control), 0);
    table[7][0] ^= NO_FAULT;
    invalidate(IEC_INDEX(7, 0));
    send(7);
    CHECK_EQ("a fault that nobody wants", fault(), 0);
    table[7][0] ^= NO_FAULT | low;
    table[7][1] ^= high;
    invalidate(IEC_INDEX(7, 0));
}

static void test_refusals(void)
{
    static const uint8_t low[] = { 2, 7, 12, 13, 24, 37 };
    static const uint8_t high[] = { 20, 31 };

    posted(7, 0x91);
    pid_prepare(0);
    for (unsigned i = 0; i < sizeof(low); i++) {
        check_refused("a reserved bit below", BIT(low[i]), 0, IRTE_RESERVED);
    }
    for (unsigned i = 0; i < sizeof(high); i++) {
        check_refused("a reserved bit above", 0, BIT(high[i]), IRTE_RESERVED);
    }
    check_refused("another requester", 0, 1, WRONG_SOURCE);
    for (unsigned bit = 2; bit < 256; bit++) {
        unsigned word = CONTROL + bit / 64;
        bool reserved = word > CONTROL || bit < 16 || (bit >= 24 && bit < 32) ||
                        (!eime && bit >= 32 && (bit < 40 || bit >= 48));

        if (reserved) {
            pid[word] ^= BIT(bit % 64);
            check_refused("a reserved bit of the PID", 0, 0, PID_RESERVED);
            pid[word] ^= BIT(bit % 64);
        }
    }
    posted_at(7, 0x91, NOT_RAM);
    check_refused("a PID that is no memory", 0, 0, PID_ACCESS);
    CHECK_EQ("a notification of what was refused", came(vector), false);
    posted(7, 0x91);
    send(7);
    CHECK_EQ("after all refusals", pid[2], BIT(0x91 - 128));
    CHECK_EQ("the notification after them", came(vector), true);
}

/*
 * This processor changes the word that an interrupt is posted to, all the
 * while, and takes the interrupts away: nothing of either is lost.
 */
static void test_race(void)
{
    enum { ROUNDS = 1000, STEPS = 2000, BIT_63 = 255 };
    uint64_t steps = 0, lost = 0;

    posted(7, BIT_63);
    pid_prepare(SN);
    w64(BAR0 + DSA_MSIX_TABLE, MESSAGE(7));
    for (unsigned round = 0; round < ROUNDS; round++) {
        w32(BAR0 + DSA_CMD, DSA_INTERRUPT | DSA_DRAIN_ALL);
        do {
            for (unsigned step = 0; step < STEPS; step++, steps++) {
                asm volatile("lock incq %0" : "+m"(pid[3]));
            }
        } while (r32(BAR0 + DSA_CMDSTS) & BIT(31));
        bool there;

        asm volatile("lock btrq $63, %1" : "=@ccc"(there), "+m"(pid[3]));
        lost += !there;
    }
    CHECK_EQ("steps that were counted", pid[3], steps);
    CHECK_EQ("interrupts that were lost", lost, 0);
}

/* The serial line's pin, edge-triggered */
static void test_io_apic(void)
{
    enum { SELECT = 0x00, WINDOW = 0x10, PIN = 4, COM1_IER = 0x3f9, THRI = 2 };
    const uint64_t io_apic = 0xfec00000;

    posted(9, 0xa5);
    pid_prepare(0);
    w32(io_apic + SELECT, 0x10 + 2 * PIN + 1);
    w32(io_apic + WINDOW, 9 << 17 | 1 << 16);
    w32(io_apic + SELECT, 0x10 + 2 * PIN);
    w32(io_apic + WINDOW, 0xa5);
    outb(COM1_IER, 0);
    outb(COM1_IER, THRI);
    outb(COM1_IER, 0);
    w32(io_apic + WINDOW, 1 << 16);
    CHECK_EQ("posted by the I/O APIC", pid[2], BIT(0xa5 - 128));
    CHECK_EQ("its notification", came(vector), true);
    CHECK_EQ("no fault", fault(), 0);
}

void test_remapping(void)
{
    bool posts = r64(VTD + CAP) & CAP_PI;

    apic_start();
    dsa_start();
    for (int wide = r64(VTD + ECAP) & ECAP_EIM ? 1 : 0; wide >= 0; wide--) {
        eime = wide;
        start();
        test_cache();
        if (posts) {
            test_posting();
            test_refusals();
            test_race();
            test_io_apic();
        } else {
            posted(7, 0x91);
            pid_prepare(0);
            check_refused("posted without CAP.PI", 0, 0, IRTE_RESERVED);
        }
    }
}
