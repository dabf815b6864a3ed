/*
 * Self-test of the PC: a program without operating system that runs guests of
 * a few instructions, on a processor with SVM, and compares their exits with
 * the AMD64 Architecture Programmer's Manual, Volume 2, Chapter 15, enqueue
 * stores with Intel's manual, and interrupt remapping with Intel's
 * specification of VT-d.
 *
 *   gcc -O2 -Wall -ffreestanding -nostdlib -static -no-pie -mno-red-zone \
 *       -mgeneral-regs-only -T link.ld -o pc-selftest *.c *.S
 *   qemu-system-x86_64 -M q35 -cpu max -m 2G -nodefaults -nographic \
 *       -no-reboot -serial stdio -monitor unix:monitor,server,nowait \
 *       -device intel-iommu,intremap=on,eim=on,x-posted-interrupts=on \
 *       -kernel pc-selftest -device dsa,addr=4
 *
 * Prints one line per failed check, ends in "pc-selftest: N checks, M
 * failed", and resets the machine. Where it asks for a machine check, the
 * command "mce 0 1 0xb000000000000000 1 0 0" in QEMU's monitor makes one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

int main(void)
{
    exceptions_start();
    if (has_guests()) {
        guest_start();
        test_intercepts();
        test_faults_of_memory();
        test_faults_of_registers();
        test_host_efer();
        test_priority();
        test_vmrun();
        test_translations();
        test_machine_check();
    }
    test_enqueue();
    test_remapping();
    summary();
    return 0;
}
