// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 64-byte stores to a device, by which descriptors get to its work queues: the deferrable one to a shared queue
//! (ENQCMDS), and the posted one to a dedicated queue (MOVDIR64B).
//!
//! Source: Intel SDM volume 2, ENQCMDS and MOVDIR64B.

use core::arch::asm;

use crate::cpu;

/// CPUID leaf of structured features; ECX bits of MOVDIR64B, and of ENQCMD with ENQCMDS.
const STRUCTURED: u32 = 7;
const MOVDIR64B: u32 = 1 << 28;
const ENQCMD: u32 = 1 << 29;

fn has(feature: u32) -> bool {
    cpu::cpuid(0, 0).eax >= STRUCTURED && cpu::cpuid(STRUCTURED, 0).ecx & feature != 0
}

/// Whether the processor has the deferrable store.
pub fn can_enqueue() -> bool {
    has(ENQCMD)
}

/// Whether it has the posted one.
pub fn can_store() -> bool {
    has(MOVDIR64B)
}

/// Stores to a portal; false where the device has no room. What was stored to memory before is there for it to see.
///
/// # Safety
/// `portal` is mapped, uncached, a multiple of 64, and takes such stores; [`can_enqueue`] said so.
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

/// Stores to a portal, for a device that has room. What was stored to memory before is there for it to see.
///
/// # Safety
/// `portal` is mapped, uncached, a multiple of 64, and takes such stores; [`can_store`] said so.
pub unsafe fn store(portal: *mut u8, descriptor: &[u64; 8]) {
    // SAFETY: by the contract, and 64 bytes that can be read.
    unsafe {
        asm!(
            "sfence",
            "movdir64b {portal}, [{descriptor}]",
            portal = in(reg) portal,
            descriptor = in(reg) descriptor.as_ptr(),
            options(nostack)
        );
    }
}
