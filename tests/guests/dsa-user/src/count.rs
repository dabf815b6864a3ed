// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one submission costs: copies one after the other, between markers and looks at the processor's counter.
//!
//! A marker is a no-operation with a number in it, at which whoever runs the processor may note how many instructions it
//! has run by then; `tests/platform/plugins/exits.c` of Pasidon does. The numbers are a kind (upper byte) and whether a
//! round starts (0) or ends (1).

use crate::descriptor::{Fields, SUCCESS, operation};
use crate::device::Queue;
use crate::memory::{Memory, SIZE};
use crate::wait::Wait;
use crate::work::Work;
use anyhow::{Result, ensure};
use clap::Args;
use core::arch::asm;
use core::fmt;

/// Where things are in the memory.
const RECORD_AT: usize = 0;
const SOURCE_AT: usize = 0x1000;
const DESTINATION_AT: usize = SIZE / 2;
/// The kinds: the store to the portal alone, and copies from store to completion.
const STORE: u32 = 6;
const COPIES: u32 = 7;
/// Copies of a round of the second kind.
const PER_ROUND: u64 = 20;

#[derive(Args)]
pub struct Count {
    /// Rounds of each kind: one store, and 20 copies
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Bytes of each copy
    #[arg(long, default_value_t = 4096)]
    size: u32,
}

/// What came of it, in ticks of the processor's counter: medians.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    copies: u64,
    store: u64,
    copy: u64,
    /// How often the device stopped at a page that was not there.
    pub partial: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copies={} store_ticks={} copy_ticks={}", self.copies, self.store, self.copy)
    }
}

/// A marker with that number.
macro_rules! mark {
    ($number:expr) => {{
        #[cfg(target_arch = "x86_64")]
        // SAFETY: NOP DWORD PTR [RAX + disp32], which reads nothing.
        unsafe {
            asm!(".byte 0x0f, 0x1f, 0x80", ".long {}", const 0x5041_0000u32 | $number, options(nostack));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: it writes the register that is always zero.
        unsafe {
            asm!("movk xzr, #{}, lsl #48", const $number, options(nostack));
        }
    }};
}

/// The processor's counter.
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor that this runs on has it, and Linux lets user space read it.
    let now = unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    };
    #[cfg(target_arch = "aarch64")]
    let now = {
        let now: u64;
        // SAFETY: Linux lets user space read the virtual count.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) now, options(nostack)) };
        now
    };
    now
}

/// Copies, one after the other.
///
/// # Errors
/// When one fails, or does not complete.
pub fn run(options: &Count, memory: &mut Memory, queue: &Queue, wait: &Wait) -> Result<Outcome> {
    let largest = (DESTINATION_AT - SOURCE_AT) as u32;
    ensure!((1..=largest).contains(&options.size), "size {}; 1 to {largest} bytes", options.size);
    ensure!(options.rounds > 0, "no rounds");
    let fields = Fields {
        operation: operation::MEMORY_MOVE,
        source: memory.address(SOURCE_AT),
        destination: memory.address(DESTINATION_AT),
        size: options.size,
        interrupt: queue.interrupt,
        ..Fields::default()
    };
    let copy = Work::new(fields, memory, RECORD_AT);
    let mut partial = 0;
    let mut ended = |mut work: Work, memory: &mut Memory| -> Result<()> {
        work.finish(memory, queue, wait)?;
        partial += work.partial();
        ensure!(memory.status(RECORD_AT) == SUCCESS, "a copy ended with {:#04x}", memory.status(RECORD_AT));
        memory.clear_record(RECORD_AT);
        Ok(())
    };
    memory.clear_record(RECORD_AT);
    let (mut stores, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        mark!(STORE << 8);
        let start = ticks();
        copy.submit(queue);
        let end = ticks();
        mark!(STORE << 8 | 1);
        stores.push(end - start);
        ended(copy.clone(), memory)?;
    }
    for _ in 0..options.rounds {
        mark!(COPIES << 8);
        let start = ticks();
        for _ in 0..PER_ROUND {
            copy.submit(queue);
            ended(copy.clone(), memory)?;
        }
        let end = ticks();
        mark!(COPIES << 8 | 1);
        copies.push((end - start) / PER_ROUND);
    }
    let all = options.rounds as u64 * (1 + PER_ROUND);
    Ok(Outcome { copies: all, store: median(stores), copy: median(copies), partial })
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_are_medians() {
        assert_eq!(median(vec![9, 1, 5]), 5);
        let told = Outcome { copies: 21, store: 5, copy: 7, partial: 0 }.to_string();
        assert_eq!(told, "copies=21 store_ticks=5 copy_ticks=7");
    }
}
