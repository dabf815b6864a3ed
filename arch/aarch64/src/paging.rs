// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables: a physical address is a pointer. What is mapped, and its invariants, are those
//! of [`pasidon_arch_common::paging`], the bits of an entry those of [`crate::stage1`]; here is the processor.
//!
//! **Invariant.** Only changes that need no break-before-make are made once other pCPUs run: a page that was not
//! mapped is mapped, or a guard page is taken out of memory that is mapped by small pages.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.16 (TLB maintenance, break-before-make).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use pasidon_arch_common::firmware_map;
use pasidon_arch_common::paging::{self as tree, Tree};
use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::page_table::Top;
use spin::Mutex;

pub use pasidon_arch_common::image::{Kind, Section, sections_of_image};

use crate::cpu::{self, Control, Features};
use crate::serial;
use crate::stage1::{ADDRESS_BITS, Regime};

static TABLES: Mutex<Option<Tree<Regime>>> = Mutex::new(None);
/// TTBR0_EL2 of every pCPU.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Makes the page tables and switches the processor to them. Once, on the first one, before others run. `ram`:
/// all of it, as start and length; `guarded`: the part of it in which guard pages are taken out later; `image`:
/// the sections of this program. The serial line's registers are mapped along.
///
/// # Errors
/// When the heap does not hold the tables, or a range is none.
///
/// # Safety
/// Interrupts are masked. The processor runs on an identity map, from RAM that is in `ram`, and has passed
/// [`Features::check`]. `ram` must be RAM.
pub unsafe fn install(
    ram: &[(HostPhys, u64)],
    guarded: (HostPhys, u64),
    image: &[Section],
) -> Result<(), Refusal> {
    let features = Features::read();
    let mut tables = Tree::new(Regime::of(&features).geometry(), ram, guarded, image)?;
    if let Some((base, len)) = serial::registers() {
        let (start, end) = tree::device_pages(base, len, 1 << ADDRESS_BITS)?;
        tables.map_device(start, end)?;
    }
    ROOT.store(tables.root().0, Ordering::Release);
    *TABLES.lock() = Some(tables);
    // SAFETY: the new tables map all that is in use, at the same addresses.
    unsafe { cpu::switch(&Control::new(&features, root())) };
    Ok(())
}

/// What TTBR0_EL2 holds on every pCPU.
pub fn root() -> u64 {
    ROOT.load(Ordering::Acquire)
}

fn with_tables<T>(change: impl FnOnce(&mut Tree<Regime>) -> Result<T, Refusal>) -> Result<T, Refusal> {
    TABLES.lock().as_mut().map_or_else(|| Err(tree::not_there_yet()), change)
}

/// Maps a device's registers, uncached, at their physical address, and returns the pointer to `base`. Mapping
/// registers again is allowed. Any pCPU.
///
/// # Errors
/// When the range is none, or overlaps memory.
pub fn map_device(base: HostPhys, len: u64) -> Result<*mut u8, Refusal> {
    let (start, end) = tree::device_pages(base, len, 1 << ADDRESS_BITS)?;
    with_tables(|tables| tables.map_device(start, end))?;
    // What follows is walked with the entries, which are published.
    barrier::isb(barrier::SY);
    Ok(base.0 as *mut u8)
}

/// Whether the tables that this processor uses now, the firmware's, map all these bytes at their own addresses. Tables
/// with other pages than those of 4 KiB are not looked into.
///
/// # Safety
/// Before [`install`], on an identity map of all memory, at EL1 or EL2.
pub unsafe fn firmware_maps(start: HostPhys, len: u64) -> bool {
    const M: u64 = 1 << 0;
    const T0SZ: u64 = 0x3f;
    const TG0: u64 = 0b11 << 14;
    const PAGE_BITS: u64 = 12;
    const LEVEL_BITS: u64 = 9;
    /// BADDR; a top level of few entries may be aligned to less than a page.
    const TABLE: u64 = 0x0000_ffff_ffff_ffc0;
    let (sctlr, tcr, root): (u64, u64, u64);
    // SAFETY: reading them changes nothing, and each exception level from EL1 on has its own.
    unsafe {
        if Features::read().el2 {
            asm!("mrs {}, sctlr_el2", "mrs {}, tcr_el2", "mrs {}, ttbr0_el2",
                out(reg) sctlr, out(reg) tcr, out(reg) root, options(nomem, nostack, preserves_flags));
        } else {
            asm!("mrs {}, sctlr_el1", "mrs {}, tcr_el1", "mrs {}, ttbr0_el1",
                out(reg) sctlr, out(reg) tcr, out(reg) root, options(nomem, nostack, preserves_flags));
        }
    }
    if sctlr & M == 0 {
        return true;
    }
    let bits = 64 - (tcr & T0SZ);
    let levels = bits.saturating_sub(PAGE_BITS).div_ceil(LEVEL_BITS) as u8;
    let reached = start.checked_add(len).is_some_and(|end| end.0 <= 1 << bits.min(ADDRESS_BITS.into()));
    if tcr & TG0 != 0 || !(3..=4).contains(&levels) || !reached {
        return false;
    }
    let top = Top { root: HostPhys(root & TABLE), levels };
    // SAFETY: the tables in use lie in memory, which is mapped by the caller's promise.
    let read = |table: HostPhys, index: usize| unsafe { (table.0 as *const u64).add(index).read_volatile() };
    firmware_map::is_mapped(Regime::of(&Features::read()), top, &read, start, len)
}

/// Takes the page at `address` out, as a guard.
///
/// # Safety
/// Nobody may have a use for the page.
pub(crate) unsafe fn unmap_guard(address: u64) -> Result<(), Refusal> {
    with_tables(|tables| tables.unmap(address))?;
    let page = address / PAGE_SIZE;
    // SAFETY: forgetting a translation is always allowed.
    unsafe {
        asm!("tlbi vae2is, {}", "dsb ish", "isb", in(reg) page, options(nostack, preserves_flags));
    }
    Ok(())
}

/// Whether an address is mapped, for who walks memory that may be broken.
pub fn is_mapped(address: u64) -> bool {
    // A panic may come while the tables are being changed; then nothing is known.
    TABLES.try_lock().is_some_and(|tables| tables.as_ref().is_some_and(|t| t.is_mapped(address)))
}
