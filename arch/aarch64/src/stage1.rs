// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stage-1 translation of EL2: the bits of an entry and of the registers that go with it. Values only.
//!
//! **Principle.** With VHE (HCR_EL2.E2H = 1) EL2 has the regime "EL2&0", whose entries and TCR_EL2 look as those
//! of EL1; without, the regime of its own. What differs is in [`Regime`], nowhere else.
//! **Invariant.** No page is both writable and executable; SCTLR_EL2.WXN makes the processor see to it as well.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.3 (descriptor formats), D8.4 (permissions), D19.2
//! (MAIR_EL2, SCTLR_EL2, TCR_EL2).

use bitflags::bitflags;
use pasidon_arch_common::paging::{Kind, LEAF_LEVELS};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{self, Format, Geometry};

use crate::features::Features;

bitflags! {
    /// An entry beside its address.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Entry: u64 {
        /// Valid.
        const VALID = 1 << 0;
        /// A table, or in the last level a page; otherwise a block.
        const TABLE_OR_PAGE = 1 << 1;
        /// AttrIndx 1: device memory; 0: normal memory.
        const DEVICE = ATTR_DEVICE << 2;
        /// AP\[1\]: in the regime of EL2 alone, always 1; in EL2&0, access by EL0.
        const AP1 = 1 << 6;
        /// AP\[2\]: only read.
        const READ_ONLY = 1 << 7;
        /// SH: inner shareable.
        const INNER_SHAREABLE = 0b11 << 8;
        /// Accessed; without it the first access faults.
        const AF = 1 << 10;
        /// Not executed at EL2; in EL2&0 only.
        const PXN = 1 << 53;
        /// Not executed; in EL2&0 not by EL0.
        const XN = 1 << 54;
    }
}

/// The address in an entry.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Width of the addresses, in bits: all that four levels reach.
pub const ADDRESS_BITS: u8 = 48;
/// AttrIndx of device memory.
const ATTR_DEVICE: u64 = 1;

/// MAIR_EL2: index 0 normal memory, write-back, allocated on reads and writes; index 1 device memory,
/// nGnRnE.
pub const MAIR: u64 = 0xff;

/// Which translation regime EL2 has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Regime {
    /// Its own (E2H = 0).
    El2,
    /// EL2&0 (E2H = 1).
    El2And0,
}

impl Regime {
    /// The one that a processor with these features gets.
    pub fn of(features: &Features) -> Self {
        if features.vhe { Regime::El2And0 } else { Regime::El2 }
    }

    fn bits(self, kind: Kind) -> Entry {
        let always = match self {
            Regime::El2 => Entry::AP1,
            // Nothing of the hypervisor's is EL0's to execute.
            Regime::El2And0 => Entry::XN,
        };
        let not_executed = match self {
            Regime::El2 => Entry::XN,
            Regime::El2And0 => Entry::PXN,
        };
        let normal = Entry::VALID | Entry::AF | Entry::INNER_SHAREABLE | always;
        match kind {
            Kind::Data => normal | not_executed,
            Kind::Constants => normal | not_executed | Entry::READ_ONLY,
            Kind::Code => normal | Entry::READ_ONLY,
            Kind::Device => Entry::VALID | Entry::AF | Entry::DEVICE | always | not_executed,
        }
    }

    /// The form of the tables.
    pub fn geometry(self) -> Geometry<Self> {
        let (address_bits, host_bits) = (ADDRESS_BITS, ADDRESS_BITS);
        Geometry { levels: 4, address_bits, host_bits, leaf_levels: LEAF_LEVELS, format: self }
    }

    /// TCR_EL2: 4 KiB pages, 48 bits, tables in inner-shareable write-back memory.
    pub fn tcr(self, features: &Features) -> u64 {
        const T0SZ: u64 = 64 - ADDRESS_BITS as u64;
        const IRGN0_WRITE_BACK: u64 = 1 << 8;
        const ORGN0_WRITE_BACK: u64 = 1 << 10;
        const SH0_INNER: u64 = 0b11 << 12;
        let common = T0SZ | IRGN0_WRITE_BACK | ORGN0_WRITE_BACK | SH0_INNER;
        match self {
            Regime::El2 => {
                const PS_SHIFT: u32 = 16;
                const RES1: u64 = 1 << 31 | 1 << 23;
                common | RES1 | features.physical_size() << PS_SHIFT
            }
            Regime::El2And0 => {
                const IPS_SHIFT: u32 = 32;
                /// No walks by TTBR1_EL2.
                const EPD1: u64 = 1 << 23;
                const TG1_4K: u64 = 0b10 << 30;
                common | EPD1 | TG1_4K | features.physical_size() << IPS_SHIFT
            }
        }
    }
}

/// SCTLR_EL2: MMU and caches on, the stack pointer's alignment checked, W^X enforced. The other bits are those
/// that are RES1 without VHE; with it they switch traps and errata-like behaviour off.
pub const SCTLR: u64 = {
    const RES1: u64 = 0x30c5_0830;
    const M: u64 = 1 << 0;
    const C: u64 = 1 << 2;
    const SA: u64 = 1 << 3;
    const I: u64 = 1 << 12;
    const WXN: u64 = 1 << 19;
    RES1 | M | C | SA | I | WXN
};

const KINDS: [Kind; 4] = [Kind::Data, Kind::Constants, Kind::Code, Kind::Device];

impl Format for Regime {
    type Attributes = Kind;

    const NAME: &'static str = "page tables";
    const BREAK_BEFORE_MAKE: bool = true;

    fn leaf(&self, to: HostPhys, kind: Kind, level: u8) -> u64 {
        let page = if level == 1 { Entry::TABLE_OR_PAGE } else { Entry::empty() };
        to.0 | (self.bits(kind) | page).bits()
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | (Entry::VALID | Entry::TABLE_OR_PAGE).bits()
    }

    fn decode(&self, entry: u64, level: u8) -> page_table::Entry<Kind> {
        let bits = Entry::from_bits_truncate(entry & !ADDRESS);
        let address = HostPhys(entry & ADDRESS);
        // A block in the last level is as good as nothing.
        if !bits.contains(Entry::VALID) || level == 1 && !bits.contains(Entry::TABLE_OR_PAGE) {
            return page_table::Entry::Nothing;
        }
        if level > 1 && bits.contains(Entry::TABLE_OR_PAGE) {
            return page_table::Entry::Table(address);
        }
        let kind = KINDS.into_iter().find(|kind| self.bits(*kind) == bits - Entry::TABLE_OR_PAGE);
        page_table::Entry::Leaf(address, kind)
    }

    fn publish(&self) {
        #[cfg(target_arch = "aarch64")]
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::Entry::{Leaf, Nothing, Table};
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    const REGIMES: [Regime; 2] = [Regime::El2, Regime::El2And0];

    #[test]
    fn what_is_written_is_what_is_read() {
        for regime in REGIMES {
            for kind in KINDS {
                let page = regime.leaf(HostPhys(0x5000), kind, 1);
                assert_eq!(regime.decode(page, 1), Leaf(HostPhys(0x5000), Some(kind)));
                let large = regime.leaf(HostPhys(0x4020_0000), kind, 2);
                assert_eq!(regime.decode(large, 2), Leaf(HostPhys(0x4020_0000), Some(kind)));
                assert_eq!(regime.decode(large, 1), Nothing);
            }
            assert_eq!(regime.decode(regime.table(HostPhys(0x7000)), 2), Table(HostPhys(0x7000)));
            assert_eq!(regime.decode(0, 2), Nothing);
            assert_eq!(regime.decode(0, 1), Nothing);
        }
    }

    #[test]
    fn no_kind_is_both_writable_and_executable() {
        for (regime, not_executed) in REGIMES.into_iter().zip([Entry::XN, Entry::PXN]) {
            for kind in KINDS {
                let bits = regime.bits(kind);
                let written = !bits.contains(Entry::READ_ONLY);
                assert!(!written || bits.contains(not_executed), "{kind:?}");
            }
            assert!(!regime.bits(Kind::Code).contains(not_executed));
        }
        // Code that EL0 could write to would not be executed at EL2.
        assert!(!Regime::El2And0.bits(Kind::Code).contains(Entry::AP1));
    }

    #[test]
    fn physical_sizes_are_where_each_regime_has_them() {
        let features = Features { physical_bits: 40, ..Features::default() };
        assert_eq!(Regime::El2.tcr(&features) >> 16 & 7, 2);
        assert_eq!(Regime::El2And0.tcr(&features) >> 32 & 7, 2);
        for regime in REGIMES {
            assert_eq!(regime.tcr(&features) & 0x3f, 16);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(
            steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
            regime in prop::sample::select(REGIMES.to_vec()),
        ) {
            equals_a_plain_map(regime.geometry(), &KINDS, &steps);
        }
    }
}
