// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the configuration to running VMs.
//!
//! **Order.** Everything that the configuration asks for is checked before the first VM is defined, and every VM is
//! defined before the first starts. The types carry it, and each is given away for the next: [`Wanted`] is what the file
//! asks for, [`Checked`] what of that the machine can give, [`Defined`] what the system knows of it.
//!
//! **Invariant.** What is wrong with one VM stops that one alone. It is said once, and kept for the monitor.

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::definition::{Definable, Definitions, check_spec};
use super::{ParentOptions, System};
use crate::base::refusal::Refusal;
use crate::config::{
    Config, ConfigError, ConsoleMode, Definition, HostConfig, OnReboot, ParentConfig, Parsed, PciDevice,
    Scope, VmConfig, check_memory, check_vdevs, resolve_parents,
};
use crate::memory::ram::RamRange;
use crate::monitor::info::VmInfo;
use crate::vdev::VdevSpec;
use crate::vdev::parent::{Parent, Planned};
use crate::vm::{BootSpec, Vm, VmHost, VmSpec};

/// What is asked of the machine meanwhile; implemented by `boot`.
pub trait Machine {
    /// Its PCI functions.
    fn devices(&self) -> Vec<PciDevice>;

    /// Checks that each VM's files are there, and that its kernel is one.
    fn check_files(&self, config: &Config) -> Vec<ConfigError>;

    /// Brings the device of a parent up. `planned` is what the configuration wants of it.
    ///
    /// # Errors
    /// When there is no driver for it, or that cannot bring it up.
    fn bring_up(
        &self,
        parent: &ParentConfig,
        device: &PciDevice,
        planned: Vec<Planned>,
    ) -> Result<&'static dyn Parent, Refusal>;

    /// Where a guest with so many bytes of RAM has them.
    fn ram(&self, bytes: u64) -> Vec<RamRange>;
}

/// What the configuration asks for.
#[derive(Debug)]
pub struct Wanted {
    config: Config,
    definitions: Vec<Definition>,
}

/// What of the configuration the machine can give.
pub struct Checked {
    config: Config,
    /// Every VM that was wanted.
    wanted: Vec<VmConfig>,
    /// What was refused. It has been said.
    errors: Vec<ConfigError>,
    parents: Parents,
    definitions: Vec<Definition>,
}

/// The VMs that the system knows, none of them started.
#[derive(Debug)]
pub struct Defined {
    console: ConsoleMode,
    /// In the order of the configuration.
    vms: Vec<(VmConfig, Arc<Vm>)>,
    refused: Vec<VmInfo>,
    definitions: Definitions,
}

/// What became of each parent whose device was found.
type Parents = Vec<(String, Result<&'static dyn Parent, Refusal>)>;

impl Wanted {
    /// Takes what was read, and says what is wrong with it; `None` where nothing may be started.
    pub fn new(parsed: Result<Parsed, Vec<ConfigError>>, definitions: Vec<Definition>) -> Option<Self> {
        match parsed {
            Ok(Parsed { config, errors, .. }) => {
                tell(&errors);
                definitions.iter().for_each(|definition| tell(&definition.errors));
                Some(Self { config, definitions })
            }
            Err(errors) => {
                tell(&errors);
                None
            }
        }
    }

    /// What concerns the machine as a whole.
    pub fn host(&self) -> &HostConfig {
        &self.config.host
    }

    /// Checks all of it against the machine, takes the parents into use, and says what is refused and why isolation is
    /// weaker than it should be. No VM may be defined yet.
    pub fn check(self, system: &mut System, machine: &dyn Machine) -> Checked {
        let Self { mut config, mut definitions } = self;
        let wanted = config.vms.clone();
        let mut errors = Vec::new();
        let mut refuse = |config: &mut Config, found: Vec<ConfigError>| {
            config.remove_refused(&found);
            errors.extend(found);
        };
        let for_guests = system.frames.counts().for_guests;
        let found = check_memory(&config, for_guests);
        refuse(&mut config, found);
        let found = machine.check_files(&config);
        refuse(&mut config, found);
        let resolved = resolve_parents(&config, &machine.devices());
        refuse(&mut config, resolved.errors);
        let parents = take_parents(&config, &definitions, &resolved.parents, system, machine);
        let found = check_vdevs(&config, &|name| find(&parents, name));
        refuse(&mut config, found);
        tell(&errors);
        for definition in definitions.iter_mut().filter(|definition| !definition.vms.is_empty()) {
            // Each VM has the machine for itself here. What it has when it is started shows then.
            let alone = config.with_vms_of(definition);
            let memory = check_memory(&alone, for_guests);
            let files = machine.check_files(&alone);
            let vdevs = check_vdevs(&alone, &|name| find(&parents, name));
            definition.refuse([memory, files, vdevs].concat());
            tell(&definition.errors);
        }
        for taint in system.taints() {
            log::warn!("TAINTED: {taint}");
        }
        Checked { config, wanted, errors, parents, definitions }
    }
}

impl Checked {
    /// The VMs that were not refused.
    pub fn vms(&self) -> &[VmConfig] {
        &self.config.vms
    }

    /// The parents that vdevs can be made of.
    pub fn parents(&self) -> impl Iterator<Item = &'static dyn Parent> {
        self.parents.iter().filter_map(|(_, parent)| parent.as_ref().ok().copied())
    }

    /// Defines every VM that was not refused, at its place in the configuration, where refused ones count.
    pub fn define(mut self, system: &System, machine: &dyn Machine) -> Defined {
        let mut vms = Vec::new();
        for config in self.config.vms {
            match system.define_vm_at(spec(&config, machine.ram(config.memory.value)), config.index) {
                Ok(vm) => vms.push((config, vm)),
                Err(refusal) => {
                    let error = config.refused(config.name.at, &refusal);
                    tell(core::slice::from_ref(&error));
                    self.errors.push(error);
                }
            }
        }
        let refused = |vm: &VmConfig| {
            let error = self.errors.iter().find(|error| error.scope == Scope::Vm(vm.index))?;
            Some(VmInfo::refused(vm, error.to_string()))
        };
        let definable = |mut definition: Definition| {
            let specs: Vec<VmSpec> =
                definition.vms.iter().map(|vm| spec(vm, machine.ram(vm.memory.value))).collect();
            let wrong =
                |(vm, spec): (&VmConfig, &VmSpec)| Some(vm.refused(vm.name.at, &check_spec(spec).err()?));
            let wrong: Vec<ConfigError> = definition.vms.iter().zip(&specs).filter_map(wrong).collect();
            if !wrong.is_empty() {
                definition.refuse(wrong);
                tell(&definition.errors);
            }
            let refused = definition.errors.first().map(ConfigError::to_string);
            Definable { file: definition.path, vms: refused.map_or(Ok(specs), Err) }
        };
        Defined {
            definitions: Definitions::new(self.definitions.into_iter().map(definable)),
            console: self.config.host.console.value,
            refused: self.wanted.iter().filter_map(refused).collect(),
            vms,
        }
    }
}

impl Defined {
    /// The VMs that could not be made, and why.
    pub fn refused(&self) -> &[VmInfo] {
        &self.refused
    }

    /// What `vm define` takes.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// Starts those VMs that start with the machine, one after the other, and says what became of each and what a person
    /// can do now.
    pub fn start(self, system: &System, vm_host: &dyn VmHost) {
        let (mut running, mut waiting) = (0, 0);
        for (config, vm) in &self.vms {
            if !config.autostart.value {
                log::info!("vm {}: defined, not started (autostart = false)", vm.name());
                waiting += 1;
                continue;
            }
            match system.start_vm(vm_host, vm) {
                Ok(()) => {
                    running += 1;
                    log::info!("vm {}: started, {}", vm.name(), holdings(vm));
                }
                Err(refusal) => tell(&[config.refused(config.name.at, &refusal)]),
            }
        }
        if running == 0 && waiting > 0 {
            log::info!("no VM starts with the machine; `vm NAME start` starts one");
        } else if running == 0 && self.refused.is_empty() && self.definitions.is_any() {
            log::info!("no VM is defined; `vm define` lists the files that can be");
        } else if running == 0 {
            log::error!("nothing was started: no VM is left to run; `vms` and `help` still work");
        }
        if self.console == ConsoleMode::Plain {
            log::info!("`console NAME` goes to a guest, Ctrl-] comes back; `help` lists the commands");
        }
    }
}

fn tell(errors: &[ConfigError]) {
    for error in errors {
        log::error!("{error}");
    }
}

/// Brings up those parents whose devices were found, and takes them into use.
fn take_parents(
    config: &Config,
    definitions: &[Definition],
    devices: &[(usize, PciDevice)],
    system: &mut System,
    machine: &dyn Machine,
) -> Parents {
    let mut parents = Parents::new();
    for parent in &config.parents {
        let Some((_, device)) = devices.iter().find(|(index, _)| *index == parent.index) else {
            continue;
        };
        let name = &parent.name.value;
        let options =
            ParentOptions { iommu: parent.iommu.value, unsafe_portals: parent.allow_unsafe_portals.value };
        let taken = system
            .check_confinement(name, device.requester, options)
            .and_then(|()| machine.bring_up(parent, device, planned(config, definitions, name)))
            .and_then(|driver| system.add_parent(driver, options).map(|()| driver));
        match &taken {
            Ok(driver) => log::info!("parent {name}: {} at {}", description(*driver), device.requester),
            Err(refusal) => tell(&[parent.refused(parent.selector.at, refusal)]),
        }
        parents.push((name.clone(), taken));
    }
    parents
}

/// The parent of that name, or why there is none.
fn find(parents: &Parents, name: &str) -> Result<&'static dyn Parent, Refusal> {
    match parents.iter().find(|(known, _)| known == name) {
        Some((_, parent)) => parent.clone(),
        None => Err(Refusal::new(format!("parent {name}"), "it was refused", "see the line about it above")),
    }
}

/// What each vdev on a parent asks for, those that may come later behind the others.
fn planned(config: &Config, definitions: &[Definition], parent: &str) -> Vec<Planned> {
    let now = config.vms.iter().map(|vm| (vm, false));
    let later = definitions.iter().flat_map(|definition| &definition.vms).map(|vm| (vm, true));
    let vdevs = now.chain(later).flat_map(|(vm, later)| vm.vdevs.iter().map(move |vdev| (vdev, later)));
    let own = vdevs.filter(|(vdev, _)| vdev.parent.value == parent);
    own.map(|(vdev, later)| Planned {
        type_name: vdev.type_name.value.clone(),
        entries: vdev.entries.map(|entries| entries.value),
        later,
    })
    .collect()
}

/// One line about a parent. What there is of each queue is for the monitor to show.
fn description(parent: &dyn Parent) -> String {
    let details: Vec<String> = parent
        .describe()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("queue "))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    details.join(", ")
}

/// The VM that a section of the configuration asks for.
fn spec(vm: &VmConfig, ram: Vec<RamRange>) -> VmSpec {
    VmSpec {
        name: vm.name.value.clone(),
        ram,
        vcpus: vm.vcpus.value,
        pasid_quota: vm.pasids.value.into(),
        restart_on_reset: vm.on_reboot.value == OnReboot::Restart,
        boots: BootSpec {
            kernel: vm.kernel.value.clone(),
            initrd: vm.initrd.as_ref().map(|path| path.value.clone()),
            cmdline: vm.cmdline.value.clone(),
        },
        slots: vm.slots.value,
        vdevs: vm
            .vdevs
            .iter()
            .map(|vdev| VdevSpec {
                parent: vdev.parent.value.clone(),
                type_name: vdev.type_name.value.clone(),
                entries: vdev.entries.map(|entries| entries.value),
                weight: vdev.weight.map(|weight| weight.value),
                space: vdev.space.value.clone(),
            })
            .collect(),
    }
}

/// What a VM that was started has, in words.
fn holdings(vm: &Vm) -> String {
    let memory: u64 = vm.spec().ram.iter().map(|range| range.len).sum();
    let mut words = format!("{} MiB", memory >> 20);
    for vdev in vm.vdevs() {
        words += &format!(", {}/{}", vdev.parent(), vdev.type_name());
        if let Some(pasid) = vdev.pasid() {
            words += &format!(" with PASID {}", pasid.value());
        }
    }
    words
}
