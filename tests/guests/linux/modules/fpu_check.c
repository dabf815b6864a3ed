// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * fpu_check: whether floating-point and vector registers keep their values while other guests run, and
 * on x86 the others that live in the processor only.
 *
 * Runs once, when it is loaded, and prints
 *
 *   fpu_check: seed=S registers=x87+avx|x87+sse|simd rounds=R gaps=G wrong=W
 *
 * Each round fills the registers (on x86 the x87 stack, MXCSR, the SSE or AVX registers, DR0 to DR3 and TSC_AUX; on Arm
 * V0 to V31, FPCR and FPSR, DISR_EL1, and the addresses of a breakpoint and a watchpoint) with a pattern made from the
 * seed, computes for longer than two turns without using them, and compares. The kernel itself stays away from them
 * meanwhile (kernel_fpu_begin, kernel_neon_begin; without RAS it has no use for DISR_EL1, and nobody debugs), so only a
 * hypervisor can change them. G counts the rounds in which somebody else had the processor for longer than an
 * interrupt takes. On Arm each round also asks to leave the GIC's system registers (ICC_SRE_EL1), which must change
 * nothing, neither here nor for others.
 */
#include <linux/module.h>
#include <linux/string.h>
#ifdef CONFIG_X86
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/msr.h>
#include <asm/tsc.h>
#else
#include <asm/arch_timer.h>
#include <asm/neon.h>
#include <asm/sysreg.h>
#endif

/* Two turns of the scheduler and a half. */
#define ROUND_MS 25
#define GAP_MS 5

static unsigned int seed = 1;
module_param(seed, uint, 0444);
static unsigned int rounds = 60;
module_param(rounds, uint, 0444);

#ifdef CONFIG_X86

#define VECTORS 16
#define LANES 4
#define X87_REGISTERS 8
/* Those with addresses; without a bit in DR7 they mean nothing. */
#define DEBUG_REGISTERS 4
#define MXCSR_RESET 0x1f80
#define MXCSR_ROUNDING_SHIFT 13
/* A double of 1 and a bit, so that loading and storing changes nothing. */
#define ONE 0x3ff0000000000000ull

struct state {
	u64 vector[VECTORS][LANES];
	u64 x87[X87_REGISTERS];
	u64 debug[DEBUG_REGISTERS];
	u64 tsc_aux;
	u32 mxcsr;
};

static struct state set, found;
/* What the kernel keeps in TSC_AUX. */
static u64 tsc_aux;

#define FOR_ALL(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD_YMM(n) asm volatile("vmovdqu %0, %%ymm" #n : : "m"(set.vector[n]));
#define STORE_YMM(n) asm volatile("vmovdqu %%ymm" #n ", %0" : "=m"(found.vector[n]));
#define LOAD_XMM(n) asm volatile("movdqu %0, %%xmm" #n : : "m"(set.vector[n]));
#define STORE_XMM(n) asm volatile("movdqu %%xmm" #n ", %0" : "=m"(found.vector[n]));

static bool avx(void)
{
	return boot_cpu_has(X86_FEATURE_AVX);
}

static const char *registers(void)
{
	return avx() ? "x87+avx" : "x87+sse";
}

static void make(unsigned int round)
{
	int i, lane;

	for (i = 0; i < VECTORS; i++)
		for (lane = 0; lane < (avx() ? LANES : LANES / 2); lane++)
			set.vector[i][lane] = (u64)seed << 32 | round << 16 | i << 8 | lane;
	for (i = 0; i < X87_REGISTERS; i++)
		set.x87[i] = ONE | (u64)seed << 32 | round << 8 | i;
	for (i = 0; i < DEBUG_REGISTERS; i++)
		set.debug[i] = (u64)seed << 32 | round << 8 | i;
	set.tsc_aux = boot_cpu_has(X86_FEATURE_RDTSCP) ? seed << 16 | round : 0;
	set.mxcsr = MXCSR_RESET | (seed & 3) << MXCSR_ROUNDING_SHIFT;
}

static void begin(void)
{
	int i;

	kernel_fpu_begin();
	set_debugreg(set.debug[0], 0);
	set_debugreg(set.debug[1], 1);
	set_debugreg(set.debug[2], 2);
	set_debugreg(set.debug[3], 3);
	if (boot_cpu_has(X86_FEATURE_RDTSCP)) {
		rdmsrl(MSR_TSC_AUX, tsc_aux);
		wrmsrl(MSR_TSC_AUX, set.tsc_aux);
	}
	asm volatile("fninit");
	for (i = 0; i < X87_REGISTERS; i++)
		asm volatile("fldl %0" : : "m"(set.x87[i]));
	asm volatile("ldmxcsr %0" : : "m"(set.mxcsr));
	if (avx()) {
		FOR_ALL(LOAD_YMM)
	} else {
		FOR_ALL(LOAD_XMM)
	}
}

static void end(void)
{
	int i;

	if (avx()) {
		FOR_ALL(STORE_YMM)
	} else {
		FOR_ALL(STORE_XMM)
	}
	asm volatile("stmxcsr %0" : "=m"(found.mxcsr));
	for (i = X87_REGISTERS; i-- > 0;)
		asm volatile("fstpl %0" : "=m"(found.x87[i]));
	get_debugreg(found.debug[0], 0);
	get_debugreg(found.debug[1], 1);
	get_debugreg(found.debug[2], 2);
	get_debugreg(found.debug[3], 3);
	if (boot_cpu_has(X86_FEATURE_RDTSCP)) {
		rdmsrl(MSR_TSC_AUX, found.tsc_aux);
		wrmsrl(MSR_TSC_AUX, tsc_aux);
	}
	kernel_fpu_end();
}

static u64 now(void)
{
	return rdtsc();
}

static u64 per_ms(void)
{
	return tsc_khz;
}

#else

#define VECTORS 32
#define LANES 2
#define FPCR_ROUNDING_SHIFT 22
/* Cumulative exception bits, which only floating-point instructions set and none clears. */
#define FPSR_BITS 0x9f

struct state {
	u64 vector[VECTORS][LANES];
	u64 fpcr;
	u64 fpsr;
	u64 disr;
	u64 sre;
	u64 breakpoint;
	u64 watchpoint;
};

static struct state set, found;

#define FOR_ALL(op)										\
	op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)	\
	op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)
#define LOAD(n) asm volatile("ldr q" #n ", %0" : : "Q"(set.vector[n]));
#define STORE(n) asm volatile("str q" #n ", %0" : "=Q"(found.vector[n]));

static const char *registers(void)
{
	return "simd";
}

static void make(unsigned int round)
{
	int i, lane;

	for (i = 0; i < VECTORS; i++)
		for (lane = 0; lane < LANES; lane++)
			set.vector[i][lane] = (u64)seed << 32 | round << 16 | i << 8 | lane;
	set.fpcr = (seed & 3) << FPCR_ROUNDING_SHIFT;
	set.fpsr = (seed + round) & FPSR_BITS;
	/* ISS. */
	set.disr = seed << 16 | round;
	/* SRE, DFB and DIB: as it stays. */
	set.sre = 7;
	set.breakpoint = (u64)seed << 32 | round << 3;
	set.watchpoint = set.breakpoint | 1 << 20;
}

static void begin(void)
{
	kernel_neon_begin();
	write_sysreg(set.fpcr, fpcr);
	write_sysreg(set.fpsr, fpsr);
	FOR_ALL(LOAD)
	write_sysreg_s(set.disr, SYS_DISR_EL1);
	write_sysreg_s(0, SYS_ICC_SRE_EL1);
	write_sysreg(set.breakpoint, dbgbvr1_el1);
	write_sysreg(set.watchpoint, dbgwvr1_el1);
}

static void end(void)
{
	FOR_ALL(STORE)
	found.fpcr = read_sysreg(fpcr);
	found.fpsr = read_sysreg(fpsr);
	found.disr = read_sysreg_s(SYS_DISR_EL1);
	found.sre = read_sysreg_s(SYS_ICC_SRE_EL1);
	found.breakpoint = read_sysreg(dbgbvr1_el1);
	found.watchpoint = read_sysreg(dbgwvr1_el1);
	write_sysreg_s(0, SYS_DISR_EL1);
	kernel_neon_end();
}

static u64 now(void)
{
	return __arch_counter_get_cntvct();
}

static u64 per_ms(void)
{
	return arch_timer_get_cntfrq() / 1000;
}

#endif

/* Whether there was a gap. */
static bool compute(void)
{
	u64 start = now(), last = start, this;
	bool gap = false;

	do {
		this = now();
		gap |= this - last > per_ms() * GAP_MS;
		last = this;
	} while (this - start < per_ms() * ROUND_MS);
	return gap;
}

static int __init fpu_check_init(void)
{
	unsigned int round, gaps = 0, wrong = 0;

	for (round = 0; round < rounds; round++) {
		memset(&set, 0, sizeof(set));
		make(round);
		memset(&found, 0, sizeof(found));
		begin();
		gaps += compute();
		end();
		wrong += memcmp(&set, &found, sizeof(set)) != 0;
	}
	pr_info("fpu_check: seed=%u registers=%s rounds=%u gaps=%u wrong=%u\n", seed, registers(), rounds, gaps, wrong);
	return 0;
}

static void __exit fpu_check_exit(void)
{
}

module_init(fpu_check_init);
module_exit(fpu_check_exit);
MODULE_DESCRIPTION("Whether floating-point registers stay the guest's own");
MODULE_LICENSE("Dual MIT/GPL");
