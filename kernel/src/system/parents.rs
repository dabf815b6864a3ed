// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parents: taken into use, their events, their reset.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::base::addr::Requester;
use crate::base::drained::Drained;
use crate::base::refusal::Refusal;
use crate::irq::Route;
use crate::vdev::interrupt::Interrupt;
use crate::vdev::parent::{DmaTag, Parent, ParentEvent, ParentUnreached};
use crate::vdev::{Services, Vdev, VdevSpec, title};
use crate::vm::{Vm, VmHost};

use super::{ReclaimReport, System, VdevName};

/// How a parent is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParentOptions {
    /// Whether an IOMMU confines it. False: trapped types only, and TAINTED.
    pub iommu: bool,
    /// Whether portals are mapped although the device is known to be unsafe for that. TAINTED.
    pub unsafe_portals: bool,
}

impl ParentOptions {
    /// Why isolation is weaker than it should be.
    pub(super) fn taints(&self) -> impl Iterator<Item = &'static str> + use<> {
        let untranslated = (!self.iommu).then_some("iommu = \"off\", no IOMMU confines it");
        let portals =
            self.unsafe_portals.then_some("allow_unsafe_portals = true, its portals may not isolate guests");
        untranslated.into_iter().chain(portals)
    }
}

/// A parent in use.
pub(super) struct ParentEntry {
    pub(super) parent: &'static dyn Parent,
    pub(super) options: ParentOptions,
    pub(super) unusable: Option<Refusal>,
    pub(super) events: AtomicU64,
    /// Kept connected for good.
    _event_interrupt: Option<Interrupt>,
}

/// Whether a device can be a parent with `iommu = "on"`: whether an IOMMU confines its DMA, and something its interrupt
/// messages.
///
/// # Errors
/// When one of them is not confined.
pub fn check_confined(what: &str, dma: bool, messages: bool) -> Result<(), Refusal> {
    if !dma {
        return Err(Refusal::new(
            what,
            "no IOMMU confines its DMA",
            "use a machine with an IOMMU and turn it on in the firmware; or accept the risk with iommu \
             = \"off\", for trapped types only",
        ));
    }
    if !messages {
        return Err(Refusal::new(
            what,
            "nothing confines its interrupt messages, so it could raise any",
            "turn interrupt remapping on in the firmware, or use a machine that has it",
        ));
    }
    Ok(())
}

/// One event of a parent, with the vdev it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentReport {
    /// Name of the parent.
    pub parent: String,
    /// Whose PASID it named.
    pub vdev: Option<VdevName>,
    /// What the driver read.
    pub event: ParentEvent,
}

impl core::fmt::Display for ParentReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "parent {}", self.parent)?;
        if let Some(vdev) = &self.vdev {
            write!(f, ": vm {} vdev #{}", vdev.vm_name, vdev.vdev.0)?;
        }
        match &self.event {
            ParentEvent::Error { text, .. } => write!(f, ": {text}"),
            ParentEvent::Halted(text) => write!(f, ": it stopped: {text}; reset it to use it again"),
        }
    }
}

impl System {
    /// What a vdev of the VM of that name is to be made of.
    pub(super) fn parent_of(&self, vm: &str, spec: &VdevSpec) -> Result<&ParentEntry, Refusal> {
        let what = || title(vm, &spec.parent, &spec.type_name);
        let Some(entry) = self.parents.iter().find(|e| e.parent.name() == spec.parent) else {
            let names: Vec<&str> = self.parents().collect();
            let remedy = if names.is_empty() {
                "define one with [parent.NAME]".to_string()
            } else {
                format!("use one of: {}", names.join(", "))
            };
            return Err(Refusal::new(what(), format!("no parent {}", spec.parent), remedy));
        };
        match &entry.unusable {
            Some(refusal) => Err(refusal.clone().within(what())),
            None => Ok(entry),
        }
    }

    /// Takes a parent into use: claims it at the IOMMU and connects its event interrupt.
    ///
    /// # Errors
    /// When its name or device is taken, nothing confines its DMA or its messages, or the IOMMU refuses the claim.
    ///
    /// A parent that is refused is listed all the same, so that vdevs on it are refused with the reason.
    pub fn add_parent(&mut self, parent: &'static dyn Parent, options: ParentOptions) -> Result<(), Refusal> {
        let result = self.take_parent(parent, options);
        let (unusable, event_interrupt) = match &result {
            Ok(_) => (None, result.as_ref().is_ok_and(Option::is_some)),
            Err(refusal) => (Some(refusal.clone()), false),
        };
        let outcome = result.as_ref().map(|_| ()).map_err(Refusal::clone);
        log::debug!(
            "parent {}: {}",
            parent.name(),
            if event_interrupt { "events by interrupt" } else { "no event interrupt" }
        );
        self.parents.push(ParentEntry {
            parent,
            options,
            unusable,
            events: AtomicU64::new(0),
            _event_interrupt: result.ok().flatten(),
        });
        outcome
    }

    /// Whether a device can be used as its parent's options say, before its driver touches it.
    ///
    /// # Errors
    /// When nothing confines its DMA or its messages although something is to, or an IOMMU does although none is to.
    pub(super) fn check_confinement(
        &self,
        name: &str,
        requester: Requester,
        options: ParentOptions,
    ) -> Result<(), Refusal> {
        let what = || format!("parent {name}");
        let Services { iommu, msi, .. } = &self.services;
        if options.iommu {
            return check_confined(&what(), iommu.is_some(), msi.is_some());
        }
        if iommu.is_some_and(|iommu| iommu.confines(requester)) {
            return Err(Refusal::new(
                what(),
                "iommu = \"off\", and an IOMMU stands in front of it, which lets through what has a PASID only",
                "remove iommu = \"off\"",
            ));
        }
        Ok(())
    }

    pub(super) fn take_parent(
        &self,
        parent: &'static dyn Parent,
        options: ParentOptions,
    ) -> Result<Option<Interrupt>, Refusal> {
        let what = || format!("parent {}", parent.name());
        if self.parents.iter().any(|other| other.parent.name() == parent.name()) {
            return Err(Refusal::new(what(), "defined twice", "give each parent its own name"));
        }
        let clash = self.parents.iter().find(|other| other.parent.requester() == parent.requester());
        if let Some(other) = clash {
            return Err(Refusal::new(
                what(),
                format!("{} is parent {} already", parent.requester(), other.parent.name()),
                "define each device once",
            ));
        }
        if parent.dma_tag() == DmaTag::Requester {
            return Err(Refusal::new(
                what(),
                "its vdevs are told apart by requester ID, and there is no page table per requester yet",
                "share a device whose vdevs are told apart by PASID",
            ));
        }
        self.check_confinement(parent.name(), parent.requester(), options)?;
        if let Some(iommu) = self.services.iommu.filter(|_| options.iommu) {
            iommu.claim(parent.requester()).map_err(|refusal| refusal.within(what()))?;
        }
        let Some(entry) = parent.event_interrupt() else {
            return Ok(None);
        };
        let route = u16::try_from(self.parents.len()).ok().filter(|place| *place < Route::PARENTS);
        let Some(route) = route.map(Route::ParentEvent) else {
            return Err(Refusal::new(
                what(),
                format!("events of {} parents can be told apart, and that many are defined", Route::PARENTS),
                "define fewer",
            ));
        };
        match Interrupt::connect(&self.services, parent, options.iommu, entry, route) {
            Ok(interrupt) => Ok(Some(interrupt)),
            Err(refusal) if options.iommu => Err(refusal.within(what())),
            Err(refusal) => {
                log::warn!("parent {}: its events are not seen: {refusal}", parent.name());
                Ok(None)
            }
        }
    }

    /// Names of the parents. A parent's place here is its number in [`Route::ParentEvent`].
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.parents.iter().map(|entry| entry.parent.name())
    }

    /// Handles the event interrupt of a parent ([`Route::ParentEvent`]): reads the events, names the vdev
    /// each belongs to, and has the vdevs that it concerns take them up: that one, or all of the parent
    /// after a halt. Not to be called from an interrupt handler.
    pub fn parent_event(
        &self,
        vm_host: &dyn VmHost,
        parent: u16,
        sink: &mut dyn FnMut(ParentReport),
    ) -> Drained {
        let Some(entry) = self.parents.get(usize::from(parent)) else {
            return Drained::Empty;
        };
        let mut halted = false;
        let mut concerned: Vec<Arc<Vdev>> = Vec::new();
        let drained = entry.parent.interrupt(&mut |event| {
            entry.events.fetch_add(1, Ordering::Relaxed);
            let vdev = match &event {
                ParentEvent::Error { pasid, .. } => {
                    let tag = pasid.map(|pasid| (entry.parent.requester(), pasid));
                    tag.and_then(|tag| self.tags.lock().get(&tag).cloned())
                }
                ParentEvent::Halted(_) => {
                    halted = true;
                    None
                }
            };
            sink(ParentReport {
                parent: entry.parent.name().to_string(),
                vdev: vdev.as_ref().and_then(|vdev| self.name_of(vdev)),
                event,
            });
            // A device can report one queue many times before anyone looks.
            concerned.extend(vdev.filter(|vdev| concerned.iter().all(|other| other.id() != vdev.id())));
        });
        if halted {
            self.announce(vm_host, entry.parent.name());
        } else {
            for vdev in concerned {
                self.take_up(vm_host, &vdev);
            }
        }
        drained
    }

    /// Has every vdev of a parent take up what happened to it.
    pub(super) fn announce(&self, vm_host: &dyn VmHost, parent: &str) {
        for (_, vdev) in self.on_parent(parent) {
            self.take_up(vm_host, &vdev);
        }
    }

    pub(super) fn take_up(&self, vm_host: &dyn VmHost, vdev: &Vdev) {
        // Retired tags have a vdev that is on no bus any more.
        let vm = self.vm(vdev.vm()).filter(|vm| vm.vdev(vdev.id()).is_some());
        if let Some(vm) = vm
            && !vm_host.device_event(&vm, vdev.id())
        {
            self.untold.lock().insert((vm.id(), vdev.id()));
        }
    }

    /// Whether [`System::attend`] has something to do soon.
    pub fn needs_attention(&self) -> bool {
        self.parents.iter().any(|entry| entry.parent.is_waiting()) || !self.untold.lock().is_empty()
    }

    /// Looks after what is under way on parents, and after vdevs that could not be told something. Waits for
    /// nothing; to be called every few milliseconds while [`System::needs_attention`].
    pub fn attend(&self, vm_host: &dyn VmHost) {
        let untold = core::mem::take(&mut *self.untold.lock());
        for (vm, vdev) in untold {
            if let Some(vdev) = self.vm(vm).and_then(|vm| vm.vdev(vdev)) {
                self.take_up(vm_host, &vdev);
            }
        }
        for entry in self.parents.iter().filter(|entry| entry.parent.is_waiting()) {
            let mut concerned = Vec::new();
            if entry.parent.look(&mut |pasid| concerned.push(pasid)) {
                self.announce(vm_host, entry.parent.name());
                continue;
            }
            for pasid in concerned {
                let vdev = self.tags.lock().get(&(entry.parent.requester(), pasid)).cloned();
                if let Some(vdev) = vdev {
                    self.take_up(vm_host, &vdev);
                }
            }
        }
    }

    /// Resets a parent as a whole, the way out after a halt or a queue that would not stop. Every vdev on
    /// it stops and is told; what is retired is reclaimed as far as it is then proven quiet. Meanwhile no guest
    /// reaches the device, and none again where the reset fails, until one succeeds. Not while a guest depends on
    /// it: it is for a person to decide.
    ///
    /// # Errors
    /// When there is no such parent, guests may still reach its portals, or the reset fails.
    pub fn recover_parent(&self, vm_host: &dyn VmHost, name: &str) -> Result<ReclaimReport, Refusal> {
        let entry = self.parents.iter().find(|entry| entry.parent.name() == name);
        let entry = entry
            .ok_or_else(|| Refusal::new(format!("parent {name}"), "not defined", "`parents` lists them"))?;
        // Nobody writes to the device while it is reset: on some machines that is an error of the machine.
        let concerned = self.on_parent(name);
        let return_portals = || {
            for (vm, vdev) in &concerned {
                vm_host.return_portals(vm, vdev.id());
            }
        };
        for (vm, vdev) in &concerned {
            vm_host.withhold_portals(vm, vdev.id()).map_err(|refusal| {
                return_portals();
                Refusal::new(
                    format!("parent {name}"),
                    format!("guests may still reach the portals of vdev {}: {}", vdev.id(), refusal.why),
                    refusal.remedy,
                )
            })?;
        }
        let recovered = entry.parent.recover(&ParentUnreached::confirmed_by_system(name));
        self.announce(vm_host, name);
        let report = self.reclaim(vm_host);
        recovered?;
        return_portals();
        Ok(report)
    }

    /// The vdevs of a parent, with their VMs.
    fn on_parent(&self, parent: &str) -> Vec<(Arc<Vm>, Arc<Vdev>)> {
        let all = self.vms().into_iter().flat_map(|vm| {
            let vdevs = vm.vdevs();
            vdevs.into_iter().map(move |vdev| (vm.clone(), vdev))
        });
        all.filter(|(_, vdev)| vdev.parent() == parent).collect()
    }
}
