// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables: a physical address is a pointer. What is mapped, and its invariants, are those of
//! [`pasidon_arch_common::paging`]; here are the bits of an entry, and the processor.
//!
//! **Invariant.** Only changes that need no TLB shootdown are made once other pCPUs run: a page that was not
//! mapped is mapped, or a guard page is taken out of memory that no other pCPU has touched.
//!
//! Source: APM volume 2, 5.3 and 7.8 (page attribute table).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use pasidon_arch_common::firmware_map;
use pasidon_arch_common::paging::{self as tree, LEAF_LEVELS, Tree};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::page_table::{self, Format, Geometry, Top};
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

/// Bits of the lower half of the addresses that four levels reach.
const ADDRESS_BITS: u8 = 47;

/// The entries of long mode.
#[derive(Clone, Copy, Debug)]
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
    type Attributes = Kind;

    const NAME: &'static str = "page tables";
    const BREAK_BEFORE_MAKE: bool = false;

    fn leaf(&self, to: HostPhys, kind: Kind, level: u8) -> u64 {
        let large = if level > 1 { Entry::PS } else { Entry::empty() };
        to.0 | (Self::bits(kind) | large).bits()
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | (Entry::P | Entry::RW).bits()
    }

    fn decode(&self, entry: u64, level: u8) -> page_table::Entry<Kind> {
        // The processor's own marks (accessed, dirty) are left out.
        let bits = Entry::from_bits_truncate(entry);
        let address = HostPhys(entry & ADDRESS);
        if !bits.contains(Entry::P) {
            return page_table::Entry::Nothing;
        }
        if level > 1 && !bits.contains(Entry::PS) {
            return page_table::Entry::Table(address);
        }
        let kind = KINDS.into_iter().find(|kind| Self::bits(*kind) == bits - Entry::PS);
        page_table::Entry::Leaf(address, kind)
    }
}

/// The form of the tables. Where firmware left five levels on, there is one more above the four.
fn geometry(five: bool) -> Geometry<LongMode> {
    Geometry {
        levels: if five { 5 } else { 4 },
        address_bits: ADDRESS_BITS,
        host_bits: ADDRESS_BITS,
        leaf_levels: LEAF_LEVELS,
        format: LongMode,
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
    let tables = Tree::new(geometry(cpu::five_levels()), ram, guarded, image)?;
    ROOT.store(tables.root().0, Ordering::Release);
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
    let (start, end) = tree::device_pages(base, len, 1 << ADDRESS_BITS)?;
    with_tables(|tables| tables.map_device(start, end))?;
    Ok(base.0 as *mut u8)
}

/// Whether the tables that this processor uses now, the firmware's, map all these bytes at their own addresses.
///
/// # Safety
/// Before [`install`], on an identity map of all memory, at privilege level 0.
pub unsafe fn firmware_maps(start: HostPhys, len: u64) -> bool {
    let root: u64;
    // SAFETY: reading CR3 at privilege level 0 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
    let levels = if cpu::five_levels() { 5 } else { 4 };
    let top = Top { root: HostPhys(root & ADDRESS), levels };
    let reached = start.checked_add(len).is_some_and(|end| end.0 <= 1 << ADDRESS_BITS);
    // SAFETY: the tables in use lie in memory, which is mapped by the caller's promise.
    let read = |table: HostPhys, index: usize| unsafe { (table.0 as *const u64).add(index).read_volatile() };
    reached && firmware_map::is_mapped(LongMode, top, &read, start, len)
}

/// Takes the page at `address` out, as a guard.
///
/// # Safety
/// Nobody may have a use for the page, and no other pCPU may have touched it.
pub(crate) unsafe fn unmap_guard(address: u64) -> Result<(), Refusal> {
    with_tables(|tables| tables.unmap(address))?;
    flush(address);
    Ok(())
}

/// Makes a page of RAM one that is executed and only read.
///
/// # Safety
/// Nobody writes to it from here on; no other pCPU has touched it.
pub(crate) unsafe fn make_code(address: u64) -> Result<(), Refusal> {
    with_tables(|tables| tables.protect(address, Kind::Code))?;
    flush(address);
    Ok(())
}

/// Whether an address is mapped, for who walks memory that may be broken.
pub fn is_mapped(address: u64) -> bool {
    // A panic may come while the tables are being changed; then nothing is known.
    TABLES.try_lock().is_some_and(|tables| tables.as_ref().is_some_and(|t| t.is_mapped(address)))
}

fn flush(address: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_kernel::memory::page_table::Entry::{Leaf, Nothing, Table};
    use pasidon_kernel::memory::page_table::testing::equals_a_plain_map;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        const ACCESSED_AND_DIRTY: u64 = 1 << 5 | 1 << 6;
        for kind in KINDS {
            let page = LongMode.leaf(HostPhys(0x5000), kind, 1) | ACCESSED_AND_DIRTY;
            assert_eq!(LongMode.decode(page, 1), Leaf(HostPhys(0x5000), Some(kind)));
            let large = LongMode.leaf(HostPhys(0x20_0000), kind, 2);
            assert_eq!(LongMode.decode(large, 2), Leaf(HostPhys(0x20_0000), Some(kind)));
        }
        assert_eq!(LongMode.decode(LongMode.table(HostPhys(0x7000)), 2), Table(HostPhys(0x7000)));
        assert_eq!(LongMode.decode(0, 2), Nothing);
        let odd = (Entry::P | Entry::RW).bits();
        assert_eq!(LongMode.decode(odd, 1), Leaf(HostPhys(0), None), "W and X");
    }

    #[test]
    fn no_kind_is_both_writable_and_executable() {
        for kind in KINDS {
            let bits = LongMode::bits(kind);
            assert!(!bits.contains(Entry::RW) || bits.contains(Entry::NX), "{kind:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_table_equals_a_plain_map(
            steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
            five in any::<bool>(),
        ) {
            equals_a_plain_map(geometry(five), &KINDS, &steps);
        }
    }
}
