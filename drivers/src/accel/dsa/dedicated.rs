// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of whole work queues.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::{Attached, InterruptBinding, Paused, UntranslatedMemory, VdevType};

use super::commands::{Command, CommandFailure};
use super::device::{Device, Limits};
use super::errors::ErrorMailbox;
use super::lease::{Lease, VECTOR_COMPLETION};
use super::queue::{Queue, QueueState};
use super::registers::portal;
use super::slot::{Progress, Waiter};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// How far it is known that nothing of a queue is in flight while its VM is paused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// To be asked of the device.
    Wanted,
    /// In line, or in the device.
    Given,
    /// The device's word, or the queue is disabled.
    Done,
    /// The device refused.
    Refused,
}

/// The right to use one queue.
pub(super) struct QueueLease<R: Registers, C: ConfigSpace> {
    device: Arc<Device<R, C>>,
    index: usize,
    /// Set from the first attach on; cleared when the device confirmed the stop.
    may_be_running: bool,
    /// Whether the command that ends the queue is in line.
    stopping: bool,
    /// `None` while its VM is not paused.
    drain: Option<Drain>,
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
        if *state != QueueState::default() || !queue.is_offered() {
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
            drain: None,
            epoch: device.epoch(),
            ran_after: device.resets.load(Ordering::Acquire),
        })
    }

    fn own(&self) -> &Queue {
        &self.device.queues[self.index]
    }

    fn waiter(&self) -> Waiter {
        Waiter::Queue(self.own().index)
    }

    fn give(&self, command: impl FnOnce(u8) -> Command) {
        self.device.give(self.waiter(), command(self.own().index), false);
    }

    /// Whether the whole device was reset after the queue could last run, and it is disabled: nothing of it is left, and
    /// no command is needed, which a device that hangs again would not carry out.
    fn was_stopped_by_reset(&self) -> bool {
        self.device.resets.load(Ordering::Acquire) != self.ran_after && self.is_enabled() == Some(false)
    }

    /// The end of the drain, or of an earlier command of the queue.
    fn note_end(&mut self, command: Command, end: Result<(), CommandFailure>) {
        if !matches!(command, Command::DrainWq(_)) {
            return;
        }
        self.drain = Some(match end {
            Ok(()) => Drain::Done,
            Err(failure) => {
                log::warn!("parent {}: {failure}", self.device.name);
                Drain::Refused
            }
        });
    }

    fn stop_for_good(&mut self, patience_ns: u64) -> Result<(), CommandFailure> {
        let reset = Command::ResetWq(self.own().index);
        self.device.end_with(self.waiter(), reset, &mut self.stopping, patience_ns)
    }

    fn retire(&self, why: &str) {
        let mut state = self.own().state.lock();
        if state.retired.is_none() {
            log::error!(
                "parent {}: WQ {} retired: {why}; it is used again once the device has confirmed its stop",
                self.device.name,
                self.own().index
            );
            state.retired = Some(why.to_string());
        }
    }
}

impl<R: Registers, C: ConfigSpace> Lease for QueueLease<R, C> {
    type Registers = R;
    type Config = C;

    fn device(&self) -> &Device<R, C> {
        &self.device
    }

    fn name(&self) -> String {
        format!("WQ {}", self.own().index)
    }

    fn queue(&self) -> String {
        self.own().index.to_string()
    }

    fn entries(&self) -> u16 {
        self.own().size
    }

    fn errors(&self) -> &ErrorMailbox {
        &self.own().errors
    }

    fn pasid(&self) -> Option<Pasid> {
        self.own().pasid()
    }

    fn handle(&self) -> u16 {
        self.own().handle()
    }

    fn interrupt(&self) -> InterruptBinding {
        InterruptBinding {
            physical: self.own().interrupt_entry(),
            virtual_vector: VECTOR_COMPLETION,
            for_guest: true,
        }
    }

    fn portal(&self) -> Option<HostPhys> {
        let offset = u64::from(self.own().index) * portal::STRIDE + portal::LIMITED_MSIX;
        Some(HostPhys(self.device.portals.0 + offset))
    }

    fn attach(&mut self, attached: &Attached) {
        self.may_be_running = true;
        self.own().set_pasid(Some(attached.pasid));
        self.device.permit_interrupt(self.own().interrupt_entry(), Some(attached.pasid.value()));
    }

    /// The guest reaches the portal itself.
    fn attach_untranslated(&mut self, _memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        Err(Refusal::new(self.name(), VdevType::MAPS_A_PAGE, "use it behind an IOMMU"))
    }

    fn lost_by_reset(&mut self) -> bool {
        let epoch = self.device.epoch();
        core::mem::replace(&mut self.epoch, epoch) != epoch
    }

    fn is_enabled(&self) -> Option<bool> {
        self.device.queue_is_enabled(self.own().index)
    }

    /// The size of the device's queue stays what it was at bring-up.
    fn enable(&mut self, limits: Limits, _entries: u16) -> bool {
        let Some(pasid) = self.own().pasid() else {
            return false;
        };
        // A reset that comes between this and the writes leaves it too low; what counts then is that a queue that may
        // run is not seen as disabled (`was_stopped_by_reset`).
        self.ran_after = self.device.resets.load(Ordering::Acquire);
        let queue = self.own();
        self.device.program_dedicated(queue.index, queue.size, pasid.value(), limits);
        self.give(Command::EnableWq);
        true
    }

    fn disable(&mut self) {
        self.give(Command::DisableWq);
    }

    fn reset(&mut self) {
        self.give(Command::ResetWq);
    }

    fn progress(&mut self) -> Progress {
        self.device.progress(self.waiter())
    }

    fn withdraw(&mut self) {
        self.device.withdraw(self.waiter());
    }

    fn is_waiting(&self) -> bool {
        self.device.is_in_line(self.waiter())
    }

    fn pause(&mut self) {
        if self.drain.is_none() {
            self.drain = Some(Drain::Wanted);
        }
    }

    fn paused(&mut self, commanded: bool) -> Paused {
        // Its end is the guest's, and the line has one place for each queue.
        if commanded {
            return Paused::Draining;
        }
        loop {
            match self.drain {
                Some(Drain::Done) => return Paused::Drained,
                Some(Drain::Refused) if self.is_enabled() == Some(false) => self.drain = Some(Drain::Done),
                Some(Drain::Refused) | None => return Paused::Draining,
                Some(Drain::Wanted | Drain::Given) => {}
            }
            match self.progress() {
                Progress::Waiting(..) | Progress::Active(..) | Progress::Lost => return Paused::Draining,
                Progress::Ended(command, end) => self.note_end(command, end),
                Progress::Idle => match self.is_enabled() {
                    Some(false) => self.drain = Some(Drain::Done),
                    None => return Paused::Draining,
                    Some(true) => {
                        self.drain = Some(Drain::Given);
                        self.give(Command::DrainWq);
                    }
                },
            }
        }
    }

    /// A drain that the device is at goes on: what is submitted meanwhile is undefined.
    fn resume(&mut self) -> Result<(), String> {
        if self.drain == Some(Drain::Given) {
            self.withdraw();
            if let Progress::Active(command, since_ns) = self.progress() {
                let ns = self.device.host.now_ns().saturating_sub(since_ns);
                return Err(CommandFailure::Unfinished(command, ns).to_string());
            }
        }
        self.drain = None;
        Ok(())
    }

    fn quiesce(&mut self, patience_ns: u64) -> Result<(), String> {
        self.drain = None;
        if !self.was_stopped_by_reset() {
            let stopped =
                self.stop_for_good(patience_ns).map_err(|failure| failure.to_string()).and_then(|()| {
                    match self.is_enabled() {
                        Some(false) => Ok(()),
                        _ => Err(format!("{} is still enabled after Reset WQ", self.name())),
                    }
                });
            if let Err(why) = stopped {
                self.retire(&why);
                return Err(why);
            }
        }
        self.stopping = false;
        self.device.permit_interrupt(self.own().interrupt_entry(), None);
        self.own().set_pasid(None);
        self.own().errors.clear();
        self.own().revive();
        self.may_be_running = false;
        Ok(())
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl<R: Registers, C: ConfigSpace> Drop for QueueLease<R, C> {
    fn drop(&mut self) {
        if self.may_be_running {
            self.retire("its vdev ended without being quiesced");
        }
        self.own().state.lock().owner = None;
    }
}
