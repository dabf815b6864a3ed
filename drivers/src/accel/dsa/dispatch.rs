// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device's one command at a time, shared by its queues.
//!
//! **Principle.** Nobody waits for the device with a lock held. Commands on queues stand in line; whoever looks
//! ([`Device::progress`]) moves the line on: takes the end of the command that the device has finished, and
//! gives it the next. So each end belongs to the command that it ended, and a queue whose turn has not come
//! knows that from one whose command failed.
//!
//! **Invariants.** Only commands whose duration a guest does not control are given on its behalf: Enable, Reset
//! and Disable WQ. Drain and Abort WQ end when nothing is queued, and a guest may go on submitting; Disable and
//! Reset WQ take nothing more in. A Disable waits until little is queued, watched in WQCFG, before it takes the
//! slot. The end of a queue goes before commands of guests.

use core::sync::atomic::Ordering;

use super::access::Access;
use super::commands::{Command, CommandFailure, error};
use super::device::Device;
use super::registers::{CMD, CMDSTS, cmd, wqcfg};
use super::slot::{Job, Progress};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Descriptors that a queue may hold when its Disable is given to the device: about what its engine has done by
/// the time that anybody looks.
const FEW: u32 = 2;
/// Most commands that are begun in one look: a device that ends each at once must not keep the processor.
const MAX_STEPS: usize = 8;

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// Puts a command on a queue in line, before all others where it ends the queue, in place of another one of
    /// the same queue whose turn has not come. Nothing happens while the device is being reset.
    pub fn give(&self, wq: u8, command: Command, ends_queue: bool) {
        let now = self.host.now_ns();
        let Some(mut access) = self.gate.open() else {
            return;
        };
        let slot = access.slot();
        if let Some(ended) = slot.ended.get_mut(usize::from(wq)) {
            *ended = None;
        }
        if !ends_queue && slot.waiting.iter().any(|job| job.command == command) {
            return;
        }
        slot.waiting.retain(|job| job.wq != wq);
        let job = Job { wq, command, since_ns: now };
        if ends_queue {
            slot.waiting.push_front(job);
        } else {
            slot.waiting.push_back(job);
        }
        self.advance(&mut access);
    }

    /// Takes a queue's command out of the line again, where its turn has not come.
    pub fn withdraw(&self, wq: u8) {
        let Some(mut access) = self.gate.open() else {
            return;
        };
        access.slot().waiting.retain(|job| job.wq != wq);
        self.note_busy(&mut access);
    }

    /// Moves the line on, and says where a queue's command is.
    pub fn progress(&self, wq: u8) -> Progress {
        let Some(mut access) = self.gate.open() else {
            return Progress::Lost;
        };
        self.advance(&mut access);
        let slot = access.slot();
        if let Some(place) = slot.line_of(wq) {
            return place;
        }
        match slot.ended.get_mut(usize::from(wq)).and_then(Option::take) {
            Some((command, end)) => Progress::Ended(command, end),
            None => Progress::Idle,
        }
    }

    /// Whether a command on a queue is in line.
    pub fn is_in_line(&self, wq: u8) -> bool {
        self.busy.load(Ordering::Acquire) && self.gate.with_slot(|slot| slot.line_of(wq).is_some())
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
        if access.slot().line_of(wq).is_some() {
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
                if let Some(ended) = access.slot().ended.get_mut(usize::from(job.wq)) {
                    *ended = Some((job.command, end));
                }
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
        let watched =
            matches!(job.command, Command::DisableWq(_)) && self.capabilities.work_queues.occupancy();
        let patience = self.options.command_deadline_ns;
        !watched
            || self.queue_state(access, job.wq) & wqcfg::OCCUPANCY_MASK <= FEW
            || now.saturating_sub(job.since_ns) > patience
    }

    fn queue_state(&self, access: &Access<'_, R>, wq: u8) -> u32 {
        access.registers.read32(self.capabilities.wqcfg_of(wq) + wqcfg::STATE)
    }

    fn note_busy(&self, access: &mut Access<'_, R>) {
        self.busy.store(access.slot().is_busy(), Ordering::Release);
    }
}
