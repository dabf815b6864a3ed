// SPDX-License-Identifier: MIT OR Apache-2.0
//! However a guest drives its vdev, and in whatever state the device is, it causes few lines of the log.

use core::cell::Cell;

use pasidon_kernel::base::allowance::BURST;
use pasidon_kernel::irq::host::Host;
use proptest::prelude::*;

use super::*;

thread_local! {
    /// Lines logged by this thread, which is one test.
    static LINES: Cell<u64> = const { Cell::new(0) };
}

struct Count;

impl log::Log for Count {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

/// How the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Healthy,
    Halted,
    Hanging,
}

/// What a guest does.
#[derive(Clone, Debug)]
enum Step {
    Command(u32),
    Write(u64, u64),
    BusMaster(bool),
    FunctionReset,
    /// The device, not the guest, becomes that.
    Device(State),
    Event,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..16, 0u32..3).prop_map(|(code, operand)| Step::Command(code << 20 | operand)),
        2 => (0u64..0x1_0000, any::<u64>()).prop_map(|(offset, value)| Step::Write(offset, value)),
        1 => any::<bool>().prop_map(Step::BusMaster),
        1 => Just(Step::FunctionReset),
        1 => Just(Step::Event),
        1 => prop_oneof![Just(State::Healthy), Just(State::Halted), Just(State::Hanging)].prop_map(Step::Device),
    ]
}

fn make(model: &Model, state: State) {
    let mut device = model.state.lock();
    device.hang = if state == State::Hanging { (1..16).collect() } else { Vec::new() };
    match state {
        // What hung is finished.
        State::Healthy => (device.gensts, device.cmdsts) = (1, 0),
        State::Halted => (device.gensts, device.cmdsts) = (3, 0),
        State::Hanging => {}
    }
}

fn take(guest: &mut Guest, model: &Model, step: Step) {
    match step {
        Step::Command(value) => guest.w32(0xa0, value),
        Step::Write(offset, value) => guest.w64(offset, value),
        Step::BusMaster(on) => guest.set_bus_master(on),
        // Whether it succeeded is the caller's line.
        Step::FunctionReset => drop(guest.vdev.reset()),
        Step::Device(state) => make(model, state),
        Step::Event => guest.event(),
    }
}

/// Takes the steps, over and over, in a guest whose queue runs. The lines that came, and those allowed.
fn lines_of(start: State, steps: &[Step]) -> (u64, u64) {
    // Another test may have been first, with the same logger.
    let _ = log::set_logger(&Count);
    log::set_max_level(log::LevelFilter::Trace);
    let model = Model::new(0x11fb);
    let host = TestHost::new();
    let parent = DsaParent::new(Setup {
        name: "dsa0".into(),
        function: Function::new(Arc::clone(&model.config), Requester::new(0, 0, 4, 0)).unwrap(),
        registers: Arc::clone(&model),
        host: host.clone(),
        partition: Partition::default(),
        sending: Sending::Tagged(None),
        memory: Arc::new(ModelMemory::new()),
        options: Options::default(),
    })
    .unwrap();
    // The guest's allowance counts its seconds from here.
    let began = host.now_ns();
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.start();
    make(&model, start);
    LINES.set(0);
    for _ in 0..20 {
        for step in steps {
            take(&mut guest, &model, step.clone());
        }
    }
    let seconds = (host.now_ns() - began) / 1_000_000_000;
    (LINES.get(), BURST + seconds)
}

#[test]
fn a_halted_device_does_not_let_a_guest_flood_the_log() {
    for state in [State::Halted, State::Hanging] {
        let (lines, allowed) = lines_of(state, &vec![Step::Command(5 << 20); 100]);
        assert!(lines > 0, "nobody hears of it");
        assert!(lines <= allowed, "{state:?}: {lines} lines, {allowed} allowed");
    }
}

proptest! {
    #[test]
    fn a_guest_causes_few_lines(
        start in prop_oneof![Just(State::Healthy), Just(State::Halted), Just(State::Hanging)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let (lines, allowed) = lines_of(start, &steps);
        prop_assert!(lines <= allowed, "{} lines, {} allowed", lines, allowed);
    }
}
