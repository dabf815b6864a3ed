// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 64-byte stores to a device, by which descriptors get to its work queues.
//!
//! The deferrable one, to a shared queue, is ST64BV of FEAT_LS64_V. It is not used: no emulator has it, so nothing that is
//! written here could be seen to work.
//!
//! The posted one, to a dedicated queue, is eight stores of 8 bytes in their order, from one processor, which what lies before
//! a device merges, as guests' programs rely on, too.

/// Whether the processor has the deferrable store, and it is used.
pub fn can_enqueue() -> bool {
    false
}

/// Whether there is a posted one.
pub fn can_store() -> bool {
    true
}

/// Stores to a portal; false where the device has no room.
///
/// # Safety
/// [`can_enqueue`] said so, which it never does.
pub unsafe fn enqueue(_portal: *mut u8, _descriptor: &[u64; 8]) -> bool {
    false
}

/// Stores to a portal, for a device that has room. What was stored to memory before is there for it to see.
///
/// # Safety
/// `portal` is mapped as device memory, a multiple of 64, and takes such stores. No handler of an interrupt stores to it.
pub unsafe fn store(portal: *mut u8, descriptor: &[u64; 8]) {
    crate::cache::order_for_devices();
    for (place, word) in descriptor.iter().enumerate() {
        // SAFETY: by the contract: the words of one slot of a portal.
        unsafe { portal.cast::<u64>().add(place).write_volatile(*word) };
    }
}
