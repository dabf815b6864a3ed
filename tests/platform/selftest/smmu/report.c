/*
 * Self-test of the SMMUv3 model: serial line, checks, and what a freestanding
 * program has to bring along.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define UART_DR 0x09000000ULL
#define WAIT_SECONDS 5

static unsigned checks, failed;

void print(const char *text)
{
    while (*text) {
        w32(UART_DR, *text++);
    }
}

static void print_number(uint64_t v, unsigned base)
{
    char digits[21], *p = digits + sizeof(digits) - 1;

    *p = 0;
    do {
        *--p = "0123456789abcdef"[v % base];
    } while (v /= base);
    print(p);
}

bool check_eq(const char *file, int line, const char *what, uint64_t got,
              uint64_t want)
{
    checks++;
    if (got == want) {
        return true;
    }
    failed++;
    print("FAILED ");
    print(file);
    print(":");
    print_number(line, 10);
    print(": ");
    print(what);
    print(" is 0x");
    print_number(got, 16);
    print(", expected 0x");
    print_number(want, 16);
    print("\n");
    return false;
}

void summary(void)
{
    print("smmu-selftest: ");
    print_number(checks, 10);
    print(" checks, ");
    print_number(failed, 10);
    print(" failed\n");
}

/* From start.S; an exception ends the test without a summary. */
void exception(uint64_t esr, uint64_t elr, uint64_t far);
void exception(uint64_t esr, uint64_t elr, uint64_t far)
{
    print("smmu-selftest: exception ESR 0x");
    print_number(esr, 16);
    print(" ELR 0x");
    print_number(elr, 16);
    print(" FAR 0x");
    print_number(far, 16);
    print("\n");
    for (;;) {
        asm volatile("wfi");
    }
}

static uint64_t ticks(void)
{
    uint64_t t;

    asm volatile("isb; mrs %0, cntpct_el0" : "=r"(t));
    return t;
}

bool wait32(uint64_t a, uint32_t mask, uint32_t want)
{
    uint64_t frequency, end;

    asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
    end = ticks() + WAIT_SECONDS * frequency;
    while ((r32(a) & mask) != want) {
        if (ticks() > end) {
            return false;
        }
    }
    return true;
}

/* The compiler may call these for assignments and initializers. */
void *memset(void *to, int value, size_t size)
{
    volatile uint8_t *p = to;

    while (size--) {
        *p++ = value;
    }
    return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
    volatile uint8_t *p = to;
    const uint8_t *q = from;

    while (size--) {
        *p++ = *q++;
    }
    return to;
}
