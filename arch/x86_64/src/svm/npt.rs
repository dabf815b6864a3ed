// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: a VM's stage 2.
//!
//! **Principle.** Guest RAM is mapped once, in 2 MiB pages, before the guest runs; after that only portals
//! come and go, as single pages. So a fault in this table means a device access.
//! **Invariants.** Nothing but the VM's own RAM and its portals is ever mapped. Tables are kept only for what
//! is mapped now: a guest that moves its BARs through a whole window takes no more memory than one that does
//! not.
//!
//! Source: AMD APM volume 2, 15.25 "Nested Paging". Nested walks count as user accesses, so every level has
//! the U bit.

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::frames::Frames;
use pasidon_kernel::ram::GuestRam;
use pasidon_kernel::refusal::Refusal;

/// Bits of an entry (APM 2, 5.4).
mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const LARGE: u64 = 1 << 7;
    pub const NO_EXECUTE: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    pub const TABLE: u64 = PRESENT | WRITE | USER;
    /// Device memory: PAT entry 3, uncached after reset and in the hypervisor.
    pub const DEVICE: u64 = TABLE | WRITE_THROUGH | CACHE_DISABLE | NO_EXECUTE;
}

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Levels of a walk; 48 bits of guest-physical address.
const LEVELS: u32 = 4;
/// First guest-physical address that cannot be mapped.
const LIMIT: u64 = 1 << 48;

/// The nested page table of one VM.
#[derive(Debug)]
pub struct NestedTable {
    frames: &'static Frames,
    root: HostPhys,
    /// All tables, the root too.
    tables: Vec<HostPhys>,
    /// Those of them that lead nowhere any more. The processor may still hold entries that lead to them until
    /// the flush that follows [`NestedTable::unmap_portal`]; so they stay, to be the next that are needed.
    spare: Vec<HostPhys>,
}

fn shift(level: u32) -> u32 {
    12 + 9 * level
}

impl NestedTable {
    /// An empty table. `frames` gives memory that is mapped at its physical address.
    pub fn new(frames: &'static Frames) -> Result<Self, Refusal> {
        let mut table = Self {
            frames,
            root: HostPhys(0),
            tables: Vec::new(),
            spare: Vec::new(),
        };
        table.root = table.allocate()?;
        Ok(table)
    }

    /// Physical address of the root: nCR3.
    pub fn root(&self) -> HostPhys {
        self.root
    }

    /// Bytes taken by tables.
    pub fn bytes(&self) -> u64 {
        self.tables.len() as u64 * PAGE_SIZE
    }

    /// Maps a VM's RAM, writable and executable.
    pub fn map_ram(&mut self, ram: &GuestRam) -> Result<(), Refusal> {
        for segment in ram.segments() {
            let mut done = 0;
            while done < segment.len {
                let (guest, host) = (segment.guest.0 + done, segment.host.0 + done);
                self.map(guest, host | entry::TABLE | entry::LARGE, 1)?;
                done += LARGE_PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Maps a window of a device: uncached, not executable.
    pub fn map_portal(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), Refusal> {
        if !guest.is_aligned(PAGE_SIZE) || !host.is_aligned(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::new(
                format!("portal at {guest}"),
                "not whole pages",
                "correct its driver",
            ));
        }
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            self.map(guest.0 + offset, (host.0 + offset) | entry::DEVICE, 0)?;
        }
        Ok(())
    }

    /// Removes a window of a device. The caller flushes the guest's translations before anything else is mapped.
    pub fn unmap_portal(&mut self, guest: GuestPhys, len: u64) {
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            let Some(address) = guest.0.checked_add(offset).filter(|address| *address < LIMIT) else {
                return;
            };
            if let Some(slot) = self.slot(address, 0, false).ok().flatten() {
                // SAFETY: `slot` gives an entry of a table of ours.
                unsafe { slot.write_volatile(0) };
                self.take_out_empty(address);
            }
        }
    }

    /// Takes the tables that lead to `guest` out, from the lowest up, as far as nothing is mapped by them.
    fn take_out_empty(&mut self, guest: u64) {
        for level in 1..LEVELS {
            let Some(slot) = self.slot(guest, level, false).ok().flatten() else {
                return;
            };
            // SAFETY: `slot` gives an entry of a table of ours, which leads to another one: a page was mapped
            // below it until now.
            unsafe {
                let table = HostPhys(slot.read_volatile() & entry::ADDRESS);
                let first = table.0 as *const u64;
                let empty = (0..ENTRIES as usize)
                    .all(|index| first.wrapping_add(index).read_volatile() & entry::PRESENT == 0);
                if !empty {
                    return;
                }
                slot.write_volatile(0);
                self.spare.push(table);
            }
        }
    }

    fn map(&mut self, guest: u64, value: u64, level: u32) -> Result<(), Refusal> {
        let refuse = |why| {
            Refusal::new(
                format!("guest page {guest:#x}"),
                why,
                "use another guest memory layout",
            )
        };
        if guest >= LIMIT {
            return Err(refuse("beyond 48 bits"));
        }
        let Some(slot) = self.slot(guest, level, true)? else {
            return Err(refuse("part of a larger page"));
        };
        // SAFETY: `slot` gives an entry of a table of ours. The processor reads entries in one access.
        unsafe {
            if slot.read_volatile() & entry::PRESENT != 0 {
                return Err(refuse("mapped already"));
            }
            slot.write_volatile(value);
        }
        Ok(())
    }

    /// The entry for `guest` at `level` (0: 4 KiB, 1: 2 MiB). Makes the tables above it where `make`;
    /// `None` where they are missing or a larger page is in the way.
    fn slot(&mut self, guest: u64, level: u32, make: bool) -> Result<Option<*mut u64>, Refusal> {
        let mut table = self.root;
        let mut at = LEVELS - 1;
        loop {
            let index = (guest >> shift(at)) % ENTRIES;
            let slot = (table.0 as *mut u64).wrapping_add(index as usize);
            if at == level {
                return Ok(Some(slot));
            }
            // SAFETY: `table` is one of ours, a page of 512 entries.
            let value = unsafe { slot.read_volatile() };
            if value & entry::PRESENT == 0 {
                if !make {
                    return Ok(None);
                }
                let next = self.allocate()?;
                // SAFETY: as above.
                unsafe { slot.write_volatile(next.0 | entry::TABLE) };
                table = next;
            } else if value & entry::LARGE != 0 {
                return Ok(None);
            } else {
                table = HostPhys(value & entry::ADDRESS);
            }
            at -= 1;
        }
    }

    fn allocate(&mut self) -> Result<HostPhys, Refusal> {
        if let Some(page) = self.spare.pop() {
            // Its entries were cleared one by one.
            return Ok(page);
        }
        let page = self.frames.allocate_pages(1).ok_or_else(|| {
            Refusal::new(
                "nested page table",
                "no memory left for tables",
                "give VMs less memory",
            )
        })?;
        // SAFETY: the page was just taken for us, and RAM is mapped at its physical address.
        unsafe { crate::memory::zero(page, PAGE_SIZE) };
        self.tables.push(page);
        Ok(page)
    }
}

impl Drop for NestedTable {
    fn drop(&mut self) {
        for page in self.tables.drain(..) {
            self.frames.free_pages(page, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;

    /// Frames in the test's own memory.
    fn frames() -> &'static Frames {
        let len = 4 * LARGE_PAGE_SIZE;
        let backing = vec![0u8; (len + LARGE_PAGE_SIZE) as usize].leak();
        let start = (backing.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE);
        Box::leak(Box::new(Frames::new([(HostPhys(start), len)])))
    }

    /// What the hardware finds: the entry, and the level it was found at.
    fn walk(table: &NestedTable, guest: u64) -> Option<(u64, u32)> {
        let mut at = table.root();
        for level in (0..LEVELS).rev() {
            let index = (guest >> shift(level)) % ENTRIES;
            // SAFETY: a table made by `NestedTable`.
            let value = unsafe { (at.0 as *const u64).wrapping_add(index as usize).read() };
            if value & entry::PRESENT == 0 {
                return None;
            }
            if level == 0 || value & entry::LARGE != 0 {
                return Some((value, level));
            }
            assert_eq!(
                value & !entry::ADDRESS,
                entry::TABLE,
                "nested walks are user accesses"
            );
            at = HostPhys(value & entry::ADDRESS);
        }
        None
    }

    #[test]
    fn portals_come_and_go_alone() {
        let frames = frames();
        let before = frames.counts();
        let mut table = NestedTable::new(frames).unwrap();
        let window = GuestPhys(0x20_0000_0000);
        table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
        assert_eq!(walk(&table, window.0), Some((0xe000_0000 | entry::DEVICE, 0)));
        assert_eq!(
            walk(&table, window.0 + 0x1000),
            Some((0xe000_1000 | entry::DEVICE, 0))
        );
        assert_eq!(walk(&table, window.0 + 0x2000), None);
        assert!(
            table.map_portal(window, HostPhys(0xe000_0000), 0x1000).is_err(),
            "twice"
        );
        assert!(table.map_portal(window, HostPhys(0xe000_0010), 0x1000).is_err());
        assert!(table.map_portal(GuestPhys(LIMIT), HostPhys(0), 0x1000).is_err());
        table.unmap_portal(window, 0x1000);
        assert_eq!(walk(&table, window.0), None);
        assert!(walk(&table, window.0 + 0x1000).is_some());
        table.unmap_portal(GuestPhys(u64::MAX), 0x1000);
        drop(table);
        assert_eq!(frames.counts(), before);
    }

    #[test]
    fn a_portal_that_wanders_takes_no_more_tables() {
        let frames = frames();
        let before = frames.counts();
        let mut table = NestedTable::new(frames).unwrap();
        table.map(0, 0x20_0000 | entry::TABLE | entry::LARGE, 1).unwrap();
        let mut most = 0;
        for place in 0..2000u64 {
            let window = GuestPhys(0x20_0000_0000 + place * 0x4000_0000 / 3 / PAGE_SIZE * PAGE_SIZE);
            table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
            assert_eq!(
                walk(&table, window.0 + 0x1000),
                Some((0xe000_1000 | entry::DEVICE, 0))
            );
            most = most.max(table.bytes());
            table.unmap_portal(window, 0x2000);
            assert_eq!(walk(&table, window.0), None);
        }
        // The root, two for RAM, and three for a portal, or five where it lies across two gigabytes.
        assert!(most <= 8 * PAGE_SIZE, "{most:#x}");
        assert_eq!(walk(&table, 0).unwrap().1, 1, "RAM stays");
        drop(table);
        assert_eq!(frames.counts(), before);
    }

    #[test]
    fn a_large_page_is_not_split() {
        let mut table = NestedTable::new(frames()).unwrap();
        table.map(0, 0x20_0000 | entry::TABLE | entry::LARGE, 1).unwrap();
        assert!(
            table
                .map_portal(GuestPhys(0x1000), HostPhys(0xe000_0000), 0x1000)
                .is_err()
        );
        table.unmap_portal(GuestPhys(0x1000), 0x1000);
        assert_eq!(walk(&table, 0x1000).unwrap().1, 1);
    }
}
