/*
 * Self-test of the SMMUv3 model: a program without operating system, at EL2 of
 * the virt machine, that writes stream tables, tables of context descriptors
 * and translation tables, and lets the accelerator make requests with and
 * without PASIDs to see where they arrive. Before that it lets EL1 meet what is
 * strict about the processor (el1.c).
 *
 *   aarch64-linux-gnu-gcc -O2 -Wall -ffreestanding -nostdlib -static -no-pie \
 *       -mgeneral-regs-only -mstrict-align -T link.ld -o smmu-selftest *.c *.S
 *   qemu-system-aarch64 -M virt,virtualization=on,gic-version=3,iommu=smmuv3 \
 *       -cpu neoverse-n1 -m 2G -nodefaults -nographic -serial stdio \
 *       -device dsa,addr=4,portal-merge=on,posted-writes=off,ims-window=0x80000000 \
 *       -kernel smmu-selftest
 *
 * Prints one line per failed check, ends in "smmu-selftest: N checks, M
 * failed", and switches the machine off.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

int main(void)
{
    test_sre();
    test_walks();
    smmu_start();
    dsa_start();
    test_portal();
    test_linear();
    test_two_level();
    test_default_substream();
    test_other_configurations();
    test_nested();
    test_stale_cd();
    test_stale_tables();
    test_stale_ste();
    test_stale_translation();
    test_events();
    test_permissions();
    test_overflow();
    test_bad_stream();
    test_commands();
    test_interrupt();
    test_its();
    test_fuzz();
    summary();
    return 0;
}
