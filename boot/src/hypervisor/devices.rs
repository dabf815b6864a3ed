// SPDX-License-Identifier: MIT OR Apache-2.0
//! What VMs are made of: slices of the machine's accelerators, and the files that were read for them.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::MachineHost;
use pasidon_arch::vms::Processor;
use pasidon_arch::{paging, portal};
use pasidon_arch_common::guest_files::Files;
use pasidon_arch_common::hardware::Hardware;
use pasidon_drivers::accel::dsa::{
    DsaParent, Enqueue, Options, Partition, Sending, Setup, Silicon, Store, Submission, check_portals,
};
use pasidon_drivers::pci::{Ecam, Function, Identity, MemoryBar};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{Config, ConfigError, ParentConfig, PciDevice};
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::memory::ram::RamRange;
use pasidon_kernel::system::startup::Machine;
use pasidon_kernel::vdev::parent::{Parent, Planned};

use super::iommu::FrameMemory;
use crate::registers::{self, Pci};

/// What the kernel asks for when it starts VMs.
pub struct Supply<'a> {
    /// The devices.
    pub pci: &'a Pci,
    /// What was read from the disk.
    pub files: &'a Files,
    /// For what is shared with devices.
    pub frames: &'static Frames,
}

impl Machine for Supply<'_> {
    fn devices(&self) -> Vec<PciDevice> {
        pci_devices(self.pci)
    }

    fn check_files(&self, config: &Config) -> Vec<ConfigError> {
        self.files.check::<Processor>(config)
    }

    fn bring_up(
        &self,
        parent: &ParentConfig,
        device: &PciDevice,
        planned: Vec<Planned>,
    ) -> Result<&'static dyn Parent, Refusal> {
        bring_up_parent(parent, device, self, &planned)
    }

    fn ram(&self, bytes: u64) -> Vec<RamRange> {
        Processor::ram(bytes)
    }
}

/// The functions that a parent can name.
pub fn pci_devices(pci: &Pci) -> Vec<PciDevice> {
    let device = |function: &Identity| PciDevice {
        requester: function.requester,
        vendor: function.vendor,
        device: function.device,
    };
    pci.functions.iter().map(device).collect()
}

/// Whether there is a driver for the device that a parent names.
///
/// # Errors
/// When there is none.
pub fn check_driver(what: &str, device: &PciDevice) -> Result<(), Refusal> {
    match Silicon::of(device.vendor, device.device) {
        Some(_) => Ok(()),
        None => Err(Refusal::new(
            what,
            alloc::format!(
                "{:04x}:{:04x} at {} is no accelerator that there is a driver for",
                device.vendor,
                device.device,
                device.requester
            ),
            "name an Intel DSA (8086:0b25 or 8086:11fb)",
        )),
    }
}

/// The function at that place, with the means to reach its configuration space.
///
/// # Errors
/// When these are not there, or nobody answers.
pub fn function_at(
    what: &str,
    requester: Requester,
    pci: &Pci,
) -> Result<Function<Arc<Ecam<Mmio>>>, Refusal> {
    let config = pci
        .config_of(requester)
        .ok_or_else(|| Refusal::new(what, "its configuration space is not mapped", "check the MCFG table"))?;
    Function::new(config, requester)
}

/// The portals of a device, for the processor's stores of 64 bytes.
struct Portals(*mut u8);

// SAFETY: the address of a window that stays mapped; what is written there is one transaction of the device.
unsafe impl Send for Portals {}
// SAFETY: as for `Send`.
unsafe impl Sync for Portals {}

impl Portals {
    fn at(&self, offset: u64) -> *mut u8 {
        self.0.wrapping_add(offset as usize)
    }
}

impl Enqueue for Portals {
    fn enqueue(&self, offset: u64, descriptor: &Submission) -> bool {
        // SAFETY: the driver names portals of its device, which lie in the window, and the processor has the store:
        // it is not given to the driver otherwise.
        unsafe { portal::enqueue(self.at(offset), descriptor) }
    }
}

impl Store for Portals {
    fn store(&self, offset: u64, descriptor: &Submission) {
        // SAFETY: as in `enqueue`. No handler of an interrupt submits.
        unsafe { portal::store(self.at(offset), descriptor) }
    }
}

/// How descriptors of trapped types get to a device.
fn sending(bar: &MemoryBar, iommu: bool) -> Result<Sending, Refusal> {
    let available = if iommu { portal::can_enqueue() } else { portal::can_store() };
    let window = || paging::map_device(bar.address, bar.size).map(|window| Arc::new(Portals(window)));
    let portals = available.then(window).transpose()?;
    Ok(if iommu {
        Sending::Tagged(portals.map(|portals| portals as Arc<dyn Enqueue>))
    } else {
        Sending::Untranslated(portals.map(|portals| portals as Arc<dyn Store>))
    })
}

/// Brings up the accelerator that a parent names.
fn bring_up_parent(
    parent: &ParentConfig,
    device: &PciDevice,
    supply: &Supply<'_>,
    planned: &[Planned],
) -> Result<&'static dyn Parent, Refusal> {
    let what = alloc::format!("parent {}", parent.name.value);
    check_driver(&what, device)?;
    let function = function_at(&what, device.requester, supply.pci)?;
    let (bar, portals) = (function.memory_bar(0)?, function.memory_bar(2)?);
    let allow_unsafe_portals = parent.allow_unsafe_portals.value;
    let safe = Silicon::of(device.vendor, device.device)
        .is_some_and(|silicon| check_portals(silicon, allow_unsafe_portals).is_ok());
    let shared = parent.shared_entries.map(|entries| entries.value);
    let setup = Setup {
        name: String::clone(&parent.name.value),
        function,
        registers: registers::map(bar.address, bar.size)?,
        host: Arc::new(MachineHost),
        partition: Partition::new(planned, shared, safe),
        sending: sending(&portals, parent.iommu.value)?,
        memory: Arc::new(FrameMemory(supply.frames)),
        options: Options {
            allow_unsafe_portals,
            merge_stores: cfg!(target_arch = "aarch64"),
            ..Options::default()
        },
    };
    let parent = DsaParent::new(setup)?;
    // Parents stay for as long as the machine runs.
    Ok(&**Box::leak(Box::new(parent)))
}
