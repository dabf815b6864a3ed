// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a pCPU does all day.
//!
//! **Principle.** Interrupts are enabled at two places only, both here: for a moment between turns, and while
//! there is nothing to run; besides, whoever waits for another pCPU takes them meanwhile. Handlers therefore never
//! meet a lock that their own pCPU holds. They leave notes; the loop acts on them.
//! **Invariant.** A pCPU sleeps or enters a guest only after it has seen that no note is left, with
//! interrupts off since.

use alloc::vec::Vec;

use pasidon_kernel::base::id::{VdevId, VmId};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::{HostVector, Route};
use pasidon_kernel::system::System;
use pasidon_kernel::vm::sched::{PcpuId, SLICE_NS, Seat, Turn};

use crate::hardware::{Core, Hardware};
use crate::history;
use crate::notes::Notes;
use crate::pcpus::MAX_PCPUS;
use crate::view::VmView;
use crate::vms::{Instance, Vms};

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
    /// The VMs.
    pub vms: &'static Vms<H>,
    /// What interrupt handlers leave.
    pub notes: &'static Notes,
}

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
    /// A round went by without a turn for a guest.
    owed: bool,
}

/// What comes after a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Another one.
    Round,
    /// An interrupt.
    Wait,
}

/// A device of the machine raised this interrupt: remembers whose it is, for the loop of the pCPU that took it. For
/// interrupt handlers.
pub fn note_device_interrupt<H: Hardware>(world: &World<H>, from: HostVector) {
    match world.system.routes().deliver(from) {
        Some(Route::ParentEvent(parent)) => world.vms.outside().parent_event(parent),
        Some(route) => world.notes.leave(H::this_pcpu(), route),
        None => {}
    }
}

/// Runs vCPUs on the pCPU that calls, for ever.
///
/// # Errors
/// When the processor cannot run guests.
pub fn run<H: Hardware>(world: &World<H>) -> Result<core::convert::Infallible, Refusal> {
    let mut local = Local::new(world)?;
    loop {
        if local.round(world) == Next::Wait {
            H::wait();
        }
    }
}

/// Hands device interrupts to the vdevs that they belong to, and says which each was. Those of a VM whose devices are
/// in use stay noted.
fn deliver_notes<H: Hardware>(world: &World<H>, index: u32, charge: &mut dyn FnMut(&Instance<H>, VdevId)) {
    for _ in 0..world.notes.waiting(index) {
        let Some(route) = world.notes.take(index) else {
            continue;
        };
        let instance = |vm| world.vms.instance(vm);
        match route {
            Route::Vdev { vm, vdev, vector } => {
                let Some(instance) = instance(vm) else { continue };
                if instance.interrupt(vdev, vector) {
                    charge(&instance, vdev);
                } else {
                    world.notes.leave(index, route);
                }
            }
            Route::Posted(vm) => {
                if let Some(instance) = instance(vm) {
                    instance.notify();
                }
            }
            Route::ParentEvent(_) => {}
        }
    }
}

impl<H: Hardware> Local<H> {
    /// What the pCPU that calls needs; once on each.
    fn new(world: &World<H>) -> Result<Self, Refusal> {
        let index = H::this_pcpu();
        Ok(Self {
            index,
            pcpu: H::enable(index, world.vms.frames())?,
            sleepers: Vec::new(),
            armed: None,
            last: (None, 0),
            held: Vec::new(),
            watch_due: 0,
            owed: false,
        })
    }

    /// Once round the loop: the notes, the first pCPU's other work, then a turn for a guest.
    fn round(&mut self, world: &World<H>) -> Next {
        let index = self.index;
        let mut began = H::now_ns();
        H::window();
        world.notes.count_round(index);
        deliver_notes(world, index, &mut |instance, vdev| {
            began = self.charge(instance, vdev, began);
        });
        if index == 0 {
            world.vms.outside().work(&world.vms);
            self.watch(world);
        }
        // What came meanwhile; nothing else would end the sleep, or the turn.
        let more = world.notes.waiting(index) > 0 || (index == 0 && world.vms.outside().is_woken());
        if more && !core::mem::replace(&mut self.owed, true) {
            return Next::Round;
        }
        let now = H::now_ns();
        self.wake_sleepers(world, now);
        self.let_through(world, now);
        match world.vms.scheduler.next(PcpuId(index), now) {
            Some(mut turn) => {
                self.owed = false;
                if more {
                    let soon = now.saturating_add(BETWEEN_NS);
                    turn.until = Some(turn.until.map_or(soon, |until| until.min(soon)));
                }
                self.run_turn(world, turn);
                Next::Round
            }
            None if more => Next::Round,
            None => {
                self.arm(world, None);
                Next::Wait
            }
        }
    }

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
            let instance = world.vms.instance(*vm);
            instance.is_some_and(|instance| !instance.vm.open_interrupts())
        });
    }

    /// An interrupt of a VM was delivered between `began` and now. In the turn of another, that is for its owner to
    /// account for, and where it is one of too many, the device holds the next ones back. Returns when the next one's
    /// time begins.
    fn charge(&mut self, instance: &Instance<H>, vdev: VdevId, began: u64) -> u64 {
        let now = H::now_ns();
        if self.last.0 == Some(instance.id) {
            return now;
        }
        let turn = self.last.1 << TURN_SHIFT | u64::from(self.index);
        let held = instance.vm.came_away(vdev, turn, now.saturating_sub(began));
        // Its own turns, which let them through, are on another pCPU.
        if held && instance.vcpu.seat.pcpu != PcpuId(self.index) {
            self.hold(instance.id, now.saturating_add(SLICE_NS));
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
        let Some(instance) = world.vms.instance(turn.vcpu.vm) else {
            scheduler.halt(pcpu);
            return;
        };
        let vcpu = &instance.vcpu;
        if self.last.0 != Some(instance.id) {
            self.last = (Some(instance.id), self.last.1.wrapping_add(1));
        }
        if !instance.vm.open_interrupts() {
            self.hold(instance.id, H::now_ns().saturating_add(RETRY_NS));
        }
        self.sleepers.retain(|(seat, _)| *seat != vcpu.seat);
        let began = H::now_ns();
        instance.vm.stats().begin_run(began);
        {
            let vm = instance.view();
            let mut core = vcpu.core.lock();
            let paused_ns = instance.pauses.total_ns();
            if vcpu.take_pause(paused_ns) {
                core.was_paused(&vm, paused_ns);
            }
            core.load(&vm, &mut self.pcpu);
            self.run_vcpu(world, &instance, &vm, &mut core, turn.until);
            core.unload(&vm, &mut self.pcpu);
        }
        instance.vm.stats().end_run(began, H::now_ns());
    }

    /// Runs the vCPU until the host has something to do, it waits, or it has ended.
    fn run_vcpu(
        &mut self,
        world: &World<H>,
        instance: &Instance<H>,
        vm: &VmView<'_, H::Chipset>,
        core: &mut H::Core,
        until: Option<u64>,
    ) {
        let scheduler = &world.vms.scheduler;
        let vcpu = &instance.vcpu;
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
            instance.vm.stats().count_exit(H::Core::kind(&reason));
            history::record(self.index, instance.id.0, core.last_exit());
            if !core.handle(vm, reason) {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
