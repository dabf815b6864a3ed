// SPDX-License-Identifier: MIT OR Apache-2.0
//! What VMs are made of: slices of the machine's accelerators, and the files that were read for them.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::MachineHost;
use pasidon_arch::vms::Processor;
use pasidon_arch_common::guest_files::Files;
use pasidon_arch_common::hardware::Hardware;
use pasidon_drivers::accel::dsa::{DsaParent, Options, Partition, Setup, Silicon};
use pasidon_drivers::pci::{Ecam, Function, Identity};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{Config, ConfigError, ParentConfig, PciDevice};
use pasidon_kernel::memory::ram::RamRange;
use pasidon_kernel::system::startup::Machine;
use pasidon_kernel::vdev::parent::Parent;

use crate::registers::{self, Pci};

/// What the kernel asks for when it starts VMs.
pub struct Supply<'a> {
    /// The devices.
    pub pci: &'a Pci,
    /// What was read from the disk.
    pub files: &'a Files,
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
        queues: Vec<Option<u16>>,
    ) -> Result<&'static dyn Parent, Refusal> {
        bring_up_parent(parent, device, self.pci, queues)
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

/// Brings up the accelerator that a parent names.
fn bring_up_parent(
    parent: &ParentConfig,
    device: &PciDevice,
    pci: &Pci,
    queues: Vec<Option<u16>>,
) -> Result<&'static dyn Parent, Refusal> {
    let what = alloc::format!("parent {}", parent.name.value);
    check_driver(&what, device)?;
    let function = function_at(&what, device.requester, pci)?;
    let bar = function.memory_bar(0)?;
    let setup = Setup {
        name: String::clone(&parent.name.value),
        function,
        registers: registers::map(bar.address, bar.size)?,
        host: Arc::new(MachineHost),
        partition: Partition { queues },
        options: Options { allow_unsafe_portals: parent.allow_unsafe_portals.value, ..Options::default() },
    };
    let parent = DsaParent::new(setup)?;
    // Parents stay for as long as the machine runs.
    Ok(&**Box::leak(Box::new(parent)))
}
