// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs and address spaces of a VM that lives, and whose a tag is.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::base::addr::{GuestPhys, Iova, Requester};
use crate::base::drained::Drained;
use crate::base::id::{IoasId, VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::dma::address_space::AddressSpace;
use crate::dma::fault::{DmaFault, Noted};
use crate::dma::ioas::IoAddressSpace;
use crate::dma::pasid::Pasid;
use crate::memory::ram::GuestRam;
use crate::vdev::retired::Retired;
use crate::vdev::{Owner, PortalsUnmapped, Space, Vdev, VdevSpec, title};
use crate::vm::{Vm, VmHost, VmState};

use super::{EndReport, System};

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

/// The next number of a kind that is never used twice.
pub(super) fn next(counter: &AtomicU32, what: &str) -> Result<u32, Refusal> {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1))
        .map_err(|_| Refusal::new(what, "all 2^32 numbers were used", "restart the machine"))
}

impl System {
    /// Makes an empty address space and lists it, so that the VM's end destroys it.
    pub(super) fn new_space(&self, vm: &Vm, made_for_vdev: bool) -> Result<Arc<IoAddressSpace>, Refusal> {
        let iommu = self.services.iommu.ok_or_else(|| {
            Refusal::new("I/O address space", "there is no IOMMU", "use a machine with an IOMMU")
        })?;
        let id = IoasId(next(&self.next_ioas, "I/O address space")?);
        let space = Arc::new(IoAddressSpace::create(id, vm.id(), iommu, made_for_vdev)?);
        vm.life.lock().spaces.push(space.clone());
        Ok(space)
    }

    /// Makes and fills the address space that a vdev is to have for itself; `None` where it shares its VM's.
    fn space_for(
        &self,
        vm: &Vm,
        ram: &Arc<GuestRam>,
        wanted: &AddressSpace,
    ) -> Result<Option<Arc<IoAddressSpace>>, Refusal> {
        let ranges = match wanted {
            AddressSpace::Vm => return Ok(None),
            AddressSpace::Own => ram.ranges(),
            AddressSpace::DmaOnly(windows) => windows,
        };
        let space = self.new_space(vm, true)?;
        if let Err(refusal) = space.map_as_seen(ram, ranges) {
            self.leave_space(&space);
            return Err(refusal);
        }
        Ok(Some(space))
    }

    /// Destroys an address space that was made for a vdev, unless somebody else is on it. Where a tag may still reach it, it
    /// goes with its VM.
    pub(super) fn leave_space(&self, space: &IoAddressSpace) {
        if space.is_made_for_vdev() && space.destroy().is_ok() {
            let Some(vm) = self.vm(space.owner()) else { return };
            vm.life.lock().spaces.retain(|listed| listed.id() != space.id());
        }
    }

    /// Makes another, empty address space for a running VM; it lives as long as this life of the VM, or
    /// until [`System::destroy_space`].
    ///
    /// # Errors
    /// When another operation changes the VM, it does not run, or the IOMMU has no table for it.
    pub fn create_space(&self, vm: &Vm) -> Result<Arc<IoAddressSpace>, Refusal> {
        let _operation = vm.begin()?;
        self.check_alive(vm)?;
        self.new_space(vm, false).map_err(|refusal| refusal.within(format!("vm {}", vm.name())))
    }

    /// Destroys an address space that no tag can reach.
    ///
    /// # Errors
    /// When another operation changes the VM, it has no such address space, or a tag may reach it.
    pub fn destroy_space(&self, vm: &Vm, space: IoasId) -> Result<(), Refusal> {
        let _operation = vm.begin()?;
        let found = vm.life.lock().spaces.iter().find(|s| s.id() == space).cloned();
        let found = found.ok_or_else(|| self.no_space(vm, space))?;
        found.destroy().map_err(|refusal| refusal.within(format!("vm {}", vm.name())))?;
        vm.life.lock().spaces.retain(|s| s.id() != space);
        Ok(())
    }

    /// The VM that an address space belongs to.
    fn owner_of_space(&self, space: IoasId) -> Result<(Arc<Vm>, Arc<IoAddressSpace>), Refusal> {
        let found = self.vms().into_iter().find_map(|vm| {
            let found = vm.life.lock().spaces.iter().find(|listed| listed.id() == space).cloned();
            found.map(|found| (vm, found))
        });
        found.ok_or_else(|| {
            Refusal::new(
                format!("I/O address space {space}"),
                "there is no such address space",
                "`iommu` lists them",
            )
        })
    }

    /// Maps memory of its VM in an address space, also while devices use it.
    ///
    /// # Errors
    /// When there is no such address space, another operation changes the VM, it does not run, or as
    /// [`IoAddressSpace::map`].
    pub fn map_space(&self, space: IoasId, guest: GuestPhys, iova: Iova, len: u64) -> Result<(), Refusal> {
        let (vm, space) = self.owner_of_space(space)?;
        let _operation = vm.begin()?;
        self.check_alive(&vm)?;
        let ram = vm.ram().ok_or_else(|| vm.refuse("it has no memory", "start it first"))?;
        space.map(&ram, guest, iova, len, true)
    }

    /// Takes a mapping of its VM's memory out of an address space, also while devices use it: then they fault there.
    ///
    /// # Errors
    /// When there is no such address space, another operation changes the VM, or as [`IoAddressSpace::unmap`].
    pub fn unmap_space(&self, space: IoasId, iova: Iova, len: u64) -> Result<(), Refusal> {
        let (vm, space) = self.owner_of_space(space)?;
        let _operation = vm.begin()?;
        if iova >= space.limit() {
            return Err(Refusal::new(
                format!("I/O address space {}: unmap {len:#x} bytes at {iova}", space.id()),
                "it is a driver's",
                "end the vdev that has it",
            ));
        }
        space.unmap(iova, len)
    }

    /// Destroys an address space that was made for a VM beside its own.
    ///
    /// # Errors
    /// When there is no such address space, it is the VM's own, or as [`System::destroy_space`].
    pub fn drop_space(&self, space: IoasId) -> Result<(), Refusal> {
        let (vm, _) = self.owner_of_space(space)?;
        if vm.life.lock().spaces.first().is_some_and(|first| first.id() == space) {
            return Err(Refusal::new(
                format!("I/O address space {space}"),
                "it is the VM's own, on which its vdevs are created",
                "it goes when the VM stops",
            ));
        }
        self.destroy_space(&vm, space)
    }

    /// Puts an address space of its VM behind a vdev in the place of the one that it has ([`crate::dma::iommu::Iommu::replace`]).
    /// One that was made with a vdev goes when no other is on it.
    ///
    /// # Errors
    /// When there is no such address space or vdev, another operation changes the VM, they are of different VMs, the vdev
    /// is used without an IOMMU, or the IOMMU refuses or does not confirm.
    pub fn attach_space(&self, space: IoasId, vdev: VdevId) -> Result<(), Refusal> {
        let (vm, found) = self.owner_of_space(space)?;
        let _operation = vm.begin()?;
        let Some(vdev) = vm.vdev(vdev) else {
            return Err(
                vm.refuse(format!("it has no vdev {vdev}"), "attach a VM's vdevs to its own address spaces")
            );
        };
        let before = vdev.space();
        vdev.replace_space(&found)?;
        if let Some(before) = before {
            self.leave_space(&before);
        }
        Ok(())
    }

    pub(super) fn no_space(&self, vm: &Vm, space: IoasId) -> Refusal {
        vm.refuse(format!("it has no I/O address space {space}"), "`iommu` lists them")
    }

    pub(super) fn check_alive(&self, vm: &Vm) -> Result<(), Refusal> {
        if vm.state().is_alive() {
            Ok(())
        } else {
            Err(vm.refuse(format!("it is {}", vm.state().name()), "start it first"))
        }
    }

    /// Creates a vdev of a running or paused VM, on the address space that `spec` asks for, or on another one of the VM.
    ///
    /// # Errors
    /// When another operation changes the VM, it does not run, there is no such parent, type or address space, or a step
    /// fails; nothing is left of the attempt but what had to be retired.
    pub fn create_vdev(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        spec: &VdevSpec,
        space: Option<IoasId>,
    ) -> Result<VdevId, Refusal> {
        let _operation = vm.begin()?;
        self.check_alive(vm)?;
        let id = self.add_vdev(vm_host, vm, spec, space)?;
        if let (VmState::Paused, Some(vdev)) = (vm.state(), vm.vdev(id)) {
            vdev.pause();
        }
        Ok(id)
    }

    pub(super) fn add_vdev(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        spec: &VdevSpec,
        space: Option<IoasId>,
    ) -> Result<VdevId, Refusal> {
        let what = || title(vm.name(), &spec.parent, &spec.type_name);
        let entry = self.parent_of(vm.name(), spec)?;
        let (ram, found, is_vms) = {
            let life = vm.life.lock();
            let found = life.spaces.iter().find(|s| space.is_none_or(|id| s.id() == id)).cloned();
            let first = life.spaces.first().map(|first| first.id());
            (life.ram.clone(), found, space.is_none() || space == first)
        };
        let Some(ram) = &ram else {
            return Err(Refusal::new(what(), "the VM has no memory", "start it first"));
        };
        let own = match (space, entry.options.iommu) {
            (None, true) => self.space_for(vm, ram, &spec.space).map_err(|refusal| refusal.within(what()))?,
            // Nothing would confine it to what is asked for, or what it had before it moved.
            (_, false) if !is_vms || spec.space != AddressSpace::Vm => {
                let why =
                    format!("{} has iommu = \"off\", so it would reach all of the VM's memory", spec.parent);
                return Err(Refusal::new(
                    what(),
                    why,
                    "use a parent with an IOMMU, or the VM's address space",
                ));
            }
            _ => None,
        };
        let found = own.clone().or(found);
        let place = match (entry.options.iommu, &found) {
            (true, Some(found)) => Space::Translated(found),
            (true, None) => {
                return Err(match space {
                    Some(space) => self.no_space(vm, space),
                    None => Refusal::new(what(), "the VM has no I/O address space", "restart the VM"),
                });
            }
            (false, _) => Space::Untranslated,
        };
        let taints = entry.options.taints().map(str::to_string).collect();
        let owner = Owner { vm: vm.id(), name: vm.name(), quota: vm.quota(), ram };
        let id = VdevId(next(&self.next_vdev, "vdev")?);
        let vdev = match Vdev::create(&self.services, id, owner, entry.parent, spec, place, taints) {
            Ok(vdev) => Arc::new(vdev),
            Err(failed) => {
                for retirement in failed.retired {
                    self.retire(retirement, &mut EndReport::default());
                }
                if let Some(space) = &own {
                    self.leave_space(space);
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
                let ended = vm_host
                    .unplug(vm, id)
                    .and_then(|unmapped| self.end_vdev(&vdev, unmapped, &mut EndReport::default()));
                if let Err(stuck) = ended {
                    log::error!("{stuck}");
                    // Its end is tried again with the VM's.
                    vm.life.lock().vdevs.push(vdev);
                }
                Err(refusal.within(what()))
            }
        }
    }

    pub(super) fn no_vdev(&self, vm: &Vm, vdev: VdevId) -> Refusal {
        vm.refuse(format!("it has no vdev {vdev}"), "`vdevs` lists them")
    }

    /// Ends a vdev of a running or paused VM, whatever its guest does with it.
    ///
    /// # Errors
    /// When another operation changes the VM, it has no such vdev, or a vCPU may still reach its portals.
    pub fn destroy_vdev(&self, vm_host: &dyn VmHost, vm: &Vm, vdev: VdevId) -> Result<EndReport, Refusal> {
        let _operation = vm.begin()?;
        let found = vm.vdev(vdev).ok_or_else(|| self.no_vdev(vm, vdev))?;
        let mut report = EndReport::default();
        let unmapped = vm_host.unplug(vm, vdev)?;
        self.end_vdev(&found, unmapped, &mut report)?;
        vm.life.lock().vdevs.retain(|listed| listed.id() != vdev);
        Ok(report)
    }

    /// Ends a vdev, which its VM lists until this is done.
    pub(super) fn end_vdev(
        &self,
        vdev: &Vdev,
        unmapped: PortalsUnmapped,
        report: &mut EndReport,
    ) -> Result<(), Refusal> {
        let retired = vdev.end(&self.services, unmapped)?;
        let keeps_tag = retired.iter().any(|r| matches!(r.what, Retired::Attachment { .. }));
        if let (false, Some(pasid)) = (keeps_tag, vdev.pasid()) {
            self.forget_tag((vdev.requester(), pasid), vdev.id());
        }
        for retirement in retired {
            self.retire(retirement, report);
        }
        if let Some(space) = vdev.space() {
            self.leave_space(&space);
        }
        Ok(())
    }

    /// Takes a tag off the list that its vdev has given back. Somebody else may have the PASID by now; that
    /// entry is not ours to remove.
    pub(super) fn forget_tag(&self, tag: (Requester, Pasid), vdev: VdevId) {
        let mut tags = self.tags.lock();
        if tags.get(&tag).is_some_and(|listed| listed.id() == vdev) {
            tags.remove(&tag);
        }
    }

    /// Whom a tag belongs to, or belonged to when it was retired.
    pub fn owner_of(&self, requester: Requester, pasid: Pasid) -> Option<VdevName> {
        let vdev = self.tags.lock().get(&(requester, pasid)).cloned()?;
        self.name_of(&vdev)
    }

    pub(super) fn name_of(&self, vdev: &Vdev) -> Option<VdevName> {
        Some(VdevName {
            vm: vdev.vm(),
            vm_name: self.vm(vdev.vm())?.name().to_string(),
            vdev: vdev.id(),
            parent: vdev.parent().to_string(),
            type_name: vdev.type_name().to_string(),
        })
    }

    /// Reads and clears what the IOMMU recorded ([`Iommu::drain_faults`](crate::dma::iommu::Iommu::drain_faults)).
    pub fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        self.services.iommu.map_or(Drained::Empty, |iommu| iommu.drain_faults(sink))
    }

    /// Counts a DMA fault on the vdev and the VM that caused it, and names them. Not to be called from an
    /// interrupt handler.
    pub fn record_fault(&self, fault: &DmaFault) -> Option<VdevName> {
        let vdev = self.tags.lock().get(&(fault.requester, fault.pasid?)).cloned()?;
        vdev.count_fault();
        self.vm(vdev.vm())?.stats().count_fault();
        self.name_of(&vdev)
    }
}
