// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lives of VMs and vdevs, one situation at a time. Random ones are in `properties`.

mod away;
mod confined;
mod definition;
mod departures;
mod failures;
mod pausing;
mod posting;
mod refusals;

use super::*;
use crate::base::addr::{GuestPhys, Iova, LARGE_PAGE_SIZE};
use crate::base::drained::Drained;
use crate::base::id::{IoasId, VdevId};
use crate::dma::fault::DmaFault;
use crate::dma::fault::FaultAccess;
use crate::dma::window;
use crate::irq::Route;
use crate::testing::{Fail, Options, REQUESTER, Step, TestMachine, trapped, vdev_spec, vm_spec};
use crate::vdev::VdevSpec;
use crate::vm::{Vm, VmEnd, VmSpec, VmState};

const POWER_OFF: VmEnd = VmEnd::PowerOff;

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

#[test]
fn two_vms_have_their_own_pasid_and_everything_comes_back() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 1, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 4, 1, 1)).unwrap();
    for round in 0..20 {
        let began = u64::from(round) * 1_000_000_000;
        machine.truth.set_clock(began);
        system.start_vm(machine.truth, &alpha).unwrap();
        system.start_vm(machine.truth, &beta).unwrap();
        machine.assert_sound();
        let infos = system.pasid_infos();
        assert_eq!(infos.len(), 2);
        assert_ne!(infos[0].pasid, infos[1].pasid);
        // Of six numbers two are used in each round.
        assert!(
            infos.iter().all(|info| info.since_ns == began && info.used_before == round / 3),
            "{infos:?}"
        );
        assert_eq!(system.info().memory.guests, 7 * LARGE_PAGE_SIZE);
        system.end_vm(machine.truth, &alpha, &VmEnd::Crashed("triple fault".to_string())).unwrap();
        machine.assert_sound();
        assert_eq!((alpha.state(), beta.state()), (VmState::Crashed, VmState::Running));
        assert_eq!(alpha.reason().as_deref(), Some("triple fault"));
        system.end_vm(machine.truth, &beta, &POWER_OFF).unwrap();
        machine.assert_as_at_start();
    }
    assert_eq!(alpha.stats().starts(), 20);
}

#[test]
fn the_end_goes_in_the_order_of_the_design() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.lock().steps.clear();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let interrupt = |entry| {
        [Step::InterruptMasked(entry), Step::InterruptUnmapped, Step::VectorSettled, Step::VectorFreed]
    };
    let mut expected = vec![Step::VcpusStopped, Step::PortalsUnmapped(vdev), Step::QueueStopped];
    expected.extend(interrupt(2));
    expected.extend(interrupt(1));
    expected.extend([
        Step::Detached(pasid(1)),
        Step::SliceReturned,
        Step::TableDestroyed,
        Step::TornDown,
        Step::Scrubbed,
    ]);
    assert_eq!(machine.truth.lock().steps, expected);
}

#[test]
fn a_late_interrupt_does_not_reach_the_next_owner() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let info = system.vdev_infos().remove(0);
    let vector =
        crate::irq::HostVector { vector: info.interrupts[1].host_vector, cpu: info.interrupts[1].cpu };
    let late = system.routes().deliver(vector);
    let id = alpha.vdevs()[0].id();
    assert_eq!(late, Some(Route::Vdev { vm: alpha.id(), vdev: id, vector: 1 }));
    assert_eq!(system.vm_info(&alpha).interrupts, 1);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert_eq!(system.routes().deliver(vector), None);
    assert_eq!(system.info().stray_interrupts, 1);
    // The same vector, another life: what was looked up before names a vdev that is gone.
    system.start_vm(machine.truth, &beta).unwrap();
    assert!(matches!(system.routes().peek(vector), Some(Route::Vdev { vm, .. }) if vm == beta.id()));
    assert!(alpha.vdev(id).is_none() && beta.vdev(id).is_none());
}

#[test]
fn what_guests_ask_for_is_served_later() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    let mut spec = vm_spec("beta", 2, 1, 1);
    spec.restart_on_reset = false;
    let beta = system.define_vm(spec).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    alpha.request(VmEnd::Reset);
    beta.request(VmEnd::Reset);
    assert_eq!(system.serve_requests(machine.truth).len(), 2);
    assert_eq!((alpha.state(), beta.state()), (VmState::Running, VmState::Stopped));
    assert_eq!(alpha.stats().starts(), 2);
    assert!(system.serve_requests(machine.truth).is_empty());
    alpha.request(VmEnd::PowerOff);
    // Not while something else is done with it, and not lost either.
    let operation = alpha.begin().unwrap();
    assert!(system.serve_requests(machine.truth).is_empty());
    drop(operation);
    let served = system.serve_requests(machine.truth);
    assert_eq!((served[0].vm, served[0].restart), (alpha.id(), false));
    machine.assert_as_at_start();
}

#[test]
fn a_guest_that_only_restarts_is_stopped() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let mut restarts = 0;
    while alpha.state() == VmState::Running {
        assert!(restarts < 10);
        restarts += 1;
        alpha.request(VmEnd::Reset);
        assert_eq!(system.serve_requests(machine.truth).len(), 1);
    }
    assert!(restarts > 1, "one is no reason yet");
    assert!(alpha.reason().unwrap().contains("again and again"));
    system.start_vm(machine.truth, &alpha).unwrap();
    alpha.request(VmEnd::Reset);
    assert!(system.serve_requests(machine.truth)[0].restart, "a person's start counts anew");
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_fault_that_resets_a_machine_restarts_a_vm_or_is_its_crash() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    let mut spec = vm_spec("beta", 2, 1, 1);
    spec.restart_on_reset = false;
    let beta = system.define_vm(spec).unwrap();
    let fault = || VmEnd::FaultReset("triple fault".to_string());
    for vm in [&alpha, &beta] {
        system.start_vm(machine.truth, vm).unwrap();
        vm.request(fault());
    }
    assert_eq!(system.serve_requests(machine.truth).len(), 2);
    assert_eq!((alpha.state(), beta.state()), (VmState::Running, VmState::Crashed));
    assert_eq!(beta.reason().as_deref(), Some("triple fault"));
    let mut restarts = 1;
    while alpha.state() == VmState::Running {
        assert!(restarts < 10, "a guest that faults at its start is started for ever");
        restarts += 1;
        alpha.request(fault());
        system.serve_requests(machine.truth);
    }
    assert_eq!(alpha.state(), VmState::Crashed);
    let reason = alpha.reason().unwrap();
    assert!(reason.contains("triple fault") && reason.contains("again and again"), "{reason}");
    machine.assert_as_at_start();
}

#[test]
fn what_is_behind_a_vdev_is_exchanged_within_its_vm() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 4, 2)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 2, 4, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    let spaces = || -> Vec<Option<IoasId>> { alpha.vdevs().iter().map(|vdev| vdev.ioas()).collect() };
    let own = spaces()[0].unwrap();
    let (one, foreign) = (alpha.vdevs()[0].id(), beta.vdevs()[0].id());
    let other = system.create_space(&alpha).unwrap().id();
    system.map_space(other, GuestPhys(0x1000), Iova(0x8000), 0x1000).unwrap();
    system.attach_space(other, one).unwrap();
    assert_eq!(spaces(), [Some(other), Some(own)]);
    machine.assert_sound();
    let why = |result: Result<(), Refusal>| result.unwrap_err().why;
    assert!(why(system.attach_space(other, foreign)).contains("it has no vdev"));
    assert!(why(system.attach_space(IoasId(99), one)).contains("no such address space"));
    assert!(why(system.drop_space(other)).contains("may still reach it"));
    assert!(why(system.drop_space(own)).contains("the VM's own"));
    assert!(
        why(system.map_space(other, GuestPhys(LARGE_PAGE_SIZE), Iova(0), 0x1000)).contains("not all RAM")
    );
    let window = window::first(39);
    assert!(why(system.unmap_space(other, window, 0x1000)).contains("a driver's"));
    system.unmap_space(other, Iova(0x8000), 0x1000).unwrap();
    // Not confirmed: it may reach both, so neither goes, until the vdev has ended.
    machine.truth.fail(Fail::ReplaceHalfway);
    system.attach_space(own, one).unwrap_err();
    assert_eq!(spaces(), [Some(own), Some(own)]);
    assert!(why(system.drop_space(other)).contains("may still reach it"));
    system.destroy_vdev(machine.truth, &alpha, one).unwrap();
    system.drop_space(other).unwrap();
    for vm in [&alpha, &beta] {
        system.end_vm(machine.truth, vm, &POWER_OFF).unwrap();
    }
    machine.assert_as_at_start();
}

#[test]
fn a_vm_can_have_several_address_spaces() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 4, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    let space = system.create_space(&alpha).unwrap();
    let ram = alpha.ram().unwrap();
    let map = |guest, iova, len| space.map(&ram, GuestPhys(guest), Iova(iova), len, true);
    map(0x1000, 0x10_0000, 0x2000).unwrap();
    assert!(map(0x3000, 0x10_1000, 0x1000).unwrap_err().why.contains("part of it is mapped"));
    assert!(map(LARGE_PAGE_SIZE, 0, 0x1000).unwrap_err().why.contains("not all RAM"));
    assert!(map(0x1000, 0, 0x10).unwrap_err().why.contains("not whole pages"));
    assert!(map(0x1000, 1 << 39, 0x1000).unwrap_err().why.contains("39 bits"));
    let foreign = beta.ram().unwrap();
    assert!(
        space
            .map(&foreign, GuestPhys(0), Iova(0), 0x1000, true)
            .unwrap_err()
            .why
            .contains("the RAM is of VM 1")
    );
    drop((ram, foreign));
    let vdev = system.create_vdev(machine.truth, &alpha, &vdev_spec(), Some(space.id())).unwrap();
    machine.assert_sound();
    assert!(system.destroy_space(&alpha, space.id()).unwrap_err().why.contains("may still reach it"));
    assert!(system.create_vdev(machine.truth, &beta, &vdev_spec(), Some(space.id())).is_err());
    system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    space.unmap(Iova(0x10_0000), 0x2000).unwrap();
    assert!(space.unmap(Iova(0x10_0000), 0x2000).is_err());
    system.destroy_space(&alpha, space.id()).unwrap();
    for vm in [&alpha, &beta] {
        system.end_vm(machine.truth, vm, &POWER_OFF).unwrap();
    }
    machine.assert_as_at_start();
}

#[test]
fn faults_and_events_are_named() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let fault = |number| DmaFault {
        requester: REQUESTER,
        pasid: Pasid::new(number),
        address: 0xdead_0000,
        access: FaultAccess::Write,
        reason: "no mapping",
        code: 0x7a,
    };
    let name = system.record_fault(&fault(1)).unwrap();
    assert_eq!((name.vm_name.as_str(), name.parent.as_str()), ("alpha", "dsa0"));
    assert!(system.record_fault(&fault(2)).is_none());
    assert!(system.record_fault(&fault(1 << 20)).is_none(), "untagged");
    assert_eq!((alpha.stats().faults(), system.vdev_infos()[0].fault_records), (1, 1));

    let mut reports = Vec::new();
    machine.truth.lock().steps.clear();
    for parent in [0, 1] {
        let drained = system.parent_event(machine.truth, parent, &mut |report| reports.push(report));
        assert_eq!(drained, Drained::Empty);
    }
    let names: Vec<_> = reports.iter().map(|report| report.vdev.clone()).collect();
    assert_eq!(names, [Some(name.clone()), Some(name), None, None]);
    assert_eq!(system.parent_infos()[0].events, 4);
    let vdev = alpha.vdevs()[0].id();
    assert_eq!(machine.truth.lock().steps, [Step::Announced(vdev)]);
}

#[test]
fn a_halt_concerns_every_vdev_of_the_parent() {
    let machine = TestMachine::new();
    let system = &machine.system;
    for name in ["alpha", "beta"] {
        let vm = system.define_vm(vm_spec(name, 2, 1, 1)).unwrap();
        system.start_vm(machine.truth, &vm).unwrap();
    }
    machine.truth.lock().steps.clear();
    machine.truth.lock().halted = true;
    let drained = system.parent_event(machine.truth, 0, &mut |_| ());
    assert_eq!(drained, Drained::Empty);
    let steps = [1, 2].map(|vdev| Step::Announced(VdevId(vdev)));
    assert_eq!(machine.truth.lock().steps, steps);
}

#[test]
fn a_vdev_whose_vm_is_busy_is_told_later() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let vm = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &vm).unwrap();
    machine.truth.lock().steps.clear();
    machine.truth.lock().halted = true;
    machine.truth.fail(Fail::Announce);
    assert_eq!(system.parent_event(machine.truth, 0, &mut |_| ()), Drained::Empty);
    assert_eq!(machine.truth.lock().steps, []);
    assert!(system.needs_attention());
    system.attend(machine.truth);
    assert_eq!(machine.truth.lock().steps, [Step::Announced(VdevId(1))]);
    assert!(!system.needs_attention());
}

#[test]
fn the_guests_side_of_an_ended_vdev_is_an_empty_slot() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs().remove(0);
    let mut side = vdev.guest_side();
    assert_eq!(side.read(0, 0x123, 4), 0x123);
    let mut raised = Vec::new();
    side.submit(2, 0, &[7; 64], &mut |vector| raised.push(vector));
    side.interrupt(1, &mut |vector| raised.push(vector));
    assert_eq!(raised, [7, 3], "what the model makes of them");
    machine.system.destroy_vdev(machine.truth, &alpha, vdev.id()).unwrap();
    assert_eq!(side.read(0, 0x123, 4), 0xffff_ffff);
    let late = &mut |_| panic!("raised after the end");
    side.write(0, 0, 4, 1, late);
    side.submit(2, 0, &[7; 64], late);
    side.interrupt(1, late);
    assert!(side.reset().is_err());
    machine.assert_sound();
}

#[test]
fn processors_work_at_once() {
    let (machine, _) =
        TestMachine::with(Options { frames: 64, last_pasid: 100, queues: 8, ..Options::default() });
    let machine = &machine;
    std::thread::scope(|scope| {
        for name in ["alpha", "beta", "gamma"] {
            scope.spawn(move || {
                let vm = machine.system.define_vm(vm_spec(name, 3, 2, 1)).unwrap();
                for _ in 0..50 {
                    machine.system.start_vm(machine.truth, &vm).unwrap();
                    let created = machine.system.create_vdev(machine.truth, &vm, &vdev_spec(), None);
                    // Vectors or queues may be short; nothing else may go wrong.
                    if let Ok(vdev) = created {
                        assert_eq!(
                            machine
                                .system
                                .owner_of(REQUESTER, vm.vdev(vdev).unwrap().pasid().unwrap())
                                .unwrap()
                                .vm,
                            vm.id()
                        );
                    }
                    machine.system.end_vm(machine.truth, &vm, &POWER_OFF).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..300 {
                let _ = (machine.system.info(), machine.system.vm_infos(), machine.system.pasid_infos());
                let _ = (machine.system.parent_infos(), machine.system.iommu_info());
                let _ = machine.system.parent_event(machine.truth, 0, &mut |_| ());
                machine.system.reclaim(machine.truth);
            }
        });
    });
    machine.assert_as_at_start();
}
