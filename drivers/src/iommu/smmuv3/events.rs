// SPDX-License-Identifier: MIT OR Apache-2.0
//! The event queue: who was refused what, and why, in words.
//!
//! The words are those of the other IOMMUs wherever the reason is the same. The queue has a lock of its own,
//! so that the event interrupt may come while a mapping is under way.
//! Source: SMMUv3 specification, "Event records".

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::fault::{DmaFault, FaultAccess, Noted};
use pasidon_kernel::dma::pasid::Pasid;

use super::registers::{Identification, OVERFLOW, offset};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;

/// Words of a record.
const WORDS: usize = 4;
/// Bytes of a record.
const BYTES: u64 = 32;
/// Largest queue made, log2 of records: one page.
const LOG2_LIMIT: u32 = 7;
/// SSV: the SubstreamID counts.
const SUBSTREAM_VALID: u64 = 1 << 11;
/// RnW, in the second word: the request was a read.
const READ: u64 = 1 << 35;
/// Records read in one call, so that a storm of events cannot hold the caller.
const RECORDS_LIMIT: usize = 64;

/// The queue of one unit. Callers hold the lock of the events.
#[derive(Debug)]
pub struct EventQueue {
    base: HostPhys,
    log2: u32,
    /// Index and wrap bit of the next record.
    cons: u32,
    /// OVACKFLG.
    acknowledged: u32,
}

impl EventQueue {
    /// Memory for a queue.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, unit: Identification) -> Result<Self, Refusal> {
        let log2 = unit.event_queue_log2().min(LOG2_LIMIT);
        let pages = (BYTES << log2).div_ceil(PAGE_SIZE) as usize;
        Ok(Self { base: memory.alloc(pages, "SMMU event queue")?, log2, cons: 0, acknowledged: 0 })
    }

    /// The value of EVENTQ_BASE.
    pub const fn base_register(&self) -> u64 {
        self.base.0 | self.log2 as u64
    }

    /// Starts again from slot 0, as EVENTQ_PROD and EVENTQ_CONS were set.
    pub fn restart(&mut self) {
        self.cons = 0;
        self.acknowledged = 0;
    }

    /// Reads the records, oldest first. `requester` gives who a stream is.
    pub fn drain<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &TableMemory<M>,
        requester: &dyn Fn(u32) -> Option<Requester>,
        sink: &mut dyn FnMut(Noted),
    ) -> Drained {
        let mask = (2 << self.log2) - 1;
        let mut left = RECORDS_LIMIT;
        loop {
            // The unit saw what was read so far (CONS): where the two agree, the queue was empty, and the next
            // event is announced.
            let prod = registers.read32(offset::EVENTQ_PROD);
            if prod == self.cons | self.acknowledged {
                return Drained::Empty;
            }
            if left == 0 {
                return Drained::Again;
            }
            if (prod ^ self.acknowledged) & OVERFLOW != 0 {
                self.acknowledged ^= OVERFLOW;
                sink(Noted::Lost);
            }
            while self.cons != prod & mask && left > 0 {
                left -= 1;
                let slot = (self.cons & (mask >> 1)) as usize;
                let record: [u64; WORDS] =
                    core::array::from_fn(|word| memory.read(self.base, slot * WORDS + word));
                self.cons = (self.cons + 1) & mask;
                let stream = (record[0] >> 32) as u32;
                sink(
                    requester(stream)
                        .map_or(Noted::Stranger(stream), |requester| Noted::Fault(decode(requester, record))),
                );
            }
            registers.write32(offset::EVENTQ_CONS, self.cons | self.acknowledged);
        }
    }
}

/// Event types.
mod event {
    pub const UNSUPPORTED: u8 = 0x01;
    pub const BAD_STREAM: u8 = 0x02;
    pub const STE_FETCH: u8 = 0x03;
    pub const BAD_STE: u8 = 0x04;
    pub const BAD_ATS: u8 = 0x05;
    pub const STREAM_DISABLED: u8 = 0x06;
    pub const TRANSLATED_FORBIDDEN: u8 = 0x07;
    pub const BAD_SUBSTREAM: u8 = 0x08;
    pub const CD_FETCH: u8 = 0x09;
    pub const BAD_CD: u8 = 0x0a;
    pub const WALK_ABORT: u8 = 0x0b;
    pub const TRANSLATION: u8 = 0x10;
    pub const ADDRESS_SIZE: u8 = 0x11;
    pub const ACCESS: u8 = 0x12;
    pub const PERMISSION: u8 = 0x13;
    pub const TLB_CONFLICT: u8 = 0x20;
    pub const CONFIGURATION_CONFLICT: u8 = 0x21;
    pub const PAGE_REQUEST: u8 = 0x24;
}

/// One record in words. Configuration errors carry neither address nor direction; they count as writes to
/// address 0.
pub fn decode(requester: Requester, record: [u64; WORDS]) -> DmaFault {
    let code = record[0] as u8;
    let pasid = if record[0] & SUBSTREAM_VALID != 0 {
        Pasid::new((record[0] >> 12) as u32 & ((1 << Pasid::BITS) - 1))
    } else {
        None
    };
    let access = if record[1] & READ != 0 { FaultAccess::Read } else { FaultAccess::Write };
    DmaFault {
        requester,
        pasid,
        address: record[2] & !(PAGE_SIZE - 1),
        access,
        reason: reason(code, pasid.is_some(), access),
        code,
    }
}

/// An event type in words.
fn reason(code: u8, tagged: bool, access: FaultAccess) -> &'static str {
    match code {
        event::UNSUPPORTED => "request of a kind that the IOMMU does not take",
        event::BAD_STREAM | event::BAD_STE => "device not claimed (no stream table entry)",
        event::STE_FETCH => "stream table not readable by the IOMMU",
        event::BAD_ATS => "device TLB not enabled (ATS request refused)",
        event::TRANSLATED_FORBIDDEN => "translated request blocked",
        event::CD_FETCH => "context descriptor not readable by the IOMMU",
        event::WALK_ABORT => "page table not readable by the IOMMU",
        event::STREAM_DISABLED | event::BAD_SUBSTREAM | event::BAD_CD if tagged => "PASID not attached",
        event::STREAM_DISABLED
        | event::BAD_SUBSTREAM
        | event::BAD_CD
        | event::TRANSLATION
        | event::PERMISSION
        | event::ADDRESS_SIZE
            if !tagged =>
        {
            "untagged DMA of a claimed device"
        }
        event::TRANSLATION | event::PERMISSION if access == FaultAccess::Read => "not mapped for reading",
        event::TRANSLATION | event::PERMISSION => "not mapped for writing",
        event::ADDRESS_SIZE => "address beyond the width of the page table",
        event::ACCESS => "accessed or dirty bit not writable",
        event::TLB_CONFLICT => "two translations of one address in the IOMMU",
        event::CONFIGURATION_CONFLICT => "two configurations of one device in the IOMMU",
        event::PAGE_REQUEST => "page requests not enabled for the device",
        _ => "reason unknown to this driver",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Requester = Requester::new(1, 0x6a, 1, 0);

    #[test]
    fn a_tagged_write_is_decoded() {
        let record = [0x10 | 1 << 11 | 0xabcde << 12 | 0x6a08 << 32, 0, 0x1234_5678, 0];
        let fault = decode(DEVICE, record);
        assert_eq!((fault.requester, fault.pasid), (DEVICE, Pasid::new(0xabcde)));
        assert_eq!((fault.address, fault.access), (0x1234_5000, FaultAccess::Write));
        assert_eq!((fault.reason, fault.code), ("not mapped for writing", 0x10));
        let read = decode(DEVICE, [record[0], 1 << 35, record[2], 0]);
        assert_eq!((read.reason, read.access), ("not mapped for reading", FaultAccess::Read));
    }

    #[test]
    fn the_words_are_those_of_the_other_iommus() {
        let words =
            |code: u64, tagged: bool| decode(DEVICE, [code | u64::from(tagged) << 11, 0, 0, 0]).reason;
        for code in [0x06, 0x08, 0x0a] {
            assert_eq!(words(code, true), "PASID not attached");
            assert_eq!(words(code, false), "untagged DMA of a claimed device");
        }
        assert_eq!(words(0x10, false), "untagged DMA of a claimed device");
        for code in [0x02, 0x04] {
            assert!(words(code, true).starts_with("device not claimed"));
        }
        assert_eq!(words(0xff, true), "reason unknown to this driver");
    }
}
