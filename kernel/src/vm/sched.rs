// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which vCPU runs next on which pCPU.
//!
//! **Principle.** A vCPU has one pCPU for its life, the one with the fewest at that time; there it takes
//! turns with those that are ready. A turn is a time slice while others wait; alone, a vCPU runs without
//! a timer. A halted vCPU is in no queue and costs nothing.
//!
//! **Invariants.** A vCPU that wants to run and may is the current one of its pCPU or exactly once in its
//! queue. A wake-up that comes while the vCPU is about to halt is not lost: [`Scheduler::halt`] then
//! leaves it ready.
//!
//! A pCPU that does not ask for long, though it has somebody to run or was told to look, is *lost*
//! ([`Scheduler::lose`]): nobody is seated there until it asks again.
//!
//! One lock per pCPU, held for a few steps. Interrupt handlers wake vCPUs, so everyone calls with
//! interrupts disabled.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;

use crate::base::id::VmId;
use crate::base::refusal::Refusal;
use crate::monitor::info::PcpuInfo;

/// Length of a turn where several vCPUs are ready, in nanoseconds.
pub const SLICE_NS: u64 = 10_000_000;

/// How long a pCPU that was told to look may take until it is lost, in nanoseconds. One that works leaves a guest
/// within microseconds; this is for whatever firmware and an emulator may do meanwhile.
pub const PATIENCE_NS: u64 = 5_000_000_000;

/// A vCPU, by VM and number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId {
    /// The VM.
    pub vm: VmId,
    /// Its vCPU, from 0.
    pub index: u16,
}

/// A pCPU, by its place in the order in which they were started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PcpuId(pub u32);

/// A vCPU and the pCPU that it has for its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Where it runs.
    pub pcpu: PcpuId,
}

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// When to ask again, in the clock of `now`; `None` where nobody else waits.
    pub until: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Vcpu {
    /// Not halted.
    wants: bool,
    /// Held back from outside.
    suspended: bool,
    /// Woken since its turn began.
    woken: bool,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    vcpu: VcpuId,
    slice_end: u64,
}

#[derive(Debug, Default)]
struct RunQueue {
    current: Option<Current>,
    ready: VecDeque<VcpuId>,
    vcpus: BTreeMap<VcpuId, Vcpu>,
    /// How often [`Scheduler::next`] was asked.
    asked: u64,
    /// What `asked` was, and when it was first seen to be that while somebody waited.
    seen: Option<(u64, u64)>,
    lost: bool,
}

impl RunQueue {
    fn is_current(&self, vcpu: VcpuId) -> bool {
        self.current.is_some_and(|current| current.vcpu == vcpu)
    }

    fn enqueue(&mut self, vcpu: VcpuId) {
        if !self.is_current(vcpu) && !self.ready.contains(&vcpu) {
            self.ready.push_back(vcpu);
        }
    }

    /// Whether the pCPU has to look again: it is idle, or runs somebody without a timer.
    fn needs_kick(&self) -> bool {
        self.current.is_none() || self.ready.len() == 1
    }
}

/// All run queues.
#[derive(Debug)]
pub struct Scheduler {
    queues: Box<[Mutex<RunQueue>]>,
    slice_ns: u64,
    /// One assignment at a time, so that two do not take the same place for the emptiest.
    assigning: Mutex<()>,
}

impl Scheduler {
    /// Empty queues for `pcpus` pCPUs, with turns of `slice_ns` nanoseconds.
    pub fn new(pcpus: usize, slice_ns: u64) -> Self {
        Self { queues: (0..pcpus).map(|_| Mutex::default()).collect(), slice_ns, assigning: Mutex::new(()) }
    }

    fn queue(&self, pcpu: PcpuId) -> Option<&Mutex<RunQueue>> {
        self.queues.get(pcpu.0 as usize)
    }

    /// Seats a vCPU on the pCPU that has the fewest, of those that are not lost. It starts out halted.
    ///
    /// # Errors
    /// When it has a seat, or no pCPU answers.
    pub fn assign(&self, vcpu: VcpuId) -> Result<Seat, Refusal> {
        let refuse =
            |why, remedy| Refusal::new(format!("vCPU {} of VM {}", vcpu.index, vcpu.vm), why, remedy);
        let _one = self.assigning.lock();
        if self.queues.iter().any(|queue| queue.lock().vcpus.contains_key(&vcpu)) {
            return Err(refuse("it has a pCPU already", "remove it first"));
        }
        let load = |pcpu: &u32| self.queue(PcpuId(*pcpu)).map_or(0, |queue| queue.lock().vcpus.len());
        let pcpu = (0..self.queues.len() as u32)
            .filter(|pcpu| !self.is_lost(PcpuId(*pcpu)))
            .min_by_key(load)
            .map(PcpuId);
        let Some((pcpu, queue)) = pcpu.and_then(|pcpu| Some((pcpu, self.queue(pcpu)?))) else {
            return Err(refuse("there is no pCPU that answers", "restart the machine"));
        };
        queue.lock().vcpus.insert(vcpu, Vcpu::default());
        Ok(Seat { vcpu, pcpu })
    }

    /// Takes a vCPU out for good. Returns whether it is running: its pCPU must then be kicked, and the vCPU
    /// runs until [`Scheduler::is_running`] says no more. It must not be assigned again before that.
    pub fn remove(&self, seat: Seat) -> bool {
        let Some(queue) = self.queue(seat.pcpu) else {
            return false;
        };
        let mut queue = queue.lock();
        queue.vcpus.remove(&seat.vcpu);
        queue.ready.retain(|vcpu| *vcpu != seat.vcpu);
        queue.is_current(seat.vcpu)
    }

    /// Whether the vCPU is the current one of its pCPU: after [`Scheduler::suspend`] or
    /// [`Scheduler::remove`], whether it may still be running.
    pub fn is_running(&self, seat: Seat) -> bool {
        self.queue(seat.pcpu).is_some_and(|queue| queue.lock().is_current(seat.vcpu))
    }

    /// Makes a vCPU ready: it has an interrupt to take, or starts. Returns whether its pCPU must be kicked
    /// to look again.
    pub fn wake(&self, seat: Seat) -> bool {
        let Some(queue) = self.queue(seat.pcpu) else {
            return false;
        };
        let mut queue = queue.lock();
        let Some(vcpu) = queue.vcpus.get_mut(&seat.vcpu) else {
            return false;
        };
        vcpu.woken = true;
        if vcpu.wants {
            return false;
        }
        vcpu.wants = true;
        if vcpu.suspended {
            return false;
        }
        queue.enqueue(seat.vcpu);
        queue.needs_kick()
    }

    /// Holds a vCPU back, whatever wakes it. Returns whether it is running, so that its pCPU must be
    /// kicked.
    pub fn suspend(&self, seat: Seat) -> bool {
        let Some(queue) = self.queue(seat.pcpu) else {
            return false;
        };
        let mut queue = queue.lock();
        if let Some(vcpu) = queue.vcpus.get_mut(&seat.vcpu) {
            vcpu.suspended = true;
        }
        queue.ready.retain(|vcpu| *vcpu != seat.vcpu);
        queue.is_current(seat.vcpu)
    }

    /// Ends [`Scheduler::suspend`]. Returns whether the pCPU must be kicked.
    pub fn resume(&self, seat: Seat) -> bool {
        let Some(queue) = self.queue(seat.pcpu) else {
            return false;
        };
        let mut queue = queue.lock();
        let Some(vcpu) = queue.vcpus.get_mut(&seat.vcpu) else {
            return false;
        };
        vcpu.suspended = false;
        if !vcpu.wants || queue.is_current(seat.vcpu) {
            return false;
        }
        queue.enqueue(seat.vcpu);
        queue.needs_kick()
    }

    /// The current vCPU of a pCPU waits for an interrupt. False where one has come since its turn began:
    /// it stays the current one and looks again.
    pub fn halt(&self, pcpu: PcpuId) -> bool {
        let Some(queue) = self.queue(pcpu) else {
            return false;
        };
        let mut queue = queue.lock();
        let Some(current) = queue.current else {
            return true;
        };
        match queue.vcpus.get_mut(&current.vcpu) {
            Some(vcpu) if vcpu.woken => {
                vcpu.woken = false;
                false
            }
            Some(vcpu) => {
                vcpu.wants = false;
                queue.current = None;
                true
            }
            None => {
                queue.current = None;
                true
            }
        }
    }

    /// What a pCPU runs from `now` (nanoseconds of a monotonic clock) on; `None`: nothing, until it is
    /// kicked. To be asked after a halt, at the end of a turn, and after a kick.
    pub fn next(&self, pcpu: PcpuId, now: u64) -> Option<Turn> {
        let mut queue = self.queue(pcpu)?.lock();
        let queue = &mut *queue;
        queue.asked = queue.asked.wrapping_add(1);
        queue.lost = false;
        if let Some(current) = queue.current {
            match queue.vcpus.get(&current.vcpu) {
                Some(vcpu) if vcpu.wants && !vcpu.suspended => {
                    if queue.ready.is_empty() || now < current.slice_end {
                        return Some(Turn {
                            vcpu: current.vcpu,
                            until: (!queue.ready.is_empty()).then_some(current.slice_end),
                        });
                    }
                    queue.ready.push_back(current.vcpu);
                }
                _ => {}
            }
            queue.current = None;
        }
        let vcpu = queue.ready.pop_front()?;
        let slice_end = now.saturating_add(self.slice_ns);
        queue.current = Some(Current { vcpu, slice_end });
        if let Some(state) = queue.vcpus.get_mut(&vcpu) {
            state.woken = false;
        }
        Some(Turn { vcpu, until: (!queue.ready.is_empty()).then_some(slice_end) })
    }

    /// A pCPU does not come back. Names the vCPUs that are seated there: none but the current one can run before it asks
    /// again ([`Scheduler::next`]). Nobody where it is lost already.
    pub fn lose(&self, pcpu: PcpuId) -> Vec<VcpuId> {
        let Some(queue) = self.queue(pcpu) else {
            return Vec::new();
        };
        let mut queue = queue.lock();
        if core::mem::replace(&mut queue.lost, true) {
            return Vec::new();
        }
        queue.vcpus.keys().copied().collect()
    }

    /// Whether the pCPU was lost and has not asked since.
    pub fn is_lost(&self, pcpu: PcpuId) -> bool {
        self.queue(pcpu).is_some_and(|queue| queue.lock().lost)
    }

    /// Pcpus that have not asked for [`PATIENCE_NS`] though somebody waits for a turn there. To be called now and then;
    /// not from a pCPU that does not ask meanwhile.
    pub fn overdue(&self, now: u64) -> Vec<PcpuId> {
        let overdue = |queue: &mut RunQueue| {
            if queue.ready.is_empty() || queue.lost {
                queue.seen = None;
                return false;
            }
            match queue.seen {
                Some((asked, since)) if asked == queue.asked => now.saturating_sub(since) >= PATIENCE_NS,
                _ => {
                    queue.seen = Some((queue.asked, now));
                    false
                }
            }
        };
        let queues = self.queues.iter().zip(0..);
        queues.filter(|(queue, _)| overdue(&mut queue.lock())).map(|(_, index)| PcpuId(index)).collect()
    }

    /// For the monitor. `name` gives a VM's name.
    pub fn infos(&self, name: &dyn Fn(VmId) -> String) -> Vec<PcpuInfo> {
        self.queues
            .iter()
            .zip(0..)
            .map(|(queue, index)| {
                let (current, waiting, assigned, lost) = {
                    let queue = queue.lock();
                    (queue.current, queue.ready.len(), queue.vcpus.len(), queue.lost)
                };
                PcpuInfo {
                    index,
                    running: current
                        .map(|current| format!("{}/{}", name(current.vcpu.vm), current.vcpu.index)),
                    waiting,
                    assigned,
                    lost,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PCPU: PcpuId = PcpuId(0);

    fn vcpu(vm: u16) -> VcpuId {
        VcpuId { vm: VmId(vm), index: 0 }
    }

    /// One pCPU with awake vCPUs of VMs 0..count; turns of 10.
    fn shared(count: u16) -> (Scheduler, Vec<Seat>) {
        let scheduler = Scheduler::new(1, 10);
        let seats: Vec<Seat> = (0..count).map(|vm| scheduler.assign(vcpu(vm)).unwrap()).collect();
        for seat in &seats {
            scheduler.wake(*seat);
        }
        (scheduler, seats)
    }

    fn vm_of(turn: Option<Turn>) -> Option<u16> {
        turn.map(|turn| turn.vcpu.vm.0)
    }

    #[test]
    fn vcpus_spread_over_the_least_loaded() {
        let scheduler = Scheduler::new(2, 10);
        let places: Vec<u32> = (0..3).map(|vm| scheduler.assign(vcpu(vm)).unwrap().pcpu.0).collect();
        assert_eq!(places, [0, 1, 0]);
        assert!(scheduler.assign(vcpu(0)).is_err());
        let seat = Seat { vcpu: vcpu(1), pcpu: PcpuId(1) };
        scheduler.remove(seat);
        assert_eq!(scheduler.assign(vcpu(4)).unwrap().pcpu, PcpuId(1));
        assert!(Scheduler::new(0, 10).assign(vcpu(0)).is_err());
    }

    #[test]
    fn alone_there_is_no_timer_and_halted_nothing_runs() {
        let (scheduler, seats) = shared(1);
        let turn = Turn { vcpu: vcpu(0), until: None };
        assert_eq!(scheduler.next(PCPU, 0), Some(turn));
        assert_eq!(scheduler.next(PCPU, 1_000_000), Some(turn), "as long as it likes");
        assert!(scheduler.halt(PCPU));
        assert_eq!(scheduler.next(PCPU, 1_000_001), None);
        assert!(scheduler.wake(seats[0]), "the idle pCPU is kicked");
        assert!(!scheduler.wake(seats[0]), "once");
        assert_eq!(scheduler.next(PCPU, 1_000_002), Some(turn));
    }

    #[test]
    fn turns_go_round() {
        let (scheduler, _) = shared(3);
        let mut order = Vec::new();
        let mut now = 0;
        for _ in 0..7 {
            let turn = scheduler.next(PCPU, now).unwrap();
            order.push(turn.vcpu.vm.0);
            assert_eq!(turn.until, Some(now + 10));
            assert_eq!(scheduler.next(PCPU, now + 9), Some(turn), "an early question changes nothing");
            now += 10;
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn one_that_ran_alone_gives_way_at_once_when_its_turn_is_over() {
        let (scheduler, seats) = shared(2);
        assert_eq!(vm_of(scheduler.next(PCPU, 0)), Some(0));
        assert_eq!(vm_of(scheduler.next(PCPU, 10)), Some(1));
        assert!(scheduler.halt(PCPU));
        assert_eq!(scheduler.next(PCPU, 11).unwrap().until, None);
        assert!(scheduler.wake(seats[1]), "it runs without a timer, so it is told");
        assert_eq!(scheduler.next(PCPU, 15).unwrap().until, Some(21));
        assert_eq!(vm_of(scheduler.next(PCPU, 500)), Some(1));
    }

    #[test]
    fn a_wake_up_between_the_look_and_the_halt_is_not_lost() {
        let (scheduler, seats) = shared(1);
        assert_eq!(vm_of(scheduler.next(PCPU, 0)), Some(0));
        // The vCPU has looked for interrupts and found none; now one comes.
        assert!(!scheduler.wake(seats[0]), "it is running");
        assert!(!scheduler.halt(PCPU));
        assert_eq!(vm_of(scheduler.next(PCPU, 1)), Some(0));
        assert!(scheduler.halt(PCPU), "that one was seen");
    }

    #[test]
    fn a_suspended_vcpu_keeps_its_wake_ups() {
        let (scheduler, seats) = shared(1);
        assert_eq!(vm_of(scheduler.next(PCPU, 0)), Some(0));
        assert!(scheduler.suspend(seats[0]) && scheduler.is_running(seats[0]));
        assert_eq!(scheduler.next(PCPU, 1), None);
        assert!(!scheduler.is_running(seats[0]) && !scheduler.wake(seats[0]));
        assert_eq!(scheduler.next(PCPU, 2), None);
        assert!(scheduler.resume(seats[0]));
        assert_eq!(vm_of(scheduler.next(PCPU, 3)), Some(0));
        assert!(scheduler.halt(PCPU));
        scheduler.suspend(seats[0]);
        assert!(!scheduler.resume(seats[0]), "halted before, halted after");
        assert_eq!(scheduler.next(PCPU, 4), None);
    }

    #[test]
    fn a_pcpu_that_does_not_ask_while_somebody_waits_is_overdue() {
        let (scheduler, seats) = shared(2);
        scheduler.next(PCPU, 0);
        assert_eq!(scheduler.overdue(1), [], "seen for the first time");
        scheduler.next(PCPU, 2);
        assert_eq!(scheduler.overdue(PATIENCE_NS + 1), [], "it has asked since");
        assert_eq!(scheduler.overdue(2 * PATIENCE_NS), []);
        assert_eq!(scheduler.overdue(2 * PATIENCE_NS + 1), [PCPU]);
        // Alone, a vCPU runs as long as it likes.
        let waiting = seats.iter().find(|seat| !scheduler.is_running(**seat)).unwrap();
        scheduler.suspend(*waiting);
        assert_eq!(scheduler.overdue(9 * PATIENCE_NS), []);
        scheduler.resume(*waiting);
        assert_eq!(scheduler.overdue(9 * PATIENCE_NS), [], "counted from then");
        assert_eq!(scheduler.overdue(10 * PATIENCE_NS), [PCPU]);
    }

    #[test]
    fn nobody_is_seated_on_a_pcpu_that_is_lost() {
        let scheduler = Scheduler::new(2, 10);
        let seats: Vec<Seat> = (0..4).map(|vm| scheduler.assign(vcpu(vm)).unwrap()).collect();
        for seat in &seats {
            scheduler.wake(*seat);
        }
        let other = PcpuId(1);
        assert_eq!(vm_of(scheduler.next(other, 0)), Some(1));
        assert_eq!(scheduler.lose(other), [vcpu(1), vcpu(3)]);
        assert_eq!(scheduler.lose(other), [], "once");
        assert_eq!(scheduler.overdue(0), []);
        assert_eq!(scheduler.overdue(PATIENCE_NS), [PCPU], "the lost one is known");
        for vm in 4..7 {
            assert_eq!(scheduler.assign(vcpu(vm)).unwrap().pcpu, PCPU);
        }
        // The current one is gone for good only when its pCPU has asked.
        assert!(scheduler.remove(seats[1]) && scheduler.is_running(seats[1]));
        assert_eq!(vm_of(scheduler.next(other, 1)), Some(3));
        assert!(!scheduler.is_running(seats[1]) && !scheduler.is_lost(other));
        assert_eq!(scheduler.assign(vcpu(7)).unwrap().pcpu, other);
        scheduler.lose(PCPU);
        scheduler.lose(other);
        let refusal = scheduler.assign(vcpu(8)).unwrap_err();
        assert_eq!(refusal.to_string(), "vCPU 0 of VM 8: there is no pCPU that answers; restart the machine");
    }

    #[test]
    fn a_removed_vcpu_runs_until_its_pcpu_looks() {
        let (scheduler, seats) = shared(2);
        assert_eq!(vm_of(scheduler.next(PCPU, 0)), Some(0));
        assert!(scheduler.remove(seats[0]) && scheduler.is_running(seats[0]));
        assert!(!scheduler.remove(seats[1]));
        assert_eq!(scheduler.next(PCPU, 1), None);
        assert!(!scheduler.is_running(seats[0]));
        assert!(!scheduler.wake(seats[0]) && !scheduler.resume(seats[0]));
        assert_eq!(scheduler.infos(&|_| String::new())[0].assigned, 0);
    }

    /// What the scheduler should know of one vCPU.
    #[derive(Clone, Copy, Default)]
    struct Model {
        seated: bool,
        wants: bool,
        suspended: bool,
        woken: bool,
    }

    proptest! {
        /// Steps: 0 assign, 1 remove, 2 wake, 3 suspend, 4 resume, 5 halt, 6.. time passes.
        #[test]
        fn whoever_wants_to_run_does(steps in proptest::collection::vec((0u8..9, 0u16..4), 1..120)) {
            let scheduler = Scheduler::new(1, 10);
            let seats: Vec<Seat> = (0..4).map(|vm| Seat { vcpu: vcpu(vm), pcpu: PCPU }).collect();
            let mut models = [Model::default(); 4];
            let mut running: Option<usize> = None;
            let mut now = 0;
            for (step, vm) in steps {
                let vm = usize::from(vm);
                let (seat, model) = (seats[vm], &mut models[vm]);
                let idle = running.is_none();
                let mut kicked = false;
                match step {
                    // One that still runs after it was removed cannot come back before its pCPU looked.
                    0 if running != Some(vm) => {
                        prop_assert_eq!(scheduler.assign(vcpu(vm as u16)).is_ok(), !model.seated);
                        if !model.seated {
                            *model = Model { seated: true, ..Model::default() };
                        }
                    }
                    1 => {
                        kicked = scheduler.remove(seat);
                        *model = Model::default();
                    }
                    2 => {
                        kicked = scheduler.wake(seat);
                        if model.seated {
                            let new = !model.wants && !model.suspended;
                            prop_assert!(!(new && idle) || kicked);
                            model.wants = true;
                            model.woken = true;
                        }
                    }
                    3 => {
                        kicked = scheduler.suspend(seat);
                        prop_assert_eq!(kicked, running == Some(vm));
                        model.suspended = model.seated;
                    }
                    4 => {
                        kicked = scheduler.resume(seat);
                        prop_assert!(!(idle && model.seated && model.wants && model.suspended) || kicked);
                        model.suspended = false;
                    }
                    5 => if let Some(vm) = running {
                        let model = &mut models[vm];
                        let halted = scheduler.halt(PCPU);
                        prop_assert_eq!(halted, !model.seated || !model.woken);
                        model.woken = false;
                        if halted {
                            model.wants = false;
                            running = None;
                        }
                        kicked = true;
                    },
                    _ => {
                        now += u64::from(step);
                        kicked = true;
                    }
                }
                // A pCPU looks when it is kicked, has halted, or its time is over.
                if kicked {
                    let turn = scheduler.next(PCPU, now);
                    let picked = turn.map(|turn| usize::from(turn.vcpu.vm.0));
                    if let Some(vm) = picked.filter(|vm| running != Some(*vm)) {
                        models[vm].woken = false;
                    }
                    running = picked;
                }
                let can: Vec<usize> = (0..4).filter(|vm| models[*vm].wants && !models[*vm].suspended).collect();
                if kicked {
                    prop_assert_eq!(running.is_some(), !can.is_empty());
                    prop_assert!(running.is_none_or(|vm| can.contains(&vm)));
                }
                let waiting = can.iter().filter(|vm| running != Some(**vm)).count();
                prop_assert_eq!(scheduler.infos(&|_| String::new())[0].waiting, waiting);
            }
            // From here on nobody halts: each that can run gets its turn, once each round.
            let can: Vec<usize> = (0..4).filter(|vm| models[*vm].wants && !models[*vm].suspended).collect();
            let mut seen: Vec<usize> = (0..can.len()).filter_map(|_| {
                now += 10;
                scheduler.next(PCPU, now).map(|turn| usize::from(turn.vcpu.vm.0))
            }).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, can);
        }
    }
}
