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

/// Goes on in `function` on a stack, for good. From here on the processor runs on SP_EL0; what it ran on before
/// is what exceptions come on, until `exceptions_on`.
///
/// # Safety
/// Nobody else may run on the stack. What is on the present one stays there unused, so references to it stay
/// valid only as long as that memory does.
pub unsafe fn run(stack: Stack, argument: *mut u8, function: fn(*mut u8) -> !) -> ! {
    let start = Start { argument, function };
    // SAFETY: the top is aligned, and an empty frame record ends a backtrace. `start` is read before anything
    // can happen to the present stack.
    unsafe {
        core::arch::asm!(
            "msr spsel, #0",
            "mov sp, {top}",
            "mov x29, xzr",
            "mov x30, xzr",
            "bl {enter}",
            "brk #1",
            top = in(reg) stack.top,
            enter = sym enter,
            in("x0") &raw const start,
            options(noreturn),
        )
    }
}

extern "C" fn enter(start: *const Start) -> ! {
    // SAFETY: `run` passes it, and nobody has written to the old stack yet.
    let Start { argument, function } = unsafe { start.read() };
    function(argument)
}

/// From here on exceptions come on that stack.
///
/// # Safety
/// On SP_EL0, with everything masked; nobody else may use the stack.
pub(crate) unsafe fn exceptions_on(stack: Stack) {
    // SAFETY: between the two switches nothing uses a stack.
    unsafe {
        core::arch::asm!("msr spsel, #1", "mov sp, {}", "msr spsel, #0", in(reg) stack.top, options(nomem, nostack));
    }
}
