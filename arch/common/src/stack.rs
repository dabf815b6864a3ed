// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks with an unmapped page below them, so that one that is too deep stops there.

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use spin::Mutex;

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

/// Memory of stacks to come.
struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let start = self.next;
        self.next = start.checked_add(bytes).filter(|next| *next <= self.end)?;
        Some(start)
    }
}

static POOL: Mutex<Pool> = Mutex::new(Pool { next: 0, end: 0 });

/// Gives the memory that stacks are made in: whole pages, mapped by small ones. What an earlier call gave is no longer
/// used for new ones.
///
/// # Safety
/// It is RAM, and nobody else's for ever.
pub unsafe fn give(start: HostPhys, bytes: u64) {
    *POOL.lock() = Pool { next: start.0, end: start.0 + bytes };
}

impl Stack {
    /// What a stack of `bytes` takes of the memory of [`give`], in bytes.
    pub const fn room(bytes: u64) -> u64 {
        PAGE_SIZE + bytes
    }

    /// A new one of `bytes`, a multiple of the page size, whose guard `unmap_guard` takes out.
    ///
    /// # Errors
    /// When the memory of [`give`] is used up, and those of `unmap_guard`.
    pub fn with_guard(bytes: u64, unmap_guard: UnmapGuard) -> Result<Self, Refusal> {
        let taken = POOL.lock().take(Self::room(bytes));
        let guard = taken.ok_or_else(|| {
            Refusal::new("stack", "no memory is left for one", "give the machine more, or fewer processors")
        })?;
        // SAFETY: the page has just been taken and is never given back; nobody else knows it.
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
        // SAFETY: nothing is written to a stack that nobody runs on.
        unsafe { give(HostPhys(16 * PAGE_SIZE), 5 * PAGE_SIZE) };
        let stack = Stack::with_guard(2 * PAGE_SIZE, look).unwrap();
        assert_eq!(stack.bottom, 17 * PAGE_SIZE);
        assert_eq!(stack.top - stack.bottom, 2 * PAGE_SIZE);
        assert!(stack.is_guard(stack.bottom - 1) && stack.is_guard(stack.bottom - PAGE_SIZE));
        assert!(!stack.is_guard(stack.bottom) && !stack.is_guard(stack.bottom - PAGE_SIZE - 1));
        let refusal = Stack::with_guard(PAGE_SIZE, refuse).unwrap_err();
        assert_eq!(refusal.why, "0", "a guard is a page");
        let refusal = Stack::with_guard(PAGE_SIZE, look).unwrap_err();
        assert_eq!(refusal.why, "no memory is left for one");
    }
}
