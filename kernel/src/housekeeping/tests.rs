// SPDX-License-Identifier: MIT OR Apache-2.0
//! The work of the first processor, on a machine whose line, clock and power are the test's.

mod definitions;

use std::cell::Cell;
use std::collections::VecDeque;

use log::{Level, Log, Record};
use proptest::prelude::*;

use super::events::INTERVAL_NS;
use super::*;
use crate::base::allowance::BURST;
use crate::base::id::VdevId;
use crate::config::{ConsoleMode, VmConfig, parse};
use crate::console::LEAVE_KEY;
use crate::console::framing::{Decoder, Encoder};
use crate::dma::fault::{DmaFault, FaultAccess, Noted};
use crate::dma::pasid::Pasid;
use crate::system::Definable;
use crate::testing::{REQUESTER, SharedTruth, TestMachine, Truth, lines, vm_spec};
use crate::vm::VmState;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// What one round of the loop takes.
const ROUND_NS: u64 = 10_000;
/// The VMs of the configuration, in its order; the second was refused.
const NAMES: [&str; 3] = ["alpha", "bad", "beta"];
/// The parent's only place.
const PARENT: u16 = 0;

std::thread_local! {
    /// How often memory was looked after.
    static TENDED: Cell<usize> = const { Cell::new(0) };
}

/// The serial port.
#[derive(Default)]
struct TestPort {
    incoming: Mutex<VecDeque<Received>>,
    sent: Mutex<Vec<u8>>,
    /// Happens elsewhere while the next byte is sent.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl SerialPort for TestPort {
    fn read(&self) -> Option<Received> {
        self.incoming.lock().pop_front()
    }

    fn write(&self, byte: u8) {
        self.sent.lock().push(byte);
        let meanwhile = self.meanwhile.lock().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }
}

/// What switches the machine off: what it was told, and what had been sent by then.
#[derive(Default)]
struct TestPower {
    refuses: AtomicBool,
    done: Mutex<Vec<HostPower>>,
}

impl Power for TestPower {
    fn check(&self, _power: HostPower) -> Result<(), Refusal> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(Refusal::new("shutdown", "the firmware does not say how", "use its switch")),
            false => Ok(()),
        }
    }

    fn carry_out(&self, power: HostPower) {
        self.done.lock().push(power);
    }
}

fn config_of(vm: &str) -> VmConfig {
    let text = format!("[[vm]]\nname = \"{vm}\"\nmemory = \"64M\"\nkernel = \"k\"\n");
    parse(text.as_bytes()).unwrap().config.vms.remove(0)
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// The files that VMs can be defined of.
fn definitions() -> Definitions {
    let file = |file: &str, vms: Result<&[&str], &str>| Definable {
        file: file.to_string(),
        vms: vms
            .map(|names| names.iter().map(|name| vm_spec(name, 2, 2, 1)).collect())
            .map_err(str::to_string),
    };
    Definitions::new([
        file("gamma", Ok(&["gamma"])),
        file("pair", Ok(&["bad", "delta"])),
        file("old", Err("old:1:2: vm old: wrong; right it")),
    ])
}

/// The machine, with two VMs that are stopped, and its first processor asleep.
struct Rig {
    truth: &'static SharedTruth,
    system: &'static System,
    port: &'static TestPort,
    power: &'static TestPower,
    logger: &'static Logger,
    keeper: Housekeeping,
    encoder: Encoder,
    /// The clock.
    now: u64,
    /// Wakes that the first processor has seen.
    wakes: usize,
    /// The line's interrupt waits.
    key: bool,
    /// What the timer was set to before it slept.
    armed: Option<u64>,
}

impl Rig {
    fn new(mode: ConsoleMode) -> Self {
        lines::keep();
        let machine = leak(TestMachine::new());
        let (truth, system) = (machine.truth, &machine.system);
        let (port, power, logger) =
            (leak(TestPort::default()), leak(TestPower::default()), leak(Logger::new()));
        for (place, name) in NAMES.into_iter().enumerate().filter(|(_, name)| *name != "bad") {
            system.define_vm_at(vm_spec(name, 2, 2, 1), place).unwrap();
        }
        let refused = VmInfo::refused(&config_of("bad"), "no kernel".to_string());
        TENDED.set(0);
        let tend = || TENDED.set(TENDED.get() + 1);
        let memory = HypervisorMemory::default;
        let host = HostMachine { host: truth, port, logger, power, memory, tend };
        let console = Console::new(mode, 0x1234);
        let keeper = Housekeeping::new(system, host, console, vec![refused], definitions());
        let mut rig = Self {
            truth,
            system,
            port,
            power,
            logger,
            keeper,
            encoder: Encoder::default(),
            now: 0,
            wakes: 0,
            key: false,
            armed: None,
        };
        rig.keeper.keys_interrupt();
        rig.keeper.prompt();
        rig.keeper.wake();
        rig.pass(SECOND);
        assert_eq!(rig.keeper.next_work(), None, "there is nothing to wake for");
        rig
    }

    fn set_clock(&mut self, now: u64) {
        self.now = now;
        self.truth.set_clock(now);
    }

    fn start(&self, vm: &str) {
        self.system.start_vm(self.truth, &self.system.vm_named(vm).unwrap()).unwrap();
    }

    /// The loop of the first processor for so long: it sleeps until it is woken, a key is pressed or its work is due.
    fn pass(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.now < end {
            let woken = self.truth.lock().wakes;
            if core::mem::replace(&mut self.wakes, woken) == woken && !core::mem::take(&mut self.key) {
                let due = self.armed.unwrap_or(end).clamp(self.now, end);
                self.set_clock(due);
                if due == end {
                    return;
                }
            }
            loop {
                self.keeper.work(self.truth);
                self.set_clock(self.now + ROUND_NS);
                if !self.keeper.is_woken() || self.now >= end {
                    break;
                }
            }
            self.armed = self.keeper.next_work();
        }
    }

    /// Comes in on the line, which interrupts for it once.
    fn receive(&mut self, received: impl IntoIterator<Item = Received>) {
        self.port.incoming.lock().extend(received);
        self.keeper.note_key();
        self.key = true;
    }

    fn type_plain(&mut self, text: &str) {
        self.receive(text.bytes().map(Received::Byte));
    }

    /// A program sends this to a channel.
    fn send(&mut self, channel: u8, text: &[u8]) {
        let mut bytes = Vec::new();
        self.encoder.send(channel, text, &mut |byte| bytes.push(byte));
        self.receive(bytes.into_iter().map(Received::Byte));
    }

    /// What was sent since the last call, as it is.
    fn sent(&self) -> String {
        String::from_utf8(core::mem::take(&mut *self.port.sent.lock())).expect("UTF-8")
    }

    /// What was sent on a channel so far.
    fn sent_on(&self, channel: u8) -> String {
        let mut decoder = Decoder::default();
        let sent = self.port.sent.lock();
        let bytes = sent.iter().filter_map(|byte| decoder.receive(*byte));
        String::from_utf8(bytes.filter(|(on, _)| *on == channel).map(|(_, byte)| byte).collect())
            .expect("UTF-8")
    }

    fn typed(&self, vm: &str) -> Vec<Received> {
        let id = self.system.vm_named(vm).unwrap().id();
        self.truth.lock().typed.get(&id).cloned().unwrap_or_default()
    }

    fn note_fault(&self, pasid: u32) {
        let fault = DmaFault {
            requester: REQUESTER,
            pasid: Pasid::new(pasid),
            address: 0x1000,
            access: FaultAccess::Read,
            reason: "no mapping",
            code: 0x59,
        };
        self.truth.lock().faults.push_back(Noted::Fault(fault));
    }
}

fn say_on(logger: &Logger, text: &str) {
    let text = format_args!("{text}");
    logger.log(&Record::builder().level(Level::Info).target("test").args(text).build());
}

fn logged(what: &str) -> usize {
    lines::kept().iter().filter(|line| line.contains(what)).count()
}

#[test]
fn memory_is_looked_after_when_something_happened() {
    let mut rig = Rig::new(ConsoleMode::Plain);
    let before = TENDED.get();
    rig.pass(SECOND);
    assert_eq!(TENDED.get(), before, "nothing happened");
    rig.type_plain("vm alpha start\r");
    rig.pass(SECOND);
    let typed = TENDED.get();
    assert!(typed > before);
    rig.keeper.wake();
    rig.pass(SECOND);
    assert!(TENDED.get() > typed);
}

#[test]
fn a_flood_of_faults_and_events_leaves_guests_their_turns() {
    const TIME_NS: u64 = 2 * SECOND;
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.start("alpha");
    rig.start("beta");
    let pasid = rig.system.vm_named("alpha").unwrap().vdevs()[0].pasid().unwrap().value();
    rig.truth.lock().more_events = usize::MAX;
    rig.keeper.note_parent(PARENT);
    // Each record raises the unit's interrupt again.
    for _ in 0..TIME_NS / MS {
        rig.note_fault(pasid);
        rig.keeper.note_fault();
        rig.pass(MS);
    }
    let looks = |truth: &Truth| (truth.fault_looks, truth.event_looks);
    let (faults, events) = looks(&rig.truth.lock());
    let most = (TIME_NS / INTERVAL_NS) as usize + 1;
    assert!((most - 4..=most).contains(&faults), "{faults} looks at faults");
    assert!((most - 4..=most).contains(&events), "{events} looks at events");
    // What is said of one VM takes no other's lines.
    let most = (BURST + TIME_NS / SECOND) as usize;
    for what in ["fault: vm alpha", "parent dsa0: vm alpha", "parent dsa0: vm beta", "parent dsa0: bad"] {
        let lines = logged(what);
        assert!((most - 1..=most).contains(&lines), "{lines} lines begin with {what:?}");
    }
    rig.pass(SECOND);
    assert_eq!(rig.keeper.events.faults().records, TIME_NS / MS, "each record is taken once");
}

#[test]
fn each_note_wakes_by_itself() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.note_fault(1);
    rig.keeper.note_fault();
    rig.pass(MS);
    assert_eq!(rig.truth.lock().fault_looks, 1);
    rig.pass(SECOND);
    rig.keeper.note_parent(PARENT);
    rig.pass(MS);
    assert_eq!(rig.truth.lock().event_looks, 1);
    rig.pass(SECOND);
    rig.send(0, b"version --json\r");
    rig.pass(MS);
    assert_eq!(rig.sent_on(0).lines().count(), 1);
}

#[test]
fn what_is_left_of_a_flood_is_looked_at_later_though_nothing_announces_it() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    (0..100).for_each(|_| rig.note_fault(1));
    rig.truth.lock().more_events = 20;
    rig.keeper.note_fault();
    rig.keeper.note_parent(PARENT);
    rig.pass(SECOND);
    let truth = rig.truth.lock();
    assert_eq!((truth.faults.len(), truth.fault_looks), (0, 100usize.div_ceil(8)));
    assert_eq!((truth.more_events, truth.event_looks), (0, 21));
    drop(truth);
    assert_eq!(rig.keeper.next_work(), None, "and then nothing more is");
}

#[test]
fn what_nothing_announces_is_looked_for() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.keeper.keys_interrupt.store(false, Ordering::Relaxed);
    rig.keeper.look_for_faults();
    // The line is looked at once more before it is known that it must be.
    rig.keeper.note_key();
    rig.keeper.wake();
    rig.pass(MS);
    for _ in 0..3 {
        rig.note_fault(1);
        let mut bytes = Vec::new();
        rig.encoder.send(0, b"version --json\r", &mut |byte| bytes.push(Received::Byte(byte)));
        rig.port.incoming.lock().extend(bytes);
        rig.pass(2 * LOOK_INTERVAL_NS + INTERVAL_NS);
        assert_eq!((rig.truth.lock().faults.len(), rig.port.incoming.lock().len()), (0, 0));
    }
    assert_eq!(rig.sent_on(0).lines().count(), 3, "{}", rig.sent_on(0));
}

#[test]
fn what_is_under_way_on_a_device_is_looked_at_from_when_somebody_is_woken() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.truth.lock().waiting = true;
    rig.keeper.wake();
    rig.pass(SECOND);
    let looks = rig.truth.lock().looks;
    assert!((50..100).contains(&looks), "{looks} looks in a second");
    rig.truth.lock().waiting = false;
    rig.pass(SECOND);
    assert_eq!(rig.keeper.next_work(), None);
    assert_eq!(rig.truth.lock().looks, looks);
}

#[test]
fn a_guest_that_restarts_itself_is_started_once_for_each_time() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.start("alpha");
    let alpha = rig.system.vm_named("alpha").unwrap();
    for life in 2..5 {
        alpha.request(VmEnd::Reset);
        rig.keeper.wake();
        rig.keeper.wake();
        rig.pass(20 * SECOND);
        assert_eq!((alpha.state(), alpha.stats().starts()), (VmState::Running, life));
    }
    alpha.request(VmEnd::PowerOff);
    rig.keeper.wake();
    rig.pass(SECOND);
    assert_eq!((alpha.state(), alpha.stats().starts()), (VmState::Stopped, 4));
    assert_eq!((logged("started again at its own request"), logged("switched itself off")), (3, 1));
}

#[test]
fn a_guest_without_room_gets_what_was_typed_when_it_has_read() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.start("beta");
    let text: Vec<u8> = (0..200).collect();
    rig.send(3, &text);
    rig.pass(SECOND);
    assert_eq!(rig.typed("beta").len(), 16, "as much as goes in");
    for room in [17, 100, 1000] {
        rig.truth.lock().room = room;
        rig.pass(2 * LOOK_INTERVAL_NS);
        assert_eq!(rig.typed("beta").len(), room.min(200), "nobody pressed a key");
    }
    assert!(rig.typed("beta").into_iter().eq(text.into_iter().map(Received::Byte)), "in order");
    rig.pass(SECOND);
    assert_eq!(rig.keeper.next_work(), None);
}

#[test]
fn a_break_comes_behind_what_was_typed() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.start("alpha");
    rig.truth.lock().room = 1;
    rig.send(1, b"ab");
    rig.send(0, b"vm alpha break --json\rvm beta break --json\r");
    rig.pass(SECOND);
    rig.truth.lock().room = 16;
    rig.pass(SECOND);
    let expected = [Received::Byte(b'a'), Received::Byte(b'b'), Received::Break];
    assert_eq!((rig.typed("alpha"), rig.typed("beta")), (expected.to_vec(), vec![]));
    let answers = rig.sent_on(0);
    assert!(answers.contains("it does not run, so nobody receives a BREAK"), "{answers}");
    assert_eq!(answers.lines().count(), 2, "{answers}");
}

#[test]
fn whoever_sends_without_end_keeps_nobody_from_the_rest() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.send(0, &[b'\r'; 3 * LOOK_MAX]);
    rig.keeper.note_fault();
    rig.note_fault(1);
    rig.keeper.work(rig.truth);
    assert!(rig.port.incoming.lock().len() >= 2 * LOOK_MAX - 2);
    assert_eq!(rig.truth.lock().faults.len(), 0, "the rest has its turn");
    assert!(rig.keeper.is_woken());
    rig.pass(SECOND);
    assert_eq!(rig.port.incoming.lock().len(), 0, "though no other key was pressed");
}

#[test]
fn the_machine_goes_off_when_all_vms_have_ended_and_the_answer_was_shown() {
    for (command, wanted) in [("shutdown", HostPower::Off), ("reboot", HostPower::Reset)] {
        let mut rig = Rig::new(ConsoleMode::Framed);
        rig.start("alpha");
        rig.start("beta");
        rig.power.refuses.store(true, Ordering::Relaxed);
        rig.send(0, format!("{command} --json\r").as_bytes());
        rig.pass(SECOND);
        assert!(rig.sent_on(0).contains("the firmware does not say how"));
        assert!(rig.power.done.lock().is_empty());
        assert_eq!(rig.system.vm_named("alpha").unwrap().state(), VmState::Running);
        rig.power.refuses.store(false, Ordering::Relaxed);
        rig.send(0, format!("{command} --json\r").as_bytes());
        rig.pass(SECOND);
        assert_eq!(*rig.power.done.lock(), [wanted], "once");
        assert_eq!(rig.sent_on(0).lines().count(), 2, "{}", rig.sent_on(0));
        let alive = rig.system.vms().iter().filter(|vm| vm.state().is_alive()).count();
        assert_eq!((alive, rig.truth.lock().stage2.len()), (0, 0));
    }
}

#[test]
fn people_go_to_a_guest_and_come_back() {
    let mut rig = Rig::new(ConsoleMode::Plain);
    assert_eq!(rig.sent(), "pasidon> ");
    rig.start("alpha");
    rig.type_plain("console alpha\r");
    rig.pass(SECOND);
    rig.sent();
    rig.type_plain("ls\r");
    rig.pass(SECOND);
    assert_eq!(rig.typed("alpha").len(), 3);
    rig.keeper.guest_output(rig.system.vm_named("alpha").unwrap().id(), b'x');
    rig.keeper.guest_output(rig.system.vm_named("beta").unwrap().id(), b'y');
    assert_eq!(rig.sent(), "x");
    // No other key will come: that the line is quiet is found out by looking.
    rig.receive([Received::Byte(LEAVE_KEY)]);
    rig.pass(SECOND);
    let sent = rig.sent();
    assert!(sent.ends_with("--- monitor 1234, Ctrl-] returns to alpha ---\r\npasidon> "), "{sent:?}");
    assert_eq!(rig.typed("alpha").len(), 3);
    assert_eq!(rig.keeper.next_work(), None);
}

#[test]
fn top_goes_on_by_itself_until_a_key_ends_it() {
    let mut rig = Rig::new(ConsoleMode::Plain);
    rig.type_plain("top\r");
    rig.pass(5 * SECOND);
    let pictures = rig.sent().matches("any key ends this").count();
    assert!((5..=6).contains(&pictures), "{pictures} in 5 s");
    rig.type_plain("x");
    rig.pass(5 * SECOND);
    assert_eq!(rig.sent(), "pasidon> ");
    assert_eq!(rig.keeper.next_work(), None);
}

#[test]
fn a_vm_that_was_refused_is_listed_and_says_why() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    rig.send(0, b"vms\rvm bad start\rvm nobody start\r");
    rig.pass(SECOND);
    let sent = rig.sent_on(0);
    assert!(sent.contains("bad") && sent.contains("refused  "), "{sent}");
    assert!(sent.contains("it was refused at boot: no kernel"), "{sent}");
    assert!(sent.contains("unknown vm nobody"), "{sent}");
}

#[test]
fn messages_that_come_while_the_line_is_taken_are_shown() {
    let mut rig = Rig::new(ConsoleMode::Framed);
    let say = |text: &str| {
        say_on(rig.logger, text);
        rig.keeper.show_log();
    };
    say("the line is free");
    rig.keeper.line.with(|_, _| say("I have it"));
    assert_eq!(rig.sent_on(0).lines().count(), 2);
    // One that comes while others are shown is left to the first processor.
    let logger = rig.logger;
    *rig.port.meanwhile.lock() = Some(Box::new(move || say_on(logger, "meanwhile")));
    say("shown");
    assert_eq!(rig.sent_on(0).lines().count(), 3);
    rig.pass(MS);
    assert_eq!(rig.sent_on(0).lines().count(), 4);
    assert_eq!(rig.keeper.next_work(), None);
}

/// By the guest's word, which wakes the first processor, or by the clock.
#[test]
fn a_vdev_that_was_asked_for_goes_when_its_guest_lets_go_or_time_is_over() {
    for lets_go in [true, false] {
        let mut rig = Rig::new(ConsoleMode::Framed);
        rig.start("alpha");
        rig.truth.lock().listens = true;
        rig.send(0, b"vdev destroy 1 --json\r");
        rig.pass(SECOND);
        let vdev = rig.system.vdev_infos().remove(0);
        assert_eq!((vdev.id, &*vdev.state), (1, "leaving"));
        let due = rig.keeper.next_work().expect("it waits");
        assert!(due > rig.now + 15 * SECOND, "and does nothing meanwhile");
        if lets_go {
            rig.truth.lock().let_go.insert(VdevId(1));
            rig.keeper.wake();
            rig.pass(SECOND);
        } else {
            rig.pass(20 * SECOND);
        }
        assert_eq!((rig.system.vdev_infos().len(), rig.keeper.next_work()), (0, None));
        let said = lines::kept().join("\n");
        let wanted = ["the guest has let go of it", "has not let go of it within 20 s: it has ended"];
        assert!(said.contains(wanted[usize::from(!lets_go)]), "{said}");
    }
}

/// What may happen on other processors, on the line and in guests.
#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Fault,
    OfParent,
    /// A guest asks for its end.
    Request(usize, bool),
    /// A command, by its place in [`COMMANDS`].
    Command(usize),
    /// So many bytes for a guest.
    Keys(usize, usize),
    /// The guests read.
    Room,
    Waiting(bool),
    Log,
}

/// The keys below it are typed one after the other, and it is the last one.
const LAST_KEY: u8 = 250;

/// With a JSON answer each, of one line.
const COMMANDS: [&str; 18] = [
    "vms",
    "vm alpha start",
    "vm alpha stop",
    "vm alpha restart",
    "vm beta start",
    "vm beta pause",
    "vm beta resume",
    "vm beta break",
    "vm define gamma",
    "vm gamma start",
    "vm gamma stop",
    "vm gamma remove",
    "vdev create alpha dsa0/direct",
    "vdev destroy 1",
    "vdev destroy 2 now",
    "nonsense",
    "top",
    "shutdown",
];

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..200).prop_map(|tenths| Event::Pass(tenths * MS / 10)),
        2 => Just(Event::Fault),
        1 => Just(Event::OfParent),
        1 => (0usize..2, any::<bool>()).prop_map(|(vm, reset)| Event::Request(vm, reset)),
        3 => (0..COMMANDS.len()).prop_map(Event::Command),
        2 => (0usize..2, 0usize..40).prop_map(|(vm, count)| Event::Keys(vm, count)),
        1 => Just(Event::Room),
        1 => any::<bool>().prop_map(Event::Waiting),
        1 => Just(Event::Log),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// However it comes, it is done once, and then the first processor sleeps for good.
    #[test]
    fn nothing_that_was_left_is_forgotten_or_done_twice(events in proptest::collection::vec(events(), 0..60)) {
        let mut rig = Rig::new(ConsoleMode::Framed);
        rig.truth.lock().listens = true;
        let (mut faults, mut commands, mut shutdowns, mut messages) = (0, 0, 0, 0);
        let mut keys = [0u8; 2];
        for event in &events {
            match *event {
                Event::Pass(ns) => rig.pass(ns),
                Event::Fault => {
                    faults += 1;
                    rig.note_fault(1);
                    rig.keeper.note_fault();
                }
                Event::OfParent => {
                    rig.truth.lock().more_events += 1;
                    rig.keeper.note_parent(PARENT);
                }
                Event::Request(vm, reset) => {
                    let vm = &rig.system.vms()[vm];
                    if vm.state().is_alive() {
                        vm.request(if reset { VmEnd::Reset } else { VmEnd::PowerOff });
                        rig.keeper.wake();
                    }
                }
                Event::Command(which) => {
                    commands += 1;
                    shutdowns += usize::from(COMMANDS[which] == "shutdown");
                    rig.send(0, format!("{} --json\r", COMMANDS[which]).as_bytes());
                }
                Event::Keys(vm, count) => {
                    // alpha is on channel 1, beta on channel 3.
                    let more = keys[vm].saturating_add(count as u8).min(LAST_KEY);
                    let text: Vec<u8> = (keys[vm]..more).collect();
                    keys[vm] = more;
                    rig.send(1 + 2 * vm as u8, &text);
                }
                Event::Room => rig.truth.lock().room += 20,
                Event::Waiting(waiting) => {
                    rig.truth.lock().waiting = waiting;
                    rig.keeper.wake();
                }
                Event::Log => {
                    messages += 1;
                    say_on(rig.logger, "a message");
                    rig.keeper.show_log();
                }
            }
        }
        rig.truth.lock().waiting = false;
        rig.truth.lock().room = usize::MAX;
        // Longer than guests are waited for.
        rig.pass(30 * SECOND);
        for (vm, channel) in rig.system.vms().into_iter().zip([1, 3]) {
            if !vm.state().is_alive() {
                rig.start(vm.name());
            }
            rig.send(channel, &[LAST_KEY]);
        }
        rig.pass(SECOND);
        prop_assert_eq!(rig.keeper.next_work(), None, "it sleeps for good");
        prop_assert!(!rig.keeper.is_woken() && rig.port.incoming.lock().is_empty());
        prop_assert_eq!(rig.keeper.events.faults().records, faults);
        prop_assert!(rig.truth.lock().faults.is_empty());
        prop_assert_eq!(rig.truth.lock().more_events, 0);
        let sent = rig.sent_on(0);
        let answers = sent.lines().filter(|line| line.starts_with(['{', '['])).count();
        prop_assert_eq!(answers, commands, "{}", sent);
        prop_assert_eq!(sent.matches("a message").count(), messages, "{}", sent);
        let done = rig.power.done.lock().len();
        prop_assert!(done <= shutdowns && (done == 0) == (shutdowns == 0), "{} of {}", done, shutdowns);
        prop_assert!(rig.system.vms().iter().all(|vm| !vm.has_request() || !vm.state().is_alive()));
        for (vm, name) in ["alpha", "beta"].into_iter().enumerate() {
            let typed = rig.typed(name);
            let bytes: Vec<u8> = typed.iter().filter_map(|received| match received {
                Received::Byte(byte) => Some(*byte),
                _ => None,
            }).collect();
            // What comes while there is no guest to read is nobody's.
            prop_assert!(bytes.is_sorted_by(|key, next| key < next), "{} of {:?}", vm, bytes);
            prop_assert_eq!(bytes.last(), Some(&LAST_KEY), "of {:?}", bytes);
        }
        let wrong = rig.truth.lock().violations.clone();
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }
}
