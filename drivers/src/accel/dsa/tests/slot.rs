// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that take time: what the guest that gave one sees, and what it costs the others.

use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use proptest::prelude::*;

use super::*;

const CMD: u64 = 0xa0;
const CMDSTS: u64 = 0xa8;
const ACTIVE: u32 = 1 << 31;
const HARDWARE: u32 = 3;
const INTERRUPT: u32 = 1 << 31;
const ENABLE: u32 = 6;
const DISABLE: u32 = 7;
const DRAIN: u32 = 8 << 20 | 1;
const ABORT: u32 = 9 << 20 | 1;
const RESET: u32 = 10;
/// More than any access may take: what a few looks at the clock make on the test's.
const MOMENT_NS: u64 = 50_000_000;

/// Commands that the device was given, by code.
fn given(model: &Model) -> Vec<u64> {
    let state = model.state.lock();
    let commands = state.writes.iter().filter(|(at, _)| *at == CMD as usize);
    commands.map(|(_, value)| value >> 20).collect()
}

fn two() -> (Arc<Model>, Arc<TestHost>, Arc<TestParent>, Guest, Guest) {
    let model = Model::new(0x11fb);
    let host = TestHost::new();
    let parent = parent_on(&model, &[], Options::default(), host.clone()).unwrap();
    let mut alpha = Guest::new(&parent, "alpha", None, 5);
    let mut beta = Guest::new(&parent, "beta", None, 6);
    alpha.start();
    beta.start();
    model.state.lock().writes.clear();
    (model, host, parent, alpha, beta)
}

#[test]
fn a_drain_waits_beside_the_device_until_little_is_left() {
    let (model, _, parent, mut alpha, mut beta) = two();
    model.state.lock().fill(0, 100);
    alpha.w32(CMD, INTERRUPT | DRAIN);
    assert_eq!(alpha.r32(CMDSTS), ACTIVE);
    assert!(parent.is_waiting() && alpha.vdev.is_waiting() && !beta.vdev.is_waiting());
    assert!(given(&model).is_empty(), "the device is not held");
    // The neighbour has the device to itself.
    beta.w32(CMD, DRAIN);
    assert_eq!(beta.r32(CMDSTS), 0);

    model.state.lock().fill(0, 1);
    alpha.raised.clear();
    alpha.event();
    assert_eq!((alpha.r32(CMDSTS), alpha.r32(0x98)), (0, 2));
    assert_eq!(alpha.raised, [0], "the interrupt it asked for");
    assert!(!parent.is_waiting());
    assert!(model.state.lock().queue_enabled(0) && alpha.r32(0x818) >> 30 == 1);
}

#[test]
fn a_guest_that_polls_sees_the_end_and_is_interrupted_by_the_next_look() {
    let (model, _, parent, mut alpha, _beta) = two();
    model.state.lock().fill(0, 100);
    alpha.w32(CMD, INTERRUPT | DISABLE << 20 | 1);
    model.state.lock().fill(0, 0);
    alpha.raised.clear();
    assert_eq!((alpha.r32(CMDSTS), alpha.r32(0x98)), (0, 0));
    assert!(alpha.raised.is_empty() && parent.is_waiting());
    alpha.event();
    assert_eq!(alpha.raised, [0]);
    assert_eq!(alpha.r32(0x98), 2);
    assert!(!parent.is_waiting() && !model.state.lock().queue_enabled(0));
}

#[test]
fn a_command_beside_an_active_one_is_dropped_and_reported() {
    let (model, _, _parent, mut alpha, _beta) = two();
    model.state.lock().fill(0, 100);
    alpha.w32(CMD, DRAIN);
    alpha.raised.clear();
    alpha.w32(CMD, RESET << 20 | 1);
    assert_eq!(alpha.r32(CMDSTS), ACTIVE);
    assert_eq!((alpha.r64(0xc0) & 0xff01, alpha.r32(0x98)), (0x5201, 1));
    assert_eq!(alpha.raised, [0]);
    assert!(given(&model).is_empty());
}

#[test]
fn a_guest_that_keeps_its_queue_full_gets_its_drain_after_the_others() {
    let (model, host, _parent, mut alpha, mut beta) = two();
    model.state.lock().fill(0, 100);
    alpha.w32(CMD, DRAIN);
    let start = host.now_ns();
    while alpha.r32(CMDSTS) == ACTIVE {
        beta.w32(CMD, ABORT);
        assert_eq!(beta.r32(CMDSTS), 0);
        assert!(host.now_ns() - start < 3_000_000_000);
    }
    // Nothing that a guest can hold up by submitting was ever given to the device.
    assert!(given(&model).iter().all(|code| [6, 7, 10].contains(code)));
}

#[test]
fn a_neighbours_command_that_hangs_costs_a_bystander_time_and_nothing_else() {
    let (model, host, parent, mut alpha, mut beta) = two();
    model.state.lock().hang = Vec::from([7]);
    alpha.w32(CMD, DRAIN);
    beta.w32(CMD, INTERRUPT | ABORT);
    assert_eq!((alpha.r32(CMDSTS), beta.r32(CMDSTS)), (ACTIVE, ACTIVE));
    let start = host.now_ns();
    while host.now_ns() - start < 2_000_000_000 {
        beta.event();
    }
    assert_eq!(alpha.r32(CMDSTS), HARDWARE, "its command failed");
    assert_eq!(beta.r32(CMDSTS), ACTIVE, "the turn of this one has not come");
    let failed = beta.vdev.quiesce().unwrap_err();
    assert!(failed.why.starts_with("Reset WQ 1: the device was busy with an earlier command"));

    model.finish();
    beta.vdev.try_quiesce().unwrap();
    drop(beta);
    assert_eq!(parent.available(TYPE_DWQ), 7, "in use again");
    // The other's queue is what the device made of it: disabled, late.
    assert!(!model.state.lock().queue_enabled(0));
    alpha.start();
    assert!(model.state.lock().queue_enabled(0));
    alpha.vdev.quiesce().unwrap();
    drop(alpha);
    assert_eq!(parent.available(TYPE_DWQ), 8);
    assert!(!parent.is_waiting());
}

#[test]
fn an_end_goes_before_the_commands_of_guests() {
    let (model, _, _parent, mut alpha, mut beta) = two();
    model.state.lock().hang = Vec::from([7]);
    alpha.w32(CMD, DRAIN);
    model.state.lock().hang.clear();
    beta.w32(CMD, ABORT);
    beta.vdev.try_quiesce().unwrap_err();
    model.state.lock().writes.clear();
    model.finish();
    beta.vdev.try_quiesce().unwrap();
    alpha.event();
    assert_eq!(given(&model), [10, 6], "the end, then the rest of the drain");
    assert!(!model.state.lock().queue_enabled(1));
}

#[test]
fn whether_a_queue_runs_is_what_the_device_says() {
    let (model, host, _parent, mut alpha, _beta) = two();
    alpha.w32(CMD, DISABLE << 20 | 1);
    assert!(!model.state.lock().queue_enabled(0));
    model.state.lock().hang = Vec::from([ENABLE]);
    alpha.w32(CMD, ENABLE << 20);
    let start = host.now_ns();
    while alpha.r32(CMDSTS) == ACTIVE {
        assert!(host.now_ns() - start < 3_000_000_000);
    }
    assert_eq!(alpha.r32(CMDSTS), HARDWARE);
    // It is carried out after all, and asked for once more.
    model.finish();
    assert!(model.state.lock().queue_enabled(0));
    alpha.w32(CMD, ENABLE << 20);
    assert_eq!((alpha.r32(CMDSTS), alpha.r32(0x818) >> 30), (0, 1));
    alpha.vdev.reset().unwrap();
    assert!(!model.state.lock().queue_enabled(0));
    assert_eq!(alpha.r32(0x818), 0);
}

#[test]
fn what_follows_a_function_reset_waits_for_the_stop() {
    let (model, _, _parent, mut alpha, _beta) = two();
    model.state.lock().hang = Vec::from([RESET]);
    alpha.vdev.reset().unwrap();
    assert_eq!(alpha.r32(CMDSTS), 0);
    alpha.vdev.set_bus_master(true, &mut |_| ());
    alpha.configure();
    alpha.w32(CMD, 1 << 20);
    alpha.w32(CMD, ENABLE << 20);
    assert_eq!(alpha.r32(CMDSTS), ACTIVE);
    model.finish();
    assert_eq!(alpha.r32(CMDSTS), 0);
    assert_eq!(given(&model), [10, 6]);
    assert!(model.state.lock().queue_enabled(0));
}

#[test]
fn a_reset_of_the_device_ends_what_waited_for_it() {
    let (model, _, parent, mut alpha, mut beta) = two();
    model.state.lock().hang = Vec::from([7]);
    alpha.w32(CMD, DRAIN);
    beta.w32(CMD, INTERRUPT | DRAIN);
    recover(&parent).unwrap();
    beta.raised.clear();
    for guest in [&mut alpha, &mut beta] {
        guest.event();
        assert_eq!((guest.r32(CMDSTS), guest.r32(0x90)), (5, 3), "halted");
    }
    assert_eq!(beta.raised, [0, 0], "the halt and the command");
    assert!(!parent.is_waiting());
    alpha.start();
}

/// A clock on which others do something whenever it is looked at.
#[derive(Default)]
struct BusyHost {
    now: AtomicU64,
    others: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Host for BusyHost {
    fn now_ns(&self) -> u64 {
        // What the others do looks at the clock, too.
        if let Some(mut others) = self.others.try_lock()
            && let Some(act) = &mut *others
        {
            act();
        }
        self.now.fetch_add(1_000_000, Ordering::Relaxed)
    }

    fn wake_first(&self) {}

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        None
    }

    fn free_vector(&self, _vector: HostVector) {}
}

#[test]
fn nobody_touches_the_device_while_it_is_reset() {
    let model = Model::new(0x11fb);
    let host = Arc::new(BusyHost::default());
    let parent = parent_on(&model, &[], Options::default(), host.clone()).unwrap();
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.start();
    let guest = Arc::new(Mutex::new(guest));
    let (seen, times) = (Arc::new(AtomicU64::new(0)), Arc::clone(&guest));
    let (count, other, device) = (Arc::clone(&seen), Arc::clone(&parent), Arc::clone(&model));
    *host.others.lock() = Some(Box::new(move || {
        // The model of the device fails the test where one of these reaches it.
        count.fetch_add(u64::from(device.config.is_silent()), Ordering::Relaxed);
        let mut guest = times.lock();
        guest.event();
        let _ = (guest.r32(CMDSTS), guest.vdev.describe());
        guest.w32(CMD, DRAIN);
        guest.vdev.set_bus_master(false, &mut |_| ());
        guest.vdev.reset().unwrap();
        let _ = other.interrupt(&mut |_| ());
        other.look(&mut |_| ());
        let _ = other.describe();
    }));
    recover(&parent).unwrap();
    *host.others.lock() = None;
    assert!(seen.load(Ordering::Relaxed) > 10, "they did try");
    let mut guest = guest.lock();
    guest.vdev.set_bus_master(true, &mut |_| ());
    guest.start();
    assert!(model.state.lock().queue_enabled(0));
}

#[derive(Clone, Debug)]
enum Step {
    Command(usize, u32),
    Bus(usize, bool),
    FunctionReset(usize),
    Event(usize),
    Fill(usize, u32),
    Hang(Vec<u32>),
    Finish,
}

fn steps() -> impl Strategy<Value = Step> {
    let who = 0usize..2;
    prop_oneof![
        6 => (who.clone(), 1u32..13, any::<bool>()).prop_map(|(who, code, interrupt)| {
            let operand = u32::from((7..11).contains(&code));
            Step::Command(who, code << 20 | operand | u32::from(interrupt) << 31)
        }),
        1 => (who.clone(), any::<bool>()).prop_map(|(who, on)| Step::Bus(who, on)),
        1 => who.clone().prop_map(Step::FunctionReset),
        3 => who.clone().prop_map(Step::Event),
        2 => (who, 0u32..9).prop_map(|(who, count)| Step::Fill(who, count)),
        1 => proptest::collection::vec(6u32..11, 0..3).prop_map(Step::Hang),
        2 => Just(Step::Finish),
    ]
}

proptest! {
    /// Two guests on a device that is slow in everything: no access waits for it, and in the end each queue is
    /// what its guest was told, and goes back.
    #[test]
    fn no_access_waits_for_the_device(steps in proptest::collection::vec(steps(), 1..80)) {
        let (model, host, parent, alpha, beta) = two();
        let mut guests = [alpha, beta];
        for step in &steps {
            let start = host.now_ns();
            match step {
                Step::Command(who, value) => guests[*who].w32(CMD, *value),
                Step::Bus(who, on) => guests[*who].vdev.set_bus_master(*on, &mut |_| ()),
                Step::FunctionReset(who) => guests[*who].vdev.reset().unwrap(),
                Step::Event(who) => guests[*who].event(),
                Step::Fill(who, count) => model.state.lock().fill(*who, *count),
                Step::Hang(codes) => model.state.lock().hang.clone_from(codes),
                Step::Finish => model.finish(),
            }
            prop_assert!(host.now_ns() - start < MOMENT_NS);
        }
        for wq in 0..2 {
            model.state.lock().fill(wq, 0);
        }
        model.finish();
        for _ in 0..4 {
            parent.look(&mut |_| ());
            guests.iter_mut().for_each(Guest::event);
        }
        prop_assert!(!parent.is_waiting());
        for (wq, guest) in guests.iter_mut().enumerate() {
            prop_assert_eq!(guest.r32(0x818) >> 30 == 1, model.state.lock().queue_enabled(wq));
            prop_assert_eq!(guest.r32(CMDSTS) & ACTIVE, 0);
            guest.vdev.quiesce().unwrap();
        }
        drop(guests);
        prop_assert_eq!(parent.available(TYPE_DWQ), 8);
    }
}
