// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * exit_cost: what an exit to the hypervisor costs its guest, in ticks of the processor's counter: the time-stamp
 * counter, on Arm the virtual count.
 *
 * Runs once, when it is loaded, and prints a line for each kind of exit:
 *
 *   exit_cost: kind=KIND ticks=MEDIAN rounds=R repeats=N
 *
 * Each round repeats the exit N times between two markers, no-operations with a number in them, which
 * tests/platform/plugins/exits.c turns into instruction counts: 0xKKBB, where KK is the kind's number and BB is 00 at
 * the start and 01 at the end of a round.
 *
 * hypercall=1 also measures the hypercall, which faults on a machine without a hypervisor.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sort.h>
#ifdef CONFIG_X86
#include <asm/msr.h>
#include <asm/processor.h>
#else
#include <asm/arch_timer.h>
#include <asm/sysreg.h>
#endif

#define ROUNDS 15
#define REPEATS 200
/* Numbers of the kinds. */
#define CPUID 1
#define PORT_READ 2
#define HYPERCALL 3
#define MMIO_READ 4
#define ID_REGISTER_READ 5
/* No hypercall has this number: the answer is an error, and nothing else happens. */
#define NO_SUCH_HYPERCALL 0x7fffffff
#define PCI_DEVICE_ID_DSA 0x0b25

#ifdef CONFIG_X86
#define MARK(number) asm volatile(".byte 0x0f, 0x1f, 0x80\n\t.long %c0" : : "i"(0x50410000 | (number)) : "memory")
/* Line status of the console, which the hypervisor emulates and whose reading changes nothing. */
#define UART_LSR_PORT 0x3fd
#else
#define MARK(number) asm volatile("movk xzr, #%c0, lsl #48" : : "i"(number) : "memory")
#endif

static bool hypercall;
module_param(hypercall, bool, 0444);

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

static u64 now(void)
{
#ifdef CONFIG_X86
	return rdtsc_ordered();
#else
	return __arch_counter_get_cntvct();
#endif
}

/* A macro, since the markers' numbers are part of instructions. */
#define MEASURE(number, kind, operation)					\
	do {									\
		int round, i;							\
										\
		for (round = 0; round < ROUNDS; round++) {			\
			unsigned long flags;					\
			u64 start;						\
										\
			local_irq_save(flags);					\
			start = now();						\
			MARK((number) << 8);					\
			for (i = 0; i < REPEATS; i++)				\
				operation;					\
			MARK(((number) << 8) | 1);				\
			ticks[round] = now() - start;				\
			local_irq_restore(flags);				\
		}								\
		show(kind);							\
	} while (0)

static void call(void)
{
#ifdef CONFIG_X86
	unsigned long number = NO_SUCH_HYPERCALL;

	asm volatile("vmmcall" : "+a"(number) : : "rbx", "rcx", "rdx", "rsi", "memory");
#else
	register unsigned long number asm("x0") = NO_SUCH_HYPERCALL;

	asm volatile("hvc #0" : "+r"(number) : : "x1", "x2", "x3", "memory");
#endif
}

/* Exits that only this processor has. */
static void processor(void)
{
#ifdef CONFIG_X86
	MEASURE(CPUID, "cpuid", cpuid_eax(0));
	MEASURE(PORT_READ, "port", inb(UART_LSR_PORT));
#else
	MEASURE(ID_REGISTER_READ, "id_register", read_sysreg(id_aa64mmfr0_el1));
#endif
}

static int __init exit_cost_init(void)
{
	struct pci_dev *device = pci_get_device(PCI_VENDOR_ID_INTEL, PCI_DEVICE_ID_DSA, NULL);
	void __iomem *registers;

	processor();
	if (hypercall)
		MEASURE(HYPERCALL, "hypercall", call());
	if (device) {
		registers = pci_ioremap_bar(device, 0);
		if (registers) {
			MEASURE(MMIO_READ, "mmio", readl(registers));
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
