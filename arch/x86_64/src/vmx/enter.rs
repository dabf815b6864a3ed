// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the guest and back.
//!
//! **Principle.** Interrupts stay disabled: one that waits ends the guest at once, and is taken later. An NMI is taken by
//! whoever runs; where that was the guest, the caller has to.
//!
//! Source: Intel SDM volume 3, chapters 27 "VM Entries" and 28 "VM Exits"; volume 3, 31.2 (VMfail).

use core::arch::naked_asm;

use super::vmcs::HOST_RSP;
use crate::backend::registers::{forget_guest, load_guest, restore_callers, save_callers, store_guest};

unsafe extern "C" {
    #[link_name = "pasidon_vmx_exited"]
    static EXITED: u8;
}

/// Where a processor goes on after a VM exit: the VMCS field `HostRip`.
pub fn host_rip() -> u64 {
    &raw const EXITED as u64
}

/// Runs the guest of the current VMCS until a VM exit. `registers` are in hardware order; the place of RSP is not used, as
/// that is in the VMCS. `resume`: it was entered before since it became current. `host_rsp` is what the VMCS holds as RSP
/// of the host. Returns whether the entry failed (VMfail).
///
/// # Safety
/// Interrupts are disabled. The current VMCS is one whose guest's memory is its own, and whose host state is that of this
/// pCPU, with [`host_rip`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut [u64; 16], resume: bool, host_rsp: *mut u64) -> bool {
    naked_asm!(
        save_callers!(),
        "push rdi",
        "cmp [rdx], rsp",
        "je 2f",
        "mov [rdx], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "2: test sil, sil",
        // None of these changes flags.
        "mov rax, [rdi]",
        load_guest!(),
        "jnz 3f",
        "vmlaunch",
        "jmp 4f",
        "3: vmresume",
        "4: mov eax, 1",
        "jmp 5f",
        ".globl pasidon_vmx_exited",
        "pasidon_vmx_exited:",
        "push rax",
        "mov rax, [rsp + 8]",
        store_guest!(),
        "pop qword ptr [rax]",
        "xor eax, eax",
        "5:",
        forget_guest!(),
        "add rsp, 8",
        restore_callers!(),
        "ret",
        host_rsp = const HOST_RSP,
    )
}
