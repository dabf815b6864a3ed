// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who gets how much of the queue.

use super::*;

const SUCCESS: [u64; 4] = [1, 0, 0, 0];

/// The device completes the oldest descriptor; whose it was.
fn step(machine: &Machine, guests: &mut [Sharer]) -> Option<usize> {
    let tag = *machine.tags().first()?;
    let whose = guests.iter().position(|guest| guest.tag == tag).unwrap();
    machine.complete(0, SUCCESS, &mut guests[whose]);
    Some(whose)
}

/// Bytes that each guest has copied, where each keeps its queue full with copies of its size.
fn copied(weights: &[u8], sizes: &[u64], rounds: usize) -> Vec<u64> {
    let machine = Machine::new(true);
    let mut guests: Vec<Sharer> =
        (1..).zip(weights).map(|(tag, weight)| machine.guest_with(tag, Some(*weight), Some(16))).collect();
    let submit = |guest: &mut Sharer, size: u64| guest.submit([MOVE, 0x40, 0, 0, HANDLE | size, 0, 0, 0]);
    for (guest, size) in guests.iter_mut().zip(sizes) {
        (0..16).for_each(|_| submit(guest, *size));
    }
    let mut copied = vec![0; guests.len()];
    for _ in 0..rounds {
        let whose = step(&machine, &mut guests).expect("something is always in flight");
        copied[whose] += sizes[whose];
        submit(&mut guests[whose], sizes[whose]);
        assert_eq!(guests[whose].error()[0], 0, "there was room");
    }
    copied
}

#[test]
fn a_queue_is_shared_by_weight_whatever_is_copied() {
    let weights = [1, 1, 2, 4];
    let copied = copied(&weights, &[0x8_0000, 0x1000, 0x1_0000, 0x4000], 40_000);
    let total: u64 = copied.iter().sum();
    for (share, weight) in copied.iter().zip(weights) {
        let part = *share as f64 / total as f64 * 8.0 / f64::from(weight);
        assert!((0.9..1.1).contains(&part), "{copied:?}");
    }
}

#[test]
fn one_that_comes_finds_room_and_is_served_before_what_others_have_waiting() {
    let machine = Machine::new(true);
    let mut guests = vec![machine.guest_with(1, None, Some(64)), machine.guest(2), machine.guest(3)];
    for _ in 0..60 {
        guests[0].copy(0x40);
    }
    assert_eq!(machine.tags(), [1; 6], "all but a quarter of the queue");
    for guest in &mut guests[1..] {
        guest.copy(0x40);
    }
    assert_eq!(machine.tags(), [1, 1, 1, 1, 1, 1, 2, 3]);
    // Full: who waits has its turn, not who waits most.
    (0..3).for_each(|_| guests[1].copy(0x40));
    (0..3).for_each(|_| guests[2].copy(0x40));
    assert_eq!(machine.tags().len(), 8);
    let mut order = Vec::new();
    while let Some(whose) = step(&machine, &mut guests) {
        order.push(whose);
    }
    let last = |whose| order.iter().rposition(|other| *other == whose).unwrap();
    assert!(last(1) < 18 && last(2) < 18, "{order:?}");
    assert_eq!(order.len(), 68, "nothing is lost");
}

#[test]
fn a_device_that_refuses_is_asked_again() {
    let (machine, portals) = Machine::with(true, 0x11fb, SHARED_ENTRIES);
    let mut guest = machine.guest(1);
    *portals.refuse.lock() = 3;
    guest.copy(0x40);
    assert_eq!((machine.has().len(), machine.parent.is_waiting()), (0, true));
    assert!(guest.guest.vdev.is_waiting(), "so that somebody is told to look");
    assert_eq!(guest.detail("submitted"), "0 (0 completed, 0 in flight, 1 wait)");
    while machine.has().is_empty() {
        machine.look();
    }
    assert!(!machine.parent.is_waiting());
    machine.complete(0, SUCCESS, &mut guest);
    assert_eq!(guest.raised(), [1]);
    assert_eq!(guest.detail("retries"), "3");
}

/// An interrupt that is held back while its owner is away keeps nobody waiting.
#[test]
fn what_has_completed_makes_room_also_where_its_interrupt_does_not_come() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta, mut gamma) = (machine.guest(1), machine.guest(2), machine.guest(3));
    for guest in [&mut alpha, &mut beta] {
        (0..8).for_each(|_| guest.copy(0x40));
    }
    gamma.copy(0x40);
    assert_eq!(machine.tags().len(), 8);
    for descriptor in machine.has() {
        let guest = if descriptor[0] as u32 == 1 { &alpha } else { &beta };
        machine.finish(&descriptor, SUCCESS, guest);
    }
    machine.model.locked().shared[SHARED].clear();
    assert!(machine.parent.is_waiting());
    assert_eq!(machine.look(), [1, 2], "are to be told");
    assert!(machine.tags().contains(&3), "{:?}", machine.tags());
    assert_eq!(alpha.raised(), [0u16; 0]);
    alpha.guest.event();
    assert_eq!(alpha.raised(), [1]);
}

/// One that sleeps, with its interrupts held back, does not keep its places, although others go on.
#[test]
fn a_sleeper_keeps_no_room_from_those_who_go_on() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (machine.guest(1), machine.guest(2));
    (0..6).for_each(|_| alpha.copy(0x40));
    (0..8).for_each(|_| beta.copy(0x40));
    for descriptor in machine.has().iter().filter(|descriptor| descriptor[0] as u32 == 1) {
        machine.finish(descriptor, SUCCESS, &alpha);
    }
    machine.model.locked().shared[SHARED].retain(|descriptor| descriptor[0] as u32 != 1);
    assert_eq!(machine.tags(), [2, 2]);
    machine.complete(0, SUCCESS, &mut beta);
    beta.copy(0x40);
    machine.look();
    assert_eq!(machine.tags(), [2; 6]);
}

/// As many as there are entries: none waits for ever, and the books agree in the end.
#[test]
fn many_share_one_queue() {
    let machine = Machine::new(true);
    let count = machine.parent.available(TYPE_SWQ);
    let mut guests: Vec<Sharer> = (1..=u32::from(count)).map(|tag| machine.guest(tag)).collect();
    for guest in &mut guests {
        (0..3).for_each(|_| guest.copy(0x40));
    }
    let mut ended = vec![0; guests.len()];
    while let Some(whose) = step(&machine, &mut guests) {
        ended[whose] += 1;
    }
    assert_eq!(ended, vec![3; guests.len()]);
    let pages = machine.memory.used();
    assert_eq!(pages, guests.len());
    for guest in &mut guests {
        guest.guest.vdev.quiesce().unwrap();
    }
    drop(guests);
    assert_eq!((machine.memory.used(), machine.parent.available(TYPE_SWQ)), (0, count));
}
