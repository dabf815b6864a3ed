// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names and fields of the registers of an ITS and of a redistributor's part for LPIs.
//!
//! Source: Arm Generic Interrupt Controller architecture specification, versions 3 and 4 (IHI 0069), "The ITS
//! registers" and "The Redistributor registers".

use crate::registers::Registers;

/// Registers of an ITS: byte offsets in its control frame.
pub mod gits {
    /// Control. 32 bits.
    pub const CTLR: usize = 0x0000;
    /// What it can do. 64 bits.
    pub const TYPER: usize = 0x0008;
    /// Base of the command queue. 64 bits.
    pub const CBASER: usize = 0x0080;
    /// Where the next command is written. 64 bits.
    pub const CWRITER: usize = 0x0088;
    /// Where the next command is read. 64 bits.
    pub const CREADR: usize = 0x0090;
    /// First of eight table descriptions. 64 bits each.
    pub const BASER: usize = 0x0100;
    /// Number of them.
    pub const BASERS: usize = 8;
    /// Architecture version. 32 bits.
    pub const PIDR2: usize = 0xffe8;
    /// Length of the control frame in bytes. The translation frame follows it.
    pub const CONTROL_FRAME: u64 = 0x1_0000;
    /// Where devices write, from the start of the control frame on: the only register of the translation frame.
    pub const TRANSLATER: u64 = 0x1_0040;

    /// CTLR.Enabled: messages are translated and commands carried out.
    pub const CTLR_ENABLED: u32 = 1 << 0;
    /// CTLR.UMSIirq: a message that is not mapped raises an interrupt that says so.
    pub const CTLR_UNMAPPED_INTERRUPT: u32 = 1 << 8;
    /// CTLR.Quiescent: nothing is under way.
    pub const CTLR_QUIESCENT: u32 = 1 << 31;
    /// CREADR.Stalled: the command there was not understood.
    pub const CREADR_STALLED: u64 = 1 << 0;
    /// CWRITER.Retry: go on after a stall.
    pub const CWRITER_RETRY: u64 = 1 << 0;
    /// CREADR and CWRITER: the offset.
    pub const OFFSET: u64 = 0xf_ffe0;
    /// CBASER and BASER: the register counts.
    pub const VALID: u64 = 1 << 63;
    /// BASER.Indirect: the table has two levels.
    pub const INDIRECT: u64 = 1 << 62;
    /// BASER: place of Page_Size.
    pub const PAGE_SIZE_SHIFT: u32 = 8;
    /// BASER.Page_Size.
    pub const PAGE_SIZE: u64 = 0b11 << PAGE_SIZE_SHIFT;
    /// BASER.Size: pages less one.
    pub const SIZE: u64 = 0xff;
    /// BASER: most pages of a table.
    pub const PAGES_MAX: u64 = 256;
    /// BASER: the address, up to 48 bits.
    pub const ADDRESS: u64 = 0xffff_ffff_f000;

    /// Architecture version in PIDR2.
    pub const fn architecture(pidr2: u32) -> u32 {
        pidr2 >> 4 & 0xf
    }
}

/// Registers of a redistributor: byte offsets in its first frame.
pub mod gicr {
    /// Control. 32 bits.
    pub const CTLR: usize = 0x0000;
    /// Whose it is. 64 bits.
    pub const TYPER: usize = 0x0008;
    /// Configuration of the LPIs. 64 bits.
    pub const PROPBASER: usize = 0x0070;
    /// Which LPIs are pending. 64 bits.
    pub const PENDBASER: usize = 0x0078;

    /// CTLR.EnableLPIs: LPIs are taken.
    pub const CTLR_ENABLE_LPIS: u32 = 1 << 0;
    /// CTLR.RWP: a write is not in effect yet.
    pub const CTLR_RWP: u32 = 1 << 3;
    /// TYPER.PLPIS: there are physical LPIs.
    pub const TYPER_PLPIS: u64 = 1 << 0;
    /// PENDBASER.PTZ: the table is all zero.
    pub const PENDBASER_PTZ: u64 = 1 << 62;
}

/// How a table is read: the fields that all base registers have, though not in the same place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Place of InnerCache.
    cache: u32,
}

/// Those of GITS_CBASER and GITS_BASER.
pub const ITS: Attributes = Attributes { cache: 59 };
/// Those of GICR_PROPBASER and GICR_PENDBASER.
pub const LPI: Attributes = Attributes { cache: 7 };

impl Attributes {
    /// Shareability, in the same place everywhere.
    const SHAREABILITY: u64 = 0b11 << 10;
    /// Shareability: inner.
    const INNER_SHAREABLE: u64 = 0b01 << 10;
    /// InnerCache: write-back, allocating on reads and writes. OuterCache 0 is the same.
    const WRITE_BACK: u64 = 0b111;
    /// InnerCache: normal memory that is not cached.
    const NOT_CACHED: u64 = 0b001;

    /// Writes a base register: cached where its owner shares the processors' caches, which it says by keeping
    /// the shareability, else not.
    pub fn write<R: Registers>(self, registers: &R, offset: usize, value: u64) {
        registers.write64(offset, value | Self::INNER_SHAREABLE | Self::WRITE_BACK << self.cache);
        if registers.read64(offset) & Self::SHAREABILITY == 0 {
            registers.write64(offset, value | Self::NOT_CACHED << self.cache);
        }
    }
}

/// GITS_TYPER.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Typer(pub u64);

impl Typer {
    const fn field(self, at: u32, bits: u32) -> u64 {
        self.0 >> at & ((1 << bits) - 1)
    }

    /// Physical: it translates to physical LPIs.
    pub const fn physical(self) -> bool {
        self.field(0, 1) != 0
    }

    /// ITT_entry_size: bytes of an interrupt translation entry.
    pub const fn translation_entry(self) -> u64 {
        self.field(4, 4) + 1
    }

    /// ID_bits: width of an EventID.
    pub const fn event_bits(self) -> u32 {
        self.field(8, 5) as u32 + 1
    }

    /// Devbits: width of a DeviceID.
    pub const fn device_bits(self) -> u32 {
        self.field(13, 5) as u32 + 1
    }

    /// PTA: a redistributor is named by its address, not by its processor's number.
    pub const fn targets_are_addresses(self) -> bool {
        self.field(19, 1) != 0
    }

    /// HCC: collections that need no memory.
    pub const fn held_collections(self) -> u64 {
        self.field(24, 8)
    }

    /// CIL and CIDbits: width of a collection's identifier.
    pub const fn collection_bits(self) -> u32 {
        if self.field(36, 1) != 0 { self.field(32, 4) as u32 + 1 } else { 16 }
    }
}

/// What a GITS_BASER says of its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableKind {
    /// There is none.
    Absent,
    /// One entry per DeviceID.
    Devices,
    /// One entry per collection.
    Collections,
    /// One that we have no use for: that of virtual processors.
    Other,
}

/// Kind and bytes per entry of a table.
pub const fn table(baser: u64) -> (TableKind, u64) {
    let kind = match baser >> 56 & 0b111 {
        0 => TableKind::Absent,
        1 => TableKind::Devices,
        4 => TableKind::Collections,
        _ => TableKind::Other,
    };
    (kind, (baser >> 48 & 0x1f) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        // 12-byte entries, 16-bit EventIDs and DeviceIDs, addresses as targets, 2 held collections, 4-bit ICIDs.
        let typer = Typer(1 | 11 << 4 | 15 << 8 | 15 << 13 | 1 << 19 | 2 << 24 | 3 << 32 | 1 << 36);
        assert!(typer.physical() && typer.targets_are_addresses());
        assert_eq!((typer.translation_entry(), typer.held_collections()), (12, 2));
        assert_eq!((typer.event_bits(), typer.device_bits()), (16, 16));
        assert_eq!(typer.collection_bits(), 4);
        assert_eq!(Typer(3 << 32).collection_bits(), 16);
        assert_eq!(table(1 << 56 | 7 << 48), (TableKind::Devices, 8));
        assert_eq!(table(4 << 56 | 1 << 48), (TableKind::Collections, 2));
        assert_eq!(table(2 << 56), (TableKind::Other, 1));
        assert_eq!(table(0), (TableKind::Absent, 1));
    }

    /// GITS_TYPER and GITS_BASER as QEMU's model resets them.
    #[test]
    fn identification_of_a_known_unit() {
        let typer = Typer(0x1f_0001_efb1);
        assert!(typer.physical() && !typer.targets_are_addresses());
        assert_eq!((typer.translation_entry(), typer.event_bits()), (12, 16));
        assert_eq!((typer.device_bits(), typer.collection_bits()), (16, 16));
        assert_eq!(table(0x0107_0000_0000_0200), (TableKind::Devices, 8));
        assert_eq!(table(0x0407_0000_0000_0200), (TableKind::Collections, 8));
    }
}
