// SPDX-License-Identifier: MIT OR Apache-2.0
//! Marks places in the program for an emulator that counts instructions. A processor does nothing there.

use core::arch::asm;

/// Tells a marker from another no-operation.
const MARKER: u32 = 0x5041_0000;

/// Marks this place as the start of what is counted as a `KIND` (up to 255), or as its `END`.
#[inline(always)]
pub fn mark<const KIND: u32, const END: bool>() {
    // SAFETY: NOP DWORD PTR [RAX + disp32] reads nothing and changes nothing.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x80",
            ".long {number}",
            number = const MARKER | KIND << 8 | END as u32,
            options(nostack, preserves_flags)
        );
    }
}
