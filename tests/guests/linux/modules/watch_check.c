// SPDX-License-Identifier: MIT OR GPL-2.0-or-later
/*
 * watch_check: whether a hardware watchpoint fires as often as it is to, and nobody else's.
 *
 * Runs once, when it is loaded, and prints
 *
 *   watch_check: writes=N hits=H quiet=Q
 *
 * It writes N times to a word with a watchpoint on it, and as often to the word beside it. H counts what fired, Q what
 * fired during the second half.
 */
#include <linux/hw_breakpoint.h>
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

static void write_to(volatile u64 *word)
{
	unsigned int i;

	for (i = 0; i < writes; i++) {
		*word = i;
		cond_resched();
	}
}

static int __init watch_check_init(void)
{
	struct perf_event * __percpu *events;
	struct perf_event_attr attr;
	struct perf_event *event;
	u64 watched, quiet;

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)&words[0];
	attr.bp_len = HW_BREAKPOINT_LEN_8;
	attr.bp_type = HW_BREAKPOINT_W;
	events = register_wide_hw_breakpoint(&attr, NULL, NULL);
	if (IS_ERR((void __force *)events))
		return PTR_ERR((void __force *)events);
	event = *per_cpu_ptr(events, 0);
	write_to(&words[0]);
	watched = hits(event);
	write_to(&words[1]);
	quiet = hits(event) - watched;
	unregister_wide_hw_breakpoint(events);
	pr_info("watch_check: writes=%u hits=%llu quiet=%llu\n", writes, watched, quiet);
	return 0;
}

static void __exit watch_check_exit(void)
{
}

module_init(watch_check_init);
module_exit(watch_check_exit);
MODULE_DESCRIPTION("Whether hardware watchpoints fire");
MODULE_LICENSE("Dual MIT/GPL");
