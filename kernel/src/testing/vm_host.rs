// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor's side of a VM's life: stage 2, portals, vCPUs, and guests that write all their memory.

use std::sync::Arc;

use super::truth::{Fail, Queue, SharedTruth, Step, Truth};
use crate::base::addr::HostPhys;
use crate::base::id::VdevId;
use crate::base::refusal::Refusal;
use crate::dev::Received;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::memory::frames::GuestGone;
use crate::memory::ram::GuestRam;
use crate::monitor::info::{PcpuInfo, VectorInfo};
use crate::vdev::{PortalsUnmapped, Vdev};
use crate::vm::{VcpusStopped, Vm, VmHost};

fn fault(what: &str) -> Refusal {
    Refusal::new(what, "the test makes it fail", "none")
}

impl VmHost for SharedTruth {
    fn scrub(&self, start: HostPhys, len: u64) {
        let mut truth = self.lock();
        let reachable = truth.reachable(start.0, len);
        truth.demand(!reachable, || format!("{start} scrubbed while somebody reaches it"));
        for frame in Truth::frames(start, len) {
            truth.bytes.remove(&frame);
        }
        truth.steps.push(Step::Scrubbed);
    }

    fn build(&self, vm: &Vm, ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Build) {
            return Err(fault("build"));
        }
        let ranges: Vec<(u64, u64)> = ram.segments().iter().map(|s| (s.host.0, s.len)).collect();
        for (start, len) in &ranges {
            let shared = truth
                .stage2
                .values()
                .flatten()
                .any(|(other, bytes)| other < &(start + len) && *start < other + bytes);
            truth.demand(!shared, || format!("{start:#x} is in two stage 2"));
            for frame in Truth::frames(HostPhys(*start), *len) {
                let old = truth.bytes.get(&frame).copied();
                truth.demand(old.is_none(), || format!("{frame:#x} holds bytes of VM {old:?}"));
                // The image, and whatever the guest and its devices write.
                truth.bytes.insert(frame, vm.id());
            }
        }
        truth.stage2.insert(vm.id(), ranges);
        Ok(())
    }

    fn plug(&self, vm: &Vm, vdev: &Vdev) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if let Some(portal) = vdev.model().portals().first() {
            let queue = (portal.host.0 as usize - 0xf000_0000) / 0x1000;
            truth.portals.insert((vm.id(), vdev.id()), queue);
        }
        // Fails with the portal mapped, which is the worse case.
        if truth.fails(Fail::Plug) {
            return Err(fault("plug"));
        }
        Ok(())
    }

    fn ask_to_let_go(&self, _vm: &Vm, vdev: VdevId) -> Result<bool, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Unplug) {
            return Err(fault("ask"));
        }
        truth.steps.push(Step::Asked(vdev));
        Ok(truth.listens)
    }

    fn has_let_go(&self, _vm: &Vm, vdev: VdevId) -> bool {
        self.lock().let_go.contains(&vdev)
    }

    fn unplug(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Unplug) {
            return Err(fault("unplug"));
        }
        truth.portals.remove(&(vm.id(), vdev));
        truth.withheld.remove(&(vm.id(), vdev));
        truth.steps.push(Step::PortalsUnmapped(vdev));
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn withhold_portals(&self, vm: &Vm, vdev: VdevId) -> Result<PortalsUnmapped, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Unplug) {
            return Err(fault("withhold"));
        }
        if let Some(queue) = truth.portals.remove(&(vm.id(), vdev)) {
            truth.withheld.insert((vm.id(), vdev), queue);
        }
        truth.steps.push(Step::PortalsUnmapped(vdev));
        Ok(PortalsUnmapped::confirmed_by_arch(vdev))
    }

    fn return_portals(&self, vm: &Vm, vdev: VdevId) {
        let mut truth = self.lock();
        if let Some(queue) = truth.withheld.remove(&(vm.id(), vdev)) {
            truth.portals.insert((vm.id(), vdev), queue);
        }
        truth.steps.push(Step::PortalsReturned(vdev));
    }

    fn device_event(&self, vm: &Vm, vdev: VdevId) -> bool {
        let mut truth = self.lock();
        if truth.fails(Fail::Announce) {
            return false;
        }
        truth.steps.push(Step::Announced(vdev));
        drop(truth);
        if let Some(vdev) = vm.vdev(vdev) {
            vdev.model().with(|model| model.device_event(&mut |_| ()));
        }
        true
    }

    fn push_input(&self, vm: &Vm, received: Received) -> bool {
        let mut truth = self.lock();
        if !vm.state().is_alive() {
            return true;
        }
        let room = truth.room;
        let typed = truth.typed.entry(vm.id()).or_default();
        let taken = typed.len() < room;
        if taken {
            typed.push(received);
        }
        taken
    }

    fn portal_traps(&self, _vm: &Vm, _vdev: VdevId) -> u64 {
        0
    }

    fn control_vectors(
        &self,
        vm: &Vm,
        vdev: VdevId,
        which: Vectors,
        control: VectorControl,
    ) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Vectors) {
            return Err(fault("vectors"));
        }
        let count = vm.vdev(vdev).map_or(0, |vdev| vdev.model().identity().msix_vectors);
        for vector in (0..count).filter(|vector| which.contain(*vector)) {
            let place = (vdev, vector);
            match control {
                VectorControl::Mask => drop(truth.masked.insert(place)),
                VectorControl::Unmask => drop(truth.masked.remove(&place)),
                VectorControl::Automask(true) => drop(truth.automask.insert(place)),
                VectorControl::Automask(false) => drop(truth.automask.remove(&place)),
                VectorControl::Trigger => {}
            }
            // Past a mask nothing is posted. The test's vdevs have an entry of their own for each vector.
            let entry = vm.vdev(vdev).and_then(|vdev| {
                let mut interrupts = vdev.model().interrupts().iter();
                interrupts.find(|binding| binding.virtual_vector == vector).map(|binding| binding.physical)
            });
            let message = entry.and_then(|entry| truth.msix.get(&entry).copied());
            let masked = truth.masked.contains(&place) || truth.automask.contains(&place);
            let posted = message.is_some_and(|message| truth.posted.contains_key(&message.data));
            truth.demand(!(masked && posted), || format!("{place:?} is masked and posted"));
        }
        Ok(())
    }

    fn vectors(&self, vm: &Vm, vdev: VdevId) -> Vec<VectorInfo> {
        let truth = self.lock();
        let count = vm.vdev(vdev).map_or(0, |vdev| vdev.model().identity().msix_vectors);
        let info = |vector| VectorInfo {
            vector,
            guest: "open".into(),
            masked: truth.masked.contains(&(vdev, vector)),
            automask: truth.automask.contains(&(vdev, vector)),
            pending: false,
            delivered: 0,
            pended: 0,
            triggered: 0,
        };
        (0..count).map(info).collect()
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        Vec::new()
    }

    fn run(&self, vm: &Vm) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Run) {
            return Err(fault("run"));
        }
        let built = truth.stage2.contains_key(&vm.id());
        truth.demand(built, || "runs without stage 2".to_string());
        let own = |queue: &&Queue| queue.owner.as_deref() == Some(vm.name());
        let paused = truth.queues.iter().filter(own).any(|queue| queue.paused);
        truth.demand(!paused, || "runs while a queue of it is paused".to_string());
        truth.running.insert(vm.id());
        Ok(())
    }

    fn pause(&self, vm: &Vm) -> Result<(), Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Pause) {
            return Err(fault("pause"));
        }
        truth.running.remove(&vm.id());
        Ok(())
    }

    fn stop(&self, vm: &Vm) -> Result<VcpusStopped, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::Stop) {
            return Err(fault("stop"));
        }
        truth.running.remove(&vm.id());
        truth.steps.push(Step::VcpusStopped);
        Ok(VcpusStopped::confirmed_by_arch(vm.id()))
    }

    fn tear_down(&self, vm: &Vm, stopped: VcpusStopped) -> Result<GuestGone, Refusal> {
        let mut truth = self.lock();
        if truth.fails(Fail::TearDown) {
            return Err(fault("tear down"));
        }
        truth.demand(stopped.vm() == vm.id(), || "another VM was stopped".to_string());
        let running = truth.running.contains(&vm.id());
        truth.demand(!running, || "torn down while it runs".to_string());
        let plugged = truth.portals.keys().any(|(other, _)| *other == vm.id());
        truth.demand(!plugged, || "torn down with portals mapped".to_string());
        truth.stage2.remove(&vm.id());
        truth.steps.push(Step::TornDown);
        Ok(GuestGone::confirmed_by_arch())
    }
}
