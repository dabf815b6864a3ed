// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entries of stage-2 tables: where both extensions have them alike, and the bits in which they differ.

use pasidon_arch_common::stage2::{Content, LEAF_LEVELS};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{Entry, Format, Geometry};

/// Bits of a guest-physical address that the tables translate, however many levels the host walks.
pub const PHYSICAL_BITS: u8 = 48;
/// A leaf above the lowest level, in both.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The bits of one extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// Of an entry that leads to a lower table.
    pub table: u64,
    /// Of RAM.
    pub ram: u64,
    /// Of a page of a device.
    pub device: u64,
    /// An entry with none of these says nothing.
    pub present: u64,
    /// By which RAM and devices are told. Marks of the processor's own (accessed, dirty) are not among them.
    pub told: u64,
}

impl Form {
    /// Tables of so many levels.
    pub const fn geometry(self, levels: u8) -> Geometry<Form> {
        let (address_bits, leaf_levels) = (PHYSICAL_BITS, LEAF_LEVELS);
        Geometry { levels, address_bits, host_bits: 52, leaf_levels, format: self }
    }
}

impl Format for Form {
    type Attributes = Content;

    const NAME: &'static str = "stage 2";
    const BREAK_BEFORE_MAKE: bool = false;

    fn leaf(&self, to: HostPhys, content: Content, level: u8) -> u64 {
        let large = if level > 1 { LARGE } else { 0 };
        let bits = match content {
            Content::Ram => self.ram,
            Content::Device => self.device,
        };
        to.0 | bits | large
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | self.table
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Content> {
        let address = HostPhys(entry & ADDRESS);
        if entry & self.present == 0 {
            return Entry::Nothing;
        }
        if level > 1 && entry & LARGE == 0 {
            return Entry::Table(address);
        }
        let content = match entry & self.told {
            bits if bits == self.ram => Some(Content::Ram),
            bits if bits == self.device => Some(Content::Device),
            _ => None,
        };
        Entry::Leaf(address, content)
    }
}
