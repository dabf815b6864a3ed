// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors for a device that no IOMMU stands in front of: each of their addresses is proven to be the guest's and
//! becomes a host address, one contiguous piece at a time.
//!
//! **Principle.** What the device gets is made here from what is understood, never copied from the guest: the operation,
//! a few flags, the size, and addresses. An operation that has others (batches, deltas, CRCs whose seed has an address, DIF,
//! drains with addresses to read) is not offered.
//!
//! A piece is sent when the one before it has completed, so the guest finds what one descriptor would have done. Where
//! memory ends within a descriptor, what lies before is done, and the rest faults, as it does behind an IOMMU.
//!
//! Source: Intel DSA Architecture Specification 341204-006, "Descriptor format" and the pages of the operations; section
//! "Partial descriptor completion".

use pasidon_kernel::base::addr::{HostPhys, Iova};
use pasidon_kernel::vdev::parent::UntranslatedMemory;

use super::descriptor::{
    COMPLETES_TO_DRIVER, Descriptor, Operand, Record, Refused, Submission, flag, operands, operation,
    result_of, status, status_of,
};

/// What is offered, as in OPCAP word 0.
pub(super) const OPERATIONS: u64 = 1 << operation::NOOP
    | 1 << operation::MEMORY_MOVE
    | 1 << operation::FILL
    | 1 << operation::COMPARE
    | 1 << operation::COMPARE_PATTERN
    | 1 << operation::DUALCAST
    | 1 << operation::CACHE_FLUSH;

/// Flags that a guest may set, beside those of the completion.
const FLAGS: u32 = flag::CHECK_RESULT | flag::CACHE_CONTROL | flag::STRICT_ORDER | flag::READ_BACK;
/// The completion's own, and which traffic class: all of it goes in one, so that a completion record never overtakes data.
const UNDERSTOOD: u32 = FLAGS | COMPLETES_TO_DRIVER | flag::TRAFFIC_CLASSES;

/// The word with the pattern of an operation that is offered.
const fn pattern(code: u8) -> Option<usize> {
    match code {
        operation::FILL => Some(2),
        operation::COMPARE_PATTERN => Some(3),
        _ => None,
    }
}

/// Where memory ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fault {
    address: Iova,
    /// As in a completion record.
    code: u8,
}

/// A descriptor on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Work {
    descriptor: Descriptor,
    /// Bytes that can be done.
    end: u32,
    /// Bytes that are done.
    done: u32,
    /// Bytes that the device has.
    piece: u32,
    /// What ends it, where that is not its size.
    fault: Option<Fault>,
}

impl Work {
    /// Proves a descriptor that has passed [`Descriptor::check`].
    ///
    /// # Errors
    /// When a device could not do it, or not a byte of it: what it would answer.
    pub fn new(descriptor: Descriptor, memory: &dyn UntranslatedMemory) -> Result<Self, Refused> {
        let refused = |code: u8| Refused { code, flags: 0, address: 0 };
        let unknown = descriptor.flags() & !UNDERSTOOD;
        if unknown != 0 {
            return Err(Refused { flags: unknown, ..refused(status::FLAGS) });
        }
        if OPERATIONS.checked_shr(descriptor.operation().into()).is_none_or(|offered| offered & 1 == 0) {
            return Err(refused(status::OPERATION));
        }
        let operands = operands(descriptor.operation());
        if operands.is_empty() {
            return Ok(Self { descriptor, end: 0, done: 0, piece: 0, fault: None });
        }
        if descriptor.size() == 0 {
            return Err(refused(status::SIZE));
        }
        if descriptor.overlaps(operands) {
            return Err(refused(status::OVERLAP));
        }
        let mut work = Self { descriptor, end: descriptor.size(), done: 0, piece: 0, fault: None };
        for operand in operands {
            let start = descriptor.word(operand.word);
            if let Some(at) = hole(memory, start, work.end) {
                work.end = at;
                work.fault =
                    Some(Fault { address: Iova(start.wrapping_add(at.into())), code: operand.fault() });
            }
        }
        match work.fault {
            Some(fault) if work.end == 0 => Err(Refused { address: fault.address.0, ..refused(fault.code) }),
            _ => Ok(work),
        }
    }

    /// The next piece, completing to `record` and with that interrupt. `None` where what was proven is not so any more.
    pub fn next(
        &mut self,
        memory: &dyn UntranslatedMemory,
        record: HostPhys,
        handle: u16,
    ) -> Option<Submission> {
        let code = self.descriptor.operation();
        let flags = self.descriptor.flags() & FLAGS | COMPLETES_TO_DRIVER;
        let mut words: Submission = [0; _];
        words[0] = u64::from(code) << 56 | u64::from(flags) << 32;
        words[1] = record.0;
        if matches!(code, operation::COMPARE | operation::COMPARE_PATTERN) {
            words[5] = self.descriptor.word(5) & 0xff;
        }
        if let Some(word) = pattern(code) {
            // It begins anew with each piece.
            words[word] = self.descriptor.word(word).rotate_right(self.done % 8 * 8);
        }
        let mut piece = self.end - self.done;
        for operand in operands(code) {
            let (host, follow) = memory.run(self.at(operand))?;
            words[operand.word] = host.0;
            piece = piece.min(u32::try_from(follow).unwrap_or(u32::MAX));
        }
        self.piece = piece;
        words[4] = u64::from(piece) | u64::from(handle) << 32;
        Some(words)
    }

    /// Whether the piece that the device has is not the last one.
    pub fn has_more(&self) -> bool {
        self.done + self.piece < self.end
    }

    /// The device has completed a piece; whether there is another.
    pub fn advance(&mut self, record: &Record) -> bool {
        let more = went_on(record) && self.has_more();
        if more {
            self.done += self.piece;
        }
        more
    }

    /// What the guest finds, when the device has completed the last piece.
    pub fn finish(&self, record: &Record, memory: &dyn UntranslatedMemory) -> Record {
        let fault = self.fault.filter(|_| went_on(record));
        if let Some(fault) = fault {
            return [u64::from(fault.code) | u64::from(self.end) << 32, fault.address.0, 0, 0];
        }
        let mut record = *record;
        if status_of(&record) == status::PAGE_FAULT || result_of(&record) != 0 {
            record[0] = record[0].wrapping_add(u64::from(self.done) << 32);
        }
        record[1] = self.guest_address(record[1], memory);
        record
    }

    fn at(&self, operand: &Operand) -> Iova {
        Iova(self.descriptor.word(operand.word).wrapping_add(self.done.into()))
    }

    /// What the guest calls an address in the piece that the device has; 0 for any other.
    fn guest_address(&self, host: u64, memory: &dyn UntranslatedMemory) -> u64 {
        let found = operands(self.descriptor.operation()).iter().find_map(|operand| {
            let (start, _) = memory.run(self.at(operand))?;
            let offset = host.checked_sub(start.0).filter(|offset| *offset < self.piece.into())?;
            Some(self.at(operand).0 + offset)
        });
        found.unwrap_or(0)
    }
}

impl Descriptor {
    /// Whether the device writes where it also reads or writes otherwise.
    fn overlaps(&self, operands: &[Operand]) -> bool {
        let size = u64::from(self.size());
        let apart = |a: &Operand, b: &Operand| self.word(a.word).abs_diff(self.word(b.word)) >= size;
        let others = |place: usize| operands.iter().skip(place + 1);
        operands
            .iter()
            .enumerate()
            .any(|(place, a)| others(place).any(|b| (a.written || b.written) && !apart(a, b)))
    }
}

/// Whether a piece was done without a reason to end there.
fn went_on(record: &Record) -> bool {
    matches!(status_of(record), status::SUCCESS | status::FALSE_PREDICATE) && result_of(record) == 0
}

/// The first of so many bytes that is no memory.
fn hole(memory: &dyn UntranslatedMemory, start: u64, len: u32) -> Option<u32> {
    let mut at = 0;
    while at < len {
        let run = start.checked_add(at.into()).and_then(|address| memory.run(Iova(address)));
        let Some((_, follow)) = run.filter(|(_, follow)| *follow > 0) else { return Some(at) };
        at = at.saturating_add(u32::try_from(follow).unwrap_or(u32::MAX));
    }
    None
}
