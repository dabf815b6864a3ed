// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks of a configuration that need to know the machine.
//!
//! **Principle.** All of them run before the first VM is built, so that a reader sees every error of the
//! file at once, and a VM that cannot be complete is not begun. Whether a parent can give a slice is
//! asked of its driver itself: each slice is reserved, in the order in which the VMs will ask, and given
//! back.
//!
//! The caller prints the errors, takes out what they are about ([`Config::remove_refused`]), and goes on.

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::error::ConfigError;
use super::types::{Config, ParentConfig, ParentSelector, VdevConfig, VmConfig};
use crate::base::addr::{LARGE_PAGE_SIZE, Requester};
use crate::base::nearest::nearest;
use crate::base::refusal::Refusal;
use crate::base::table::bytes;
use crate::dma::address_space::AddressSpace;
use crate::vdev::parent::{Parent, VdevModel, VdevRequest};

/// A PCI function that the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciDevice {
    /// Where it is.
    pub requester: Requester,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
}

/// Which devices the parents are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResolvedParents {
    /// The found ones: index as [`ParentConfig::index`], with the device.
    pub parents: Vec<(usize, PciDevice)>,
    /// The errors of the others.
    pub errors: Vec<ConfigError>,
}

/// Finds the device of each parent among those of the machine. Two parents on one device are both
/// refused: nobody knows which was meant.
pub fn resolve_parents(config: &Config, devices: &[PciDevice]) -> ResolvedParents {
    let mut found: Vec<(&ParentConfig, PciDevice)> = Vec::new();
    let mut errors = Vec::new();
    for parent in &config.parents {
        match resolve(parent, devices) {
            Ok(device) => found.push((parent, device)),
            Err(error) => errors.push(error),
        }
    }
    let mut parents = Vec::new();
    for (parent, device) in &found {
        let twin = found
            .iter()
            .find(|(other, theirs)| other.index != parent.index && theirs.requester == device.requester);
        match twin {
            None => parents.push((parent.index, *device)),
            Some((twin, _)) => errors.push(parent.error_at(
                parent.selector.at,
                format_args!(
                    "{} is {}, which is parent {} too (line {})",
                    parent.selector.value, device.requester, twin.name.value, twin.selector.at.line
                ),
                "keep one of the two, or let each name its own device by pci",
            )),
        }
    }
    errors.sort_by_key(|error: &ConfigError| error.at);
    ResolvedParents { parents, errors }
}

fn resolve(parent: &ParentConfig, devices: &[PciDevice]) -> Result<PciDevice, ConfigError> {
    let selector = parent.selector.value;
    let fits = |device: &&PciDevice| match selector {
        ParentSelector::Pci(requester) => device.requester == requester,
        ParentSelector::Match { vendor, device: id } => device.vendor == vendor && device.device == id,
    };
    let found: Vec<&PciDevice> = devices.iter().filter(fits).collect();
    match (found.as_slice(), selector) {
        ([device], _) => Ok(**device),
        ([], ParentSelector::Pci(_)) => Err(parent.error_at(
            parent.selector.at,
            format_args!("the machine has no device at {selector}"),
            "correct the address, or name the device by match",
        )),
        ([], ParentSelector::Match { .. }) => Err(parent.error_at(
            parent.selector.at,
            format_args!("the machine has no device with {selector}"),
            "correct the IDs, or name the device by pci",
        )),
        (several, _) => {
            let places: Vec<String> = several.iter().map(|device| device.requester.to_string()).collect();
            Err(parent.error_at(
                parent.selector.at,
                format_args!("{selector} fits {} devices", several.len()),
                format!("name one of them by pci: {}", places.join(", ")),
            ))
        }
    }
}

/// Checks that the VMs that start with the machine have their memory side by side, and each other VM
/// alone. `available` is what guests can have, in bytes. A VM that does not fit takes nothing from those
/// after it.
pub fn check_memory(config: &Config, available: u64) -> Vec<ConfigError> {
    let mut left = available;
    let mut errors = Vec::new();
    for vm in &config.vms {
        let share = if vm.autostart.value { left } else { available };
        let wanted = vm.memory.value;
        if wanted > share {
            let share = share / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE;
            let before = if share < available / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE {
                " after the VMs before it"
            } else {
                ""
            };
            errors.push(vm.error_at(
                vm.memory.at,
                format_args!(
                    "memory {} is more than the {} that the machine has left{before}",
                    bytes(wanted),
                    bytes(share)
                ),
                "give the VMs less, or the machine more",
            ));
        } else if vm.autostart.value {
            left -= wanted;
        }
    }
    errors
}

/// How the vdevs of a file are checked against the parents: finds the driver of a parent by name, or says
/// why there is none.
pub type FindParent<'p, 'f> = &'f dyn Fn(&str) -> Result<&'p dyn Parent, Refusal>;

/// Checks that the parents can give what the VMs that start with the machine ask for, all of it at the
/// same time, and what each other VM asks for beside them. Nothing may be attached yet; nothing is kept.
pub fn check_vdevs(config: &Config, find: FindParent<'_, '_>) -> Vec<ConfigError> {
    let mut kept: Vec<Box<dyn VdevModel>> = Vec::new();
    let mut errors = Vec::new();
    // Those that start by themselves come first, as they will.
    let (first, later): (Vec<&VmConfig>, Vec<&VmConfig>) =
        config.vms.iter().partition(|vm| vm.autostart.value);
    for vm in first.into_iter().chain(later) {
        let mut reserved = Vec::new();
        let before = errors.len();
        for (number, vdev) in vm.vdevs.iter().enumerate() {
            match reserve(config, vm, number, vdev, find) {
                Ok(model) => reserved.push(model),
                Err(error) => errors.push(error),
            }
        }
        // A VM that is refused asks for nothing later.
        if errors.len() == before && vm.autostart.value {
            kept.append(&mut reserved);
        }
    }
    errors.sort_by_key(|error: &ConfigError| error.at);
    errors
}

fn reserve(
    config: &Config,
    vm: &VmConfig,
    number: usize,
    vdev: &VdevConfig,
    find: FindParent<'_, '_>,
) -> Result<Box<dyn VdevModel>, ConfigError> {
    let subject = format!("vdev number {}", number + 1);
    let Some(parent_config) = config.parent(&vdev.parent) else {
        return Err(vm.error_at(
            vdev.parent.at,
            format_args!("{subject}: parent {} was refused", vdev.parent.value),
            "correct it first",
        ));
    };
    let parent = find(&vdev.parent).map_err(|refusal| {
        let what = format_args!("{subject}: {}: {}", refusal.what, refusal.why).to_string();
        vm.error_at(vdev.parent.at, what, refusal.remedy)
    })?;
    let types = parent.types();
    let names = || types.iter().map(|known| known.name);
    let Some(kind) = types.iter().find(|known| known.name == vdev.type_name.value) else {
        let remedy = match nearest(&vdev.type_name, names()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it offers {}", names().collect::<Vec<_>>().join(", ")),
        };
        return Err(vm.error_at(
            vdev.type_name.at,
            format_args!(
                "{subject}: parent {} has no type {}",
                vdev.parent.value,
                super::error::quoted(&vdev.type_name)
            ),
            remedy,
        ));
    };
    if let (Some(why), false) = (kind.needs_iommu, parent_config.iommu.value) {
        return Err(vm.error_at(
            vdev.type_name.at,
            format_args!(
                "{subject}: type {} {why}, which needs an IOMMU, but parent {} has iommu = \"off\"",
                kind.name, vdev.parent.value
            ),
            "use another type, or iommu = \"on\"",
        ));
    }
    if vdev.space.value != AddressSpace::Vm && !parent_config.iommu.value {
        return Err(vm.error_at(
            vdev.space.at,
            format_args!(
                "{subject}: an address space of its own needs an IOMMU, but parent {} has iommu = \"off\"",
                vdev.parent.value
            ),
            "leave address_space out, or write iommu = \"on\"",
        ));
    }
    let request = VdevRequest {
        vm: &vm.name,
        type_name: kind.name,
        entries: vdev.entries.map(|entries| entries.value),
        weight: vdev.weight.map(|weight| weight.value),
    };
    parent.create(&request).map_err(|refusal| {
        // Whether it is the number of entries shows when it is left to the driver.
        let unsized_request = VdevRequest { entries: None, ..request };
        let at = match vdev.entries {
            Some(entries) if parent.create(&unsized_request).is_ok() => entries.at,
            _ => vdev.type_name.at,
        };
        let own = format!("vm {}: ", vm.name.value);
        let what = refusal.what.strip_prefix(own.as_str()).unwrap_or(&refusal.what);
        vm.error_at(at, format_args!("{what}: {}", refusal.why), refusal.remedy)
    })
}
