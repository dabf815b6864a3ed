// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * register_sweep: whether a guest finds in a register what another guest on the same processor left there.
 *
 * Parameter role:
 *
 * write  gives every register that it can change another value, all at once and with interrupts off, holds them for
 *        longer than two turns, looks whether they are still so, restores them, and does it again, `rounds` times. Then
 *
 *          register_sweep: role=write registers=N written=W rounds=R gaps=G lost=L
 *
 * read   reads every register that it can, before anybody else began. `registers` then says how many; it goes on
 *        reading for as long as nobody writes to `stop`, which waits for the end and
 *
 *          register_sweep: role=read registers=N leaked=L rounds=R gaps=G
 *
 * Which registers there are is not known beforehand: every number is tried. Those with a rule, in the file for the
 * architecture, are treated in another way, for the reason given there. The registers of floating point and vectors are
 * those of fpu_check. G counts the rounds in which somebody else had the processor for longer than an interrupt takes.
 */
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>

/* Two turns of the scheduler and a half. */
#define ROUND_MS 25
#define GAP_MS 5
#define MOST_REGISTERS 2048
#define MOST_REPORTED 8
#define NO_CANARY __attribute__((no_stack_protector))

/* How the registers from `first` to `last` differ from all others. */
struct rule {
	u32 first;
	u32 last;
	/* Not even read. */
	bool skip;
	/* This guest's kernel changes it, when interrupts are on. */
	bool kernel;
	/* Bits that change by themselves. */
	u64 moves;
	/* Bits that can be changed without an end of this guest. */
	u64 writes;
};

#ifdef CONFIG_X86
#include "register_sweep_x86.h"
#else
#include "register_sweep_arm.h"
#endif

struct reg {
	u32 id;
	const struct rule *rule;
	/* What it holds for this guest. */
	u64 value;
	u64 found;
	/* What the writer gives it: these bits changed, or, without such, `pattern`. */
	bool writable;
	u64 toggle;
	u64 pattern;
};

static const struct rule ordinary = { .writes = ~0ull };
static const u64 patterns[] = { 0xa5a5a5a5a5a5a5a5ull, 0x00005a5a5a5a5a50ull, 0x5a5a5a5a };

static struct reg *regs;
static unsigned int changed;

static char *role = "read";
module_param(role, charp, 0444);
static unsigned int rounds = 60;
module_param(rounds, uint, 0444);
static unsigned int registers;
module_param(registers, uint, 0444);

static bool stopping;
static DECLARE_COMPLETION(done);

static int stop(const char *text, const struct kernel_param *param)
{
	WRITE_ONCE(stopping, true);
	return wait_for_completion_interruptible(&done);
}

static const struct kernel_param_ops stop_ops = { .set = stop };
module_param_cb(stop, &stop_ops, NULL, 0200);

static const struct rule *rule_of(u32 id)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(rules); i++)
		if (id >= rules[i].first && id <= rules[i].last)
			return &rules[i];
	return &ordinary;
}

static int find(void)
{
	unsigned int n, count = 0;

	for (n = 0; n < sweep_count(); n++) {
		u32 id = sweep_id(n);
		struct reg reg = { .id = id, .rule = rule_of(id) };
		bool there;

		if (reg.rule->skip)
			continue;
		sweep_begin();
		there = sweep_read(id, &reg.value);
		sweep_end();
		if (there && count == MOST_REGISTERS)
			return -E2BIG;
		if (there)
			regs[count++] = reg;
		if (n % 64 == 0)
			cond_resched();
	}
	return count;
}

/* Whether the register shows it when it is given that value; afterwards it has its own again. */
static NO_CANARY bool takes(struct reg *reg, u64 value)
{
	u64 before = 0, found = 0;
	bool taken = false;

	sweep_begin();
	if (sweep_read(reg->id, &before) && value != before && sweep_write(reg->id, value)) {
		taken = sweep_read(reg->id, &found) && (found ^ before) & ~reg->rule->moves;
		sweep_write(reg->id, before);
	}
	sweep_end();
	return taken;
}

/* Finds out how the register can be changed. */
static void probe(struct reg *reg)
{
	u64 writes = reg->rule->writes;
	unsigned int i;

	for (i = 0; writes == ~0ull && i < ARRAY_SIZE(patterns); i++) {
		reg->pattern = patterns[i];
		if (takes(reg, reg->pattern)) {
			reg->writable = true;
			return;
		}
	}
	for (i = 64; i-- > 0;) {
		reg->toggle = writes == ~0ull ? BIT_ULL(i) : writes;
		if (reg->toggle & writes && takes(reg, reg->value ^ reg->toggle)) {
			reg->writable = true;
			return;
		}
		if (writes != ~0ull)
			return;
	}
}

/* Stays here for longer than two turns; tells whether somebody else had one. */
static NO_CANARY bool spin(void)
{
	u64 start = sweep_now(), last = start, this;
	bool gap = false;

	do {
		this = sweep_now();
		gap |= this - last > sweep_per_ms() * GAP_MS;
		last = this;
	} while (this - start < sweep_per_ms() * ROUND_MS);
	return gap;
}

/* From the first write to the last nothing of the kernel's may run, which relies on some of them. */
static NO_CANARY bool hold(void)
{
	unsigned int i;
	bool gap;
	u64 after;

	sweep_begin();
	for (i = 0; i < registers; i++)
		if (regs[i].writable)
			sweep_read(regs[i].id, &regs[i].value);
	for (i = 0; i < registers; i++)
		if (regs[i].writable)
			sweep_write(regs[i].id, regs[i].toggle ? regs[i].value ^ regs[i].toggle : regs[i].pattern);
	for (i = 0; i < registers; i++)
		if (regs[i].writable)
			sweep_read(regs[i].id, &regs[i].found);
	gap = spin();
	for (i = 0; i < registers; i++) {
		if (!regs[i].writable || !sweep_read(regs[i].id, &after))
			continue;
		regs[i].found = (regs[i].found ^ after) & ~regs[i].rule->moves;
	}
	for (i = registers; i-- > 0;)
		if (regs[i].writable)
			sweep_write(regs[i].id, regs[i].value);
	sweep_end();
	return gap;
}

/* What is still there of what this guest had. */
static NO_CANARY bool look(void)
{
	unsigned int i;
	bool gap;

	sweep_begin();
	for (i = 0; i < registers; i++)
		if (regs[i].rule->kernel)
			sweep_read(regs[i].id, &regs[i].value);
	gap = spin();
	for (i = 0; i < registers; i++) {
		if (!sweep_read(regs[i].id, &regs[i].found))
			regs[i].found = ~regs[i].value;
		regs[i].found = (regs[i].found ^ regs[i].value) & ~regs[i].rule->moves;
	}
	sweep_end();
	return gap;
}

/* Names the first registers that are not as they should be. */
static void judge(void)
{
	unsigned int i;

	for (i = 0; i < registers; i++) {
		if (!regs[i].found)
			continue;
		if (changed++ < MOST_REPORTED)
			pr_err("register_sweep: %x: other bits than %llx by %llx\n", regs[i].id, regs[i].value,
			       regs[i].found);
		regs[i].found = 0;
	}
}

static void write_all(void)
{
	unsigned int i, written = 0, round, gaps = 0;

	for (i = 0; i < registers; i++) {
		probe(&regs[i]);
		written += regs[i].writable;
		cond_resched();
	}
	for (round = 0; round < rounds; round++) {
		gaps += hold();
		judge();
		cond_resched();
	}
	pr_info("register_sweep: role=write registers=%u written=%u rounds=%u gaps=%u lost=%u\n", registers, written,
		rounds, gaps, changed);
}

static void read_all(void)
{
	unsigned int round, gaps = 0;

	for (round = 0; !READ_ONCE(stopping); round++) {
		gaps += look();
		judge();
		cond_resched();
	}
	pr_info("register_sweep: role=read registers=%u leaked=%u rounds=%u gaps=%u\n", registers, changed, round, gaps);
	complete_all(&done);
}

static int __init register_sweep_init(void)
{
	int found;

	regs = kvcalloc(MOST_REGISTERS, sizeof(*regs), GFP_KERNEL);
	if (!regs)
		return -ENOMEM;
	found = find();
	if (found < 0) {
		kvfree(regs);
		return found;
	}
	WRITE_ONCE(registers, found);
	if (strcmp(role, "write"))
		read_all();
	else
		write_all();
	kvfree(regs);
	return 0;
}

static void __exit register_sweep_exit(void)
{
}

module_init(register_sweep_init);
module_exit(register_sweep_exit);
MODULE_DESCRIPTION("Whether registers stay the guest's own");
MODULE_LICENSE("Dual MIT/GPL");
