// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest-physical memory of a VM: its stage 2. What an entry looks like is said by a [`Format`].
//!
//! **Principle.** Guest RAM is mapped once, in 2 MiB pages, before the guest runs; after that only portals
//! come and go, as single pages. So a fault in this table means a device access.
//! **Invariants.** Nothing but the VM's own RAM and its portals is ever mapped. Tables are kept only for what
//! is mapped now: a guest that moves its BARs through a whole window takes no more memory than one that does
//! not. An entry goes from nothing to something and back, never from one thing to another.

use alloc::format;
use alloc::vec::Vec;
use core::marker::PhantomData;

use pasidon_kernel::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::frames::Frames;
use pasidon_kernel::ram::GuestRam;
use pasidon_kernel::refusal::Refusal;

use crate::hardware::Stage2;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Level of entries for 2 MiB.
const LARGE: u32 = 1;

/// An entry, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped.
    Nothing,
    /// A table of the next level.
    Table(HostPhys),
    /// Memory.
    Page,
}

/// What entries look like. Levels count from 0, whose entries map 4 KiB.
pub trait Format: Send + 'static {
    /// Levels of a walk; each decodes nine bits.
    const LEVELS: u32;

    /// First guest-physical address that cannot be mapped.
    const LIMIT: u64 = 1 << shift(Self::LEVELS);

    /// The entry for the table at this address.
    fn table(at: HostPhys) -> u64;

    /// The entry for 2 MiB of RAM, writable and executable.
    fn ram(host: HostPhys) -> u64;

    /// The entry for a page of a device: uncached, writable, not executable.
    fn device(host: HostPhys) -> u64;

    /// What an entry at a level says.
    fn decode(entry: u64, level: u32) -> Entry;

    /// Makes entries that were written visible to the processors' walks.
    fn publish() {}
}

/// The tables of one VM.
#[derive(Debug)]
pub struct Tables<F> {
    frames: &'static Frames,
    root: HostPhys,
    /// All tables, the root too.
    tables: Vec<HostPhys>,
    /// Those of them that lead nowhere any more. The processor may still hold entries that lead to them until
    /// the flush that follows [`Stage2::unmap_portal`]; so they stay, to be the next that are needed.
    spare: Vec<HostPhys>,
    format: PhantomData<F>,
}

const fn shift(level: u32) -> u32 {
    12 + 9 * level
}

impl<F: Format> Tables<F> {
    /// Empty ones. `frames` gives memory that is mapped at its physical address.
    pub fn new(frames: &'static Frames) -> Result<Self, Refusal> {
        let mut tables =
            Self { frames, root: HostPhys(0), tables: Vec::new(), spare: Vec::new(), format: PhantomData };
        tables.root = tables.allocate()?;
        Ok(tables)
    }

    /// Physical address of the root.
    pub fn root(&self) -> HostPhys {
        self.root
    }

    /// Takes the tables that lead to `guest` out, from the lowest up, as far as nothing is mapped by them.
    fn take_out_empty(&mut self, guest: u64) {
        for level in 1..F::LEVELS {
            let Some(slot) = self.slot(guest, level, false).ok().flatten() else {
                return;
            };
            // SAFETY: `slot` gives an entry of a table of ours, which leads to another one: a page was mapped
            // below it until now.
            unsafe {
                let Entry::Table(table) = F::decode(slot.read_volatile(), level) else {
                    return;
                };
                let first = table.0 as *const u64;
                let empty = (0..ENTRIES as usize).all(|index| {
                    F::decode(first.wrapping_add(index).read_volatile(), level - 1) == Entry::Nothing
                });
                if !empty {
                    return;
                }
                slot.write_volatile(0);
                self.spare.push(table);
            }
        }
    }

    fn map(&mut self, guest: u64, value: u64, level: u32) -> Result<(), Refusal> {
        let refuse =
            |why| Refusal::new(format!("guest page {guest:#x}"), why, "use another guest memory layout");
        if guest >= F::LIMIT {
            return Err(refuse("beyond what stage 2 reaches"));
        }
        let Some(slot) = self.slot(guest, level, true)? else {
            return Err(refuse("part of a larger page"));
        };
        // SAFETY: `slot` gives an entry of a table of ours. The processor reads entries in one access.
        unsafe {
            if F::decode(slot.read_volatile(), level) != Entry::Nothing {
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
        let mut at = F::LEVELS - 1;
        loop {
            let index = (guest >> shift(at)) % ENTRIES;
            let slot = (table.0 as *mut u64).wrapping_add(index as usize);
            if at == level {
                return Ok(Some(slot));
            }
            // SAFETY: `table` is one of ours, a page of 512 entries.
            let value = unsafe { slot.read_volatile() };
            table = match F::decode(value, at) {
                Entry::Table(next) => next,
                Entry::Page => return Ok(None),
                Entry::Nothing if !make => return Ok(None),
                Entry::Nothing => {
                    let next = self.allocate()?;
                    // The table's zeros are there before it is.
                    F::publish();
                    // SAFETY: as above.
                    unsafe { slot.write_volatile(F::table(next)) };
                    next
                }
            };
            at -= 1;
        }
    }

    fn allocate(&mut self) -> Result<HostPhys, Refusal> {
        if let Some(page) = self.spare.pop() {
            // Its entries were cleared one by one.
            return Ok(page);
        }
        let page = self
            .frames
            .allocate_pages(1)
            .ok_or_else(|| Refusal::new("stage 2", "no memory left for tables", "give VMs less memory"))?;
        // SAFETY: the page was just taken for us, and RAM is mapped at its physical address.
        unsafe { crate::memory::zero(page, PAGE_SIZE) };
        self.tables.push(page);
        Ok(page)
    }
}

impl<F: Format> Stage2 for Tables<F> {
    fn map_ram(&mut self, ram: &GuestRam) -> Result<(), Refusal> {
        for segment in ram.segments() {
            for done in (0..segment.len).step_by(LARGE_PAGE_SIZE as usize) {
                let host = HostPhys(segment.host.0 + done);
                self.map(segment.guest.0 + done, F::ram(host), LARGE)?;
            }
        }
        F::publish();
        Ok(())
    }

    fn map_portal(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), Refusal> {
        if !guest.is_aligned(PAGE_SIZE) || !host.is_aligned(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::new(format!("portal at {guest}"), "not whole pages", "correct its driver"));
        }
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            self.map(guest.0 + offset, F::device(HostPhys(host.0 + offset)), 0)?;
        }
        F::publish();
        Ok(())
    }

    fn unmap_portal(&mut self, guest: GuestPhys, len: u64) {
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            let Some(address) = guest.0.checked_add(offset).filter(|address| *address < F::LIMIT) else {
                break;
            };
            if let Some(slot) = self.slot(address, 0, false).ok().flatten() {
                // SAFETY: `slot` gives an entry of a table of ours.
                unsafe { slot.write_volatile(0) };
                self.take_out_empty(address);
            }
        }
        F::publish();
    }

    fn bytes(&self) -> u64 {
        self.tables.len() as u64 * PAGE_SIZE
    }
}

impl<F> Drop for Tables<F> {
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

    /// An easily read format of four levels: bit 0 table, bit 1 RAM, bit 2 device.
    #[derive(Debug)]
    struct Plain;

    const TABLE: u64 = 1;
    const RAM: u64 = 2;
    const DEVICE: u64 = 4;
    const ADDRESS: u64 = !0xfff;
    const LEVELS: u32 = 4;
    const LIMIT: u64 = 1 << 48;

    impl Format for Plain {
        const LEVELS: u32 = LEVELS;

        fn table(at: HostPhys) -> u64 {
            at.0 | TABLE
        }

        fn ram(host: HostPhys) -> u64 {
            host.0 | RAM
        }

        fn device(host: HostPhys) -> u64 {
            host.0 | DEVICE
        }

        fn decode(entry: u64, _level: u32) -> Entry {
            match entry & !ADDRESS {
                0 => Entry::Nothing,
                TABLE => Entry::Table(HostPhys(entry & ADDRESS)),
                _ => Entry::Page,
            }
        }
    }

    /// Frames in the test's own memory.
    fn frames() -> &'static Frames {
        let len = 4 * LARGE_PAGE_SIZE;
        let backing = vec![0u8; (len + LARGE_PAGE_SIZE) as usize].leak();
        let start = (backing.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE);
        Box::leak(Box::new(Frames::new([(HostPhys(start), len)])))
    }

    /// What the hardware finds: the entry, and the level it was found at.
    fn walk(table: &Tables<Plain>, guest: u64) -> Option<(u64, u32)> {
        let mut at = table.root();
        for level in (0..LEVELS).rev() {
            let index = (guest >> shift(level)) % ENTRIES;
            // SAFETY: a table made by `Tables`.
            let value = unsafe { (at.0 as *const u64).wrapping_add(index as usize).read() };
            match Plain::decode(value, level) {
                Entry::Nothing => return None,
                Entry::Page => return Some((value, level)),
                Entry::Table(next) => at = next,
            }
        }
        None
    }

    #[test]
    fn portals_come_and_go_alone() {
        let frames = frames();
        let before = frames.counts();
        let mut table = Tables::<Plain>::new(frames).unwrap();
        let window = GuestPhys(0x20_0000_0000);
        table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
        assert_eq!(walk(&table, window.0), Some((0xe000_0000 | DEVICE, 0)));
        assert_eq!(walk(&table, window.0 + 0x1000), Some((0xe000_1000 | DEVICE, 0)));
        assert_eq!(walk(&table, window.0 + 0x2000), None);
        assert!(table.map_portal(window, HostPhys(0xe000_0000), 0x1000).is_err(), "twice");
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
        let mut table = Tables::<Plain>::new(frames).unwrap();
        table.map(0, Plain::ram(HostPhys(0x20_0000)), LARGE).unwrap();
        let mut most = 0;
        for place in 0..2000u64 {
            let window = GuestPhys(0x20_0000_0000 + place * 0x4000_0000 / 3 / PAGE_SIZE * PAGE_SIZE);
            table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
            assert_eq!(walk(&table, window.0 + 0x1000), Some((0xe000_1000 | DEVICE, 0)));
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
        let mut table = Tables::<Plain>::new(frames()).unwrap();
        table.map(0, Plain::ram(HostPhys(0x20_0000)), LARGE).unwrap();
        assert!(table.map_portal(GuestPhys(0x1000), HostPhys(0xe000_0000), 0x1000).is_err());
        table.unmap_portal(GuestPhys(0x1000), 0x1000);
        assert_eq!(walk(&table, 0x1000).unwrap().1, 1);
    }
}
