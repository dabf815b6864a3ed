// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deferrable 64-byte store to a device, by which descriptors get to a shared work queue: ENQCMDS.
//!
//! Source: Intel SDM volume 2, ENQCMDS.

use core::arch::asm;

use crate::cpu;

/// CPUID leaf of structured features; ECX bit of ENQCMD and ENQCMDS.
const STRUCTURED: u32 = 7;
const ENQCMD: u32 = 1 << 29;

/// Whether the processor has it.
pub fn is_available() -> bool {
    cpu::cpuid(0, 0).eax >= STRUCTURED && cpu::cpuid(STRUCTURED, 0).ecx & ENQCMD != 0
}

/// Stores to a portal; false where the device has no room. What was stored to memory before is there for it to see.
///
/// # Safety
/// `portal` is mapped, uncached, a multiple of 64, and takes such stores; [`is_available`] said so.
pub unsafe fn enqueue(portal: *mut u8, descriptor: &[u64; 8]) -> bool {
    let accepted: u8;
    // SAFETY: by the contract, and 64 bytes that can be read. ZF says whether the device refused.
    unsafe {
        asm!(
            "sfence",
            "enqcmds {portal}, [{descriptor}]",
            "setnz {accepted}",
            portal = in(reg) portal,
            descriptor = in(reg) descriptor.as_ptr(),
            accepted = out(reg_byte) accepted,
            options(nostack)
        );
    }
    accepted != 0
}
