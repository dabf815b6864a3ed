// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest-physical memory of a VM: its stage 2, a [page table](pasidon_kernel::memory::page_table) whose entries are the
//! architecture's.
//!
//! **Principle.** Guest RAM is mapped once, in 2 MiB pages, before the guest runs; after that only portals
//! come and go, as single pages. So a fault in this table means a device access.
//! **Invariants.** Nothing but the VM's own RAM and its portals is ever mapped. Tables are kept only for what
//! is mapped now: a guest that moves its BARs through a whole window takes no more memory than one that does
//! not. RAM is not unmapped before the VM ends.

use alloc::vec::Vec;

use pasidon_kernel::base::addr::{GuestPhys, HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::page_table::{Format, Geometry, Memory, PageTable};
use pasidon_kernel::memory::ram::GuestRam;

use crate::hardware::Stage2;

/// Highest level of leaves: 2 MiB, as guests' memory comes.
pub const LEAF_LEVELS: u8 = 2;

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// RAM: writable and executable.
    Ram,
    /// A page of a device: uncached, writable, not executable.
    Device,
}

/// The tables of one VM.
#[derive(Debug)]
pub struct Tables<F>(PageTable<F, TableFrames>);

impl<F: Format<Attributes = Content>> Tables<F> {
    /// Empty ones. `frames` gives memory that is mapped at its physical address.
    ///
    /// # Errors
    /// When there is no memory for the first table.
    pub fn new(frames: &'static Frames, geometry: Geometry<F>) -> Result<Self, Refusal> {
        let memory = TableFrames { frames, tables: Vec::new(), spare: Vec::new() };
        Ok(Self(PageTable::new(memory, geometry)?))
    }

    /// Physical address of the table that a walk begins with.
    pub fn root(&self) -> HostPhys {
        self.0.top().root
    }
}

impl<F: Format<Attributes = Content> + Send> Stage2 for Tables<F> {
    fn map_ram(&mut self, ram: &GuestRam) -> Result<(), Refusal> {
        for segment in ram.segments() {
            self.0.map(segment.guest.0, segment.host, segment.len, Content::Ram)?;
        }
        Ok(())
    }

    fn map_portal(&mut self, guest: GuestPhys, host: HostPhys, len: u64) -> Result<(), Refusal> {
        self.0.map_small(guest.0, host, len, Content::Device)
    }

    fn unmap_portal(&mut self, guest: GuestPhys, len: u64) {
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            let Some(GuestPhys(page)) = guest.checked_add(offset) else {
                break;
            };
            let mapped = self.0.lookup(page);
            if mapped.is_none_or(|mapped| mapped.attributes != Some(Content::Device)) {
                continue;
            }
            match self.0.unmap(page, PAGE_SIZE) {
                Ok(removed) => self.0.free(removed.pages),
                Err(refusal) => log::error!("{refusal}"),
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.0.memory().tables.len() as u64 * PAGE_SIZE
    }
}

/// Frames that tables lie in.
#[derive(Debug)]
struct TableFrames {
    frames: &'static Frames,
    /// All tables, the root too.
    tables: Vec<HostPhys>,
    /// Those of them that lead nowhere any more. The processor may still hold entries that lead to them until
    /// the flush that follows [`Stage2::unmap_portal`]; so they stay, to be the next that are needed.
    spare: Vec<HostPhys>,
}

impl Memory for TableFrames {
    fn alloc_table(&mut self) -> Result<HostPhys, Refusal> {
        let page = match self.spare.pop() {
            Some(page) => page,
            None => {
                let page = self.frames.allocate_pages(1).ok_or_else(|| {
                    Refusal::new("stage 2", "no memory left for tables", "give VMs less memory")
                })?;
                self.tables.push(page);
                page
            }
        };
        // SAFETY: the page was taken for us, nothing leads to it, and RAM is mapped at its physical address.
        unsafe { crate::memory::zero(page, PAGE_SIZE) };
        Ok(page)
    }

    fn free_table(&mut self, table: HostPhys) {
        self.spare.push(table);
    }

    fn read(&self, table: HostPhys, index: usize) -> u64 {
        // SAFETY: the engine reads tables of ours, which are pages of 512 entries.
        unsafe { (table.0 as *const u64).wrapping_add(index).read_volatile() }
    }

    fn write(&mut self, table: HostPhys, index: usize, entry: u64) {
        // SAFETY: as in `read`. The processor reads entries in one access.
        unsafe { (table.0 as *mut u64).wrapping_add(index).write_volatile(entry) }
    }
}

impl Drop for TableFrames {
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
    use pasidon_kernel::base::addr::LARGE_PAGE_SIZE;
    use pasidon_kernel::memory::page_table::{Entry, index};

    /// An easily read format of four levels: bit 0 table, bit 1 RAM, bit 2 device.
    #[derive(Clone, Copy, Debug)]
    struct Plain;

    const TABLE: u64 = 1;
    const RAM: u64 = 2;
    const DEVICE: u64 = 4;
    const ADDRESS: u64 = !0xfff;
    const LEVELS: u8 = 4;
    const LIMIT: u64 = 1 << 48;

    impl Format for Plain {
        type Attributes = Content;

        const NAME: &'static str = "stage 2";
        const BREAK_BEFORE_MAKE: bool = false;

        fn leaf(&self, to: HostPhys, content: Content, _level: u8) -> u64 {
            to.0 | if content == Content::Ram { RAM } else { DEVICE }
        }

        fn table(&self, lower: HostPhys) -> u64 {
            lower.0 | TABLE
        }

        fn decode(&self, entry: u64, _level: u8) -> Entry<Content> {
            let address = HostPhys(entry & ADDRESS);
            match entry & !ADDRESS {
                TABLE => Entry::Table(address),
                RAM => Entry::Leaf(address, Some(Content::Ram)),
                DEVICE => Entry::Leaf(address, Some(Content::Device)),
                _ => Entry::Nothing,
            }
        }
    }

    fn tables(frames: &'static Frames) -> Tables<Plain> {
        let leaf_levels = LEAF_LEVELS;
        Tables::new(
            frames,
            Geometry { levels: LEVELS, address_bits: 48, host_bits: 52, leaf_levels, format: Plain },
        )
        .unwrap()
    }

    /// Frames in the test's own memory.
    fn frames() -> &'static Frames {
        let len = 4 * LARGE_PAGE_SIZE;
        let backing = vec![0u8; (len + LARGE_PAGE_SIZE) as usize].leak();
        let start = (backing.as_ptr() as u64).next_multiple_of(LARGE_PAGE_SIZE);
        Box::leak(Box::new(Frames::new([(HostPhys(start), len)])))
    }

    /// What the hardware finds: the entry, and the level it was found at.
    fn walk(table: &Tables<Plain>, guest: u64) -> Option<(u64, u8)> {
        let mut at = table.root();
        for level in (1..=LEVELS).rev() {
            // SAFETY: a table made by `Tables`.
            let value = unsafe { (at.0 as *const u64).wrapping_add(index(guest, level)).read() };
            match Plain.decode(value, level) {
                Entry::Nothing => return None,
                Entry::Leaf(..) => return Some((value, level)),
                Entry::Table(next) => at = next,
            }
        }
        None
    }

    #[test]
    fn portals_come_and_go_alone() {
        let frames = frames();
        let before = frames.counts();
        let mut table = tables(frames);
        let window = GuestPhys(0x20_0000_0000);
        table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
        assert_eq!(walk(&table, window.0), Some((0xe000_0000 | DEVICE, 1)));
        assert_eq!(walk(&table, window.0 + 0x1000), Some((0xe000_1000 | DEVICE, 1)));
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
        let mut table = tables(frames);
        table.0.map(0, HostPhys(0x20_0000), LARGE_PAGE_SIZE, Content::Ram).unwrap();
        let mut most = 0;
        for place in 0..2000u64 {
            let window = GuestPhys(0x20_0000_0000 + place * 0x4000_0000 / 3 / PAGE_SIZE * PAGE_SIZE);
            table.map_portal(window, HostPhys(0xe000_0000), 0x2000).unwrap();
            assert_eq!(walk(&table, window.0 + 0x1000), Some((0xe000_1000 | DEVICE, 1)));
            most = most.max(table.bytes());
            table.unmap_portal(window, 0x2000);
            assert_eq!(walk(&table, window.0), None);
        }
        // The root, two for RAM, and three for a portal, or five where it lies across two gigabytes.
        assert!(most <= 8 * PAGE_SIZE, "{most:#x}");
        assert_eq!(walk(&table, 0).unwrap().1, 2, "RAM stays");
        drop(table);
        assert_eq!(frames.counts(), before);
    }

    #[test]
    fn a_large_page_is_not_split() {
        let mut table = tables(frames());
        table.0.map(0, HostPhys(0x20_0000), LARGE_PAGE_SIZE, Content::Ram).unwrap();
        assert!(table.map_portal(GuestPhys(0x1000), HostPhys(0xe000_0000), 0x1000).is_err());
        table.unmap_portal(GuestPhys(0x1000), 0x1000);
        assert_eq!(walk(&table, 0x1000).unwrap().1, 2);
        table.unmap_portal(GuestPhys(0), LARGE_PAGE_SIZE);
        assert_eq!(walk(&table, 0).unwrap().1, 2, "RAM is no portal");
    }
}
