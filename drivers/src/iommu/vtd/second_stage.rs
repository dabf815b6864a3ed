// SPDX-License-Identifier: MIT OR Apache-2.0
//! Second-stage page tables: IOVA to host-physical, one per I/O address space.
//!
//! **Invariants.** Every table below the root has at least one present entry, so an absent entry means
//! that nothing below it is mapped. Entries change in one 64-bit store, a lower table is complete before
//! the entry that leads to it is written, and pages taken out of the tree are handed to the caller, who
//! frees them only after the invalidation.
//! Source: Intel VT-d specification, "Second-Stage Paging Entries".

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova, PAGE_SIZE};
use pasidon_kernel::refusal::Refusal;

use super::table_memory::TableMemory;
use crate::memory::DmaMemory;

/// R: readable.
const READ: u64 = 1 << 0;
/// W: writable.
const WRITE: u64 = 1 << 1;
/// PS: a leaf above the last level.
const PAGE_SIZE_BIT: u64 = 1 << 7;
/// SNP: accesses snoop the processor's caches whatever the device says.
const SNOOP: u64 = 1 << 11;
/// Address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries in a table.
const ENTRIES: usize = 512;
/// Index bits per level.
const LEVEL_BITS: u32 = 9;

/// The interrupt address range: requests to it never reach a page table (and with a PASID are faults), so
/// nothing may be mapped there.
pub const INTERRUPT_RANGE: core::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// What form of tables every unit of the machine takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Number of levels: 3, 4 or 5.
    pub levels: u8,
    /// Width of the IOVAs, in bits.
    pub address_bits: u8,
    /// Width of host-physical addresses, in bits.
    pub host_bits: u8,
    /// Highest level that may hold a leaf: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub leaf_levels: u8,
    /// Whether leaves carry SNP.
    pub snoop: bool,
}

impl Geometry {
    /// Bytes that one entry of `level` spans.
    const fn span(level: u8) -> u64 {
        PAGE_SIZE << (LEVEL_BITS * (level as u32 - 1))
    }

    /// Largest leaf in bytes.
    pub const fn largest_page(self) -> u64 {
        Self::span(self.leaf_levels)
    }
}

/// One second-stage table.
#[derive(Debug)]
pub struct SecondStage {
    root: HostPhys,
    geometry: Geometry,
}

/// What an unmap left behind.
#[derive(Debug, Default)]
pub struct Removed {
    /// Whether anything was mapped, so that an invalidation is due.
    pub changed: bool,
    /// Table pages taken out of the tree. To be freed after the invalidation.
    pub pages: Vec<HostPhys>,
}

/// Why a mapping was not made.
#[derive(Debug)]
pub struct MapFailed {
    /// The reason.
    pub refusal: Refusal,
    /// What the roll-back took out again; empty where nothing had been written.
    pub removed: Removed,
}

impl From<Refusal> for MapFailed {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            removed: Removed::default(),
        }
    }
}

impl SecondStage {
    /// An empty table.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, geometry: Geometry) -> Result<Self, Refusal> {
        Ok(Self {
            root: memory.alloc(1, "I/O page table")?,
            geometry,
        })
    }

    /// Address of the top-level table (SSPTPTR).
    pub const fn root(&self) -> HostPhys {
        self.root
    }

    /// Maps a range with the largest leaves that fit. All or nothing.
    pub fn map<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), MapFailed> {
        let end = self.check_range(iova, len)?;
        let host_end = host
            .checked_add(len)
            .filter(|end| end.0 <= 1 << self.geometry.host_bits);
        if !host.is_aligned(PAGE_SIZE) || host_end.is_none() {
            return Err(Refusal::new(
                format!("I/O mapping to host {host}"),
                format!(
                    "not page aligned, or beyond the {}-bit physical addresses of the IOMMU",
                    self.geometry.host_bits
                ),
                "",
            )
            .into());
        }
        if iova.0 < INTERRUPT_RANGE.end && INTERRUPT_RANGE.start < end {
            return Err(Refusal::new(
                format!("I/O mapping {:#x}..{end:#x}", iova.0),
                "overlaps the interrupt range 0xfee00000..0xfef00000, which is never translated",
                "leave that hole in the guest's memory map",
            )
            .into());
        }
        if let Some(taken) = self.first_mapped(memory, self.root, self.geometry.levels, iova.0, end) {
            return Err(Refusal::new(
                format!("I/O mapping {:#x}..{end:#x}", iova.0),
                format!("{taken:#x} is mapped already"),
                "unmap it first",
            )
            .into());
        }

        let rights = if writable { READ | WRITE } else { READ };
        let mut at = iova.0;
        while at < end {
            let to = host.0 + (at - iova.0);
            let level = (1..=self.geometry.leaf_levels)
                .rev()
                .find(|&level| {
                    let span = Geometry::span(level);
                    (at | to) & (span - 1) == 0 && end - at >= span
                })
                .unwrap_or(1);
            match self.table_for(memory, at, level) {
                Ok(table) => memory.write(table, index(at, level), self.leaf(to, rights, level)),
                Err(refusal) => {
                    let mut removed = Removed::default();
                    self.clear(memory, self.root, self.geometry.levels, iova.0, end, &mut removed);
                    return Err(MapFailed { refusal, removed });
                }
            }
            at += Geometry::span(level);
        }
        Ok(())
    }

    /// Takes a range out, splitting large leaves at its borders. Parts that are not mapped stay so. On a
    /// refusal (no memory to split with) every address still translates as before.
    pub fn unmap<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        iova: Iova,
        len: u64,
    ) -> Result<Removed, Refusal> {
        let end = self.check_range(iova, len)?;
        self.split_at(memory, iova.0)?;
        if end < 1 << self.geometry.address_bits {
            self.split_at(memory, end)?;
        }
        let mut removed = Removed::default();
        self.clear(memory, self.root, self.geometry.levels, iova.0, end, &mut removed);
        Ok(removed)
    }

    /// Frees every page. No unit may know the table any more.
    pub fn destroy<M: DmaMemory>(self, memory: &TableMemory<M>) {
        let mut removed = Removed::default();
        let end = 1 << self.geometry.address_bits;
        self.clear(memory, self.root, self.geometry.levels, 0, end, &mut removed);
        for page in removed.pages {
            memory.free(page, 1);
        }
        memory.free(self.root, 1);
    }

    fn check_range(&self, iova: Iova, len: u64) -> Result<u64, Refusal> {
        let end = iova.checked_add(len).map(|end| end.0);
        match end {
            Some(end)
                if len != 0
                    && (iova.0 | len) & (PAGE_SIZE - 1) == 0
                    && end <= 1 << self.geometry.address_bits =>
            {
                Ok(end)
            }
            _ => Err(Refusal::new(
                format!("I/O range {iova} + {len:#x}"),
                format!(
                    "empty, not page aligned, or beyond the {}-bit addresses of the IOMMU",
                    self.geometry.address_bits
                ),
                "",
            )),
        }
    }

    fn leaf(&self, host: u64, rights: u64, level: u8) -> u64 {
        let large = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        let snoop = if self.geometry.snoop { SNOOP } else { 0 };
        host | rights | large | snoop
    }

    /// First mapped address in `start..end`, at or below `table`.
    fn first_mapped<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        table: HostPhys,
        level: u8,
        start: u64,
        end: u64,
    ) -> Option<u64> {
        for (slot, from, to) in slots(level, start, end) {
            let entry = memory.read(table, slot);
            if !present(entry) {
                continue;
            }
            if is_leaf(entry, level) {
                return Some(from);
            }
            if let Some(found) = self.first_mapped(memory, child(entry), level - 1, from, to) {
                return Some(found);
            }
        }
        None
    }

    /// The table of `level` for an address, made where missing. The range is known to be unmapped, so no
    /// leaf lies on the way.
    fn table_for<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        at: u64,
        level: u8,
    ) -> Result<HostPhys, Refusal> {
        let mut table = self.root;
        for above in (level + 1..=self.geometry.levels).rev() {
            let slot = index(at, above);
            let entry = memory.read(table, slot);
            table = if present(entry) {
                child(entry)
            } else {
                let fresh = memory.alloc(1, "I/O page table")?;
                memory.write(table, slot, fresh.0 | READ | WRITE);
                fresh
            };
        }
        Ok(table)
    }

    /// Makes sure that no leaf spans across `at`.
    fn split_at<M: DmaMemory>(&self, memory: &TableMemory<M>, at: u64) -> Result<(), Refusal> {
        let mut table = self.root;
        for level in (2..=self.geometry.levels).rev() {
            if at & (Geometry::span(level) - 1) == 0 {
                return Ok(());
            }
            let slot = index(at, level);
            let entry = memory.read(table, slot);
            if !present(entry) {
                return Ok(());
            }
            table = if is_leaf(entry, level) {
                let fresh = memory.alloc(1, "I/O page table (splitting a large page)")?;
                let host = entry & ADDRESS & !(Geometry::span(level) - 1);
                for part in 0..ENTRIES {
                    let to = host + part as u64 * Geometry::span(level - 1);
                    memory.write(fresh, part, self.leaf(to, entry & (READ | WRITE), level - 1));
                }
                memory.write(table, slot, fresh.0 | READ | WRITE);
                fresh
            } else {
                child(entry)
            };
        }
        Ok(())
    }

    /// Removes all leaves in `start..end` and the tables that become empty.
    fn clear<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        table: HostPhys,
        level: u8,
        start: u64,
        end: u64,
        removed: &mut Removed,
    ) {
        for (slot, from, to) in slots(level, start, end) {
            let entry = memory.read(table, slot);
            if !present(entry) {
                continue;
            }
            if is_leaf(entry, level) {
                memory.write(table, slot, 0);
                removed.changed = true;
                continue;
            }
            let lower = child(entry);
            self.clear(memory, lower, level - 1, from, to, removed);
            if (0..ENTRIES).all(|slot| !present(memory.read(lower, slot))) {
                memory.write(table, slot, 0);
                removed.changed = true;
                removed.pages.push(lower);
            }
        }
    }
}

const fn present(entry: u64) -> bool {
    entry & (READ | WRITE) != 0
}

const fn is_leaf(entry: u64, level: u8) -> bool {
    level == 1 || entry & PAGE_SIZE_BIT != 0
}

const fn child(entry: u64) -> HostPhys {
    HostPhys(entry & ADDRESS)
}

/// Slot of an address in a table of `level`.
const fn index(at: u64, level: u8) -> usize {
    (at / Geometry::span(level)) as usize % ENTRIES
}

/// The slots of one table of `level` that `start..end` touches, each with its part of the range. The range
/// must not leave the table's own span.
fn slots(level: u8, start: u64, end: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let span = Geometry::span(level);
    let mut at = start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let from = at;
        at = ((at & !(span - 1)) + span).min(end);
        Some((index(from, level), from, at))
    })
}

#[cfg(test)]
mod tests;
