// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that stand still for a while, and what their vdevs have under way meanwhile.
//!
//! **Order.** Pause: vCPUs, then vdevs, so that nothing is submitted while a device says that it has nothing any more.
//! Resume is the same way back.

use alloc::format;
use alloc::sync::Arc;

use crate::base::refusal::Refusal;
use crate::vdev::Vdev;
use crate::vm::{Vm, VmHost, VmState};

use super::System;

/// How long a pause waits for what vdevs have under way, all together, in nanoseconds; and a resume for what a device
/// is at. What is under way then goes on, and the vdev's state says so.
const PATIENCE_NS: u64 = 1_000_000_000;

impl System {
    /// Makes a running VM stand still, and waits for what its vdevs have in the device, for a second at most: their
    /// states say what is left of it ([`Paused`](crate::vdev::parent::Paused)).
    ///
    /// # Errors
    /// When another operation changes the VM, it does not run, or a vCPU does not stand still.
    pub fn pause_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        vm.become_state(&operation, VmState::Paused, None)?;
        vm_host.pause(vm).or_else(|refusal| {
            vm.become_state(&operation, VmState::Running, None)?;
            vm_host.run(vm)?;
            Err(refusal)
        })?;
        let vdevs = vm.vdevs();
        vdevs.iter().for_each(|vdev| vdev.pause());
        let start = self.services.host.now_ns();
        loop {
            // Time first: the devices had all of it, however long this processor was away.
            let late = self.is_late(start);
            let mut draining = false;
            for vdev in vdevs.iter().filter(|vdev| vdev.is_draining()) {
                vm_host.device_event(vm, vdev.id());
                draining |= vdev.is_draining();
            }
            if !draining || late {
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// When another operation changes the VM, it is not paused, a device is for longer than a second at something during
    /// which the guest must not submit, or its vCPUs cannot run. It stays paused then.
    pub fn resume_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        if vm.state() != VmState::Paused {
            return Err(vm.refuse(format!("it is {}", vm.state().name()), "only a paused VM can be resumed"));
        }
        let vdevs = vm.vdevs();
        let pause_again = || vdevs.iter().for_each(|vdev| vdev.pause());
        let start = self.services.host.now_ns();
        for vdev in &vdevs {
            self.resume_vdev(vm, vdev, start).inspect_err(|_| pause_again())?;
        }
        vm.become_state(&operation, VmState::Running, None)?;
        vm_host.run(vm).or_else(|refusal| {
            vm.become_state(&operation, VmState::Paused, None)?;
            pause_again();
            Err(refusal)
        })
    }

    fn resume_vdev(&self, vm: &Vm, vdev: &Arc<Vdev>, start: u64) -> Result<(), Refusal> {
        loop {
            let late = self.is_late(start);
            let Err(why) = vdev.resume() else { return Ok(()) };
            if late {
                let remedy = format!("try again, or reset parent {}", vdev.parent());
                return Err(vm.refuse(format!("vdev #{}: {why}", vdev.id()), &remedy));
            }
            core::hint::spin_loop();
        }
    }

    fn is_late(&self, start: u64) -> bool {
        self.services.host.now_ns().saturating_sub(start) > PATIENCE_NS
    }
}
