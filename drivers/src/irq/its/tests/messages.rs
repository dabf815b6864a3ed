// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which message raises what, and what does not.

use super::*;
use crate::iort::tests::machine_with_its_groups;

const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPTI: u64 = 0x0a;
const INV: u64 = 0x0c;
const DISCARD: u64 = 0x0f;

#[test]
fn messages_reach_their_lpi_at_their_processor() {
    let machine = Rig::new();
    let interrupts: Vec<_> = (0..40).map(|lpi| machine.map(DEVICE, lpi, lpi % PROCESSORS)).collect();
    for (lpi, interrupt) in (0..).zip(&interrupts) {
        assert_eq!(machine.message(ID, interrupt.message.data), [(lpi % PROCESSORS, lpi)]);
    }
    let last = machine.map(OTHER, 8191, 3);
    assert_eq!(machine.message(OTHER_ID, last.message.data), [(3, 8191)]);
}

#[test]
fn the_message_of_another_device_raises_nothing() {
    let machine = Rig::new();
    let interrupt = machine.map(DEVICE, 1, 1);
    let event = interrupt.message.data;
    assert_eq!(machine.message(OTHER_ID, event), []);
    // Nor where the other has events itself.
    let other = machine.map(OTHER, 2, 2);
    assert_eq!(other.message.data, event, "both start at the same EventID");
    assert_eq!(machine.message(OTHER_ID, event), [(2, 2)]);
    machine.unmap(other);
    assert_eq!(machine.message(OTHER_ID, event), []);
    assert_eq!(machine.message(ID, event), [(1, 1)]);
}

#[test]
fn events_that_are_not_mapped_raise_nothing() {
    let machine = Rig::new();
    let interrupt = machine.map(DEVICE, 1, 1);
    for event in (0..4096).chain([8193, u32::MAX]) {
        if event != interrupt.message.data {
            assert_eq!(machine.message(ID, event), []);
        }
    }
}

#[test]
fn after_an_unmap_nothing_is_raised() {
    let machine = Rig::new();
    let interrupt = machine.map(DEVICE, 1, 1);
    let event = interrupt.message.data;
    assert_eq!(machine.message(ID, event), [(1, 1)]);
    machine.gic.state.lock().unwrap().noisy.push((0, ID, event));
    machine.unmap(interrupt);
    // Until it returned they may have come, not after that.
    let _ = machine.arrived();
    machine.gic.settle();
    assert_eq!(machine.message(ID, event), []);
    assert!(machine.its.unmap_interrupt(interrupt.handle).is_err());
}

#[test]
fn unmapping_one_leaves_the_others_of_the_device_alone() {
    let machine = Rig::new();
    let interrupts: Vec<_> = (0..8).map(|lpi| machine.map(DEVICE, lpi, lpi % PROCESSORS)).collect();
    for (at, interrupt) in interrupts.iter().enumerate() {
        // Messages of the others are under way meanwhile, and none is lost.
        for other in &interrupts[at + 1..] {
            machine.gic.slow_message(0, ID, other.message.data);
        }
        machine.unmap(*interrupt);
        machine.gic.settle();
        let expected: Vec<_> = (at as u32 + 1..8).map(|lpi| (lpi % PROCESSORS, lpi)).collect();
        let mut arrived = machine.arrived();
        arrived.sort_by_key(|&(_, lpi)| lpi);
        assert_eq!(arrived, expected);
    }
}

#[test]
fn a_message_under_way_when_its_event_ends_is_not_the_next_owners() {
    for processor in 0..PROCESSORS {
        let machine = Rig::new();
        let first = machine.map(DEVICE, 1, 1);
        let noise = (0, ID, first.message.data);
        machine.gic.state.lock().unwrap().noisy.push(noise);
        machine.unmap(first);
        machine.gic.state.lock().unwrap().noisy.clear();
        let _ = machine.arrived();
        let second = machine.map(OTHER, 1, processor);
        machine.gic.settle();
        assert_eq!(machine.arrived(), [], "nothing was sent to the new owner");
        assert_eq!(machine.message(OTHER_ID, second.message.data), [(processor, 1)]);
    }
}

#[test]
fn an_event_is_mapped_disabled_and_then_enabled() {
    let machine = Rig::new();
    machine.unmap(machine.map(DEVICE, 7, 0));
    machine.log();
    // The device sends to the event that comes next, all the time.
    machine.gic.state.lock().unwrap().noisy.push((0, ID, 1));
    machine.unit(|its| its.stop_after = Some(2));
    assert!(machine.its.map_interrupt(DEVICE, vector(5, 0)).is_err());
    assert_eq!(machine.log(), [MAPTI, SYNC]);
    machine.gic.settle();
    assert_eq!(machine.arrived(), [], "not enabled yet");
}

#[test]
fn commands_come_in_the_right_order() {
    let machine = Rig::new();
    machine.log();
    let interrupt = machine.map(DEVICE, 1, 1);
    assert_eq!(machine.log(), [MAPD, MAPTI, SYNC, INV, SYNC]);
    machine.unmap(interrupt);
    assert_eq!(machine.log(), [INV, SYNC, DISCARD, SYNC]);
    let _ = machine.map(DEVICE, 1, 1);
    assert_eq!(machine.log(), [MAPTI, SYNC, INV, SYNC]);
}

#[test]
fn lpis_are_used_again_and_events_go_round() {
    let machine = Rig::changed(|gic| {
        // 8 events per device.
        let its = &mut gic.state.lock().unwrap().units[0];
        its.typer = its.typer & !(31 << 8) | 2 << 8;
    });
    let kept = machine.map(DEVICE, 100, 3);
    let mut seen = Vec::new();
    // More commands than fit into the queue, so that it wraps too.
    for round in 0..600u32 {
        let lpi = round % 3;
        let interrupt = machine.map(DEVICE, lpi, round % PROCESSORS);
        seen.push(interrupt.message.data);
        assert_eq!(machine.message(ID, interrupt.message.data), [(round % PROCESSORS, lpi)]);
        machine.unmap(interrupt);
    }
    assert_eq!(seen[..8], [1, 2, 3, 4, 5, 6, 7, 1]);
    assert_eq!(machine.message(ID, kept.message.data), [(3, 100)]);
}

#[test]
fn events_and_lpis_run_out() {
    let machine = Rig::changed(|gic| {
        let its = &mut gic.state.lock().unwrap().units[0];
        its.typer = its.typer & !(31 << 8) | 1 << 8;
    });
    let interrupts: Vec<_> = (0..4).map(|lpi| machine.map(DEVICE, lpi, 0)).collect();
    let refusal = machine.its.map_interrupt(DEVICE, vector(4, 0)).unwrap_err();
    assert!(refusal.why.contains("all 4 events are taken"), "{refusal}");
    // Another device has its own, and the LPI was not lost.
    let other = machine.map(OTHER, 4, 0);
    machine.unmap(interrupts[2]);
    let again = machine.map(DEVICE, 2, 1);
    assert_eq!(again.message.data, 2);
    for (lpi, interrupt) in [(0, interrupts[0]), (1, interrupts[1]), (3, interrupts[3])] {
        assert_eq!(machine.message(ID, interrupt.message.data), [(0, lpi)]);
    }
    assert_eq!(machine.message(ID, 2), [(1, 2)]);
    assert_eq!(machine.message(OTHER_ID, other.message.data), [(0, 4)]);
    // An LPI is never mapped twice, and what is no LPI, or of no processor, never at all.
    let refusal = machine.its.map_interrupt(OTHER, vector(0, 2)).unwrap_err();
    assert!(refusal.why.contains("already"), "{refusal}");
    for target in [
        HostVector { vector: 8191, ..vector(0, 0) },
        HostVector { vector: 16384, ..vector(0, 0) },
        HostVector { vector: 0, ..vector(0, 0) },
        HostVector { vector: u32::MAX, ..vector(0, 0) },
        HostVector { cpu: 0, ..vector(9, 0) },
        HostVector { cpu: affinity(PROCESSORS), ..vector(9, 0) },
    ] {
        assert!(machine.its.map_interrupt(OTHER, target).is_err(), "{target:?}");
    }
    for handle in [0, 8191, 8200, 16384, u32::MAX] {
        assert!(machine.its.unmap_interrupt(handle).is_err(), "{handle}");
    }
}

#[test]
fn any_processor_may_call_at_any_time() {
    let machine = Rig::new();
    let kept: Vec<_> = std::thread::scope(|scope| {
        let machine = &machine;
        let threads: Vec<_> = (0..PROCESSORS)
            .map(|number| {
                scope.spawn(move || {
                    for round in 0..50 {
                        let requester = if round % 2 == 0 { DEVICE } else { OTHER };
                        machine.unmap(machine.map(requester, number, round % PROCESSORS));
                    }
                    machine.map(DEVICE, number, number)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (number, interrupt) in (0..).zip(kept) {
        assert_eq!(machine.message(ID, interrupt.message.data), [(number, number)]);
    }
}

#[test]
fn several_units_share_the_lpis() {
    // Segment 0 is served by 7 or 9, of which the MADT names 9; segment 1 by 3.
    let machine = Rig::try_found(machine_with_its_groups(), &[5, 9, 3], |_| {}).unwrap();
    machine.its.take_over().unwrap();
    let near = Requester::new(0, 0, 1, 0);
    let far = Requester::new(1, 0, 1, 0);
    let (first, second) = (machine.map(near, 1, 1), machine.map(far, 2, 2));
    assert_eq!(first.message.address, ITS + 0x11_0040);
    assert_eq!(second.message.address, ITS + 0x21_0040);
    for unit in 0..3 {
        for device in [0x08, 0x8008] {
            machine.gic.message(unit, device, 0);
            let expected = match (unit, device) {
                (1, 0x08) => vec![(1, 1)],
                (2, 0x8008) => vec![(2, 2)],
                _ => vec![],
            };
            assert_eq!(machine.arrived(), expected, "{device:#x} at {unit}");
        }
    }
    // An LPI of one is not to be had at the other, until it is free.
    assert!(machine.its.map_interrupt(far, vector(1, 1)).is_err());
    machine.unmap(first);
    let third = machine.map(far, 1, 3);
    machine.gic.message(2, 0x8008, third.message.data);
    assert_eq!(machine.arrived(), [(3, 1)]);
}

#[test]
fn a_requester_that_reaches_no_unit_is_refused() {
    let machine = Rig::try_found(machine_with_its_groups(), &[9], |_| {}).unwrap();
    machine.its.take_over().unwrap();
    let refusal = |requester| machine.its.map_interrupt(requester, vector(0, 0)).unwrap_err();
    let nowhere = refusal(Requester::new(7, 0, 1, 0));
    assert!(nowhere.why.contains("to no ITS"), "{nowhere}");
    let unknown = refusal(Requester::new(1, 0, 1, 0));
    assert!(unknown.why.contains("the MADT does not name"), "{unknown}");
    let machine = Rig::try_found(Iort::default(), &[9], |_| {}).unwrap();
    assert!(machine.its.map_interrupt(DEVICE, vector(0, 0)).is_err());
}

#[test]
fn two_devices_that_look_the_same_are_not_both_served() {
    let machine = Rig::try_found(machine_with_its_groups(), &[9], |_| {}).unwrap();
    machine.its.take_over().unwrap();
    let first = Requester::new(2, 0, 1, 0);
    let interrupt = machine.map(first, 0, 0);
    let refusal = machine.its.map_interrupt(Requester::new(2, 0, 2, 0), vector(1, 0)).unwrap_err();
    assert!(refusal.why.contains("cannot tell its messages from those of 0002:00:01.0"), "{refusal}");
    assert_eq!(machine.message(0x77, interrupt.message.data), [(0, 0)]);
    let _ = machine.map(first, 1, 0);
}

#[test]
fn what_is_mapped_is_described() {
    let machine = Rig::new();
    let _ = machine.map(DEVICE, 0, 0);
    machine.unmap(machine.map(DEVICE, 1, 0));
    let lines = machine.its.describe();
    let line = |name: &str| lines.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    assert_eq!(line("LPIs"), "1 of 8192 mapped");
    assert_eq!(line("unit"), "its 0x8080000");
    assert_eq!(line("widths"), "device 16, event 16, collection 16 bits");
    assert_eq!(line("features"), "two-level device table");
    assert_eq!(line("device"), "0000:6a:01.0 (DeviceID 0x6a08): 1 of 2048 events mapped");
}
