// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks with an unmapped page below them, so that one that is too deep stops there.

use alloc::alloc::alloc_zeroed;
use core::alloc::Layout;

use pasidon_kernel::addr::PAGE_SIZE;
use pasidon_kernel::refusal::Refusal;

use crate::paging;

/// Bytes of the stack a pCPU runs on.
pub const STACK_BYTES: u64 = 256 << 10;
/// Bytes of a stack for one of the exceptions that come on a stack of their own.
pub const EXCEPTION_STACK_BYTES: u64 = 16 << 10;

/// A stack, which is never freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stack {
    /// Lowest address; the page below is not mapped.
    pub bottom: u64,
    /// First address above, where it starts.
    pub top: u64,
}

impl Stack {
    /// A new one of `bytes`, a multiple of the page size. After [`paging::install`].
    ///
    /// # Errors
    /// When the heap is used up.
    pub fn new(bytes: u64) -> Result<Self, Refusal> {
        let full = Refusal::new(
            "stack",
            "the hypervisor's heap is used up",
            "give the hypervisor a larger heap (HEAP_BYTES in boot/src/heap.rs)",
        );
        let Ok(layout) = Layout::from_size_align((PAGE_SIZE + bytes) as usize, PAGE_SIZE as usize) else {
            return Err(full);
        };
        // SAFETY: the layout has a size.
        let guard = unsafe { alloc_zeroed(layout) } as u64;
        if guard == 0 {
            return Err(full);
        }
        // SAFETY: the page has just been allocated and is never given back; nobody else knows it.
        unsafe { paging::unmap_guard(guard) }?;
        let bottom = guard + PAGE_SIZE;
        Ok(Self {
            bottom,
            top: bottom + bytes,
        })
    }

    /// Goes on in `function` on this stack, for good.
    ///
    /// # Safety
    /// Nobody else may run on the stack. What is on the present one stays there unused, so references to it
    /// stay valid only as long as that memory does.
    pub unsafe fn run(self, argument: *mut u8, function: extern "sysv64" fn(*mut u8) -> !) -> ! {
        // SAFETY: the top is aligned for a call, with a zero return address where a backtrace ends.
        unsafe {
            core::arch::asm!(
                "mov rsp, {top}",
                "xor ebp, ebp",
                "call {function}",
                "ud2",
                top = in(reg) self.top,
                function = in(reg) function,
                in("rdi") argument,
                options(noreturn),
            )
        }
    }
}
