/*
 * Self-test of the SMMUv3 model: entry, and exceptions, which are failures but
 * where el1.S waits for them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
    .section .text.start, "ax"
    .global _start
_start:
    ldr     x0, =stack_top
    mov     sp, x0
    ldr     x0, =vectors
    msr     vbar_el2, x0
    isb
    bl      main
    /* PSCI SYSTEM_OFF; firmware's calls go through SMC at EL2 */
    movz    w0, #0x8400, lsl #16
    movk    w0, #0x0008
    smc     #0
1:  wfi
    b       1b

    .balign 2048
vectors:
    .irp    to, unexpected, unexpected, unexpected, unexpected, \
                el2_exception, unexpected, unexpected, unexpected, \
                el1_exit, unexpected, unexpected, unexpected, \
                unexpected, unexpected, unexpected, unexpected
    .balign 128
    b       \to
    .endr

/* Ends the test. */
    .global unexpected
unexpected:
    mrs     x0, esr_el2
    mrs     x1, elr_el2
    mrs     x2, far_el2
    b       exception

    .section .bss
    .balign 16
    .skip   16384
stack_top:
