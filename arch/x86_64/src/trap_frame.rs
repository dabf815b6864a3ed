// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the entries of the interrupt descriptor table leave on the stack.

/// The registers when an exception or interrupt came, in the order in which they lie on the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrapFrame {
    /// r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax; see [`GPR_NAMES`].
    pub gpr: [u64; 15],
    /// Vector.
    pub vector: u64,
    /// Error code; 0 where the vector has none.
    pub error_code: u64,
    /// Where it came.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// The names of [`TrapFrame::gpr`].
pub const GPR_NAMES: [&str; 15] =
    ["r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rbx", "rdx", "rcx", "rax"];
/// Index of rbp in [`TrapFrame::gpr`].
pub const GPR_RBP: usize = 10;
