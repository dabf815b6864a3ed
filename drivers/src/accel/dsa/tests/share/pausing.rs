// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shares of guests that are paused: what the device has is completed, what waits stays.

use pasidon_kernel::vdev::parent::Paused;

use super::*;

const SUCCESS: [u64; 4] = [1, 0, 0, 0];
/// What the device has of one guest at most.
const PART: usize = SHARED_ENTRIES as usize * 3 / 4;

/// Completion record of each copy, by its number.
fn record(number: usize) -> u64 {
    0x40 + number as u64 * 0x20
}

/// A guest that has submitted so many.
fn at_work(machine: &Machine, tag: u32, copies: usize) -> Sharer {
    let mut guest = machine.guest_with(tag, None, Some(16));
    (0..copies).for_each(|number| guest.copy(record(number)));
    guest
}

/// Copies of which the guest was told, by number.
fn told(guest: &Sharer, copies: usize) -> Vec<usize> {
    (0..copies).filter(|number| guest.record(record(*number) as usize)[0] != 0).collect()
}

#[test]
fn what_the_device_has_is_told_and_what_waits_is_held_in_its_order() {
    let machine = Machine::new(true);
    let mut alpha = at_work(&machine, 1, 10);
    assert_eq!(machine.tags().len(), PART);
    alpha.guest.vdev.pause();
    alpha.guest.event();
    assert_eq!(alpha.guest.vdev.paused(), Some(Paused::Draining));
    assert!(machine.parent.is_waiting(), "somebody looks, whether or not its interrupts come");
    // The device completes without an interrupt that comes through.
    for left in (0..PART).rev() {
        let descriptor = machine.model.locked().shared[SHARED].remove(0);
        machine.finish(&descriptor, SUCCESS, &alpha);
        alpha.guest.event();
        let paused = if left > 0 { Paused::Draining } else { Paused::Held };
        assert_eq!(alpha.guest.vdev.paused(), Some(paused));
    }
    assert_eq!(told(&alpha, 10), (0..PART).collect::<Vec<_>>());
    assert_eq!(alpha.raised(), [1; PART], "kept for it until it goes on");
    (0..5).for_each(|_| alpha.guest.event());
    assert!(machine.has().is_empty() && !machine.parent.is_waiting());
    assert!(
        alpha.detail("submitted").ends_with("(6 completed, 0 in flight, 4 wait)"),
        "{}",
        alpha.detail("submitted")
    );

    alpha.guest.vdev.resume().unwrap();
    assert_eq!(machine.tags(), [1; 4], "each once, without being asked");
    while !machine.has().is_empty() {
        machine.complete(0, SUCCESS, &mut alpha);
    }
    assert_eq!(told(&alpha, 10), (0..10).collect::<Vec<_>>());
    assert!(alpha.detail("submitted").starts_with("10 (10 completed, 0 in flight, 0 wait)"));
}

#[test]
fn the_others_go_on_and_have_the_room() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (at_work(&machine, 1, 10), at_work(&machine, 2, 12));
    assert_eq!(machine.tags().iter().filter(|tag| **tag == 2).count(), 2);
    alpha.guest.vdev.pause();
    let mut done = 0;
    while done < 12 {
        let tag = machine.tags()[0];
        machine.complete(0, SUCCESS, if tag == 1 { &mut alpha } else { &mut beta });
        done += usize::from(tag == 2);
    }
    assert!(machine.has().is_empty(), "nothing of the paused one was sent");
    alpha.guest.event();
    assert_eq!(alpha.guest.vdev.paused(), Some(Paused::Held));
    assert_eq!((told(&alpha, 10).len(), told(&beta, 12).len()), (PART, 12));
    alpha.guest.vdev.resume().unwrap();
    assert_eq!(machine.tags(), [1; 4]);
}

#[test]
fn one_with_nothing_under_way_is_drained_and_one_whose_device_does_not_end_is_not() {
    let machine = Machine::new(true);
    let (mut idle, mut busy) = (machine.guest(1), at_work(&machine, 2, 1));
    for guest in [&mut idle, &mut busy] {
        guest.guest.vdev.pause();
        (0..20).for_each(|_| guest.guest.event());
    }
    assert_eq!(idle.guest.vdev.paused(), Some(Paused::Drained));
    assert_eq!(busy.guest.vdev.paused(), Some(Paused::Draining));
    // It goes on all the same: the device may have what its guest submits.
    busy.guest.vdev.resume().unwrap();
    busy.copy(record(1));
    machine.complete(0, SUCCESS, &mut busy);
    machine.complete(0, SUCCESS, &mut busy);
    assert_eq!(told(&busy, 2), [0, 1]);
}

#[test]
fn pauses_in_quick_succession_lose_nothing_and_double_nothing() {
    let machine = Machine::new(true);
    let mut alpha = at_work(&machine, 1, 14);
    let mut done = 0;
    for round in 0..200 {
        match round % 4 {
            0 => alpha.guest.vdev.pause(),
            2 => alpha.guest.vdev.resume().unwrap(),
            _ => alpha.guest.event(),
        }
        if round % 5 == 0 && !machine.has().is_empty() {
            machine.complete(0, SUCCESS, &mut alpha);
            done += 1;
        }
    }
    assert_eq!((done, told(&alpha, 14).len()), (14, 14));
    assert!(machine.has().is_empty());
}

fn complete_all(machine: &Machine, guest: &mut Sharer) {
    while !machine.has().is_empty() {
        machine.complete(0, SUCCESS, guest);
    }
}

/// A guest that has given Disable WQ, and was paused when some of what it had submitted was not sent yet.
fn paused_in_a_disable(machine: &Machine) -> Sharer {
    let mut guest = at_work(machine, 1, 8);
    guest.guest.w32(0xa0, 1 << 31 | 7 << 20 | 1);
    guest.guest.vdev.pause();
    complete_all(machine, &mut guest);
    guest
}

/// It ends well, and the guest is told of all that it had.
fn the_disable_ends(machine: &Machine, guest: &mut Sharer) {
    complete_all(machine, guest);
    guest.guest.event();
    assert_eq!((guest.guest.r32(0xa8), told(guest, 8).len()), (0, 8));
}

/// A disable of the guest's waits for what is held, and does not fail for the time of the pause.
#[test]
fn a_disable_that_waits_for_what_is_held_ends_after_the_pause() {
    let machine = Machine::new(true);
    let mut alpha = paused_in_a_disable(&machine);
    // Longer than any command may wait.
    for _ in 0..20_000 {
        alpha.guest.event();
    }
    assert_eq!(alpha.guest.vdev.paused(), Some(Paused::Held));
    assert_eq!(alpha.guest.r32(0xa8), 1 << 31, "not ended, not failed");
    assert!(!machine.parent.is_waiting(), "nobody looks after what waits for a person");
    alpha.guest.vdev.resume().unwrap();
    assert!(machine.parent.is_waiting());
    the_disable_ends(&machine, &mut alpha);
}

#[test]
fn the_end_and_a_reset_of_the_device_drop_what_is_held() {
    let machine = Machine::new(true);
    let before = machine.parent.available(TYPE_SWQ);
    let (mut alpha, mut beta) = (at_work(&machine, 1, 10), at_work(&machine, 2, 10));
    for guest in [&mut alpha, &mut beta] {
        guest.guest.vdev.pause();
        guest.guest.event();
    }
    alpha.guest.vdev.quiesce().unwrap();
    drop(alpha);
    assert_eq!(machine.tags(), [2; 2], "the other's, and no more of it for the room");
    recover(&machine.parent).unwrap();
    beta.guest.event();
    assert_eq!(beta.guest.vdev.paused(), Some(Paused::Drained), "nothing of before the reset is left");
    beta.guest.vdev.resume().unwrap();
    assert!(machine.has().is_empty());
    beta.start(16);
    beta.copy(record(0));
    machine.complete(0, SUCCESS, &mut beta);
    beta.guest.vdev.quiesce().unwrap();
    drop(beta);
    assert_eq!(machine.parent.available(TYPE_SWQ), before);
}

#[test]
fn a_disable_does_not_fail_for_the_time_of_a_pause_in_which_nobody_looks() {
    let machine = Machine::new(true);
    let mut alpha = paused_in_a_disable(&machine);
    alpha.guest.event();
    assert_eq!(alpha.guest.vdev.paused(), Some(Paused::Held));
    assert!(!machine.parent.is_waiting(), "nobody looks");
    let host = machine.parent.device().host.clone();
    let start = host.now_ns();
    while host.now_ns() - start < 60_000_000_000 {}
    alpha.guest.vdev.resume().unwrap();
    assert_eq!(alpha.guest.r32(0xa8) >> 31, 1, "still active");
    the_disable_ends(&machine, &mut alpha);
}
