// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * writes: tells of every instruction that changes the processor's own state, or reaches a device by an I/O port.
 *
 *   x86-64   WRMSR, XSETBV, MOV to a control or debug register, CLTS, LMSW, LGDT, LIDT, LLDT, LTR, INVLPG, INVD, WBINVD,
 *            CLI, STI, HLT, OUT and OUTS
 *   Arm      MSR to a system register or to PSTATE, SYS (caches, TLBs, address translation), HVC, SMC
 *
 * Stores to the registers of a device are no instructions of their own: for these there is QEMU's trace event
 * memory_region_ops_write, which goes to the same log.
 *
 * Each time one is executed, a line
 *
 *   changes at ADDRESS
 *
 * goes to QEMU's log of plugins (-d plugin -D FILE), with its virtual address.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <glib.h>
#include "qemu-plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

static void executed(unsigned int vcpu, void *address)
{
	char line[64];

	snprintf(line, sizeof(line), "changes at %" PRIxPTR "\n", (uintptr_t)address);
	qemu_plugin_outs(line);
}

static bool is_prefix(uint8_t byte)
{
	switch (byte) {
	case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67:
	case 0xf0: case 0xf2: case 0xf3:
		return true;
	default:
		/* REX. */
		return byte >> 4 == 4;
	}
}

static bool x86_64_changes(const uint8_t *bytes, size_t size)
{
	uint8_t modrm, extension;
	bool memory;

	while (size > 0 && is_prefix(*bytes)) {
		bytes++;
		size--;
	}
	if (size == 0)
		return false;
	switch (bytes[0]) {
	case 0x6e: case 0x6f:
	case 0xe6: case 0xe7: case 0xee: case 0xef:
	case 0xf4: case 0xfa: case 0xfb:
		return true;
	case 0x0f:
		break;
	default:
		return false;
	}
	modrm = size > 2 ? bytes[2] : 0;
	extension = modrm >> 3 & 7;
	memory = modrm >> 6 != 3;
	switch (size > 1 ? bytes[1] : 0) {
	case 0x06: case 0x08: case 0x09: case 0x22: case 0x23: case 0x30:
		return true;
	case 0x00:
		return extension == 2 || extension == 3;
	case 0x01:
		return extension == 6 || (memory && (extension == 2 || extension == 3 || extension == 7)) || modrm == 0xd1;
	default:
		return false;
	}
}

static bool aarch64_changes(const uint8_t *bytes, size_t size)
{
	uint32_t word;

	if (size != sizeof(word))
		return false;
	memcpy(&word, bytes, sizeof(word));
	word = GUINT32_FROM_LE(word);
	return (word & 0xfff00000u) == 0xd5100000u || /* MSR (register) */
	       (word & 0xfff8f01fu) == 0xd500401fu || /* MSR (immediate) */
	       (word & 0xfff80000u) == 0xd5080000u || /* SYS */
	       (word & 0xffe0001fu) == 0xd4000002u || /* HVC */
	       (word & 0xffe0001fu) == 0xd4000003u;   /* SMC */
}

static bool (*changes)(const uint8_t *bytes, size_t size);

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[16] = { 0 };
		size_t size = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));

		if (changes(bytes, size))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executed, QEMU_PLUGIN_CB_NO_REGS,
							       (void *)(uintptr_t)qemu_plugin_insn_vaddr(insn));
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	if (strcmp(info->target_name, "x86_64") == 0) {
		changes = x86_64_changes;
	} else if (strcmp(info->target_name, "aarch64") == 0) {
		changes = aarch64_changes;
	} else {
		fprintf(stderr, "writes: no such target: %s\n", info->target_name);
		return 1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
