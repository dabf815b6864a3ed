// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended page tables: what a stage 2 looks like under VMX.
//!
//! **Principle.** RAM is write-back. A portal is uncached whatever the guest's own page tables say: with "ignore PAT", or a
//! guest that maps it write-combining would have its stores combined. No accessed and dirty flags. Four levels, however
//! many the host walks.
//!
//! Source: Intel SDM volume 3, 29.3.2 "EPT Translation Mechanism", 29.3.7 "EPT and Memory Typing".

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::Geometry;

use crate::backend::stage2::Form;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const WRITE_BACK: u64 = 6 << 3;
const MEMORY_TYPE: u64 = 7 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const TABLE: u64 = READ | WRITE | EXECUTE;
const RAM: u64 = TABLE | WRITE_BACK;
/// Uncached is type 0.
const DEVICE: u64 = READ | WRITE | IGNORE_PAT;

const LEVELS: u8 = 4;

/// Entries of extended page tables.
const EXTENDED: Form =
    Form { table: TABLE, ram: RAM, device: DEVICE, present: TABLE, told: TABLE | MEMORY_TYPE | IGNORE_PAT };

/// The form of the tables.
pub const fn geometry() -> Geometry<Form> {
    EXTENDED.geometry(LEVELS)
}

/// The EPT pointer that leads to the tables at `root`: walked through write-back memory, without accessed and dirty
/// flags.
pub const fn pointer(root: HostPhys) -> u64 {
    const WALKED_WRITE_BACK: u64 = 6;
    const LEVELS_SHIFT: u32 = 3;
    root.0 | WALKED_WRITE_BACK | (LEVELS as u64 - 1) << LEVELS_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_arch_common::stage2::Content;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use pasidon_kernel::memory::page_table::{Entry, Format};
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        let (ram, device) = (Some(Content::Ram), Some(Content::Device));
        assert_eq!(EXTENDED.table(HostPhys(0x1000)), 0x1007);
        assert_eq!(EXTENDED.leaf(HostPhys(0x20_0000), Content::Ram, 2), 0x20_00b7);
        assert_eq!(EXTENDED.leaf(HostPhys(0xe000_0000), Content::Device, 1), 0xe000_0043);
        assert_eq!(EXTENDED.decode(0x1007, 2), Entry::Table(HostPhys(0x1000)));
        assert_eq!(EXTENDED.decode(0x1037, 1), Entry::Leaf(HostPhys(0x1000), ram));
        assert_eq!(EXTENDED.decode(0x20_00b7, 2), Entry::Leaf(HostPhys(0x20_0000), ram));
        assert_eq!(EXTENDED.decode(0xe000_0043, 1), Entry::Leaf(HostPhys(0xe000_0000), device));
        assert_eq!(
            EXTENDED.decode(0xe000_0003, 1),
            Entry::Leaf(HostPhys(0xe000_0000), None),
            "follows the PAT"
        );
        assert_eq!(EXTENDED.decode(0x20_00b0, 2), Entry::Nothing);
        assert_eq!(pointer(HostPhys(0x1000)), 0x101e);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(steps in prop::collection::vec(any::<[u64; 6]>(), 1..24)) {
            equals_a_plain_map(geometry(), &[Content::Ram, Content::Device], &steps);
        }
    }
}
