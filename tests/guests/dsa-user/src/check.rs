// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations with random data, each compared with what the processor computes.
//!
//! **Principle.** What must not change is looked at as well: a frame of known bytes lies around every destination.

use crate::descriptor::{Descriptor, Fields, RECORD, Record, SUCCESS, operation};
use crate::device::Queue;
use crate::memory::{Memory, SIZE};
use crate::wait::Wait;
use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use core::fmt;
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
const SOURCE_AREA: core::ops::Range<usize> = 0x1000..SIZE / 2;
const DESTINATION_AREA: core::ops::Range<usize> = SIZE / 2 + FRAME..SIZE - FRAME;

/// What there is to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    /// Copies
    Copy,
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
        Operation {
            kind: self.kinds[random.usize(..self.kinds.len())],
            source: random.usize(SOURCE_AREA.start..SOURCE_AREA.end - size),
            destination: random.usize(DESTINATION_AREA.start..DESTINATION_AREA.end - size),
            size,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Copies.
    Copy,
    /// Repeats a pattern of eight bytes.
    Fill,
    /// Compares what is equal.
    CompareEqual,
    /// Compares what differs in one byte.
    CompareDifferent,
    /// CRC-32C.
    Crc,
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
}

impl Counts {
    /// Counts one, whether it failed or not.
    pub fn count(&mut self, operation: &Operation) {
        *match operation.kind {
            Kind::Copy => &mut self.copies,
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
    /// Prepares the data, has the device do it, and verifies. Adds to `busy` what the device's part took.
    pub fn run(
        &self,
        memory: &mut Memory,
        queue: &Queue,
        wait: &Wait,
        random: &mut Rng,
        busy: &mut Duration,
    ) -> Result<()> {
        let source = self.source..self.source + self.size;
        let destination = self.destination..self.destination + self.size;
        let frame = destination.start - FRAME..destination.end + FRAME;
        let pattern = random.u64(..);
        let different = random.usize(..self.size);
        let bytes = memory.bytes();
        random.fill(&mut bytes[source.clone()]);
        bytes[frame.clone()].fill(FRAME_BYTE);
        if matches!(self.kind, Kind::CompareEqual | Kind::CompareDifferent) {
            bytes.copy_within(source.clone(), destination.start);
        }
        if self.kind == Kind::CompareDifferent {
            bytes[destination.start + different] ^= 1 << random.u32(..8);
        }
        // What the memory must look like afterwards.
        let mut expected = bytes[frame.clone()].to_vec();
        let target = &mut expected[FRAME..FRAME + self.size];
        match self.kind {
            Kind::Copy => target.copy_from_slice(&bytes[source.clone()]),
            Kind::Fill => {
                for (byte, value) in target.iter_mut().zip(pattern.to_le_bytes().iter().cycle()) {
                    *byte = *value;
                }
            }
            Kind::CompareEqual | Kind::CompareDifferent | Kind::Crc => {}
        }
        let crc = CRC.checksum(&bytes[source]);

        let start = Instant::now();
        self.submit(memory, queue, wait, pattern)?;
        *busy += start.elapsed();

        let bytes = memory.bytes();
        let record = Record(&bytes[RECORD_AT..RECORD_AT + RECORD]);
        match record.status() {
            SUCCESS => {}
            status => bail!(
                "status {status:#04x} after {} bytes, fault address {:#x}",
                record.bytes_completed(),
                record.fault_address()
            ),
        }
        match self.kind {
            Kind::CompareEqual => ensure!(record.result() == 0, "what is equal was found different"),
            Kind::CompareDifferent => ensure!(
                record.result() == 1 && record.bytes_completed() as usize == different,
                "result {} at {}, the difference is at {different}",
                record.result(),
                record.bytes_completed()
            ),
            Kind::Crc => ensure!(record.crc() == crc, "CRC {:#010x} instead of {crc:#010x}", record.crc()),
            Kind::Copy | Kind::Fill => {}
        }
        if let Some(at) = bytes[frame].iter().zip(&expected).position(|(is, must)| is != must) {
            bail!("wrong byte {} bytes from the destination's start", at as i64 - FRAME as i64);
        }
        Ok(())
    }

    fn submit(&self, memory: &mut Memory, queue: &Queue, wait: &Wait, pattern: u64) -> Result<()> {
        memory.bytes()[RECORD_AT..RECORD_AT + RECORD].fill(0);
        let source = memory.address(self.source);
        let destination = memory.address(self.destination);
        let (operation, source, destination) = match self.kind {
            Kind::Copy => (operation::MEMORY_MOVE, source, destination),
            Kind::Fill => (operation::FILL, pattern, destination),
            Kind::CompareEqual | Kind::CompareDifferent => (operation::COMPARE, source, destination),
            Kind::Crc => (operation::CRC_GENERATION, source, 0),
        };
        queue.portal.submit(&Descriptor::new(&Fields {
            operation,
            record: memory.address(RECORD_AT),
            source,
            destination,
            size: u32::try_from(self.size)?,
            seed: 0,
            flags: 0,
            interrupt: queue.interrupt,
        }));
        wait.complete(memory, RECORD_AT)
    }
}
