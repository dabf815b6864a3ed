// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the guest and back.
//!
//! **Principle.** While a guest runs, VBAR_EL2 leads to a table of its own, so that an exception from the guest
//! costs no question who it came from. On the exception stack (SP_EL2) lies where the hypervisor's state is;
//! nothing else is needed to find back.
//! **Invariants.** All general, SIMD and floating-point registers change hands here, in both directions; the
//! hypervisor's code never sees a guest's. Everything is masked from the moment that the vectors change until they
//! are the hypervisor's again, but for one moment on the way back in which a guest's last SError arrives.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D1.3 (exception entry and return), D1.3.6 (vectors).

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use super::context::Context;
use super::exits::Vector;

/// SPSR_EL2.A: SErrors are masked after the return.
const SPSR_A: u64 = 1 << 8;

// x0: context, x1: the hypervisor's VBAR_EL2. Returns the vector that the guest came back through.
//
// On the hypervisor's stack: x29, x30, x19 to x28, d8 to d15. On the exception stack: x0 and that stack's pointer.
global_asm!(
    ".p2align 2",
    ".globl pasidon_enter",
    "pasidon_enter:",
    "stp x29, x30, [sp, #-176]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "str x1, [sp, #160]",
    "msr daifset, #0xf",
    "mov x9, sp",
    "msr spsel, #1",
    "stp x0, x9, [sp, #-16]!",
    "adrp x9, pasidon_guest_vectors",
    "add x9, x9, :lo12:pasidon_guest_vectors",
    "msr vbar_el2, x9",
    "ldp x9, x10, [x0, #{pc}]",
    "ldr x11, [x0, #{sp_el0}]",
    "ldp x12, x13, [x0, #{fpcr}]",
    "msr elr_el2, x9",
    "msr spsr_el2, x10",
    "msr sp_el0, x11",
    "msr fpcr, x12",
    "msr fpsr, x13",
    "add x9, x0, #{v}",
    "ldp q0, q1, [x9]",
    "ldp q2, q3, [x9, #32]",
    "ldp q4, q5, [x9, #64]",
    "ldp q6, q7, [x9, #96]",
    "ldp q8, q9, [x9, #128]",
    "ldp q10, q11, [x9, #160]",
    "ldp q12, q13, [x9, #192]",
    "ldp q14, q15, [x9, #224]",
    "ldp q16, q17, [x9, #256]",
    "ldp q18, q19, [x9, #288]",
    "ldp q20, q21, [x9, #320]",
    "ldp q22, q23, [x9, #352]",
    "ldp q24, q25, [x9, #384]",
    "ldp q26, q27, [x9, #416]",
    "ldp q28, q29, [x9, #448]",
    "ldp q30, q31, [x9, #480]",
    "ldp x2, x3, [x0, #16]",
    "ldp x4, x5, [x0, #32]",
    "ldp x6, x7, [x0, #48]",
    "ldp x8, x9, [x0, #64]",
    "ldp x10, x11, [x0, #80]",
    "ldp x12, x13, [x0, #96]",
    "ldp x14, x15, [x0, #112]",
    "ldp x16, x17, [x0, #128]",
    "ldp x18, x19, [x0, #144]",
    "ldp x20, x21, [x0, #160]",
    "ldp x22, x23, [x0, #176]",
    "ldp x24, x25, [x0, #192]",
    "ldp x26, x27, [x0, #208]",
    "ldp x28, x29, [x0, #224]",
    "ldr x30, [x0, #240]",
    "ldp x0, x1, [x0]",
    "eret",
    // No instruction behind ERET is executed, not even speculatively.
    "dsb nsh",
    "isb",
    // On the exception stack: the guest's x0 and x1. x1: the vector.
    "pasidon_leave:",
    "ldr x0, [sp, #16]",
    "stp x2, x3, [x0, #16]",
    "stp x4, x5, [x0, #32]",
    "stp x6, x7, [x0, #48]",
    "stp x8, x9, [x0, #64]",
    "stp x10, x11, [x0, #80]",
    "stp x12, x13, [x0, #96]",
    "stp x14, x15, [x0, #112]",
    "stp x16, x17, [x0, #128]",
    "stp x18, x19, [x0, #144]",
    "stp x20, x21, [x0, #160]",
    "stp x22, x23, [x0, #176]",
    "stp x24, x25, [x0, #192]",
    "stp x26, x27, [x0, #208]",
    "stp x28, x29, [x0, #224]",
    "str x30, [x0, #240]",
    "ldp x2, x3, [sp], #16",
    "stp x2, x3, [x0]",
    "mrs x2, sp_el0",
    "mrs x3, elr_el2",
    "mrs x4, spsr_el2",
    "mrs x5, esr_el2",
    "mrs x6, far_el2",
    "mrs x7, hpfar_el2",
    "mrs x8, fpcr",
    "mrs x9, fpsr",
    "str x2, [x0, #{sp_el0}]",
    "stp x3, x4, [x0, #{pc}]",
    "stp x5, x6, [x0, #{esr}]",
    "str x7, [x0, #{hpfar}]",
    "stp x8, x9, [x0, #{fpcr}]",
    "add x9, x0, #{v}",
    "stp q0, q1, [x9]",
    "stp q2, q3, [x9, #32]",
    "stp q4, q5, [x9, #64]",
    "stp q6, q7, [x9, #96]",
    "stp q8, q9, [x9, #128]",
    "stp q10, q11, [x9, #160]",
    "stp q12, q13, [x9, #192]",
    "stp q14, q15, [x9, #224]",
    "stp q16, q17, [x9, #256]",
    "stp q18, q19, [x9, #288]",
    "stp q20, q21, [x9, #320]",
    "stp q22, q23, [x9, #352]",
    "stp q24, q25, [x9, #384]",
    "stp q26, q27, [x9, #416]",
    "stp q28, q29, [x9, #448]",
    "stp q30, q31, [x9, #480]",
    // An SError for something that the guest still had under way comes here, as the guest's: later it would be taken
    // for the hypervisor's own.
    "dsb sy",
    "msr daifclr, #4",
    "isb",
    "msr daifset, #4",
    "ldp x0, x9, [sp], #16",
    "msr spsel, #0",
    "mov sp, x9",
    "ldr x9, [sp, #160]",
    "msr vbar_el2, x9",
    // The hypervisor's code expects the modes of a fresh processor.
    "msr fpcr, xzr",
    "isb",
    "msr daifclr, #5",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp d8, d9, [sp, #96]",
    "ldp d10, d11, [sp, #112]",
    "ldp d12, d13, [sp, #128]",
    "ldp d14, d15, [sp, #144]",
    "ldp x29, x30, [sp], #176",
    "mov x0, x1",
    "ret",
    // From the hypervisor itself, in the few instructions above: a mistake of its own, for its own vectors. Its
    // report shows another X16.
    ".macro pasidon_own offset",
    ".p2align 7",
    "adrp x16, pasidon_vectors",
    "add x16, x16, :lo12:pasidon_vectors",
    "add x16, x16, #\\offset",
    "br x16",
    ".endm",
    ".macro pasidon_guest vector",
    ".p2align 7",
    "stp x0, x1, [sp, #-16]!",
    "mov x1, #\\vector",
    "b pasidon_leave",
    ".endm",
    ".p2align 11",
    "pasidon_guest_vectors:",
    "pasidon_own 0x000",
    "pasidon_own 0x080",
    "pasidon_own 0x100",
    "pasidon_own 0x180",
    "pasidon_own 0x200",
    "pasidon_own 0x280",
    "pasidon_own 0x300",
    // The window above, the only place here where an SError is not masked: x0 is the context, x9 is free. What else
    // the guest came back for does not matter any more, and one SError is enough.
    ".p2align 7",
    "mov x1, #{serror}",
    "mrs x9, esr_el2",
    "str x9, [x0, #{esr}]",
    "mrs x9, spsr_el2",
    "orr x9, x9, #{spsr_a}",
    "msr spsr_el2, x9",
    "eret",
    "pasidon_guest 0",
    "pasidon_guest 1",
    "pasidon_guest 2",
    "pasidon_guest 3",
    // EL0 in AArch32, which HCR_EL2 cannot forbid where the processor has it.
    "pasidon_guest 0",
    "pasidon_guest 1",
    "pasidon_guest 2",
    "pasidon_guest 3",
    ".p2align 7",
    ".purgem pasidon_own",
    ".purgem pasidon_guest",
    sp_el0 = const offset_of!(Context, sp_el0),
    pc = const offset_of!(Context, pc),
    esr = const offset_of!(Context, esr),
    hpfar = const offset_of!(Context, hpfar),
    fpcr = const offset_of!(Context, fpcr),
    v = const offset_of!(Context, v),
    serror = const Vector::SError as u64,
    spsr_a = const SPSR_A,
);

const _: () = {
    assert!(offset_of!(Context, x) == 0);
    assert!(offset_of!(Context, pstate) == offset_of!(Context, pc) + 8);
    assert!(offset_of!(Context, far) == offset_of!(Context, esr) + 8);
    assert!(offset_of!(Context, fpsr) == offset_of!(Context, fpcr) + 8);
    assert!(offset_of!(Context, v).is_multiple_of(16));
};

unsafe extern "C" {
    fn pasidon_enter(context: *mut Context, vbar: u64) -> u64;
}

/// Runs the guest whose registers are `context` until it comes back.
///
/// # Safety
/// On SP_EL0 with IRQs masked; the stage 2, system registers and list registers of the guest are loaded on this
/// processor, and HCR_EL2 traps what has to be.
pub unsafe fn enter(context: &mut Context) -> Vector {
    let vbar: u64;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mrs {}, vbar_el2", out(reg) vbar, options(nomem, nostack, preserves_flags)) };
    // SAFETY: by the caller's promise; the assembly keeps to the calling convention.
    match unsafe { pasidon_enter(context, vbar) } {
        0 => Vector::Synchronous,
        1 => Vector::Irq,
        2 => Vector::Fiq,
        _ => Vector::SError,
    }
}
