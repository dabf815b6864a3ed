/*
 * Self-test of the Arm machine: instructions for EL1, and the way there and
 * back.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
    .text
/* uint64_t el1_enter(void (*code)(void), uint64_t x0) */
    .global el1_enter
el1_enter:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    ldr     x9, =el2_sp
    mov     x10, sp
    str     x10, [x9]
    ldr     x9, =el1_vectors
    msr     vbar_el1, x9
    msr     elr_el2, x0
    mov     x9, #0x3c5              /* EL1h, everything masked */
    msr     spsr_el2, x9
    mov     x0, x1
    eret

/* From EL1, whatever the reason: back to the caller, with ESR_EL2. */
    .global el1_exit
el1_exit:
    ldr     x9, =el1_x0
    str     x0, [x9]
    ldr     x9, =el2_sp
    ldr     x9, [x9]
    mov     sp, x9
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    mrs     x0, esr_el2
    ret

/* What EL1 does: with X0 as it came, HVC #0 at the end */
    .macro  el1_code name, instruction:vararg
    .global \name
\name:
    \instruction
    isb
    hvc     #0
    .endm
    el1_code el1_read_sre, mrs x0, S3_0_C12_C12_5
    el1_code el1_write_sre, msr S3_0_C12_C12_5, x0
    el1_code el1_read_pmr, mrs x0, S3_0_C4_C6_0
    el1_code el1_load, ldr x0, [x0]

/* uint64_t at_s1e1r(uint64_t address): ESR_EL2 of the exception, or 0 */
    .global at_s1e1r
at_s1e1r:
    adr     x9, 1f
    ldr     x10, =el2_resume
    str     x9, [x10]
    mov     x9, x0
    mov     x0, #0
    at      s1e1r, x9
    isb
1:  ldr     x10, =el2_resume
    str     xzr, [x10]
    ret

/* From EL2 itself: goes on where somebody waits for it. */
    .global el2_exception
el2_exception:
    ldr     x9, =el2_resume
    ldr     x9, [x9]
    cbz     x9, 1f
    msr     elr_el2, x9
    mrs     x0, esr_el2
    eret
1:  b       unexpected

/* An exception that EL1 takes: HVC #1 */
    .balign 2048
el1_vectors:
    .rept   16
    .balign 128
    hvc     #1
    .endr

    .bss
    .balign 8
el2_sp: .skip 8
el2_resume: .skip 8
    .global el1_x0
el1_x0: .skip 8
