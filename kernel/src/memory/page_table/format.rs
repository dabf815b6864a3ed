// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a page table looks like to whoever walks it: its form and its entries. All decode nine bits of an address per
//! level, over pages of 4 KiB.

use crate::base::addr::{HostPhys, PAGE_SIZE};

/// Entries in a table.
pub const ENTRIES: usize = 512;
/// Index bits per level.
const LEVEL_BITS: u32 = 9;

/// Bytes that one entry of a level spans: 4 KiB at level 1, 2 MiB at level 2, 1 GiB at level 3.
pub const fn span(level: u8) -> u64 {
    PAGE_SIZE << (LEVEL_BITS * (level as u32 - 1))
}

/// Slot of an address in a table of a level.
pub const fn index(at: u64, level: u8) -> usize {
    (at / span(level)) as usize % ENTRIES
}

/// An entry, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<A> {
    /// Nothing is mapped.
    Nothing,
    /// A table of the next lower level.
    Table(HostPhys),
    /// Memory; `None` for rights that nobody gives.
    Leaf(HostPhys, Option<A>),
}

/// What entries look like, for one kind of walker.
pub trait Format: Copy {
    /// What a leaf says beside where it leads: rights, type of memory.
    type Attributes: Copy;

    /// What the table is, for refusals: `stage 2`.
    const NAME: &'static str;

    /// Whether a walker must have seen and forgotten that an entry is gone before it may become another one. An entry
    /// in use is then never split and never gets other rights.
    const BREAK_BEFORE_MAKE: bool;

    /// The entry of `level` for memory at `to`, which is aligned to what the entry spans.
    fn leaf(&self, to: HostPhys, attributes: Self::Attributes, level: u8) -> u64;

    /// The entry for a lower table.
    fn table(&self, lower: HostPhys) -> u64;

    /// What an entry of `level` says. 0 says nothing.
    fn decode(&self, entry: u64, level: u8) -> Entry<Self::Attributes>;

    /// Lets walkers see what was written, before what is written from here on. Nothing to do where
    /// [`Memory::write`](super::Memory::write) does that already.
    fn publish(&self) {}
}

/// What form of tables the walkers take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry<F> {
    /// Number of levels: 3, 4 or 5. May be more than the addresses need.
    pub levels: u8,
    /// Width of the addresses that are translated, in bits.
    pub address_bits: u8,
    /// Width of host-physical addresses, in bits.
    pub host_bits: u8,
    /// Highest level that may hold a leaf: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub leaf_levels: u8,
    /// The entries.
    pub format: F,
}

impl<F> Geometry<F> {
    /// Largest leaf in bytes.
    pub fn largest_page(&self) -> u64 {
        span(self.leaf_levels)
    }

    /// First address that is not translated.
    pub fn end(&self) -> u64 {
        1 << self.address_bits
    }
}
