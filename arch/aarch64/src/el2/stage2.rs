// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a stage 2 looks like under EL2: three levels, pages of 4 KiB and blocks of 2 MiB.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.3 (descriptor formats), D8.4.4 (stage 2 permissions),
//! D8.5.5 (stage 2 memory types).

use pasidon_arch_common::stage2::{Content, LEAF_LEVELS, Tables};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::page_table::{Entry, Format, Geometry};

use crate::guest::layout::IPA_BITS;

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// MemAttr: normal memory, write-back, inside and outside.
const WRITE_BACK: u64 = 0b1111 << 2;
/// MemAttr: normal memory, not cached. What the guest itself makes of a device's page, if that is stricter, counts.
const NOT_CACHED: u64 = 0b0101 << 2;
/// S2AP: read and write.
const READ_WRITE: u64 = 0b11 << 6;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
/// XN\[1\]: executed at no level.
const EXECUTE_NEVER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const RAM: u64 = ACCESSED | INNER_SHAREABLE | READ_WRITE | WRITE_BACK;
const DEVICE: u64 = EXECUTE_NEVER | ACCESSED | READ_WRITE | NOT_CACHED;

/// The stage 2 of one VM.
pub type Stage2Tables = Tables<El2Format>;

/// Their form.
pub const GEOMETRY: Geometry<El2Format> = Geometry {
    levels: 3,
    address_bits: IPA_BITS,
    host_bits: 48,
    leaf_levels: LEAF_LEVELS,
    format: El2Format,
};

/// Entries of stage 2.
#[derive(Clone, Copy, Debug)]
pub struct El2Format;

impl Format for El2Format {
    type Attributes = Content;

    const NAME: &'static str = "stage 2";
    const BREAK_BEFORE_MAKE: bool = true;

    fn leaf(&self, to: HostPhys, content: Content, level: u8) -> u64 {
        let page = if level == 1 { TABLE_OR_PAGE } else { 0 };
        let bits = match content {
            Content::Ram => RAM,
            Content::Device => DEVICE,
        };
        to.0 | bits | page | VALID
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | TABLE_OR_PAGE | VALID
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Content> {
        let address = HostPhys(entry & ADDRESS);
        if entry & VALID == 0 {
            return Entry::Nothing;
        }
        if level > 1 && entry & TABLE_OR_PAGE != 0 {
            return Entry::Table(address);
        }
        Entry::Leaf(
            address,
            match entry & !(ADDRESS | TABLE_OR_PAGE | VALID) {
                RAM => Some(Content::Ram),
                DEVICE => Some(Content::Device),
                _ => None,
            },
        )
    }

    fn publish(&self) {
        #[cfg(target_arch = "aarch64")]
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        let (format, ram, device) = (El2Format, Content::Ram, Content::Device);
        assert_eq!(format.table(HostPhys(0x4000_1000)), 0x4000_1003);
        assert_eq!(format.leaf(HostPhys(0x4020_0000), ram, 2), 0x4020_07fd);
        assert_eq!(format.leaf(HostPhys(0x1000_1000), device, 1), 0x0040_0000_1000_14d7);
        assert_eq!(format.decode(0x4020_07fd, 2), Entry::Leaf(HostPhys(0x4020_0000), Some(ram)));
        assert_eq!(format.decode(0x4000_1003, 2), Entry::Table(HostPhys(0x4000_1000)));
        assert_eq!(format.decode(0x0040_0000_1000_14d7, 1), Entry::Leaf(HostPhys(0x1000_1000), Some(device)));
        assert_eq!(format.decode(0x1000_14d7, 1), Entry::Leaf(HostPhys(0x1000_1000), None), "executable");
        assert_eq!(format.decode(0x4020_07fc, 2), Entry::Nothing);
        assert_eq!(GEOMETRY.end(), 1 << IPA_BITS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(steps in prop::collection::vec(any::<[u64; 6]>(), 1..24)) {
            equals_a_plain_map(GEOMETRY, &[Content::Ram, Content::Device], &steps);
        }
    }
}
