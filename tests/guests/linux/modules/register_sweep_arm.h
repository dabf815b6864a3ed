/* SPDX-License-Identifier: MIT OR GPL-2.0-or-later */
/*
 * What register_sweep.c tries on Arm: every encoding that MRS and MSR can name, with an instruction of its own each.
 *
 * With interrupts off exceptions come to vectors of our own, which skip the instruction: those that the processor or the
 * hypervisor has undefined end nothing.
 */
#include <asm/arch_timer.h>
#include <asm/barrier.h>
#include <asm/sysreg.h>

#define ENCODINGS 32768
/* Both instructions of one. */
#define STUB_BYTES 8
#define REGISTER(op0, op1, crn, crm, op2) ((op0 - 2) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
#define ONE(...) REGISTER(__VA_ARGS__), REGISTER(__VA_ARGS__)
#define ALL ~0ull

static const struct rule rules[] = {
	/* Reading ICC_IAR0_EL1, ICC_IAR1_EL1 and ICC_NMIAR1_EL1 acknowledges an interrupt. */
	{ ONE(3, 0, 12, 8, 0), .skip = true },
	{ ONE(3, 0, 12, 12, 0), .skip = true },
	{ ONE(3, 0, 12, 9, 5), .skip = true },
	/* RNDR and RNDRRS. */
	{ REGISTER(3, 3, 2, 4, 0), REGISTER(3, 3, 2, 4, 1), .skip = true },
	/* Counters: CNTPCT_EL0, CNTVCT_EL0, CNTPCTSS_EL0 and CNTVCTSS_EL0. */
	{ REGISTER(3, 3, 14, 0, 1), REGISTER(3, 3, 14, 0, 6), .moves = ALL },
	/* CNTV_TVAL_EL0 counts down to CNTV_CVAL_EL0, and CNTV_CTL_EL0.ISTATUS tells that it is there. */
	{ ONE(3, 3, 14, 3, 0), .moves = ALL },
	{ ONE(3, 3, 14, 3, 1), .kernel = true, .moves = BIT(2), .writes = ALL },
	{ ONE(3, 3, 14, 3, 2), .kernel = true, .writes = ALL },
	/* Interrupts come: ISR_EL1, ICC_HPPIR0_EL1 and ICC_HPPIR1_EL1. */
	{ ONE(3, 0, 12, 1, 0), .moves = ALL },
	{ ONE(3, 0, 12, 8, 2), .moves = ALL },
	{ ONE(3, 0, 12, 12, 2), .moves = ALL },
	/* Every exception writes SPSR_EL1 and ELR_EL1, and many ESR_EL1, FAR_EL1 and PAR_EL1. */
	{ REGISTER(3, 0, 4, 0, 0), REGISTER(3, 0, 4, 0, 1), .kernel = true, .writes = ALL },
	{ ONE(3, 0, 5, 2, 0), .kernel = true, .writes = ALL },
	{ ONE(3, 0, 6, 0, 0), .kernel = true, .writes = ALL },
	{ ONE(3, 0, 7, 4, 0), .kernel = true, .writes = ALL },
	/* FPCR and FPSR are the task's at hand. */
	{ REGISTER(3, 3, 4, 4, 0), REGISTER(3, 3, 4, 4, 1), .kernel = true, .writes = ALL },
	/* NZCV are the flags of this very code; DAIF and ALLINT would let interrupts in, SPSel takes its stack. */
	{ ONE(3, 3, 4, 2, 0), .moves = ALL },
	{ ONE(3, 3, 4, 2, 1) },
	{ ONE(3, 0, 4, 3, 0) },
	{ ONE(3, 0, 4, 2, 0) },
	/* SCTLR_EL1: what EL0 may do. TTBR1_EL1, TCR_EL1 and MAIR_EL1 translate this code: EPD0, and a type not in use. */
	{ ONE(3, 0, 1, 0, 0), .writes = BIT(15) | BIT(26) },
	/* CPACR_EL1: FPCR and FPSR stay open to this code, and closed to EL0. */
	{ ONE(3, 0, 1, 0, 2), .writes = BIT(21) },
	{ ONE(3, 0, 2, 0, 1) },
	{ ONE(3, 0, 2, 0, 2), .writes = BIT(7) },
	{ ONE(3, 0, 10, 2, 0), .writes = 0x44ull << 56 },
	/* ICC_SRE_EL1 clear takes the others of its kind away; fpu_check tries it. */
	{ ONE(3, 0, 12, 12, 5) },
	/* ICC_BPR0_EL1 and ICC_BPR1_EL1: less than the least that there is becomes the least, at one time or another. */
	{ ONE(3, 0, 12, 8, 3), .writes = BIT(2) },
	{ ONE(3, 0, 12, 12, 3), .writes = BIT(2) },
};

asm(".pushsection .text, \"ax\"\n"
    ".balign 2048\n"
    "register_sweep_vectors:\n"
    ".rept 4\n"
    "b .\n"
    ".balign 128\n"
    ".endr\n"
    /* Synchronous, from this level with its own stack pointer. */
    "mov x1, #1\n"
    "mrs x2, elr_el1\n"
    "add x2, x2, #4\n"
    "msr elr_el1, x2\n"
    "eret\n"
    ".balign 128\n"
    ".rept 11\n"
    "b .\n"
    ".balign 128\n"
    ".endr\n"
    "register_sweep_reads:\n"
    ".set encoding, 0\n"
    ".rept 32768\n"
    ".inst 0xd5300000 | (encoding << 5)\n"
    "ret\n"
    ".set encoding, encoding + 1\n"
    ".endr\n"
    "register_sweep_writes:\n"
    ".set encoding, 0\n"
    ".rept 32768\n"
    ".inst 0xd5100000 | (encoding << 5)\n"
    "ret\n"
    ".set encoding, encoding + 1\n"
    ".endr\n"
    ".popsection\n");
extern const char register_sweep_vectors[], register_sweep_reads[], register_sweep_writes[];

static u64 sweep_daif, sweep_vbar;

static unsigned int sweep_count(void)
{
	return ENCODINGS;
}

static u32 sweep_id(unsigned int n)
{
	return n;
}

static __always_inline void sweep_begin(void)
{
	sweep_daif = read_sysreg(daif);
	asm volatile("msr daifset, #15" : : : "memory");
	sweep_vbar = read_sysreg(vbar_el1);
	write_sysreg((u64)register_sweep_vectors, vbar_el1);
	isb();
}

static __always_inline void sweep_end(void)
{
	write_sysreg(sweep_vbar, vbar_el1);
	isb();
	asm volatile("msr daif, %0" : : "r"(sweep_daif) : "memory");
}

static __always_inline u64 sweep_now(void)
{
	isb();
	return read_sysreg(cntvct_el0);
}

static __always_inline u64 sweep_per_ms(void)
{
	return read_sysreg(cntfrq_el0) / 1000;
}

/* One of the instructions, with the value in X0; X1 says that it was undefined. */
static __always_inline bool stub(const char *stubs, u32 id, u64 *value)
{
	register u64 x0 asm("x0") = *value;
	register u64 x1 asm("x1") = 0;

	asm volatile("blr %2" : "+r"(x0), "+r"(x1) : "r"(stubs + id * STUB_BYTES) : "x2", "x30", "cc", "memory");
	*value = x0;
	return !x1;
}

static __always_inline bool sweep_read(u32 id, u64 *value)
{
	return stub(register_sweep_reads, id, value);
}

static __always_inline bool sweep_write(u32 id, u64 value)
{
	bool done = stub(register_sweep_writes, id, &value);

	isb();
	return done;
}
