// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who goes on, what time it is, and which interrupts wait.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::vm::exit::MsiMessage;
use pasidon_kernel::vm::sched::SLICE_NS;

use super::device::Device;
use super::hardware::{Fake, KEY, Life, MESSAGES, TIMER};
use super::line::Line;
use super::outside::Desk;
use super::posted::Descriptor;
use super::{Script, VMS};
use crate::run::{World, note_device_interrupt};

/// pCPUs of the machine.
pub const PCPUS: u32 = 2;
/// Bytes of the schedule from here on raise an interrupt instead.
const RAISES: u8 = 192;
/// And from here on a command is typed.
const TYPES: u8 = 240;
/// The machine is at rest where nothing is due for so long: the first pCPU looks now and then whether the other is
/// there.
const REST_NS: u64 = 1_000_000_000;
/// By how much steps can delay something.
const STEPS_NS: u64 = 1_000_000;
/// What every step takes, in nanoseconds.
const STEP_NS: u64 = 200;

std::thread_local! {
    static HERE: RefCell<Option<(Arc<Sim>, u32)>> = const { RefCell::new(None) };
}

/// The machine and the pCPU that the calling thread is.
pub fn here() -> (Arc<Sim>, u32) {
    try_here().expect("a thread of the machine")
}

/// The same, for a thread that may be none.
pub fn try_here() -> Option<(Arc<Sim>, u32)> {
    HERE.with_borrow(|here| here.clone())
}

/// The calling thread is that pCPU from here on.
pub fn settle(sim: &Arc<Sim>, pcpu: u32) {
    HERE.set(Some((sim.clone(), pcpu)));
}

/// Interrupts of one pCPU.
#[derive(Default)]
struct Pending {
    kick: bool,
    key: bool,
    devices: Vec<HostVector>,
    timer: Option<u64>,
}

/// What a pCPU does until others have gone on.
#[derive(Clone, Copy)]
enum Doing {
    /// Its next step.
    Steps,
    /// Its guest computes until then.
    Computes(u64),
    Sleeps,
}

/// Everything that changes.
pub struct State {
    pub now: u64,
    pub device: Device,
    pub line: Line,
    /// How many bytes each VM has printed.
    pub printed: BTreeMap<VmId, usize>,
    /// What each guest does next, by its name.
    pub guests: BTreeMap<String, VecDeque<u8>>,
    pub commands: VecDeque<u8>,
    /// Whose state each pCPU has.
    pub loaded: [Option<String>; PCPUS as usize],
    /// When the timer of a VM was to come, where it has not; `None` where it was paused meanwhile.
    timers: BTreeMap<String, Option<u64>>,
    /// When a VM was sent a key that it has not got; `None` where it was paused meanwhile.
    keys: BTreeMap<String, Option<u64>>,
    /// VMs that do not run now.
    pub paused: BTreeSet<String>,
    /// The first pCPU's other work never ends.
    pub busy: bool,
    /// How late an interrupt may come to a guest: when all others on the pCPU have had a turn, and after the time for
    /// which too many of them are held back.
    late_ns: u64,
    pub violations: Vec<String>,
    pending: [Pending; PCPUS as usize],
    doing: [Doing; PCPUS as usize],
    schedule: VecDeque<u8>,
    running: u32,
    started: u32,
    steps: usize,
    limit: usize,
    over: bool,
    /// Interrupts of vdevs are posted, and where, by the name of the VM.
    pub posts: bool,
    pub descriptors: BTreeMap<String, Descriptor>,
    /// What the last life of each VM has in the processor.
    pub lives: BTreeMap<String, Arc<Life>>,
    /// How often each VM was loaded.
    pub turns: BTreeMap<String, usize>,
}

impl State {
    fn has_pending(&self, pcpu: u32) -> bool {
        let pending = &self.pending[pcpu as usize];
        pending.kick
            || pending.key
            || !pending.devices.is_empty()
            || pending.timer.is_some_and(|due| due <= self.now)
    }

    /// Whether the guest on a pCPU is to be left.
    pub fn is_interrupted(&self, pcpu: u32) -> bool {
        self.over || self.has_pending(pcpu)
    }

    pub fn raise(&mut self, vector: HostVector) {
        self.pending[vector.cpu as usize].devices.push(vector);
    }

    /// A processor that runs that guest takes its notification, if there is one, and gives it what is posted.
    pub fn take_notification(&mut self, vm: &str) {
        let Some(descriptor) = self.descriptors.get_mut(vm) else { return };
        let notification = descriptor.notification();
        let devices = &mut self.pending[notification.cpu as usize].devices;
        let waiting = devices.len();
        devices.retain(|vector| *vector != notification);
        if devices.len() == waiting {
            return;
        }
        for id in descriptor.take() {
            let message = MsiMessage { address: MESSAGES, data: id.into() };
            self.delivered(vm, message);
        }
    }

    /// A guest took an interrupt.
    pub fn delivered(&mut self, vm: &str, message: MsiMessage) {
        if message == TIMER {
            let late = self.timers.remove(vm).flatten().filter(|due| self.now > due + self.late_ns);
            self.violations.extend(late.map(|due| format!("{vm}'s timer comes {} ns late", self.now - due)));
        } else if message == KEY {
            let late = self.keys.remove(vm).flatten().filter(|sent| self.now > sent + self.late_ns);
            self.violations.extend(late.map(|sent| format!("{vm} gets a key after {} ns", self.now - sent)));
        } else if let Err(wrong) = self.device.delivered(vm, message.data, self.now, self.late_ns) {
            self.violations.push(wrong);
        }
    }

    /// A guest prints a byte.
    pub fn note_printed(&mut self, vm: VmId) {
        *self.printed.entry(vm).or_default() += 1;
    }

    /// What went wrong on the line.
    pub fn line_wrong(&self) -> Vec<String> {
        let mut wrong = self.line.check(self.printed.values().sum());
        let sent = self.line.sent();
        // One VM of a place after the other.
        let mut printed = BTreeMap::<usize, usize>::new();
        self.printed.iter().for_each(|(vm, count)| *printed.entry(vm.place()).or_default() += count);
        for (place, count) in printed {
            let came = sent.get(&(place as u8 + 1)).map_or(0, Vec::len);
            if came != count {
                wrong.push(format!("the VMs of place {place} printed {count} bytes, and {came} came"));
            }
        }
        wrong
    }

    pub fn set_timer(&mut self, vm: &str, due: u64) {
        self.timers.insert(vm.to_string(), Some(due));
    }

    pub fn note_key(&mut self, vm: String) {
        let now = self.now;
        self.keys.entry(vm).or_insert(Some(now));
    }

    pub fn pause(&mut self, vm: &str) {
        self.paused.insert(vm.to_string());
        self.timers.entry(vm.to_string()).and_modify(|due| *due = None);
        self.keys.entry(vm.to_string()).and_modify(|sent| *sent = None);
        self.device.pause(vm);
    }

    /// A life of a VM is over.
    pub fn forget(&mut self, vm: &str) {
        self.timers.remove(vm);
        self.keys.remove(vm);
        self.paused.remove(vm);
    }

    /// Whether a pCPU has nothing to do at this moment.
    fn rests(&self, pcpu: u32) -> bool {
        let until = match self.doing[pcpu as usize] {
            Doing::Steps => return false,
            Doing::Computes(until) => Some(until),
            Doing::Sleeps => None,
        };
        until.is_none_or(|until| until > self.now) && !self.has_pending(pcpu)
    }

    /// Who goes on; nobody where all sleep and no timer will wake them. Time goes on for all at once.
    fn choose(&mut self, last: u32) -> Option<u32> {
        let byte = self.schedule.pop_front();
        if let Some(byte) = byte.filter(|byte| *byte >= TYPES) {
            self.line.type_one(usize::from(byte));
            self.pending[0].key = true;
        } else if let Some(byte) = byte.filter(|byte| *byte >= RAISES) {
            let which = usize::from(byte - RAISES);
            let posted =
                self.device.owner(which).and_then(|(id, vm)| Some((id, self.descriptors.get_mut(vm)?)));
            let vector = match posted {
                Some((id, descriptor)) => {
                    self.device.note(id, self.now);
                    descriptor.post(id)
                }
                None => self.device.raise(which, self.now),
            };
            if let Some(vector) = vector {
                self.raise(vector);
            }
        }
        loop {
            let able: Vec<u32> = (0..PCPUS).filter(|pcpu| !self.rests(*pcpu)).collect();
            if let Some(count) = std::num::NonZero::new(able.len()) {
                let next = byte.map_or((last + 1) as usize, usize::from);
                return Some(able[next % count]);
            }
            let computed = self.doing.iter().filter_map(|doing| match doing {
                Doing::Computes(until) => Some(*until),
                _ => None,
            });
            let next = self.pending.iter().filter_map(|pending| pending.timer).chain(computed).min()?;
            if next > self.now + REST_NS {
                return None;
            }
            self.now = next;
        }
    }
}

/// The machine.
pub struct Sim {
    state: Mutex<State>,
    turn: Condvar,
    world: OnceLock<&'static World<Fake>>,
    desk: OnceLock<&'static Desk>,
}

impl Sim {
    pub fn new(script: Script) -> Self {
        let names = (0..VMS).map(|number| format!("vm{number}"));
        let mut programs = script.guests.into_iter();
        let state = State {
            now: 1,
            device: Device::default(),
            line: Line::default(),
            printed: BTreeMap::new(),
            guests: names.map(|name| (name, programs.next().unwrap_or_default().into())).collect(),
            commands: script.commands.into(),
            loaded: Default::default(),
            timers: BTreeMap::new(),
            keys: BTreeMap::new(),
            paused: BTreeSet::new(),
            busy: script.busy,
            late_ns: script.share * (SLICE_NS + STEPS_NS),
            violations: Vec::new(),
            pending: Default::default(),
            doing: [Doing::Steps; PCPUS as usize],
            schedule: script.schedule.into(),
            running: 0,
            started: 0,
            steps: 0,
            limit: usize::MAX,
            over: true,
            posts: script.posts,
            descriptors: BTreeMap::new(),
            lives: BTreeMap::new(),
            turns: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), turn: Condvar::new(), world: OnceLock::new(), desk: OnceLock::new() }
    }

    pub fn meet(&self, world: &'static World<Fake>, desk: &'static Desk) {
        assert!(self.world.set(world).is_ok() && self.desk.set(desk).is_ok(), "once");
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Before the pCPUs start.
    pub fn begin(&self, limit: usize) {
        let mut state = self.lock();
        (state.limit, state.steps, state.started, state.running) = (limit, 0, 0, 0);
        state.over = limit == usize::MAX;
        state.doing = [Doing::Steps; PCPUS as usize];
    }

    /// A pCPU's thread is there; returns when it is its turn for the first time.
    pub fn start(&self, pcpu: u32) {
        let mut state = self.lock();
        state.started += 1;
        self.turn.notify_all();
        while !state.over && (state.started < PCPUS || state.running != pcpu) {
            state = self.turn.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Whether it ended because nothing happens any more.
    pub fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.over && state.steps <= state.limit
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// What a VM that runs has not got although it should have.
    pub fn owed_to(&self, vm: &str, pending: &BTreeSet<u16>) -> Vec<String> {
        let state = self.lock();
        let timer = state.timers.contains_key(vm).then(|| format!("{vm}'s timer never came"));
        let key = state.keys.contains_key(vm).then(|| format!("{vm} never got a key"));
        timer.into_iter().chain(key).chain(state.device.owed_to(vm, pending)).collect()
    }

    /// Ends the machine for all where the holder panics, so that the others do not wait for ever.
    pub fn ends_on_panic(&self) -> impl Drop + '_ {
        struct Ends<'a>(&'a Sim);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.lock().over = true;
                    self.0.turn.notify_all();
                }
            }
        }
        Ends(self)
    }

    /// Others may come between here.
    pub fn step(&self, me: u32) {
        self.pass(me, Doing::Steps);
    }

    /// Until an interrupt comes.
    pub fn sleep(&self, me: u32) {
        self.pass(me, Doing::Sleeps);
    }

    /// For so many nanoseconds, or until an interrupt comes.
    pub fn compute(&self, me: u32, ns: u64) {
        let until = self.lock().now + ns;
        self.pass(me, Doing::Computes(until));
    }

    fn pass(&self, me: u32, doing: Doing) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        state.now += STEP_NS;
        state.steps += 1;
        if state.steps > state.limit {
            state.over = true;
            self.turn.notify_all();
            return;
        }
        state.doing[me as usize] = doing;
        match state.choose(me) {
            Some(next) => state.running = next,
            None => state.over = true,
        }
        self.turn.notify_all();
        while !state.over && state.running != me {
            state = self.turn.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.doing[me as usize] = Doing::Steps;
    }

    /// A life of a VM begins whose interrupts are posted.
    pub fn begin_posting(&self, vm: &str, id: VmId, pcpu: u32) {
        if let Some(world) = self.world.get().filter(|_| self.lock().posts) {
            let descriptor = Descriptor::new(world.system.routes(), id, pcpu);
            self.lock().descriptors.insert(vm.to_string(), descriptor);
        }
    }

    /// It ends.
    pub fn end_posting(&self, vm: &str) {
        let descriptor = self.lock().descriptors.remove(vm);
        if let (Some(world), Some(descriptor)) = (self.world.get(), descriptor) {
            descriptor.end(world.system.routes());
        }
    }

    /// The interrupts that wait on a pCPU are taken.
    pub fn take_interrupts(&self, me: u32) {
        let mut state = self.lock();
        let now = state.now;
        let pending = &mut state.pending[me as usize];
        pending.kick = false;
        let key = core::mem::take(&mut pending.key);
        if pending.timer.is_some_and(|due| due <= now) {
            pending.timer = None;
        }
        let vectors = core::mem::take(&mut pending.devices);
        drop(state);
        if let Some(desk) = self.desk.get().filter(|_| key) {
            desk.note_key();
        }
        if let Some(world) = self.world.get() {
            for vector in vectors {
                note_device_interrupt(world, vector);
            }
        }
    }

    pub fn kick(&self, pcpu: u32) {
        self.lock().pending[pcpu as usize].kick = true;
    }

    pub fn arm(&self, pcpu: u32, deadline: Option<u64>) {
        self.lock().pending[pcpu as usize].timer = deadline;
    }
}
