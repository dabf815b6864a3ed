// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers of the machine's devices, for the drivers.

use pasidon_arch::paging;
use pasidon_arch_common::firmware_map;
use pasidon_drivers::pci::Segments;
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;

/// The machine's PCI functions.
pub type Pci = Segments<Mmio>;

/// Maps registers that one driver has for itself, uncached and for good.
///
/// # Errors
/// When no registers can be there.
pub fn map(base: HostPhys, len: u64) -> Result<Mmio, Refusal> {
    let window = paging::map_device(base, len)?;
    // SAFETY: mapped uncached for good; the driver that asks alone uses them.
    Ok(unsafe { Mmio::new(window, len as usize) })
}

/// Registers that are only read, while the firmware is there, where its own page tables map them. Nothing is mapped.
///
/// # Errors
/// When the firmware does not map them.
pub fn as_the_firmware_maps(base: HostPhys, len: u64) -> Result<Mmio, Refusal> {
    // SAFETY: boot services have not ended, so the firmware's tables are in use and map all memory (UEFI 2.10, 2.3.4).
    if !unsafe { paging::firmware_maps(base, len) } {
        return Err(firmware_map::not_mapped(base, len));
    }
    // SAFETY: mapped, for as long as the firmware is there; who asks only reads, which harms nobody.
    Ok(unsafe { Mmio::new(base.0 as *mut u8, len as usize) })
}
