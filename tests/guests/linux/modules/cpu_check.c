// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * cpu_check: whether this processor keeps the rules that others take for granted. x86-64 only.
 *
 * Runs once, when it is loaded, and prints
 *
 *   cpu_check: steps=S cr4=C efer=E pkru=P counters=K tsc=T clock=J nmi=N debug=D
 *
 * Each is "ok", or a word or number that says what was there instead:
 *
 * steps     a single step over an instruction that a hypervisor carries out (CPUID, RDMSR, a port, device memory) ends
 *           behind it; otherwise the numbers of the steps that did not
 * cr4       reserved bits, and those of features that CPUID does not show, give a general-protection fault; otherwise
 *           the first bit that did not
 * efer      the same for EFER, and for a write with LMA clear
 * pkru      CR4.PKE, behind which a register is that nobody switches between guests, cannot be set
 * counters  the K7's performance counters can be read and written
 * tsc       the TSC can be written and runs on from there
 * clock     a clock made from it goes on as before, when it is written back
 * nmi       NMIs to itself arrive, one that is sent in the handler of another too, and leave no step behind
 * debug     no #DB came that nobody asked for
 */
#include <linux/io.h>
#include <linux/kdebug.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <asm/apic.h>
#include <asm/debugreg.h>
#include <asm/msr.h>
#include <asm/nmi.h>
#include <asm/processor.h>
#include <asm/special_insns.h>

#define STEPS 4
#define IOAPIC 0xfec00000
#define UART_LSR_PORT 0x3fd
#define K7_FIRST 0xc0010000
#define K7_LAST 0xc0010007
#define TSC_JUMP (1ull << 40)
/* LA57, VMXE, SMXE, KL, PKE, CET, PKS, UINTR and FRED, which no guest is shown, and bits that mean nothing. */
#define CR4_FORBIDDEN (BIT_ULL(12) | BIT_ULL(13) | BIT_ULL(14) | BIT_ULL(15) | BIT_ULL(19) | BIT_ULL(22) | BIT_ULL(23) | \
		       BIT_ULL(24) | BIT_ULL(25) | BIT_ULL(31) | BIT_ULL(32) | BIT_ULL(63))
/* SVME and LMSLE, which no guest is shown, and bits that mean nothing. */
#define EFER_FORBIDDEN (BIT_ULL(1) | BIT_ULL(9) | BIT_ULL(12) | BIT_ULL(13) | BIT_ULL(63))

static unsigned long stopped[STEPS];
static unsigned int stops, strays, nmis;
static bool stepping;

static int on_die(struct notifier_block *block, unsigned long what, void *data)
{
	struct die_args *args = data;
	unsigned long *dr6 = (unsigned long *)args->err;

	if (what != DIE_DEBUG || user_mode(args->regs) || !(*dr6 & DR_STEP))
		return NOTIFY_DONE;
	if (!stepping) {
		strays++;
		args->regs->flags &= ~X86_EFLAGS_TF;
	} else if (stops < STEPS) {
		stopped[stops++] = args->regs->ip;
	}
	*dr6 &= ~DR_STEP;
	return NOTIFY_STOP;
}

static struct notifier_block die_block = { .notifier_call = on_die };

/* Steps over one instruction and the NOP behind it, and tells whether there was a stop behind each. */
#define STEP(instruction, outputs, ...)									\
	({												\
		unsigned long first, second;								\
		unsigned long flags;									\
													\
		local_irq_save(flags);									\
		stops = 0;										\
		stepping = true;									\
		asm volatile("leaq 1f(%%rip), %0\n"							\
			     "leaq 2f(%%rip), %1\n"							\
			     "pushfq\n"									\
			     "orl $0x100, (%%rsp)\n"							\
			     "popfq\n"									\
			     instruction "\n"								\
			     "1: nop\n"									\
			     "2: pushfq\n"								\
			     "andl $~0x100, (%%rsp)\n"							\
			     "popfq\n"									\
			     : "=&r"(first), "=&r"(second) outputs : __VA_ARGS__);			\
		stepping = false;									\
		local_irq_restore(flags);								\
		stops >= 2 && stopped[0] == first && stopped[1] == second;				\
	})
#define COMMA ,

static unsigned int check_steps(void)
{
	void __iomem *device = ioremap(IOAPIC, PAGE_SIZE);
	unsigned int wrong = 0;
	u32 a = 0, b, c = 0, d;

	if (!STEP("cpuid", COMMA "+a"(a) COMMA "=b"(b) COMMA "+c"(c) COMMA "=d"(d), "i"(0) : "memory"))
		wrong |= 1;
	c = MSR_EFER;
	if (!STEP("rdmsr", COMMA "=a"(a) COMMA "=d"(d), "c"(c) : "memory"))
		wrong |= 2;
	if (!STEP("inb %%dx, %%al", COMMA "=a"(a), "d"(UART_LSR_PORT) : "memory"))
		wrong |= 4;
	if (device && !STEP("movl (%3), %2", COMMA "=&r"(a), "r"(device) : "memory"))
		wrong |= 8;
	if (device)
		iounmap(device);
	return wrong;
}

static bool takes_cr4(u64 value)
{
	u64 before = native_read_cr4();
	bool taken = false;
	unsigned long flags;

	local_irq_save(flags);
	asm volatile("1: movq %1, %%cr4\n"
		     "movb $1, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+m"(taken) : "r"(value) : "memory");
	if (taken)
		asm volatile("movq %0, %%cr4" : : "r"(before) : "memory");
	local_irq_restore(flags);
	return taken;
}

/* The first bit of `bits` that was accepted, or -1. */
static int check_cr4(u64 bits)
{
	int bit;

	for (bit = 0; bit < 64; bit++)
		if (bits & BIT_ULL(bit) && takes_cr4(native_read_cr4() | BIT_ULL(bit)))
			return bit;
	return -1;
}

static int check_efer(void)
{
	u64 before;
	int bit;

	rdmsrl(MSR_EFER, before);
	for (bit = 0; bit < 64; bit++) {
		u64 value = bit == 10 ? before & ~EFER_LMA : before | BIT_ULL(bit);

		if ((EFER_FORBIDDEN | EFER_LMA) & BIT_ULL(bit) && !wrmsrl_safe(MSR_EFER, value)) {
			wrmsrl(MSR_EFER, before);
			return bit;
		}
	}
	return -1;
}

static bool check_counters(void)
{
	u64 value;
	u32 msr;

	for (msr = K7_FIRST; msr <= K7_LAST; msr++)
		if (wrmsrl_safe(msr, 0) || rdmsrl_safe(msr, &value))
			return false;
	return true;
}

static void check_tsc(bool *tsc, bool *clock)
{
	u64 before, inside, after;
	ktime_t start, end;
	unsigned long flags;

	/* Nobody else looks at the time in between. */
	local_irq_save(flags);
	start = ktime_get();
	before = rdtsc_ordered();
	*tsc = !wrmsrl_safe(MSR_IA32_TSC, before + TSC_JUMP);
	inside = rdtsc_ordered();
	wrmsrl_safe(MSR_IA32_TSC, rdtsc_ordered() - TSC_JUMP);
	after = rdtsc_ordered();
	end = ktime_get();
	local_irq_restore(flags);
	*tsc = *tsc && inside - before >= TSC_JUMP && inside - before < TSC_JUMP + tsc_khz * 1000ull &&
	       after - before < tsc_khz * 1000ull;
	*clock = ktime_ms_delta(end, start) >= 0 && ktime_ms_delta(end, start) < 1000;
}

static void send_nmi(void)
{
	wrmsrl(APIC_BASE_MSR + (APIC_ICR >> 4), APIC_DM_NMI);
}

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	if (++nmis == 1)
		send_nmi();
	return NMI_HANDLED;
}

/* How many of the two came. */
static unsigned int check_nmi(void)
{
	unsigned int i;

	if (!x2apic_mode || register_nmi_handler(NMI_LOCAL, on_nmi, NMI_FLAG_FIRST, "cpu_check"))
		return 0;
	send_nmi();
	for (i = 0; i < 1000 && READ_ONCE(nmis) < 2; i++)
		cpu_relax();
	unregister_nmi_handler(NMI_LOCAL, "cpu_check");
	return nmis;
}

static const char *word(bool ok)
{
	return ok ? "ok" : "wrong";
}

static const char *number(char *text, size_t size, int value, int right)
{
	if (value == right)
		return "ok";
	snprintf(text, size, "%d", value);
	return text;
}

static int __init cpu_check_init(void)
{
	char steps[12], cr4[12], efer[12], nmi[12], debug[12];
	bool tsc, clock;
	int wrong;

	register_die_notifier(&die_block);
	wrong = check_steps();
	check_tsc(&tsc, &clock);
	check_nmi();
	pr_info("cpu_check: steps=%s cr4=%s efer=%s pkru=%s counters=%s tsc=%s clock=%s nmi=%s debug=%s\n",
		number(steps, sizeof(steps), wrong, 0),
		number(cr4, sizeof(cr4), check_cr4(CR4_FORBIDDEN), -1),
		number(efer, sizeof(efer), check_efer(), -1),
		word(!takes_cr4(native_read_cr4() | X86_CR4_PKE)), word(check_counters()), word(tsc), word(clock),
		number(nmi, sizeof(nmi), nmis, 2), number(debug, sizeof(debug), strays, 0));
	unregister_die_notifier(&die_block);
	return 0;
}

static void __exit cpu_check_exit(void)
{
}

module_init(cpu_check_init);
module_exit(cpu_check_exit);
MODULE_DESCRIPTION("Whether the processor keeps its rules");
MODULE_LICENSE("Dual MIT/GPL");
