// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an entry of a second-stage page table looks like.
//!
//! Source: Intel VT-d specification, "Second-Stage Paging Entries".

use crate::iommu::page_table::{self, Format, PageTable};

/// R: readable.
const READ: u64 = 1 << 0;
/// W: writable.
const WRITE: u64 = 1 << 1;
/// PS: a leaf above the last level.
const PAGE_SIZE_BIT: u64 = 1 << 7;
/// SNP: accesses snoop the processor's caches whatever the device says.
const SNOOP: u64 = 1 << 11;

/// The interrupt address range: requests to it never reach a page table (and with a PASID are faults), so
/// nothing may be mapped there.
const INTERRUPT_RANGE: core::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Second-stage entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageEntries {
    /// Whether leaves carry SNP.
    pub snoop: bool,
}

/// What form of tables every unit of the machine takes.
pub type Geometry = page_table::Geometry<SecondStageEntries>;
/// One second-stage table.
pub type SecondStage = PageTable<SecondStageEntries>;

impl Format for SecondStageEntries {
    const SPLITS: bool = true;
    const RESERVED: core::ops::Range<u64> = INTERRUPT_RANGE;

    fn leaf(self, host: u64, writable: bool, level: u8) -> u64 {
        let rights = if writable { READ | WRITE } else { READ };
        let large = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        let snoop = if self.snoop { SNOOP } else { 0 };
        host | rights | large | snoop
    }

    fn table(self, lower: u64) -> u64 {
        lower | READ | WRITE
    }

    fn is_present(entry: u64) -> bool {
        entry & (READ | WRITE) != 0
    }

    fn is_leaf(entry: u64, level: u8) -> bool {
        level == 1 || entry & PAGE_SIZE_BIT != 0
    }

    fn is_writable(entry: u64) -> bool {
        entry & WRITE != 0
    }
}
