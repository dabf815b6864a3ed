// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * watch_check: whether a hardware watchpoint fires as often as it is to, and nobody else's.
 *
 * Runs once, when it is loaded, and prints
 *
 *   watch_check: writes=N hits=H open=O quiet=Q
 *
 * It writes N times to a word with a watchpoint on it, with interrupts held off during each write; as often with
 * interrupts open; and as often to the word beside it. H, O and Q count what fired each time.
 */
#include <linux/hw_breakpoint.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/sched.h>

static unsigned int writes = 1000;
module_param(writes, uint, 0444);

static volatile u64 words[2] __aligned(16);

static u64 hits(struct perf_event *event)
{
	u64 enabled, running;

	return perf_event_read_value(event, &enabled, &running);
}

/* Writes to it, with interrupts held off or not, and says how often the event fired. */
static u64 write_to(volatile u64 *word, bool held_off, struct perf_event *event)
{
	u64 before = hits(event);
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < writes; i++) {
		if (held_off) {
			local_irq_save(flags);
			*word = i;
			local_irq_restore(flags);
		} else {
			*word = i;
		}
		cond_resched();
	}
	return hits(event) - before;
}

static int __init watch_check_init(void)
{
	struct perf_event * __percpu *events;
	struct perf_event_attr attr;
	struct perf_event *event;
	u64 watched, open, quiet;

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)&words[0];
	attr.bp_len = HW_BREAKPOINT_LEN_8;
	attr.bp_type = HW_BREAKPOINT_W;
	events = register_wide_hw_breakpoint(&attr, NULL, NULL);
	if (IS_ERR((void __force *)events))
		return PTR_ERR((void __force *)events);
	event = *per_cpu_ptr(events, 0);
	watched = write_to(&words[0], true, event);
	open = write_to(&words[0], false, event);
	quiet = write_to(&words[1], false, event);
	unregister_wide_hw_breakpoint(events);
	pr_info("watch_check: writes=%u hits=%llu open=%llu quiet=%llu\n", writes, watched, open, quiet);
	return 0;
}

static void __exit watch_check_exit(void)
{
}

module_init(watch_check_init);
module_exit(watch_check_exit);
MODULE_DESCRIPTION("Whether hardware watchpoints fire");
MODULE_LICENSE("Dual MIT/GPL");
