// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command queue of one ITS: encoding, handing over, waiting, getting past what it does not take.
//!
//! **Principle.** One batch is under way at a time. What the ITS has read is told to the caller command by
//! command, also where it was late or stopped in the middle, so that the caller always knows what the ITS knows.
//! What a command changed is seen by a redistributor only after a SYNC that names it, so whoever needs the effect
//! ends the batch with one.
//!
//! **Errors.** After a stall the command that was not taken, and those behind it, are replaced by SYNCs, and the
//! ITS goes on. After a time-out the batch stays under way, and the next call waits for it first.
//! Source: IHI 0069, "The ITS command interface", "ITS commands", and the registers GITS_CREADR and GITS_CWRITER.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;

use super::registers::{ITS, gits};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Pages of the queue. Its base must be aligned to 64 KiB, so it has that size.
const PAGES: usize = 16;
/// Bytes per command.
const COMMAND_BYTES: u64 = 32;
/// 64-bit words per command.
const COMMAND_WORDS: usize = 4;
/// Commands in the queue.
const SLOTS: usize = PAGES * PAGE_SIZE as usize / COMMAND_BYTES as usize;
/// Most commands of a batch.
const BATCH: usize = 4;
/// How often one call makes the ITS go on after a stall.
const RETRIES: usize = 2;
/// V of MAPD and MAPC.
const VALID: u64 = 1 << 63;

/// Command numbers.
mod number {
    pub const SYNC: u64 = 0x05;
    pub const MAPD: u64 = 0x08;
    pub const MAPC: u64 = 0x09;
    pub const MAPTI: u64 = 0x0a;
    pub const INV: u64 = 0x0c;
    pub const INVALL: u64 = 0x0d;
    pub const DISCARD: u64 = 0x0f;
}

/// A redistributor as commands name it: RDbase, in its place (bits 51:16 of a word).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target(pub(super) u64);

/// What the driver asks of an ITS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// MAPD: a device has an interrupt translation table.
    MapDevice { device: u32, table: HostPhys, event_bits: u32 },
    /// MAPC: a collection is taken by a redistributor.
    MapCollection { collection: u16, target: Target },
    /// MAPTI: an event of a device is an LPI of a collection.
    MapEvent { device: u32, event: u32, intid: u32, collection: u16 },
    /// INV: the configuration of an event's LPI changed.
    Invalidate { device: u32, event: u32 },
    /// INVALL: the configuration of all LPIs of a collection changed.
    InvalidateAll { collection: u16 },
    /// DISCARD: an event is no interrupt any more, and not pending.
    Discard { device: u32, event: u32 },
    /// SYNC: what came before is seen by a redistributor.
    Sync { target: Target },
}

impl Command {
    fn words(self) -> [u64; COMMAND_WORDS] {
        let of = |number: u64, device: u32| number | u64::from(device) << 32;
        match self {
            Self::MapDevice { device, table, event_bits } => {
                [of(number::MAPD, device), u64::from(event_bits - 1), VALID | table.0, 0]
            }
            Self::MapCollection { collection, target } => {
                [number::MAPC, 0, VALID | target.0 | u64::from(collection), 0]
            }
            Self::MapEvent { device, event, intid, collection } => {
                [of(number::MAPTI, device), u64::from(event) | u64::from(intid) << 32, collection.into(), 0]
            }
            Self::Invalidate { device, event } => [of(number::INV, device), event.into(), 0, 0],
            Self::InvalidateAll { collection } => [number::INVALL, 0, collection.into(), 0],
            Self::Discard { device, event } => [of(number::DISCARD, device), event.into(), 0, 0],
            Self::Sync { target } => [number::SYNC, 0, target.0, 0],
        }
    }
}

/// What the queue works on.
pub(super) struct Access<'a, R, M> {
    /// The registers of the ITS.
    pub(super) registers: &'a R,
    /// The memory it reads.
    pub(super) memory: &'a TableMemory<M>,
    /// Time.
    pub(super) host: &'a dyn Host,
    /// Called for each command that the ITS has read, in order.
    pub(super) done: &'a mut dyn FnMut(Command),
}

/// The queue. Callers hold the controller's lock.
#[derive(Debug)]
pub(super) struct Queue {
    base: HostPhys,
    /// Where the next command is put.
    tail: usize,
    /// What lies before `tail` and is not known to have been read.
    under_way: Vec<Command>,
    /// Changes nothing, whatever state the ITS is in: a SYNC with a redistributor that exists.
    filler: Command,
    issued: u64,
}

impl Queue {
    /// Memory for a queue of an ITS that serves `target`, among others.
    pub(super) fn new<M: DmaMemory>(memory: &TableMemory<M>, target: Target) -> Result<Self, Refusal> {
        Ok(Self {
            base: memory.alloc(PAGES, "ITS command queue")?,
            tail: 0,
            under_way: Vec::with_capacity(BATCH),
            filler: Command::Sync { target },
            issued: 0,
        })
    }

    /// Commands handed over so far.
    pub(super) const fn issued(&self) -> u64 {
        self.issued
    }

    /// Whether the ITS has read everything, as far as is known.
    pub(super) const fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Gives the queue to an ITS that is off. It starts empty.
    pub(super) fn install<R: Registers>(&mut self, registers: &R) {
        ITS.write(registers, gits::CBASER, gits::VALID | self.base.0 | (PAGES as u64 - 1));
        registers.write64(gits::CWRITER, 0);
        self.tail = 0;
        self.under_way.clear();
    }

    /// Hands commands over and waits until the ITS has carried them out. On a refusal it has carried out those
    /// that `done` was called for; with [`Queue::is_settled`] it will carry out none of the others.
    pub(super) fn execute<R: Registers, M: DmaMemory>(
        &mut self,
        mut access: Access<'_, R, M>,
        commands: &[Command],
    ) -> Result<(), Refusal> {
        self.settle(&mut access)?;
        if commands.is_empty() {
            return Ok(());
        }
        for &command in commands {
            self.put(access.memory, self.tail, command);
            self.tail = (self.tail + 1) % SLOTS;
            self.under_way.push(command);
            self.issued += 1;
        }
        // What lies in the queue must be there before the ITS is told.
        fence(Ordering::SeqCst);
        access.registers.write64(gits::CWRITER, self.writer());
        self.settle(&mut access)
    }

    /// Waits until the ITS has read everything. On a refusal the call may be repeated.
    pub(super) fn settle<R: Registers, M: DmaMemory>(
        &mut self,
        access: &mut Access<'_, R, M>,
    ) -> Result<(), Refusal> {
        let mut result = Ok(());
        for _ in 0..=RETRIES {
            if self.is_settled() {
                return result;
            }
            let mut reader = 0;
            wait_until(access.host, COMMAND_LIMIT_NS, || {
                reader = access.registers.read64(gits::CREADR);
                reader & gits::CREADR_STALLED != 0 || slot(reader) == self.tail
            });
            self.advance(slot(reader), access.done);
            if self.is_settled() {
                return result;
            }
            if reader & gits::CREADR_STALLED == 0 {
                return Err(self.late(reader));
            }
            result = result.and(Err(self.get_past(access)));
        }
        result
    }

    /// Takes note of what the ITS has read: everything before `reader`.
    fn advance(&mut self, reader: usize, done: &mut dyn FnMut(Command)) {
        let head = (self.tail + SLOTS - self.under_way.len()) % SLOTS;
        let read = (reader + SLOTS - head) % SLOTS;
        // A place outside of what is under way says nothing.
        if read <= self.under_way.len() {
            self.under_way.drain(..read).for_each(done);
        }
    }

    /// After a stall: replaces what the ITS has not done by commands that change nothing, and lets it go on.
    fn get_past<R: Registers, M: DmaMemory>(&mut self, access: &Access<'_, R, M>) -> Refusal {
        let first = (self.tail + SLOTS - self.under_way.len()) % SLOTS;
        let refusal = Refusal::new(
            "ITS command",
            format!(
                "it did not take {:?} ({:#x})",
                self.under_way[0],
                access.memory.read(self.base, first * COMMAND_WORDS)
            ),
            "report this: the driver wrote what the ITS does not take",
        );
        for at in 0..self.under_way.len() {
            self.put(access.memory, (first + at) % SLOTS, self.filler);
            self.under_way[at] = self.filler;
        }
        fence(Ordering::SeqCst);
        access.registers.write64(gits::CWRITER, self.writer() | gits::CWRITER_RETRY);
        refusal
    }

    fn late(&self, reader: u64) -> Refusal {
        Refusal::new(
            "ITS command",
            format!(
                "not done within {} ms (GITS_CREADR {reader:#x}, GITS_CWRITER {:#x})",
                COMMAND_LIMIT_NS / 1_000_000,
                self.writer()
            ),
            "try again; if that does not help restart the machine: this ITS can end no interrupt safely any more",
        )
    }

    /// The value of GITS_CWRITER.
    const fn writer(&self) -> u64 {
        self.tail as u64 * COMMAND_BYTES
    }

    fn put<M: DmaMemory>(&self, memory: &TableMemory<M>, slot: usize, command: Command) {
        for (at, word) in command.words().into_iter().enumerate() {
            memory.write(self.base, slot * COMMAND_WORDS + at, word);
        }
    }
}

/// The slot that GITS_CREADR points to; one past the queue where it points outside.
const fn slot(reader: u64) -> usize {
    let slot = ((reader & gits::OFFSET) / COMMAND_BYTES) as usize;
    if slot < SLOTS { slot } else { SLOTS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded_as_the_specification_has_them() {
        let (device, event, target) = (0x6a08, 5, Target(0x80a_0000));
        let map = Command::MapDevice { device, table: HostPhys(0x12_3400), event_bits: 11 };
        assert_eq!(map.words(), [0x6a08_0000_0008, 10, 1 << 63 | 0x12_3400, 0]);
        let collection = Command::MapCollection { collection: 3, target };
        assert_eq!(collection.words(), [9, 0, 1 << 63 | 0x80a_0003, 0]);
        let map = Command::MapEvent { device, event, intid: 8193, collection: 3 };
        assert_eq!(map.words(), [0x6a08_0000_000a, 0x2001_0000_0005, 3, 0]);
        let invalidate = Command::Invalidate { device, event };
        assert_eq!(invalidate.words(), [0x6a08_0000_000c, 5, 0, 0]);
        assert_eq!(Command::InvalidateAll { collection: 3 }.words(), [0x0d, 0, 3, 0]);
        let discard = Command::Discard { device, event };
        assert_eq!(discard.words(), [0x6a08_0000_000f, 5, 0, 0]);
        assert_eq!(Command::Sync { target }.words(), [5, 0, 0x80a_0000, 0]);
    }
}
