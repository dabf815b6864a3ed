// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables: a physical address is a pointer.
//!
//! **Principle.** RAM is mapped by large pages, writable and not executable; the image by its sections;
//! devices only when somebody asks for them, uncached. What nobody mapped faults.
//! **Invariants.** No page is both writable and executable: there is no [`Kind`] for it. Page 0 and the page
//! below each stack are not mapped. A table is never freed. Only changes that need no TLB shootdown are made
//! once other pCPUs run: a page that was not mapped is mapped, or a guard page is taken out of memory that
//! no other pCPU has touched.
//!
//! Source: APM volume 2, 5.3 and 7.8 (page attribute table).

use alloc::alloc::alloc_zeroed;
use alloc::format;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use pasidon_kernel::addr::{HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use pasidon_kernel::refusal::Refusal;
use spin::Mutex;

use crate::cpu;

bitflags! {
    /// An entry beside its address (APM 2, 5.4.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Entry: u64 {
        /// Present.
        const P = 1 << 0;
        /// Writable.
        const RW = 1 << 1;
        /// With [`Entry::PCD`]: index 3 of the PAT, uncached.
        const PWT = 1 << 3;
        /// Cache disable.
        const PCD = 1 << 4;
        /// A page of 2 MiB instead of a table.
        const PS = 1 << 7;
        /// Not executable.
        const NX = 1 << 63;
    }
}

/// The address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: usize = 512;
/// Address bits below those that index a table of large pages.
const LARGE_SHIFT: u32 = 21;
/// Address bits that one level decodes.
const LEVEL_BITS: u32 = 9;
/// First address that the lower half of four levels does not reach.
const END: u64 = 1 << 47;

/// How memory is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read and written, not executed.
    Data,
    /// Only read.
    Constants,
    /// Read and executed.
    Code,
    /// Registers: read and written, uncached, not executed.
    Device,
}

impl Kind {
    fn bits(self) -> Entry {
        match self {
            Kind::Data => Entry::P | Entry::RW | Entry::NX,
            Kind::Constants => Entry::P | Entry::NX,
            Kind::Code => Entry::P,
            Kind::Device => Entry::P | Entry::RW | Entry::NX | Entry::PCD | Entry::PWT,
        }
    }
}

/// A part of the image, page aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// How it is mapped.
    pub kind: Kind,
}

type Table = [u64; ENTRIES];

/// A tree of four levels, and a fifth above it where the firmware left five on.
struct Tables {
    /// What CR3 points to.
    root: *mut Table,
    /// The table whose entries cover 512 GiB each.
    pml4: *mut Table,
}

// SAFETY: the tables belong to the value alone, on whichever processor it is.
unsafe impl Send for Tables {}

fn new_table() -> Result<*mut Table, Refusal> {
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

impl Tables {
    fn new(five_levels: bool) -> Result<Self, Refusal> {
        let pml4 = new_table()?;
        let mut root = pml4;
        if five_levels {
            root = new_table()?;
            // SAFETY: a new table of this function's.
            unsafe { (*root)[0] = pml4 as u64 | (Entry::P | Entry::RW).bits() };
        }
        Ok(Self { root, pml4 })
    }

    /// The table behind an entry, made if it is not there; a large page is split into what it maps.
    fn table_behind(entry: &mut u64) -> Result<*mut Table, Refusal> {
        let bits = Entry::from_bits_truncate(*entry);
        if bits.contains(Entry::P) && !bits.contains(Entry::PS) {
            return Ok((*entry & ADDRESS) as *mut Table);
        }
        let table = new_table()?;
        if bits.contains(Entry::P) {
            let small = *entry & !Entry::PS.bits();
            for (index, page) in (0u64..).zip(0..ENTRIES) {
                // SAFETY: a new table of this function's.
                unsafe { (*table)[page] = small + index * PAGE_SIZE };
            }
        }
        *entry = table as u64 | (Entry::P | Entry::RW).bits();
        Ok(table)
    }

    /// The entry for the large page at `address`.
    fn large_entry(&mut self, address: u64) -> Result<*mut u64, Refusal> {
        let mut table = self.pml4;
        for level in [2, 1] {
            let index = address >> (LARGE_SHIFT + LEVEL_BITS * level) & (ENTRIES as u64 - 1);
            // SAFETY: a table of this tree, or the root; `self` is the only one to use it.
            table = Self::table_behind(unsafe { &mut (*table)[index as usize] })?;
        }
        let index = address >> LARGE_SHIFT & (ENTRIES as u64 - 1);
        // SAFETY: as above.
        Ok(unsafe { &raw mut (*table)[index as usize] })
    }

    /// Maps the pages of `start..end`, or unmaps them, whatever was there before.
    fn set(&mut self, start: u64, end: u64, kind: Option<Kind>) -> Result<(), Refusal> {
        if start > end || end > END || !start.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::new(
                "page tables",
                format!("{start:#x}..{end:#x} cannot be mapped"),
                "report this with the machine's memory map",
            ));
        }
        let bits = kind.map_or(0, |kind| kind.bits().bits());
        let mut at = start;
        while at < end {
            // SAFETY: the entry is part of this tree, which `self` alone uses.
            let entry = unsafe { &mut *self.large_entry(at)? };
            let leaf = Entry::from_bits_truncate(*entry);
            let is_table = leaf.contains(Entry::P) && !leaf.contains(Entry::PS);
            if at.is_multiple_of(LARGE_PAGE_SIZE) && end - at >= LARGE_PAGE_SIZE && !is_table {
                *entry = match kind {
                    Some(_) => at | bits | Entry::PS.bits(),
                    None => 0,
                };
                at += LARGE_PAGE_SIZE;
                continue;
            }
            let table = Self::table_behind(entry)?;
            let stop = end.min((at / LARGE_PAGE_SIZE + 1) * LARGE_PAGE_SIZE);
            while at < stop {
                let index = at / PAGE_SIZE % ENTRIES as u64;
                // SAFETY: a table of this tree.
                unsafe {
                    (*table)[index as usize] = match kind {
                        Some(_) => at | bits,
                        None => 0,
                    };
                }
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// The entry that maps an address, if one does.
    fn leaf(&self, address: u64) -> Option<Entry> {
        let mut table = self.pml4;
        for level in [2, 1, 0] {
            let index = address >> (LARGE_SHIFT + LEVEL_BITS * level) & (ENTRIES as u64 - 1);
            // SAFETY: a table of this tree.
            let entry = unsafe { (*table)[index as usize] };
            let bits = Entry::from_bits_truncate(entry);
            if !bits.contains(Entry::P) {
                return None;
            }
            if bits.contains(Entry::PS) {
                return Some(bits - Entry::PS);
            }
            table = (entry & ADDRESS) as *mut Table;
        }
        // SAFETY: as above.
        let entry = Entry::from_bits_truncate(unsafe { (*table)[(address / PAGE_SIZE) as usize % ENTRIES] });
        entry.contains(Entry::P).then_some(entry)
    }

    /// RAM, then the image in it, then page 0.
    fn fill(&mut self, ram: &[(u64, u64)], image: &[Section]) -> Result<(), Refusal> {
        for &(start, end) in ram {
            self.set(start, end, Some(Kind::Data))?;
        }
        for section in image {
            self.set(section.start, section.end, Some(section.kind))?;
        }
        self.set(0, PAGE_SIZE, None)
    }

    /// Maps registers where nothing is mapped yet, or registers already.
    fn map_device(&mut self, start: u64, end: u64) -> Result<(), Refusal> {
        let mut missing: Option<u64> = None;
        let mut at = start;
        while at < end {
            match self.leaf(at) {
                None => missing = missing.or(Some(at)),
                Some(entry) if entry == Kind::Device.bits() => {
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

static TABLES: Mutex<Option<Tables>> = Mutex::new(None);
/// CR3 of every pCPU.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Ranges of whole pages, sorted, without those that touch or overlap.
fn merged(ranges: &[(HostPhys, u64)]) -> Vec<(u64, u64)> {
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

/// Makes the page tables and switches the processor to them. Once, on the first one, before others run.
/// `ram`: all of it, as start and length; `image`: the sections of this program.
///
/// # Errors
/// When the heap does not hold the tables, or a range is none.
///
/// # Safety
/// The processor runs on an identity map, from RAM that is in `ram`, and has passed
/// [`cpu::Features::check`]. `ram` must be RAM.
pub unsafe fn install(ram: &[(HostPhys, u64)], image: &[Section]) -> Result<(), Refusal> {
    let mut tables = Tables::new(cpu::five_levels())?;
    tables.fill(&merged(ram), image)?;
    ROOT.store(tables.root as u64, Ordering::Release);
    *TABLES.lock() = Some(tables);
    // SAFETY: the new tables map all that is in use, at the same addresses.
    unsafe { activate() };
    Ok(())
}

/// Switches this processor to the hypervisor's tables.
///
/// # Safety
/// After [`install`], on an identity map, with CR4.LA57 as [`install`] found it.
pub unsafe fn activate() {
    // SAFETY: by the caller's promise nothing moves.
    unsafe { asm!("mov cr3, {}", in(reg) root(), options(nostack, preserves_flags)) };
}

/// What CR3 holds on every pCPU.
pub fn root() -> u64 {
    ROOT.load(Ordering::Acquire)
}

fn with_tables<T>(change: impl FnOnce(&mut Tables) -> Result<T, Refusal>) -> Result<T, Refusal> {
    match TABLES.lock().as_mut() {
        Some(tables) => change(tables),
        None => Err(Refusal::new(
            "page tables",
            "they are not there yet",
            "call paging::install first",
        )),
    }
}

/// Maps a device's registers, uncached, at their physical address, and returns the pointer to `base`.
/// Mapping registers again is allowed. Any pCPU.
///
/// # Errors
/// When the range is none, or overlaps memory.
pub fn map_device(base: HostPhys, len: u64) -> Result<*mut u8, Refusal> {
    let start = base.0 & !(PAGE_SIZE - 1);
    let end = base
        .0
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
        .filter(|end| start != 0 && len != 0 && *end <= END);
    let Some(end) = end else {
        return Err(Refusal::new(
            "device registers",
            format!("{:#x} with {len:#x} bytes is no place for them", base.0),
            "correct the address that the firmware gave the device",
        ));
    };
    with_tables(|tables| tables.map_device(start, end))?;
    Ok(base.0 as *mut u8)
}

/// Takes the page at `address` out, as a guard.
///
/// # Safety
/// Nobody may have a use for the page, and no other pCPU may have touched it.
pub(crate) unsafe fn unmap_guard(address: u64) -> Result<(), Refusal> {
    with_tables(|tables| tables.set(address, address + PAGE_SIZE, None))?;
    flush(address);
    Ok(())
}

/// Makes a page of RAM one that is executed and only read.
///
/// # Safety
/// Nobody writes to it from here on; no other pCPU has touched it.
pub(crate) unsafe fn make_code(address: u64) -> Result<(), Refusal> {
    with_tables(|tables| tables.set(address, address + PAGE_SIZE, Some(Kind::Code)))?;
    flush(address);
    Ok(())
}

/// Whether an address is mapped, for who walks memory that may be broken.
pub fn is_mapped(address: u64) -> bool {
    // A panic may come while the tables are being changed; then nothing is known.
    TABLES
        .try_lock()
        .is_some_and(|tables| address < END && tables.as_ref().is_some_and(|t| t.leaf(address).is_some()))
}

fn flush(address: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// The sections of a loaded PE32+ image at `base`, from its headers: the headers themselves are constants.
///
/// # Errors
/// When the headers are none, or a section would be both writable and executable.
pub fn sections_of_image(base: u64, size: u64, headers: &[u8]) -> Result<Vec<Section>, Refusal> {
    const E_LFANEW: usize = 0x3c;
    const SIGNATURE: &[u8] = b"PE\0\0";
    const NUMBER_OF_SECTIONS: usize = 6;
    const SIZE_OF_OPTIONAL_HEADER: usize = 20;
    const FILE_HEADER: usize = 24;
    const SECTION_HEADER: usize = 40;
    const VIRTUAL_SIZE: usize = 8;
    const VIRTUAL_ADDRESS: usize = 12;
    const CHARACTERISTICS: usize = 36;
    const SCN_MEM_EXECUTE: u32 = 0x2000_0000;
    const SCN_MEM_WRITE: u32 = 0x8000_0000;
    let broken = |why: &str| Refusal::new("image", why, "build Pasidon again with cargo xtask build");
    let u16_at = |at: usize| {
        Some(u16::from_le_bytes(
            headers.get(at..at.checked_add(2)?)?.try_into().ok()?,
        ))
    };
    let u32_at = |at: usize| {
        Some(u32::from_le_bytes(
            headers.get(at..at.checked_add(4)?)?.try_into().ok()?,
        ))
    };
    let pe = u32_at(E_LFANEW)
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| headers.get(*at..).is_some_and(|rest| rest.starts_with(SIGNATURE)))
        .ok_or_else(|| broken("it has no PE header"))?;
    let header = |at| u16_at(pe + at).ok_or_else(|| broken("its PE header is cut off"));
    let first = pe + FILE_HEADER + usize::from(header(SIZE_OF_OPTIONAL_HEADER)?);
    let end = base.saturating_add(size).next_multiple_of(PAGE_SIZE);
    let mut sections = alloc::vec![Section {
        start: base,
        end,
        kind: Kind::Constants
    }];
    for number in 0..usize::from(header(NUMBER_OF_SECTIONS)?) {
        let at = first + number * SECTION_HEADER;
        let field = |offset| u32_at(at + offset).ok_or_else(|| broken("its section table is cut off"));
        let characteristics = field(CHARACTERISTICS)?;
        let kind = match (
            characteristics & SCN_MEM_WRITE != 0,
            characteristics & SCN_MEM_EXECUTE != 0,
        ) {
            (true, true) => return Err(broken("a section is both writable and executable")),
            (true, false) => Kind::Data,
            (false, true) => Kind::Code,
            (false, false) => Kind::Constants,
        };
        let start = base + u64::from(field(VIRTUAL_ADDRESS)?);
        let section = Section {
            start,
            end: (start + u64::from(field(VIRTUAL_SIZE)?)).next_multiple_of(PAGE_SIZE),
            kind,
        };
        if !start.is_multiple_of(PAGE_SIZE) || section.end > end {
            return Err(broken("a section is not on page boundaries within it"));
        }
        sections.push(section);
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn kind(tables: &Tables, address: u64) -> Option<Kind> {
        let entry = tables.leaf(address)?;
        [Kind::Data, Kind::Constants, Kind::Code, Kind::Device]
            .into_iter()
            .find(|kind| kind.bits() == entry)
    }

    #[test]
    fn ram_image_and_null_page() {
        for five_levels in [false, true] {
            let mut tables = Tables::new(five_levels).unwrap();
            let code = Section {
                start: 5 * MIB,
                end: 5 * MIB + 2 * PAGE_SIZE,
                kind: Kind::Code,
            };
            tables.fill(&[(0, 0xa0000), (MIB, 64 * MIB)], &[code]).unwrap();
            assert_eq!(kind(&tables, 0), None);
            assert_eq!(kind(&tables, PAGE_SIZE), Some(Kind::Data));
            assert_eq!(kind(&tables, 0xa0000), None);
            assert_eq!(kind(&tables, 5 * MIB - 1), Some(Kind::Data));
            assert_eq!(kind(&tables, 5 * MIB + PAGE_SIZE), Some(Kind::Code));
            assert_eq!(kind(&tables, 5 * MIB + 2 * PAGE_SIZE), Some(Kind::Data));
            assert_eq!(kind(&tables, 64 * MIB - 1), Some(Kind::Data));
            assert_eq!(kind(&tables, 64 * MIB), None);
            assert_eq!(tables.root == tables.pml4, !five_levels);
        }
    }

    #[test]
    fn devices_never_cover_memory() {
        let mut tables = Tables::new(false).unwrap();
        tables.fill(&[(0, 16 * MIB)], &[]).unwrap();
        let device = 0xfed9_0000;
        tables.map_device(device, device + 0x1000).unwrap();
        tables.map_device(device - 0x1000, device + 0x2000).unwrap();
        assert_eq!(kind(&tables, device + 0x1fff), Some(Kind::Device));
        assert_eq!(kind(&tables, device - 0x1001), None);
        let refusal = tables.map_device(15 * MIB, 17 * MIB).unwrap_err();
        assert!(refusal.to_string().contains("overlaps memory"), "{refusal}");
        assert_eq!(kind(&tables, 15 * MIB), Some(Kind::Data));
        assert!(tables.set(0, END + PAGE_SIZE, None).is_err());
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

    fn image(characteristics: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 0x80];
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x46] = characteristics.len() as u8;
        bytes[0x54] = 8;
        bytes.truncate(0x60);
        for (number, bits) in (1u32..).zip(characteristics) {
            let mut section = [0; 40];
            section[8..12].copy_from_slice(&0x123u32.to_le_bytes());
            section[12..16].copy_from_slice(&(number * 0x1000).to_le_bytes());
            section[36..].copy_from_slice(&bits.to_le_bytes());
            bytes.extend(section);
        }
        bytes
    }

    #[test]
    fn sections_get_what_they_ask_for_and_no_more() {
        let headers = image(&[0x6000_0020, 0x4000_0040, 0xc000_0040]);
        let sections = sections_of_image(0x10_0000, 0x4000, &headers).unwrap();
        let kinds: Vec<_> = sections.iter().map(|s| (s.start, s.end, s.kind)).collect();
        assert_eq!(
            kinds,
            [
                (0x10_0000, 0x10_4000, Kind::Constants),
                (0x10_1000, 0x10_2000, Kind::Code),
                (0x10_2000, 0x10_3000, Kind::Constants),
                (0x10_3000, 0x10_4000, Kind::Data),
            ]
        );
        let refusal = sections_of_image(0x10_0000, 0x4000, &image(&[0xe000_0020])).unwrap_err();
        assert!(refusal.why.contains("both writable and executable"));
        assert!(sections_of_image(0x10_0000, 0x1000, &headers).is_err());
    }

    proptest! {
        #[test]
        fn broken_headers_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = sections_of_image(0x10_0000, 0x4000, &bytes);
        }

        #[test]
        fn the_last_setting_holds(
            settings in prop::collection::vec((0u64..2048, 0u64..1100, 0u8..4), 1..12),
            probe in 0u64..3200,
        ) {
            let mut tables = Tables::new(false).unwrap();
            let mut wanted = None;
            for (start, pages, choice) in settings {
                let kind = [None, Some(Kind::Data), Some(Kind::Code), Some(Kind::Device)][usize::from(choice)];
                tables.set(start * PAGE_SIZE, (start + pages) * PAGE_SIZE, kind).unwrap();
                if (start..start + pages).contains(&probe) {
                    wanted = kind;
                }
            }
            prop_assert_eq!(kind(&tables, probe * PAGE_SIZE), wanted);
        }
    }
}
