/*
 * Self-test of the PC: serial line, checks, and what a
 * freestanding program has to bring along.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

#define COM1 0x3f8

static unsigned checks, failed;

void print(const char *text)
{
    while (*text) {
        outb(COM1, *text++);
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

bool check_eq(const char *file, int line, const char *what, const char *of,
              uint64_t got, uint64_t want)
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
    print(": ");
    print(of);
    print(" is 0x");
    print_number(got, 16);
    print(", expected 0x");
    print_number(want, 16);
    print("\n");
    return false;
}

void summary(void)
{
    print("pc-selftest: ");
    print_number(checks, 10);
    print(" checks, ");
    print_number(failed, 10);
    print(" failed\n");
}

/* From start.S; ends the test without a summary. */
void unexpected(int vector);
void unexpected(int vector)
{
    print("pc-selftest: exception ");
    print_number(vector, 10);
    print("\n");
    for (;;) {
        asm volatile("hlt");
    }
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
