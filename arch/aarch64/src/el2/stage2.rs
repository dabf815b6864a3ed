// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a stage 2 looks like under EL2: three levels, pages of 4 KiB and blocks of 2 MiB.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.3 (descriptor formats), D8.4.4 (stage 2 permissions),
//! D8.5.5 (stage 2 memory types).

use pasidon_arch_common::stage2::{Entry, Format, Tables};
use pasidon_kernel::addr::HostPhys;

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

/// The stage 2 of one VM.
pub type Stage2Tables = Tables<El2Format>;

/// Entries of stage 2; 39 bits of guest-physical address.
#[derive(Debug)]
pub enum El2Format {}

impl Format for El2Format {
    const LEVELS: u32 = 3;

    fn table(at: HostPhys) -> u64 {
        at.0 | TABLE_OR_PAGE | VALID
    }

    fn ram(host: HostPhys) -> u64 {
        host.0 | ACCESSED | INNER_SHAREABLE | READ_WRITE | WRITE_BACK | VALID
    }

    fn device(host: HostPhys) -> u64 {
        host.0 | EXECUTE_NEVER | ACCESSED | READ_WRITE | NOT_CACHED | TABLE_OR_PAGE | VALID
    }

    fn decode(entry: u64, level: u32) -> Entry {
        if entry & VALID == 0 {
            Entry::Nothing
        } else if level == 0 || entry & TABLE_OR_PAGE == 0 {
            Entry::Page
        } else {
            Entry::Table(HostPhys(entry & ADDRESS))
        }
    }

    fn publish() {
        #[cfg(target_arch = "aarch64")]
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        assert_eq!(El2Format::table(HostPhys(0x4000_1000)), 0x4000_1003);
        assert_eq!(El2Format::ram(HostPhys(0x4020_0000)), 0x4020_07fd);
        assert_eq!(El2Format::device(HostPhys(0x1000_1000)), 0x0040_0000_1000_14d7);
        assert_eq!(El2Format::decode(0x4020_07fd, 1), Entry::Page);
        assert_eq!(El2Format::decode(0x4000_1003, 1), Entry::Table(HostPhys(0x4000_1000)));
        assert_eq!(El2Format::decode(0x1000_14d7, 0), Entry::Page);
        assert_eq!(El2Format::decode(0x4020_07fc, 1), Entry::Nothing);
        assert_eq!(El2Format::LIMIT, 1 << crate::guest::layout::IPA_BITS);
    }
}
