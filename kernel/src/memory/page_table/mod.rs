// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page tables: one engine for whoever walks them, a processor for itself, a processor for a guest, an IOMMU.
//!
//! ```text
//! address    │ index 3 │ index 2 │ index 1 │ offset │
//!                 │         │         │
//!  level    root  ▼3  table ▼2  table ▼1              the last level is 1
//!          ┌───────┐ ┌───────┐ ┌───────┐
//!          │ Table ├►│ Table ├►│ Leaf  ├─► 4 KiB
//!          │Nothing│ │ Leaf  ├─┼───────┼─► 2 MiB
//!          └───────┘ └───────┘ └───────┘
//! ```
//!
//! **Principle.** What an entry looks like is a matter of its [`Format`], what tables lie in of a [`Memory`]. What may
//! become of an entry is decided here, once for all:
//!
//! - *Order.* An entry changes in one store. What it leads to is complete, and [published](Format::publish), before it
//!   is written.
//! - *Refusals.* Memory is taken before the first entry in use is written: a refusal changes no translation.
//! - *Occupied.* [`PageTable::map`] takes an entry from nothing to something. It never replaces what is there.
//! - *Leaves.* The largest that fit, or only the smallest ([`PageTable::map_small`]) where pages go alone later.
//! - *Splitting, rights.* A leaf in use becomes a table of smaller ones, or gets other rights, where the format lets one
//!   entry follow another. Where it wants a [break](Format::BREAK_BEFORE_MAKE) between them, that is refused.
//! - *Widening.* More rights are a change like fewer: a device that met the old ones does not try again.
//! - *Freeing.* A page that left the tree is the caller's ([`Removed`]), who frees it when no walker can know it any
//!   more.
//!
//! **Invariant.** Every table below the root has an entry that is not [`Entry::Nothing`]; so where there is nothing,
//! nothing below it is mapped.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use crate::base::addr::{HostPhys, PAGE_SIZE};
use crate::base::refusal::Refusal;

mod format;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use self::format::{ENTRIES, Entry, Format, Geometry, index, span};

/// What tables lie in.
pub trait Memory {
    /// A page of zeroes.
    ///
    /// # Errors
    /// When there is none left.
    fn alloc_table(&mut self) -> Result<HostPhys, Refusal>;

    /// Takes a page back that no walker can know.
    fn free_table(&mut self, table: HostPhys);

    /// Reads an entry.
    fn read(&self, table: HostPhys, index: usize) -> u64;

    /// Writes an entry in one store, not before earlier ones.
    fn write(&mut self, table: HostPhys, index: usize, entry: u64);
}

/// What a walker begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Top {
    /// Address of the top-level table.
    pub root: HostPhys,
    /// Number of levels.
    pub levels: u8,
}

/// How an address is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped<A> {
    /// Where it leads.
    pub to: HostPhys,
    /// As its leaf says it; `None` for rights that nobody gives.
    pub attributes: Option<A>,
    /// Level of its leaf.
    pub level: u8,
}

/// Reads an entry of a table.
pub type ReadEntry<'a> = &'a dyn Fn(HostPhys, usize) -> u64;

/// How tables, which may be anyone's, map an address that they have levels for.
pub fn walk<F: Format>(format: F, top: Top, read: ReadEntry<'_>, at: u64) -> Option<Mapped<F::Attributes>> {
    let mut table = top.root;
    for level in (1..=top.levels).rev() {
        match format.decode(read(table, index(at, level)), level) {
            Entry::Nothing => return None,
            Entry::Table(lower) => table = lower,
            Entry::Leaf(to, attributes) => {
                // A large leaf of others may have bits below its address that the format does not know.
                let to = HostPhys(to.0 / span(level) * span(level) + at % span(level));
                return Some(Mapped { to, attributes, level });
            }
        }
    }
    None
}

/// What a change left behind.
#[derive(Debug, Default)]
#[must_use = "walkers may still use what was removed"]
pub struct Removed {
    /// Whether walkers may hold what is no longer so, and have to be made to forget it.
    pub changed: bool,
    /// Table pages taken out of the tree. To be freed when that is done.
    pub pages: Vec<HostPhys>,
}

/// A page table.
#[derive(Debug)]
pub struct PageTable<F, M> {
    root: HostPhys,
    geometry: Geometry<F>,
    memory: M,
}

/// A mapping to be made.
struct Wanted<A> {
    /// From an address to where it leads, modulo 2^64.
    offset: u64,
    attributes: A,
    /// Highest level for its leaves.
    largest: u8,
}

impl<A> Wanted<A> {
    fn to(&self, at: u64) -> HostPhys {
        HostPhys(at.wrapping_add(self.offset))
    }

    /// Whether one leaf of `level` can be all of a range.
    fn fits(&self, level: u8, range: &Range<u64>) -> bool {
        let span = span(level);
        level <= self.largest
            && range.end - range.start == span
            && (range.start | self.to(range.start).0) & (span - 1) == 0
    }
}

/// What a mapping takes, before any of it can be seen.
#[derive(Default)]
struct Plan {
    /// Fresh tables.
    pages: Vec<HostPhys>,
    /// What then is to be written: table, slot, entry.
    entries: Vec<(HostPhys, usize, u64)>,
}

impl<F: Format, M: Memory> PageTable<F, M> {
    /// One that maps nothing.
    ///
    /// # Errors
    /// When there is no memory for its root.
    pub fn new(mut memory: M, geometry: Geometry<F>) -> Result<Self, Refusal> {
        let root = memory.alloc_table()?;
        geometry.format.publish();
        Ok(Self { root, geometry, memory })
    }

    /// What a walker begins with.
    pub fn top(&self) -> Top {
        Top { root: self.root, levels: self.geometry.levels }
    }

    /// Its form.
    pub fn geometry(&self) -> &Geometry<F> {
        &self.geometry
    }

    /// What its tables lie in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Maps `len` bytes from `at` on to those from `to` on. All or nothing.
    ///
    /// # Errors
    /// When they are not whole pages within reach, something in the range is mapped, or there is no memory for tables.
    pub fn map(&mut self, at: u64, to: HostPhys, len: u64, attributes: F::Attributes) -> Result<(), Refusal> {
        self.map_by(self.geometry.leaf_levels, at, to, len, attributes)
    }

    /// The same by leaves of 4 KiB only: none of them has to be split when a page of them goes.
    ///
    /// # Errors
    /// As [`PageTable::map`].
    pub fn map_small(
        &mut self,
        at: u64,
        to: HostPhys,
        len: u64,
        attributes: F::Attributes,
    ) -> Result<(), Refusal> {
        self.map_by(1, at, to, len, attributes)
    }

    fn map_by(
        &mut self,
        largest: u8,
        at: u64,
        to: HostPhys,
        len: u64,
        attributes: F::Attributes,
    ) -> Result<(), Refusal> {
        let range = self.check_range(at, len)?;
        let host_end = to.checked_add(len).filter(|end| end.0 <= 1 << self.geometry.host_bits);
        if !to.is_aligned(PAGE_SIZE) || host_end.is_none() {
            return Err(Refusal::new(
                format!("{}: {at:#x} to host {to}", F::NAME),
                format!("not page aligned, or beyond the {}-bit physical addresses", self.geometry.host_bits),
                "use whole pages within reach",
            ));
        }
        let wanted = Wanted { offset: to.0.wrapping_sub(at), attributes, largest };
        let mut plan = Plan::default();
        let root = self.root;
        if let Err(refusal) = self.plan(&wanted, root, true, self.geometry.levels, range, &mut plan) {
            // Nothing leads to them.
            self.free(plan.pages);
            return Err(refusal);
        }
        self.geometry.format.publish();
        for (table, slot, entry) in plan.entries {
            self.memory.write(table, slot, entry);
        }
        self.geometry.format.publish();
        Ok(())
    }

    /// Takes a range out. Parts that are not mapped stay so.
    ///
    /// # Errors
    /// When it is not whole pages within reach, there is no memory to split a leaf at its borders, or no leaf may be
    /// split there. Every address then translates as before.
    pub fn unmap(&mut self, at: u64, len: u64) -> Result<Removed, Refusal> {
        self.change(at, len, None)
    }

    /// Gives what is mapped in a range other rights. Parts that are not mapped stay so.
    ///
    /// # Errors
    /// As [`PageTable::unmap`], and where the format wants a break.
    pub fn protect(&mut self, at: u64, len: u64, attributes: F::Attributes) -> Result<Removed, Refusal> {
        if F::BREAK_BEFORE_MAKE {
            return Err(Refusal::new(
                format!("{}: {at:#x} + {len:#x}", F::NAME),
                "rights are not changed while they are in use",
                "unmap the range, and map it again",
            ));
        }
        self.change(at, len, Some(attributes))
    }

    /// How an address is mapped, if it is.
    pub fn lookup(&self, at: u64) -> Option<Mapped<F::Attributes>> {
        if at >= self.geometry.end() {
            return None;
        }
        walk(self.geometry.format, self.top(), &|table, slot| self.memory.read(table, slot), at)
    }

    /// Frees pages that left the tree. No walker can know them any more.
    pub fn free(&mut self, pages: impl IntoIterator<Item = HostPhys>) {
        for page in pages {
            self.memory.free_table(page);
        }
    }

    /// Frees every page. No walker may know the table any more.
    pub fn destroy(mut self) {
        self.free_all(self.root, self.geometry.levels);
    }

    fn free_all(&mut self, table: HostPhys, level: u8) {
        for slot in 0..ENTRIES {
            if let Entry::Table(lower) = self.entry(table, slot, level) {
                self.free_all(lower, level - 1);
            }
        }
        self.memory.free_table(table);
    }

    fn entry(&self, table: HostPhys, slot: usize, level: u8) -> Entry<F::Attributes> {
        self.geometry.format.decode(self.memory.read(table, slot), level)
    }

    fn check_range(&self, at: u64, len: u64) -> Result<Range<u64>, Refusal> {
        match at.checked_add(len) {
            Some(end) if len != 0 && (at | len).is_multiple_of(PAGE_SIZE) && end <= self.geometry.end() => {
                Ok(at..end)
            }
            _ => Err(Refusal::new(
                format!("{}: {at:#x} + {len:#x}", F::NAME),
                format!(
                    "empty, not page aligned, or beyond the {}-bit addresses that are translated",
                    self.geometry.address_bits
                ),
                "use whole pages within reach",
            )),
        }
    }

    /// Finds out what mapping a range takes below `table`, and makes the tables that are missing. What leads from a
    /// table in use (`live`) to something new is only written down.
    fn plan(
        &mut self,
        wanted: &Wanted<F::Attributes>,
        table: HostPhys,
        live: bool,
        level: u8,
        range: Range<u64>,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
        for (slot, part) in slots(level, range) {
            let entry = match self.entry(table, slot, level) {
                Entry::Leaf(..) => {
                    return Err(Refusal::new(
                        format!("{}: {:#x}", F::NAME, part.start),
                        "it is mapped already",
                        "unmap it first",
                    ));
                }
                Entry::Table(lower) => {
                    self.plan(wanted, lower, live, level - 1, part, plan)?;
                    continue;
                }
                Entry::Nothing if wanted.fits(level, &part) => {
                    self.geometry.format.leaf(wanted.to(part.start), wanted.attributes, level)
                }
                Entry::Nothing => {
                    let fresh = self.memory.alloc_table()?;
                    plan.pages.push(fresh);
                    self.plan(wanted, fresh, false, level - 1, part, plan)?;
                    self.geometry.format.table(fresh)
                }
            };
            if live {
                plan.entries.push((table, slot, entry));
            } else {
                self.memory.write(table, slot, entry);
            }
        }
        Ok(())
    }

    /// Gives what is mapped in a range other rights, or none.
    fn change(&mut self, at: u64, len: u64, rights: Option<F::Attributes>) -> Result<Removed, Refusal> {
        let range = self.check_range(at, len)?;
        self.split_at(range.start)?;
        if range.end < self.geometry.end() {
            self.split_at(range.end)?;
        }
        let mut removed = Removed::default();
        self.change_below(self.root, self.geometry.levels, range, rights, &mut removed);
        self.geometry.format.publish();
        Ok(removed)
    }

    /// Makes sure that no leaf spans across an address.
    fn split_at(&mut self, at: u64) -> Result<(), Refusal> {
        let format = self.geometry.format;
        let mut table = self.root;
        for level in (2..=self.geometry.levels).rev() {
            if at.is_multiple_of(span(level)) {
                return Ok(());
            }
            let slot = index(at, level);
            table = match self.entry(table, slot, level) {
                Entry::Nothing => return Ok(()),
                Entry::Table(lower) => lower,
                Entry::Leaf(to, Some(attributes)) if !F::BREAK_BEFORE_MAKE => {
                    let fresh = self.memory.alloc_table().map_err(|refusal| refusal.within("splitting"))?;
                    for part in 0..ENTRIES {
                        let to = HostPhys(to.0 + part as u64 * span(level - 1));
                        self.memory.write(fresh, part, format.leaf(to, attributes, level - 1));
                    }
                    format.publish();
                    self.memory.write(table, slot, format.table(fresh));
                    // Also where the next split fails.
                    format.publish();
                    fresh
                }
                Entry::Leaf(..) => {
                    return Err(Refusal::new(
                        format!("{}: a range with a border at {at:#x}", F::NAME),
                        format!(
                            "it is inside a leaf of {:#x} bytes, which is in use as a whole",
                            span(level)
                        ),
                        "unmap the whole range that was mapped",
                    ));
                }
            };
        }
        Ok(())
    }

    /// Changes all leaves in a range, and takes out the tables that become empty.
    fn change_below(
        &mut self,
        table: HostPhys,
        level: u8,
        range: Range<u64>,
        rights: Option<F::Attributes>,
        removed: &mut Removed,
    ) {
        for (slot, part) in slots(level, range) {
            let entry = match self.entry(table, slot, level) {
                Entry::Nothing => continue,
                Entry::Leaf(to, _) => rights.map_or(0, |rights| self.geometry.format.leaf(to, rights, level)),
                Entry::Table(lower) => {
                    self.change_below(lower, level - 1, part, rights, removed);
                    let nothing = |slot| matches!(self.entry(lower, slot, level - 1), Entry::Nothing);
                    if !(0..ENTRIES).all(nothing) {
                        continue;
                    }
                    removed.pages.push(lower);
                    0
                }
            };
            self.memory.write(table, slot, entry);
            removed.changed = true;
        }
    }
}

/// The slots of one table of `level` that a range touches, each with its part of it. The range must not leave the
/// table's own span.
fn slots(level: u8, range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let span = span(level);
    let mut at = range.start;
    core::iter::from_fn(move || {
        let from = at;
        at = ((from & !(span - 1)) + span).min(range.end);
        (from < range.end).then(|| (index(from, level), from..at))
    })
}
