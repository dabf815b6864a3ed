// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks with an unmapped page below them, so that one that is too deep stops there.

use alloc::alloc::alloc_zeroed;
use core::alloc::Layout;

use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::base::refusal::Refusal;

/// Bytes of the stack a pCPU runs on.
pub const STACK_BYTES: u64 = 256 << 10;
/// Bytes of a stack for exceptions that come on a stack of their own.
pub const EXCEPTION_STACK_BYTES: u64 = 16 << 10;

/// A stack, which is never freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stack {
    /// Lowest address; the page below is not mapped.
    pub bottom: u64,
    /// First address above, where it starts.
    pub top: u64,
}

/// Takes the page at an address out of the hypervisor's page tables, for good.
pub type UnmapGuard = unsafe fn(u64) -> Result<(), Refusal>;

impl Stack {
    /// A new one of `bytes`, a multiple of the page size, whose guard `unmap_guard` takes out.
    ///
    /// # Errors
    /// When the heap is used up, and those of `unmap_guard`.
    pub fn with_guard(bytes: u64, unmap_guard: UnmapGuard) -> Result<Self, Refusal> {
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
        unsafe { unmap_guard(guard) }?;
        let bottom = guard + PAGE_SIZE;
        Ok(Self { bottom, top: bottom + bytes })
    }

    /// Whether an address is in the page below it.
    pub fn is_guard(&self, address: u64) -> bool {
        (self.bottom - PAGE_SIZE..self.bottom).contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_lies_below() {
        /// Where nothing may be taken out.
        unsafe fn refuse(at: u64) -> Result<(), Refusal> {
            Err(Refusal::new("guard", alloc::format!("{}", at % PAGE_SIZE), ""))
        }
        /// Only looks.
        unsafe fn look(_: u64) -> Result<(), Refusal> {
            Ok(())
        }
        let stack = Stack::with_guard(2 * PAGE_SIZE, look).unwrap();
        assert_eq!(stack.top - stack.bottom, 2 * PAGE_SIZE);
        assert!(stack.is_guard(stack.bottom - 1) && stack.is_guard(stack.bottom - PAGE_SIZE));
        assert!(!stack.is_guard(stack.bottom) && !stack.is_guard(stack.bottom - PAGE_SIZE - 1));
        let refusal = Stack::with_guard(PAGE_SIZE, refuse).unwrap_err();
        assert_eq!(refusal.why, "0", "a guard is a page");
    }
}
