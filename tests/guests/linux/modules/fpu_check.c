// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * fpu_check: whether floating-point and vector registers keep their values while other guests run.
 *
 * Runs once, when it is loaded, and prints
 *
 *   fpu_check: seed=S avx=0|1 rounds=R gaps=G wrong=W
 *
 * Each round fills the x87 stack, MXCSR and the SSE or AVX registers with a pattern made from the seed, computes for
 * longer than two turns without using them, and compares. The kernel itself stays away from them meanwhile
 * (kernel_fpu_begin), so only a hypervisor can change them. G counts the rounds in which somebody else had the
 * processor for longer than an interrupt takes.
 */
#include <linux/module.h>
#include <linux/string.h>
#include <asm/cpufeature.h>
#include <asm/fpu/api.h>
#include <asm/msr.h>
#include <asm/tsc.h>

#define VECTORS 16
#define LANES 4
#define X87_REGISTERS 8
/* Two turns of the scheduler and a half. */
#define ROUND_MS 25
#define GAP_MS 5
#define MXCSR_RESET 0x1f80
#define MXCSR_ROUNDING_SHIFT 13
/* A double of 1 and a bit, so that loading and storing changes nothing. */
#define ONE 0x3ff0000000000000ull

static unsigned int seed = 1;
module_param(seed, uint, 0444);
static unsigned int rounds = 60;
module_param(rounds, uint, 0444);

struct state {
	u64 vector[VECTORS][LANES];
	u64 x87[X87_REGISTERS];
	u32 mxcsr;
};

static struct state set, found;

#define FOR_ALL(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD_YMM(n) asm volatile("vmovdqu %0, %%ymm" #n : : "m"(set.vector[n]));
#define STORE_YMM(n) asm volatile("vmovdqu %%ymm" #n ", %0" : "=m"(found.vector[n]));
#define LOAD_XMM(n) asm volatile("movdqu %0, %%xmm" #n : : "m"(set.vector[n]));
#define STORE_XMM(n) asm volatile("movdqu %%xmm" #n ", %0" : "=m"(found.vector[n]));

static void load(bool avx)
{
	int i;

	asm volatile("fninit");
	for (i = 0; i < X87_REGISTERS; i++)
		asm volatile("fldl %0" : : "m"(set.x87[i]));
	asm volatile("ldmxcsr %0" : : "m"(set.mxcsr));
	if (avx) {
		FOR_ALL(LOAD_YMM)
	} else {
		FOR_ALL(LOAD_XMM)
	}
}

static void store(bool avx)
{
	int i;

	if (avx) {
		FOR_ALL(STORE_YMM)
	} else {
		FOR_ALL(STORE_XMM)
	}
	asm volatile("stmxcsr %0" : "=m"(found.mxcsr));
	for (i = X87_REGISTERS; i-- > 0;)
		asm volatile("fstpl %0" : "=m"(found.x87[i]));
}

/* Whether there was a gap. */
static bool compute(void)
{
	u64 start = rdtsc(), last = start, now;
	bool gap = false;

	do {
		now = rdtsc();
		gap |= now - last > (u64)tsc_khz * GAP_MS;
		last = now;
	} while (now - start < (u64)tsc_khz * ROUND_MS);
	return gap;
}

static int __init fpu_check_init(void)
{
	bool avx = boot_cpu_has(X86_FEATURE_AVX);
	unsigned int round, gaps = 0, wrong = 0;
	int i, lane;

	for (round = 0; round < rounds; round++) {
		memset(&set, 0, sizeof(set));
		for (i = 0; i < VECTORS; i++)
			for (lane = 0; lane < (avx ? LANES : LANES / 2); lane++)
				set.vector[i][lane] = (u64)seed << 32 | round << 16 | i << 8 | lane;
		for (i = 0; i < X87_REGISTERS; i++)
			set.x87[i] = ONE | (u64)seed << 32 | round << 8 | i;
		set.mxcsr = MXCSR_RESET | (seed & 3) << MXCSR_ROUNDING_SHIFT;
		memset(&found, 0, sizeof(found));
		kernel_fpu_begin();
		load(avx);
		gaps += compute();
		store(avx);
		kernel_fpu_end();
		wrong += memcmp(&set, &found, sizeof(set)) != 0;
	}
	pr_info("fpu_check: seed=%u avx=%d rounds=%u gaps=%u wrong=%u\n", seed, avx, rounds, gaps, wrong);
	return 0;
}

static void __exit fpu_check_exit(void)
{
}

module_init(fpu_check_init);
module_exit(fpu_check_exit);
MODULE_DESCRIPTION("Whether floating-point registers stay the guest's own");
MODULE_LICENSE("Dual MIT/GPL");
