// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the guest and back.
//!
//! **Principle.** Between CLGI and STGI nothing can interrupt: the host's segment state and the guest's
//! registers change hands there. Host interrupts are enabled (IF) inside, so that one that waits ends VMRUN
//! at once, and are disabled again before STGI.
//!
//! Source: AMD APM volume 2, 15.5 "VMRUN Instruction", 15.14 "Global Interrupt Flag".

use core::arch::naked_asm;

use crate::backend::registers::{forget_guest, load_guest, restore_callers, save_callers, store_guest};

/// Runs the guest of the VMCB at physical address `vmcb` until #VMEXIT. `registers` are in hardware order; RAX and RSP
/// live in the VMCB, their places here are not used.
///
/// # Safety
/// Interrupts are disabled, EFER.SVME is set and VM_HSAVE_PA valid; `vmcb` is a VMCB whose tables belong to a
/// guest, `host_vmcb` a page filled by [`save_host`] on this pCPU, and RAM is mapped at its physical address.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut [u64; 16], vmcb: u64, host_vmcb: u64) {
    naked_asm!(
        save_callers!(),
        "push rdi",
        "push rdx",
        "push rsi",
        load_guest!(),
        "mov rax, [rsp]",
        "clgi",
        "sti",
        "vmload rax",
        "vmrun rax",
        "vmsave rax",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "cli",
        "mov rax, [rsp + 16]",
        store_guest!(),
        forget_guest!(),
        "stgi",
        "add rsp, 24",
        restore_callers!(),
        "cld",
        "ret",
    )
}

/// Saves what VMLOAD brings back after each exit: FS, GS, TR, LDTR and the system-call MSRs of the host.
///
/// # Safety
/// EFER.SVME is set; `host_vmcb` is the physical address of a page of this pCPU's own. To be called once this
/// pCPU's descriptor tables and GS base are final.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn save_host(host_vmcb: u64) {
    naked_asm!("mov rax, rdi", "vmsave rax", "ret")
}
