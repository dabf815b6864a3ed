// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations with random data, each compared with what the processor computes.
//!
//! **Principle.** What must not change is looked at as well: a frame of known bytes lies around every destination.
//!
//! With memory that is left untouched, each operation finds one of its operands so that the device has to stop at its pages:
//! as fresh memory is, not there, or looked at but never written. Such memory is zero, which is then the data.

use crate::descriptor::{Fields, Record, SUCCESS, operation};
use crate::device::Queue;
use crate::memory::{Memory, SIZE};
use crate::wait::Wait;
use crate::work::Work;
use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use core::fmt;
use core::ops::Range;
use crc::{CRC_32_ISCSI, Crc};
use fastrand::Rng;
use std::time::{Duration, Instant};

/// CRC-32C, which is the device's.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Most bytes of one operation.
pub const LARGEST: usize = 64 << 10;
/// Known bytes before and behind a destination.
const FRAME: usize = 64;
const FRAME_BYTE: u8 = 0xa5;
/// Where things are in the memory: completion record, source, destination with its frame.
const RECORD_AT: usize = 0;
const SOURCE_AREA: Range<usize> = 0x1000..SIZE / 2;
const DESTINATION_AREA: Range<usize> = SIZE / 2 + FRAME..SIZE - FRAME;

/// What there is to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    /// Copies
    Copy,
    /// Copies between places that overlap, which not every device does; counted with the copies
    Move,
    /// Repetitions of a pattern of eight bytes
    Fill,
    /// Comparisons, of what is equal and of what differs in one byte
    Compare,
    /// Checksums, CRC-32C
    Crc,
}

impl Choice {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Copy => &[Kind::Copy],
            Self::Move => &[Kind::Move],
            Self::Fill => &[Kind::Fill],
            Self::Compare => &[Kind::CompareEqual, Kind::CompareDifferent],
            Self::Crc => &[Kind::Crc],
        }
    }
}

/// Which operations there are.
pub struct Mix {
    kinds: Vec<Kind>,
    largest: usize,
}

impl Mix {
    /// Those of the choices, each of at most `largest` bytes.
    ///
    /// # Errors
    /// When that is more than the memory or the queue takes.
    pub fn new(choices: &[Choice], largest: usize, queue: &Queue) -> Result<Self> {
        let most = usize::try_from(queue.largest_transfer).map_or(LARGEST, |most| most.min(LARGEST));
        ensure!(
            (1..=most).contains(&largest),
            "operations of {largest} bytes; this queue takes 1 to {most} here"
        );
        let kinds = choices.iter().flat_map(|choice| choice.kinds()).copied();
        Ok(Self { kinds: kinds.collect(), largest })
    }

    /// Any of them, of any size and alignment.
    pub fn random(&self, random: &mut Rng) -> Operation {
        let size = random.usize(1..=self.largest);
        let kind = self.kinds[random.usize(..self.kinds.len())];
        let mut source = random.usize(SOURCE_AREA.start..SOURCE_AREA.end - size);
        let mut destination = random.usize(DESTINATION_AREA.start..DESTINATION_AREA.end - size);
        if kind == Kind::Move {
            source = random.usize(DESTINATION_AREA.start..DESTINATION_AREA.end - 2 * size);
            destination = source + random.usize(..size);
            if random.bool() {
                core::mem::swap(&mut source, &mut destination);
            }
        }
        Operation { kind, source, destination, size }
    }
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Copies.
    Copy,
    /// Copies to where a part of the source is, or all.
    Move,
    /// Repeats a pattern of eight bytes.
    Fill,
    /// Compares what is equal.
    CompareEqual,
    /// Compares what differs in one byte.
    CompareDifferent,
    /// CRC-32C.
    Crc,
}

impl Kind {
    fn compares(self) -> bool {
        matches!(self, Self::CompareEqual | Self::CompareDifferent)
    }
}

/// Which operand the device finds so that it has to stop, where memory is left untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Missing {
    /// The source is not there.
    Source,
    /// The destination is not there.
    Destination,
    /// The destination was looked at: it is there, but not to be written.
    Writable,
}

impl Missing {
    /// Any that can be for such an operation.
    fn random(kind: Kind, random: &mut Rng) -> Self {
        let any: &[Self] = match kind {
            Kind::Copy => &[Self::Source, Self::Destination, Self::Writable],
            Kind::Move | Kind::Fill => &[Self::Destination, Self::Writable],
            Kind::CompareEqual | Kind::CompareDifferent => &[Self::Source, Self::Destination],
            Kind::Crc => &[Self::Source],
        };
        any[random.usize(..any.len())]
    }
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    kind: Kind,
    source: usize,
    destination: usize,
    size: usize,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes from {:#x} to {:#x}", self.kind, self.size, self.source, self.destination)
    }
}

/// How many of each kind.
#[derive(Default)]
pub struct Counts {
    copies: u64,
    fills: u64,
    compares: u64,
    crcs: u64,
    /// Of all kinds.
    pub failures: u64,
    /// How often the device stopped at a page that was not there.
    pub partial: u64,
}

impl Counts {
    /// Counts one, whether it failed or not.
    pub fn count(&mut self, operation: &Operation) {
        *match operation.kind {
            Kind::Copy | Kind::Move => &mut self.copies,
            Kind::Fill => &mut self.fills,
            Kind::CompareEqual | Kind::CompareDifferent => &mut self.compares,
            Kind::Crc => &mut self.crcs,
        } += 1;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "copies={} fills={} compares={} crcs={} failures={}",
            self.copies, self.fills, self.compares, self.crcs, self.failures
        )
    }
}

impl Operation {
    /// Prepares the data, has the device do it, and verifies. Adds to `busy` what the device's part took, and to `partial` how
    /// often the device stopped in it.
    ///
    /// # Errors
    /// When the device does not do it, or not so: what is wrong.
    pub fn run(
        &self,
        memory: &mut Memory,
        queue: &Queue,
        wait: &Wait,
        random: &mut Rng,
        busy: &mut Duration,
        partial: &mut u64,
    ) -> Result<()> {
        let pattern = random.u64(..);
        let different = random.usize(..self.size);
        let prepared = self.prepare(memory, random, pattern, different)?;

        memory.clear_record(RECORD_AT);
        let mut work = Work::new(self.fields(memory, queue, pattern)?, memory, RECORD_AT);
        let start = Instant::now();
        work.submit(queue);
        let finished = work.finish(memory, queue, wait);
        *partial += work.partial();
        finished?;
        *busy += start.elapsed();

        self.verify(memory, &work, &prepared, different)
    }

    /// Compares what the device did with what it had to do.
    fn verify(&self, memory: &mut Memory, work: &Work, prepared: &Prepared, different: usize) -> Result<()> {
        let record = memory.record(RECORD_AT);
        let record = Record(&record);
        let completed = work.bytes_completed(&record);
        match record.status() {
            SUCCESS => {}
            status => bail!(
                "status {status:#04x} after {completed} bytes, fault address {:#x}",
                record.fault_address()
            ),
        }
        match self.kind {
            Kind::CompareEqual => ensure!(record.result() == 0, "what is equal was found different"),
            Kind::CompareDifferent => ensure!(
                record.result() == 1 && completed as usize == different,
                "result {} at {completed}, the difference is at {different}",
                record.result(),
            ),
            Kind::Crc => ensure!(
                record.crc() == prepared.crc,
                "CRC {:#010x} instead of {:#010x}",
                record.crc(),
                prepared.crc
            ),
            Kind::Copy | Kind::Move | Kind::Fill => {}
        }
        let frame = &memory.bytes()[self.frame()];
        if let Some(at) = frame.iter().zip(&prepared.frame).position(|(is, must)| is != must) {
            bail!("wrong byte {} bytes from the destination's start", at as i64 - FRAME as i64);
        }
        Ok(())
    }

    /// The destination with what lies around it.
    fn frame(&self) -> Range<usize> {
        self.destination - FRAME..self.destination + self.size + FRAME
    }

    /// Puts the operands into the memory. What is to be missing is not even looked at after that.
    fn prepare(
        &self,
        memory: &mut Memory,
        random: &mut Rng,
        pattern: u64,
        different: usize,
    ) -> Result<Prepared> {
        let source = self.source..self.source + self.size;
        let missing = memory.untouched().then(|| Missing::random(self.kind, random));
        let mut data = vec![0; self.size];
        let zero = missing == Some(Missing::Source) || missing.is_some() && self.kind.compares();
        if !zero {
            random.fill(&mut data);
        }
        // The second source of a comparison.
        let mut other = if self.kind.compares() { data.clone() } else { Vec::new() };
        if self.kind == Kind::CompareDifferent {
            let differing = if missing == Some(Missing::Destination) { &mut data } else { &mut other };
            differing[different] ^= 1 << random.u32(..8);
        }
        let fresh = matches!(missing, Some(Missing::Destination | Missing::Writable));
        let mut frame = vec![if fresh { 0 } else { FRAME_BYTE }; self.size + 2 * FRAME];
        if self.kind.compares() {
            frame[FRAME..FRAME + self.size].copy_from_slice(&other);
        }

        match fresh {
            true => memory.forget(self.frame())?,
            false => memory.bytes()[self.frame()].copy_from_slice(&frame),
        }
        if missing == Some(Missing::Writable) {
            memory.look_at(self.frame())?;
        }
        match missing {
            Some(Missing::Source) => memory.forget(source)?,
            _ => memory.bytes()[source].copy_from_slice(&data),
        }

        // What the memory must look like afterwards.
        if self.kind == Kind::Move {
            let start = self.frame().start;
            for (at, value) in (self.source..).zip(&data) {
                if let Some(byte) = at.checked_sub(start).and_then(|at| frame.get_mut(at)) {
                    *byte = *value;
                }
            }
        }
        let target = &mut frame[FRAME..FRAME + self.size];
        match self.kind {
            Kind::Copy | Kind::Move => target.copy_from_slice(&data),
            Kind::Fill => {
                for (byte, value) in target.iter_mut().zip(pattern.to_le_bytes().iter().cycle()) {
                    *byte = *value;
                }
            }
            Kind::CompareEqual | Kind::CompareDifferent | Kind::Crc => {}
        }
        Ok(Prepared { frame, crc: if self.kind == Kind::Crc { CRC.checksum(&data) } else { 0 } })
    }

    fn fields(&self, memory: &Memory, queue: &Queue, pattern: u64) -> Result<Fields> {
        let source = memory.address(self.source);
        let destination = memory.address(self.destination);
        let (operation, source, destination) = match self.kind {
            Kind::Copy | Kind::Move => (operation::MEMORY_MOVE, source, destination),
            Kind::Fill => (operation::FILL, pattern, destination),
            Kind::CompareEqual | Kind::CompareDifferent => (operation::COMPARE, source, destination),
            Kind::Crc => (operation::CRC_GENERATION, source, 0),
        };
        Ok(Fields {
            operation,
            source,
            destination,
            size: u32::try_from(self.size)?,
            interrupt: queue.interrupt,
            ..Fields::default()
        })
    }
}

/// What must be found afterwards.
struct Prepared {
    /// The destination with what lies around it.
    frame: Vec<u8>,
    /// The source's CRC-32C, where that is asked for.
    crc: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portal::Portal;

    /// Does random operations of one kind by the simulated device, and returns what failed, and how often it stopped.
    fn simulated(choice: Choice, untouched: bool, count: usize) -> (Vec<String>, u64) {
        let mut random = Rng::with_seed(1);
        let mix = Mix { kinds: choice.kinds().to_vec(), largest: LARGEST };
        let mut memory = Memory::ordinary(untouched).unwrap();
        let queue = Queue {
            // SAFETY: nothing is submitted.
            portal: unsafe { Portal::new(core::ptr::null_mut()) },
            entries: 1,
            largest_transfer: LARGEST as u64,
            interrupt: None,
        };
        let (mut failed, mut partial) = (Vec::new(), 0);
        for _ in 0..count {
            let operation = mix.random(&mut random);
            let (pattern, different) = (random.u64(..), random.usize(..operation.size));
            let prepared = operation.prepare(&mut memory, &mut random, pattern, different).unwrap();
            memory.clear_record(RECORD_AT);
            let mut work = Work::new(operation.fields(&memory, &queue, pattern).unwrap(), &memory, RECORD_AT);
            let done = work.simulate(&mut memory);
            let verified = done.and_then(|()| operation.verify(&mut memory, &work, &prepared, different));
            failed.extend(verified.err().map(|error| format!("{operation}: {error}")));
            partial += work.partial();
        }
        (failed, partial)
    }

    const ALL: [Choice; 5] = [Choice::Copy, Choice::Move, Choice::Fill, Choice::Compare, Choice::Crc];

    #[test]
    fn operations_reach_their_ends_whatever_pages_are_missing() {
        for choice in ALL {
            let (failed, partial) = simulated(choice, true, 200);
            assert!(failed.is_empty(), "{choice:?}: {failed:?}");
            // Nearly all find something missing, the larger ones page after page.
            assert!(partial > 500, "{choice:?}: stopped {partial} times only");
        }
    }

    #[test]
    fn nothing_stops_where_all_was_touched() {
        for choice in ALL {
            assert_eq!(simulated(choice, false, 50), (Vec::new(), 0), "{choice:?}");
        }
    }

    const MISSING: [Missing; 3] = [Missing::Source, Missing::Destination, Missing::Writable];

    #[test]
    fn every_operand_is_missing_at_times_and_no_other() {
        let mut random = Rng::with_seed(1);
        let mut met = |kind| {
            let met: Vec<Missing> = (0..100).map(|_| Missing::random(kind, &mut random)).collect();
            MISSING.map(|missing| met.contains(&missing))
        };
        assert_eq!(met(Kind::Copy), [true, true, true]);
        assert_eq!(met(Kind::Fill), [false, true, true]);
        assert_eq!(met(Kind::CompareDifferent), [true, true, false]);
        assert_eq!(met(Kind::Crc), [true, false, false]);
    }
}
