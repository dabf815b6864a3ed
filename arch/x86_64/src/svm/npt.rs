// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: what a stage 2 looks like under SVM.
//!
//! Source: AMD APM volume 2, 15.25 "Nested Paging", 5.4. Nested walks count as user accesses, so every level has
//! the U bit.

use pasidon_arch_common::stage2::{Entry, Format, Tables};
use pasidon_kernel::addr::HostPhys;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const TABLE: u64 = PRESENT | WRITE | USER;
/// Device memory: PAT entry 3, uncached after reset and in the hypervisor.
const DEVICE: u64 = TABLE | WRITE_THROUGH | CACHE_DISABLE | NO_EXECUTE;

/// The nested page table of one VM.
pub type NestedTable = Tables<Nested>;

/// Entries of nested page tables; 48 bits of guest-physical address.
#[derive(Debug)]
pub enum Nested {}

impl Format for Nested {
    const LEVELS: u32 = 4;

    fn table(at: HostPhys) -> u64 {
        at.0 | TABLE
    }

    fn ram(host: HostPhys) -> u64 {
        host.0 | TABLE | LARGE
    }

    fn device(host: HostPhys) -> u64 {
        host.0 | DEVICE
    }

    fn decode(entry: u64, level: u32) -> Entry {
        if entry & PRESENT == 0 {
            Entry::Nothing
        } else if level == 0 || entry & LARGE != 0 {
            Entry::Page
        } else {
            Entry::Table(HostPhys(entry & ADDRESS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        assert_eq!(
            Nested::table(HostPhys(0x1000)),
            0x1007,
            "nested walks are user accesses"
        );
        assert_eq!(Nested::ram(HostPhys(0x20_0000)), 0x20_0087);
        assert_eq!(Nested::device(HostPhys(0xe000_0000)), 0x8000_0000_e000_001f);
        assert_eq!(Nested::decode(0x1007, 1), Entry::Table(HostPhys(0x1000)));
        assert_eq!(Nested::decode(0x1007, 0), Entry::Page);
        assert_eq!(Nested::decode(0x20_0087, 1), Entry::Page);
        assert_eq!(Nested::decode(0x20_0086, 1), Entry::Nothing);
        assert_eq!(Nested::LIMIT, 1 << 48);
    }
}
