// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: what a stage 2 looks like under SVM.
//!
//! **Principle.** The processor walks nested tables in the paging mode of the host that executes VMRUN. Where firmware
//! left five levels on (CR4.LA57, which nobody can change in long mode), a table of four would be read one level too
//! high, and a small guest would reach whole GiBs of others' memory. So there a fifth level stands above the four.
//!
//! Source: AMD APM volume 2, 15.25 "Nested Paging", 15.25.3 (the host's paging mode), 5.4. Nested walks count as user
//! accesses, so every level has the U bit.

use pasidon_kernel::memory::page_table::Geometry;

use crate::backend::stage2::Form;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITE | USER;
/// Device memory: PAT entry 3, uncached after reset and in the hypervisor.
const DEVICE: u64 = TABLE | WRITE_THROUGH | CACHE_DISABLE | NO_EXECUTE;

/// Entries of nested page tables.
const NESTED: Form = Form { table: TABLE, ram: TABLE, device: DEVICE, present: PRESENT, told: DEVICE };

/// The form for a host that walks four levels, or `five`.
pub const fn geometry(five: bool) -> Geometry<Form> {
    NESTED.geometry(if five { 5 } else { 4 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use pasidon_arch_common::hardware::Stage2;
    use pasidon_arch_common::stage2::{Content, Tables};
    use pasidon_kernel::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE};
    use pasidon_kernel::base::id::VmId;
    use pasidon_kernel::memory::frames::Frames;
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use pasidon_kernel::memory::page_table::{Entry, Format};
    use pasidon_kernel::memory::ram::{GuestRam, RamRange};
    use proptest::prelude::*;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        let (ram, device) = (Some(Content::Ram), Some(Content::Device));
        assert_eq!(NESTED.table(HostPhys(0x1000)), 0x1007, "nested walks are user accesses");
        assert_eq!(NESTED.leaf(HostPhys(0x20_0000), Content::Ram, 2), 0x20_0087);
        assert_eq!(NESTED.leaf(HostPhys(0xe000_0000), Content::Device, 1), 0x8000_0000_e000_001f);
        assert_eq!(NESTED.decode(0x1007, 2), Entry::Table(HostPhys(0x1000)));
        assert_eq!(NESTED.decode(0x1007, 1), Entry::Leaf(HostPhys(0x1000), ram));
        assert_eq!(NESTED.decode(0x20_0087, 2), Entry::Leaf(HostPhys(0x20_0000), ram));
        assert_eq!(NESTED.decode(0x20_00e7, 2), Entry::Leaf(HostPhys(0x20_0000), ram), "accessed, dirty");
        assert_eq!(NESTED.decode(0x8000_0000_e000_001f, 1), Entry::Leaf(HostPhys(0xe000_0000), device));
        assert_eq!(NESTED.decode(0x20_0086, 2), Entry::Nothing);
        assert_eq!(geometry(true).end(), 1 << 48);
    }

    /// Where a processor finds `guest` that walks so many levels, as it does it: by the bits, whatever the tables were
    /// meant for.
    fn walk(root: HostPhys, levels: u32, guest: u64) -> Option<u64> {
        const LARGE: u64 = 1 << 7;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut entry = root.0;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let index = (guest >> shift) & 511;
            // SAFETY: a table that `Tables` made in this test's memory.
            entry = unsafe { ((entry & ADDRESS) as *const u64).wrapping_add(index as usize).read() };
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let within = (1 << shift) - 1;
                return (entry & ADDRESS & within == 0).then_some(entry & ADDRESS | guest & within);
            }
        }
        None
    }

    #[test]
    fn a_guest_reaches_its_ram_and_nothing_else_however_many_levels_the_host_walks() {
        const RAM: u64 = 8 * LARGE_PAGE_SIZE;
        const HOST: u64 = 1 << 30;
        let len = 8 * LARGE_PAGE_SIZE;
        let backing = vec![0u8; (len + LARGE_PAGE_SIZE) as usize].leak();
        let start = (backing.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE);
        let frames: &'static Frames = Box::leak(Box::new(Frames::new([(HostPhys(start), len)])));
        let before = frames.counts();
        for (five, levels) in [(false, 4), (true, 5)] {
            let mut table = Tables::new(frames, geometry(five)).unwrap();
            // Only named, never touched.
            let host = Frames::new([(HostPhys(HOST), RAM)]);
            let taken = host.allocate_guest(RAM).unwrap().scrub(&mut |_, _| {});
            let range = RamRange { start: GuestPhys(0), len: RAM };
            let ram = GuestRam::new(VmId(0), taken, &[range]).unwrap();
            table.map_ram(&ram).unwrap();
            table.map_portal(GuestPhys(0xe000_0000), HostPhys(0xd000_0000), 0x1000).unwrap();
            let reached = |guest| walk(table.root(), levels, guest);
            assert_eq!(reached(0x12_3456), Some(HOST + 0x12_3456), "{levels} levels");
            assert_eq!(reached(0xe000_0010), Some(0xd000_0010));
            for beyond in [RAM, 0x3000_0000, 1 << 30, 1 << 39, 1 << 48] {
                // What four levels do not translate they do not look at.
                if levels == 5 || beyond < geometry(five).end() {
                    assert_eq!(reached(beyond), None, "{levels} levels, {beyond:#x}");
                }
            }
        }
        assert_eq!(frames.counts(), before, "all tables came back");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(
            steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
            five in any::<bool>(),
        ) {
            equals_a_plain_map(geometry(five), &[Content::Ram, Content::Device], &steps);
        }
    }
}
