// SPDX-License-Identifier: MIT OR Apache-2.0
//! An operation until its end, however often the device stops before it.
//!
//! **Principle.** With shared virtual addressing the device meets the program's pages as they are: not there yet, given back,
//! or shared and not to be written until somebody does. Unless the queue waits for such pages (block on fault), it then stops,
//! and says how much it has done and at which address. That is no error. The program does what its own access would have done,
//! and submits the rest. Without, nothing of the kind happens, and a fault is final.
//!
//! Three things nobody tells the program, so it must see to them itself: a completion record that the device could not write
//! (its page is touched before), a write that an IOMMU refused to a device without address translation service (such a queue is
//! no use for memory that has not been touched), and which pages will be missing next (only touching says that).
//!
//! Source: Intel DSA Architecture Specification 341204-006, "Page fault handling" and the operations' descriptors.

use crate::descriptor::{Descriptor, Fields, Record};
use crate::device::Queue;
use crate::memory::Memory;
use crate::wait::{DEADLINE, Wait};
use anyhow::{Result, ensure};
use std::time::Instant;

/// An operation that is under way, or about to be.
#[derive(Clone)]
pub struct Work {
    /// What is left to do, and the same for the device.
    fields: Fields,
    descriptor: Descriptor,
    /// Where in the memory its completion record is.
    record: usize,
    /// Bytes done before.
    done: u32,
    /// How often it stopped.
    partial: u64,
}

impl Work {
    /// An operation whose completion record goes to an offset in the memory.
    pub fn new(fields: Fields, memory: &Memory, record: usize) -> Self {
        let fields = Fields { record: memory.address(record), ..fields };
        Self { descriptor: Descriptor::new(&fields), fields, record, done: 0, partial: 0 }
    }

    /// Hands it to the device. Its completion record must be clear; that also makes the record's page present, which the device
    /// could not report.
    pub fn submit(&self, queue: &Queue) {
        queue.portal.submit(&self.descriptor);
    }

    /// Once the record has a status: whether that was the end, well or not. If a page was in the way that this program can bring
    /// in, it does, and submits the rest.
    ///
    /// # Errors
    /// When Linux does not bring it in, or it is in the way again and again since the operation was submitted.
    pub fn ended(&mut self, memory: &mut Memory, queue: &Queue, since: Instant) -> Result<bool> {
        let goes_on = self.goes_on(memory, since)?;
        if goes_on {
            self.submit(queue);
        }
        Ok(!goes_on)
    }

    /// Whether there is a rest to submit, which it then is ready for.
    fn goes_on(&mut self, memory: &mut Memory, since: Instant) -> Result<bool> {
        let Some(rest) = self.rest(memory, since)? else { return Ok(false) };
        self.done += self.fields.size - rest.size;
        self.partial += 1;
        self.descriptor = Descriptor::new(&rest);
        self.fields = rest;
        memory.clear_record(self.record);
        Ok(true)
    }

    /// What is left to do, now that the page is there at which the device stopped; nothing where the operation has ended.
    fn rest(&self, memory: &Memory, since: Instant) -> Result<Option<Fields>> {
        let record = memory.record(self.record);
        let record = Record(&record);
        let Some(fault) = record.fault() else { return Ok(None) };
        let Some(rest) = self.fields.rest(&record) else { return Ok(None) };
        if !memory.bring_in(fault)? {
            return Ok(None);
        }
        ensure!(
            since.elapsed() < DEADLINE,
            "{:#x} faults again and again although it is there; does the IOMMU remember that it was not?",
            fault.address
        );
        Ok(Some(rest))
    }

    /// Waits for the end of what was submitted.
    ///
    /// # Errors
    /// When there is none, or as for [`Work::ended`].
    pub fn finish(&mut self, memory: &mut Memory, queue: &Queue, wait: &Wait) -> Result<()> {
        let since = Instant::now();
        loop {
            wait.complete(memory, self.record)?;
            if self.ended(memory, queue, since)? {
                return Ok(());
            }
        }
    }

    /// Bytes done in all, those before the last stop included.
    pub fn bytes_completed(&self, record: &Record<'_>) -> u32 {
        self.done.saturating_add(record.bytes_completed())
    }

    /// How often the device stopped at a page.
    pub fn partial(&self) -> u64 {
        self.partial
    }
}

#[cfg(test)]
impl Work {
    /// Has the simulated device do it to its end.
    pub fn simulate(&mut self, memory: &mut Memory) -> Result<()> {
        let since = Instant::now();
        loop {
            crate::simulated::run(self.descriptor.words(), memory);
            if !self.goes_on(memory, since)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{RECORD, SUCCESS, operation};

    const RECORD_AT: usize = 0x40;
    const SOURCE_AT: usize = 0x3000;
    const DESTINATION_AT: usize = 0x6000;

    /// A comparison, and what is left of it after an answer of the device's, that long after it was submitted.
    fn after(
        status: u8,
        bytes: u32,
        address: impl Fn(&Memory) -> u64,
        since: Instant,
    ) -> Result<Option<[u64; 3]>> {
        let mut memory = Memory::ordinary(true)?;
        let fields = Fields {
            operation: operation::COMPARE,
            source: memory.address(SOURCE_AT),
            destination: memory.address(DESTINATION_AT),
            size: 0x2000,
            ..Fields::default()
        };
        let work = Work::new(fields, &memory, RECORD_AT);
        assert_eq!(work.descriptor.words()[1], memory.address(RECORD_AT));
        let address = address(&memory);
        let record = &mut memory.bytes()[RECORD_AT..RECORD_AT + RECORD];
        record[0] = status;
        record[4..8].copy_from_slice(&bytes.to_le_bytes());
        record[8..16].copy_from_slice(&address.to_le_bytes());
        let rest = work.rest(&memory, since)?;
        let offset = |address| address - memory.address(0);
        Ok(rest.map(|rest| [offset(rest.source), offset(rest.destination), rest.size.into()]))
    }

    #[test]
    fn what_stopped_at_a_page_goes_on_behind_what_was_done() {
        let now = Instant::now();
        let rest = after(0x03, 0x1000, |memory| memory.address(DESTINATION_AT + 0x1000), now).unwrap();
        assert_eq!(rest, Some([0x4000, 0x7000, 0x1000]));
    }

    #[test]
    fn what_ended_or_stopped_elsewhere_does_not_go_on() {
        let own = |memory: &Memory| memory.address(SOURCE_AT);
        let foreign = |memory: &Memory| memory.address(0) - 1;
        let now = Instant::now();
        assert_eq!(after(SUCCESS, 0, own, now).unwrap(), None);
        assert_eq!(after(0x13, 0, own, now).unwrap(), None);
        assert_eq!(after(0x03, 0x2000, own, now).unwrap(), None);
        assert_eq!(after(0x83, 0x10, foreign, now).unwrap(), None);
    }

    #[test]
    fn a_page_that_is_in_the_way_for_ever_is_an_error() {
        let own = |memory: &Memory| memory.address(SOURCE_AT);
        let Some(long_ago) = Instant::now().checked_sub(DEADLINE) else { return };
        assert!(after(0x03, 0, own, long_ago).unwrap_err().to_string().contains("again and again"));
    }
}
