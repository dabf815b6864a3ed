// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands between the machine's devices and memory, taken over from the firmware.
//!
//! Which drivers that takes, and how interrupts come that are not messages, is a matter of the architecture: each has
//! its own [`MachineIommu`], with the same methods.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{MachineIommu, connect_keys};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{MachineIommu, connect_keys};

use pasidon_arch::platform::Platform;
use pasidon_arch::{cache, memory};
use pasidon_drivers::memory::DmaMemory;
use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;

use crate::registers::Pci;
use crate::tables::Tables;

/// Memory for tables and queues of devices.
#[derive(Debug)]
pub struct FrameMemory(pub &'static Frames);

impl DmaMemory for FrameMemory {
    fn alloc(&self, pages: usize) -> Option<HostPhys> {
        let start = self.0.allocate_pages(pages)?;
        // SAFETY: just taken, and RAM is mapped at its physical address.
        unsafe { memory::zero(start, pages as u64 * PAGE_SIZE) };
        cache::order_for_devices();
        Some(start)
    }

    fn free(&self, start: HostPhys, pages: usize) {
        self.0.free_pages(start, pages);
    }

    fn read64(&self, address: HostPhys) -> u64 {
        cache::order_for_devices();
        // SAFETY: the drivers pass addresses within what `alloc` gave them.
        unsafe { (address.0 as *const u64).read_volatile() }
    }

    fn write64(&self, address: HostPhys, value: u64) {
        cache::order_for_devices();
        // SAFETY: as in `read64`.
        unsafe { (address.0 as *mut u64).write_volatile(value) }
        cache::order_for_devices();
    }

    fn flush(&self, address: HostPhys, len: usize) {
        // SAFETY: the drivers pass addresses within what `alloc` gave them.
        unsafe { cache::clean(address.0, len) };
    }
}

/// Why no IOMMU is in charge.
enum Without {
    /// There is none that could be driven, for this reason.
    Absent(&'static str),
    /// There is one, and it cannot be.
    Unusable(Refusal),
}

impl From<Refusal> for Without {
    fn from(refusal: Refusal) -> Self {
        Self::Unusable(refusal)
    }
}

/// Takes the IOMMU over and says so: from here on no device reaches memory. `None` where there is none that can be
/// driven, which is said, too.
pub fn take(
    tables: &Tables,
    platform: &Platform,
    pci: &Pci,
    frames: &'static Frames,
) -> Option<MachineIommu> {
    match MachineIommu::take(tables, platform, pci, frames) {
        Ok(iommu) => {
            log::info!("{}: every device is blocked until a VM owns a part of it", iommu.title());
            for (name, value) in iommu.describe() {
                log::info!("{name}: {value}");
            }
            pci.silence(&|requester| iommu.serves(requester));
            Some(iommu)
        }
        Err(Without::Absent(why)) => {
            log::warn!("none: {why}, so nothing confines a device");
            None
        }
        Err(Without::Unusable(refusal)) => {
            log::error!("not usable: {refusal}");
            None
        }
    }
}
