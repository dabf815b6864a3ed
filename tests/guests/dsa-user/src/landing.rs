// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies to one address, and at which of two places they land: for hypervisors that can put other memory behind an
//! address while the device works.
//!
//! **Principle.** Each line of 64 bytes, the least that a device writes at once, must be found in exactly one of the two
//! places. A copy may be found partly in one and partly in the other.

use crate::descriptor::{Descriptor, Fields, SUCCESS, operation};
use crate::device::Queue;
use crate::memory::{Memory, Physical};
use crate::poke::number;
use crate::wait::Wait;
use anyhow::{Result, ensure};
use clap::Args;
use core::fmt;
use std::time::{Duration, Instant};

/// Where things are in the memory: completion record, source.
const RECORD_AT: usize = 0;
const SOURCE_AT: usize = 0x1000;
/// Bytes of a copy.
const BYTES: usize = 1024;
/// Bytes that a device writes at once.
const LINE: usize = 64;
/// What is in both places before.
const BEFORE: u8 = 0xff;

#[derive(Args)]
pub struct Landing {
    /// Address of the copies, which the kernel was told to leave alone
    #[arg(long, value_parser = number, value_name = "ADDRESS")]
    dst: u64,
    /// The other place where they may land, likewise
    #[arg(long, value_parser = number, value_name = "ADDRESS")]
    other: u64,
    /// How long, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Where copies were found.
#[derive(Default, Debug, PartialEq)]
pub struct Outcome {
    copies: u64,
    /// Wholly there.
    dst: u64,
    other: u64,
    /// Partly here, partly there.
    split: u64,
    /// Lines that are nowhere, and in both.
    lost: u64,
    doubled: u64,
    /// Copies that the device refused.
    pub failures: u64,
}

impl Outcome {
    /// Whether each line was where it may be.
    pub fn good(&self) -> bool {
        self.copies > 0 && (self.lost, self.doubled, self.failures) == (0, 0, 0)
    }

    /// Takes note of the lines of one copy: whether each is at `dst`, and at `other`.
    fn count(&mut self, lines: impl Iterator<Item = [bool; 2]>) {
        let (mut here, mut there) = (false, false);
        for line in lines {
            match line {
                [true, false] => here = true,
                [false, true] => there = true,
                [false, false] => self.lost += 1,
                [true, true] => self.doubled += 1,
            }
        }
        self.copies += 1;
        match (here, there) {
            (true, true) => self.split += 1,
            (true, false) => self.dst += 1,
            (false, true) => self.other += 1,
            (false, false) => {}
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copies, dst, other, split, lost, doubled, failures } = self;
        write!(
            f,
            "copies={copies} dst={dst} other={other} split={split} lost={lost} doubled={doubled} failures={failures}"
        )
    }
}

/// Copies, and looks after each where it is.
///
/// # Errors
/// When the places cannot be mapped, or nothing completes any more.
pub fn run(options: &Landing, memory: &mut Memory, queue: &Queue, wait: &Wait) -> Result<Outcome> {
    ensure!(options.dst.abs_diff(options.other) >= BYTES as u64, "the two places overlap");
    let mut places = [Physical::map(options.dst, BYTES)?, Physical::map(options.other, BYTES)?];
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut outcome = Outcome::default();
    for round in 0u64.. {
        if Instant::now() >= end {
            break;
        }
        // No two in a row are alike.
        let byte = (round % 251) as u8;
        places.iter_mut().for_each(|place| place.fill(BEFORE));
        memory.bytes()[SOURCE_AT..SOURCE_AT + BYTES].fill(byte);
        memory.clear_record(RECORD_AT);
        queue.portal.submit(&Descriptor::new(&Fields {
            operation: operation::MEMORY_MOVE,
            record: memory.address(RECORD_AT),
            source: memory.address(SOURCE_AT),
            destination: options.dst,
            size: BYTES as u32,
            interrupt: queue.interrupt,
            ..Fields::default()
        }));
        wait.complete(memory, RECORD_AT)?;
        if memory.status(RECORD_AT) != SUCCESS {
            outcome.failures += 1;
            continue;
        }
        outcome.count((0..BYTES).step_by(LINE).map(|line| {
            let [here, there] = &places;
            [here, there].map(|place| place.holds(line, LINE, byte))
        }));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_in_one_of_the_two_places() {
        let mut outcome = Outcome::default();
        outcome.count([[true, false]; 4].into_iter());
        outcome.count([[false, true]; 4].into_iter());
        outcome.count([[true, false], [false, true]].into_iter());
        assert!(outcome.good());
        assert_eq!(outcome.to_string(), "copies=3 dst=1 other=1 split=1 lost=0 doubled=0 failures=0");
        outcome.count([[true, false], [false, false]].into_iter());
        outcome.count([[true, true]].into_iter());
        assert!(!outcome.good());
        assert_eq!((outcome.lost, outcome.doubled), (1, 1));
    }
}
