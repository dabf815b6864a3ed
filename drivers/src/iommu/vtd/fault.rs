// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fault records: who was refused what, and why, in words.
//!
//! The faults have a lock of their own, so that the fault interrupt may come while a mapping is under way.
//! Source: Intel VT-d specification, "Fault Recording Registers" and "Fault Reasons".

use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::dma::fault::{DmaFault, FaultAccess, Noted};
use pasidon_kernel::dma::pasid::Pasid;

use super::registers::{Capability, FaultStatus, offset};
use crate::registers::Registers;

/// Bytes per record.
const RECORD_BYTES: usize = 16;
/// Upper word, T2: with T1, the kind of request.
const RECORD_T2: u64 = 1 << 28;
/// Upper word, PP: the PASID field counts.
const RECORD_PASID_PRESENT: u64 = 1 << 31;
/// Upper word, T1: read (T2 clear) or atomic (T2 set).
const RECORD_T1: u64 = 1 << 62;
/// Upper word, F: the record is set. Cleared by writing one.
const RECORD_FAULT: u64 = 1 << 63;
/// The same in the record's last 32-bit word.
const RECORD_FAULT_DWORD: u32 = 1 << 31;
/// Byte offset of that word in the record.
const RECORD_FAULT_DWORD_OFFSET: usize = 12;
/// Passes over the records in one call, so that a storm of faults cannot hold the caller.
const PASSES: usize = 4;
/// No pass begins after so many records, for the same reason.
const RECORDS_LIMIT: usize = 64;
/// Reasons of interrupt requests.
const INTERRUPT_REASONS: core::ops::RangeInclusive<u8> = 0x20..=0x2f;

/// Reads and clears the records of one unit, oldest first, and clears every condition that would keep the next
/// fault from being announced: the unit sends no event while one is set, whichever. `leftover` clears errors of
/// the invalidation queue that nobody waits for; while somebody does, they are his to clear.
pub fn drain<R: Registers>(
    registers: &R,
    capability: Capability,
    segment: u16,
    leftover: &dyn Fn(),
    sink: &mut dyn FnMut(Noted),
) -> Drained {
    let records = capability.fault_records();
    let mut read = 0;
    for _ in 0..PASSES {
        let raw = registers.read32(offset::FSTS);
        let status = FaultStatus::from_bits_truncate(raw);
        if status.is_empty() {
            return Drained::Empty;
        }
        if read >= RECORDS_LIMIT {
            break;
        }
        let first = if status.contains(FaultStatus::PPF) { FaultStatus::fault_record_index(raw) } else { 0 };
        for at in 0..records {
            let record = capability.fault_records_offset() + (first + at) % records * RECORD_BYTES;
            let upper = registers.read64(record + 8);
            if upper & RECORD_FAULT == 0 {
                continue;
            }
            let lower = registers.read64(record);
            registers.write32(record + RECORD_FAULT_DWORD_OFFSET, RECORD_FAULT_DWORD);
            sink(Noted::Fault(decode(segment, lower, upper)));
            read += 1;
        }
        let ours = status & (FaultStatus::PFO | FaultStatus::ICE | FaultStatus::PRO);
        if status.contains(FaultStatus::PFO) {
            sink(Noted::Lost);
        }
        if !ours.is_empty() {
            // After an overflow the unit records again only now.
            registers.write32(offset::FSTS, ours.bits());
        }
        if status.intersects(FaultStatus::IQE | FaultStatus::ITE) {
            leftover();
        }
    }
    Drained::Again
}

/// Forgets what was recorded before take-over.
pub fn discard<R: Registers>(registers: &R, capability: Capability) {
    for record in 0..capability.fault_records() {
        registers.write32(
            capability.fault_records_offset() + record * RECORD_BYTES + RECORD_FAULT_DWORD_OFFSET,
            RECORD_FAULT_DWORD,
        );
    }
    let errors = FaultStatus::PFO | FaultStatus::IQE | FaultStatus::ICE | FaultStatus::ITE | FaultStatus::PRO;
    registers.write32(offset::FSTS, errors.bits());
}

/// One record in words.
pub fn decode(segment: u16, lower: u64, upper: u64) -> DmaFault {
    let code = (upper >> 32) as u8;
    let interrupt = INTERRUPT_REASONS.contains(&code);
    DmaFault {
        requester: Requester { segment, rid: upper as u16 },
        pasid: if upper & RECORD_PASID_PRESENT != 0 {
            Pasid::new((upper >> 40) as u32 & ((1 << Pasid::BITS) - 1))
        } else {
            None
        },
        address: if interrupt { lower >> 48 } else { lower & !0xfff },
        access: if interrupt {
            FaultAccess::Interrupt
        } else if upper & RECORD_T1 != 0 && upper & RECORD_T2 == 0 {
            FaultAccess::Read
        } else {
            FaultAccess::Write
        },
        reason: match reason(code) {
            NOT_ATTACHED if upper & RECORD_PASID_PRESENT == 0 => "untagged DMA of a claimed device",
            reason => reason,
        },
        code,
    }
}

/// The reason for a tag without an entry.
const NOT_ATTACHED: &str = "PASID not attached";

/// A fault reason in words. Codes 0x01 to 0x0e stem from legacy mode; some units use them in scalable
/// mode too.
pub const fn reason(code: u8) -> &'static str {
    match code {
        0x01 | 0x39 => "device not claimed (no root entry for its bus)",
        0x02 | 0x41 => "device not claimed (no context entry)",
        0x03 | 0x43 => "context entry invalid",
        0x04 => "address beyond the width of the IOMMU",
        // Units report an address that is not mapped at all and one mapped without the right alike.
        0x05 | 0x85 => "not mapped for writing",
        0x06 | 0x86 => "not mapped for reading",
        0x07 | 0x78 => "page table not readable by the IOMMU",
        0x08 | 0x38 => "root table not readable by the IOMMU",
        0x09 | 0x40 => "context table not readable by the IOMMU",
        0x0a | 0x3a => "root entry has reserved bits set",
        0x0b | 0x42 => "context entry has reserved bits set",
        0x0c | 0x7a => "page table entry has reserved bits set",
        0x0d => "translation request blocked",
        0x0e | 0x87 => "write to the interrupt address range",
        0x20 => "interrupt request has reserved bits set",
        0x21 => "interrupt index beyond the remapping table",
        0x22 => "interrupt not mapped",
        0x23 => "interrupt remapping table not readable by the IOMMU",
        0x24 => "interrupt remapping entry has reserved bits set",
        0x25 => "interrupt in compatibility format blocked",
        0x26 => "interrupt handle belongs to another device",
        0x27 => "posted-interrupt descriptor not accessible by the IOMMU",
        0x28 => "posted-interrupt descriptor has reserved bits set",
        0x30 => "root table address invalid",
        0x31 => "request with PASID while the unit is not in scalable mode",
        0x44 => "device TLB not enabled (ATS request refused)",
        0x45 => "PASIDs not enabled for the device",
        0x46 => "PASID larger than the directory",
        0x47 => "page requests not enabled for the device",
        0x48 => "RID_PASID beyond the directory",
        0x50 => "PASID directory not readable by the IOMMU",
        0x51 | 0x59 | 0x5b => NOT_ATTACHED,
        0x52 => "PASID directory entry has reserved bits set",
        0x58 => "PASID table not readable by the IOMMU",
        0x5a => "PASID entry has reserved bits set",
        0x5c => "execute request not enabled",
        0x5d => "supervisor request not enabled",
        0x70 => "first-stage table not readable by the IOMMU",
        0x71 => "no first-stage mapping",
        0x72 => "first-stage entry has reserved bits set",
        0x73 => "first-stage table address invalid",
        0x74 => "first-stage address beyond the second stage",
        0x75 => "second stage denies the first-stage root",
        0x76 => "second stage denies a first-stage table",
        0x77 => "second stage denies an accessed or dirty update",
        0x79 => "not mapped for this access",
        0x7b => "page table address invalid",
        0x80 => "address not canonical",
        0x81 => "user access to a supervisor page",
        0x82 => "no execute permission",
        0x83 => "translated address beyond the host's physical addresses",
        0x84 => "address beyond the width of the page table",
        0x90 | 0x91 => "accessed or dirty bit not writable",
        _ => "reason unknown to this driver",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tagged_write_is_decoded() {
        // F, write, reason 0x85, PASID 0xabcde, PP, 6a:01.0, address 0x1234_5000.
        let upper = 1 << 63 | 0xabcde << 40 | 0x85 << 32 | 1 << 31 | 0x6a08;
        let fault = decode(1, 0x1234_5000, upper);
        assert_eq!(fault.requester, Requester::new(1, 0x6a, 1, 0));
        assert_eq!(fault.pasid, Pasid::new(0xabcde));
        assert_eq!(fault.address, 0x1234_5000);
        assert_eq!(fault.access, FaultAccess::Write);
        assert_eq!((fault.reason, fault.code), ("not mapped for writing", 0x85));
    }

    #[test]
    fn an_untagged_read_and_an_interrupt_are_decoded() {
        let fault = decode(0, 0xdead_b000, 1 << 63 | 1 << 62 | 0x06 << 32 | 0x0020);
        assert_eq!((fault.pasid, fault.access), (None, FaultAccess::Read));
        assert_eq!(fault.reason, "not mapped for reading");

        let fault = decode(0, 0x0042 << 48, 1 << 63 | 0x26 << 32 | 0x0020);
        assert_eq!((fault.address, fault.access), (0x42, FaultAccess::Interrupt));
        assert_eq!(fault.reason, "interrupt handle belongs to another device");
    }
}
