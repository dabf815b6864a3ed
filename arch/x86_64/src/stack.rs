// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks, and going on on one.

use pasidon_kernel::base::refusal::Refusal;

pub use pasidon_arch_common::stack::{EXCEPTION_STACK_BYTES, STACK_BYTES, Stack, give};

use crate::paging;

/// A new one of `bytes`, a multiple of the page size. After [`paging::install`] and [`give`].
///
/// # Errors
/// When the memory that was given is used up.
pub fn new(bytes: u64) -> Result<Stack, Refusal> {
    Stack::with_guard(bytes, paging::unmap_guard)
}

/// What is to be gone on with.
struct Start {
    argument: *mut u8,
    function: fn(*mut u8) -> !,
}

/// Goes on in `function` on a stack, for good.
///
/// # Safety
/// Nobody else may run on the stack. What is on the present one stays there unused, so references to it
/// stay valid only as long as that memory does.
pub unsafe fn run(stack: Stack, argument: *mut u8, function: fn(*mut u8) -> !) -> ! {
    let start = Start { argument, function };
    // SAFETY: the top is aligned for a call, with a zero return address where a backtrace ends. `start` is
    // read before anything can happen to the present stack.
    unsafe {
        core::arch::asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {enter}",
            "ud2",
            top = in(reg) stack.top,
            enter = sym enter,
            in("rdi") &raw const start,
            options(noreturn),
        )
    }
}

extern "sysv64" fn enter(start: *const Start) -> ! {
    // SAFETY: `run` passes it, and nobody has written to the old stack yet.
    let Start { argument, function } = unsafe { start.read() };
    function(argument)
}
