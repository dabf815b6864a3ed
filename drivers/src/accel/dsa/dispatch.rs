// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device's one command at a time, shared by its queues.
//!
//! **Principle.** Nobody waits for the device with a lock held. Commands on queues stand in line; whoever looks
//! ([`Device::progress`]) moves the line on: takes the end of the command that the device has finished, and
//! gives it the next. So each end belongs to the command that it ended, and a queue whose turn has not come
//! knows that from one whose command failed.
//!
//! **Invariants.** Only commands whose duration a guest does not control are given on its behalf: Enable, Reset
//! and Disable WQ, and Abort PASID for a share, whose guest reaches the queue by way of the hypervisor only. Drain
//! and Abort WQ end when nothing is queued, and a guest may go on submitting; Disable and Reset WQ take nothing more
//! in. A Disable waits until little is queued, watched in WQCFG, before it takes the slot. The end of a queue goes
//! before commands of guests. Drain WQ is given for a guest only that is paused, and that stays so until it has ended:
//! after what its processors may have had under way has arrived, and when little is queued.

use core::sync::atomic::Ordering;

use super::access::Access;
use super::commands::{Command, CommandFailure, error};
use super::device::Device;
use super::registers::{CMD, CMDSTS, cmd, wqcfg};
use super::slot::{Job, Progress, Waiter};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Descriptors that a queue may hold when its Disable is given to the device: about what its engine has done by
/// the time that anybody looks.
const FEW: u32 = 2;
/// How long stores to a portal may be under way after the processor that made them has stopped, in nanoseconds: nothing
/// that can be read of the device flushes them. As long as Linux waits before it disables a queue.
const STORES_NS: u64 = 100_000;
/// Most commands that are begun in one look: a device that ends each at once must not keep the processor.
const MAX_STEPS: usize = 8;

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// Puts somebody's command in line, before all others where it is for an end, in place of another one of
    /// the same whose turn has not come. Nothing happens while the device is being reset.
    pub fn give(&self, waiter: Waiter, command: Command, for_end: bool) {
        let now = self.host.now_ns();
        let Some(mut access) = self.gate.open() else {
            return;
        };
        let slot = access.slot();
        slot.take_end(waiter);
        if !for_end && slot.waiting.iter().any(|job| job.command == command) {
            return;
        }
        slot.waiting.retain(|job| job.waiter != waiter);
        let job = Job { waiter, command, since_ns: now };
        if for_end {
            slot.waiting.push_front(job);
        } else {
            slot.waiting.push_back(job);
        }
        self.advance(&mut access);
    }

    /// Takes somebody's command out of the line again, where its turn has not come.
    pub fn withdraw(&self, waiter: Waiter) {
        let Some(mut access) = self.gate.open() else {
            return;
        };
        access.slot().waiting.retain(|job| job.waiter != waiter);
        self.note_busy(&mut access);
    }

    /// Moves the line on, and says where somebody's command is.
    pub fn progress(&self, waiter: Waiter) -> Progress {
        let Some(mut access) = self.gate.open() else {
            return Progress::Lost;
        };
        self.advance(&mut access);
        let slot = access.slot();
        if let Some(place) = slot.line_of(waiter) {
            return place;
        }
        match slot.take_end(waiter) {
            Some((command, end)) => Progress::Ended(command, end),
            None => Progress::Idle,
        }
    }

    /// Gives the command with which somebody ends, and waits for it: `patience_ns` for its turn and as much for the
    /// command itself. `begun`: whether an earlier try left it in line, as this one does where it fails for want of time.
    pub fn end_with(
        &self,
        waiter: Waiter,
        command: Command,
        begun: &mut bool,
        patience_ns: u64,
    ) -> Result<(), CommandFailure> {
        let start = self.host.now_ns();
        if !core::mem::replace(begun, true) {
            self.give(waiter, command, true);
        }
        loop {
            // Time first: the device had all of it, however long this processor was away.
            let now = self.host.now_ns();
            let late = |since: u64| now.saturating_sub(since.max(start)) > patience_ns;
            let failure = match self.progress(waiter) {
                Progress::Ended(ended, end) if ended == command => {
                    *begun = false;
                    return end;
                }
                // An earlier command of the same, or a reset of the device that forgot this one.
                Progress::Ended(..) | Progress::Idle => {
                    self.give(waiter, command, true);
                    continue;
                }
                Progress::Waiting(..) if late(start) => {
                    CommandFailure::Busy(command, now.saturating_sub(start))
                }
                Progress::Active(active, since) if late(since) => {
                    CommandFailure::Unfinished(active, now.saturating_sub(since))
                }
                Progress::Waiting(..) | Progress::Active(..) => {
                    core::hint::spin_loop();
                    continue;
                }
                Progress::Lost => CommandFailure::Lost(command),
            };
            return Err(failure);
        }
    }

    /// Whether a command of somebody is in line.
    pub fn is_in_line(&self, waiter: Waiter) -> bool {
        self.busy.load(Ordering::Acquire) && self.gate.with_slot(|slot| slot.line_of(waiter).is_some())
    }

    /// Moves the line on.
    pub fn look(&self) {
        if let Some(mut access) = self.gate.open() {
            self.advance(&mut access);
        }
    }

    /// Whether a queue is enabled, as the device says; `None` while a command on it is in line, or the device
    /// does not answer. A queue that is being disabled counts as enabled.
    pub fn queue_is_enabled(&self, wq: u8) -> Option<bool> {
        let mut access = self.gate.open()?;
        self.advance(&mut access);
        if access.slot().line_of(Waiter::Queue(wq)).is_some() {
            return None;
        }
        match self.queue_state(&access, wq) {
            u32::MAX => None,
            state => Some(state >> wqcfg::STATE_SHIFT != 0),
        }
    }

    fn advance(&self, access: &mut Access<'_, R>) {
        for _ in 0..MAX_STEPS {
            // A device that does not answer reads as all ones, and so as busy.
            let status = access.registers.read32(CMDSTS);
            if status & cmd::ACTIVE != 0 {
                break;
            }
            if let Some(job) = access.slot().active.take() {
                let end = match (status & cmd::ERROR_MASK) as u8 {
                    error::NONE => Ok(()),
                    code => Err(CommandFailure::Refused(job.command, code)),
                };
                access.slot().note_end(job, end);
            }
            let now = self.host.now_ns();
            let ready = (0..access.slot().waiting.len()).find(|&at| {
                let job = access.slot().waiting[at];
                self.is_ready(access, job, now)
            });
            let Some(job) = ready.and_then(|at| access.slot().waiting.remove(at)) else {
                break;
            };
            access.registers.write32(CMD, job.command.encode());
            access.slot().active = Some(Job { since_ns: now, ..job });
        }
        self.note_busy(access);
    }

    /// Whether a command would end soon, or has waited long enough for that.
    fn is_ready(&self, access: &Access<'_, R>, job: Job, now: u64) -> bool {
        let patience = self.options.command_deadline_ns;
        let waited = now.saturating_sub(job.since_ns);
        let has_few = |wq: u8| {
            !self.capabilities.work_queues.occupancy()
                || self.queue_state(access, wq) & wqcfg::OCCUPANCY_MASK <= FEW
        };
        match job.command {
            Command::DisableWq(wq) => has_few(wq) || waited > patience,
            Command::DrainWq(wq) => waited > STORES_NS && has_few(wq),
            _ => true,
        }
    }

    fn queue_state(&self, access: &Access<'_, R>, wq: u8) -> u32 {
        access.registers.read32(self.capabilities.wqcfg_of(wq) + wqcfg::STATE)
    }

    fn note_busy(&self, access: &mut Access<'_, R>) {
        self.busy.store(access.slot().is_busy(), Ordering::Release);
    }
}
