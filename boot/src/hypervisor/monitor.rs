// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the monitor's commands come down to.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use log::LevelFilter;
use pasidon_arch::time;
use pasidon_arch::vms::{Builder, Vms};
use pasidon_kernel::base::id::VdevId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::console::TypedInfo;
use pasidon_kernel::dma::fault_log::FaultsInfo;
use pasidon_kernel::monitor::info::{
    HypervisorMemory, ParentInfo, PasidInfo, PcpuInfo, RetiredInfo, SystemInfo, VmInfo,
};
use pasidon_kernel::monitor::{HostPower, MonitorHost, NewVdev, VmControl};
use pasidon_kernel::system::System;
use pasidon_kernel::vdev::VdevSpec;
use pasidon_kernel::vm::{Vm, VmEnd};

use super::power;
use super::work::Desk;
use crate::heap;

/// Size of the loaded image.
static IMAGE_BYTES: AtomicU64 = AtomicU64::new(0);

/// Says how large the loaded image is.
pub fn set_image_bytes(bytes: u64) {
    IMAGE_BYTES.store(bytes, Ordering::Relaxed);
}

/// The hypervisor as the monitor sees it.
pub struct Controls {
    /// The system.
    pub system: &'static System,
    /// The machines.
    pub vms: &'static Vms,
    /// Faults, and the VMs' places in the configuration.
    pub desk: &'static Desk,
}

impl Controls {
    fn vm(&self, name: &str) -> Result<Arc<Vm>, Refusal> {
        let missing = || match self.desk.refused().iter().find(|vm| vm.name == name) {
            Some(vm) => Refusal::new(
                format!("vm {name}"),
                format!("it was refused at boot: {}", vm.reason.as_deref().unwrap_or_default()),
                "correct pasidon.toml and boot again",
            ),
            None => Refusal::new(format!("vm {name}"), "there is no such VM", "`vms` lists them"),
        };
        self.system.vm_named(name).ok_or_else(missing)
    }

    fn builder(&self) -> Builder {
        self.vms.builder()
    }

    fn send_break(&self, vm: &Vm) -> Result<(), Refusal> {
        let what = format!("vm {}", vm.name());
        if self.vms.machine(vm.id()).is_none() {
            return Err(Refusal::new(what, "it does not run, so nobody receives a BREAK", "start it"));
        }
        match self.desk.console_of(vm.id()) {
            Some(console) if self.desk.send_break(console) => Ok(()),
            Some(_) => Err(Refusal::new(
                what,
                "its console has no room for a BREAK",
                "wait until it has read what was typed",
            )),
            None => Err(Refusal::new(what, "it has no console", "name it in pasidon.toml")),
        }
    }

    /// The VM that owns a vdev.
    fn owner(&self, vdev: u32) -> Option<Arc<Vm>> {
        self.system.vms().into_iter().find(|vm| vm.vdev(VdevId(vdev)).is_some())
    }
}

impl MonitorHost for Controls {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn system(&self) -> SystemInfo {
        let mut system = self.system.info();
        system.memory.hypervisor = HypervisorMemory {
            image: IMAGE_BYTES.load(Ordering::Relaxed),
            heap: heap::HEAP_BYTES as u64,
            heap_used: heap::used() as u64,
        };
        system
    }

    fn vms(&self) -> Vec<VmInfo> {
        let mut vms = self.system.vm_infos();
        vms.extend_from_slice(self.desk.refused());
        vms
    }

    fn parents(&self) -> Vec<ParentInfo> {
        self.system.parent_infos()
    }

    fn pasids(&self) -> Vec<PasidInfo> {
        self.system.pasid_infos()
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        self.vms.scheduler.infos(&|id| self.vms.name_of(id))
    }

    fn faults(&self) -> FaultsInfo {
        self.desk.faults.lock().snapshot()
    }

    fn submission_exits(&self, vdev: u32) -> u64 {
        self.owner(vdev)
            .and_then(|vm| self.vms.machine(vm.id()))
            .and_then(|machine| machine.portal_traps(VdevId(vdev)))
            .unwrap_or(0)
    }

    fn console_of(&self, vm: &str) -> Option<usize> {
        self.desk.console_of(self.system.vm_named(vm)?.id())
    }

    fn typed(&self, vm: &str) -> Option<TypedInfo> {
        self.console_of(vm).map(|console| self.desk.typed_for(console))
    }

    fn log_level(&self) -> LevelFilter {
        log::max_level()
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }

    fn control(&mut self, vm: &str, control: VmControl) -> Result<(), Refusal> {
        let vm = self.vm(vm)?;
        let builder = self.builder();
        let stopped = || VmEnd::Stopped(String::from("stopped from the monitor"));
        match control {
            VmControl::Start => self.system.start_vm(&builder, &vm),
            VmControl::Stop => self.system.end_vm(&builder, &vm, &stopped()).map(drop),
            VmControl::Restart => self.system.restart_vm(&builder, &vm, &stopped()).map(drop),
            VmControl::Pause => self.system.pause_vm(&builder, &vm),
            VmControl::Resume => self.system.resume_vm(&builder, &vm),
            VmControl::Break => self.send_break(&vm),
        }
    }

    fn create_vdev(&mut self, vdev: NewVdev<'_>) -> Result<u32, Refusal> {
        let vm = self.vm(vdev.vm)?;
        let spec = VdevSpec {
            parent: vdev.parent.to_string(),
            type_name: vdev.type_name.to_string(),
            entries: vdev.entries,
        };
        let vdev = self.system.create_vdev(&self.builder(), &vm, &spec, None)?;
        Ok(vdev.0)
    }

    fn destroy_vdev(&mut self, vdev: u32) -> Result<(), Refusal> {
        let vm = self.owner(vdev).ok_or_else(|| {
            Refusal::new(format!("vdev #{vdev}"), "there is no such vdev", "`vdevs` lists them")
        })?;
        self.system.destroy_vdev(&self.builder(), &vm, VdevId(vdev)).map(drop)
    }

    fn reset_parent(&mut self, parent: &str) -> Result<usize, Refusal> {
        let report = self.system.recover_parent(&self.builder(), parent)?;
        for reclaimed in &report.reclaimed {
            let RetiredInfo { what, vm, value, .. } = reclaimed;
            log::info!("parent {parent}: {what} {value} of vm {vm} is free again");
        }
        for left in &report.left {
            log::warn!("{left}");
        }
        Ok(report.left.len())
    }

    fn power(&mut self, power: HostPower) -> Result<(), Refusal> {
        power::check(power)?;
        self.desk.request_power(power);
        Ok(())
    }
}
