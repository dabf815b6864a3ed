// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that come while their owner is away.

use super::*;
use crate::monitor::info::AwayInfo;
use crate::vdev::gate::{ALLOWANCE, Came};

/// A storm in others' turns ends at the device after a few, and begins anew at the owner's turn.
#[test]
fn a_storm_of_interrupts_is_masked_while_its_owner_is_away() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    for turn in 1..4 {
        for _ in 0..ALLOWANCE {
            assert!(!alpha.came_away(vdev, turn, 10));
        }
        assert!(machine.truth.lock().held.is_empty());
        assert!(alpha.came_away(vdev, turn, 10));
        let held = machine.truth.lock().held.len();
        assert_eq!(held, alpha.vdevs()[0].model().interrupts().len(), "all of its entries");
        // One that was under way.
        assert!(!alpha.came_away(vdev, turn, 10));
        // The device cannot be told now: that is not forgotten.
        machine.truth.lock().cannot_hold = true;
        assert!(!alpha.open_interrupts());
        machine.truth.lock().cannot_hold = false;
        assert!(alpha.open_interrupts());
        assert!(machine.truth.lock().held.is_empty());
    }
    let away = AwayInfo {
        interrupts: 3 * (u64::from(ALLOWANCE) + 2),
        time_ns: 30 * (u64::from(ALLOWANCE) + 2),
        masked: 3,
    };
    assert_eq!(machine.system.vm_infos()[0].away, away);
    assert_eq!(machine.system.vdev_infos()[0].away, away);
    machine.assert_sound();
}

/// The ordinary case: no register of the device is written.
#[test]
fn a_few_interrupts_in_each_turn_of_others_are_free() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    for turn in 1..1000 {
        for _ in 0..ALLOWANCE {
            assert!(!alpha.came_away(vdev, turn, 0));
        }
        assert!(alpha.open_interrupts());
    }
    assert_eq!(machine.truth.lock().holds, 0);
}

/// After the end of a vdev, its entries may be another's.
#[test]
fn an_end_while_interrupts_are_held_back_leaves_nothing_masked_or_open() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs().remove(0);
    while !alpha.came_away(vdev.id(), 1, 0) {}
    machine.system.destroy_vdev(machine.truth, &alpha, vdev.id()).unwrap();
    let holds = machine.truth.lock().holds;
    assert!(alpha.open_interrupts() && vdev.open_interrupts());
    for _ in 0..100 {
        assert_eq!(vdev.came_away(2, 0), Came::Late);
    }
    assert_eq!(machine.truth.lock().holds, holds);
    machine.assert_sound();
}
