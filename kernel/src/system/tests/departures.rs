// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that are taken away: with their guests' help, and without.

use super::*;
use crate::system::departures::PATIENCE_NS;

/// A running VM with a vdev, whose guest hears what it is asked, or does not.
fn running(machine: &TestMachine, listens: bool) -> (Arc<Vm>, VdevId) {
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    let mut truth = machine.truth.lock();
    truth.listens = listens;
    truth.steps.clear();
    drop(truth);
    (alpha, vdev)
}

#[test]
fn a_guest_that_lets_go_decides_when() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let (alpha, vdev) = running(&machine, true);
    assert_eq!(system.next_departure(), None);
    assert_eq!(system.dismiss_vdev(machine.truth, &alpha, vdev), Ok(Dismissal::Asked));
    // Asked twice is asked once: Linux would take it for second thoughts.
    assert_eq!(system.dismiss_vdev(machine.truth, &alpha, vdev), Ok(Dismissal::Asked));
    assert_eq!(machine.truth.lock().steps, [Step::Asked(vdev)]);
    assert_eq!(system.vdev_infos()[0].state, "leaving");
    machine.truth.set_clock(PATIENCE_NS / 2);
    assert_eq!(system.serve_departures(machine.truth), []);
    assert_eq!((system.vdev_infos().len(), system.next_departure().is_some()), (1, true));
    machine.assert_sound();
    machine.truth.lock().let_go.insert(vdev);
    let gone = system.serve_departures(machine.truth);
    assert_eq!((gone.len(), gone[0].vdev.vdev, gone[0].let_go), (1, vdev, true));
    assert_eq!((system.vdev_infos().len(), system.next_departure()), (0, None));
    machine.assert_sound();
}

#[test]
fn a_guest_that_does_not_loses_it_all_the_same() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let (alpha, vdev) = running(&machine, true);
    system.dismiss_vdev(machine.truth, &alpha, vdev).unwrap();
    let due = system.next_departure().unwrap();
    machine.truth.set_clock(due - 1);
    assert_eq!(system.serve_departures(machine.truth), []);
    // A pCPU does not come back: later, and not never.
    machine.truth.set_clock(due);
    machine.truth.fail(Fail::Unplug);
    assert_eq!(system.serve_departures(machine.truth), []);
    let again = system.next_departure().unwrap();
    assert!(due < again && again < due + PATIENCE_NS);
    machine.truth.set_clock(again);
    let gone = system.serve_departures(machine.truth);
    assert_eq!((gone.len(), gone[0].let_go, system.vdev_infos().len()), (1, false, 0));
    machine.assert_sound();
}

#[test]
fn a_guest_that_would_not_hear_is_not_waited_for() {
    let machine = TestMachine::new();
    let (alpha, vdev) = running(&machine, false);
    assert_eq!(machine.system.dismiss_vdev(machine.truth, &alpha, vdev), Ok(Dismissal::Ended));
    assert_eq!((machine.system.vdev_infos().len(), machine.system.next_departure()), (0, None));
    assert!(machine.system.dismiss_vdev(machine.truth, &alpha, vdev).is_err(), "it is gone");
    machine.assert_sound();
}

#[test]
fn what_ends_meanwhile_is_not_waited_for() {
    for by_hand in [true, false] {
        let machine = TestMachine::new();
        let system = &machine.system;
        let (alpha, vdev) = running(&machine, true);
        system.dismiss_vdev(machine.truth, &alpha, vdev).unwrap();
        match by_hand {
            true => drop(system.destroy_vdev(machine.truth, &alpha, vdev).unwrap()),
            false => drop(system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap()),
        }
        assert_eq!(system.serve_departures(machine.truth), []);
        assert_eq!(system.next_departure(), None);
        machine.assert_sound();
    }
}

#[test]
fn a_vdev_moves_when_the_other_is_there_and_not_before() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.lock().listens = true;
    let vdev = alpha.vdevs()[0].id();
    let other = system.create_space(&alpha).unwrap().id();
    system.attach_space(other, vdev).unwrap();
    let go_over = |vdev| system.move_vdev(machine.truth, &alpha, vdev, &vdev_spec(), None);
    let states = || -> Vec<(VdevId, bool)> {
        alpha.vdevs().iter().map(|vdev| (vdev.id(), vdev.is_leaving())).collect()
    };
    // There is none to be had; then the guest cannot be asked.
    for step in [Fail::CreateSlice, Fail::Attach, Fail::Tag, Fail::Plug, Fail::Unplug] {
        machine.truth.fail(step);
        go_over(vdev).unwrap_err();
        assert_eq!(states(), [(vdev, false)], "{step:?}");
        machine.assert_sound();
    }
    let (next, dismissal) = go_over(vdev).unwrap();
    assert_eq!(dismissal, Dismissal::Asked);
    assert_eq!(states(), [(vdev, true), (next, false)]);
    assert_eq!(alpha.vdevs()[1].ioas(), Some(other), "on the same address space");
    assert!(go_over(vdev).unwrap_err().why.contains("leaving already"));
    assert!(go_over(next).is_err(), "the quota is for two");
    machine.truth.lock().let_go.insert(vdev);
    assert_eq!(system.serve_departures(machine.truth).len(), 1);
    assert_eq!(states(), [(next, false)]);
    // One that does not hear has both only for a moment.
    machine.truth.lock().listens = false;
    let (last, dismissal) = go_over(next).unwrap();
    assert_eq!((dismissal, states()), (Dismissal::Ended, vec![(last, false)]));
    machine.assert_sound();
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}
