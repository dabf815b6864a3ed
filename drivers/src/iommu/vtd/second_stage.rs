// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an entry of a second-stage page table looks like.
//!
//! Source: Intel VT-d specification, "Second-Stage Paging Entries".

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{self, Entry, Format};

/// R: readable.
const READ: u64 = 1 << 0;
/// W: writable.
const WRITE: u64 = 1 << 1;
/// PS: a leaf above the last level.
const PAGE_SIZE_BIT: u64 = 1 << 7;
/// SNP: accesses snoop the processor's caches whatever the device says.
const SNOOP: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Second-stage entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageEntries {
    /// Whether leaves carry SNP.
    pub snoop: bool,
}

/// What form of tables every unit of the machine takes.
pub type Geometry = page_table::Geometry<SecondStageEntries>;

impl Format for SecondStageEntries {
    /// Whether it may be written through.
    type Attributes = bool;

    const NAME: &'static str = "I/O page table";
    const BREAK_BEFORE_MAKE: bool = false;

    fn leaf(&self, to: HostPhys, writable: bool, level: u8) -> u64 {
        let rights = if writable { READ | WRITE } else { READ };
        let large = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        let snoop = if self.snoop { SNOOP } else { 0 };
        to.0 | rights | large | snoop
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | READ | WRITE
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<bool> {
        let address = HostPhys(entry & ADDRESS);
        if entry & (READ | WRITE) == 0 {
            Entry::Nothing
        } else if level > 1 && entry & PAGE_SIZE_BIT == 0 {
            Entry::Table(address)
        } else {
            Entry::Leaf(address, Some(entry & WRITE != 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_specification_has_them() {
        let snooped = SecondStageEntries { snoop: true };
        assert_eq!(snooped.table(HostPhys(0x1000)), 0x1003);
        assert_eq!(snooped.leaf(HostPhys(0x1000), true, 1), 0x1803);
        assert_eq!(snooped.leaf(HostPhys(0x20_0000), false, 2), 0x20_0881);
        assert_eq!(SecondStageEntries { snoop: false }.leaf(HostPhys(0x4000_0000), true, 3), 0x4000_0083);
        assert_eq!(snooped.decode(0x1803, 2), Entry::Table(HostPhys(0x1000)));
        assert_eq!(snooped.decode(0x1803, 1), Entry::Leaf(HostPhys(0x1000), Some(true)));
        assert_eq!(snooped.decode(0x1880, 2), Entry::Nothing);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_table_equals_a_plain_map(
            steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
            (levels, address_bits) in prop_oneof![Just((3, 39)), Just((4, 48))],
            leaf_levels in 1u8..=3,
            snoop in any::<bool>(),
        ) {
            let format = SecondStageEntries { snoop };
            let geometry = Geometry { levels, address_bits, host_bits: 46, leaf_levels, format };
            equals_a_plain_map(geometry, &[false, true], &steps);
        }
    }
}
