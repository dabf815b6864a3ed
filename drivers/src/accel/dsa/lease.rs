// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of work queues.
//!
//! **Principle.** A vdev reaches the device only through its [`QueueLease`], which knows one queue and
//! names no other. A lease that ends without the device's confirmation that the queue stopped does not
//! give the queue back: it is retired until that confirmation comes, or the whole device is reset.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::dma::pasid::Pasid;

use super::commands::{Command, CommandFailure};
use super::device::{Device, Limits};
use super::queue::{Queue, QueueState};
use super::registers::portal;
use super::slot::Progress;
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// The right to use one queue.
pub(super) struct QueueLease<R: Registers, C: ConfigSpace> {
    device: Arc<Device<R, C>>,
    index: usize,
    /// Set from the first attach on; cleared when the device confirmed the stop.
    may_be_running: bool,
    /// Whether the command that ends the queue is in line.
    stopping: bool,
    /// The device's epoch as far as the vdev was told.
    epoch: u32,
    /// Resets of the device before the queue could last run.
    ran_after: u32,
}

impl<R: Registers, C: ConfigSpace> QueueLease<R, C> {
    /// Takes a free queue; `None` where it was taken meanwhile.
    pub fn take(device: &Arc<Device<R, C>>, index: usize, vm: &str) -> Option<Self> {
        let queue = device.queues.get(index)?;
        let mut state = queue.state.lock();
        if *state != QueueState::default() || queue.size == 0 {
            return None;
        }
        state.owner = Some(vm.to_string());
        drop(state);
        queue.errors.clear();
        Some(Self {
            device: Arc::clone(device),
            index,
            may_be_running: false,
            stopping: false,
            epoch: device.epoch(),
            ran_after: device.resets.load(Ordering::Acquire),
        })
    }

    /// Whether the whole device was reset since the last call: the queue is then disabled.
    pub fn lost_by_reset(&mut self) -> bool {
        let epoch = self.device.epoch();
        core::mem::replace(&mut self.epoch, epoch) != epoch
    }

    pub fn device(&self) -> &Device<R, C> {
        &self.device
    }

    pub fn queue(&self) -> &Queue {
        &self.device.queues[self.index]
    }

    /// The physical portal page.
    pub fn portal(&self) -> HostPhys {
        let offset = u64::from(self.queue().index) * portal::STRIDE + portal::LIMITED_MSIX;
        HostPhys(self.device.portals.0 + offset)
    }

    /// Sets the tag and lets the queue's completions use its interrupt. The queue stays disabled.
    pub fn attach(&mut self, pasid: Pasid) {
        self.may_be_running = true;
        self.queue().set_pasid(Some(pasid));
        self.device.permit_interrupt(self.queue().interrupt_entry(), Some(pasid.value()));
    }

    /// Programs the queue, which is disabled, with its tag; false where it has none.
    pub fn program(&mut self, limits: Limits) -> bool {
        let Some(pasid) = self.queue().pasid() else {
            return false;
        };
        // A reset that comes between this and the writes leaves it too low; what counts then is that a queue that may
        // run is not seen as disabled (`was_stopped_by_reset`).
        self.ran_after = self.device.resets.load(Ordering::Acquire);
        let queue = self.queue();
        self.device.program_queue(queue.index, queue.size, pasid.value(), limits);
        true
    }

    /// Puts a command on the queue in line.
    pub fn give(&self, command: impl FnOnce(u8) -> Command) {
        let wq = self.queue().index;
        self.device.give(wq, command(wq), false);
    }

    /// Takes the command out of the line again, where its turn has not come.
    pub fn withdraw(&self) {
        self.device.withdraw(self.queue().index);
    }

    /// Where the queue's last command is.
    pub fn progress(&self) -> Progress {
        self.device.progress(self.queue().index)
    }

    /// Whether a command on the queue is in line.
    pub fn is_waiting(&self) -> bool {
        self.device.is_in_line(self.queue().index)
    }

    /// Whether the queue is enabled, as the device says; `None` while that is about to change.
    pub fn is_enabled(&self) -> Option<bool> {
        self.device.queue_is_enabled(self.queue().index)
    }

    /// Has the queue stopped at once, unless the device says that it is disabled. Waits for nothing.
    pub fn stop(&self) {
        if self.is_enabled() != Some(false) {
            self.give(Command::ResetWq);
        }
    }

    /// Stops the queue for good and takes its interrupt permission and tag away, within `patience_ns` for its
    /// turn and as much for the command itself. On failure the queue is retired, and the command stays in line:
    /// a later try finds out what became of it, and revives the queue.
    pub fn quiesce(&mut self, patience_ns: u64) -> Result<(), String> {
        if !self.was_stopped_by_reset() {
            let stopped =
                self.stop_for_good(patience_ns).map_err(|failure| failure.to_string()).and_then(|()| {
                    match self.is_enabled() {
                        Some(false) => Ok(()),
                        _ => Err(alloc::format!("WQ {} is still enabled after Reset WQ", self.queue().index)),
                    }
                });
            if let Err(why) = stopped {
                self.retire(&why);
                return Err(why);
            }
        }
        self.stopping = false;
        self.device.permit_interrupt(self.queue().interrupt_entry(), None);
        self.queue().set_pasid(None);
        self.queue().errors.clear();
        self.queue().revive();
        self.may_be_running = false;
        Ok(())
    }

    /// Whether the whole device was reset after the queue could last run, and it is disabled: nothing of it is left, and
    /// no command is needed, which a device that hangs again would not carry out.
    fn was_stopped_by_reset(&self) -> bool {
        self.device.resets.load(Ordering::Acquire) != self.ran_after && self.is_enabled() == Some(false)
    }

    fn stop_for_good(&mut self, patience_ns: u64) -> Result<(), CommandFailure> {
        let wq = self.queue().index;
        let reset = Command::ResetWq(wq);
        let start = self.device.host.now_ns();
        if !core::mem::replace(&mut self.stopping, true) {
            self.device.give(wq, reset, true);
        }
        loop {
            // Time first: the device had all of it, however long this processor was away.
            let now = self.device.host.now_ns();
            let late = |since: u64| now.saturating_sub(since.max(start)) > patience_ns;
            let failure = match self.device.progress(wq) {
                Progress::Ended(command, end) if command == reset => {
                    self.stopping = false;
                    return end;
                }
                // An earlier command of the queue, or a reset of the device that forgot this one.
                Progress::Ended(..) | Progress::Idle => {
                    self.device.give(wq, reset, true);
                    continue;
                }
                Progress::Waiting(..) if late(start) => {
                    CommandFailure::Busy(reset, now.saturating_sub(start))
                }
                Progress::Active(command, since) if late(since) => {
                    CommandFailure::Unfinished(command, now.saturating_sub(since))
                }
                Progress::Waiting(..) | Progress::Active(..) => {
                    core::hint::spin_loop();
                    continue;
                }
                Progress::Lost => CommandFailure::Lost(reset),
            };
            return Err(failure);
        }
    }

    fn retire(&self, why: &str) {
        let mut state = self.queue().state.lock();
        if state.retired.is_none() {
            log::error!(
                "parent {}: WQ {} retired: {why}; it is used again once the device has confirmed its stop",
                self.device.name,
                self.queue().index
            );
            state.retired = Some(why.to_string());
        }
    }
}

impl<R: Registers, C: ConfigSpace> Drop for QueueLease<R, C> {
    fn drop(&mut self) {
        if self.may_be_running {
            self.retire("its vdev ended without being quiesced");
        }
        self.queue().state.lock().owner = None;
    }
}
