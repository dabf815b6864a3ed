// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the guest and back.
//!
//! **Principle.** Between CLGI and STGI nothing can interrupt: the host's segment state and the guest's
//! registers change hands there. Host interrupts are enabled (IF) inside, so that one that waits ends VMRUN
//! at once, and are disabled again before STGI.
//!
//! Source: AMD APM volume 2, 15.5 "VMRUN Instruction", 15.14 "Global Interrupt Flag".

use core::arch::naked_asm;

/// Runs the guest of the VMCB at physical address `vmcb` until #VMEXIT. `registers` are in hardware order; RAX and RSP
/// live in the VMCB, their places here are not used.
///
/// # Safety
/// Interrupts are disabled, EFER.SVME is set and VM_HSAVE_PA valid; `vmcb` is a VMCB whose tables belong to a
/// guest, `host_vmcb` a page filled by [`save_host`] on this pCPU, and RAM is mapped at its physical address.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(vmcb: u64, registers: *mut [u64; 16], host_vmcb: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rsi",
        "push rdx",
        "push rdi",
        "mov rcx, [rsi + 8]",
        "mov rdx, [rsi + 16]",
        "mov rbx, [rsi + 24]",
        "mov rbp, [rsi + 40]",
        "mov rdi, [rsi + 56]",
        "mov r8, [rsi + 64]",
        "mov r9, [rsi + 72]",
        "mov r10, [rsi + 80]",
        "mov r11, [rsi + 88]",
        "mov r12, [rsi + 96]",
        "mov r13, [rsi + 104]",
        "mov r14, [rsi + 112]",
        "mov r15, [rsi + 120]",
        "mov rsi, [rsi + 48]",
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
        // No guest value stays in a register that the compiler does not know to be overwritten.
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "stgi",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
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
