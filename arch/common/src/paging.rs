// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tree of page tables that maps each physical address to itself. What an entry looks like is said by a
//! [`Format`]; that levels decode nine bits each, over pages of 4 KiB and large pages of 2 MiB, is common.
//!
//! **Principle.** RAM is mapped by large pages, writable and not executable; the image by its sections;
//! devices only when somebody asks for them, uncached. What nobody mapped faults.
//! **Invariants.** No page is both writable and executable: there is no [`Kind`] for it. Page 0 is not mapped.
//! A table is never freed. Memory in which guard pages are taken out later is mapped by small pages from the
//! beginning, so that no large page in use is ever split.

use alloc::alloc::alloc_zeroed;
use alloc::format;
use alloc::vec::Vec;
use core::alloc::Layout;

use pasidon_kernel::addr::{HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::refusal::Refusal;

pub use crate::image::{Kind, Section};

const ENTRIES: usize = 512;
/// Address bits below those that index a table of large pages.
const LARGE_SHIFT: u32 = 21;
/// Address bits that one level decodes.
const LEVEL_BITS: u32 = 9;

/// What maps the memory behind an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// A large page, 2 MiB.
    Large,
    /// A page, 4 KiB.
    Small,
}

/// An entry, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// Nothing is mapped.
    Nothing,
    /// A table of the next level at this address.
    Table(u64),
    /// Memory at this address; `None` for a way of mapping it that no [`Kind`] stands for.
    Page(u64, Option<Kind>),
}

/// What entries look like.
pub trait Format {
    /// First address that four levels do not reach.
    const END: u64;

    /// The entry for the table at `address`.
    fn table(&self, address: u64) -> u64;

    /// The entry for a page at `address`.
    fn page(&self, address: u64, kind: Kind, size: Size) -> u64;

    /// What an entry says. `last`: it is in a table of the last level, whose pages are small.
    fn decode(&self, entry: u64, last: bool) -> Decoded;
}

/// A page table.
pub type Table = [u64; ENTRIES];

/// A tree of four levels.
pub struct Tree<F> {
    format: F,
    /// The table whose entries cover 512 GiB each.
    top: *mut Table,
}

// SAFETY: the tables belong to the value alone, on whichever processor it is.
unsafe impl<F: Send> Send for Tree<F> {}

/// A new table without entries, for ever in memory.
///
/// # Errors
/// When the heap is used up.
pub fn new_table() -> Result<*mut Table, Refusal> {
    const LAYOUT: Layout = match Layout::from_size_align(PAGE_SIZE as usize, PAGE_SIZE as usize) {
        Ok(layout) => layout,
        Err(_) => panic!("a page has a layout"),
    };
    // SAFETY: the layout has a size.
    let table = unsafe { alloc_zeroed(LAYOUT) };
    if table.is_null() {
        return Err(Refusal::new(
            "page tables",
            "the hypervisor's heap is used up",
            "give the hypervisor a larger heap (HEAP_BYTES in boot/src/heap.rs)",
        ));
    }
    Ok(table.cast())
}

impl<F: Format> Tree<F> {
    /// One that maps nothing.
    ///
    /// # Errors
    /// When the heap is used up.
    pub fn new(format: F) -> Result<Self, Refusal> {
        Ok(Self { format, top: new_table()? })
    }

    /// Its top table.
    pub fn top(&self) -> *mut Table {
        self.top
    }

    /// The table behind an entry that is not of the last level, made if it is not there; a large page is
    /// split into what it maps.
    fn table_behind(&self, entry: &mut u64) -> Result<*mut Table, Refusal> {
        let large = match self.format.decode(*entry, false) {
            Decoded::Table(address) => return Ok(address as *mut Table),
            Decoded::Nothing => None,
            Decoded::Page(address, Some(kind)) => Some((address, kind)),
            Decoded::Page(address, None) => {
                return Err(Refusal::new(
                    "page tables",
                    format!("{address:#x} is mapped in a way that nobody asked for"),
                    "report this with the machine's memory map",
                ));
            }
        };
        let table = new_table()?;
        if let Some((address, kind)) = large {
            for (index, page) in (0u64..).zip(0..ENTRIES) {
                let small = self.format.page(address + index * PAGE_SIZE, kind, Size::Small);
                // SAFETY: a new table of this function's.
                unsafe { (*table)[page] = small };
            }
        }
        *entry = self.format.table(table as u64);
        Ok(table)
    }

    /// The entry for the large page at `address`.
    fn large_entry(&mut self, address: u64) -> Result<*mut u64, Refusal> {
        let mut table = self.top;
        for level in [2, 1] {
            let index = address >> (LARGE_SHIFT + LEVEL_BITS * level) & (ENTRIES as u64 - 1);
            // SAFETY: a table of this tree, or the root; `self` is the only one to use it.
            table = self.table_behind(unsafe { &mut (*table)[index as usize] })?;
        }
        let index = address >> LARGE_SHIFT & (ENTRIES as u64 - 1);
        // SAFETY: as above.
        Ok(unsafe { &raw mut (*table)[index as usize] })
    }

    /// Maps the pages of `start..end`, or unmaps them, whatever was there before.
    ///
    /// # Errors
    /// When the range cannot be, or the heap is used up.
    pub fn set(&mut self, start: u64, end: u64, kind: Option<Kind>) -> Result<(), Refusal> {
        self.set_by(start, end, kind, true)
    }

    /// As [`Tree::set`]; by large pages where that goes, if `large`.
    fn set_by(&mut self, start: u64, end: u64, kind: Option<Kind>, large: bool) -> Result<(), Refusal> {
        if start > end || end > F::END || !start.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::new(
                "page tables",
                format!("{start:#x}..{end:#x} cannot be mapped"),
                "report this with the machine's memory map",
            ));
        }
        let mut at = start;
        while at < end {
            // SAFETY: the entry is part of this tree, which `self` alone uses.
            let entry = unsafe { &mut *self.large_entry(at)? };
            let is_table = matches!(self.format.decode(*entry, false), Decoded::Table(_));
            if large && at.is_multiple_of(LARGE_PAGE_SIZE) && end - at >= LARGE_PAGE_SIZE && !is_table {
                *entry = kind.map_or(0, |kind| self.format.page(at, kind, Size::Large));
                at += LARGE_PAGE_SIZE;
                continue;
            }
            let table = self.table_behind(entry)?;
            let stop = end.min((at / LARGE_PAGE_SIZE + 1) * LARGE_PAGE_SIZE);
            while at < stop {
                let index = at / PAGE_SIZE % ENTRIES as u64;
                let page = kind.map_or(0, |kind| self.format.page(at, kind, Size::Small));
                // SAFETY: a table of this tree.
                unsafe { (*table)[index as usize] = page };
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// How an address is mapped, if it is; `Some(None)` for a way that no [`Kind`] stands for.
    pub fn leaf(&self, address: u64) -> Option<Option<Kind>> {
        let mut table = self.top;
        for level in [2, 1, 0] {
            let index = address >> (LARGE_SHIFT + LEVEL_BITS * level) & (ENTRIES as u64 - 1);
            // SAFETY: a table of this tree.
            match self.format.decode(unsafe { (*table)[index as usize] }, false) {
                Decoded::Nothing => return None,
                Decoded::Page(_, kind) => return Some(kind),
                Decoded::Table(next) => table = next as *mut Table,
            }
        }
        // SAFETY: as above.
        let entry = unsafe { (*table)[(address / PAGE_SIZE) as usize % ENTRIES] };
        match self.format.decode(entry, true) {
            Decoded::Page(_, kind) => Some(kind),
            Decoded::Nothing | Decoded::Table(_) => None,
        }
    }

    /// RAM, by small pages in `guarded` (start and end), then the image in it, then page 0.
    ///
    /// # Errors
    /// As [`Tree::set`].
    pub fn fill(
        &mut self,
        ram: &[(u64, u64)],
        guarded: (u64, u64),
        image: &[Section],
    ) -> Result<(), Refusal> {
        for &(start, end) in ram {
            self.set(start, end, Some(Kind::Data))?;
        }
        let (start, end) = guarded;
        self.set_by(start, end, Some(Kind::Data), false)?;
        for section in image {
            self.set(section.start, section.end, Some(section.kind))?;
        }
        self.set(0, PAGE_SIZE, None)
    }

    /// Maps registers where nothing is mapped yet, or registers already.
    ///
    /// # Errors
    /// When the range overlaps memory, and as [`Tree::set`].
    pub fn map_device(&mut self, start: u64, end: u64) -> Result<(), Refusal> {
        let mut missing: Option<u64> = None;
        let mut at = start;
        while at < end {
            match self.leaf(at) {
                None => missing = missing.or(Some(at)),
                Some(Some(Kind::Device)) => {
                    if let Some(from) = missing.take() {
                        self.set(from, at, Some(Kind::Device))?;
                    }
                }
                Some(_) => {
                    return Err(Refusal::new(
                        "device registers",
                        format!("{start:#x}..{end:#x} overlaps memory at {at:#x}"),
                        "correct the address that the firmware gave the device",
                    ));
                }
            }
            at += PAGE_SIZE;
        }
        missing.map_or(Ok(()), |from| self.set(from, end, Some(Kind::Device)))
    }
}

/// The pages that hold the registers of a device: start and end.
///
/// # Errors
/// When they cannot be there; `end` is the first address that tables do not reach.
pub fn device_pages(base: HostPhys, len: u64, end_of_tables: u64) -> Result<(u64, u64), Refusal> {
    let start = base.0 & !(PAGE_SIZE - 1);
    let end = base
        .0
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
        .filter(|end| start != 0 && len != 0 && *end <= end_of_tables);
    end.map(|end| (start, end)).ok_or_else(|| {
        Refusal::new(
            "device registers",
            format!("{:#x} with {len:#x} bytes is no place for them", base.0),
            "correct the address that the firmware gave the device",
        )
    })
}

/// What is said when the tables are asked for before they are there.
pub fn not_there_yet() -> Refusal {
    Refusal::new("page tables", "they are not there yet", "call paging::install first")
}

/// Ranges of whole pages, sorted, without those that touch or overlap.
pub fn merged(ranges: &[(HostPhys, u64)]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<(u64, u64)> = ranges
        .iter()
        .filter(|(_, length)| *length > 0)
        .map(|(start, length)| (start.0, start.0.saturating_add(*length)))
        .collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in sorted {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// Bit 0: valid; bits 1 to 3: table, large or small; bits 4 and 5: kind.
    struct Plain;

    const KINDS: [Kind; 4] = [Kind::Data, Kind::Constants, Kind::Code, Kind::Device];

    impl Format for Plain {
        const END: u64 = 1 << 47;

        fn table(&self, address: u64) -> u64 {
            address | 0b11
        }

        fn page(&self, address: u64, kind: Kind, size: Size) -> u64 {
            let kind = KINDS.iter().position(|known| *known == kind).unwrap() as u64;
            address | kind << 4 | if size == Size::Large { 0b101 } else { 0b1001 }
        }

        fn decode(&self, entry: u64, last: bool) -> Decoded {
            let address = entry & !(PAGE_SIZE - 1);
            match entry & 0xf {
                0 => Decoded::Nothing,
                0b11 if !last => Decoded::Table(address),
                0b101 if !last => Decoded::Page(address, Some(KINDS[(entry >> 4 & 3) as usize])),
                0b1001 if last => Decoded::Page(address, Some(KINDS[(entry >> 4 & 3) as usize])),
                _ => panic!("{entry:#x}"),
            }
        }
    }

    fn kind(tree: &Tree<Plain>, address: u64) -> Option<Kind> {
        tree.leaf(address).map(Option::unwrap)
    }

    #[test]
    fn ram_image_and_null_page() {
        let mut tree = Tree::new(Plain).unwrap();
        let code = Section { start: 5 * MIB, end: 5 * MIB + 2 * PAGE_SIZE, kind: Kind::Code };
        tree.fill(&[(0, 0xa0000), (MIB, 64 * MIB)], (32 * MIB, 34 * MIB), &[code]).unwrap();
        assert_eq!(kind(&tree, 0), None);
        assert_eq!(kind(&tree, PAGE_SIZE), Some(Kind::Data));
        assert_eq!(kind(&tree, 0xa0000), None);
        assert_eq!(kind(&tree, 5 * MIB - 1), Some(Kind::Data));
        assert_eq!(kind(&tree, 5 * MIB + PAGE_SIZE), Some(Kind::Code));
        assert_eq!(kind(&tree, 5 * MIB + 2 * PAGE_SIZE), Some(Kind::Data));
        assert_eq!(kind(&tree, 64 * MIB - 1), Some(Kind::Data));
        assert_eq!(kind(&tree, 64 * MIB), None);
        let is_table = |tree: &mut Tree<Plain>, at| {
            let entry = tree.large_entry(at).unwrap();
            // SAFETY: an entry of this tree.
            matches!(Plain.decode(unsafe { *entry }, false), Decoded::Table(_))
        };
        assert!(is_table(&mut tree, 32 * MIB), "guards are taken out here later");
        assert!(!is_table(&mut tree, 34 * MIB));
        assert_eq!(kind(&tree, 33 * MIB), Some(Kind::Data));
    }

    #[test]
    fn devices_never_cover_memory() {
        let mut tree = Tree::new(Plain).unwrap();
        tree.fill(&[(0, 16 * MIB)], (0, 0), &[]).unwrap();
        let device = 0xfed9_0000;
        tree.map_device(device, device + 0x1000).unwrap();
        tree.map_device(device - 0x1000, device + 0x2000).unwrap();
        assert_eq!(kind(&tree, device + 0x1fff), Some(Kind::Device));
        assert_eq!(kind(&tree, device - 0x1001), None);
        let refusal = tree.map_device(15 * MIB, 17 * MIB).unwrap_err();
        assert!(refusal.to_string().contains("overlaps memory"), "{refusal}");
        assert_eq!(kind(&tree, 15 * MIB), Some(Kind::Data));
        assert!(tree.set(0, Plain::END + PAGE_SIZE, None).is_err());
        assert_eq!(device_pages(HostPhys(0x1234), 0x1000, Plain::END), Ok((0x1000, 0x3000)));
        assert!(device_pages(HostPhys(0x10), 1, Plain::END).is_err());
        assert!(device_pages(HostPhys(u64::MAX), 2, Plain::END).is_err());
    }

    #[test]
    fn ranges_are_merged() {
        let ranges = [
            (HostPhys(0x3000), 0x1000),
            (HostPhys(0), 0x1000),
            (HostPhys(0x1000), 0x2000),
            (HostPhys(0x8000), 0),
            (HostPhys(0x9000), 0x1000),
        ];
        assert_eq!(merged(&ranges), [(0, 0x4000), (0x9000, 0xa000)]);
    }

    proptest! {
        #[test]
        fn the_last_setting_holds(
            settings in prop::collection::vec((0u64..2048, 0u64..1100, 0u8..4, any::<bool>()), 1..12),
            probe in 0u64..3200,
        ) {
            let mut tree = Tree::new(Plain).unwrap();
            let mut wanted = None;
            for (start, pages, choice, large) in settings {
                let kind = [None, Some(Kind::Data), Some(Kind::Code), Some(Kind::Device)][usize::from(choice)];
                tree.set_by(start * PAGE_SIZE, (start + pages) * PAGE_SIZE, kind, large).unwrap();
                if (start..start + pages).contains(&probe) {
                    wanted = kind;
                }
            }
            prop_assert_eq!(kind(&tree, probe * PAGE_SIZE), wanted);
        }
    }
}
