// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an entry of a stage-1 table looks like: VMSAv8-64 with the 4 KiB granule.
//!
//! **Invariants.** Every leaf is tagged with the ASID (nG), so that two tables never share a cached
//! translation, and lets nothing be executed. A leaf that is in use is never replaced by a table of smaller
//! ones: the architecture asks for break-before-make there, which a device that keeps sending would notice.
//! Source: Arm Architecture Reference Manual (DDI 0487), "VMSAv8-64 translation table format descriptors".

use crate::iommu::page_table::{self, Format, PageTable};

/// Bit 0: the entry leads somewhere.
const VALID: u64 = 1 << 0;
/// Bit 1: a table above the last level, a page on it.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx: which byte of the context descriptor's MAIR.
const ATTRIBUTE_SHIFT: u32 = 2;
/// AP\[1\]: unprivileged accesses too. A device without privileged requests sends only those.
const UNPRIVILEGED: u64 = 1 << 6;
/// AP\[2\]: reads only.
const READ_ONLY: u64 = 1 << 7;
/// SH: inner shareable.
const INNER_SHAREABLE: u64 = 0b11 << 8;
/// AF: no access-flag fault on the first access.
const ACCESSED: u64 = 1 << 10;
/// nG: belongs to the ASID.
const NOT_GLOBAL: u64 = 1 << 11;
/// PXN and UXN: no execution.
const EXECUTE_NEVER: u64 = 0b11 << 53;

/// Index 0 of [`MAIR`]: normal memory, write-back.
const NORMAL: u64 = 0;
/// Index 1 of [`MAIR`]: device memory, for doorbells.
const DEVICE: u64 = 1;
/// Memory attributes by index: normal write-back read-write-allocate, Device-nGnRE.
pub const MAIR: u64 = 0x04ff;

/// Levels of a table: 48-bit addresses.
pub const LEVELS: u8 = 4;
/// Width of the addresses, in bits.
pub const ADDRESS_BITS: u8 = 48;

/// Stage-1 entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1Entries {
    /// Whether they lead to registers of devices (doorbells) instead of memory.
    pub doorbell: bool,
}

/// The form of stage-1 tables.
pub type Geometry = page_table::Geometry<Stage1Entries>;
/// One stage-1 table.
pub type Stage1 = PageTable<Stage1Entries>;

impl Format for Stage1Entries {
    const SPLITS: bool = false;
    const RESERVED: core::ops::Range<u64> = 0..0;

    fn leaf(self, host: u64, writable: bool, level: u8) -> u64 {
        let page = if level == 1 { TABLE_OR_PAGE } else { 0 };
        let rights = if writable { 0 } else { READ_ONLY };
        let attribute = if self.doorbell { DEVICE } else { NORMAL };
        host | VALID
            | page
            | attribute << ATTRIBUTE_SHIFT
            | UNPRIVILEGED
            | rights
            | INNER_SHAREABLE
            | ACCESSED
            | NOT_GLOBAL
            | EXECUTE_NEVER
    }

    fn table(self, lower: u64) -> u64 {
        lower | VALID | TABLE_OR_PAGE
    }

    fn is_present(entry: u64) -> bool {
        entry & VALID != 0
    }

    fn is_leaf(entry: u64, level: u8) -> bool {
        level == 1 || entry & TABLE_OR_PAGE == 0
    }

    fn is_writable(entry: u64) -> bool {
        entry & READ_ONLY == 0
    }
}
