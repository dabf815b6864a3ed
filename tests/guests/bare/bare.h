// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What guests without an operating system have: ports, a console on COM1, and the way out.
 */
#ifndef BARE_H
#define BARE_H

#include <stdint.h>

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_EMPTY 0x20
/* What ACPI calls the sleep control register. */
#define SLEEP_CONTROL 0x600
#define SLEEP_ENABLE_TYPE_5 (1 << 5 | 5 << 2)

static inline uint8_t in(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "d"(port));
	return value;
}

static inline void out(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static inline void print(const char *text)
{
	for (; *text; text++) {
		while (!(in(LINE_STATUS) & TRANSMITTER_EMPTY))
			;
		out(COM1, *text);
	}
}

static inline void print_number(uint64_t value, unsigned base)
{
	char digits[21], *p = digits + sizeof(digits) - 1;

	*p = 0;
	do {
		*--p = "0123456789abcdef"[value % base];
	} while (value /= base);
	print(p);
}

static inline void power_off(void)
{
	out(SLEEP_CONTROL, SLEEP_ENABLE_TYPE_5);
}

#endif
