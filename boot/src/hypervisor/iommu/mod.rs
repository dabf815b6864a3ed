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
pub use aarch64::{MachineIommu, connect_keys, survey};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{MachineIommu, connect_keys, survey};

use alloc::boxed::Box;

use pasidon_arch::platform::Platform;
use pasidon_arch::{cache, memory};
use pasidon_drivers::iommu::Topology;
use pasidon_drivers::iommu::survey::Survey;
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

    fn write128(&self, address: HostPhys, value: [u64; 2]) {
        cache::order_for_devices();
        // SAFETY: as in `read64`; the drivers pass 16 bytes aligned to as many, and are alone in writing to them. The
        // processor has passed the check of its features.
        unsafe { cache::write128(address.0, value) };
        cache::order_for_devices();
    }

    fn flush(&self, address: HostPhys, len: usize) {
        // SAFETY: the drivers pass addresses within what `alloc` gave them.
        unsafe { cache::clean(address.0, len) };
    }
}

/// Why no IOMMU is in charge.
pub enum Without {
    /// There is none that could be driven, for this reason.
    Absent(&'static str),
    /// There is one, and it cannot be.
    Unusable(Refusal),
}

impl Without {
    /// The same as a refusal.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Absent(why) => {
                let why = alloc::format!("{why}, so nothing confines a device");
                Refusal::new("IOMMU", why, "use a machine with an IOMMU, and turn it on in the firmware")
            }
            Self::Unusable(refusal) => refusal,
        }
    }
}

/// What an inventory says of the IOMMUs.
pub struct Surveyed {
    /// What they are called.
    pub make: &'static str,
    /// What was found.
    pub survey: Survey,
    /// Where devices are.
    pub topology: Box<dyn Topology>,
    /// Whether interrupt messages are confined where DMA is.
    pub messages: bool,
}

impl From<Refusal> for Without {
    fn from(refusal: Refusal) -> Self {
        Self::Unusable(refusal)
    }
}

/// Takes the IOMMU over and says so: from here on no device reaches memory. Where there is none that can be driven, that
/// is said, too, and every device loses the right to do DMA. `None` where there is nothing to drive.
pub fn take(
    tables: &Tables,
    platform: &Platform,
    pci: &Pci,
    frames: &'static Frames,
) -> Option<MachineIommu> {
    let (machine, without) = MachineIommu::take(tables, platform, pci, frames);
    match without {
        Some(absent @ Without::Absent(_)) => log::warn!("{}", absent.refusal()),
        Some(Without::Unusable(refusal)) => log::error!("not usable: {refusal}"),
        None => {}
    }
    if let Some(machine) = &machine {
        if machine.iommu().is_some() {
            log::info!("{}: every device is blocked until a VM owns a part of it", machine.title());
        }
        for (name, value) in machine.describe() {
            log::info!("{name}: {value}");
        }
    }
    // What firmware left running reaches all memory; a parent gets the right back from its driver.
    let iommu = machine.as_ref().and_then(MachineIommu::iommu);
    pci.silence(&|requester| iommu.is_some_and(|iommu| iommu.confines(requester)));
    machine
}
