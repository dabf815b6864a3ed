// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: what a stage 2 looks like under SVM.
//!
//! **Principle.** The processor walks nested tables in the paging mode of the host that executes VMRUN. Where firmware
//! left five levels on (CR4.LA57, which nobody can change in long mode), a table of four would be read one level too
//! high, and a small guest would reach whole GiBs of others' memory. So there a fifth level stands above the four.
//!
//! Source: AMD APM volume 2, 15.25 "Nested Paging", 15.25.3 (the host's paging mode), 5.4. Nested walks count as user
//! accesses, so every level has the U bit.

use pasidon_arch_common::hardware::Stage2;
use pasidon_arch_common::memory;
use pasidon_arch_common::stage2::{Entry, Format, Tables};
use pasidon_kernel::addr::{GuestPhys, HostPhys, PAGE_SIZE};
use pasidon_kernel::frames::Frames;
use pasidon_kernel::ram::GuestRam;
use pasidon_kernel::refusal::Refusal;

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

/// Bits of a guest-physical address that the tables translate, whatever the host walks.
pub const PHYSICAL_BITS: u8 = Nested::LIMIT.ilog2() as u8;

/// The nested page table of one VM.
#[derive(Debug)]
pub struct NestedTable {
    tables: Tables<Nested>,
    top: Option<Top>,
}

/// A table above the root, which its first entry leads to.
#[derive(Debug)]
struct Top {
    page: HostPhys,
    frames: &'static Frames,
}

impl Drop for Top {
    fn drop(&mut self) {
        self.frames.free_pages(self.page, 1);
    }
}

impl NestedTable {
    /// An empty one, for a host that walks four levels, or `five`. `frames` gives memory that is mapped at its
    /// physical address.
    pub fn new(frames: &'static Frames, five: bool) -> Result<Self, Refusal> {
        let tables = Tables::new(frames)?;
        let top = five.then(|| Top::new(frames, tables.root())).transpose()?;
        Ok(Self { tables, top })
    }

    /// Physical address of the table that a walk begins with.
    pub fn root(&self) -> HostPhys {
        self.top.as_ref().map_or(self.tables.root(), |top| top.page)
    }
}

impl Top {
    fn new(frames: &'static Frames, root: HostPhys) -> Result<Self, Refusal> {
        let page = frames
            .allocate_pages(1)
            .ok_or_else(|| Refusal::new("stage 2", "no memory left for tables", "give VMs less memory"))?;
        // SAFETY: the page was just taken for us, and RAM is mapped at its physical address.
        unsafe {
            memory::zero(page, PAGE_SIZE);
            (page.0 as *mut u64).write_volatile(Nested::table(root));
        }
        Ok(Self { page, frames })
    }
}

impl Stage2 for NestedTable {
    fn map_ram(&mut self, ram: &GuestRam) -> Result<(), Refusal> {
        self.tables.map_ram(ram)
    }

    fn map_portal(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), Refusal> {
        self.tables.map_portal(guest, host, len)
    }

    fn unmap_portal(&mut self, guest: GuestPhys, len: u64) {
        self.tables.unmap_portal(guest, len);
    }

    fn bytes(&self) -> u64 {
        self.tables.bytes() + if self.top.is_some() { PAGE_SIZE } else { 0 }
    }
}

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
    use alloc::boxed::Box;
    use pasidon_kernel::addr::LARGE_PAGE_SIZE;
    use pasidon_kernel::id::VmId;
    use pasidon_kernel::ram::RamRange;

    #[test]
    fn entries_are_as_the_manual_has_them() {
        assert_eq!(Nested::table(HostPhys(0x1000)), 0x1007, "nested walks are user accesses");
        assert_eq!(Nested::ram(HostPhys(0x20_0000)), 0x20_0087);
        assert_eq!(Nested::device(HostPhys(0xe000_0000)), 0x8000_0000_e000_001f);
        assert_eq!(Nested::decode(0x1007, 1), Entry::Table(HostPhys(0x1000)));
        assert_eq!(Nested::decode(0x1007, 0), Entry::Page);
        assert_eq!(Nested::decode(0x20_0087, 1), Entry::Page);
        assert_eq!(Nested::decode(0x20_0086, 1), Entry::Nothing);
        assert_eq!(Nested::LIMIT, 1 << 48);
    }

    /// Where a processor finds `guest` that walks so many levels, as it does it: by the bits, whatever the tables were
    /// meant for.
    fn walk(root: HostPhys, levels: u32, guest: u64) -> Option<u64> {
        let mut entry = root.0;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let index = (guest >> shift) & 511;
            // SAFETY: a table that `NestedTable` made in this test's memory.
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
            let mut table = NestedTable::new(frames, five).unwrap();
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
                if levels == 5 || beyond < Nested::LIMIT {
                    assert_eq!(reached(beyond), None, "{levels} levels, {beyond:#x}");
                }
            }
        }
        assert_eq!(frames.counts(), before, "all tables came back");
    }
}
