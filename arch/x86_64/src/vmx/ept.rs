// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended page tables: what a stage 2 looks like under VMX.
//!
//! **Principle.** RAM is write-back. A portal is uncached whatever the guest's own page tables say: with "ignore PAT", or a
//! guest that maps it write-combining would have its stores combined. No accessed and dirty flags. Four levels, however
//! many the host walks.
//!
//! Source: Intel SDM volume 3, 29.3.2 "EPT Translation Mechanism", 29.3.7 "EPT and Memory Typing".

use pasidon_arch_common::stage2::{Content, LEAF_LEVELS};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{Entry, Format, Geometry};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const WRITE_BACK: u64 = 6 << 3;
const MEMORY_TYPE: u64 = 7 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const TABLE: u64 = READ | WRITE | EXECUTE;
const RAM: u64 = TABLE | WRITE_BACK;
/// Uncached is type 0.
const DEVICE: u64 = READ | WRITE | IGNORE_PAT;

/// Bits of a guest-physical address that the tables translate.
pub const PHYSICAL_BITS: u8 = 48;
const LEVELS: u8 = 4;

/// The form of the tables.
pub const fn geometry<F: Copy>(format: F) -> Geometry<F> {
    let (address_bits, leaf_levels) = (PHYSICAL_BITS, LEAF_LEVELS);
    Geometry { levels: LEVELS, address_bits, host_bits: 52, leaf_levels, format }
}

/// The EPT pointer that leads to the tables at `root`: walked through write-back memory, without accessed and dirty
/// flags.
pub const fn pointer(root: HostPhys) -> u64 {
    const WALKED_WRITE_BACK: u64 = 6;
    const LEVELS_SHIFT: u32 = 3;
    root.0 | WALKED_WRITE_BACK | (LEVELS as u64 - 1) << LEVELS_SHIFT
}

/// Entries of extended page tables.
#[derive(Clone, Copy, Debug)]
pub struct Extended;

impl Format for Extended {
    type Attributes = Content;

    const NAME: &'static str = "stage 2";
    const BREAK_BEFORE_MAKE: bool = false;

    fn leaf(&self, to: HostPhys, content: Content, level: u8) -> u64 {
        let large = if level > 1 { LARGE } else { 0 };
        let bits = match content {
            Content::Ram => RAM,
            Content::Device => DEVICE,
        };
        to.0 | bits | large
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | TABLE
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Content> {
        let address = HostPhys(entry & ADDRESS);
        if entry & TABLE == 0 {
            return Entry::Nothing;
        }
        if level > 1 && entry & LARGE == 0 {
            return Entry::Table(address);
        }
        Entry::Leaf(
            address,
            match entry & (TABLE | MEMORY_TYPE | IGNORE_PAT) {
                RAM => Some(Content::Ram),
                DEVICE => Some(Content::Device),
                _ => None,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        let (ram, device) = (Some(Content::Ram), Some(Content::Device));
        assert_eq!(Extended.table(HostPhys(0x1000)), 0x1007);
        assert_eq!(Extended.leaf(HostPhys(0x20_0000), Content::Ram, 2), 0x20_00b7);
        assert_eq!(Extended.leaf(HostPhys(0xe000_0000), Content::Device, 1), 0xe000_0043);
        assert_eq!(Extended.decode(0x1007, 2), Entry::Table(HostPhys(0x1000)));
        assert_eq!(Extended.decode(0x1037, 1), Entry::Leaf(HostPhys(0x1000), ram));
        assert_eq!(Extended.decode(0x20_00b7, 2), Entry::Leaf(HostPhys(0x20_0000), ram));
        assert_eq!(Extended.decode(0xe000_0043, 1), Entry::Leaf(HostPhys(0xe000_0000), device));
        assert_eq!(
            Extended.decode(0xe000_0003, 1),
            Entry::Leaf(HostPhys(0xe000_0000), None),
            "follows the PAT"
        );
        assert_eq!(Extended.decode(0x20_00b0, 2), Entry::Nothing);
        assert_eq!(pointer(HostPhys(0x1000)), 0x101e);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(steps in prop::collection::vec(any::<[u64; 6]>(), 1..24)) {
            equals_a_plain_map(geometry(Extended), &[Content::Ram, Content::Device], &steps);
        }
    }
}
