// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few instructions between the processor and a test's code. They run on the emulated processor.

use std::arch::{global_asm, naked_asm};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many vectors there are.
pub const VECTORS: usize = 256;
/// Bytes from one handler to the next.
const HANDLER: u64 = 16;

/// How often each interrupt was taken.
pub static TAKEN: [AtomicU64; VECTORS] = [const { AtomicU64::new(0) }; VECTORS];

/// Forgets what was taken.
pub fn forget_taken() {
    TAKEN.iter().for_each(|count| count.store(0, Ordering::Relaxed));
}

unsafe extern "C" {
    #[link_name = "pasidon_cpu_handlers"]
    static HANDLERS: u8;
}

/// Where the handler of that vector is.
pub fn handler(vector: usize) -> u64 {
    &raw const HANDLERS as u64 + vector as u64 * HANDLER
}

// Interrupts are counted; exceptions end the run, with RDI at vector, error code and RIP. Ports as in `shim.h`.
global_asm!(
    ".pushsection .text.pasidon_cpu_handlers, \"ax\", @progbits",
    ".balign 16",
    "pasidon_cpu_handlers:",
    ".set pasidon_vector, 0",
    ".rept {vectors}",
    ".balign 16",
    // Those that push no error code.
    ".if !(pasidon_vector == 8 || (pasidon_vector >= 10 && pasidon_vector <= 14) || pasidon_vector == 17 || pasidon_vector == 21 || pasidon_vector == 29 || pasidon_vector == 30)",
    "push 0",
    ".endif",
    "push pasidon_vector",
    "jmp 2f",
    ".set pasidon_vector, pasidon_vector + 1",
    ".endr",
    "2: cmp qword ptr [rsp], 32",
    "jae 3f",
    "cmp qword ptr [rsp], 2",
    "je 3f",
    "mov rdi, rsp",
    "out 0xf5, al",
    "ud2",
    "3: push rax",
    "push rcx",
    "lea rax, [rip + {taken}]",
    "mov rcx, [rsp + 16]",
    "inc qword ptr [rax + rcx * 8]",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    vectors = const VECTORS,
    taken = sym TAKEN,
);

/// Where SYSCALL goes: the library carries it out. Flags stay as they are, and so need not come back.
///
/// # Safety
/// To be reached by SYSCALL on the emulated processor only.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn system_call() {
    naked_asm!("out 0xf6, al", "jmp rcx")
}

/// A function and what it is called with.
#[repr(C)]
pub struct Call {
    pub function: unsafe extern "sysv64" fn(*mut ()),
    pub argument: *mut (),
}

/// The first instructions of a run: makes the call, and ends the run.
///
/// # Safety
/// To be run on the emulated processor only, at the top of a stack.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(call: *const Call) {
    naked_asm!("xor ebp, ebp", "mov rax, rdi", "mov rdi, [rax + 8]", "call [rax]", "out 0xf4, al", "ud2")
}
