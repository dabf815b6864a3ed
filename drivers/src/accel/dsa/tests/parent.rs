// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bring-up, partition, creation, refusals, quiesce and events of the parent.

use pasidon_kernel::base::drained::Drained;

use super::model::{MSIX, QUEUES};
use super::*;

#[test]
fn bring_up_leaves_the_device_enabled_and_every_queue_off() {
    let (model, parent) = parent(&[Some(32), None]);
    let state = model.state.lock();
    assert_eq!(state.gensts, 1);
    assert_eq!(state.genctrl, 3);
    assert_eq!(state.gencfg >> 12 & 1, 1);
    let sizes: Vec<u32> = state.wqcfg.iter().map(|wq| wq[0]).collect();
    assert_eq!(sizes, [32, 14, 14, 14, 14, 14, 13, 13]);
    assert!((0..QUEUES).all(|wq| !state.queue_enabled(wq)));
    // One engine per group, queues round robin.
    for (group, config) in state.grpcfg.iter().enumerate() {
        assert_eq!(config[4], 1 << group);
        assert_eq!(config[0], 0x11 << group);
        assert_eq!(config[5], 96 << 20 | 1 | 1 << 3);
    }
    assert!(state.msixperm.iter().all(|&entry| entry == 0));
    assert!(state.msix.iter().all(|entry| entry[3] == 1), "all masked");
    assert!(model.config.pasid_enabled() && !model.config.ats_enabled());
    assert!(model.config.bus_master() && model.config.msix_enabled());
    drop(state);
    assert_eq!(parent.available(TYPE_DWQ), 8);
    assert_eq!(parent.types()[0].instances, 8);
    assert!(parent.types()[0].direct_portal);
}

#[test]
fn a_device_that_needs_more_than_a_software_reset_gets_it() {
    let model = Model::new(0x11fb);
    model.state.lock().gensts = 3 | 1 << 2;
    try_parent(&model, &[], Options::default()).unwrap();
    assert_eq!(model.config.resets.load(core::sync::atomic::Ordering::SeqCst), 1);

    let model = Model::new(0x11fb);
    model.state.lock().hang = Vec::from([5]);
    try_parent(&model, &[], Options::default()).unwrap();
    assert_eq!(model.config.resets.load(core::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let why =
        |model: &Arc<Model>| try_parent(model, &[], Options::default()).map(|_| ()).unwrap_err().to_string();
    let model = Model::new(0x1234);
    assert!(
        why(&model).starts_with(
            "parent dsa0 (0000:00:04.0 8086:1234 class 088000): not a Data Streaming Accelerator"
        )
    );
    let model = Model::new(0x11fb);
    model.state.lock().gencap &= !(1 << 31);
    assert!(why(&model).contains("GENCAP.CONFIG_EN is 0"));
    let model = Model::new(0x11fb);
    model.state.lock().hang = Vec::from([1]);
    assert!(why(&model).contains("Enable Device: not finished after 1000 ms"));
    assert!(!model.config.bus_master());
}

#[test]
fn operations_beyond_the_first_version_need_opcfg() {
    // Translation fetch, and one that reaches other address spaces.
    for (word, operation) in [(0, 0x0a), (1, 0)] {
        let model = Model::new(0x11fb);
        model.state.lock().opcap[word] |= 1 << operation;
        let refusal = try_parent(&model, &[], Options::default()).map(|_| ()).unwrap_err();
        assert!(refusal.why.contains(&format!("operation {:#04x}", word * 64 + operation)), "{refusal}");
        assert!(!model.config.bus_master());

        // The same device with OPCFG.
        let model = Model::new(0x11fb);
        model.state.lock().opcap[word] |= 1 << operation;
        model.state.lock().wqcap |= 1 << 54 | 1 << 24;
        let parent = try_parent(&model, &[], Options::default()).unwrap();
        let mut guest = Guest::new(&parent, "alpha", None, 5);
        assert_eq!(guest.r64(0x40), 0x1_003f_027f);
        assert_eq!(guest.r64(0x48), 0);
        guest.configure();
        guest.w32(0xa0, 1 << 20);
        guest.w32(0xa0, 6 << 20);
        assert_eq!(guest.r32(0xa8), 0);
        let state = model.state.lock();
        assert!(state.queue_enabled(0));
        assert_eq!(state.opcfg[0], [0x003f_027f, 1, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn best_fit_leaves_the_larger_queues_for_others() {
    let (_, parent) = parent(&[Some(40), Some(4)]);
    let entries = |vdev: &dyn VdevModel| vdev.describe()[1].1.clone();
    let small = create(&parent, "alpha", Some(3)).unwrap();
    assert_eq!(small.interrupts()[0].physical, 2, "the queue of 4 entries");
    assert_eq!(entries(&*small), "3");
    let any = create(&parent, "beta", None).unwrap();
    assert_eq!(entries(&*any), "14");
    let large = create(&parent, "gamma", Some(40)).unwrap();
    assert_eq!(large.interrupts()[0].physical, 1);
    let refusal = create(&parent, "delta", Some(64)).map(|_| ()).unwrap_err();
    assert!(
        refusal
            .to_string()
            .starts_with("vm delta: vdev dsa0/dsa-dwq: entries 64: the largest free queue has 14;")
    );
}

#[test]
fn the_ninth_queue_is_refused_until_one_is_free() {
    let (_, parent) = parent(&[]);
    let mut vdevs: Vec<_> = (0..8).map(|_| create(&parent, "alpha", None).unwrap()).collect();
    assert_eq!(parent.available(TYPE_DWQ), 0);
    let refusal = create(&parent, "beta", None).map(|_| ()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm beta: vdev dsa0/dsa-dwq: 9th of 8 work queues; end a vdev on it, or use another parent"
    );
    vdevs.pop();
    assert_eq!(parent.available(TYPE_DWQ), 1);
    create(&parent, "beta", None).unwrap();
}

#[test]
fn unknown_types_and_empty_queues_are_refused() {
    let (_, parent) = parent(&[]);
    let refusal = parent
        .create(&VdevRequest { vm: "beta", type_name: "dsa-xyz", entries: None, weight: None })
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm beta: vdev dsa0/dsa-xyz: unknown type dsa-xyz; dsa0 offers dsa-dwq and dsa-swq"
    );
    assert_eq!(parent.available("dsa-xyz"), 0);
    assert!(create(&parent, "beta", Some(0)).is_err());
    assert_eq!(parent.available(TYPE_DWQ), 8);
}

#[test]
fn silicon_without_the_fix_needs_the_opt_in() {
    let model = Model::new(0x0b25);
    let parent = try_parent(&model, &[], Options::default()).unwrap();
    assert_eq!(parent.available(TYPE_DWQ), 0);
    assert_eq!(parent.types()[0].instances, 0);
    let refusal = create(&parent, "beta", None).map(|_| ()).unwrap_err();
    assert!(refusal.why.contains("INTEL-SA-01084"));
    assert!(refusal.remedy.contains("allow_unsafe_portals"));

    let model = Model::new(0x0b25);
    let options = Options { allow_unsafe_portals: true, ..Options::default() };
    let parent = try_parent(&model, &[], options).unwrap();
    assert!(parent.unsafe_portals());
    let portals = parent.describe().into_iter().find(|(name, _)| *name == "portals");
    assert!(portals.unwrap().1.starts_with("UNSAFE"));
    let mut guest = Guest::new(&parent, "beta", None, 4);
    assert_eq!(guest.r64(0x40) >> 1 & 1, 0, "batch is not offered");
}

#[test]
fn quiesce_stops_the_queue_and_frees_it() {
    let (model, parent) = parent(&[]);
    for tag in 10..30 {
        let mut guest = Guest::new(&parent, "alpha", None, tag);
        guest.w32(0x800, 16);
        guest.w64(0x600, 1);
        guest.w64(0x620, 1);
        guest.w32(0xa0, 1 << 20);
        guest.w32(0x808, 1);
        guest.w32(0x80c, 21 | 5 << 5);
        guest.w32(0xa0, 6 << 20);
        assert_eq!(guest.r32(0xa8), 0);
        assert!(model.state.lock().queue_enabled(0));
        guest.vdev.quiesce().unwrap();
        let state = model.state.lock();
        assert!(!state.queue_enabled(0));
        assert_eq!(state.mode(0), 0, "no tag is left behind");
        assert_eq!(state.msixperm[1], 0);
        drop(state);
        assert_eq!(parent.available(TYPE_DWQ), 7, "not before the vdev is gone");
        drop(guest);
        assert_eq!(parent.available(TYPE_DWQ), 8);
    }
}

#[test]
fn a_queue_that_does_not_stop_is_retired() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    model.state.lock().hang = Vec::from([10]);
    let failed = guest.vdev.quiesce().unwrap_err();
    assert!(failed.why.starts_with("Reset WQ 0: not finished after 100"));
    drop(guest);
    assert_eq!(parent.available(TYPE_DWQ), 7);
    let queue = parent.describe().into_iter().find(|(name, _)| *name == "queue");
    assert!(queue.unwrap().1.contains("retired: Reset WQ 0"));
    // The command ends late: the others go on, the queue stays out, as nobody asked for the proof.
    model.finish();
    let other = create(&parent, "beta", None).unwrap();
    assert_eq!(other.interrupts()[0].physical, 2);
}

#[test]
fn a_late_stop_gives_the_proof_and_revives_the_queue() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    model.state.lock().hang = Vec::from([10]);
    guest.vdev.quiesce().unwrap_err();
    guest.vdev.try_quiesce().unwrap_err();
    assert!(parent.is_waiting());
    model.finish();
    model.state.lock().writes.clear();
    guest.vdev.try_quiesce().unwrap();
    let given = model.state.lock().writes.iter().any(|(at, _)| *at == 0xa0);
    assert!(!given, "the command that ended late is the proof, it is not given again");
    assert!(!parent.is_waiting());
    drop(guest);
    assert_eq!(parent.available(TYPE_DWQ), 8);
}

/// A device may be such that no command on a queue ends, however often it is reset.
#[test]
fn a_reset_of_the_device_is_proof_without_a_command() {
    let (model, parent) = parent(&[]);
    let mut alpha = Guest::new(&parent, "alpha", None, 10);
    let mut beta = Guest::new(&parent, "beta", None, 11);
    alpha.start();
    beta.start();
    {
        let mut state = model.state.lock();
        state.hang = Vec::from([10]);
        state.stays_stuck = true;
    }
    alpha.vdev.quiesce().unwrap_err();
    recover(&parent).unwrap();
    alpha.vdev.try_quiesce().unwrap();
    drop(alpha);
    assert_eq!(parent.available(TYPE_DWQ), 7);
    // One that ran again since then is asked.
    beta.event();
    beta.w32(0x98, 1 << 4);
    beta.start();
    beta.vdev.quiesce().unwrap_err();
    drop(beta);
    assert_eq!(parent.available(TYPE_DWQ), 7);
}

#[test]
fn a_vdev_dropped_with_its_tag_takes_the_queue_along() {
    let (_, parent) = parent(&[]);
    drop(create(&parent, "alpha", None).unwrap());
    assert_eq!(parent.available(TYPE_DWQ), 8);
    drop(Guest::new(&parent, "alpha", None, 10));
    assert_eq!(parent.available(TYPE_DWQ), 7);
}

#[test]
fn a_tag_is_attached_once_and_must_fit() {
    let (_, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    let refusal = guest.vdev.attach(attached(11, &GuestBytes::new(), None)).unwrap_err();
    assert_eq!(refusal.to_string(), "dsa0 WQ 0: PASID 10 is attached already; detach it first");
}

#[test]
fn interrupt_entries_are_written_while_masked() {
    let (model, parent) = parent(&[]);
    let message = MsiMessage { address: 0xfee0_1234, data: 0x4021 };
    parent.set_interrupt(3, Some(message));
    assert_eq!(model.state.lock().msix[3], [0xfee0_1234, 0, 0x4021, 0]);
    parent.set_interrupt(3, None);
    assert_eq!(model.state.lock().msix[3], [0, 0, 0, 1]);
    parent.set_interrupt(MSIX as u16, Some(message));
    let state = model.state.lock();
    let table = 0x2000 + 3 * 16;
    let controls: Vec<(usize, u64)> =
        state.writes.iter().copied().filter(|(offset, _)| (table..table + 16).contains(offset)).collect();
    // Bring-up masked it once.
    assert_eq!(controls[1], (table + 12, 1));
    assert_eq!(controls[5], (table + 12, 0));
}

/// Only an entry that is programmed is held back, and nothing of it is changed but the mask.
#[test]
fn an_interrupt_is_held_back_by_its_mask_alone() {
    let (model, parent) = parent(&[]);
    let message = MsiMessage { address: 0xfee0_1234, data: 0x4021 };
    assert!(!parent.hold_interrupt(3, true) && !parent.hold_interrupt(3, false));
    assert!(!parent.hold_interrupt(MSIX as u16, true));
    assert_eq!(model.state.lock().msix[3], [0, 0, 0, 1], "still masked");
    parent.set_interrupt(3, Some(message));
    for (hold, mask) in [(true, 1), (false, 0)] {
        assert!(parent.hold_interrupt(3, hold));
        assert_eq!(model.state.lock().msix[3], [0xfee0_1234, 0, 0x4021, mask]);
    }
}

fn events(parent: &TestParent) -> Vec<ParentEvent> {
    let mut events = Vec::new();
    let left = parent.interrupt(&mut |event| events.push(event));
    assert_eq!(left, Drained::Empty);
    events
}

/// The device announces a cause when its bit is set, so that nobody may go before all are clear.
#[test]
fn after_a_storm_of_errors_events_are_still_announced() {
    let (model, parent) = parent(&[]);
    let _guest = Guest::new(&parent, "alpha", None, 10);
    model.raise_error(0, 0x1a, 10, 0);
    for _ in 0..3 {
        let mut told = 0;
        let left = parent.interrupt(&mut |_| {
            told += 1;
            model.raise_error(0, 0x1a, 10, 0);
        });
        assert_eq!(left, Drained::Again);
        assert!(told <= 16, "{told} in one look");
    }
    assert_eq!(events(&parent).len(), 1);
    {
        let state = model.state.lock();
        assert_eq!((state.intcause, state.swerr[0] & 1), (0, 0));
    }
    // An error whose cause was acknowledged without it: no further one would be announced.
    model.raise_error(0, 0x1a, 10, 0);
    model.state.lock().intcause = 0;
    assert_eq!(events(&parent).len(), 1);
    assert_eq!(model.state.lock().swerr[0] & 1, 0);
}

#[test]
fn an_error_reaches_the_owner_of_the_queue_only() {
    let (model, parent) = parent(&[]);
    let mut alpha = Guest::new(&parent, "alpha", None, 10);
    let mut beta = Guest::new(&parent, "beta", None, 11);
    for guest in [&mut alpha, &mut beta] {
        guest.w32(0x88, 3);
    }
    model.raise_error(1, 0x1a, 11, 0xdead_b000);
    let seen = events(&parent);
    assert_eq!(
        seen,
        [ParentEvent::Error {
            pasid: Some(pasid(11)),
            text: "WQ 1: page fault on a completion record (SWERR 0x1a), operation 0x03, \
                   address 0xdeadb000"
                .into(),
        }]
    );
    assert_eq!(model.state.lock().swerr[0] & 1, 0, "acknowledged");
    assert_eq!(model.state.lock().intcause, 0);
    assert!(events(&parent).is_empty());

    alpha.event();
    assert_eq!((alpha.raised.len(), alpha.r64(0xc0), alpha.r32(0x98)), (0, 0, 0));
    beta.event();
    assert_eq!(beta.raised, [0]);
    assert_eq!(beta.r32(0x98), 1);
    let record = beta.r64(0xc0);
    assert_eq!(record, 1 | 1 << 3 | 0x1a << 8 | 3 << 32, "queue 0, no PASID");
    assert_eq!(beta.r64(0xd0), 0xdead_b000);
    // As Linux acknowledges it.
    beta.w64(0xc0, 3);
    assert_eq!(beta.r64(0xc0) & 3, 0);
}

#[test]
fn an_overflow_is_told_to_everybody_it_may_have_hidden_something_from() {
    let (model, parent) = parent(&[]);
    let mut alpha = Guest::new(&parent, "alpha", None, 10);
    let mut beta = Guest::new(&parent, "beta", None, 11);
    for guest in [&mut alpha, &mut beta] {
        guest.w32(0x88, 3);
    }
    // Beta floods the device; what alpha's queue reported meanwhile is nowhere.
    model.raise_error(1, 0x1a, 11, 0xdead_b000);
    model.state.lock().swerr[0] |= 2;
    let seen = events(&parent);
    assert!(matches!(&seen[..], [ParentEvent::Error { pasid: Some(tag), text }]
            if *tag == pasid(11) && text.ends_with(", further errors, of whatever queue, were lost")));
    for guest in [&mut alpha, &mut beta] {
        guest.event();
    }
    assert_eq!(beta.r64(0xc0) & 3, 3, "an error, and more of them");
    assert_eq!(
        (alpha.r64(0xc0), alpha.r32(0x98), alpha.raised.len()),
        (2, 0, 0),
        "no error of its own, no interrupt, but there may have been one"
    );
    alpha.w64(0xc0, 3);
    assert_eq!(alpha.r64(0xc0), 0);
    // Its next error says so, too.
    model.raise_error(1, 0x1a, 11, 0xdead_b000);
    model.state.lock().swerr[0] |= 2;
    events(&parent);
    model.raise_error(0, 0x1a, 10, 0xdead_c000);
    events(&parent);
    assert_eq!(alpha.r64(0xc0) & 3, 3);
    assert_eq!(alpha.r64(0xd0), 0xdead_c000);
    // Whoever gets the queue next is told nothing of this.
    model.raise_error(1, 0x1a, 11, 0xdead_b000);
    model.state.lock().swerr[0] |= 2;
    events(&parent);
    alpha.vdev.quiesce().unwrap();
    drop(alpha);
    assert_eq!(Guest::new(&parent, "gamma", None, 12).r64(0xc0), 0);
}

#[test]
fn an_error_of_an_earlier_tag_is_not_shown_to_the_next_owner() {
    let (model, parent) = parent(&[]);
    let mut alpha = Guest::new(&parent, "alpha", None, 10);
    model.raise_error(0, 0x1a, 10, 0xdead_b000);
    alpha.vdev.quiesce().unwrap();
    drop(alpha);
    let mut beta = Guest::new(&parent, "beta", None, 11);
    let seen = events(&parent);
    assert!(matches!(&seen[..], [ParentEvent::Error { pasid: None, .. }]));
    beta.event();
    assert_eq!(beta.r64(0xc0), 0);
}

#[test]
fn a_halt_is_reported_with_what_ends_it() {
    let (model, parent) = parent(&[]);
    let mut state = model.state.lock();
    state.gensts = 3 | 1 << 2;
    state.intcause = 1 << 4;
    drop(state);
    assert_eq!(
        events(&parent),
        [ParentEvent::Halted("the device halted and needs a function-level reset".into())]
    );
}

#[test]
fn recovery_ends_a_hang_and_is_announced_to_the_others() {
    let (model, parent) = parent(&[]);
    let mut alpha = Guest::new(&parent, "alpha", None, 10);
    let mut beta = Guest::new(&parent, "beta", None, 11);
    let message = MsiMessage { address: 0xfee0_0000, data: 0x55 };
    parent.set_interrupt(2, Some(message));
    alpha.start();
    beta.start();
    model.state.lock().hang = Vec::from([10]);
    alpha.vdev.quiesce().unwrap_err();

    recover(&parent).unwrap();
    {
        let state = model.state.lock();
        assert_eq!(model.config.resets.load(core::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!((state.gensts, state.gencfg >> 12 & 1, state.genctrl), (1, 1, 3));
        assert!(!state.queue_enabled(0) && !state.queue_enabled(1));
        assert_eq!(state.msixperm[2], 11 << 12 | 8, "the permission of the other is back");
        assert_eq!(state.msix[2], [0xfee0_0000, 0, 0x55, 0], "and its interrupt");
        assert_eq!(state.msix[3][3], 1, "the rest stays masked");
    }
    // Now the first one stops, and its queue can be used again.
    alpha.vdev.quiesce().unwrap();
    drop(alpha);
    assert_eq!(parent.available(TYPE_DWQ), 7);
    assert_eq!(model.state.lock().msixperm[1], 0);

    beta.raised.clear();
    beta.event();
    assert_eq!(beta.raised, [0]);
    assert_eq!((beta.r32(0x90), beta.r32(0x98)), (3, 1 << 4), "halted, software reset");
    beta.w32(0x98, 1 << 4);
    beta.start();
    assert!(model.state.lock().queue_enabled(1));
    assert_eq!(model.state.lock().mode(1) >> 8 & 0xf_ffff, 11);
}

#[test]
fn a_command_after_an_unannounced_recovery_finds_the_device_halted() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    guest.start();
    recover(&parent).unwrap();
    guest.raised.clear();
    guest.w32(0xa0, 8 << 20 | 1);
    assert_eq!((guest.r32(0xa8), guest.r32(0x90)), (5, 3));
    assert_eq!(guest.raised, [0], "the halt");
    guest.start();
    assert!(model.state.lock().queue_enabled(0));
}

#[test]
fn a_halt_of_the_device_is_shown_to_its_guests() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    guest.start();
    model.state.lock().gensts = 3 | 1 << 2;
    guest.raised.clear();
    guest.event();
    assert_eq!(guest.raised, [0]);
    assert_eq!(guest.r32(0x90), 3);
    assert!(guest.vdev.quiesce().unwrap_err().why.contains("device is halted"));
    recover(&parent).unwrap();
    guest.vdev.quiesce().unwrap();
    drop(guest);
    assert_eq!(parent.available(TYPE_DWQ), 8);
}

#[test]
fn a_queue_retired_by_a_lost_vdev_comes_back_with_a_recovery() {
    let (model, parent) = parent(&[]);
    drop(Guest::new(&parent, "alpha", None, 10));
    assert_eq!(parent.available(TYPE_DWQ), 7);
    recover(&parent).unwrap();
    assert_eq!(parent.available(TYPE_DWQ), 8);
    assert_eq!(model.state.lock().msixperm[1], 0, "the old tag may send no interrupt");
}

#[test]
fn a_recovery_that_fails_leaves_the_device_without_dma() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 10);
    guest.start();
    model.state.lock().stays_stuck = true;
    model.state.lock().hang = Vec::from([1, 10]);
    let refusal = recover(&parent).unwrap_err();
    assert!(refusal.to_string().starts_with("parent dsa0: Enable Device: not finished"));
    assert!(!model.config.bus_master());
    guest.vdev.quiesce().unwrap_err();
    drop(guest);
    assert_eq!(parent.available(TYPE_DWQ), 0, "nobody gets a part of a device that is down");
    assert!(create(&parent, "beta", None).is_err());
}
