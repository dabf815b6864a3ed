// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables, which map each physical address to itself: a
//! [page table](pasidon_kernel::memory::page_table) whose entries are the architecture's.
//!
//! **Principle.** RAM is mapped by large pages, writable and not executable; the image by its sections;
//! devices only when somebody asks for them, uncached. What nobody mapped faults.
//! **Invariants.** No page is both writable and executable: there is no [`Kind`] for it. Page 0 is not mapped.
//! A table is never freed. Memory in which guard pages are taken out later is mapped by small pages from the
//! beginning, so that no large page in use is ever split.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::format;
use alloc::vec::Vec;
use core::alloc::Layout;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::page_table::{Format, Geometry, Memory, PageTable};
use pasidon_kernel::memory::ranges;

pub use crate::image::{Kind, Section};

/// Highest level of leaves: 2 MiB.
pub const LEAF_LEVELS: u8 = 2;

/// The heap as memory of tables.
#[derive(Debug)]
struct Heap;

const TABLE: Layout = match Layout::from_size_align(PAGE_SIZE as usize, PAGE_SIZE as usize) {
    Ok(layout) => layout,
    Err(_) => panic!("a page has a layout"),
};

impl Memory for Heap {
    fn alloc_table(&mut self) -> Result<HostPhys, Refusal> {
        // SAFETY: the layout has a size.
        let table = unsafe { alloc_zeroed(TABLE) };
        if table.is_null() {
            return Err(Refusal::new(
                "page tables",
                "no memory is left for the hypervisor",
                "give the machine more, or its VMs less",
            ));
        }
        Ok(HostPhys(table as u64))
    }

    fn free_table(&mut self, table: HostPhys) {
        // SAFETY: the engine gives tables back that are from `alloc_table`, and that nothing leads to.
        unsafe { dealloc(table.0 as *mut u8, TABLE) };
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

/// How a range is to be mapped, above what was said of it before.
struct Layer {
    start: u64,
    end: u64,
    kind: Option<Kind>,
    /// By small pages.
    small: bool,
}

/// The tables of the hypervisor.
#[derive(Debug)]
pub struct Tree<F>(PageTable<F, Heap>);

impl<F: Format<Attributes = Kind>> Tree<F> {
    /// RAM, by small pages in `guarded`, then the image in it; but not page 0.
    ///
    /// # Errors
    /// When a range cannot be, or the heap is used up.
    pub fn new(
        geometry: Geometry<F>,
        ram: &[(HostPhys, u64)],
        guarded: (HostPhys, u64),
        image: &[Section],
    ) -> Result<Self, Refusal> {
        let data = |&(start, length): &(HostPhys, u64)| Layer {
            start: start.0,
            end: start.0 + length,
            kind: Some(Kind::Data),
            small: false,
        };
        let section = |&Section { start, end, kind }| Layer { start, end, kind: Some(kind), small: false };
        let mut layers: Vec<Layer> = ranges::merged(ram).iter().map(data).collect();
        layers.push(Layer { small: true, ..data(&guarded) });
        layers.extend(image.iter().map(section));
        layers.push(Layer { start: 0, end: PAGE_SIZE, kind: None, small: true });
        Self::of(geometry, &layers)
    }

    /// What the last layer says of each page. So none is mapped twice, and no large page is split.
    fn of(geometry: Geometry<F>, layers: &[Layer]) -> Result<Self, Refusal> {
        let mut table = PageTable::new(Heap, geometry)?;
        let mut borders: Vec<u64> = layers.iter().flat_map(|layer| [layer.start, layer.end]).collect();
        borders.sort_unstable();
        borders.dedup();
        for piece in borders.windows(2) {
            let &[start, end] = piece else { continue };
            let last = layers.iter().rfind(|layer| layer.start <= start && end <= layer.end);
            let Some(&Layer { kind: Some(kind), small, .. }) = last else { continue };
            let map = if small { PageTable::map_small } else { PageTable::map };
            map(&mut table, start, HostPhys(start), end - start, kind)?;
        }
        Ok(Self(table))
    }

    /// Physical address of the table that a walk begins with.
    pub fn root(&self) -> HostPhys {
        self.0.top().root
    }

    /// Whether an address is mapped.
    pub fn is_mapped(&self, address: u64) -> bool {
        self.0.lookup(address).is_some()
    }

    /// Maps registers where nothing is mapped yet, or registers already.
    ///
    /// # Errors
    /// When the range cannot be or overlaps memory, or the heap is used up.
    pub fn map_device(&mut self, start: u64, end: u64) -> Result<(), Refusal> {
        let map = |table: &mut PageTable<F, Heap>, from, to| {
            table.map(from, HostPhys(from), to - from, Kind::Device)
        };
        let mut missing: Option<u64> = None;
        let mut at = start;
        while at < end {
            match self.0.lookup(at).map(|mapped| mapped.attributes) {
                None => missing = missing.or(Some(at)),
                Some(Some(Kind::Device)) => {
                    if let Some(from) = missing.take() {
                        map(&mut self.0, from, at)?;
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
        missing.map_or(Ok(()), |from| map(&mut self.0, from, end))
    }

    /// Takes a page out. The caller has its translation dropped.
    ///
    /// # Errors
    /// When it is part of a large page that cannot be split.
    pub fn unmap(&mut self, page: u64) -> Result<(), Refusal> {
        // A table that it was the last one of would be lost: no other processor is told.
        self.0.unmap(page, PAGE_SIZE).map(drop)
    }

    /// Maps a page that is mapped as another kind. The caller has its translation dropped.
    ///
    /// # Errors
    /// As [`Tree::unmap`], and where the architecture wants a break in between.
    pub fn protect(&mut self, page: u64, kind: Kind) -> Result<(), Refusal> {
        self.0.protect(page, PAGE_SIZE, kind).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::Entry;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// Bit 0: valid; bit 1: table; bits 4 and 5: kind.
    #[derive(Clone, Copy)]
    struct Plain;

    const KINDS: [Kind; 4] = [Kind::Data, Kind::Constants, Kind::Code, Kind::Device];
    const END: u64 = 1 << 47;
    const GEOMETRY: Geometry<Plain> =
        Geometry { levels: 4, address_bits: 47, host_bits: 47, leaf_levels: LEAF_LEVELS, format: Plain };

    impl Format for Plain {
        type Attributes = Kind;

        const NAME: &'static str = "page tables";
        const BREAK_BEFORE_MAKE: bool = true;

        fn leaf(&self, to: HostPhys, kind: Kind, _level: u8) -> u64 {
            to.0 | (KINDS.iter().position(|known| *known == kind).unwrap() as u64) << 4 | 0b01
        }

        fn table(&self, lower: HostPhys) -> u64 {
            lower.0 | 0b11
        }

        fn decode(&self, entry: u64, _level: u8) -> Entry<Kind> {
            let address = HostPhys(entry & !(PAGE_SIZE - 1));
            match entry & 0xf {
                0 => Entry::Nothing,
                0b11 => Entry::Table(address),
                0b01 => Entry::Leaf(address, Some(KINDS[(entry >> 4 & 3) as usize])),
                _ => panic!("{entry:#x}"),
            }
        }
    }

    fn kind(tree: &Tree<Plain>, address: u64) -> Option<Kind> {
        let mapped = tree.0.lookup(address)?;
        assert_eq!(mapped.to.0, address, "a physical address is a pointer");
        mapped.attributes
    }

    fn is_large(tree: &Tree<Plain>, address: u64) -> bool {
        tree.0.lookup(address).unwrap().level == LEAF_LEVELS
    }

    #[test]
    fn ram_image_and_null_page() {
        let code = Section { start: 5 * MIB, end: 5 * MIB + 2 * PAGE_SIZE, kind: Kind::Code };
        let ram = [(HostPhys(0), 0xa0000), (HostPhys(MIB), 63 * MIB)];
        let mut tree = Tree::new(GEOMETRY, &ram, (HostPhys(32 * MIB), 2 * MIB), &[code]).unwrap();
        assert_eq!(kind(&tree, 0), None);
        assert_eq!(kind(&tree, PAGE_SIZE), Some(Kind::Data));
        assert_eq!(kind(&tree, 0xa0000), None);
        assert_eq!(kind(&tree, 5 * MIB - 1), Some(Kind::Data));
        assert_eq!(kind(&tree, 5 * MIB + PAGE_SIZE), Some(Kind::Code));
        assert_eq!(kind(&tree, 5 * MIB + 2 * PAGE_SIZE), Some(Kind::Data));
        assert_eq!(kind(&tree, 64 * MIB - 1), Some(Kind::Data));
        assert_eq!(kind(&tree, 64 * MIB), None);
        assert!(!is_large(&tree, 32 * MIB), "guards are taken out here later");
        assert!(is_large(&tree, 34 * MIB));
        assert_eq!(kind(&tree, 33 * MIB), Some(Kind::Data));
        tree.unmap(33 * MIB).unwrap();
        assert_eq!([32 * MIB, 33 * MIB].map(|at| kind(&tree, at)), [Some(Kind::Data), None]);
        assert!(tree.unmap(34 * MIB).is_err(), "no large page in use is split");
    }

    #[test]
    fn devices_never_cover_memory() {
        let mut tree = Tree::new(GEOMETRY, &[(HostPhys(0), 16 * MIB)], (HostPhys(0), 0), &[]).unwrap();
        let device = 0xfed9_0000;
        tree.map_device(device, device + 0x1000).unwrap();
        tree.map_device(device - 0x1000, device + 0x2000).unwrap();
        assert_eq!(kind(&tree, device + 0x1fff), Some(Kind::Device));
        assert_eq!(kind(&tree, device - 0x1001), None);
        let refusal = tree.map_device(15 * MIB, 17 * MIB).unwrap_err();
        assert!(refusal.to_string().contains("overlaps memory"), "{refusal}");
        assert_eq!(kind(&tree, 15 * MIB), Some(Kind::Data));
        assert!(tree.map_device(END - PAGE_SIZE, END + PAGE_SIZE).is_err());
        assert!(Tree::new(GEOMETRY, &[(HostPhys(0), END + PAGE_SIZE)], (HostPhys(0), 0), &[]).is_err());
        assert_eq!(device_pages(HostPhys(0x1234), 0x1000, END), Ok((0x1000, 0x3000)));
        assert!(device_pages(HostPhys(0x10), 1, END).is_err());
        assert!(device_pages(HostPhys(u64::MAX), 2, END).is_err());
    }

    proptest! {
        #[test]
        fn the_last_setting_holds(
            settings in prop::collection::vec((0u64..2048, 0u64..1100, 0u8..4, any::<bool>()), 1..12),
            probe in 0u64..3200,
        ) {
            let mut wanted = None;
            let layers: Vec<Layer> = settings.into_iter().map(|(start, pages, choice, small)| {
                let kind = [None, Some(Kind::Data), Some(Kind::Code), Some(Kind::Device)][usize::from(choice)];
                if (start..start + pages).contains(&probe) {
                    wanted = kind.map(|kind| (kind, small));
                }
                Layer { start: start * PAGE_SIZE, end: (start + pages) * PAGE_SIZE, kind, small }
            }).collect();
            let tree = Tree::of(GEOMETRY, &layers).unwrap();
            let at = probe * PAGE_SIZE;
            prop_assert_eq!(kind(&tree, at), wanted.map(|(kind, _)| kind));
            prop_assert!(wanted.is_none_or(|(_, small)| !small || !is_large(&tree, at)));
        }
    }
}
