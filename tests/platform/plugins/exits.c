// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * exits: counts the instructions that a hypervisor runs between #VMEXIT and VMRUN, per virtual CPU.
 *
 * The count is free of time: it is the same on a slow and on a fast host. Everything a processor executes is counted;
 * VMRUN says where the hypervisor's share ends, and the instruction behind it, where #VMEXIT continues, says where it
 * starts again. Code under test asks for the count by executing a marker, a no-operation with a number in it
 * (NOP DWORD PTR [RAX + disp32], bytes 0f 1f 80 and the number): each writes a line
 *
 *   marker NUMBER vcpu V hypervisor N total T
 *
 * to QEMU's log of plugins (-d plugin -D FILE). Numbers outside 0x50410000..0x5041ffff are no markers.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <glib.h>
#include "qemu-plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

struct counts {
	uint64_t total;
	uint64_t hypervisor;
	/* total when the hypervisor was last entered; it counts as entered at reset. */
	uint64_t entered;
	/* Whether a guest runs now. */
	uint64_t guest;
};

static struct qemu_plugin_scoreboard *scoreboard;
static qemu_plugin_u64 total;

/* Where #VMEXIT continues: addresses behind every VMRUN that was translated. */
static GHashTable *resume_points;
static GMutex resume_lock;

static const uint8_t VMRUN[] = { 0x0f, 0x01, 0xd8 };
static const uint8_t MARKER[] = { 0x0f, 0x1f, 0x80 };
#define MARKER_SIZE 7
#define MARKER_SPACE 0x5041u

static void enter_guest(unsigned int vcpu, void *unused)
{
	struct counts *counts = qemu_plugin_scoreboard_find(scoreboard, vcpu);

	if (!counts->guest)
		counts->hypervisor += counts->total - counts->entered;
	counts->guest = 1;
}

static void leave_guest(unsigned int vcpu, void *unused)
{
	struct counts *counts = qemu_plugin_scoreboard_find(scoreboard, vcpu);

	if (counts->guest)
		counts->entered = counts->total;
	counts->guest = 0;
}

static void report(unsigned int vcpu, void *number)
{
	struct counts *counts = qemu_plugin_scoreboard_find(scoreboard, vcpu);
	char line[128];

	snprintf(line, sizeof(line), "marker %" PRIxPTR " vcpu %u hypervisor %" PRIu64 " total %" PRIu64 "\n",
		 (uintptr_t)number, vcpu, counts->hypervisor, counts->total);
	qemu_plugin_outs(line);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);
		uint8_t bytes[MARKER_SIZE] = { 0 };
		size_t size = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));

		g_mutex_lock(&resume_lock);
		if (g_hash_table_contains(resume_points, &address))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, leave_guest, QEMU_PLUGIN_CB_NO_REGS, NULL);
		if (size == sizeof(VMRUN) && memcmp(bytes, VMRUN, sizeof(VMRUN)) == 0) {
			uint64_t *resume = g_new(uint64_t, 1);

			*resume = address + sizeof(VMRUN);
			g_hash_table_add(resume_points, resume);
			qemu_plugin_register_vcpu_insn_exec_cb(insn, enter_guest, QEMU_PLUGIN_CB_NO_REGS, NULL);
		}
		g_mutex_unlock(&resume_lock);
		if (size == MARKER_SIZE && memcmp(bytes, MARKER, sizeof(MARKER)) == 0) {
			uint32_t number;

			memcpy(&number, bytes + sizeof(MARKER), sizeof(number));
			if (number >> 16 == MARKER_SPACE)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, report, QEMU_PLUGIN_CB_NO_REGS,
								       (void *)(uintptr_t)number);
		}
		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, QEMU_PLUGIN_INLINE_ADD_U64, total, 1);
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	scoreboard = qemu_plugin_scoreboard_new(sizeof(struct counts));
	total = qemu_plugin_scoreboard_u64_in_struct(scoreboard, struct counts, total);
	resume_points = g_hash_table_new(g_int64_hash, g_int64_equal);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
