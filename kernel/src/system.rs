// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole: parents, IOMMU, PASIDs, memory and VMs, and the operations that need several of them.
//!
//! **Principle.** Everything a monitor command or a guest's end comes down to is one method here, with
//! the order of the design written out once. Nothing here knows how a processor or a device does it.
//!
//! **Locks.** Each protects one list, is held for a few steps, and never while a device, the IOMMU or the
//! architecture is waited for; the exception is one I/O address space's own lock, which only operations
//! on that address space take. A vCPU's exit path takes none of them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::{Mutex, RwLock};

use crate::addr::Requester;
use crate::fault::DmaFault;
use crate::frames::{Frames, GuestFrames, GuestGone};
use crate::host::Host;
use crate::id::{IoasId, VdevId, VmId};
use crate::info::{
    IommuInfo, MemoryInfo, ParentInfo, PasidInfo, RetiredInfo, SystemInfo, TypeInfo, VdevInfo, VmInfo,
};
use crate::ioas::IoAddressSpace;
use crate::iommu::Iommu;
use crate::irq::{Route, RouteTable};
use crate::parent::{Parent, ParentEvent};
use crate::pasid::{Pasid, PasidSpace};
use crate::ram::{GuestRam, check_layout};
use crate::refusal::Refusal;
use crate::retired::{Retired, Retirement};
use crate::vdev::interrupt::Interrupt;
use crate::vdev::{Owner, PortalsUnmapped, Services, Space, Vdev, VdevSpec, details, title};
use crate::vm::{Operation, Vm, VmEnd, VmHost, VmSpec, VmState};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// What the system is made of.
pub struct SystemParts {
    /// The machine.
    pub host: &'static dyn Host,
    /// The IOMMU, after bring-up.
    pub iommu: Option<&'static dyn Iommu>,
    /// Physical memory.
    pub frames: &'static Frames,
    /// Hardware identifiers of the processors that take interrupts.
    pub cpus: Vec<u32>,
    /// Largest PASID to use; `None` for all that the IOMMU understands.
    pub last_pasid: Option<Pasid>,
}

/// How a parent is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParentOptions {
    /// Whether an IOMMU confines it. False: trapped types only, and TAINTED.
    pub iommu: bool,
    /// Whether portals are mapped although the device is known to be unsafe for that. TAINTED.
    pub unsafe_portals: bool,
}

/// A parent in use.
struct ParentEntry {
    parent: &'static dyn Parent,
    options: ParentOptions,
    unusable: Option<Refusal>,
    events: AtomicU64,
    /// Kept connected for good.
    _event_interrupt: Option<Interrupt>,
}

/// Something that belongs to a vdev, named for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdevName {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// The vdev.
    pub vdev: VdevId,
    /// Name of its parent.
    pub parent: String,
    /// Name of its type.
    pub type_name: String,
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

/// What the end of something has cost. Empty where everything was confirmed and given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndReport {
    /// What is not used again before its parent is reset or the machine restarts.
    pub retired: Vec<RetiredInfo>,
}

/// What became of what was retired.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReclaimReport {
    /// In use again, or free to be.
    pub reclaimed: Vec<RetiredInfo>,
    /// Still not proven quiet.
    pub left: Vec<RetiredInfo>,
}

/// A request of a guest that was served.
#[derive(Debug)]
pub struct Served {
    /// The VM.
    pub vm: VmId,
    /// What was asked for.
    pub request: VmEnd,
    /// Whether the VM was to start again.
    pub restart: bool,
    /// What came of it.
    pub result: Result<EndReport, Refusal>,
}

/// The hypervisor's state.
pub struct System {
    services: Services,
    frames: &'static Frames,
    parents: Vec<ParentEntry>,
    vms: RwLock<Vec<Arc<Vm>>>,
    /// Whom a tag belongs to; retired ones stay, so that their faults have a name.
    tags: Mutex<BTreeMap<(Requester, Pasid), Arc<Vdev>>>,
    retired: Mutex<Vec<Retirement>>,
    next_vdev: AtomicU32,
    next_ioas: AtomicU32,
}

/// The next number of a kind that is never used twice.
fn next(counter: &AtomicU32, what: &str) -> Result<u32, Refusal> {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1))
        .map_err(|_| Refusal::new(what, "all 2^32 numbers were used", "restart the machine"))
}

impl System {
    /// A system without parents and VMs. Refused where the IOMMU understands no PASIDs.
    pub fn new(parts: SystemParts) -> Result<Self, Refusal> {
        let bits = parts.iommu.map_or(Pasid::BITS, |iommu| {
            u32::from(iommu.capabilities().pasid_bits).min(Pasid::BITS)
        });
        let widest = Pasid::new(((1u64 << bits) - 1) as u32);
        let (Some(first), Some(widest)) = (Pasid::new(1), widest) else {
            return Err(Refusal::new("PASID namespace", "no such width", ""));
        };
        let last = parts.last_pasid.map_or(widest, |last| last.min(widest));
        Ok(Self {
            services: Services {
                host: parts.host,
                iommu: parts.iommu,
                pasids: Mutex::new(PasidSpace::new(first, last)?),
                routes: RouteTable::new(parts.cpus),
            },
            frames: parts.frames,
            parents: Vec::new(),
            vms: RwLock::new(Vec::new()),
            tags: Mutex::new(BTreeMap::new()),
            retired: Mutex::new(Vec::new()),
            next_vdev: AtomicU32::new(1),
            next_ioas: AtomicU32::new(1),
        })
    }

    /// Takes a parent into use: claims it at the IOMMU and connects its event interrupt.
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
            if event_interrupt {
                "events by interrupt"
            } else {
                "no event interrupt"
            }
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

    fn take_parent(
        &self,
        parent: &'static dyn Parent,
        options: ParentOptions,
    ) -> Result<Option<Interrupt>, Refusal> {
        let what = || format!("parent {}", parent.name());
        if self
            .parents
            .iter()
            .any(|other| other.parent.name() == parent.name())
        {
            return Err(Refusal::new(
                what(),
                "defined twice",
                "give each parent its own name",
            ));
        }
        let clash = self
            .parents
            .iter()
            .find(|other| other.parent.requester() == parent.requester());
        if let Some(other) = clash {
            return Err(Refusal::new(
                what(),
                format!("{} is parent {} already", parent.requester(), other.parent.name()),
                "define each device once",
            ));
        }
        if options.iommu {
            let Some(iommu) = self.services.iommu else {
                return Err(Refusal::new(
                    what(),
                    "no IOMMU confines its DMA",
                    "use a machine with an IOMMU and turn it on in the firmware; or accept the risk with iommu \
                     = \"off\", for trapped types only",
                ));
            };
            if !iommu.capabilities().interrupt_remapping {
                return Err(Refusal::new(
                    what(),
                    format!(
                        "{} does not remap interrupts, so a device could raise any",
                        iommu.name()
                    ),
                    "turn interrupt remapping on in the firmware",
                ));
            }
            iommu
                .claim(parent.requester())
                .map_err(|refusal| refusal.within(what()))?;
        }
        let Some(entry) = parent.event_interrupt() else {
            return Ok(None);
        };
        let route = u16::try_from(self.parents.len()).map(Route::ParentEvent);
        let Ok(route) = route else {
            return Err(Refusal::new(what(), "too many parents", "define fewer"));
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

    /// The interrupt routes: what interrupt handlers look up.
    pub fn routes(&self) -> &RouteTable {
        &self.services.routes
    }

    /// Defines a VM. It is started by [`System::start_vm`].
    pub fn define_vm(&self, spec: VmSpec) -> Result<Arc<Vm>, Refusal> {
        let what = format!("vm {}", spec.name);
        check_layout(&spec.ram).map_err(|refusal| refusal.within(&what))?;
        let mut vms = self.vms.write();
        if vms.iter().any(|vm| vm.name() == spec.name) {
            return Err(Refusal::new(what, "defined twice", "give each VM its own name"));
        }
        let id = u16::try_from(vms.len())
            .map_err(|_| Refusal::new(what, "too many VMs", "define at most 65536"))?;
        let vm = Arc::new(Vm::new(VmId(id), spec));
        vms.push(vm.clone());
        Ok(vm)
    }

    /// All VMs, in the order of definition.
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        self.vms.read().clone()
    }

    /// The VM of that number.
    pub fn vm(&self, id: VmId) -> Option<Arc<Vm>> {
        self.vms.read().get(usize::from(id.0)).cloned()
    }

    /// The VM of that name.
    pub fn vm_named(&self, name: &str) -> Option<Arc<Vm>> {
        self.vms.read().iter().find(|vm| vm.name() == name).cloned()
    }

    /// Starts a VM: memory, address space, machine, vdevs, vCPUs. All or nothing.
    pub fn start_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        self.start(vm_host, vm, &operation)
    }

    fn start(&self, vm_host: &dyn VmHost, vm: &Vm, operation: &Operation<'_>) -> Result<(), Refusal> {
        vm.become_state(operation, VmState::Starting, None)?;
        vm.clear_request();
        match self.bring_up(vm_host, vm) {
            Ok(()) => {
                vm.stats().count_start();
                vm.become_state(operation, VmState::Running, None)?;
                vm_host.run(vm).or_else(|refusal| {
                    self.take_down(vm_host, vm, operation, &VmEnd::Stopped(refusal.to_string()))?;
                    Err(refusal)
                })
            }
            Err(refusal) => {
                self.take_down(vm_host, vm, operation, &VmEnd::Stopped(refusal.to_string()))?;
                Err(refusal)
            }
        }
    }

    fn bring_up(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let within = |refusal: Refusal| refusal.within(format!("vm {}", vm.name()));
        let bytes = check_layout(&vm.spec().ram).map_err(within)?;
        let frames = self.frames.allocate_guest(bytes).map_err(within)?;
        let frames = frames.scrub(&mut |start, len| vm_host.scrub(start, len));
        let ram = match GuestRam::new(vm.id(), frames, &vm.spec().ram) {
            Ok(ram) => Arc::new(ram),
            Err((frames, refusal)) => {
                self.frames.give_back(frames);
                return Err(within(refusal));
            }
        };
        vm.life.lock().ram = Some(ram.clone());
        if self.services.iommu.is_some() {
            let space = self.new_space(vm).map_err(within)?;
            space.map_all(&ram).map_err(within)?;
        }
        vm_host.build(vm, &ram).map_err(within)?;
        drop(ram);
        for spec in &vm.spec().vdevs {
            self.add_vdev(vm_host, vm, spec, None)?;
        }
        Ok(())
    }

    /// Makes an empty address space and lists it, so that the VM's end destroys it.
    fn new_space(&self, vm: &Vm) -> Result<Arc<IoAddressSpace>, Refusal> {
        let iommu = self.services.iommu.ok_or_else(|| {
            Refusal::new(
                "I/O address space",
                "there is no IOMMU",
                "use a machine with an IOMMU",
            )
        })?;
        let id = IoasId(next(&self.next_ioas, "I/O address space")?);
        let space = Arc::new(IoAddressSpace::create(id, vm.id(), iommu)?);
        vm.life.lock().spaces.push(space.clone());
        Ok(space)
    }

    /// Ends a VM's life: vCPUs, vdevs, address spaces and memory, in that order. The definition stays.
    pub fn end_vm(&self, vm_host: &dyn VmHost, vm: &Vm, end: &VmEnd) -> Result<EndReport, Refusal> {
        let operation = vm.begin()?;
        self.take_down(vm_host, vm, &operation, end)
    }

    fn take_down(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        operation: &Operation<'_>,
        end: &VmEnd,
    ) -> Result<EndReport, Refusal> {
        vm.become_state(operation, VmState::Stopping, Some(end.reason()))?;
        let mut report = EndReport::default();
        let stopped = vm_host.stop(vm);
        loop {
            let last = vm.life.lock().vdevs.pop();
            let Some(vdev) = last else { break };
            let unmapped = vm_host.unplug(vm, vdev.id());
            self.end_vdev(vdev, unmapped, &mut report);
        }
        let (ram, spaces) = {
            let mut life = vm.life.lock();
            (life.ram.take(), core::mem::take(&mut life.spaces))
        };
        let mut why = "a device may still reach it".to_string();
        for space in spaces {
            if let Err(refusal) = space.destroy() {
                why = refusal.to_string();
                self.keep(vm, why.clone(), Retired::Space(space), &mut report);
            }
        }
        let gone = vm_host.tear_down(vm, stopped);
        match ram.map(GuestRam::into_frames) {
            None => {}
            Some(Ok(frames)) => self.free(vm_host, frames, gone),
            Some(Err(ram)) => self.keep(vm, why, Retired::Memory { ram, gone }, &mut report),
        }
        vm.clear_request();
        vm.become_state(operation, end.state(), Some(end.reason()))?;
        Ok(report)
    }

    fn keep(&self, vm: &Vm, why: String, what: Retired, report: &mut EndReport) {
        let vm = vm.name().to_string();
        self.retire(Retirement { vm, why, what }, report);
    }

    fn retire(&self, retirement: Retirement, report: &mut EndReport) {
        let info = retirement.info();
        log::error!(
            "vm {}: {} {} is not used again: {}",
            info.vm,
            info.what,
            info.value,
            info.why
        );
        report.retired.push(info);
        self.retired.lock().push(retirement);
    }

    /// Ends a VM and starts it again, with fresh memory.
    pub fn restart_vm(&self, vm_host: &dyn VmHost, vm: &Vm, end: &VmEnd) -> Result<EndReport, Refusal> {
        let operation = vm.begin()?;
        let report = self.take_down(vm_host, vm, &operation, end)?;
        self.start(vm_host, vm, &operation)?;
        Ok(report)
    }

    /// Makes a running VM stand still. Its vdevs go on with what was submitted.
    pub fn pause_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        vm.become_state(&operation, VmState::Paused, None)?;
        vm_host.pause(vm);
        Ok(())
    }

    /// Lets a paused VM go on.
    pub fn resume_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        if vm.state() != VmState::Paused {
            return Err(vm.refuse(
                format!("it is {}", vm.state().name()),
                "only a paused VM can be resumed",
            ));
        }
        vm.become_state(&operation, VmState::Running, None)?;
        vm_host.run(vm).or_else(|refusal| {
            vm.become_state(&operation, VmState::Paused, None)?;
            Err(refusal)
        })
    }

    /// Carries out what guests asked for by [`Vm::request`]. To be called from the main loop.
    pub fn serve_requests(&self, vm_host: &dyn VmHost) -> Vec<Served> {
        let mut served = Vec::new();
        for vm in self.vms() {
            let Some(request) = vm.requested() else { continue };
            // Where another operation is under way, the request stays for the next time.
            let Ok(operation) = vm.begin() else { continue };
            if !vm.state().is_alive() {
                vm.clear_request();
                continue;
            }
            let restart = request == VmEnd::Reset && vm.spec().restart_on_reset;
            let result =
                self.take_down(vm_host, &vm, &operation, &request)
                    .and_then(|report| match restart {
                        true => self.start(vm_host, &vm, &operation).map(|()| report),
                        false => Ok(report),
                    });
            served.push(Served {
                vm: vm.id(),
                request,
                restart,
                result,
            });
        }
        served
    }

    /// Makes another, empty address space for a running VM; it lives as long as this life of the VM, or
    /// until [`System::destroy_space`].
    pub fn create_space(&self, vm: &Vm) -> Result<Arc<IoAddressSpace>, Refusal> {
        let _operation = vm.begin()?;
        self.check_alive(vm)?;
        self.new_space(vm)
            .map_err(|refusal| refusal.within(format!("vm {}", vm.name())))
    }

    /// Destroys an address space that no tag can reach.
    pub fn destroy_space(&self, vm: &Vm, space: IoasId) -> Result<(), Refusal> {
        let _operation = vm.begin()?;
        let found = vm.life.lock().spaces.iter().find(|s| s.id() == space).cloned();
        let found = found.ok_or_else(|| self.no_space(vm, space))?;
        found
            .destroy()
            .map_err(|refusal| refusal.within(format!("vm {}", vm.name())))?;
        vm.life.lock().spaces.retain(|s| s.id() != space);
        Ok(())
    }

    fn no_space(&self, vm: &Vm, space: IoasId) -> Refusal {
        vm.refuse(
            format!("it has no I/O address space {space}"),
            "`iommu` lists them",
        )
    }

    fn check_alive(&self, vm: &Vm) -> Result<(), Refusal> {
        if vm.state().is_alive() {
            Ok(())
        } else {
            Err(vm.refuse(format!("it is {}", vm.state().name()), "start it first"))
        }
    }

    /// Creates a vdev of a running or paused VM, on its default address space or another one.
    pub fn create_vdev(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        spec: &VdevSpec,
        space: Option<IoasId>,
    ) -> Result<VdevId, Refusal> {
        let _operation = vm.begin()?;
        self.check_alive(vm)?;
        self.add_vdev(vm_host, vm, spec, space)
    }

    fn add_vdev(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        spec: &VdevSpec,
        space: Option<IoasId>,
    ) -> Result<VdevId, Refusal> {
        let what = || title(vm.name(), &spec.parent, &spec.type_name);
        let Some(entry) = self.parents.iter().find(|e| e.parent.name() == spec.parent) else {
            let names: Vec<&str> = self.parents().collect();
            let remedy = if names.is_empty() {
                "define one with [parent.NAME]".to_string()
            } else {
                format!("use one of: {}", names.join(", "))
            };
            return Err(Refusal::new(what(), format!("no parent {}", spec.parent), remedy));
        };
        if let Some(refusal) = &entry.unusable {
            return Err(refusal.clone().within(what()));
        }
        let (ram, found) = {
            let life = vm.life.lock();
            let found = life
                .spaces
                .iter()
                .find(|s| space.is_none_or(|id| s.id() == id))
                .cloned();
            (life.ram.clone(), found)
        };
        let place = match (entry.options.iommu, &found, &ram) {
            (true, Some(found), _) => Space::Translated(found),
            (true, None, _) => {
                return Err(match space {
                    Some(space) => self.no_space(vm, space),
                    None => Refusal::new(what(), "the VM has no I/O address space", "restart the VM"),
                });
            }
            (false, _, Some(ram)) => Space::Untranslated(ram),
            (false, _, None) => return Err(Refusal::new(what(), "the VM has no memory", "start it first")),
        };
        let owner = Owner {
            vm: vm.id(),
            name: vm.name(),
            quota: vm.quota(),
        };
        let id = VdevId(next(&self.next_vdev, "vdev")?);
        let vdev = match Vdev::create(&self.services, id, owner, entry.parent, spec, place) {
            Ok(vdev) => Arc::new(vdev),
            Err(failed) => {
                for retirement in failed.retired {
                    self.retire(retirement, &mut EndReport::default());
                }
                return Err(failed.refusal);
            }
        };
        if let Some(pasid) = vdev.pasid() {
            self.tags.lock().insert((vdev.requester(), pasid), vdev.clone());
        }
        match vm_host.plug(vm, &vdev) {
            Ok(()) => {
                vm.life.lock().vdevs.push(vdev);
                Ok(id)
            }
            Err(refusal) => {
                let unmapped = vm_host.unplug(vm, id);
                self.end_vdev(vdev, unmapped, &mut EndReport::default());
                Err(refusal.within(what()))
            }
        }
    }

    /// Ends a vdev of a running or paused VM.
    pub fn destroy_vdev(&self, vm_host: &dyn VmHost, vm: &Vm, vdev: VdevId) -> Result<EndReport, Refusal> {
        let _operation = vm.begin()?;
        let found = {
            let mut life = vm.life.lock();
            let index = life.vdevs.iter().position(|v| v.id() == vdev);
            index.map(|index| life.vdevs.remove(index))
        };
        let Some(found) = found else {
            return Err(vm.refuse(format!("it has no vdev {vdev}"), "`vdevs` lists them"));
        };
        let mut report = EndReport::default();
        self.end_vdev(found, vm_host.unplug(vm, vdev), &mut report);
        Ok(report)
    }

    fn end_vdev(&self, vdev: Arc<Vdev>, unmapped: PortalsUnmapped, report: &mut EndReport) {
        let retired = match vdev.end(&self.services, unmapped) {
            Ok(retired) => retired,
            Err(refusal) => Vec::from([Retirement {
                vm: vdev.vm_name().to_string(),
                why: refusal.to_string(),
                what: Retired::Vdev(vdev.clone()),
            }]),
        };
        let keeps_tag = retired
            .iter()
            .any(|r| matches!(r.what, Retired::Attachment { .. } | Retired::Vdev(_)));
        if let (false, Some(pasid)) = (keeps_tag, vdev.pasid()) {
            self.forget_tag((vdev.requester(), pasid), vdev.id());
        }
        for retirement in retired {
            self.retire(retirement, report);
        }
    }

    /// Takes a tag off the list that its vdev has given back. Somebody else may have the PASID by now; that
    /// entry is not ours to remove.
    fn forget_tag(&self, tag: (Requester, Pasid), vdev: VdevId) {
        let mut tags = self.tags.lock();
        if tags.get(&tag).is_some_and(|listed| listed.id() == vdev) {
            tags.remove(&tag);
        }
    }

    /// Resets a parent as a whole, the way out after a halt or a queue that would not stop. Every vdev on
    /// it stops and is told; what is retired is reclaimed as far as it is then proven quiet. Not while a
    /// guest depends on it: it is for a person to decide.
    pub fn recover_parent(&self, vm_host: &dyn VmHost, name: &str) -> Result<ReclaimReport, Refusal> {
        let entry = self.parents.iter().find(|entry| entry.parent.name() == name);
        let entry = entry
            .ok_or_else(|| Refusal::new(format!("parent {name}"), "not defined", "`parents` lists them"))?;
        let recovered = entry.parent.recover();
        self.announce(vm_host, name);
        let report = self.reclaim(vm_host);
        recovered.map(|()| report)
    }

    /// Asks for each retired thing once more whether it is quiet, and takes back what is.
    pub fn reclaim(&self, vm_host: &dyn VmHost) -> ReclaimReport {
        let mut report = ReclaimReport::default();
        let mut left = Vec::new();
        let mut retired = core::mem::take(&mut *self.retired.lock());
        // What reaches something before what is reached.
        retired.sort_by_key(|retirement| match retirement.what {
            Retired::Space(_) => 1,
            Retired::Memory { .. } => 2,
            _ => 0,
        });
        for retirement in retired {
            let info = retirement.info();
            match self.reclaim_one(vm_host, retirement) {
                None => report.reclaimed.push(info),
                Some(remains) => left.push(remains),
            }
        }
        report.left = left.iter().map(Retirement::info).collect();
        self.retired.lock().extend(left);
        report
    }

    /// What remains of it.
    fn reclaim_one(&self, vm_host: &dyn VmHost, retirement: Retirement) -> Option<Retirement> {
        let Retirement { vm, why, what } = retirement;
        let still = |why: String, what: Retired| Some(Retirement { vm, why, what });
        match what {
            Retired::Attachment {
                parent,
                attachment,
                mut slice,
            } => {
                let stopped = slice.as_mut().map(|slice| slice.0.quiesce()).transpose();
                let (stopped, failed) = match stopped {
                    Ok(stopped) => (stopped, None),
                    Err(failed) => (None, Some(failed.why)),
                };
                if stopped.is_some() {
                    // It can be sliced again, whatever the IOMMU says.
                    slice = None;
                }
                let (tag, vdev) = ((attachment.requester, attachment.pasid), attachment.vdev);
                match attachment.end(stopped) {
                    Ok(quiet) => {
                        self.services.pasids.lock().give_back(quiet);
                        self.forget_tag(tag, vdev);
                        None
                    }
                    Err(attachment) => still(
                        failed.unwrap_or_else(|| attachment.why.clone()),
                        Retired::Attachment {
                            parent,
                            attachment,
                            slice,
                        },
                    ),
                }
            }
            Retired::Untranslated {
                parent,
                vdev,
                mut slice,
                ram,
            } => match slice.as_mut().map(|slice| slice.0.quiesce()) {
                Some(Ok(_)) => None,
                other => {
                    let failed = other.and_then(Result::err).map(|failed| failed.why);
                    let what = Retired::Untranslated {
                        parent,
                        vdev,
                        slice,
                        ram,
                    };
                    still(failed.unwrap_or(why), what)
                }
            },
            Retired::Vector(lost) => match lost.end(&self.services) {
                Ok(()) => None,
                Err((lost, refusal)) => still(refusal.to_string(), Retired::Vector(lost)),
            },
            Retired::Space(space) => match space.destroy() {
                Ok(()) => None,
                Err(refusal) => still(refusal.to_string(), Retired::Space(space)),
            },
            Retired::Memory { ram, gone } => match ram.into_frames() {
                Ok(frames) => {
                    self.free(vm_host, frames, gone);
                    None
                }
                Err(ram) => still(why, Retired::Memory { ram, gone }),
            },
            Retired::Vdev(_) => still(why, what),
        }
    }

    /// Scrubs a guest's memory and makes it free.
    fn free(&self, vm_host: &dyn VmHost, frames: GuestFrames, gone: GuestGone) {
        let frames = frames
            .end(gone)
            .scrub(&mut |start, len| vm_host.scrub(start, len));
        self.frames.give_back(frames);
    }

    /// Whom a tag belongs to, or belonged to when it was retired.
    pub fn owner_of(&self, requester: Requester, pasid: Pasid) -> Option<VdevName> {
        let vdev = self.tags.lock().get(&(requester, pasid)).cloned()?;
        self.name_of(&vdev)
    }

    fn name_of(&self, vdev: &Vdev) -> Option<VdevName> {
        Some(VdevName {
            vm: vdev.vm(),
            vm_name: self.vm(vdev.vm())?.name().to_string(),
            vdev: vdev.id(),
            parent: vdev.parent().to_string(),
            type_name: vdev.type_name().to_string(),
        })
    }

    /// Counts a DMA fault on the vdev and the VM that caused it, and names them. Not to be called from an
    /// interrupt handler.
    pub fn record_fault(&self, fault: &DmaFault) -> Option<VdevName> {
        let vdev = self.tags.lock().get(&(fault.requester, fault.pasid?)).cloned()?;
        vdev.count_fault();
        self.vm(vdev.vm())?.stats().count_fault();
        self.name_of(&vdev)
    }

    /// Handles the event interrupt of a parent ([`Route::ParentEvent`]): reads the events, names the vdev
    /// each belongs to, and has the vdevs that it concerns take them up: that one, or all of the parent
    /// after a halt. Not to be called from an interrupt handler.
    pub fn parent_event(&self, vm_host: &dyn VmHost, parent: u16, sink: &mut dyn FnMut(ParentReport)) {
        let Some(entry) = self.parents.get(usize::from(parent)) else {
            return;
        };
        let mut halted = false;
        let mut concerned: Vec<Arc<Vdev>> = Vec::new();
        entry.parent.interrupt(&mut |event| {
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
    }

    /// Has every vdev of a parent take up what happened to it.
    fn announce(&self, vm_host: &dyn VmHost, parent: &str) {
        let vdevs = self.vms().into_iter().flat_map(|vm| vm.vdevs());
        for vdev in vdevs.filter(|vdev| vdev.parent() == parent) {
            self.take_up(vm_host, &vdev);
        }
    }

    fn take_up(&self, vm_host: &dyn VmHost, vdev: &Vdev) {
        // Retired tags have a vdev that is on no bus any more.
        let vm = self.vm(vdev.vm()).filter(|vm| vm.vdev(vdev.id()).is_some());
        if let Some(vm) = vm {
            vm_host.device_event(&vm, vdev.id());
        }
    }

    /// What was retired.
    #[cfg(test)]
    pub(crate) fn retired(&self) -> spin::MutexGuard<'_, Vec<Retirement>> {
        self.retired.lock()
    }

    /// Why isolation is weaker than it should be; empty is what one wants.
    pub fn taints(&self) -> Vec<String> {
        let mut taints = Vec::new();
        for entry in &self.parents {
            let name = entry.parent.name();
            if !entry.options.iommu {
                taints.push(format!("{name}: iommu = \"off\", no IOMMU confines it"));
            }
            if entry.options.unsafe_portals {
                taints.push(format!(
                    "{name}: allow_unsafe_portals = true, its portals may not isolate guests"
                ));
            }
        }
        taints
    }

    /// A snapshot of the whole.
    pub fn info(&self) -> SystemInfo {
        let counts = self.frames.counts();
        let (retired, held) = {
            let retired = self.retired.lock();
            let infos: Vec<RetiredInfo> = retired.iter().map(Retirement::info).collect();
            let held = retired.iter().map(|r| match &r.what {
                Retired::Memory { ram, .. } => ram.bytes(),
                _ => 0,
            });
            (infos, held.sum())
        };
        let vms = self.vms();
        SystemInfo {
            uptime_ns: self.services.host.now_ns(),
            taints: self.taints(),
            iommu: self.iommu_info(),
            memory: MemoryInfo {
                total: counts.total,
                free: counts.free,
                guests: counts.guests.saturating_sub(held),
                tables: counts.tables,
                held,
            },
            pasids: self.services.pasids.lock().info(),
            vms: vms.len(),
            vdevs: vms.iter().map(|vm| vm.life.lock().vdevs.len()).sum(),
            stray_interrupts: self.services.routes.stray(),
            retired,
        }
    }

    /// A snapshot of the IOMMU and its address spaces.
    pub fn iommu_info(&self) -> Option<IommuInfo> {
        let iommu = self.services.iommu?;
        let capabilities = iommu.capabilities();
        let mut spaces = Vec::new();
        for vm in self.vms() {
            let own = vm.life.lock().spaces.clone();
            spaces.extend(own.iter().map(|space| space.info(vm.name())));
        }
        for retirement in self.retired.lock().iter() {
            if let Retired::Space(space) = &retirement.what {
                spaces.push(space.info(&retirement.vm));
            }
        }
        Some(IommuInfo {
            name: iommu.name().to_string(),
            pasid_bits: capabilities.pasid_bits,
            address_bits: capabilities.address_bits,
            largest_page: capabilities.largest_page,
            interrupt_remapping: capabilities.interrupt_remapping,
            commands_issued: iommu.commands_issued(),
            spaces,
        })
    }

    /// Snapshots of all VMs.
    pub fn vm_infos(&self) -> Vec<VmInfo> {
        self.vms().iter().map(|vm| self.vm_info(vm)).collect()
    }

    /// A snapshot of one VM.
    pub fn vm_info(&self, vm: &Vm) -> VmInfo {
        vm.info(&self.services.routes)
    }

    /// Snapshots of all vdevs.
    pub fn vdev_infos(&self) -> Vec<VdevInfo> {
        let vdevs = self.vms().into_iter().flat_map(|vm| vm.vdevs());
        vdevs.map(|vdev| vdev.info(&self.services.routes)).collect()
    }

    /// Snapshots of all PASIDs in use, then of the retired ones.
    pub fn pasid_infos(&self) -> Vec<PasidInfo> {
        let attached = self.vdev_infos().into_iter().filter_map(|vdev| {
            Some(PasidInfo {
                pasid: vdev.pasid?,
                state: "attached",
                vm: vdev.vm,
                parent: vdev.parent,
                vdev: vdev.id,
                ioas: vdev.ioas,
                reason: None,
            })
        });
        let mut infos: Vec<PasidInfo> = attached.collect();
        infos.sort_by_key(|info| info.pasid);
        let retired = self.retired.lock();
        infos.extend(retired.iter().filter_map(|retirement| match &retirement.what {
            Retired::Attachment {
                parent, attachment, ..
            } => Some(PasidInfo {
                pasid: attachment.pasid.value(),
                state: "retired",
                vm: retirement.vm.clone(),
                parent: parent.clone(),
                vdev: attachment.vdev.0,
                ioas: Some(attachment.ioas.id().0),
                reason: Some(retirement.why.clone()),
            }),
            _ => None,
        }));
        infos
    }

    /// Snapshots of all parents.
    pub fn parent_infos(&self) -> Vec<ParentInfo> {
        let type_info = |parent: &dyn Parent| {
            let types = parent.types().iter();
            types
                .map(|t| TypeInfo {
                    name: t.name.to_string(),
                    description: t.description.to_string(),
                    direct_portal: t.direct_portal,
                    instances: t.instances,
                    available: parent.available(t.name),
                })
                .collect()
        };
        self.parents
            .iter()
            .map(|entry| ParentInfo {
                name: entry.parent.name().to_string(),
                requester: entry.parent.requester().to_string(),
                iommu: entry.options.iommu,
                unusable: entry.unusable.as_ref().map(Refusal::to_string),
                types: type_info(entry.parent),
                events: entry.events.load(Ordering::Relaxed),
                details: details(entry.parent.describe()),
            })
            .collect()
    }
}
