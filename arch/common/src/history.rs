// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last exits of each pCPU, for the report of a fault.
//!
//! **Principle.** Written with relaxed stores by the pCPU itself, read only when something has gone wrong: no
//! lock, and a torn entry is better than none.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::pcpus::MAX_PCPUS;

/// Exits remembered per pCPU.
const REMEMBERED: usize = 16;
/// VM, exit code, two words about it, program counter.
const WORDS: usize = 5;

struct Ring {
    next: AtomicU64,
    exits: [[AtomicU64; WORDS]; REMEMBERED],
}

static RINGS: [Ring; MAX_PCPUS] = [const {
    Ring { next: AtomicU64::new(0), exits: [const { [const { AtomicU64::new(0) }; WORDS] }; REMEMBERED] }
}; MAX_PCPUS];

/// Remembers an exit of the pCPU with this index.
pub fn record(pcpu: u32, vm: u16, exit: [u64; 4]) {
    let Some(ring) = RINGS.get(pcpu as usize) else {
        return;
    };
    let number = ring.next.load(Ordering::Relaxed);
    let entry = &ring.exits[(number % REMEMBERED as u64) as usize];
    entry[0].store(vm.into(), Ordering::Relaxed);
    for (word, value) in entry[1..].iter().zip(exit) {
        word.store(value, Ordering::Relaxed);
    }
    ring.next.store(number.wrapping_add(1), Ordering::Relaxed);
}

/// Prints the last exits of the pCPU with this index, newest first.
///
/// # Errors
/// When `out` cannot be written to.
pub fn print(out: &mut dyn Write, index: u32) -> fmt::Result {
    let Some(ring) = RINGS.get(index as usize) else {
        return Ok(());
    };
    let next = ring.next.load(Ordering::Relaxed);
    if next == 0 {
        return writeln!(out, "no exits on this pCPU yet");
    }
    writeln!(out, "last exits of pCPU {index}, newest first:")?;
    writeln!(out, "  vm  code               info1              info2              pc")?;
    for back in 1..=next.min(REMEMBERED as u64) {
        let entry = &ring.exits[((next - back) % REMEMBERED as u64) as usize];
        let [vm, code, info1, info2, rip] = core::array::from_fn(|word| entry[word].load(Ordering::Relaxed));
        writeln!(out, "  {vm:<3} {code:#018x} {info1:#018x} {info2:#018x} {rip:#018x}")?;
    }
    Ok(())
}
