// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lives of VMs: started, ended, started again.
//!
//! **Order.** Start: memory, address space, machine, vdevs, vCPUs. End: vCPUs, vdevs, address spaces,
//! machine, memory. A start that fails at any step ends like a life.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::base::id::VmId;
use crate::base::refusal::Refusal;
use crate::memory::frames::{GuestFrames, GuestGone};
use crate::memory::ram::{GuestRam, check_layout};
use crate::vdev::retired::{Retired, Retry};
use crate::vm::{Operation, Vm, VmEnd, VmHost, VmState};

use super::{EndReport, System};

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

impl System {
    /// Starts a VM: memory, address space, machine, vdevs, vCPUs. All or nothing.
    ///
    /// # Errors
    /// When another operation changes the VM, its state does not allow it, or a step fails; nothing is left of the attempt.
    pub fn start_vm(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
        let operation = vm.begin()?;
        vm.restarts.lock().begin(self.services.host.now_ns(), false);
        self.start(vm_host, vm, &operation)
    }

    pub(super) fn start(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        operation: &Operation<'_>,
    ) -> Result<(), Refusal> {
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

    pub(super) fn bring_up(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<(), Refusal> {
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
            let space = self.new_space(vm, false).map_err(within)?;
            space.map_as_seen(&ram, ram.ranges()).map_err(within)?;
        }
        vm_host.build(vm, &ram).map_err(within)?;
        drop(ram);
        for spec in &vm.spec().vdevs {
            self.add_vdev(vm_host, vm, spec, None)?;
        }
        Ok(())
    }

    /// Ends a VM's life: vCPUs, vdevs, address spaces and memory, in that order. The definition stays.
    ///
    /// # Errors
    /// When another operation changes the VM, its state does not allow it, or its end cannot be proven: it is then held.
    pub fn end_vm(&self, vm_host: &dyn VmHost, vm: &Vm, end: &VmEnd) -> Result<EndReport, Refusal> {
        let operation = vm.begin()?;
        self.take_down(vm_host, vm, &operation, end)
    }

    pub(super) fn take_down(
        &self,
        vm_host: &dyn VmHost,
        vm: &Vm,
        operation: &Operation<'_>,
        end: &VmEnd,
    ) -> Result<EndReport, Refusal> {
        vm.become_state(operation, VmState::Stopping, Some(end.reason()))?;
        match self.dismantle(vm_host, vm) {
            Ok(report) => {
                self.held.lock().remove(&vm.id());
                vm.clear_request();
                vm.become_state(operation, end.state(), Some(end.reason()))?;
                Ok(report)
            }
            Err(refusal) => {
                vm.become_state(operation, VmState::Held, Some(refusal.to_string()))?;
                let before = self.held.lock().insert(vm.id(), end.clone());
                if before.is_none() {
                    *self.retry.lock() = Retry::soon(self.services.host.now_ns());
                }
                Err(refusal)
            }
        }
    }

    /// From running vCPUs to free memory. Where it is refused, what was not taken apart stays the VM's; it goes on from
    /// there when it is called again.
    fn dismantle(&self, vm_host: &dyn VmHost, vm: &Vm) -> Result<EndReport, Refusal> {
        let mut report = EndReport::default();
        let stopped = vm_host.stop(vm)?;
        loop {
            let last = vm.life.lock().vdevs.last().cloned();
            let Some(vdev) = last else { break };
            let unmapped = vm_host.unplug(vm, vdev.id())?;
            self.end_vdev(&vdev, unmapped, &mut report)?;
            vm.life.lock().vdevs.pop();
        }
        let spaces = core::mem::take(&mut vm.life.lock().spaces);
        let mut why = "a device may still reach it".to_string();
        for space in spaces {
            if let Err(refusal) = space.destroy() {
                why = refusal.to_string();
                self.keep(vm, why.clone(), Retired::Space(space), &mut report);
            }
        }
        let gone = vm_host.tear_down(vm, stopped)?;
        let ram = vm.life.lock().ram.take();
        match ram.map(GuestRam::into_frames) {
            None => {}
            Some(Ok(frames)) => self.free(vm_host, frames, gone),
            Some(Err(ram)) => self.keep(vm, why, Retired::Memory { ram, gone }, &mut report),
        }
        Ok(report)
    }

    /// Tries again to end the VMs whose end could not be proven; whether one is over now.
    pub(super) fn retry_held(&self, vm_host: &dyn VmHost) -> bool {
        let mut any = false;
        let held = self.held.lock().clone();
        for (id, end) in held {
            let Some(vm) = self.vm(id) else { continue };
            let Ok(operation) = vm.begin() else { continue };
            if self.take_down(vm_host, &vm, &operation, &end).is_ok() {
                log::warn!("vm {}: held no more: {}", vm.name(), end.reason());
                any = true;
            }
        }
        any
    }

    /// Ends a VM and starts it again, with fresh memory.
    ///
    /// # Errors
    /// As [`System::end_vm`], then as [`System::start_vm`].
    pub fn restart_vm(&self, vm_host: &dyn VmHost, vm: &Vm, end: &VmEnd) -> Result<EndReport, Refusal> {
        let operation = vm.begin()?;
        let report = self.take_down(vm_host, vm, &operation, end)?;
        vm.restarts.lock().begin(self.services.host.now_ns(), false);
        self.start(vm_host, vm, &operation)?;
        Ok(report)
    }

    /// Carries out what guests asked for by [`Vm::request`]. To be called from the main loop.
    pub fn serve_requests(&self, vm_host: &dyn VmHost) -> Vec<Served> {
        let mut served = Vec::new();
        if !self.vms.read().iter().any(|vm| vm.has_request()) {
            return served;
        }
        for vm in self.vms() {
            let Some(request) = vm.requested() else { continue };
            // Where another operation is under way, the request stays for the next time.
            let Ok(operation) = vm.begin() else { continue };
            if !vm.state().is_alive() {
                vm.clear_request();
                continue;
            }
            let wanted = request.is_reset() && vm.spec().restart_on_reset;
            let restart = wanted && vm.restarts.lock().allow(self.services.host.now_ns());
            let request = match restart == wanted {
                true => request,
                false => request.without_restart(vm.name()),
            };
            let result =
                self.take_down(vm_host, &vm, &operation, &request).and_then(|report| match restart {
                    true => {
                        vm.restarts.lock().begin(self.services.host.now_ns(), true);
                        self.start(vm_host, &vm, &operation).map(|()| report)
                    }
                    false => Ok(report),
                });
            served.push(Served { vm: vm.id(), request, restart, result });
        }
        served
    }

    /// Scrubs a guest's memory and makes it free.
    pub(super) fn free(&self, vm_host: &dyn VmHost, frames: GuestFrames, gone: GuestGone) {
        let frames = frames.end(gone).scrub(&mut |start, len| vm_host.scrub(start, len));
        self.frames.give_back(frames);
    }
}
