// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor's commands come down to.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use log::LevelFilter;

use crate::base::addr::{GuestPhys, Iova};
use crate::base::id::{IoasId, VdevId};
use crate::base::refusal::Refusal;
use crate::console::TypedInfo;
use crate::dma::address_space::AddressSpace;
use crate::dma::fault_log::FaultsInfo;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::{
    DefinitionInfo, ParentInfo, PasidInfo, PcpuInfo, RetiredInfo, SystemInfo, VectorInfo, VmInfo,
};
use crate::monitor::{HostPower, MonitorHost, NewVdev, VmControl};
use crate::system::Dismissal;
use crate::vdev::VdevSpec;
use crate::vm::{Vm, VmEnd, VmHost};

use super::Housekeeping;

/// The hypervisor as the monitor sees it, while one command is carried out.
pub struct Controls<'a> {
    /// Where what comes later is left.
    pub keeper: &'a Housekeeping,
    /// How VMs are built and run.
    pub vm_host: &'a dyn VmHost,
}

impl Controls<'_> {
    fn vm(&self, name: &str) -> Result<Arc<Vm>, Refusal> {
        let missing = || match self.keeper.refused.lock().iter().find(|vm| vm.name == name) {
            Some(vm) => Refusal::new(
                format!("vm {name}"),
                format!("it was refused at boot: {}", vm.reason.as_deref().unwrap_or_default()),
                "correct pasidon.toml and boot again",
            ),
            None => Refusal::new(format!("vm {name}"), "there is no such VM", "`vms` lists them"),
        };
        self.keeper.system.vm_named(name).ok_or_else(missing)
    }

    fn send_break(&self, vm: &Vm) -> Result<(), Refusal> {
        let what = format!("vm {}", vm.name());
        if !vm.state().is_alive() {
            return Err(Refusal::new(what, "it does not run, so nobody receives a BREAK", "start it"));
        }
        match self.keeper.send_break(vm.id().place()) {
            true => Ok(()),
            false => Err(Refusal::new(
                what,
                "its console has no room for a BREAK",
                "wait until it has read what was typed",
            )),
        }
    }

    /// The VM that owns a vdev.
    fn owner(&self, vdev: u32) -> Option<Arc<Vm>> {
        self.keeper.system.vms().into_iter().find(|vm| vm.vdev(VdevId(vdev)).is_some())
    }
}

fn no_vdev(vdev: u32) -> Refusal {
    Refusal::new(format!("vdev #{vdev}"), "there is no such vdev", "`vdevs` lists them")
}

fn spec_of(vdev: &NewVdev<'_>) -> VdevSpec {
    VdevSpec {
        parent: vdev.parent.to_string(),
        type_name: vdev.type_name.to_string(),
        entries: vdev.entries,
        weight: vdev.weight,
        space: AddressSpace::Vm,
    }
}

impl MonitorHost for Controls<'_> {
    fn now_ns(&self) -> u64 {
        self.keeper.now_ns()
    }

    fn system(&self) -> SystemInfo {
        let mut info = self.keeper.system.info();
        info.memory.hypervisor = (self.keeper.machine.memory)();
        info
    }

    fn vms(&self) -> Vec<VmInfo> {
        let mut vms = self.keeper.system.vm_infos();
        vms.extend_from_slice(&self.keeper.refused.lock());
        vms
    }

    fn parents(&self) -> Vec<ParentInfo> {
        self.keeper.system.parent_infos()
    }

    fn pasids(&self) -> Vec<PasidInfo> {
        self.keeper.system.pasid_infos()
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        self.vm_host.pcpus()
    }

    fn faults(&self) -> FaultsInfo {
        self.keeper.events.faults()
    }

    fn submission_exits(&self, vdev: u32) -> u64 {
        self.owner(vdev).map_or(0, |vm| self.vm_host.portal_traps(&vm, VdevId(vdev)))
    }

    fn vectors(&self, vdev: u32) -> Vec<VectorInfo> {
        self.owner(vdev).map(|vm| self.vm_host.vectors(&vm, VdevId(vdev))).unwrap_or_default()
    }

    fn console_of(&self, vm: &str) -> Option<usize> {
        Some(self.keeper.system.vm_named(vm)?.id().place())
    }

    fn typed(&self, vm: &str) -> Option<TypedInfo> {
        self.console_of(vm).map(|console| self.keeper.typed_for(console))
    }

    fn log_level(&self) -> LevelFilter {
        log::max_level()
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }

    fn definitions(&self) -> Vec<DefinitionInfo> {
        self.keeper.definitions.infos()
    }

    fn define(&mut self, file: &str) -> Result<Vec<String>, Refusal> {
        Ok(self.keeper.define(file)?.iter().map(|vm| vm.name().to_string()).collect())
    }

    fn control(&mut self, vm: &str, control: VmControl) -> Result<(), Refusal> {
        let (system, vm_host) = (self.keeper.system, self.vm_host);
        let vm = self.vm(vm)?;
        let stopped = VmEnd::Stopped(String::from("stopped from the monitor"));
        match control {
            VmControl::Start => system.start_vm(vm_host, &vm),
            VmControl::Stop => system.end_vm(vm_host, &vm, &stopped).map(drop),
            VmControl::Restart => system.restart_vm(vm_host, &vm, &stopped).map(drop),
            VmControl::Pause => system.pause_vm(vm_host, &vm),
            VmControl::Resume => system.resume_vm(vm_host, &vm),
            VmControl::Break => self.send_break(&vm),
            VmControl::Remove => self.keeper.remove(&vm),
        }
    }

    fn create_vdev(&mut self, vdev: NewVdev<'_>) -> Result<u32, Refusal> {
        let vm = self.vm(vdev.vm)?;
        let vdev =
            self.keeper.system.create_vdev(self.vm_host, &vm, &spec_of(&vdev), vdev.ioas.map(IoasId))?;
        Ok(vdev.0)
    }

    fn move_vdev(&mut self, vdev: u32, to: NewVdev<'_>) -> Result<(u32, Dismissal), Refusal> {
        let vm = self.owner(vdev).ok_or_else(|| no_vdev(vdev))?;
        let system = self.keeper.system;
        let space = to.ioas.map(IoasId);
        let (next, dismissal) = system.move_vdev(self.vm_host, &vm, VdevId(vdev), &spec_of(&to), space)?;
        Ok((next.0, dismissal))
    }

    fn destroy_vdev(&mut self, vdev: u32, now: bool) -> Result<Dismissal, Refusal> {
        let vm = self.owner(vdev).ok_or_else(|| no_vdev(vdev))?;
        let (system, vdev) = (self.keeper.system, VdevId(vdev));
        match now {
            true => system.destroy_vdev(self.vm_host, &vm, vdev).map(|_| Dismissal::Ended),
            false => system.dismiss_vdev(self.vm_host, &vm, vdev),
        }
    }

    fn control_vectors(&mut self, vdev: u32, which: Vectors, control: VectorControl) -> Result<(), Refusal> {
        let vm = self.owner(vdev).ok_or_else(|| no_vdev(vdev))?;
        self.keeper.system.control_vectors(self.vm_host, &vm, VdevId(vdev), which, control)
    }

    fn create_space(&mut self, vm: &str) -> Result<u32, Refusal> {
        let vm = self.vm(vm)?;
        Ok(self.keeper.system.create_space(&vm)?.id().0)
    }

    fn map_space(&mut self, ioas: u32, guest: u64, iova: u64, len: u64) -> Result<(), Refusal> {
        self.keeper.system.map_space(IoasId(ioas), GuestPhys(guest), Iova(iova), len)
    }

    fn unmap_space(&mut self, ioas: u32, iova: u64, len: u64) -> Result<(), Refusal> {
        self.keeper.system.unmap_space(IoasId(ioas), Iova(iova), len)
    }

    fn attach_space(&mut self, ioas: u32, vdev: u32) -> Result<(), Refusal> {
        self.keeper.system.attach_space(IoasId(ioas), VdevId(vdev))
    }

    fn destroy_space(&mut self, ioas: u32) -> Result<(), Refusal> {
        self.keeper.system.drop_space(IoasId(ioas))
    }

    fn reset_parent(&mut self, parent: &str) -> Result<usize, Refusal> {
        let report = self.keeper.system.recover_parent(self.vm_host, parent)?;
        for RetiredInfo { what, vm, value, .. } in &report.reclaimed {
            log::info!("parent {parent}: {what} {value} of vm {vm} is free again");
        }
        for left in &report.left {
            log::warn!("{left}");
        }
        Ok(report.left.len())
    }

    fn power(&mut self, power: HostPower) -> Result<(), Refusal> {
        self.keeper.machine.power.check(power)?;
        self.keeper.request_power(power);
        Ok(())
    }
}
