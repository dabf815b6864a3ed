// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that come and go: defined, found, removed.
//!
//! **Principle.** A definition costs nothing but its place: memory, PASIDs and queues are had at the start. So what is
//! checked here is what no start could do without: a name and a place of its own, parents that have what it wants.
//! **Invariant.** A VM goes when nothing is left of its lives: it is stopped, its end is proven, and nothing of it is kept
//! back. Whoever still holds it can do nothing with it ([`VmState::Removed`]).

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::base::id::VmId;
use crate::base::refusal::Refusal;
use crate::base::table::bytes;
use crate::memory::ram::{RamRange, check_layout};
use crate::monitor::info::{DefinitionInfo, RetiredInfo};
use crate::vdev::retired::Retirement;
use crate::vm::{Vm, VmSpec, VmState};

use super::System;

/// The files of VMs that can be defined: what they ask for, as it was read at boot.
#[derive(Clone, Debug, Default)]
pub struct Definitions(Vec<Definable>);

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Definable {
    /// Its path on the ESP.
    pub file: String,
    /// Its VMs; or why it was refused, in a line.
    pub vms: Result<Vec<VmSpec>, String>,
}

impl Definitions {
    /// These files.
    pub(crate) fn new(files: impl IntoIterator<Item = Definable>) -> Self {
        Self(files.into_iter().collect())
    }

    /// Whether one of them was not refused.
    pub fn is_any(&self) -> bool {
        self.0.iter().any(|known| known.vms.is_ok())
    }

    /// The VMs of a file.
    ///
    /// # Errors
    /// When there is no such file among them, or it was refused at boot.
    pub fn vms_of(&self, file: &str) -> Result<&[VmSpec], Refusal> {
        let what = || format!("definition {file}");
        match self.0.iter().find(|known| known.file == file).map(|known| &known.vms) {
            Some(Ok(vms)) => Ok(vms),
            Some(Err(line)) => Err(Refusal::new(
                what(),
                format!("it was refused at boot: {line}"),
                "correct the file and boot again",
            )),
            None => Err(Refusal::new(
                what(),
                "it was not read at boot, and the disk cannot be read now",
                "name it in definitions of [host] in pasidon.toml, and boot again",
            )),
        }
    }

    /// For the monitor.
    pub fn infos(&self) -> Vec<DefinitionInfo> {
        let info = |known: &Definable| {
            let names = |vms: &Vec<VmSpec>| vms.iter().map(|vm| vm.name.clone()).collect();
            DefinitionInfo {
                file: known.file.clone(),
                vms: known.vms.as_ref().map(names).unwrap_or_default(),
                refused: known.vms.as_ref().err().cloned(),
            }
        };
        self.0.iter().map(info).collect()
    }
}

/// Whether a VM can be what it is to be, on whatever machine.
pub(super) fn check_spec(spec: &VmSpec) -> Result<(), Refusal> {
    let sound = check_layout(&spec.ram).map(drop).and_then(|()| check_windows(spec));
    sound.map_err(|refusal| refusal.within(format!("vm {}", spec.name)))
}

/// Whether every window of a vdev is in its VM's RAM.
fn check_windows(spec: &VmSpec) -> Result<(), Refusal> {
    for vdev in &spec.vdevs {
        let outside = |window: &&RamRange| !spec.ram.iter().any(|range| range.contains(window));
        if let Some(window) = vdev.space.windows().iter().find(outside) {
            let ram: Vec<String> =
                spec.ram.iter().map(|range| format!("{}+{}", range.start, bytes(range.len))).collect();
            return Err(Refusal::new(
                format!("vdev {}/{}", vdev.parent, vdev.type_name),
                format!("its window {}+{} is not all memory of the VM", window.start, bytes(window.len)),
                format!("use ranges in {}", ram.join(", ")),
            ));
        }
    }
    Ok(())
}

/// Who is there.
#[derive(Debug)]
pub(super) struct Vms {
    /// In the order of definition.
    all: Vec<Arc<Vm>>,
    /// The next VM at each place.
    next: [VmId; VmId::PLACES],
}

impl Default for Vms {
    fn default() -> Self {
        Self { all: Vec::new(), next: core::array::from_fn(|place| VmId::first_at(place as u8)) }
    }
}

impl Vms {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.all.iter()
    }

    fn is_taken(&self, place: usize) -> bool {
        self.all.iter().any(|vm| vm.id().place() == place)
    }

    /// Takes a place, or the lowest one that is free.
    fn add(&mut self, spec: VmSpec, place: Option<usize>) -> Result<Arc<Vm>, Refusal> {
        let what = format!("vm {}", spec.name);
        check_spec(&spec)?;
        if self.all.iter().any(|vm| vm.name() == spec.name) {
            return Err(Refusal::new(
                what,
                "there is one of that name",
                format!(
                    "remove that one first (`vm {} remove`), or give this one a name of its own",
                    spec.name
                ),
            ));
        }
        let place = place.or_else(|| (0..VmId::PLACES).find(|place| !self.is_taken(*place)));
        let free = place.filter(|place| !self.is_taken(*place));
        let Some(next) = free.and_then(|place| self.next.get_mut(place)) else {
            let why = match place {
                None => format!("there are {} VMs, and no room for more", VmId::PLACES),
                Some(place) => format!("place {place} is another VM's, or there is none"),
            };
            return Err(Refusal::new(what, why, "remove one first (`vm NAME remove`)"));
        };
        let id = core::mem::replace(next, next.next());
        let vm = Arc::new(Vm::new(id, spec));
        self.all.push(vm.clone());
        Ok(vm)
    }

    fn remove(&mut self, id: VmId) {
        self.all.retain(|vm| vm.id() != id);
    }
}

impl System {
    /// Defines a VM at the lowest place that is free. It is started by [`System::start_vm`].
    ///
    /// # Errors
    /// When there is one of that name, its RAM is not laid out soundly, a vdev has windows outside of it, or there are
    /// [`VmId::PLACES`].
    pub fn define_vm(&self, spec: VmSpec) -> Result<Arc<Vm>, Refusal> {
        self.vms.write().add(spec, None)
    }

    /// The same at a place below [`VmId::PLACES`].
    ///
    /// # Errors
    /// As [`System::define_vm`], or when that place is not free.
    pub fn define_vm_at(&self, spec: VmSpec, place: usize) -> Result<Arc<Vm>, Refusal> {
        self.vms.write().add(spec, Some(place))
    }

    /// Defines several VMs, or none of them, after a look at what their vdevs are to be made of.
    ///
    /// # Errors
    /// As [`System::define_vm`], for any of them, or when a parent of their vdevs is not there or cannot be used.
    pub fn define_vms(&self, specs: &[VmSpec]) -> Result<Vec<Arc<Vm>>, Refusal> {
        for spec in specs {
            spec.vdevs.iter().try_for_each(|vdev| self.parent_of(&spec.name, vdev).map(drop))?;
        }
        let mut vms = self.vms.write();
        let mut defined: Vec<Arc<Vm>> = Vec::new();
        for spec in specs {
            match vms.add(spec.clone(), None) {
                Ok(vm) => defined.push(vm),
                Err(refusal) => {
                    defined.iter().for_each(|vm| vms.remove(vm.id()));
                    return Err(refusal);
                }
            }
        }
        Ok(defined)
    }

    /// Takes a VM away for good. Its name and place are free then.
    ///
    /// # Errors
    /// When another operation changes the VM, it is not stopped, or something of it is kept back.
    pub fn remove_vm(&self, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        let kept = self.retired.lock().iter().map(Retirement::info).find(|info| info.vm == vm.name());
        if let (true, Some(RetiredInfo { what, value, why, .. })) =
            (vm.state().may_become(VmState::Removed), kept)
        {
            return Err(vm.refuse(
                format!("{what} {value} of it is kept back: {why}"),
                "wait until it has stopped, or reset its parent; `iommu` shows what is kept",
            ));
        }
        vm.become_state(&operation, VmState::Removed, None)?;
        self.vms.write().remove(vm.id());
        Ok(())
    }

    /// All VMs, in the order of definition.
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        self.vms.read().all.clone()
    }

    /// The VM of that number.
    pub fn vm(&self, id: VmId) -> Option<Arc<Vm>> {
        self.vms.read().iter().find(|vm| vm.id() == id).cloned()
    }

    /// The VM of that name.
    pub fn vm_named(&self, name: &str) -> Option<Arc<Vm>> {
        self.vms.read().iter().find(|vm| vm.name() == name).cloned()
    }

    /// The VM at that place.
    pub fn vm_at(&self, place: usize) -> Option<Arc<Vm>> {
        self.vms.read().iter().find(|vm| vm.id().place() == place).cloned()
    }
}
