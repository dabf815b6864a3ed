// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever a guest does to its registers, the device is touched only where the guest's queue is.

use proptest::prelude::*;

use super::model::{MSIX_TABLE, MSIXPERM, WQCFG, WQCFG_STRIDE};
use super::*;

/// Whether a write is one that the owner of `wq` may cause.
fn owned(wq: usize, (offset, value): (usize, u64)) -> bool {
    let config = WQCFG + wq * WQCFG_STRIDE;
    if (config + 4..config + WQCFG_STRIDE).contains(&offset) {
        return true;
    }
    if offset != 0xa0 {
        return false;
    }
    let (code, operand) = (value >> 20, value & 0xf_ffff);
    match code {
        6 => operand == wq as u64,
        7..=10 => operand == 1 << wq,
        _ => false,
    }
}

fn assert_owned(model: &Model, wq: usize, tag: u32) {
    let state = model.state.lock();
    for &write in &state.writes {
        assert!(owned(wq, write), "write {write:x?} is not queue {wq}'s");
        if write.0 == WQCFG + wq * WQCFG_STRIDE + 8 {
            assert_eq!(write.1 & 0x3fff_ff0f, 1 | u64::from(tag) << 8 | 1 << 28);
        }
    }
}

/// Accesses that matter are likelier than random ones.
fn offsets() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..0x1_0010,
        0x80u64..0xe8,
        0x400u64..0x410,
        0x600u64..0x640,
        0x800u64..0x820,
        Just(0xa0),
        Just(0xa0),
        any::<u64>(),
    ]
}

/// Commands and configurations that get somewhere, and noise.
fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u64..16, 0u64..4, any::<bool>())
            .prop_map(|(code, operand, interrupt)| code << 20 | operand | u64::from(interrupt) << 31),
        0u64..32,
        Just(21 | 5 << 5),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8, u64, u8),
    Write(u8, u64, u8, u64),
    BusMaster(bool),
    Reset,
    /// The configuration of a queue as a driver writes it, so that commands succeed often enough.
    Configure,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..6, offsets(), any::<u8>()).prop_map(|(bar, at, size)| Step::Read(bar, at, size)),
        2 => (0u8..6, offsets(), 0u8..10, values())
            .prop_map(|(bar, at, size, value)| Step::Write(bar, at, size, value)),
        6 => (offsets(), values()).prop_map(|(at, value)| Step::Write(0, at & !3, 4, value)),
        1 => any::<bool>().prop_map(Step::BusMaster),
        1 => Just(Step::Reset),
        2 => Just(Step::Configure),
    ]
}

fn run(guest: &mut Guest, step: &Step) {
    match *step {
        Step::Read(bar, at, size) => {
            let value = guest.vdev.read(bar, at, size);
            if (1..8).contains(&size) {
                assert_eq!(value >> (u32::from(size) * 8), 0, "wider than the access");
            }
        }
        Step::Write(bar, at, size, value) => {
            let raised = &mut guest.raised;
            guest.vdev.write(bar, at, size, value, &mut |vector| raised.push(vector));
            assert!(raised.drain(..).all(|vector| vector == 0));
        }
        Step::BusMaster(on) => guest.set_bus_master(on),
        Step::Reset => guest.vdev.reset().unwrap(),
        Step::Configure => {
            guest.set_bus_master(true);
            guest.w32(0xa0, 5 << 20);
            guest.configure();
            guest.w32(0xa0, 1 << 20);
            guest.w32(0xa0, 6 << 20);
        }
    }
}

proptest! {
    #[test]
    fn no_access_reaches_beyond_the_own_queue(steps in proptest::collection::vec(steps(), 1..60)) {
        let (model, parent) = parent(&[]);
        let _other = Guest::new(&parent, "beta", None, 6);
        let mut guest = Guest::new(&parent, "alpha", None, 5);
        model.state.lock().writes.clear();
        for step in &steps {
            run(&mut guest, step);
        }
        assert_owned(&model, 1, 5);
        // What the vdev shows as its queue's state is the truth.
        let shown = guest.r32(0x818) >> 30;
        prop_assert_eq!(shown == 1, model.state.lock().queue_enabled(1));
        guest.vdev.quiesce().unwrap();
        prop_assert!(!model.state.lock().queue_enabled(1));
    }
}

#[test]
fn a_working_guest_touches_only_its_own_registers() {
    let (model, parent) = parent(&[]);
    let mut guests = [Guest::new(&parent, "alpha", None, 20), Guest::new(&parent, "beta", None, 21)];
    for (wq, guest) in guests.iter_mut().enumerate() {
        model.state.lock().writes.clear();
        run(guest, &Step::Configure);
        assert_eq!(guest.r32(0xa8), 0);
        assert_owned(&model, wq, 20 + wq as u32);
        assert!(!model.state.lock().writes.is_empty());
    }
    assert!(model.state.lock().queue_enabled(0) && model.state.lock().queue_enabled(1));
    // The end of one: its own permission entry as well, and nothing of the other's.
    model.state.lock().writes.clear();
    guests[0].vdev.quiesce().unwrap();
    let state = model.state.lock();
    assert!(state.writes.iter().all(|&write| owned(0, write) || write == (MSIXPERM + 8, 0)));
    assert!(state.queue_enabled(1));
    assert_eq!(state.msixperm[2], 21 << 12 | 8);
}

#[test]
fn portals_are_the_page_of_the_own_queue_and_none_else() {
    let (_, parent) = parent(&[]);
    let guests: Vec<Guest> = (0..8).map(|index| Guest::new(&parent, "alpha", None, 20 + index)).collect();
    for (wq, guest) in (0u64..).zip(&guests) {
        let portals = guest.vdev.portals();
        assert_eq!(portals.len(), 2);
        for (portal, offset) in portals.iter().zip([0, 0x1000]) {
            assert_eq!((portal.bar, portal.offset, portal.len), (2, offset, 0x1000));
            assert_eq!(portal.host.0, ConfigModel::BAR2 + wq * 0x4000 + 0x1000);
        }
        let identity = guest.vdev.identity();
        assert_eq!((identity.vendor, identity.device), (0x8086, 0x0b25));
        assert_eq!(identity.msix_vectors, 2);
        let portal_bar = identity.bars.iter().find(|bar| bar.index == 2).unwrap();
        assert_eq!(portal_bar.size, 0x4000);
    }
}

#[test]
fn the_interrupt_table_is_not_reached_through_the_vdev() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 20);
    let before = model.state.lock().msix;
    for at in (MSIX_TABLE as u64..MSIX_TABLE as u64 + 0x100).step_by(4) {
        guest.w32(at, 0x1234_5678);
    }
    assert_eq!(model.state.lock().msix, before);
}

proptest! {
    /// Commands that never end: the guest gets an error, nothing panics, and the queue is given to no one
    /// else until the device was reset.
    #[test]
    fn a_device_that_hangs_costs_one_queue(
        before in proptest::collection::vec(steps(), 0..10),
        hang in proptest::collection::vec(6u32..11, 1..4),
        after in proptest::collection::vec(steps(), 0..10),
    ) {
        let (model, parent) = parent(&[]);
        let mut guest = Guest::new(&parent, "alpha", None, 5);
        for step in &before {
            run(&mut guest, step);
        }
        model.state.lock().hang = hang;
        for step in &after {
            if matches!(step, Step::Reset) {
                // Refused or not, as the device has it.
                let _ = guest.vdev.reset();
            } else {
                run(&mut guest, step);
            }
        }
        let stopped = guest.vdev.quiesce().is_ok();
        if stopped {
            prop_assert!(!model.state.lock().queue_enabled(0));
        }
        drop(guest);
        prop_assert_eq!(parent.available(TYPE_DWQ), if stopped { 8 } else { 7 });
        recover(&parent).unwrap();
        prop_assert_eq!(parent.available(TYPE_DWQ), 8);
        prop_assert!(!model.state.lock().queue_enabled(0));
        prop_assert_eq!(model.state.lock().msixperm[1], 0);
    }
}
