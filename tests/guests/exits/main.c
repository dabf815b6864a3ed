// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * exits: a guest without an operating system that only leaves, again and again, so that two hypervisors can be compared
 * by what the same instruction makes each of them do. It needs of both: COM1, an 8254 with its gate at port 61h, an I/O
 * APIC, and what ACPI calls the sleep control register, at port 600h, to end.
 *
 * Prints for each kind of exit, and then "PASIDON exits done":
 *
 *   PASIDON exit kind=KIND at=RIP ticks=MEDIAN rounds=R repeats=N
 *
 * RIP, hexadecimal, is the one instruction that exits, R times N times in all; MEDIAN is of the rounds, in ticks of the
 * time-stamp counter for each exit. Interrupts stay off.
 */
#include <stddef.h>
#include <stdint.h>

#include "bare.h"

#define ROUNDS 15
#define REPEATS 200

#define PIT_GATE 0x61
#define IOAPIC_WINDOW 0xfec00010
/* No hypercall has this number. */
#define NO_SUCH_HYPERCALL 0x7fffffff

static uint64_t now(void)
{
	uint32_t low, high;

	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* Each is called by way of a pointer, so that its instruction is there once. */

extern const char cpuid_at[], hypercall_at[], port_at[], mmio_at[];

static void cpuid(void)
{
	uint32_t leaf = 0;

	asm volatile("cpuid_at: cpuid" : "+a"(leaf) : : "rbx", "rcx", "rdx");
}

static void hypercall(void)
{
	uint64_t number = NO_SUCH_HYPERCALL;

	asm volatile("hypercall_at: vmcall" : "+a"(number) : : "rbx", "rcx", "rdx", "rsi", "memory");
}

static void port(void)
{
	uint8_t value;

	asm volatile("port_at: inb %1, %0" : "=a"(value) : "d"((uint16_t)PIT_GATE));
}

static void mmio(void)
{
	uint32_t value;

	asm volatile("mmio_at: movl (%1), %0" : "=r"(value) : "r"((uint64_t)IOAPIC_WINDOW));
}

static const struct {
	const char *name;
	void (*exit)(void);
	const char *at;
} KINDS[] = {
	{ "cpuid", cpuid, cpuid_at },
	{ "hypercall", hypercall, hypercall_at },
	{ "port", port, port_at },
	{ "mmio", mmio, mmio_at },
};

/* The median of so many rounds, for one exit. */
static uint64_t measure(void (*exit)(void))
{
	uint64_t ticks[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = now(), taken;
		int place;

		for (int i = 0; i < REPEATS; i++)
			exit();
		taken = now() - start;
		for (place = round; place > 0 && ticks[place - 1] > taken; place--)
			ticks[place] = ticks[place - 1];
		ticks[place] = taken;
	}
	return ticks[ROUNDS / 2] / REPEATS;
}

void main(void)
{
	for (size_t kind = 0; kind < sizeof(KINDS) / sizeof(*KINDS); kind++) {
		uint64_t ticks = measure(KINDS[kind].exit);

		print("PASIDON exit kind=");
		print(KINDS[kind].name);
		print(" at=");
		print_number((uintptr_t)KINDS[kind].at, 16);
		print(" ticks=");
		print_number(ticks, 10);
		print(" rounds=");
		print_number(ROUNDS, 10);
		print(" repeats=");
		print_number(REPEATS, 10);
		print("\n");
	}
	print("PASIDON exits done\n");
	power_off();
}
