// SPDX-License-Identifier: MIT OR Apache-2.0
//! Marks places in the program for an emulator that counts instructions. A processor does nothing there.

use core::arch::asm;

/// Marks this place as the start of what is counted as a `KIND` (up to 255), or as its `END`.
#[inline(always)]
pub fn mark<const KIND: u32, const END: bool>() {
    // SAFETY: MOVK of the zero register changes nothing.
    unsafe {
        asm!("movk xzr, #{number}, lsl #48", number = const KIND << 8 | END as u32, options(nostack, preserves_flags));
    }
}
