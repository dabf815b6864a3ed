// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that are not taken, and units that are late or never answer.

use super::*;

const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;
const INV: u64 = 0x0c;
const DISCARD: u64 = 0x0f;

/// Every place in a map (of a device that is known) or an unmap where the queue can stall.
const MAPPING: [(u64, usize); 4] = [(MAPTI, 0), (SYNC, 0), (INV, 0), (SYNC, 1)];
const UNMAPPING: [(u64, usize); 4] = [(INV, 0), (SYNC, 0), (DISCARD, 0), (SYNC, 1)];

/// A machine with one interrupt that must never be disturbed.
fn machine() -> Rig {
    let machine = Rig::new();
    let _ = machine.map(DEVICE, 100, 3);
    machine
}

fn undisturbed(machine: &Rig) {
    let state = machine.gic.state.lock().unwrap();
    assert!(!state.units[0].stalled, "{}", state.units[0].complaint);
    drop(state);
    machine.gic.settle();
    let _ = machine.arrived();
    assert_eq!(machine.message(ID, 0), [(3, 100)]);
}

#[test]
fn a_stall_while_mapping_leaves_nothing_behind() {
    for at in MAPPING {
        let machine = machine();
        machine.unit(|its| its.refuse = Some(at));
        let refusal = machine.its.map_interrupt(DEVICE, vector(1, 1)).unwrap_err();
        assert!(refusal.why.contains("did not take"), "{refusal}");
        assert!(refusal.what.contains("its 0x8080000"), "{refusal}");
        undisturbed(&machine);
        for event in 1..2048 {
            assert_eq!(machine.message(ID, event), []);
        }
        // The same LPI, of another device.
        let interrupt = machine.map(OTHER, 1, 2);
        assert_eq!(machine.message(OTHER_ID, interrupt.message.data), [(2, 1)]);
        undisturbed(&machine);
    }
}

#[test]
fn a_stall_while_unmapping_keeps_the_event_until_it_worked() {
    for at in UNMAPPING {
        let machine = machine();
        let interrupt = machine.map(DEVICE, 1, 1);
        machine.unit(|its| its.refuse = Some(at));
        let refusal = machine.its.unmap_interrupt(interrupt.handle).unwrap_err();
        assert!(refusal.why.contains("did not take"), "{refusal}");
        undisturbed(&machine);
        let refusal = machine.its.map_interrupt(OTHER, vector(1, 2)).unwrap_err();
        assert!(refusal.why.contains("already"), "{refusal}");
        machine.unmap(interrupt);
        assert_eq!(machine.message(ID, interrupt.message.data), []);
        let second = machine.map(OTHER, 1, 2);
        assert_eq!(machine.message(OTHER_ID, second.message.data), [(2, 1)]);
        undisturbed(&machine);
    }
}

#[test]
fn a_device_that_was_not_made_known_is_introduced_again() {
    let machine = machine();
    machine.unit(|its| its.refuse = Some((MAPD, 0)));
    assert!(machine.its.map_interrupt(OTHER, vector(1, 1)).is_err());
    let pages = machine.memory.used();
    let interrupt = machine.map(OTHER, 1, 1);
    assert_eq!(machine.memory.used(), pages, "with the same table");
    assert_eq!(machine.message(OTHER_ID, interrupt.message.data), [(1, 1)]);
    undisturbed(&machine);
}

#[test]
fn a_unit_that_never_takes_a_command_is_not_waited_for_endlessly() {
    let machine = machine();
    let interrupt = machine.map(DEVICE, 1, 1);
    machine.unit(|its| its.refuse_always = Some(SYNC));
    for _ in 0..3 {
        assert!(machine.its.unmap_interrupt(interrupt.handle).is_err());
        assert!(machine.its.map_interrupt(DEVICE, vector(2, 1)).is_err());
        assert!(machine.its.map_interrupt(DEVICE, vector(1, 1)).is_err());
    }
    machine.unit(|its| its.refuse_always = None);
    // The first call finds what the last one left stalled.
    let _ = machine.its.unmap_interrupt(interrupt.handle);
    undisturbed(&machine);
    let _ = machine.its.unmap_interrupt(interrupt.handle);
    assert_eq!(machine.message(ID, interrupt.message.data), []);
    let again = machine.map(OTHER, 1, 2);
    assert_eq!(machine.message(OTHER_ID, again.message.data), [(2, 1)]);
    let again = machine.map(OTHER, 2, 2);
    assert_eq!(machine.message(OTHER_ID, again.message.data), [(2, 2)]);
}

#[test]
fn a_unit_that_stops_while_unmapping_keeps_the_event_and_the_call_may_be_repeated() {
    for after in 0..4 {
        let machine = machine();
        let interrupt = machine.map(DEVICE, 1, 1);
        machine.unit(|its| its.stop_after = Some(after));
        for _ in 0..2 {
            let refusal = machine.its.unmap_interrupt(interrupt.handle).unwrap_err();
            assert!(refusal.why.contains("not done within 1000 ms"), "{refusal}");
            assert!(refusal.why.contains("GITS_CREADR"), "{refusal}");
            let refusal = machine.its.map_interrupt(OTHER, vector(1, 2)).unwrap_err();
            assert!(refusal.why.contains("already"), "{refusal}");
        }
        machine.unit(|its| its.stuck = false);
        machine.unmap(interrupt);
        assert_eq!(machine.message(ID, interrupt.message.data), []);
        let second = machine.map(OTHER, 1, 2);
        assert_eq!(machine.message(OTHER_ID, second.message.data), [(2, 1)]);
        undisturbed(&machine);
    }
}

#[test]
fn a_unit_that_stops_while_mapping_never_gives_the_lpi_to_two() {
    for after in 0..5 {
        for repeat in [DEVICE, OTHER] {
            let machine = machine();
            machine.unit(|its| its.stop_after = Some(after));
            let mapped = machine.its.map_interrupt(OTHER, vector(1, 2));
            let refusal = mapped.unwrap_err();
            assert!(refusal.why.contains("not done within"), "{refusal}");
            // Nobody was told of it, so nobody can take it back; who wants the LPI has to wait for the unit.
            assert!(machine.its.unmap_interrupt(8193).is_err());
            assert!(machine.its.map_interrupt(repeat, vector(1, 2)).is_err());
            machine.unit(|its| its.stuck = false);
            let interrupt = machine.map(repeat, 1, 2);
            machine.gic.settle();
            let _ = machine.arrived();
            for (device, requester) in [(ID, DEVICE), (OTHER_ID, OTHER)] {
                for event in 1..64 {
                    let expected = if (requester, event) == (repeat, interrupt.message.data) {
                        vec![(2, 1)]
                    } else {
                        vec![]
                    };
                    assert_eq!(machine.message(device, event), expected, "{after} {device:#x} {event}");
                }
            }
            undisturbed(&machine);
        }
    }
}

#[test]
fn a_stall_that_comes_late_is_got_past() {
    for at in UNMAPPING {
        let machine = machine();
        let interrupt = machine.map(DEVICE, 1, 1);
        machine.unit(|its| {
            its.stuck = true;
            its.refuse = Some(at);
        });
        assert!(machine.its.unmap_interrupt(interrupt.handle).is_err());
        machine.unit(|its| its.stuck = false);
        // Whoever comes next finds it.
        let refusal = machine.its.map_interrupt(OTHER, vector(2, 2)).unwrap_err();
        assert!(refusal.why.contains("did not take"), "{refusal}");
        let second = machine.map(OTHER, 2, 2);
        assert_eq!(machine.message(OTHER_ID, second.message.data), [(2, 2)]);
        machine.unmap(interrupt);
        assert_eq!(machine.message(ID, interrupt.message.data), []);
        undisturbed(&machine);
    }
}

#[test]
fn a_take_over_that_the_unit_does_not_take_is_refused() {
    for (number, times) in [(MAPC, 0), (MAPC, 3), (0x0d, 0), (SYNC, 2)] {
        let refusal = Rig::try_changed(|gic| {
            gic.state.lock().unwrap().units[0].refuse = Some((number, times));
        })
        .err()
        .unwrap();
        assert!(refusal.why.contains("did not take"), "{refusal}");
    }
    let refusal = Rig::try_changed(|gic| gic.state.lock().unwrap().units[0].stuck = true).err().unwrap();
    assert!(refusal.why.contains("not done within"), "{refusal}");
}
