// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * exits: counts the instructions that a hypervisor runs between an exit and the next entry, per virtual CPU.
 *
 * The count is free of time: it is the same on a slow and on a fast host. Everything a processor executes is counted;
 * where the hypervisor's share ends and starts again is known from the processor:
 *
 *   x86-64   VMRUN ends it; the instruction behind it, where #VMEXIT continues, starts it.
 *   Arm      ERET ends it, unless it returns from an exception that the hypervisor itself met; the vectors of
 *            VBAR_EL2 for exceptions from a lower exception level start it, and those for exceptions from the same
 *            level say that one was met. A guest's ERET is none of these, since then a guest runs already. A guest's
 *            own code at the virtual address of a vector would be mistaken for it.
 *
 * Code under test asks for the count by executing a marker, a no-operation with a number in it:
 *
 *   x86-64   NOP DWORD PTR [RAX + disp32] (bytes 0f 1f 80 and the number) with a number 0x5041NNNN
 *   Arm      MOVK XZR, #0xNNNN, LSL #48
 *
 * Each writes a line
 *
 *   marker 5041NNNN vcpu V hypervisor N total T
 *
 * to QEMU's log of plugins (-d plugin -D FILE).
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <glib.h>
#include "qemu-plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

#define MARKER_SPACE 0x5041u

struct counts {
	uint64_t total;
	uint64_t hypervisor;
	/* total when the hypervisor was last entered; it counts as entered at reset. */
	uint64_t entered;
	/* Whether a guest runs now. */
	uint64_t guest;
	/* Exceptions that the hypervisor met and has not returned from. */
	uint64_t nested;
};

static struct qemu_plugin_scoreboard *scoreboard;
static qemu_plugin_u64 total;

/* Addresses: behind every VMRUN that was translated; every value that VBAR_EL2 had. */
static GHashTable *known;
static GMutex known_lock;

static void remember(uint64_t address)
{
	uint64_t *key = g_new(uint64_t, 1);

	*key = address;
	g_mutex_lock(&known_lock);
	g_hash_table_add(known, key);
	g_mutex_unlock(&known_lock);
}

static bool is_known(uint64_t address)
{
	bool found;

	g_mutex_lock(&known_lock);
	found = g_hash_table_contains(known, &address);
	g_mutex_unlock(&known_lock);
	return found;
}

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

static void call(struct qemu_plugin_insn *insn, qemu_plugin_vcpu_udata_cb_t function, uintptr_t argument)
{
	qemu_plugin_register_vcpu_insn_exec_cb(insn, function, QEMU_PLUGIN_CB_NO_REGS, (void *)argument);
}

static const uint8_t VMRUN[] = { 0x0f, 0x01, 0xd8 };
static const uint8_t X86_MARKER[] = { 0x0f, 0x1f, 0x80 };
#define X86_MARKER_SIZE 7

static void x86_64(struct qemu_plugin_insn *insn)
{
	uint64_t address = qemu_plugin_insn_vaddr(insn);
	uint8_t bytes[X86_MARKER_SIZE] = { 0 };
	size_t size = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));

	if (is_known(address))
		call(insn, leave_guest, 0);
	if (size == sizeof(VMRUN) && memcmp(bytes, VMRUN, sizeof(VMRUN)) == 0) {
		remember(address + sizeof(VMRUN));
		call(insn, enter_guest, 0);
	}
	if (size == X86_MARKER_SIZE && memcmp(bytes, X86_MARKER, sizeof(X86_MARKER)) == 0) {
		uint32_t number;

		memcpy(&number, bytes + sizeof(X86_MARKER), sizeof(number));
		if (number >> 16 == MARKER_SPACE)
			call(insn, report, number);
	}
}

/* Instructions, with the fields that may differ masked out. */
#define ERET 0xd69f03e0u
#define MSR_VBAR_EL2 0xd51cc000u
#define MSR_REGISTER 0x1fu
#define ARM_MARKER 0xf2e0001fu
#define ARM_MARKER_NUMBER 0x001fffe0u
#define ARM_MARKER_SHIFT 5
/* The vectors: sixteen of 128 bytes, the first eight for exceptions from the same level. */
#define VECTORS_SIZE 0x800u
#define VECTOR_SIZE 0x80u
#define FROM_LOWER_LEVEL 0x400u
/* XZR, which is no register that could be read. */
#define ZERO_REGISTER 31

/* X0 to X30 by name, found when the first processor comes up; they are the same for all. */
static struct qemu_plugin_register *general[ZERO_REGISTER];

static void find_registers(qemu_plugin_id_t id, unsigned int vcpu)
{
	GArray *registers = qemu_plugin_get_registers();

	for (guint i = 0; i < registers->len; i++) {
		qemu_plugin_reg_descriptor *one = &g_array_index(registers, qemu_plugin_reg_descriptor, i);
		unsigned int number;
		char rest;

		if (sscanf(one->name, "x%u%c", &number, &rest) == 1 && number < ZERO_REGISTER)
			general[number] = one->handle;
	}
	g_array_free(registers, true);
}

static void new_vectors(unsigned int vcpu, void *number)
{
	struct qemu_plugin_register *handle = general[(uintptr_t)number];
	GByteArray *bytes = g_byte_array_new();
	uint64_t address;

	if (handle && qemu_plugin_read_register(handle, bytes) == sizeof(address)) {
		memcpy(&address, bytes->data, sizeof(address));
		address = GUINT64_FROM_LE(address) & ~(uint64_t)(VECTORS_SIZE - 1);
		if (!is_known(address))
			remember(address);
	}
	g_byte_array_free(bytes, true);
}

static void met_exception(unsigned int vcpu, void *unused)
{
	struct counts *counts = qemu_plugin_scoreboard_find(scoreboard, vcpu);

	counts->nested += !counts->guest;
}

static void returned(unsigned int vcpu, void *unused)
{
	struct counts *counts = qemu_plugin_scoreboard_find(scoreboard, vcpu);

	if (!counts->guest && counts->nested)
		counts->nested--;
	else
		enter_guest(vcpu, NULL);
}

static void aarch64(struct qemu_plugin_insn *insn)
{
	uint64_t address = qemu_plugin_insn_vaddr(insn);
	uint64_t within = address & (VECTORS_SIZE - 1);
	uint32_t word = 0;

	if (qemu_plugin_insn_data(insn, &word, sizeof(word)) != sizeof(word))
		return;
	word = GUINT32_FROM_LE(word);
	if (within % VECTOR_SIZE == 0 && is_known(address - within))
		call(insn, within >= FROM_LOWER_LEVEL ? leave_guest : met_exception, 0);
	if (word == ERET)
		call(insn, returned, 0);
	if ((word & ~MSR_REGISTER) == MSR_VBAR_EL2 && (word & MSR_REGISTER) != ZERO_REGISTER)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, new_vectors, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)(word & MSR_REGISTER));
	if ((word & ~ARM_MARKER_NUMBER) == ARM_MARKER)
		call(insn, report, MARKER_SPACE << 16 | (word & ARM_MARKER_NUMBER) >> ARM_MARKER_SHIFT);
}

static void (*look)(struct qemu_plugin_insn *insn);

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		look(insn);
		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, QEMU_PLUGIN_INLINE_ADD_U64, total, 1);
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	if (strcmp(info->target_name, "x86_64") == 0) {
		look = x86_64;
	} else if (strcmp(info->target_name, "aarch64") == 0) {
		look = aarch64;
		qemu_plugin_register_vcpu_init_cb(id, find_registers);
	} else {
		fprintf(stderr, "exits: the plugin does not know what an exit is on %s\n", info->target_name);
		return -1;
	}
	scoreboard = qemu_plugin_scoreboard_new(sizeof(struct counts));
	total = qemu_plugin_scoreboard_u64_in_struct(scoreboard, struct counts, total);
	known = g_hash_table_new(g_int64_hash, g_int64_equal);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
