// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables: a physical address is a pointer. The tree and its invariants are those of
//! [`pasidon_arch_common::paging`]; here are the bits of an entry, and the processor.
//!
//! **Invariant.** Only changes that need no TLB shootdown are made once other pCPUs run: a page that was not
//! mapped is mapped, or a guard page is taken out of memory that no other pCPU has touched.
//!
//! Source: APM volume 2, 5.3 and 7.8 (page attribute table).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use pasidon_arch_common::paging::{self as tree, Decoded, Format, Size, Tree};
use pasidon_kernel::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::refusal::Refusal;
use spin::Mutex;

pub use pasidon_arch_common::image::{Kind, Section, sections_of_image};

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

/// The entries of long mode.
struct LongMode;

const KINDS: [Kind; 4] = [Kind::Data, Kind::Constants, Kind::Code, Kind::Device];

impl LongMode {
    fn bits(kind: Kind) -> Entry {
        match kind {
            Kind::Data => Entry::P | Entry::RW | Entry::NX,
            Kind::Constants => Entry::P | Entry::NX,
            Kind::Code => Entry::P,
            Kind::Device => Entry::P | Entry::RW | Entry::NX | Entry::PCD | Entry::PWT,
        }
    }
}

impl Format for LongMode {
    /// What the lower half of four levels reaches.
    const END: u64 = 1 << 47;

    fn table(&self, address: u64) -> u64 {
        address | (Entry::P | Entry::RW).bits()
    }

    fn page(&self, address: u64, kind: Kind, size: Size) -> u64 {
        let large = match size {
            Size::Large => Entry::PS,
            Size::Small => Entry::empty(),
        };
        address | (Self::bits(kind) | large).bits()
    }

    fn decode(&self, entry: u64, last: bool) -> Decoded {
        // The processor's own marks (accessed, dirty) are left out.
        let bits = Entry::from_bits_truncate(entry);
        let address = entry & ADDRESS;
        if !bits.contains(Entry::P) {
            return Decoded::Nothing;
        }
        if !last && !bits.contains(Entry::PS) {
            return Decoded::Table(address);
        }
        let kind = KINDS.into_iter().find(|kind| Self::bits(*kind) == bits - Entry::PS);
        Decoded::Page(address, kind)
    }
}

static TABLES: Mutex<Option<Tree<LongMode>>> = Mutex::new(None);
/// CR3 of every pCPU.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Makes the page tables and switches the processor to them. Once, on the first one, before others run.
/// `ram`: all of it, as start and length; `guarded`: the part of it in which guard pages are taken out later;
/// `image`: the sections of this program.
///
/// # Errors
/// When the heap does not hold the tables, or a range is none.
///
/// # Safety
/// The processor runs on an identity map, from RAM that is in `ram`, and has passed
/// [`cpu::Features::check`]. `ram` must be RAM.
pub unsafe fn install(
    ram: &[(HostPhys, u64)],
    guarded: (HostPhys, u64),
    image: &[Section],
) -> Result<(), Refusal> {
    let mut tables = Tree::new(LongMode)?;
    let (start, length) = guarded;
    tables.fill(&tree::merged(ram), (start.0, start.0 + length), image)?;
    let mut root = tables.top();
    if cpu::five_levels() {
        // The firmware left five levels on: one more above.
        root = tree::new_table()?;
        // SAFETY: a new table of this function's.
        unsafe { (*root)[0] = LongMode.table(tables.top() as u64) };
    }
    ROOT.store(root as u64, Ordering::Release);
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

fn with_tables<T>(change: impl FnOnce(&mut Tree<LongMode>) -> Result<T, Refusal>) -> Result<T, Refusal> {
    TABLES.lock().as_mut().map_or_else(|| Err(tree::not_there_yet()), change)
}

/// Maps a device's registers, uncached, at their physical address, and returns the pointer to `base`.
/// Mapping registers again is allowed. Any pCPU.
///
/// # Errors
/// When the range is none, or overlaps memory.
pub fn map_device(base: HostPhys, len: u64) -> Result<*mut u8, Refusal> {
    let (start, end) = tree::device_pages(base, len, LongMode::END)?;
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
    TABLES.try_lock().is_some_and(|tables| {
        address < LongMode::END && tables.as_ref().is_some_and(|t| t.leaf(address).is_some())
    })
}

fn flush(address: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        const ACCESSED_AND_DIRTY: u64 = 1 << 5 | 1 << 6;
        for kind in KINDS {
            let page = LongMode.page(0x5000, kind, Size::Small) | ACCESSED_AND_DIRTY;
            assert_eq!(LongMode.decode(page, true), Decoded::Page(0x5000, Some(kind)));
            let large = LongMode.page(0x20_0000, kind, Size::Large);
            assert_eq!(LongMode.decode(large, false), Decoded::Page(0x20_0000, Some(kind)));
        }
        assert_eq!(LongMode.decode(LongMode.table(0x7000), false), Decoded::Table(0x7000));
        assert_eq!(LongMode.decode(0, false), Decoded::Nothing);
        let odd = (Entry::P | Entry::RW).bits();
        assert_eq!(LongMode.decode(odd, true), Decoded::Page(0, None), "W and X");
    }

    #[test]
    fn no_kind_is_both_writable_and_executable() {
        for kind in KINDS {
            let bits = LongMode::bits(kind);
            assert!(!bits.contains(Entry::RW) || bits.contains(Entry::NX), "{kind:?}");
        }
    }
}
