// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names and fields of the registers.
//!
//! Source: SMMUv3 specification, "Memory map and registers".

use bitflags::bitflags;
use pasidon_kernel::irq::host::Host;

use crate::registers::Registers;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Byte offsets. 32 bits unless said otherwise.
pub mod offset {
    /// Identification 0.
    pub const IDR0: usize = 0x00;
    /// Identification 1.
    pub const IDR1: usize = 0x04;
    /// Identification 5.
    pub const IDR5: usize = 0x14;
    /// Control 0.
    pub const CR0: usize = 0x20;
    /// What of control 0 is in effect.
    pub const CR0ACK: usize = 0x24;
    /// Control 1: attributes of accesses to tables and queues.
    pub const CR1: usize = 0x28;
    /// Control 2.
    pub const CR2: usize = 0x2c;
    /// What happens to all traffic while the unit is off.
    pub const GBPA: usize = 0x44;
    /// Interrupt control.
    pub const IRQ_CTRL: usize = 0x50;
    /// What of the interrupt control is in effect.
    pub const IRQ_CTRLACK: usize = 0x54;
    /// Global errors.
    pub const GERROR: usize = 0x60;
    /// Global errors that were seen.
    pub const GERRORN: usize = 0x64;
    /// Message of the global error interrupt, 64 bits: address.
    pub const GERROR_IRQ_CFG0: usize = 0x68;
    /// Stream table, 64 bits.
    pub const STRTAB_BASE: usize = 0x80;
    /// Form of the stream table.
    pub const STRTAB_BASE_CFG: usize = 0x88;
    /// Command queue, 64 bits.
    pub const CMDQ_BASE: usize = 0x90;
    /// Where the next command goes.
    pub const CMDQ_PROD: usize = 0x98;
    /// Which command is next, and why it stopped.
    pub const CMDQ_CONS: usize = 0x9c;
    /// Event queue, 64 bits.
    pub const EVENTQ_BASE: usize = 0xa0;
    /// Message of the event queue interrupt, 64 bits: address.
    pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
    /// Where the next event goes (page 1).
    pub const EVENTQ_PROD: usize = 0x100a8;
    /// Which event is next (page 1).
    pub const EVENTQ_CONS: usize = 0x100ac;
}

/// Bytes of registers: two pages of 64 KiB.
pub const REGISTERS_LEN: u64 = 0x2_0000;

bitflags! {
    /// CR0 and CR0ACK.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u32 {
        /// SMMUEN: translation.
        const TRANSLATION = 1 << 0;
        /// PRIQEN: page request queue.
        const PAGE_REQUEST_QUEUE = 1 << 1;
        /// EVENTQEN: event queue.
        const EVENT_QUEUE = 1 << 2;
        /// CMDQEN: command queue.
        const COMMAND_QUEUE = 1 << 3;
        /// ATSCHK: what devices translated themselves is checked against the stream table.
        const ATS_CHECK = 1 << 4;
    }
}

bitflags! {
    /// GERROR and GERRORN: an error is active while the two differ.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct GlobalError: u32 {
        /// CMDQ_ERR: a command was refused.
        const COMMAND_QUEUE = 1 << 0;
        /// EVENTQ_ABT_ERR: an event could not be written.
        const EVENT_QUEUE_ABORT = 1 << 2;
        /// PRIQ_ABT_ERR: a page request could not be written.
        const PAGE_REQUEST_QUEUE_ABORT = 1 << 3;
        /// MSI_CMDQ_ABT_ERR: the message of a CMD_SYNC could not be written.
        const COMMAND_MESSAGE_ABORT = 1 << 4;
        /// MSI_EVENTQ_ABT_ERR: the message of the event queue could not be written.
        const EVENT_MESSAGE_ABORT = 1 << 5;
        /// MSI_PRIQ_ABT_ERR: the message of the page request queue could not be written.
        const PAGE_REQUEST_MESSAGE_ABORT = 1 << 6;
        /// MSI_GERROR_ABT_ERR: the message of a global error could not be written.
        const ERROR_MESSAGE_ABORT = 1 << 7;
        /// SFM_ERR: service failure mode, everything is terminated.
        const SERVICE_FAILURE = 1 << 8;
    }
}

/// CR1: tables and queues are inner shareable and write-back cacheable.
pub const CR1_CACHEABLE: u32 = 0b11 << 10 | 0b01 << 8 | 0b01 << 6 | 0b11 << 4 | 0b01 << 2 | 0b01;
/// CR2.RECINVSID: requests of streams beyond the table are recorded too.
pub const CR2_RECORD_INVALID_STREAMS: u32 = 1 << 1;
/// CR2.PTM: invalidations that processors broadcast are not taken part in.
pub const CR2_PRIVATE_TLB: u32 = 1 << 2;
/// GBPA.ABORT: all traffic is terminated.
pub const GBPA_ABORT: u32 = 1 << 20;
/// GBPA.UPDATE: take the other fields over; reads 1 until that is done.
pub const GBPA_UPDATE: u32 = 1 << 31;
/// IRQ_CTRL.EVENTQ_IRQEN.
pub const IRQ_EVENTS: u32 = 1 << 2;
/// IRQ_CTRL.GERROR_IRQEN.
pub const IRQ_ERRORS: u32 = 1 << 0;
/// STRTAB_BASE_CFG.FMT: two levels.
pub const STRTAB_TWO_LEVEL: u32 = 0b01 << 16;
/// STRTAB_BASE_CFG.SPLIT.
pub const STRTAB_SPLIT_SHIFT: u32 = 6;
/// EVENTQ_PROD.OVFLG and EVENTQ_CONS.OVACKFLG: they differ while events were lost.
pub const OVERFLOW: u32 = 1 << 31;

/// IDR0, IDR1 and IDR5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identification {
    /// IDR0.
    pub idr0: u32,
    /// IDR1.
    pub idr1: u32,
    /// IDR5.
    pub idr5: u32,
}

impl Identification {
    /// Reads them.
    pub fn read<R: Registers>(registers: &R) -> Self {
        Self {
            idr0: registers.read32(offset::IDR0),
            idr1: registers.read32(offset::IDR1),
            idr5: registers.read32(offset::IDR5),
        }
    }

    const fn idr0_field(self, high: u32, low: u32) -> u32 {
        self.idr0 >> low & ((1 << (high - low + 1)) - 1)
    }

    const fn idr1_field(self, high: u32, low: u32) -> u32 {
        self.idr1 >> low & ((1 << (high - low + 1)) - 1)
    }

    /// S1P: stage 1.
    pub const fn stage1(self) -> bool {
        self.idr0 >> 1 & 1 != 0
    }

    /// TTF: tables in the AArch64 format.
    pub const fn aarch64_tables(self) -> bool {
        self.idr0_field(3, 2) & 0b10 != 0
    }

    /// COHACC: tables and queues are read through the processors' caches.
    pub const fn coherent(self) -> bool {
        self.idr0 >> 4 & 1 != 0
    }

    /// HTTU: the unit sets access flags and the dirty state in the tables.
    pub const fn dirty_bits(self) -> bool {
        self.idr0_field(7, 6) == 0b10
    }

    /// HYP: has translations of EL2 of its own.
    pub const fn hypervisor_streams(self) -> bool {
        self.idr0 >> 9 & 1 != 0
    }

    /// ATS: devices may hold translations of their own.
    pub const fn ats(self) -> bool {
        self.idr0 >> 10 & 1 != 0
    }

    /// ASID16: width of address space identifiers, in bits.
    pub const fn asid_bits(self) -> u32 {
        if self.idr0 >> 12 & 1 != 0 { 16 } else { 8 }
    }

    /// MSI: its own interrupts can be messages.
    pub const fn messages(self) -> bool {
        self.idr0 >> 13 & 1 != 0
    }

    /// CD2L: tables of context descriptors with two levels.
    pub const fn two_level_contexts(self) -> bool {
        self.idr0 >> 19 & 1 != 0
    }

    /// TTENDIAN: can walk little-endian tables.
    pub const fn little_endian(self) -> bool {
        self.idr0_field(22, 21) != 0b11
    }

    /// STALL_MODEL: a fault can end the access instead of stalling it.
    pub const fn terminates(self) -> bool {
        self.idr0_field(25, 24) != 0b10
    }

    /// ST_LEVEL: stream tables with two levels.
    pub const fn two_level_streams(self) -> bool {
        self.idr0_field(28, 27) == 0b01
    }

    /// SIDSIZE: width of StreamIDs, in bits.
    pub const fn stream_bits(self) -> u32 {
        self.idr1_field(5, 0)
    }

    /// SSIDSIZE: width of SubstreamIDs, in bits.
    pub const fn substream_bits(self) -> u32 {
        self.idr1_field(10, 6)
    }

    /// EVENTQS: largest event queue, log2 of entries.
    pub const fn event_queue_log2(self) -> u32 {
        self.idr1_field(20, 16)
    }

    /// CMDQS: largest command queue, log2 of entries.
    pub const fn command_queue_log2(self) -> u32 {
        self.idr1_field(25, 21)
    }

    /// TABLES_PRESET or QUEUES_PRESET: where tables or queues are is not ours to say.
    pub const fn preset(self) -> bool {
        self.idr1_field(30, 29) != 0
    }

    /// GRAN4K: tables with the 4 KiB granule.
    pub const fn granule_4k(self) -> bool {
        self.idr5 >> 4 & 1 != 0
    }

    /// OAS: width of physical addresses, as encoded (also in CD.IPS), at most 48 bits.
    pub const fn output_size(self) -> u32 {
        let code = self.idr5 & 0b111;
        if code > 5 { 5 } else { code }
    }

    /// OAS: width of physical addresses, in bits, at most 48.
    pub const fn output_bits(self) -> u8 {
        match self.output_size() {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        }
    }
}

/// Turns bits of CR0 on or off and waits for CR0ACK. Returns whether it answered in time.
pub fn control<R: Registers>(registers: &R, host: &dyn Host, bits: Control) -> bool {
    registers.write32(offset::CR0, bits.bits());
    wait_until(host, COMMAND_LIMIT_NS, || {
        Control::from_bits_truncate(registers.read32(offset::CR0ACK)) == bits
    })
}

/// Turns interrupts on or off and waits for IRQ_CTRLACK. Returns whether it answered in time.
pub fn interrupts<R: Registers>(registers: &R, host: &dyn Host, bits: u32) -> bool {
    registers.write32(offset::IRQ_CTRL, bits);
    wait_until(host, COMMAND_LIMIT_NS, || registers.read32(offset::IRQ_CTRLACK) == bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that QEMU's model computes: stages 1 and 2, coherent, 16-bit ASIDs and StreamIDs.
    #[test]
    fn identification_of_a_known_unit() {
        let unit = Identification { idr0: 0x0d44_101b | 1 << 19, idr1: 0x0273_0510, idr5: 0x74 };
        assert!(unit.stage1() && unit.aarch64_tables() && unit.coherent());
        assert!(unit.two_level_streams() && unit.two_level_contexts() && unit.little_endian());
        assert!(unit.terminates() && unit.granule_4k() && !unit.preset());
        assert!(!unit.ats() && !unit.hypervisor_streams() && !unit.messages());
        assert_eq!((unit.asid_bits(), unit.stream_bits()), (16, 16));
        assert_eq!(unit.substream_bits(), 20);
        assert_eq!((unit.command_queue_log2(), unit.event_queue_log2()), (19, 19));
        assert_eq!((unit.output_size(), unit.output_bits()), (4, 44));
    }
}
