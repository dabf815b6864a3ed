// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * exit_cost: what an exit to the hypervisor costs its guest, in ticks of the time-stamp counter.
 *
 * Runs once, when it is loaded, and prints a line for each kind of exit:
 *
 *   exit_cost: kind=KIND ticks=MEDIAN rounds=R repeats=N
 *
 * Each round repeats the exit N times between two markers, no-operations with a number in them, which
 * tests/platform/plugins/exits.c turns into instruction counts: 0x5041KKBB, where KK is the kind's place in the list
 * and BB is 00 at the start and 01 at the end of a round.
 *
 * vmmcall=1 also measures the hypercall, which faults on a machine without a hypervisor.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sort.h>
#include <asm/msr.h>
#include <asm/processor.h>

#define ROUNDS 15
#define REPEATS 200
#define MARK(number) asm volatile(".byte 0x0f, 0x1f, 0x80\n\t.long %c0" : : "i"(0x50410000 | (number)) : "memory")
/* No hypercall has this number: the answer is an error, and nothing else happens. */
#define NO_SUCH_HYPERCALL 0x7fffffff
/* Line status of the console, which the hypervisor emulates and whose reading changes nothing. */
#define UART_LSR_PORT 0x3fd
#define PCI_DEVICE_ID_DSA 0x0b25

static bool vmmcall;
module_param(vmmcall, bool, 0444);

static u64 ticks[ROUNDS];

static int ascending(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void show(const char *kind)
{
	sort(ticks, ROUNDS, sizeof(ticks[0]), ascending, NULL);
	pr_info("exit_cost: kind=%s ticks=%llu rounds=%d repeats=%d\n", kind, ticks[ROUNDS / 2] / REPEATS, ROUNDS,
		REPEATS);
}

/* A macro, since the markers' numbers are part of instructions. */
#define MEASURE(place, kind, operation)						\
	do {									\
		int round, i;							\
										\
		for (round = 0; round < ROUNDS; round++) {			\
			unsigned long flags;					\
			u64 start;						\
										\
			local_irq_save(flags);					\
			start = rdtsc_ordered();				\
			MARK((place) << 8);					\
			for (i = 0; i < REPEATS; i++)				\
				operation;					\
			MARK(((place) << 8) | 1);				\
			ticks[round] = rdtsc_ordered() - start;			\
			local_irq_restore(flags);				\
		}								\
		show(kind);							\
	} while (0)

static void hypercall(void)
{
	unsigned long number = NO_SUCH_HYPERCALL;

	asm volatile("vmmcall" : "+a"(number) : : "rbx", "rcx", "rdx", "rsi", "memory");
}

static int __init exit_cost_init(void)
{
	struct pci_dev *device = pci_get_device(PCI_VENDOR_ID_INTEL, PCI_DEVICE_ID_DSA, NULL);
	void __iomem *registers;

	MEASURE(1, "cpuid", cpuid_eax(0));
	MEASURE(2, "port", inb(UART_LSR_PORT));
	if (vmmcall)
		MEASURE(3, "hypercall", hypercall());
	if (device) {
		registers = pci_ioremap_bar(device, 0);
		if (registers) {
			MEASURE(4, "mmio", readl(registers));
			iounmap(registers);
		}
		pci_dev_put(device);
	}
	return 0;
}
module_init(exit_cost_init);

static void __exit exit_cost_exit(void)
{
}
module_exit(exit_cost_exit);

MODULE_DESCRIPTION("What an exit to the hypervisor costs its guest");
MODULE_LICENSE("Dual MIT/GPL");
