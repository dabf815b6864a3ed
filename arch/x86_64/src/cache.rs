// SPDX-License-Identifier: MIT OR Apache-2.0
//! Caches, for devices that do not look into them, and what devices see of this processor's stores.

use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence, fence};

/// Cache line of every x86-64 processor with VT-d.
const LINE: usize = 64;

/// What this processor has written so far is seen by devices before what it does from here on, and what it reads
/// from here on is not older than what it has read. The processor sees to that itself.
#[inline]
pub fn order_for_devices() {
    compiler_fence(Ordering::SeqCst);
}

/// Writes two words in one store, the first one at the lower address. No device sees one of them without the other.
///
/// # Safety
/// `address` must be that of 16 bytes of mapped RAM, aligned to as many, to which nobody else writes meanwhile, and the
/// processor must have CMPXCHG16B, for which [`Features::check`](crate::cpu::Features::check) looks.
pub unsafe fn write128(address: u64, [low, high]: [u64; 2]) {
    // What fails brings what is there, and nobody else writes, so the second try at the latest succeeds. RBX is the
    // compiler's own, and it may choose that for what is not named.
    // SAFETY: by the contract of this function.
    unsafe {
        asm!("xchg rbx, rsi", "2: lock cmpxchg16b [rdi]", "jne 2b", "mov rbx, rsi",
            inout("rsi") low => _, in("rdi") address, in("rcx") high,
            inout("rax") 0_u64 => _, inout("rdx") 0_u64 => _, options(nostack));
    }
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

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;

    use super::*;

    #[repr(align(16))]
    struct Pair(UnsafeCell<[u64; 2]>);

    // SAFETY: it is only read and written in whole, by locked instructions.
    unsafe impl Sync for Pair {}

    #[test]
    fn two_words_are_never_seen_by_halves() {
        let pair = Pair(UnsafeCell::new([0; 2]));
        let address = pair.0.get() as u64;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 0..1_000_000 {
                    // SAFETY: 16 aligned bytes, to which only this thread writes.
                    unsafe { write128(address, [value, !value]) };
                }
            });
            let mut seen = 0;
            while seen < 999_999 {
                let (mut low, mut high) = (0_u64, 0_u64);
                // SAFETY: as above; what is exchanged is zero for zero, so this writes nothing.
                unsafe {
                    asm!("xchg rbx, rsi", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
                        inout("rsi") 0_u64 => _, in("rdi") address, in("rcx") 0_u64,
                        inout("rax") low, inout("rdx") high, options(nostack));
                }
                assert!([low, high] == [0; 2] || high == !low, "{low:#x} with {high:#x}");
                seen = low;
            }
        });
    }
}
