// SPDX-License-Identifier: MIT OR Apache-2.0
//! Caches, for devices that do not look into them.

use core::sync::atomic::{Ordering, compiler_fence, fence};

/// Cache line of every x86-64 processor with VT-d.
const LINE: usize = 64;

/// What this processor has written so far is seen by devices before what it does from here on, and what it reads
/// from here on is not older than what it has read. The processor sees to that itself.
#[inline]
pub fn order_for_devices() {
    compiler_fence(Ordering::SeqCst);
}

/// Writes what the caches hold of this memory back to it.
///
/// # Safety
/// The memory must be mapped.
pub unsafe fn clean(start: u64, len: usize) {
    let first = start & !(LINE as u64 - 1);
    for line in (first..start + len as u64).step_by(LINE) {
        // SAFETY: CLFLUSH changes no memory, and the line is mapped.
        unsafe { core::arch::x86_64::_mm_clflush(line as *const u8) };
    }
    fence(Ordering::SeqCst);
}
