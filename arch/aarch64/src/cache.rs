// SPDX-License-Identifier: MIT OR Apache-2.0
//! Caches, for devices that do not look into them and processors that run without them, and what devices see of this
//! processor's stores.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), B2.2 (single-copy atomicity), D7.5 (cache maintenance), D19.2
//! (CTR_EL0).

use core::arch::asm;

use aarch64_cpu::asm::barrier;

/// What this processor has written so far is seen by devices before what it does from here on, and what it reads
/// from here on is not older than what it has read.
#[inline]
pub fn order_for_devices() {
    barrier::dmb(barrier::OSH);
}

/// Writes two words in one store, the first one at the lower address. No device sees one of them without the other: a
/// store of two words that are held exclusively is single-copy atomic, which STP is with FEAT_LSE2 only.
///
/// # Safety
/// `address` must be that of 16 bytes of mapped RAM, aligned to as many, to which nobody else writes meanwhile.
pub unsafe fn write128(address: u64, [low, high]: [u64; 2]) {
    // SAFETY: by the contract of this function. Whatever takes the hold away, an exception, lets the next try succeed.
    unsafe {
        asm!("2: ldxp xzr, {other}, [{address}]", "stxp {failed:w}, {low}, {high}, [{address}]", "cbnz {failed:w}, 2b",
            address = in(reg) address, low = in(reg) low, high = in(reg) high, other = out(reg) _, failed = out(reg) _,
            options(nostack, preserves_flags));
    }
}

/// Bytes of the smallest data cache line.
fn line() -> u64 {
    const WORD_BYTES: u64 = 4;
    // DminLine: log2 of the number of words.
    WORD_BYTES << (cache_type() >> 16 & 0xf)
}

/// CTR_EL0: what the caches of this processor are like.
pub(crate) fn cache_type() -> u64 {
    let ctr: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    ctr
}

/// Writes what the caches hold of this memory back to it, to the point that all observers see.
///
/// # Safety
/// The memory must be mapped.
pub unsafe fn clean(start: u64, len: usize) {
    let line = line();
    let mut at = start & !(line - 1);
    while at < start + len as u64 {
        // SAFETY: cleaning changes no memory, and the line is mapped.
        unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    barrier::dsb(barrier::SY);
}

/// As [`clean`], and the caches no longer hold it: whoever looks past them sees it, and what is written past them is
/// seen. Instructions that were fetched from there before are forgotten by all processors.
///
/// # Safety
/// As of [`clean`]. Nobody else may be using the memory.
pub unsafe fn release(start: u64, len: u64) {
    let line = line();
    let mut at = start & !(line - 1);
    while at < start + len {
        // SAFETY: cleaning and dropping a line changes no memory, and it is mapped.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    // SAFETY: instructions are fetched again.
    unsafe { asm!("dsb sy", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}
