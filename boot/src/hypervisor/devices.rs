// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's accelerators.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::MachineHost;
use pasidon_drivers::accel::dsa::{DsaParent, Options, Partition, Setup, Silicon};
use pasidon_drivers::pci::Function;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::config::{Config, ParentConfig, PciDevice};
use pasidon_kernel::vdev::parent::Parent;

use crate::pci::Pci;
use crate::registers;

/// Brings up the accelerator that a parent names. `queues` are the entries that the vdevs on it ask for.
pub fn bring_up_parent(
    parent: &ParentConfig,
    device: &PciDevice,
    pci: &Pci,
    queues: Vec<Option<u16>>,
) -> Result<&'static dyn Parent, Refusal> {
    let what = || alloc::format!("parent {}", parent.name.value);
    if Silicon::of(device.vendor, device.device).is_none() {
        return Err(Refusal::new(
            what(),
            alloc::format!(
                "{:04x}:{:04x} at {} is no accelerator that there is a driver for",
                device.vendor,
                device.device,
                device.requester
            ),
            "name an Intel DSA (8086:0b25 or 8086:11fb)",
        ));
    }
    let config = pci.config_of(device.requester).ok_or_else(|| {
        Refusal::new(what(), "its configuration space is not mapped", "check the MCFG table")
    })?;
    let function = Function::new(config, device.requester)?;
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

/// The queue entries that the vdevs of a configuration ask of a parent.
pub fn wanted_queues(config: &Config, parent: &str) -> Vec<Option<u16>> {
    config
        .vms
        .iter()
        .flat_map(|vm| &vm.vdevs)
        .filter(|vdev| vdev.parent.value == parent)
        .map(|vdev| vdev.entries.as_ref().map(|entries| entries.value))
        .collect()
}
