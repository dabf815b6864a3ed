// SPDX-License-Identifier: MIT OR Apache-2.0
//! The exception vectors, and who handles which interrupt.
//!
//! **Principle.** One table for all pCPUs. The hypervisor runs with IRQs masked; they are taken only in [`window`]
//! and [`wait`], where nobody holds a lock, so a handler may take any. Exceptions go to [`crate::fault`] and do
//! not come back. The FIQ is what stops a pCPU: it comes anywhere, since nothing masks it.
//! **Invariants.** Every interrupt is ended after its handler, so each is taken once. An IRQ is handled on the
//! stack that it interrupts; everything else comes on the pCPU's exception stack, so that a stack that is used up
//! can be reported.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D1.3 (exceptions, vector tables); Arm GIC Architecture
//! Specification (IHI 0069), 2.2 (INTIDs).

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::pcpu::{self, Pcpu};
use crate::trap_frame::{FRAME, TrapFrame};
use crate::vector::{self, Vector};
use crate::{fault, gic};

/// INTIDs up to the last SPI.
const VECTORS: usize = 1020;

/// Set in the second argument of `trap` for an exception on the exception stack.
const NESTED: u64 = 1 << 4;
/// Set there for one that came from a guest.
const FROM_GUEST: u64 = 1 << 5;

// Sixteen entries of 0x80 bytes: from EL2 on SP_EL0, from EL2 on SP_EL2, from EL1 or EL0 in AArch64 and in AArch32;
// in each group synchronous, IRQ, FIQ, SError.
global_asm!(
    // What is not handled by coming back: on the exception stack.
    ".macro pasidon_fatal kind",
    ".p2align 7",
    "sub sp, sp, #{frame}",
    "stp x0, x1, [sp]",
    "mov x1, #\\kind",
    "b pasidon_trap",
    ".endm",
    // On the exception stack already, or before there is one (TPIDR_EL2 is zero then): from its top again. What
    // is overwritten belongs to a report that is not going to be finished.
    ".macro pasidon_nested kind",
    ".p2align 7",
    "msr sp_el0, x0",
    "mrs x0, tpidr_el2",
    "cbz x0, 1f",
    "ldr x0, [x0, #{exception_top}]",
    "mov sp, x0",
    "1:",
    "mrs x0, sp_el0",
    "sub sp, sp, #{frame}",
    "stp x0, x1, [sp]",
    "mov x1, #(\\kind + {nested})",
    "b pasidon_trap",
    ".endm",
    ".p2align 11",
    ".globl pasidon_vectors",
    "pasidon_vectors:",
    "pasidon_fatal 0",
    // IRQ: back on the stack that was interrupted.
    ".p2align 7",
    "msr spsel, #0",
    "sub sp, sp, #{frame}",
    "stp x0, x1, [sp]",
    "mov x1, #1",
    "b pasidon_trap",
    // FIQ: one that was taken back is none. Here so that no register but these is needed.
    ".p2align 7",
    "sub sp, sp, #{frame}",
    "stp x0, x1, [sp]",
    "mrs x0, icc_iar0_el1",
    "cmp w0, #1020",
    "b.hs 2f",
    "mov x1, #2",
    "b pasidon_trap",
    "2:",
    "ldp x0, x1, [sp]",
    "add sp, sp, #{frame}",
    "eret",
    "pasidon_fatal 3",
    "pasidon_nested 0",
    "pasidon_nested 1",
    "pasidon_nested 2",
    "pasidon_nested 3",
    "pasidon_fatal {from_guest}+0",
    "pasidon_fatal {from_guest}+1",
    "pasidon_fatal {from_guest}+2",
    "pasidon_fatal {from_guest}+3",
    "pasidon_fatal {from_guest}+0",
    "pasidon_fatal {from_guest}+1",
    "pasidon_fatal {from_guest}+2",
    "pasidon_fatal {from_guest}+3",
    ".p2align 7",
    "pasidon_trap:",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x19, [sp, #144]",
    "stp x20, x21, [sp, #160]",
    "stp x22, x23, [sp, #176]",
    "stp x24, x25, [sp, #192]",
    "stp x26, x27, [sp, #208]",
    "stp x28, x29, [sp, #224]",
    // On SP_EL0 that register cannot be read by its name.
    "mrs x0, spsel",
    "add x2, sp, #{frame}",
    "cbz x0, 3f",
    "mrs x2, sp_el0",
    "3:",
    "stp x30, x2, [sp, #240]",
    "mrs x3, elr_el2",
    "mrs x4, spsr_el2",
    "mrs x5, esr_el2",
    "mrs x6, far_el2",
    "stp x3, x4, [sp, #256]",
    "stp x5, x6, [sp, #272]",
    "stp x29, x3, [sp, #288]",
    "add x29, sp, #288",
    "mov x0, sp",
    "bl {trap}",
    "ldp x3, x4, [sp, #256]",
    "msr elr_el2, x3",
    "msr spsr_el2, x4",
    "ldp x2, x3, [sp, #16]",
    "ldp x4, x5, [sp, #32]",
    "ldp x6, x7, [sp, #48]",
    "ldp x8, x9, [sp, #64]",
    "ldp x10, x11, [sp, #80]",
    "ldp x12, x13, [sp, #96]",
    "ldp x14, x15, [sp, #112]",
    "ldp x16, x17, [sp, #128]",
    "ldp x18, x19, [sp, #144]",
    "ldp x20, x21, [sp, #160]",
    "ldp x22, x23, [sp, #176]",
    "ldp x24, x25, [sp, #192]",
    "ldp x26, x27, [sp, #208]",
    "ldp x28, x29, [sp, #224]",
    "ldr x30, [sp, #240]",
    "ldp x0, x1, [sp]",
    "add sp, sp, #{frame}",
    "eret",
    ".purgem pasidon_fatal",
    ".purgem pasidon_nested",
    frame = const FRAME,
    exception_top = const offset_of!(Pcpu, exception_top),
    nested = const NESTED,
    from_guest = const FROM_GUEST,
    trap = sym trap,
);

/// What handles an interrupt; called with its INTID, interrupts masked, on the pCPU that took it.
pub type Handler = fn(Vector);

static HANDLERS: [AtomicPtr<()>; VECTORS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; VECTORS];
/// What handles the messages of devices.
static DEVICES: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// Interrupts that nobody handles.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// What handles an INTID, if it can be had: up to the last SPI each has its own, all of [`vector::DEVICES`] have one.
fn handler_of(intid: Vector) -> Option<&'static AtomicPtr<()>> {
    HANDLERS.get(intid as usize).or_else(|| vector::DEVICES.contains(&intid).then_some(&DEVICES))
}

/// Names the handler of an interrupt, on all pCPUs; any of [`vector::DEVICES`] stands for all of them. It is ended
/// after the handler returns.
pub fn install(vector: Vector, handler: Handler) {
    if let Some(place) = handler_of(vector) {
        place.store(handler as *mut (), Ordering::Release);
    }
}

/// How many interrupts came that nobody handles.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Ordering::Relaxed)
}

extern "C" fn trap(frame: &TrapFrame, kind: u64) {
    const IRQ: u64 = 1;
    if kind != IRQ {
        fault::exception(frame, kind & 0b11, kind & NESTED != 0, kind & FROM_GUEST != 0);
    }
    // All that wait, in the order of their priorities.
    while let Some(intid) = gic::acknowledge() {
        dispatch(frame, intid);
        gic::end_of_interrupt(intid);
    }
}

fn dispatch(frame: &TrapFrame, intid: u32) {
    if intid == vector::STOP {
        fault::stop(frame.elr);
    }
    let handler = handler_of(intid).map_or(core::ptr::null_mut(), |place| place.load(Ordering::Acquire));
    if !handler.is_null() {
        // SAFETY: only `install` stores here, and only a `Handler`.
        let handler: Handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
        return handler(intid);
    }
    let before = UNEXPECTED.fetch_add(1, Ordering::Relaxed);
    // A device that floods must not flood the log: lines at 1, 2, 4, 8, …
    if (before + 1).is_power_of_two() {
        log::warn!("INTID {intid}: nobody handles it; {} such interrupts so far", before + 1);
    }
}

/// Takes no interrupts from here on, outside of [`window`] and [`wait`].
pub fn disable() {
    // SAFETY: interrupts that come later wait.
    unsafe { asm!("msr daifset, #2", options(nomem, nostack)) };
}

/// From here on the FIQ that stops this pCPU comes at once, and so does an SError.
///
/// # Safety
/// After [`crate::pcpu::Pcpu::make_current`], with the exception stack in place.
pub(crate) unsafe fn unmask_stop() {
    // SAFETY: by the caller's promise both have a stack to come on.
    unsafe { asm!("msr daifclr, #5", options(nomem, nostack)) };
}

/// Raises [`vector::KICK`] on a pCPU, which may be this one. Writes to memory before it are seen by the handler.
pub fn kick(pcpu: u32) {
    if let Some(pcpu) = pcpu::get(pcpu) {
        gic::send(pcpu.mpidr, vector::KICK);
    }
}

/// Takes the interrupts that wait. No lock may be held.
pub fn window() {
    // SAFETY: the entry keeps all general registers; the others count as changed, as by a call.
    unsafe { asm!("msr daifclr, #2", "isb", "msr daifset, #2", clobber_abi("C")) };
}

/// Waits for an interrupt and takes those that wait. No lock may be held. What is to end the wait must be an
/// interrupt: one that came since interrupts were last taken is not lost.
pub fn wait() {
    // SAFETY: waiting changes nothing. A masked interrupt that waits ends it as well.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
    window();
}
