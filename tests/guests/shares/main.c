// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * shares: a guest without an operating system that brings up every DSA on its bus and has each copy, so that a machine can
 * be full of vdevs. Then it waits for ever, with its vdevs enabled.
 *
 * Prints, once a vdev after the other has copied, all of them at once, ROUNDS times:
 *
 *   PASIDON shares vdevs=N copies=C failures=F
 *
 * A copy that is refused or wrong is a failure, and has a line of its own. It sleeps while it waits: each copy asks for
 * its vdev's interrupt.
 *
 * Source: Intel DSA Architecture Specification 341204-006, chapters on registers, commands and descriptors.
 */
#include <stddef.h>
#include <stdint.h>

#include "bare.h"

#define ECAM 0xd0000000ull
/* Bus 0 with the ports, and a bus for each of their slots. */
#define FUNCTIONS 256
#define PORT 0x000c1b36
#define BUSES 0x18
#define MOST 248
#define DSA 0x0b258086
#define MEMORY_AND_MASTER 6
#define BAR0 0x10
#define BAR2 0x18
#define BAR_ADDRESS (~0xfull)
/* From where prefetchable BARs are, which nothing else maps. */
#define WINDOW_GIB 128
#define WINDOW_PAGES 16
/* A page of 1 GiB, present, writable, uncached. */
#define UNCACHED_PAGE 0x93ull

#define GRPCFG 0x600
#define WQCFG 0x800
#define CMD 0xa0
#define CMDSTS 0xa8
#define ACTIVE (1u << 31)
#define ENABLE_DEVICE (1 << 20)
#define RESET_DEVICE (5 << 20)
#define ENABLE_WQ (6 << 20)
/* Of MSI-X entry 1. */
#define REQUEST_HANDLE (13 << 20 | 1)
#define DEDICATED 1
#define LIMITS (12 | 1 << 5)
#define PORTAL 0x1000

#define ROUNDS 4
#define BYTES 256
/* How often a command is looked at. */
#define PATIENCE 200000000ull
/* A memory move with a completion record and an interrupt. */
#define MOVE (3ull << 56 | 0x1cull << 32)
#define SUCCESS 1

/* The MSI-X capability with its enable bit, and the entry of the queue. */
#define MSIX 0x80
#define MSIX_ENABLE (1u << 31)
#define MSIX_ENTRY (0x2000 + 16)
#define MESSAGES 0xfee00000
#define VECTOR 0x40

#define APIC_BASE 0x1b
#define X2APIC (3 << 10)
#define X2APIC_EOI 0x80b
#define X2APIC_SPURIOUS 0x80f
#define APIC_ON (1 << 8 | 0xff)
#define CODE_SELECTOR 8
#define INTERRUPT_GATE 0x8e00

struct descriptor {
	uint64_t words[8];
} __attribute__((aligned(64)));

struct record {
	volatile uint8_t status;
	uint8_t rest[31];
} __attribute__((aligned(32)));

static struct vdev {
	volatile uint8_t *portal;
	uint16_t handle;
	struct record record;
	uint8_t source[BYTES];
	uint8_t destination[BYTES];
} vdevs[MOST] __attribute__((aligned(64)));

extern uint64_t pdpt[];

static volatile uint32_t *config(unsigned function, unsigned offset)
{
	return (volatile uint32_t *)(ECAM + ((uint64_t)function << 12) + offset);
}

/* Turns a port on; the function that its slot leads to, or 0. */
static unsigned behind(unsigned port)
{
	if (*config(port, 0) != PORT)
		return 0;
	*config(port, 4) = MEMORY_AND_MASTER;
	return (*config(port, BUSES) >> 8 & 0xff) << 8;
}

static uint64_t bar(unsigned function, unsigned offset)
{
	uint64_t low = *config(function, offset), high = *config(function, offset + 4);

	return (high << 32 | low) & BAR_ADDRESS;
}

static int command(volatile uint8_t *registers, uint32_t value)
{
	uint64_t tries = PATIENCE;

	*(volatile uint32_t *)(registers + CMD) = value;
	while (*(volatile uint32_t *)(registers + CMDSTS) & ACTIVE)
		if (!--tries)
			return 0;
	return (*(volatile uint32_t *)(registers + CMDSTS) & 0xff) == 0;
}

/* Brings up the device of that function; where its queue's portal is, or NULL. */
static volatile uint8_t *bring_up(unsigned function, uint16_t *handle)
{
	volatile uint8_t *registers = (volatile uint8_t *)bar(function, BAR0);

	*config(function, 4) = MEMORY_AND_MASTER;
	if (!command(registers, RESET_DEVICE))
		return NULL;
	*(volatile uint32_t *)(registers + WQCFG) = 2;
	*(volatile uint32_t *)(registers + WQCFG + 8) = DEDICATED | 1 << 4;
	*(volatile uint32_t *)(registers + WQCFG + 12) = LIMITS;
	*(volatile uint64_t *)(registers + GRPCFG) = 1;
	*(volatile uint64_t *)(registers + GRPCFG + 32) = 1;
	*(volatile uint32_t *)(registers + MSIX_ENTRY) = MESSAGES;
	*(volatile uint32_t *)(registers + MSIX_ENTRY + 4) = 0;
	*(volatile uint32_t *)(registers + MSIX_ENTRY + 8) = VECTOR;
	*(volatile uint32_t *)(registers + MSIX_ENTRY + 12) = 0;
	*config(function, MSIX) |= MSIX_ENABLE;
	if (!command(registers, ENABLE_DEVICE) || !command(registers, ENABLE_WQ) || !command(registers, REQUEST_HANDLE))
		return NULL;
	*handle = *(volatile uint32_t *)(registers + CMDSTS) >> 8 & 0xffff;
	return (volatile uint8_t *)bar(function, BAR2) + PORTAL;
}

static void submit(struct vdev *vdev)
{
	struct descriptor descriptor = {
		.words = { MOVE, (uintptr_t)&vdev->record, (uintptr_t)vdev->source, (uintptr_t)vdev->destination,
			   (uint64_t)vdev->handle << 32 | BYTES },
	};

	vdev->record.status = 0;
	asm volatile("sfence; movdir64b (%1), %0"
		     : : "r"(vdev->portal), "r"(&descriptor) : "memory");
}

static void write_msr(uint32_t msr, uint64_t value)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

/* Completions are seen in their records: the interrupt only ends the sleep. */
__attribute__((interrupt)) static void woken(void *frame)
{
	(void)frame;
	write_msr(X2APIC_EOI, 0);
}

static struct gate {
	uint64_t low, high;
} gates[256] __attribute__((aligned(16)));

static void enable_interrupts(void)
{
	uint64_t handler = (uintptr_t)woken;
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) table = { sizeof(gates) - 1, (uintptr_t)gates };
	uint32_t low, high;

	gates[VECTOR].low = (handler & 0xffff) | CODE_SELECTOR << 16 | (uint64_t)INTERRUPT_GATE << 32 |
			    (handler >> 16 & 0xffff) << 48;
	gates[VECTOR].high = handler >> 32;
	asm volatile("lidt %0" : : "m"(table));
	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(APIC_BASE));
	write_msr(APIC_BASE, (uint64_t)high << 32 | low | X2APIC);
	write_msr(X2APIC_SPURIOUS, APIC_ON);
}

/* Sleeps until the copy has ended. What is wrong with it, or NULL. */
static const char *fault(struct vdev *vdev)
{
	while (!vdev->record.status) {
		/* The one is done before the first interrupt can come. */
		asm volatile("sti; hlt; cli" : : : "memory");
	}
	if (vdev->record.status != SUCCESS)
		return "refused";
	for (unsigned i = 0; i < BYTES; i++)
		if (vdev->destination[i] != vdev->source[i])
			return "wrong";
	return NULL;
}

void main(void)
{
	unsigned count = 0, found = 0, copies = 0, failures = 0;

	enable_interrupts();
	for (unsigned page = 0; page < WINDOW_PAGES; page++)
		pdpt[WINDOW_GIB + page] = (uint64_t)(WINDOW_GIB + page) << 30 | UNCACHED_PAGE;
	for (unsigned port = 0; port < FUNCTIONS; port++) {
		unsigned function = behind(port);

		if (!function || *config(function, 0) != DSA || count == MOST)
			continue;
		found++;
		vdevs[count].portal = bring_up(function, &vdevs[count].handle);
		if (vdevs[count].portal)
			count++;
		else
			failures++;
	}
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < count; i++) {
			for (unsigned byte = 0; byte < BYTES; byte++)
				vdevs[i].source[byte] = (uint8_t)(byte * 7 + i * 13 + round * 31 + 1);
			submit(&vdevs[i]);
		}
		for (unsigned i = 0; i < count; i++) {
			const char *why = fault(&vdevs[i]);

			copies++;
			if (!why)
				continue;
			failures++;
			print("PASIDON shares vdev=");
			print_number(i, 10);
			print(" round=");
			print_number(round, 10);
			print(" ");
			print(why);
			print("\n");
		}
	}
	print("PASIDON shares vdevs=");
	print_number(found, 10);
	print(" copies=");
	print_number(copies, 10);
	print(" failures=");
	print_number(failures, 10);
	print("\n");
}
