/*
 * Self-test of the DSA model: drives the device from Linux user space with no
 * driver bound, and checks registers, commands, descriptors, interrupts and
 * PASID-tagged DMA against the specification.
 *
 * Runs as root in a Linux guest booted with
 *   intel_iommu=off intremap=off iomem=relaxed hugepages=8
 * and with no driver on the device: the program owns it, and for the PASID
 * tests also VT-d, which it drives itself through /dev/mem. Shared queues are
 * tried on a processor with ENQCMD, and want msr.ko. MSI-X entries are aimed at
 * memory, so that an interrupt is a value that can be read; those of Interrupt
 * Message Storage are remapped by VT-d into memory.
 *
 *   gcc -O2 -Wall -static -o dsa-selftest *.c
 *
 *   dsa-selftest MODE...   modes: basic posted latency hang
 *                            no-ims pasid ims shared shared-latency fuzz
 *
 * basic, pasid, ims, shared and fuzz want the device property
 * posted-writes=off, latency and shared-latency want latency-ns=100000000, hang
 * wants drain-hang=on, no-ims wants ims-size=0, those from pasid on want an
 * intel-iommu with x-scalable-mode=on,x-pasid-mode=on,intremap=on and
 * x-posted-interrupts=on. Prints one line per
 * failed check and ends in "dsa-selftest: N checks, M failed"; exit status 0
 * only if M is 0.
 *
 * Source: Intel DSA Architecture Specification, 341204.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "selftest.h"

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    map_device();
    map_memory();
    cfg_write(PCI_COMMAND, 6, 2);
    save_bars();
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "basic")) {
            test_registers();
            test_ims_registers();
            test_commands();
            restore_bars();
            test_operations();
            test_bad_descriptors();
            test_batch();
            test_interrupts();
        } else if (!strcmp(argv[i], "posted")) {
            test_posted_writes();
        } else if (!strcmp(argv[i], "latency")) {
            test_latency();
        } else if (!strcmp(argv[i], "hang")) {
            test_hang();
        } else if (!strcmp(argv[i], "no-ims")) {
            test_no_ims();
        } else if (!strcmp(argv[i], "pasid")) {
            test_pasid();
        } else if (!strcmp(argv[i], "ims")) {
            test_ims();
        } else if (!strcmp(argv[i], "shared")) {
            test_shared();
        } else if (!strcmp(argv[i], "shared-latency")) {
            test_shared_latency();
        } else if (!strcmp(argv[i], "fuzz")) {
            test_fuzz();
        } else {
            printf("dsa-selftest: no mode %s\n", argv[i]);
            return 2;
        }
    }
    printf("dsa-selftest: %u checks, %u failed\n", checks, failed);
    return failed || !checks;
}
