// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O page tables: IOVA to host-physical, one per I/O address space.
//!
//! **Principle.** The tree is the same for every make of IOMMU; a make gives the [`Format`] of an entry.
//!
//! **Invariants.** Every table below the root has at least one present entry, so an absent entry means
//! that nothing below it is mapped. Entries change in one 64-bit store, a lower table is complete before
//! the entry that leads to it is written, and pages taken out of the tree are handed to the caller, who
//! frees them only after the invalidation.

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova, PAGE_SIZE};
use pasidon_kernel::refusal::Refusal;

use crate::memory::DmaMemory;
use crate::table_memory::TableMemory;

/// Address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries in a table.
const ENTRIES: usize = 512;
/// Index bits per level.
const LEVEL_BITS: u32 = 9;

/// What an entry looks like.
pub trait Format: Copy + Send + Sync {
    /// Whether a large leaf may become a table of smaller ones while a unit uses it.
    const SPLITS: bool;
    /// IOVAs that never reach a page table, so that nothing may be mapped there.
    const RESERVED: core::ops::Range<u64>;

    /// A leaf of `level` that leads to `host`.
    fn leaf(self, host: u64, writable: bool, level: u8) -> u64;
    /// An entry that leads to a lower table.
    fn table(self, lower: u64) -> u64;
    /// Whether an entry leads anywhere.
    fn is_present(entry: u64) -> bool;
    /// Whether a present entry of `level` is a leaf.
    fn is_leaf(entry: u64, level: u8) -> bool;
    /// Whether a leaf may be written through.
    fn is_writable(entry: u64) -> bool;
}

/// What form of tables every unit of the machine takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry<F> {
    /// Number of levels: 3, 4 or 5.
    pub levels: u8,
    /// Width of the IOVAs, in bits.
    pub address_bits: u8,
    /// Width of host-physical addresses, in bits.
    pub host_bits: u8,
    /// Highest level that may hold a leaf: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub leaf_levels: u8,
    /// The entries.
    pub format: F,
}

/// Bytes that one entry of `level` spans.
const fn span(level: u8) -> u64 {
    PAGE_SIZE << (LEVEL_BITS * (level as u32 - 1))
}

impl<F: Format> Geometry<F> {
    /// Largest leaf in bytes.
    pub fn largest_page(self) -> u64 {
        span(self.leaf_levels)
    }
}

/// One page table.
#[derive(Debug)]
pub struct PageTable<F> {
    root: HostPhys,
    geometry: Geometry<F>,
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
        Self { refusal, removed: Removed::default() }
    }
}

impl<F: Format> PageTable<F> {
    /// An empty table.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, geometry: Geometry<F>) -> Result<Self, Refusal> {
        Ok(Self { root: memory.alloc(1, "I/O page table")?, geometry })
    }

    /// Address of the top-level table (SSPTPTR, TTB0).
    pub fn root(&self) -> HostPhys {
        self.root
    }

    /// Number of levels.
    pub fn levels(&self) -> u8 {
        self.geometry.levels
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
        let host_end = host.checked_add(len).filter(|end| end.0 <= 1 << self.geometry.host_bits);
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
        if iova.0 < F::RESERVED.end && F::RESERVED.start < end {
            return Err(Refusal::new(
                format!("I/O mapping {:#x}..{end:#x}", iova.0),
                format!(
                    "overlaps the interrupt range {:#x}..{:#x}, which is never translated",
                    F::RESERVED.start,
                    F::RESERVED.end
                ),
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

        let format = self.geometry.format;
        let mut at = iova.0;
        while at < end {
            let to = host.0 + (at - iova.0);
            let level = (1..=self.geometry.leaf_levels)
                .rev()
                .find(|&level| {
                    let span = span(level);
                    (at | to) & (span - 1) == 0 && end - at >= span
                })
                .unwrap_or(1);
            match self.table_for(memory, at, level) {
                Ok(table) => memory.write(table, index(at, level), format.leaf(to, writable, level)),
                Err(refusal) => {
                    let mut removed = Removed::default();
                    self.clear(memory, self.root, self.geometry.levels, iova.0, end, &mut removed);
                    return Err(MapFailed { refusal, removed });
                }
            }
            at += span(level);
        }
        Ok(())
    }

    /// Takes a range out, splitting large leaves at its borders where the format allows that. Parts that
    /// are not mapped stay so. On a refusal (no memory to split with, or a leaf across a border that must
    /// not be split) every address still translates as before.
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
            if !F::is_present(entry) {
                continue;
            }
            if F::is_leaf(entry, level) {
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
            table = if F::is_present(entry) {
                child(entry)
            } else {
                let fresh = memory.alloc(1, "I/O page table")?;
                memory.write(table, slot, self.geometry.format.table(fresh.0));
                fresh
            };
        }
        Ok(table)
    }

    /// Makes sure that no leaf spans across `at`; refuses where the format does not split.
    fn split_at<M: DmaMemory>(&self, memory: &TableMemory<M>, at: u64) -> Result<(), Refusal> {
        let mut table = self.root;
        for level in (2..=self.geometry.levels).rev() {
            if at & (span(level) - 1) == 0 {
                return Ok(());
            }
            let slot = index(at, level);
            let entry = memory.read(table, slot);
            if !F::is_present(entry) {
                return Ok(());
            }
            table = if F::is_leaf(entry, level) {
                if !F::SPLITS {
                    return Err(Refusal::new(
                        format!("I/O range with a border at {at:#x}"),
                        format!(
                            "it is inside a leaf of {:#x} bytes, which is in use as a whole",
                            span(level)
                        ),
                        "unmap the whole range that was mapped",
                    ));
                }
                let format = self.geometry.format;
                let fresh = memory.alloc(1, "I/O page table (splitting a large page)")?;
                let host = entry & ADDRESS & !(span(level) - 1);
                for part in 0..ENTRIES {
                    let to = host + part as u64 * span(level - 1);
                    memory.write(fresh, part, format.leaf(to, F::is_writable(entry), level - 1));
                }
                memory.write(table, slot, self.geometry.format.table(fresh.0));
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
            if !F::is_present(entry) {
                continue;
            }
            if F::is_leaf(entry, level) {
                memory.write(table, slot, 0);
                removed.changed = true;
                continue;
            }
            let lower = child(entry);
            self.clear(memory, lower, level - 1, from, to, removed);
            if (0..ENTRIES).all(|slot| !F::is_present(memory.read(lower, slot))) {
                memory.write(table, slot, 0);
                removed.changed = true;
                removed.pages.push(lower);
            }
        }
    }
}

const fn child(entry: u64) -> HostPhys {
    HostPhys(entry & ADDRESS)
}

/// Slot of an address in a table of `level`.
const fn index(at: u64, level: u8) -> usize {
    (at / span(level)) as usize % ENTRIES
}

/// The slots of one table of `level` that `start..end` touches, each with its part of the range. The range
/// must not leave the table's own span.
fn slots(level: u8, start: u64, end: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let span = span(level);
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
