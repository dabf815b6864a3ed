// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of one remapping unit, with the specification's names.
//!
//! 32-bit registers are read and written with 32-bit accesses and 64-bit registers with 64-bit ones, always:
//! some implementations take nothing else. Source: Intel VT-d specification, "Register Descriptions".

use bitflags::bitflags;
use pasidon_kernel::irq::host::Host;

use crate::registers::Registers;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Byte offsets of the registers from the unit's base. `u32` unless said otherwise.
pub mod offset {
    /// Architecture version.
    pub const VER: usize = 0x00;
    /// Capability, 64 bits.
    pub const CAP: usize = 0x08;
    /// Extended capability, 64 bits.
    pub const ECAP: usize = 0x10;
    /// Global command.
    pub const GCMD: usize = 0x18;
    /// Global status.
    pub const GSTS: usize = 0x1c;
    /// Root table address, 64 bits.
    pub const RTADDR: usize = 0x20;
    /// Fault status.
    pub const FSTS: usize = 0x34;
    /// Fault event control.
    pub const FECTL: usize = 0x38;
    /// Fault event data.
    pub const FEDATA: usize = 0x3c;
    /// Fault event address.
    pub const FEADDR: usize = 0x40;
    /// Fault event upper address.
    pub const FEUADDR: usize = 0x44;
    /// Protected memory enable.
    pub const PMEN: usize = 0x64;
    /// Invalidation queue head, 64 bits.
    pub const IQH: usize = 0x80;
    /// Invalidation queue tail, 64 bits.
    pub const IQT: usize = 0x88;
    /// Invalidation queue address, 64 bits.
    pub const IQA: usize = 0x90;
    /// Invalidation event control.
    pub const IECTL: usize = 0xa0;
    /// Invalidation queue error record, 64 bits.
    pub const IQERCD: usize = 0xb0;
    /// Interrupt remapping table address, 64 bits.
    pub const IRTA: usize = 0xb8;
    /// End of the registers at fixed places.
    pub const FIXED_END: usize = 0xf0;
}

bitflags! {
    /// GCMD and GSTS: the command bits and the status bits that answer them have the same places.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Global: u32 {
        /// Translation (TE, TES).
        const TRANSLATION = 1 << 31;
        /// Root table pointer (SRTP, RTPS).
        const ROOT_TABLE = 1 << 30;
        /// Write buffer flush (WBF, WBFS).
        const WRITE_BUFFER = 1 << 27;
        /// Queued invalidation (QIE, QIES).
        const QUEUED_INVALIDATION = 1 << 26;
        /// Interrupt remapping (IRE, IRES).
        const INTERRUPT_REMAPPING = 1 << 25;
        /// Interrupt remapping table pointer (SIRTP, IRTPS).
        const INTERRUPT_TABLE = 1 << 24;
        /// Compatibility-format interrupts pass (CFI, CFIS).
        const COMPATIBILITY_FORMAT = 1 << 23;
    }
}

/// Bits of GSTS that a write to GCMD must repeat; the others are one-shot commands.
const GSTS_PERSISTENT: u32 = 0x96ff_ffff;

bitflags! {
    /// FSTS. All but `PPF` are cleared by writing one.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FaultStatus: u32 {
        /// Primary fault overflow: records were lost.
        const PFO = 1 << 0;
        /// Primary pending fault: at least one record is set.
        const PPF = 1 << 1;
        /// Invalidation queue error: a descriptor was refused.
        const IQE = 1 << 4;
        /// Invalidation completion error: a device answered what it was not asked.
        const ICE = 1 << 5;
        /// Invalidation time-out error: a device did not answer.
        const ITE = 1 << 6;
        /// Page request overflow.
        const PRO = 1 << 7;
    }
}

impl FaultStatus {
    /// FRI: index of the first pending fault record.
    pub const fn fault_record_index(raw: u32) -> usize {
        (raw >> 8 & 0xff) as usize
    }
}

/// FECTL.IM, IECTL.IM: the event's message is held back.
pub const EVENT_INTERRUPT_MASK: u32 = 1 << 31;
/// PMEN.EPM: protected memory enabled.
pub const PMEN_EPM: u32 = 1 << 31;
/// PMEN.PRS: protected region status.
pub const PMEN_PRS: u32 = 1;
/// RTADDR.TTM = scalable mode.
pub const RTADDR_TTM_SCALABLE: u64 = 0b01 << 10;
/// IQA.DW: 256-bit descriptors.
pub const IQA_DW: u64 = 1 << 11;
/// IRTA.EIME: x2APIC destinations.
pub const IRTA_EIME: u64 = 1 << 11;

/// CAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability(pub u64);

impl Capability {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    const fn field(self, high: u32, low: u32) -> u64 {
        self.0 >> low & ((1 << (high - low + 1)) - 1)
    }

    /// ND: width of domain identifiers in bits.
    pub const fn domain_bits(self) -> u32 {
        4 + 2 * self.field(2, 0) as u32
    }

    /// RWBF: writes to tables must be pushed out by GCMD.WBF.
    pub const fn write_buffer_flush(self) -> bool {
        self.bit(4)
    }

    /// PLMR or PHMR: has protected memory regions.
    pub const fn protected_memory(self) -> bool {
        self.bit(5) || self.bit(6)
    }

    /// CM: entries that are not present may be cached.
    pub const fn caching_mode(self) -> bool {
        self.bit(7)
    }

    /// SAGAW: whether a second-stage table of `levels` levels is supported.
    pub const fn second_stage_levels(self, levels: u8) -> bool {
        matches!(levels, 3..=5) && self.bit(8 + levels as u32 - 2)
    }

    /// MGAW: width of the addresses it translates, in bits.
    pub const fn address_bits(self) -> u8 {
        self.field(21, 16) as u8 + 1
    }

    /// FRO: byte offset of the first fault record.
    pub const fn fault_records_offset(self) -> usize {
        self.field(33, 24) as usize * 16
    }

    /// SLLPS: second-stage leaves of 2 MiB.
    pub const fn second_stage_2m(self) -> bool {
        self.bit(34)
    }

    /// SLLPS: second-stage leaves of 1 GiB.
    pub const fn second_stage_1g(self) -> bool {
        self.bit(35)
    }

    /// PSI: page-selective invalidation.
    pub const fn page_selective(self) -> bool {
        self.bit(39)
    }

    /// NFR: number of fault records.
    pub const fn fault_records(self) -> usize {
        self.field(47, 40) as usize + 1
    }

    /// MAMV: largest address mask of a page-selective invalidation.
    pub const fn max_address_mask(self) -> u32 {
        self.field(53, 48) as u32
    }

    /// DWD: can drain writes.
    pub const fn drains_writes(self) -> bool {
        self.bit(54)
    }

    /// DRD: can drain reads.
    pub const fn drains_reads(self) -> bool {
        self.bit(55)
    }

    /// PI: interrupts can be posted.
    pub const fn posted_interrupts(self) -> bool {
        self.bit(59)
    }
}

/// ECAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtendedCapability(pub u64);

impl ExtendedCapability {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// C: root, context, PASID and interrupt tables are read through the caches.
    pub const fn coherent(self) -> bool {
        self.bit(0)
    }

    /// QI.
    pub const fn queued_invalidation(self) -> bool {
        self.bit(1)
    }

    /// DT: device TLBs (ATS).
    pub const fn device_tlb(self) -> bool {
        self.bit(2)
    }

    /// IR.
    pub const fn interrupt_remapping(self) -> bool {
        self.bit(3)
    }

    /// EIM: 32-bit APIC identifiers.
    pub const fn extended_interrupt_mode(self) -> bool {
        self.bit(4)
    }

    /// SC: the SNP bit of second-stage leaves.
    pub const fn snoop_control(self) -> bool {
        self.bit(7)
    }

    /// IRO: byte offset of the IOTLB registers.
    pub const fn iotlb_offset(self) -> usize {
        (self.0 >> 8 & 0x3ff) as usize * 16
    }

    /// PSS: width of PASIDs in bits.
    pub const fn pasid_bits(self) -> u8 {
        (self.0 >> 35 & 0x1f) as u8 + 1
    }

    /// PASID: requests with PASID are understood.
    pub const fn pasid(self) -> bool {
        self.bit(40)
    }

    /// DIT: device-TLB invalidations name the physical function that throttles them.
    pub const fn device_tlb_throttle(self) -> bool {
        self.bit(41)
    }

    /// SMTS: scalable mode.
    pub const fn scalable_mode(self) -> bool {
        self.bit(43)
    }

    /// SLADS (SSADS): the unit sets accessed and dirty bits in second-stage entries.
    pub const fn dirty_bits(self) -> bool {
        self.bit(45)
    }

    /// SLTS (SSTS): second-stage translation in scalable mode.
    pub const fn second_stage(self) -> bool {
        self.bit(46)
    }

    /// SMPWCS: page tables can be read through the caches in scalable mode.
    pub const fn page_walk_coherent(self) -> bool {
        self.bit(48)
    }
}

/// Reads GSTS.
pub fn status<R: Registers>(registers: &R) -> Global {
    Global::from_bits_retain(registers.read32(offset::GSTS))
}

/// Gives one command through GCMD and waits for GSTS to answer. For `WRITE_BUFFER` the answer is the bit
/// going back to zero. Returns whether it came in time.
pub fn command<R: Registers>(registers: &R, host: &dyn Host, bit: Global, on: bool) -> bool {
    let kept = registers.read32(offset::GSTS) & GSTS_PERSISTENT;
    let value = if on { kept | bit.bits() } else { kept & !bit.bits() };
    registers.write32(offset::GCMD, value);
    let wanted = on && bit != Global::WRITE_BUFFER;
    wait_until(host, COMMAND_LIMIT_NS, || status(registers).contains(bit) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values QEMU 10.0 computes with second-stage scalable mode, PASIDs and interrupt remapping.
    #[test]
    fn capabilities_of_a_known_unit() {
        let cap = Capability(0x00d2_008c_222f_0606);
        assert_eq!(cap.domain_bits(), 16);
        assert_eq!(cap.address_bits(), 48);
        assert!(cap.second_stage_levels(3) && cap.second_stage_levels(4) && !cap.second_stage_levels(5));
        assert!(cap.second_stage_2m() && cap.second_stage_1g() && cap.page_selective());
        assert_eq!((cap.fault_records_offset(), cap.fault_records()), (0x220, 1));
        assert_eq!(cap.max_address_mask(), 18);
        assert!(cap.drains_reads() && cap.drains_writes());
        assert!(!cap.caching_mode() && !cap.write_buffer_flush() && !cap.protected_memory());
        assert!(!cap.posted_interrupts());

        let ecap = ExtendedCapability(0x0000_4900_80f0_0f4a);
        assert!(ecap.scalable_mode() && ecap.second_stage() && ecap.pasid());
        assert!(ecap.queued_invalidation() && ecap.interrupt_remapping());
        assert!(!ecap.coherent() && !ecap.extended_interrupt_mode() && !ecap.page_walk_coherent());
        assert_eq!((ecap.pasid_bits(), ecap.iotlb_offset()), (1, 0xf0));
    }
}
