// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paused VMs, and what their vdevs have under way.

use super::*;

/// A running VM with a vdev of each type, and its vdevs' states.
fn paused(under_way: [u32; 2]) -> (TestMachine, Arc<Vm>) {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 3, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.system.create_vdev(machine.truth, &alpha, &trapped(), None).unwrap();
    for (queue, looks) in under_way.into_iter().enumerate() {
        machine.truth.lock().queues[queue].under_way = looks;
    }
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    machine.assert_sound();
    (machine, alpha)
}

fn states(machine: &TestMachine) -> Vec<String> {
    machine.system.vdev_infos().iter().map(|info| info.work.to_string()).collect()
}

#[test]
fn pause_keeps_everything_and_resume_goes_on() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    assert!(!machine.truth.lock().running.contains(&alpha.id()));
    assert_eq!(alpha.vdevs().len(), 1);
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    assert!(machine.truth.lock().running.contains(&alpha.id()));
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::Run);
    machine.system.resume_vm(machine.truth, &alpha).unwrap_err();
    assert_eq!((alpha.state(), states(&machine)), (VmState::Paused, vec!["drained".to_string()]));
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_pause_waits_for_what_is_under_way_and_says_what_is_held() {
    let (machine, alpha) = paused([30, 70]);
    assert_eq!(states(&machine), ["drained", "held"]);
    assert!(machine.truth.lock().queues.iter().all(|queue| queue.under_way == 0));
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    assert_eq!(states(&machine), ["running", "running"]);
    machine.assert_sound();
}

#[test]
fn a_device_that_does_not_drain_in_time_costs_a_second_and_is_said_to_go_on() {
    let (machine, alpha) = paused([u32::MAX, 70]);
    assert_eq!(states(&machine), ["draining", "held"]);
    let took = machine.truth.now_ns();
    assert!((1_000_000_000..1_100_000_000).contains(&took), "{took} ns");
    // Late, but it comes to its end, and whoever looks is told.
    machine.truth.lock().queues[0].under_way = 1;
    machine.truth.lock().waiting = true;
    machine.system.attend(machine.truth);
    assert_eq!(states(&machine), ["drained", "held"]);
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_guest_does_not_go_on_while_its_device_must_not_be_written_to() {
    let (machine, alpha) = paused([3, 0]);
    machine.truth.lock().queues[1].closed = true;
    let refusal = machine.system.resume_vm(machine.truth, &alpha).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm alpha: vdev #2: a drain is under way; try again, or reset parent dsa0"
    );
    assert_eq!((alpha.state(), states(&machine)), (VmState::Paused, vec!["drained".into(), "held".into()]));
    assert!(!machine.truth.lock().running.contains(&alpha.id()));
    machine.truth.lock().queues[1].closed = false;
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    assert_eq!(states(&machine), ["running", "running"]);
    machine.assert_sound();
}

#[test]
fn a_devices_time_is_shared_by_all_vdevs_and_a_busy_vm_is_asked_again() {
    let (machine, alpha) = paused([400, 400]);
    assert_eq!(states(&machine), ["drained", "held"], "at the same time, not one after another");
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    machine.truth.lock().queues[0].under_way = 2;
    machine.truth.fail(Fail::Announce);
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    assert_eq!(states(&machine), ["drained", "held"]);
}

#[test]
fn vdevs_come_and_go_while_their_vm_is_paused() {
    let (machine, alpha) = paused([0, 0]);
    let [first, second] = [0, 1].map(|at| alpha.vdevs()[at].id());
    let third = machine.system.create_vdev(machine.truth, &alpha, &vdev_spec(), None).unwrap();
    assert_eq!(states(&machine), ["drained", "held", "drained"], "it is paused from its beginning");
    machine.system.destroy_vdev(machine.truth, &alpha, first).unwrap();
    machine.assert_sound();
    // A reset of the device changes nothing of that.
    machine.system.recover_parent(machine.truth, "dsa0").unwrap();
    assert_eq!(states(&machine), ["held", "drained"]);
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    assert_eq!(states(&machine), ["running", "running"]);
    for vdev in [second, third] {
        machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    }
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn pauses_and_resumes_in_quick_succession_and_the_end_of_a_paused_vm() {
    let (machine, alpha) = paused([5, 5]);
    for round in 0..50 {
        machine.system.pause_vm(machine.truth, &alpha).unwrap_err();
        machine.system.resume_vm(machine.truth, &alpha).unwrap();
        machine.system.resume_vm(machine.truth, &alpha).unwrap_err();
        machine.truth.lock().queues[round % 2].under_way = 3;
        machine.system.pause_vm(machine.truth, &alpha).unwrap();
        assert_eq!(states(&machine), ["drained", "held"]);
    }
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    assert_eq!(states(&machine), ["running"]);
}

/// A late interrupt may keep a model busy on another processor just when somebody asks.
#[test]
fn what_is_under_way_is_told_while_a_model_is_busy() {
    let (machine, alpha) = paused([30, 30]);
    let vdev = alpha.vdevs().remove(0);
    let told = vdev.model().with(|_| states(&machine)).unwrap();
    assert_eq!(told, ["drained", "held"]);
}
