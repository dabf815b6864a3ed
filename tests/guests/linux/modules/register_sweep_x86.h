/* SPDX-License-Identifier: MIT OR GPL-2.0-or-later */
/* What register_sweep.c tries on x86-64: MSRs by their numbers, and the others under numbers of our own. */
#include <linux/irqflags.h>
#include <asm/asm.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/special_insns.h>
#include <asm/tsc.h>

enum {
	OTHERS = 0xf0000000,
	CR0 = OTHERS,
	CR2,
	CR3,
	CR4,
	CR8,
	XCR0,
	XINUSE,
	/* As instructions show it: RDMSR may be carried out by somebody else. */
	TSC_AUX,
	PKRU,
	DR_0,
	DR_1,
	DR_2,
	DR_3,
	DR_6,
	DR_7,
	GDT_BASE,
	GDT_LIMIT,
	IDT_BASE,
	IDT_LIMIT,
	LDTR,
	TR,
	PMC_0,
	PMC_7 = PMC_0 + 7,
};

static const struct {
	u32 first;
	u32 count;
} ranges[] = {
	{ 0, 0x2000 },
	/* Hyper-V's and KVM's. */
	{ 0x40000000, 0x200 },
	{ 0x4b564d00, 0x10 },
	{ 0xc0000000, 0x2000 },
	/* AMD's. */
	{ 0xc0010000, 0x10000 },
	{ OTHERS, PMC_7 - OTHERS + 1 },
};

#define ALL ~0ull

static const struct rule rules[] = {
	/* The TSC. */
	{ 0x10, 0x10, .moves = ALL },
	/* Where the local APIC is, and whether. */
	{ 0x1b, 0x1b },
	/* APERF and MPERF. */
	{ 0xe7, 0xe8, .moves = ALL },
	/* Memory types of all that is used; one is not. */
	{ MSR_IA32_CR_PAT, MSR_IA32_CR_PAT, .writes = 1ull << 56 },
	/* Fixed ranges, of which there are none. */
	{ MSR_MTRRdefType, MSR_MTRRdefType, .writes = 1 << 10 },
	/* When the timer is due; 0 when it was. */
	{ MSR_IA32_TSC_DEADLINE, MSR_IA32_TSC_DEADLINE, .moves = ALL },
	/* The local APIC: a task priority does nothing more, and what else is written acts. */
	{ 0x808, 0x808, .writes = 0xf0 },
	/* Interrupts come. */
	{ 0x80a, 0x80a, .moves = ALL },
	{ 0x810, 0x827, .moves = ALL },
	/* Its timer counts. */
	{ 0x838, 0x838, .kernel = true },
	{ 0x839, 0x839, .moves = ALL },
	{ 0x800, 0x8ff },
	/* The hypervisor writes where they say. */
	{ 0x4b564d00, 0x4b564d0f },
	/* Without the others nothing runs. */
	{ MSR_EFER, MSR_EFER, .writes = EFER_SCE },
	{ CR0, CR0, .writes = X86_CR0_TS | X86_CR0_AM },
	/* Which PCID its tables have, the kernel chooses anew when others ran. */
	{ CR3, CR3, .moves = X86_CR3_PCID_MASK },
	{ CR4, CR4, .writes = X86_CR4_TSD | X86_CR4_DE | X86_CR4_PCE },
	{ XCR0, XCR0, .writes = XFEATURE_MASK_YMM },
	/* The address of the last page fault. */
	{ CR2, CR2, .kernel = true, .writes = ALL },
	{ CR8, CR8, .writes = 0xf },
	/* Which parts of the floating-point state the task at hand uses. */
	{ XINUSE, XINUSE, .moves = ALL },
	/* No breakpoint is on. */
	{ DR_6, DR_6, .writes = DR_TRAP_BITS },
	{ DR_7, DR_7, .writes = 0xffff0000 },
	/* Where the tables are must stay true; they may be longer. */
	{ GDT_LIMIT, GDT_LIMIT, .writes = 0x7000 },
	{ IDT_LIMIT, IDT_LIMIT, .writes = 0x7000 },
	{ PMC_0, PMC_7, .moves = ALL },
};

static unsigned long sweep_flags;

static unsigned int sweep_count(void)
{
	unsigned int i, count = 0;

	for (i = 0; i < ARRAY_SIZE(ranges); i++)
		count += ranges[i].count;
	return count;
}

static u32 sweep_id(unsigned int n)
{
	unsigned int i;

	for (i = 0; n >= ranges[i].count; i++)
		n -= ranges[i].count;
	return ranges[i].first + n;
}

static __always_inline void sweep_begin(void)
{
	local_irq_save(sweep_flags);
}

static __always_inline void sweep_end(void)
{
	local_irq_restore(sweep_flags);
}

static __always_inline u64 sweep_now(void)
{
	return rdtsc();
}

static __always_inline u64 sweep_per_ms(void)
{
	return tsc_khz;
}

/* Two halves in EDX and EAX, of what ECX says; false when it faults. */
#define PAIR(instruction, number, value)								\
	({												\
		u32 low = 0, high = 0;									\
		bool fine = false;									\
													\
		asm volatile("1: " instruction "\n"							\
			     "movb $1, %0\n"								\
			     "2:\n"									\
			     _ASM_EXTABLE(1b, 2b)							\
			     : "+m"(fine), "+a"(low), "+d"(high) : "c"(number) : "memory");		\
		*(value) = (u64)high << 32 | low;							\
		fine;											\
	})
#define GIVE_PAIR(instruction, number, value)								\
	({												\
		bool fine = false;									\
													\
		asm volatile("1: " instruction "\n"							\
			     "movb $1, %0\n"								\
			     "2:\n"									\
			     _ASM_EXTABLE(1b, 2b)							\
			     : "+m"(fine) : "a"((u32)(value)), "d"((u32)((value) >> 32)), "c"(number)	\
			     : "memory");								\
		fine;											\
	})

static __always_inline bool aux(u64 *value)
{
	u32 number = 0;
	bool fine = false;

	asm volatile("1: rdtscp\n"
		     "movb $1, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+m"(fine), "+c"(number) : : "eax", "edx", "memory");
	*value = number;
	return fine;
}

#define FROM(name) ({ unsigned long _value; asm volatile("mov %%" name ", %0" : "=r"(_value)); _value; })
#define TO(name, value) asm volatile("mov %0, %%" name : : "r"((unsigned long)(value)) : "memory")

static __always_inline bool sweep_read(u32 id, u64 *value)
{
	struct desc_ptr table = {};
	u16 selector = 0;

	if (id >= PMC_0 && id <= PMC_7)
		return PAIR("rdpmc", id - PMC_0, value);
	if (id < OTHERS)
		return PAIR("rdmsr", id, value);
	if (id == TSC_AUX)
		return aux(value);
	if (id == GDT_BASE || id == GDT_LIMIT)
		asm volatile("sgdt %0" : "=m"(table));
	if (id == IDT_BASE || id == IDT_LIMIT)
		asm volatile("sidt %0" : "=m"(table));
	if (id == LDTR)
		asm volatile("sldt %0" : "=m"(selector));
	if (id == TR)
		asm volatile("str %0" : "=m"(selector));
	switch (id) {
	case CR0: *value = FROM("cr0"); return true;
	case CR2: *value = FROM("cr2"); return true;
	case CR3: *value = FROM("cr3"); return true;
	case CR4: *value = FROM("cr4"); return true;
	case CR8: *value = FROM("cr8"); return true;
	case XCR0: return PAIR("xgetbv", 0, value);
	case XINUSE: return PAIR("xgetbv", 1, value);
	case PKRU: return PAIR(".byte 0x0f, 0x01, 0xee", 0, value);
	case DR_0: *value = FROM("db0"); return true;
	case DR_1: *value = FROM("db1"); return true;
	case DR_2: *value = FROM("db2"); return true;
	case DR_3: *value = FROM("db3"); return true;
	case DR_6: *value = FROM("db6"); return true;
	case DR_7: *value = FROM("db7"); return true;
	case GDT_BASE: case IDT_BASE: *value = table.address; return true;
	case GDT_LIMIT: case IDT_LIMIT: *value = table.size; return true;
	case LDTR: case TR: *value = selector; return true;
	}
	return false;
}

static __always_inline bool sweep_write(u32 id, u64 value)
{
	struct desc_ptr table = {};

	if (id < OTHERS)
		return GIVE_PAIR("wrmsr", id, value);
	switch (id) {
	case CR0: TO("cr0", value); return true;
	case CR2: TO("cr2", value); return true;
	case CR4: TO("cr4", value); return true;
	case CR8: TO("cr8", value & 0xf); return true;
	case XCR0: return GIVE_PAIR("xsetbv", 0, value);
	case PKRU: return GIVE_PAIR(".byte 0x0f, 0x01, 0xef", 0, value & 0xffffffff);
	case DR_0: TO("db0", value); return true;
	case DR_1: TO("db1", value); return true;
	case DR_2: TO("db2", value); return true;
	case DR_3: TO("db3", value); return true;
	case DR_6: TO("db6", value & 0xffffffff); return true;
	case DR_7: TO("db7", value & 0xffffffff); return true;
	case GDT_LIMIT:
		asm volatile("sgdt %0" : "=m"(table));
		table.size = value;
		asm volatile("lgdt %0" : : "m"(table) : "memory");
		return true;
	case IDT_LIMIT:
		asm volatile("sidt %0" : "=m"(table));
		table.size = value;
		asm volatile("lidt %0" : : "m"(table) : "memory");
		return true;
	}
	return false;
}
