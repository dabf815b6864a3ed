// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the guest and back.
//!
//! **Principle.** Interrupts stay disabled: one that waits ends the guest at once, and is taken later. An NMI is taken by
//! whoever runs; where that was the guest, the caller has to.
//!
//! Source: Intel SDM volume 3, chapters 27 "VM Entries" and 28 "VM Exits"; volume 3, 31.2 (VMfail).

use core::arch::naked_asm;

use super::vmcs::HOST_RSP;

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
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp [rdx], rsp",
        "je 2f",
        "mov [rdx], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "2: test sil, sil",
        // None of these changes flags.
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
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
        "mov [rax + 8], rcx",
        "mov [rax + 16], rdx",
        "mov [rax + 24], rbx",
        "mov [rax + 40], rbp",
        "mov [rax + 48], rsi",
        "mov [rax + 56], rdi",
        "mov [rax + 64], r8",
        "mov [rax + 72], r9",
        "mov [rax + 80], r10",
        "mov [rax + 88], r11",
        "mov [rax + 96], r12",
        "mov [rax + 104], r13",
        "mov [rax + 112], r14",
        "mov [rax + 120], r15",
        "pop qword ptr [rax]",
        "xor eax, eax",
        // No guest value stays in a register that the compiler does not know to be overwritten.
        "5: xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const HOST_RSP,
    )
}
