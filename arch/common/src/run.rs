// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a pCPU does all day.
//!
//! **Principle.** Interrupts are enabled at two places only, both here: for a moment between turns, and while
//! there is nothing to run; besides, whoever waits for another pCPU takes them meanwhile. Handlers therefore never
//! meet a lock that their own pCPU holds. They leave notes; the loop acts on them.
//! **Invariant.** A pCPU sleeps or enters a guest only after it has seen that no note is left, with
//! interrupts off since.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use pasidon_kernel::id::{VdevId, VmId};
use pasidon_kernel::irq::{HostVector, Route};
use pasidon_kernel::refusal::Refusal;
use pasidon_kernel::sched::{PcpuId, SLICE_NS, Seat, Turn};
use pasidon_kernel::system::System;
use spin::Mutex;

use crate::hardware::{Core, Hardware};
use crate::history;
use crate::pcpus::MAX_PCPUS;
use crate::view::VmView;
use crate::vms::{Machine, Vms};

/// Device interrupts that may wait on one pCPU: one for each vector, as the same twice is one. No pCPU may be given
/// more vectors.
pub const NOTES: usize = 256;

/// The turn that a guest gets between two rounds of the hypervisor's own work, in nanoseconds: whatever causes that
/// work, guests on the pCPU that does it go on.
const BETWEEN_NS: u64 = 1_000_000;
/// When interrupts that could not be let through are tried again, in nanoseconds.
const RETRY_NS: u64 = 1_000_000;
/// How often the first pCPU looks whether the others go on, in nanoseconds.
const WATCH_NS: u64 = 2_000_000_000;
/// Where a turn's number begins in the number of a turn among those of all pCPUs; the pCPU is below.
const TURN_SHIFT: u32 = 16;
const _: () = assert!(MAX_PCPUS <= 1 << TURN_SHIFT);

/// What every pCPU works on.
pub struct World<H: Hardware> {
    /// The system.
    pub system: &'static System,
    /// The machines.
    pub vms: &'static Vms<H>,
}

/// Device interrupts that came on each pCPU. Only that pCPU touches its own.
static NOTED: [Mutex<ArrayVec<Route, NOTES>>; MAX_PCPUS] =
    [const { Mutex::new(ArrayVec::new_const()) }; MAX_PCPUS];
/// Parents whose event interrupt came, a bit each.
static PARENT_EVENTS: AtomicU64 = AtomicU64::new(0);
const _: () = assert!(Route::PARENTS as u32 == u64::BITS);
/// How often each pCPU has gone round its loop: after two more rounds, every interrupt that it had accepted
/// before has been handled.
static ROUNDS: [AtomicU64; MAX_PCPUS] = [const { AtomicU64::new(0) }; MAX_PCPUS];

/// What one pCPU keeps to itself.
struct Local<H: Hardware> {
    index: u32,
    pcpu: H::Pcpu,
    /// Halted vCPUs of this pCPU whose timer wakes them.
    sleepers: Vec<(Seat, u64)>,
    /// What the timer is set to.
    armed: Option<u64>,
    /// Whose turn was last, and its number.
    last: (Option<VmId>, u64),
    /// VMs whose interrupts are held back and which no turn on this pCPU will let through, and when to do that.
    held: Vec<(VmId, u64)>,
    /// When to look at the other pCPUs; for the first.
    watch_due: u64,
}

/// A device of the machine raised this interrupt: remembers whose it is, for the loop of the pCPU that took it. For
/// interrupt handlers.
pub fn note_device_interrupt<H: Hardware>(world: &World<H>, from: HostVector) {
    match world.system.routes().deliver(from) {
        Some(Route::ParentEvent(parent)) => {
            note_parent_event(parent);
            world.vms.outside().wake();
        }
        Some(route) => {
            if let Some(notes) = NOTED.get(H::this_pcpu() as usize) {
                let mut notes = notes.lock();
                if !notes.contains(&route) {
                    // There are no more routes to a pCPU than it has vectors.
                    let _ = notes.try_push(route);
                }
            }
        }
        None => {}
    }
}

/// A parent may have events: its interrupt came, or not all were taken.
pub fn note_parent_event(parent: u16) {
    PARENT_EVENTS.fetch_or(1 << (parent % Route::PARENTS), Ordering::SeqCst);
}

/// Parents whose event interrupt came since the last call.
pub fn take_parent_events() -> impl Iterator<Item = u16> {
    let bits = PARENT_EVENTS.swap(0, Ordering::SeqCst);
    (0..Route::PARENTS).filter(move |bit| bits & 1 << bit != 0)
}

/// Whether there are any.
pub fn has_parent_events() -> bool {
    PARENT_EVENTS.load(Ordering::SeqCst) != 0
}

/// How often the pCPU has gone round its loop.
pub fn rounds(pcpu: u32) -> u64 {
    ROUNDS.get(pcpu as usize).map_or(0, |rounds| rounds.load(Ordering::SeqCst))
}

/// Runs vCPUs on the pCPU that calls, for ever. Refused where the processor cannot.
pub fn run<H: Hardware>(world: &World<H>) -> Result<core::convert::Infallible, Refusal> {
    let index = H::this_pcpu();
    let mut local = Local::<H> {
        index,
        pcpu: H::enable(index, world.vms.frames())?,
        sleepers: Vec::new(),
        armed: None,
        last: (None, 0),
        held: Vec::new(),
        watch_due: 0,
    };
    // Whether a round went by without a turn for a guest.
    let mut owed = false;
    loop {
        let mut began = H::now_ns();
        H::window();
        if let Some(rounds) = ROUNDS.get(index as usize) {
            rounds.fetch_add(1, Ordering::SeqCst);
        }
        deliver_notes(world, index, &mut |machine, vdev| {
            began = local.charge(machine, vdev, began);
        });
        if index == 0 {
            world.vms.outside().work();
            local.watch(world);
        }
        // What came meanwhile; nothing else would end the sleep, or the turn.
        let more = has_notes(index) || (index == 0 && world.vms.outside().is_woken());
        if more && !core::mem::replace(&mut owed, true) {
            continue;
        }
        let now = H::now_ns();
        local.wake_sleepers(world, now);
        local.let_through(world, now);
        match world.vms.scheduler.next(PcpuId(index), now) {
            Some(mut turn) => {
                owed = false;
                if more {
                    let soon = now.saturating_add(BETWEEN_NS);
                    turn.until = Some(turn.until.map_or(soon, |until| until.min(soon)));
                }
                local.run_turn(world, turn);
            }
            None if more => {}
            None => {
                local.arm(world, None);
                H::wait();
            }
        }
    }
}

/// Whether device interrupts wait for [`deliver_notes`] on this pCPU.
fn has_notes(index: u32) -> bool {
    NOTED.get(index as usize).is_some_and(|notes| !notes.lock().is_empty())
}

/// Hands device interrupts to the vdevs that they belong to, and says which each was. Those of a VM whose devices are
/// in use stay noted.
fn deliver_notes<H: Hardware>(world: &World<H>, index: u32, charge: &mut dyn FnMut(&Machine<H>, VdevId)) {
    let Some(notes) = NOTED.get(index as usize) else {
        return;
    };
    let count = notes.lock().len();
    for _ in 0..count {
        let note = notes.lock().pop_at(0);
        let Some(route @ Route::Vdev { vm, vdev, vector }) = note else {
            continue;
        };
        let Some(machine) = world.vms.machine(vm) else {
            continue;
        };
        if machine.interrupt(vdev, vector) {
            charge(&machine, vdev);
        } else {
            let mut notes = notes.lock();
            if !notes.contains(&route) {
                // There are no more routes to a pCPU than it has vectors.
                let _ = notes.try_push(route);
            }
        }
    }
}

impl<H: Hardware> Local<H> {
    /// Has the interrupts of a VM let through at that time, whoever runs then.
    fn hold(&mut self, vm: VmId, due: u64) {
        if self.held.iter().all(|(other, _)| *other != vm) {
            self.held.push((vm, due));
        }
    }

    fn let_through(&mut self, world: &World<H>, now: u64) {
        self.held.retain_mut(|(vm, due)| {
            if *due > now {
                return true;
            }
            *due = now.saturating_add(RETRY_NS);
            let machine = world.vms.machine(*vm);
            machine.is_some_and(|machine| !machine.vm.open_interrupts())
        });
    }

    /// An interrupt of a VM was delivered between `began` and now. In the turn of another, that is for its owner to
    /// account for, and where it is one of too many, the device holds the next ones back. Returns when the next one's
    /// time begins.
    fn charge(&mut self, machine: &Machine<H>, vdev: VdevId, began: u64) -> u64 {
        let now = H::now_ns();
        if self.last.0 == Some(machine.id) {
            return now;
        }
        let turn = self.last.1 << TURN_SHIFT | u64::from(self.index);
        let held = machine.vm.came_away(vdev, turn, now.saturating_sub(began));
        // Its own turns, which let them through, are on another pCPU.
        if held && machine.vcpu.seat.pcpu != PcpuId(self.index) {
            self.hold(machine.id, now.saturating_add(SLICE_NS));
        }
        now
    }

    fn wake_sleepers(&mut self, world: &World<H>, now: u64) {
        self.sleepers.retain(|(seat, deadline)| {
            let due = *deadline <= now;
            if due {
                world.vms.scheduler.wake(*seat);
            }
            !due
        });
    }

    /// Where it is time, looks whether the other pCPUs go on.
    fn watch(&mut self, world: &World<H>) {
        let now = H::now_ns();
        if self.watch_due <= now {
            world.vms.watch();
            self.watch_due = now.saturating_add(WATCH_NS);
        }
    }

    /// Sets the timer to the earliest of `deadline`, the sleepers and, on the first pCPU, the other work.
    fn arm(&mut self, world: &World<H>, deadline: Option<u64>) {
        let first = self.index == 0;
        let work = first.then(|| world.vms.outside().next_work()).flatten();
        let watch = first.then_some(self.watch_due);
        let sleepers = self.sleepers.iter().map(|(_, deadline)| *deadline).min();
        let held = self.held.iter().map(|(_, due)| *due).min();
        let times = [deadline, work, watch, sleepers, held];
        let earliest = times.into_iter().flatten().min();
        // One that has passed has fired, and must be set again.
        if earliest != self.armed || self.armed.is_some() {
            self.armed = earliest;
            H::arm_timer(earliest);
        }
    }

    fn run_turn(&mut self, world: &World<H>, turn: Turn) {
        let scheduler = &world.vms.scheduler;
        let pcpu = PcpuId(self.index);
        let Some(machine) = world.vms.machine(turn.vcpu.vm) else {
            scheduler.halt(pcpu);
            return;
        };
        let vcpu = &machine.vcpu;
        if self.last.0 != Some(machine.id) {
            self.last = (Some(machine.id), self.last.1.wrapping_add(1));
        }
        if !machine.vm.open_interrupts() {
            self.hold(machine.id, H::now_ns().saturating_add(RETRY_NS));
        }
        self.sleepers.retain(|(seat, _)| *seat != vcpu.seat);
        let began = H::now_ns();
        machine.vm.stats().begin_run(began);
        {
            let vm = machine.view();
            let mut core = vcpu.core.lock();
            let paused_ns = machine.pauses.total_ns();
            if vcpu.take_pause(paused_ns) {
                core.was_paused(&vm, paused_ns);
            }
            core.load(&vm, &mut self.pcpu);
            self.run_vcpu(world, &machine, &vm, &mut core, turn.until);
            core.unload(&vm, &mut self.pcpu);
        }
        machine.vm.stats().end_run(began, H::now_ns());
    }

    /// Runs the vCPU until the host has something to do, it waits, or it has ended.
    fn run_vcpu(
        &mut self,
        world: &World<H>,
        machine: &Machine<H>,
        vm: &VmView<'_, H::Platform>,
        core: &mut H::Core,
        until: Option<u64>,
    ) {
        let scheduler = &world.vms.scheduler;
        let vcpu = &machine.vcpu;
        // The timer is set anew only when the guest has set its own.
        let mut timer_of = None;
        loop {
            if vcpu.has_ended() {
                scheduler.suspend(vcpu.seat);
                return;
            }
            vcpu.take_mail(|message| core.accept(message));
            core.tick();
            let timer = core.timer();
            if core.is_waiting(vm) {
                if scheduler.halt(PcpuId(self.index)) {
                    if let Some(deadline) = core.wake_ns() {
                        self.sleepers.push((vcpu.seat, deadline));
                    }
                    return;
                }
                continue;
            }
            if timer_of != Some(timer) {
                timer_of = Some(timer);
                let own = core.deadline_ns();
                self.arm(world, [own, until].into_iter().flatten().min());
            }
            core.prepare(vm);
            vcpu.set_in_guest(true);
            if vcpu.has_mail() || vcpu.has_ended() {
                vcpu.set_in_guest(false);
                core.cancel(vm);
                continue;
            }
            let reason = core.enter(&mut self.pcpu, vcpu.take_flush());
            vcpu.set_in_guest(false);
            core.left(vm);
            machine.vm.stats().count_exit(H::Core::kind(&reason));
            history::record(self.index, machine.id.0, core.last_exit());
            if !core.handle(vm, reason) {
                return;
            }
        }
    }
}
