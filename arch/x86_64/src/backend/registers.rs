// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions, for the ways into a guest and back, that take care of general registers. RAX and RSP are the
//! extension's.

/// Keeps what a function of the System V ABI has to.
macro_rules! save_callers {
    () => {
        "push rbp
        push rbx
        push r12
        push r13
        push r14
        push r15"
    };
}

/// Loads the guest's registers, which RDI points to. Changes no flags.
macro_rules! load_guest {
    () => {
        "mov rcx, [rdi + 8]
        mov rdx, [rdi + 16]
        mov rbx, [rdi + 24]
        mov rbp, [rdi + 40]
        mov rsi, [rdi + 48]
        mov r8, [rdi + 64]
        mov r9, [rdi + 72]
        mov r10, [rdi + 80]
        mov r11, [rdi + 88]
        mov r12, [rdi + 96]
        mov r13, [rdi + 104]
        mov r14, [rdi + 112]
        mov r15, [rdi + 120]
        mov rdi, [rdi + 56]"
    };
}

/// Stores the guest's registers, to where RAX points.
macro_rules! store_guest {
    () => {
        "mov [rax + 8], rcx
        mov [rax + 16], rdx
        mov [rax + 24], rbx
        mov [rax + 40], rbp
        mov [rax + 48], rsi
        mov [rax + 56], rdi
        mov [rax + 64], r8
        mov [rax + 72], r9
        mov [rax + 80], r10
        mov [rax + 88], r11
        mov [rax + 96], r12
        mov [rax + 104], r13
        mov [rax + 112], r14
        mov [rax + 120], r15"
    };
}

/// Leaves no guest value in a register that the compiler does not know to be overwritten; RAX is the result's.
macro_rules! forget_guest {
    () => {
        "xor ecx, ecx
        xor edx, edx
        xor esi, esi
        xor edi, edi
        xor r8d, r8d
        xor r9d, r9d
        xor r10d, r10d
        xor r11d, r11d"
    };
}

/// Undoes [`save_callers`].
macro_rules! restore_callers {
    () => {
        "pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        pop rbp"
    };
}

pub(crate) use {forget_guest, load_guest, restore_callers, save_callers, store_guest};
