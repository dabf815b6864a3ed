// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deferrable 64-byte store to a device, by which descriptors get to a shared work queue: ST64BV, of FEAT_LS64_V.
//!
//! It is not used: no emulator has it, so nothing that is written here could be seen to work.

/// Whether the processor has it, and it is used.
pub fn is_available() -> bool {
    false
}

/// Stores to a portal; false where the device has no room.
///
/// # Safety
/// [`is_available`] said so, which it never does.
pub unsafe fn enqueue(_portal: *mut u8, _descriptor: &[u64; 8]) -> bool {
    false
}
