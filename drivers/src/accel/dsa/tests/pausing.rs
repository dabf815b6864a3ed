// SPDX-License-Identifier: MIT OR Apache-2.0
//! Queues of guests that are paused: the device says when nothing of them is in flight.

use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::vdev::parent::Paused;
use proptest::prelude::*;

use super::*;

const CMD: usize = 0xa0;
const DISABLE: u32 = 7;
const DRAIN: u32 = 8;
const RESET: u32 = 10;
/// Longest time that stores may be under way.
const STORES_NS: u64 = 100_000;

/// Commands that the device was given, with their operands.
fn given(model: &Model) -> Vec<u64> {
    let state = model.state.lock();
    state.writes.iter().filter(|(at, _)| *at == CMD).map(|(_, value)| *value).collect()
}

fn two() -> (Arc<Model>, Arc<TestParent>, Guest, Guest) {
    two_on(TestHost::new())
}

fn two_on(host: Arc<dyn Host>) -> (Arc<Model>, Arc<TestParent>, Guest, Guest) {
    let model = Model::new(0x11fb);
    let parent = parent_on(&model, &[], Options::default(), host).unwrap();
    let mut alpha = Guest::new(&parent, "alpha", None, 5);
    let mut beta = Guest::new(&parent, "beta", None, 6);
    alpha.start();
    beta.start();
    model.state.lock().writes.clear();
    (model, parent, alpha, beta)
}

/// Looks until the pause is what it will be without the device.
fn settle(guest: &mut Guest) -> Paused {
    for _ in 0..10 {
        guest.event();
    }
    guest.vdev.paused().unwrap()
}

#[test]
fn a_queue_is_drained_when_the_device_says_so_and_stays_enabled() {
    let (model, parent, mut alpha, mut beta) = two();
    assert_eq!(alpha.vdev.paused(), None);
    alpha.vdev.pause();
    assert_eq!(alpha.vdev.paused(), Some(Paused::Draining), "nobody has asked the device");
    assert!(parent.is_waiting());
    model.state.lock().fill(0, 100);
    assert_eq!(settle(&mut alpha), Paused::Draining);
    assert!(given(&model).is_empty(), "the device is not held");
    beta.w32(CMD as u64, 9 << 20 | 1);
    assert_eq!(beta.r32(0xa8), 0, "the neighbour has it to itself");
    model.state.lock().writes.clear();
    model.state.lock().fill(0, 2);
    assert_eq!(settle(&mut alpha), Paused::Drained);
    assert_eq!(given(&model), [u64::from(DRAIN << 20 | 1)], "once, its own queue");
    assert!(!parent.is_waiting());
    assert!(model.state.lock().queue_enabled(0));
    alpha.vdev.resume().unwrap();
    assert_eq!((alpha.vdev.paused(), alpha.r32(0x818) >> 30), (None, 1));
    assert_eq!(given(&model).len(), 1);
}

/// A clock by which a look takes a microsecond.
struct QuickHost(AtomicU64);

impl Host for QuickHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1_000, Ordering::Relaxed)
    }

    fn wake_first(&self) {}

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        None
    }

    fn free_vector(&self, _vector: HostVector) {}
}

/// What processors had under way when they stopped comes first.
#[test]
fn no_drain_is_given_before_stores_have_arrived() {
    let host = Arc::new(QuickHost(AtomicU64::new(0)));
    let (model, _parent, mut alpha, _beta) = two_on(host.clone());
    alpha.vdev.pause();
    let start = host.0.load(Ordering::Relaxed);
    while given(&model).is_empty() {
        alpha.event();
    }
    let took = host.0.load(Ordering::Relaxed) - start;
    assert!((STORES_NS..2 * STORES_NS).contains(&took), "after {took} ns");
    assert_eq!(settle(&mut alpha), Paused::Drained);
}

#[test]
fn a_queue_that_is_disabled_needs_no_drain() {
    let (model, _parent, mut alpha, _beta) = two();
    alpha.w32(CMD as u64, DISABLE << 20 | 1);
    model.state.lock().writes.clear();
    alpha.vdev.pause();
    assert_eq!(settle(&mut alpha), Paused::Drained);
    assert!(given(&model).is_empty());
    alpha.vdev.resume().unwrap();
}

#[test]
fn a_guest_goes_on_when_the_drain_has_ended_or_has_not_begun() {
    let (model, parent, mut alpha, _beta) = two();
    // It has not begun.
    model.state.lock().fill(0, 100);
    alpha.vdev.pause();
    assert_eq!(settle(&mut alpha), Paused::Draining);
    alpha.vdev.resume().unwrap();
    model.state.lock().fill(0, 0);
    (0..10).for_each(|_| alpha.event());
    assert!(given(&model).is_empty(), "no drain while the guest submits");
    assert!(!parent.is_waiting());
    // It has.
    model.state.lock().hang = Vec::from([DRAIN]);
    alpha.vdev.pause();
    assert_eq!(settle(&mut alpha), Paused::Draining);
    assert_eq!(given(&model).len(), 1);
    let why = alpha.vdev.resume().unwrap_err();
    assert!(why.starts_with("Drain WQ 0: not finished after"), "{why}");
    assert_eq!(settle(&mut alpha), Paused::Draining, "still paused");
    alpha.vdev.pause();
    model.finish();
    assert_eq!(settle(&mut alpha), Paused::Drained);
    alpha.vdev.resume().unwrap();
    assert_eq!(given(&model).len(), 1);
}

#[test]
fn a_command_of_the_guests_ends_first() {
    let (model, _parent, mut alpha, _beta) = two();
    model.state.lock().fill(0, 100);
    alpha.w32(CMD as u64, 1 << 31 | DISABLE << 20 | 1);
    alpha.raised.clear();
    alpha.vdev.pause();
    assert_eq!(settle(&mut alpha), Paused::Draining);
    model.state.lock().fill(0, 0);
    assert_eq!(settle(&mut alpha), Paused::Drained);
    assert_eq!(given(&model), [u64::from(DISABLE << 20 | 1)], "a queue that is disabled by then");
    assert_eq!((alpha.raised.clone(), alpha.r32(0xa8)), (vec![0], 0), "it finds the end when it goes on");
}

#[test]
fn the_end_of_a_paused_vdev() {
    for hangs in [false, true] {
        let (model, parent, mut alpha, _beta) = two();
        model.state.lock().hang = if hangs { Vec::from([DRAIN]) } else { Vec::new() };
        alpha.vdev.pause();
        assert_eq!(settle(&mut alpha), if hangs { Paused::Draining } else { Paused::Drained });
        if hangs {
            let failed = alpha.vdev.quiesce().unwrap_err();
            assert!(failed.why.contains("busy with an earlier command"), "{failed:?}");
            model.finish();
        }
        alpha.vdev.quiesce().unwrap();
        assert_eq!(given(&model).last(), Some(&u64::from(RESET << 20 | 1)));
        assert_eq!(alpha.vdev.paused(), None);
        drop(alpha);
        assert_eq!(parent.available(TYPE_DWQ), 7);
        assert!(!parent.is_waiting());
    }
}

#[test]
fn a_reset_of_the_device_ends_what_was_drained() {
    for hangs in [false, true] {
        let (model, parent, mut alpha, mut beta) = two();
        model.state.lock().hang = if hangs { Vec::from([DRAIN]) } else { Vec::new() };
        alpha.vdev.pause();
        settle(&mut alpha);
        recover(&parent).unwrap();
        alpha.raised.clear();
        for guest in [&mut alpha, &mut beta] {
            guest.event();
        }
        assert_eq!(settle(&mut alpha), Paused::Drained, "its queue is disabled");
        assert_eq!((alpha.raised.clone(), alpha.r32(0x90)), (vec![0], 3), "it finds its device halted");
        alpha.vdev.resume().unwrap();
        alpha.start();
        assert!(model.state.lock().queue_enabled(0) && !parent.is_waiting());
    }
}

#[test]
fn a_vdev_may_be_paused_from_its_beginning() {
    let (model, parent, ..) = two();
    let mut vdev = create(&parent, "gamma", None).unwrap();
    vdev.attach(attached(7, &GuestBytes::new(), None)).unwrap();
    vdev.pause();
    let mut gamma = Guest { vdev, raised: Vec::new() };
    assert_eq!(settle(&mut gamma), Paused::Drained);
    assert!(given(&model).is_empty());
    gamma.vdev.resume().unwrap();
    gamma.set_bus_master(true);
    gamma.start();
}

#[derive(Clone, Debug)]
enum Step {
    Pause,
    Resume,
    Look(u32),
    Fill(u32),
    Hang(bool),
    Finish,
    Reset,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Pause),
        4 => Just(Step::Resume),
        4 => (1u32..8).prop_map(Step::Look),
        2 => (0u32..9).prop_map(Step::Fill),
        1 => any::<bool>().prop_map(Step::Hang),
        2 => Just(Step::Finish),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    /// In whatever order: the device is at a drain only while the guest is paused, "drained" is true, and in the end the
    /// guest goes on with the queue that it had.
    #[test]
    fn the_guest_never_submits_during_a_drain(steps in proptest::collection::vec(steps(), 1..60)) {
        let (model, parent, mut alpha, mut beta) = two();
        let (mut paused, mut queued) = (false, 0);
        for step in &steps {
            match step {
                Step::Pause => { alpha.vdev.pause(); paused = true; }
                Step::Resume => paused &= alpha.vdev.resume().is_err(),
                Step::Look(times) => (0..*times).for_each(|_| alpha.event()),
                Step::Fill(count) if model.state.lock().queue_enabled(0) => {
                    // More comes from a guest that runs only.
                    queued = if paused { queued.min(*count) } else { *count };
                    model.state.lock().fill(0, queued);
                }
                Step::Fill(_) => {}
                Step::Hang(hangs) => {
                    let mut state = model.state.lock();
                    state.hang = if *hangs { Vec::from([DRAIN]) } else { Vec::new() };
                }
                Step::Finish => model.finish(),
                Step::Reset => {
                    recover(&parent).unwrap();
                    alpha.event();
                    beta.event();
                    queued = 0;
                }
            }
            let active = model.state.lock().cmdsts >> 31 != 0;
            prop_assert!(paused || !active, "after {:?}", step);
            prop_assert_eq!(alpha.vdev.paused().is_some(), paused);
            if alpha.vdev.paused() == Some(Paused::Drained) {
                prop_assert!(!active);
            }
        }
        model.finish();
        model.state.lock().fill(0, 0);
        if paused {
            prop_assert_eq!(settle(&mut alpha), Paused::Drained);
            alpha.vdev.resume().unwrap();
        }
        (0..4).for_each(|_| alpha.event());
        prop_assert!(!parent.is_waiting());
        prop_assert_eq!(alpha.r32(0x818) >> 30 == 1, model.state.lock().queue_enabled(0));
        alpha.vdev.quiesce().unwrap();
        drop(alpha);
        prop_assert_eq!(parent.available(TYPE_DWQ), 7);
    }
}
