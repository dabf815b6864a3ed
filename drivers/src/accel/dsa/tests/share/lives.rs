// SPDX-License-Identifier: MIT OR Apache-2.0
//! Beginnings and ends of shares, and of the device under them.

use pasidon_kernel::base::drained::Drained;

use super::*;

const SUCCESS: [u64; 4] = [1, 0, 0, 0];
/// Commands of the device.
const ENABLE_WQ: u32 = 6;
const ABORT_PASID: u64 = 12;

/// Commands that the device was given, but for the handles.
fn commands(machine: &Machine) -> Vec<u64> {
    let state = machine.model.locked();
    let commands = state.writes.iter().filter(|(offset, _)| *offset == 0xa0);
    commands.map(|(_, value)| value >> 20 & 0x1f).filter(|code| *code != 13).collect()
}

#[test]
fn the_shared_queue_is_up_before_anybody_has_a_share() {
    let machine = Machine::new(true);
    let state = machine.model.locked();
    assert!(state.queue_enabled(SHARED));
    assert_eq!(state.mode(SHARED) & 1, 0, "shared");
    assert_eq!(state.mode(SHARED) >> 28 & 3, 1, "PASID_EN, not privileged");
    assert_eq!(state.wqcfg[SHARED][1], u32::from(SHARED_ENTRIES), "all of it can be filled");
}

#[test]
fn silicon_with_unsafe_portals_is_shared_by_traps() {
    let (machine, _) = Machine::with(true, 0x0b25, SHARED_ENTRIES);
    let engines =
        machine.model.locked().grpcfg.iter().find(|group| group[0] >> SHARED & 1 != 0).map(|group| group[4]);
    assert_eq!(engines, Some(0xf), "nobody else can have an engine");
    let refusal = create(&machine.parent, "alpha", None).map(drop).unwrap_err();
    assert!(refusal.why.contains("INTEL-SA-01084"), "{refusal}");
    let mut guest = machine.guest(3);
    guest.copy(0x40);
    machine.complete(0, SUCCESS, &mut guest);
    assert_eq!(guest.record(0x40), SUCCESS);
    assert!(guest.guest.vdev.portals().is_empty());
    // No queue of anybody's own needs an interrupt.
    let (machine, _) = Machine::with(false, 0x0b25, SHARED_ENTRIES);
    assert_eq!(machine.parent.available(TYPE_SWQ), MSIX as u16 - 1);
}

#[test]
fn refusals_say_what_is_missing() {
    let request = VdevRequest { vm: "alpha", type_name: TYPE_SWQ, entries: None, weight: None };
    let why = |machine: &Machine, request| machine.parent.create(request).map(drop).unwrap_err().to_string();
    let none = Machine::with(true, 0x11fb, 0).0;
    assert_eq!(
        why(&none, &request),
        "vm alpha: vdev dsa0/dsa-swq: no queue of the device is shared; write shared_entries = 16 into its section"
    );
    let (model, parent) = parent(&[]);
    let refusal = parent.create(&request).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("the processor has no deferrable store (ENQCMD)"), "{refusal}");
    drop((model, parent));
    let machine = Machine::new(false);
    let large = VdevRequest { entries: Some(129), ..request };
    assert!(why(&machine, &large).contains("entries 129: more than the 128"));
    let _only = machine.share(None, None).unwrap();
    assert_eq!(
        why(&machine, &request),
        "vm alpha: vdev dsa0/dsa-swq: 2nd of 1 shares; end a vdev on it, or use another parent"
    );
    let dedicated = VdevRequest { type_name: TYPE_DWQ, weight: Some(2), ..request };
    assert!(why(&machine, &dedicated).contains("weight: it has a queue of its own"));
}

#[test]
fn an_end_is_the_devices_word_that_nothing_is_in_flight() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (machine.guest(1), machine.guest(2));
    (0..6).for_each(|_| alpha.copy(0x40));
    beta.copy(0x40);
    let entry = alpha.guest.vdev.interrupts()[0].physical;
    alpha.guest.vdev.quiesce().unwrap();
    assert_eq!(commands(&machine).last(), Some(&ABORT_PASID));
    assert_eq!(machine.tags(), [2], "the other's go on");
    assert_eq!(machine.permission(entry), 0, "its interrupt lets nothing through");
    alpha.copy(0x40);
    assert_eq!(machine.tags(), [2]);
    drop(alpha);
    machine.complete(0, SUCCESS, &mut beta);
    // All room is there again.
    let mut next = machine.guest(7);
    (0..8).for_each(|_| next.copy(0x40));
    (0..8).for_each(|_| beta.copy(0x40));
    assert_eq!(machine.tags().len(), usize::from(SHARED_ENTRIES));
}

#[test]
fn an_end_that_the_device_does_not_confirm_gives_nothing_back() {
    let machine = Machine::new(true);
    let before = machine.parent.available(TYPE_SWQ);
    let mut alpha = machine.guest(1);
    let mut beta = machine.guest(2);
    alpha.copy(0x40);
    machine.model.state.lock().hang = vec![ABORT_PASID as u32];
    let failed = alpha.guest.vdev.quiesce().unwrap_err();
    assert!(failed.why.contains("Abort PASID 1: not finished"), "{failed:?}");
    // The bystander's copies go on.
    beta.copy(0x40);
    machine.complete(1, SUCCESS, &mut beta);
    assert_eq!(beta.raised(), [1]);
    assert_eq!((machine.memory.used(), machine.parent.available(TYPE_SWQ)), (2, before - 2));
    machine.model.finish();
    alpha.guest.vdev.try_quiesce().unwrap();
    drop(alpha);
    assert_eq!((machine.memory.used(), machine.parent.available(TYPE_SWQ)), (1, before - 1));
}

/// What is left of an end that is asked for again and again is said once.
#[test]
fn a_share_that_does_not_stop_is_said_to_be_retired_once() {
    let machine = Machine::new(true);
    let mut guest = machine.guest(1);
    guest.copy(0x40);
    machine.model.state.lock().hang = vec![ABORT_PASID as u32];
    for _ in 0..20 {
        guest.guest.vdev.try_quiesce().unwrap_err();
    }
    machine.model.finish();
    guest.guest.vdev.try_quiesce().unwrap();
}

/// As many shares as the device has handles for; the queues of others come first.
#[test]
fn a_device_with_few_handles_offers_few_shares() {
    let model = Model::new(0x11fb);
    model.state.lock().gencap |= 1 << 25;
    // One for each queue, and three.
    model.state.lock().handles_max = QUEUES + 3;
    let machine = Machine::on(model, SHARED_ENTRIES).0;
    assert_eq!(machine.parent.available(TYPE_SWQ), 3);
    let mut guest = machine.guest(1);
    guest.copy(0x40);
    machine.complete(0, SUCCESS, &mut guest);
}

/// A device that halts under a queue that is being enabled again ends that, however often somebody looks.
#[test]
fn a_device_that_refuses_to_abort_keeps_nobody() {
    let machine = Machine::new(true);
    let mut guest = machine.guest(1);
    guest.copy(0x40);
    machine.model.state.lock().hang = vec![ABORT_PASID as u32];
    guest.guest.set_bus_master(false);
    guest.guest.set_bus_master(true);
    machine.model.state.lock().gensts = 3;
    machine.model.finish();
    guest.guest.r32(0x90);
    guest.guest.event();
    assert_eq!(guest.guest.r32(0x90) & 3, 3);
}

/// Who enables a queue while the device is reset waits for the end of that.
#[test]
fn a_queue_that_is_enabled_during_a_reset_is_enabled_after_it() {
    let machine = Machine::new(true);
    let mut guest = machine.guest(1);
    guest.guest.w32(0xa0, 7 << 20 | 1);
    let shared = machine.parent.device().shared.clone().unwrap();
    shared.suspend();
    guest.guest.w32(0xa0, 6 << 20);
    guest.copy(0x40);
    assert_eq!(machine.tags(), [0; 0]);
    shared.resume();
    guest.guest.event();
    assert_eq!(guest.guest.r32(0xa8), 0);
    guest.copy(0x40);
    assert_eq!(machine.tags(), [1]);
}

#[test]
fn a_share_that_never_had_a_tag_needs_no_command() {
    let machine = Machine::new(true);
    let before = commands(&machine);
    drop(machine.share(None, None).unwrap());
    assert_eq!((commands(&machine), machine.memory.used()), (before, 0));
}

/// Linux's commands on its queue act on what is its own, and none reaches the shared queue.
#[test]
fn commands_of_a_guest_stay_its_own() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (machine.guest(1), machine.guest(2));
    beta.copy(0x40);
    for code in [7, 8, 9, 10, 3, 4, 11, 12, 2, 5] {
        alpha.start(8);
        alpha.copy(0x40);
        let operand = if matches!(code, 7..=10) { 1 } else { 0 };
        alpha.guest.w32(0xa0, code << 20 | operand);
        let pending = alpha.guest.r32(0xa8) >> 31 != 0;
        if pending {
            // A drain waits for what is in flight.
            let place = machine.tags().iter().position(|tag| *tag == 1).unwrap();
            machine.complete(place, SUCCESS, &mut alpha);
        }
        assert_eq!(alpha.guest.r32(0xa8), 0, "command {code}");
        assert_eq!(machine.tags(), [2], "command {code}");
        assert!(machine.model.locked().queue_enabled(SHARED), "command {code}");
    }
    let given = commands(&machine);
    assert!(given.iter().skip(3).all(|code| *code == ABORT_PASID), "{given:?}");
    machine.complete(0, SUCCESS, &mut beta);
    assert_eq!((beta.raised(), beta.error()[0]), (vec![1], 0));
}

#[test]
fn a_drain_ends_when_the_last_of_its_own_has_ended() {
    let machine = Machine::new(true);
    let mut guest = machine.guest_with(1, None, Some(8));
    (0..8).for_each(|_| guest.copy(0x40));
    guest.guest.w32(0xa0, 1 << 31 | 7 << 20 | 1);
    assert_eq!(guest.guest.r32(0xa8) >> 31, 1);
    guest.copy(0x40);
    assert_eq!(guest.detail("submitted"), "6 (0 completed, 6 in flight, 2 wait)", "nothing more comes in");
    for left in (0..8).rev() {
        machine.complete(0, SUCCESS, &mut guest);
        assert_eq!(guest.guest.r32(0xa8) >> 31, u32::from(left > 0));
    }
    assert!(guest.raised().contains(&0), "the command's interrupt");
}

#[test]
fn a_reset_of_the_device_loses_what_was_in_flight_and_nothing_else() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (machine.guest(1), machine.guest(2));
    (0..8).for_each(|_| alpha.copy(0x40));
    recover(&machine.parent).unwrap();
    assert!(machine.model.locked().queue_enabled(SHARED));
    assert_eq!(machine.tags(), [0; 0]);
    for guest in [&mut alpha, &mut beta] {
        guest.guest.event();
        assert_eq!(guest.guest.r32(0x90) & 3, 3, "halted");
        guest.copy(0x40);
        assert_eq!(machine.tags(), [0; 0], "not before its driver has set it up again");
        guest.start(8);
    }
    for guest in [&mut alpha, &mut beta] {
        (0..4).for_each(|_| guest.copy(0x40));
    }
    assert_eq!(machine.tags(), [1, 1, 1, 1, 2, 2, 2, 2], "all room is there");
    machine.complete(0, SUCCESS, &mut alpha);
    assert_eq!(alpha.record(0x40), SUCCESS);
}

/// An error that the device tells of goes to the share whose tag it names.
#[test]
fn an_error_of_the_shared_queue_reaches_its_owner() {
    let machine = Machine::new(true);
    let (mut alpha, mut beta) = (machine.guest(1), machine.guest(2));
    machine.model.raise_error(SHARED as u64, 0x1a, 2, 0x5000);
    let mut told = Vec::new();
    assert_eq!(machine.parent.interrupt(&mut |event| told.push(event)), Drained::Empty);
    let [ParentEvent::Error { pasid: named, text }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(named.map(Pasid::value), Some(2));
    assert!(text.starts_with("share 1 of WQ 7: page fault on a completion record"), "{text}");
    beta.guest.event();
    assert_eq!(beta.raised(), [0]);
    let error = beta.error();
    assert_eq!((error[0] >> 8 & 0xff, error[0] >> 40, error[0] >> 16 & 0xff, error[2]), (0x1a, 0, 0, 0x5000));
    alpha.guest.event();
    assert_eq!((alpha.raised(), alpha.error()[0]), (vec![], 0));
}

#[test]
fn bus_mastering_that_goes_drops_what_was_in_flight_and_comes_back() {
    let machine = Machine::new(true);
    let mut guest = machine.guest(1);
    guest.copy(0x40);
    guest.guest.set_bus_master(false);
    assert_eq!(machine.tags(), [0; 0]);
    guest.copy(0x40);
    assert_eq!(machine.tags(), [0; 0]);
    guest.guest.set_bus_master(true);
    guest.guest.event();
    guest.copy(0x40);
    assert_eq!(machine.tags(), [1]);
    assert_ne!(guest.guest.r32(0x90) & 3, 3);
}

#[test]
fn the_first_command_of_a_bring_up_enables_the_shared_queue_once() {
    let machine = Machine::new(true);
    let enables = commands(&machine).into_iter().filter(|code| *code == u64::from(ENABLE_WQ)).count();
    assert_eq!(enables, 1);
    let _guests = [machine.guest(1), machine.guest(2)];
    let enables = commands(&machine).into_iter().filter(|code| *code == u64::from(ENABLE_WQ)).count();
    assert_eq!(enables, 1);
}

/// What the device had is lost with a reset, also for a queue that was about to be disabled: that is over.
#[test]
fn a_queue_that_was_draining_is_not_open_after_a_reset() {
    let machine = Machine::new(true);
    let mut guest = machine.guest(1);
    guest.copy(0x40);
    // Disable WQ, which waits for the copy.
    guest.guest.w32(0xa0, 7 << 20 | 1);
    assert_eq!(guest.guest.r32(0xa8) >> 31, 1, "active");
    recover(&machine.parent).unwrap();
    guest.guest.event();
    let shared = machine.parent.device().shared.clone().unwrap();
    shared.for_each(|member| assert!(!member.is_open(), "open behind a reset"));
    guest.copy(0x40);
    assert!(machine.has().is_empty());
}
