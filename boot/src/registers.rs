// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers of the machine's devices, for the drivers.

use pasidon_arch::paging;
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
