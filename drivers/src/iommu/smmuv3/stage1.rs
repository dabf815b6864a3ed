// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an entry of a stage-1 table looks like: VMSAv8-64 with the 4 KiB granule.
//!
//! **Invariants.** Every leaf is tagged with the ASID (nG), so that two tables never share a cached
//! translation, and lets nothing be executed. A leaf that is in use is never replaced by a table of smaller
//! ones: the architecture asks for break-before-make there, which a device that keeps sending would notice.
//! Source: Arm Architecture Reference Manual (DDI 0487), "VMSAv8-64 translation table format descriptors".

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{self, Entry, Format};

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
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

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

impl Format for Stage1Entries {
    /// Whether it may be written through.
    type Attributes = bool;

    const NAME: &'static str = "I/O page table";
    const BREAK_BEFORE_MAKE: bool = true;

    fn leaf(&self, to: HostPhys, writable: bool, level: u8) -> u64 {
        let page = if level == 1 { TABLE_OR_PAGE } else { 0 };
        let rights = if writable { 0 } else { READ_ONLY };
        let attribute = if self.doorbell { DEVICE } else { NORMAL };
        to.0 | VALID
            | page
            | attribute << ATTRIBUTE_SHIFT
            | UNPRIVILEGED
            | rights
            | INNER_SHAREABLE
            | ACCESSED
            | NOT_GLOBAL
            | EXECUTE_NEVER
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | VALID | TABLE_OR_PAGE
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<bool> {
        let address = HostPhys(entry & ADDRESS);
        if entry & VALID == 0 {
            Entry::Nothing
        } else if level > 1 && entry & TABLE_OR_PAGE != 0 {
            Entry::Table(address)
        } else {
            Entry::Leaf(address, Some(entry & READ_ONLY == 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        let memory = Stage1Entries { doorbell: false };
        assert_eq!(memory.table(HostPhys(0x4000_1000)), 0x4000_1003);
        assert_eq!(memory.leaf(HostPhys(0x4000_1000), true, 1), 0x0060_0000_4000_1f43);
        assert_eq!(memory.leaf(HostPhys(0x4020_0000), false, 2), 0x0060_0000_4020_0fc1);
        assert_eq!(Stage1Entries { doorbell: true }.leaf(HostPhys(0x1000), true, 1), 0x0060_0000_0000_1f47);
        assert_eq!(memory.decode(0x4000_1003, 2), Entry::Table(HostPhys(0x4000_1000)));
        assert_eq!(memory.decode(0x4000_1f43, 1), Entry::Leaf(HostPhys(0x4000_1000), Some(true)));
        assert_eq!(memory.decode(0x4020_0fc1, 2), Entry::Leaf(HostPhys(0x4020_0000), Some(false)));
        assert_eq!(memory.decode(0x4020_0fc0, 2), Entry::Nothing);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_table_equals_a_plain_map(
            steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
            leaf_levels in 1u8..=3,
            doorbell in any::<bool>(),
        ) {
            let (levels, address_bits) = (LEVELS, ADDRESS_BITS);
            let format = Stage1Entries { doorbell };
            let geometry = Geometry { levels, address_bits, host_bits: 46, leaf_levels, format };
            equals_a_plain_map(geometry, &[false, true], &steps);
        }
    }
}
