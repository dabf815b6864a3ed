// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of shares of a work queue.
//!
//! **Principle.** The guest sees a queue of its own that is enabled and disabled; the device's queue stays enabled, as
//! others use it. What the guest asks of its queue is done here, but for one thing: that nothing of it is in flight any
//! more is the device's word. With PASIDs that is the end of Abort PASID, never what was read in memory, which guests may
//! reach by the device. Without an IOMMU there is no such command; but no address of the completion records is ever
//! given to the device for a guest, so that they are the device's word.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::{Attached, InterruptBinding, Paused, UntranslatedMemory};

use super::commands::Command;
use super::device::{Device, Limits};
use super::errors::ErrorMailbox;
use super::lease::{Lease, VECTOR_COMPLETION};
use super::share::guest::Share;
use super::share::{Member, Reach};
use super::slot::{Progress, Waiter};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// What is done to the guest's queue without the device.
#[derive(Clone, Copy)]
enum Doing {
    /// Enabled.
    Enabled,
    /// Being disabled, once what was submitted is completed.
    Draining { since_ns: u64 },
    /// Disabled at once. Nothing is in flight, or what is ends by itself, where no command ends it.
    Reset { since_ns: u64 },
}

/// Why there is no share to be had.
pub(super) enum NoShare {
    /// Others have them all.
    Taken,
    /// Memory is short.
    Memory,
}

/// The right to a share.
pub(super) struct ShareLease<R: Registers, C: ConfigSpace> {
    device: Arc<Device<R, C>>,
    share: Share,
    weight: u8,
    entries: u16,
    /// As many as the guest gave its queue.
    open: u16,
    doing: Option<Doing>,
    /// Set from the first attach on; cleared when the device confirmed that nothing is in flight.
    may_be_running: bool,
    /// Whether the command for the end is in line.
    stopping: bool,
    /// It did not stop when it should, which has been said.
    retired: bool,
    /// The device's epoch as far as the vdev was told.
    epoch: u32,
    /// The one in which the guest's queue was enabled last.
    enabled_in: u32,
    /// Resets of the device before something could last be in flight.
    ran_after: u32,
}

impl<R: Registers, C: ConfigSpace> ShareLease<R, C> {
    /// Takes a share, of that weight and with so many entries.
    pub fn take(device: &Arc<Device<R, C>>, weight: u8, entries: u16) -> Result<Self, NoShare> {
        let queue = device.shared.as_ref().map(Arc::clone).ok_or(NoShare::Taken)?;
        let interrupt = device.free_entries.lock().pop().ok_or(NoShare::Taken)?;
        let Some(member) = queue.join(weight, entries, interrupt.clone()) else {
            device.free_entries.lock().push(interrupt);
            return Err(NoShare::Memory);
        };
        Ok(Self {
            device: Arc::clone(device),
            share: Share::new(queue, member, VECTOR_COMPLETION),
            weight,
            entries,
            open: 0,
            doing: None,
            may_be_running: false,
            stopping: false,
            retired: false,
            epoch: device.epoch(),
            enabled_in: device.epoch(),
            ran_after: device.resets.load(Ordering::Acquire),
        })
    }

    fn member(&self) -> &Member {
        self.share.member()
    }

    fn waiter(&self) -> Waiter {
        Waiter::Share(self.member().number())
    }

    fn abort(&self) -> Option<Command> {
        self.member().pasid().map(|pasid| Command::AbortPasid(pasid.value()))
    }

    /// Whether the whole device was reset after something could last be in flight.
    fn was_stopped_by_reset(&self) -> bool {
        self.device.resets.load(Ordering::Acquire) != self.ran_after && self.is_enabled() == Some(false)
    }

    /// What is being done has all its time from now on.
    fn begin_anew(&mut self) {
        let now = self.device.host.now_ns();
        if let Some(Doing::Draining { since_ns } | Doing::Reset { since_ns }) = &mut self.doing {
            *since_ns = now;
        }
    }

    fn abort_for_good(&mut self, patience_ns: u64) -> Result<(), String> {
        let Some(abort) = self.abort() else { return self.wait_for_flights(patience_ns) };
        let ended = self.device.end_with(self.waiter(), abort, &mut self.stopping, patience_ns);
        ended.map_err(|failure| failure.to_string())
    }

    /// Without PASIDs no command ends what is one vdev's; but no guest can write what the device completes to, either.
    fn wait_for_flights(&mut self, patience_ns: u64) -> Result<(), String> {
        let host = Arc::clone(&self.device.host);
        let deadline = host.now_ns().saturating_add(patience_ns);
        loop {
            let late = host.now_ns() >= deadline;
            self.share.collect();
            if self.member().is_idle() {
                return Ok(());
            }
            if late {
                let [.., in_flight] = self.member().counts();
                return Err(format!("{in_flight} descriptors of it have not ended"));
            }
            core::hint::spin_loop();
        }
    }
}

impl<R: Registers, C: ConfigSpace> Lease for ShareLease<R, C> {
    type Registers = R;
    type Config = C;

    fn device(&self) -> &Device<R, C> {
        &self.device
    }

    fn name(&self) -> String {
        self.member().to_string()
    }

    fn queue(&self) -> String {
        format!("{}, share {}", self.share.queue().index(), self.member().number())
    }

    fn entries(&self) -> u16 {
        self.entries
    }

    fn takes_batches(&self) -> bool {
        false
    }

    fn errors(&self) -> &ErrorMailbox {
        &self.member().errors
    }

    fn pasid(&self) -> Option<Pasid> {
        self.member().pasid()
    }

    /// The guest's own number: what the device is told is put in its place.
    fn handle(&self) -> u16 {
        VECTOR_COMPLETION
    }

    fn interrupt(&self) -> InterruptBinding {
        InterruptBinding {
            physical: self.member().interrupt.entry,
            virtual_vector: VECTOR_COMPLETION,
            for_guest: false,
        }
    }

    fn window(&self) -> Option<HostPhys> {
        Some(self.member().page())
    }

    fn attach(&mut self, attached: &Attached) {
        let Some(window) = attached.window else { return };
        self.may_be_running = true;
        self.member().set_reach(Some(Reach::Tagged { pasid: attached.pasid, records: window.iova }));
        self.device.permit_interrupt(self.member().interrupt.entry, Some(attached.pasid.value()));
        self.share.attach(attached);
    }

    fn attach_untranslated(&mut self, memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        self.may_be_running = true;
        self.member().set_reach(Some(Reach::Untranslated(Arc::clone(&memory))));
        self.share.attach_untranslated(memory);
        Ok(())
    }

    fn is_attached(&self) -> bool {
        self.member().is_attached()
    }

    fn lost_by_reset(&mut self) -> bool {
        let epoch = self.device.epoch();
        core::mem::replace(&mut self.epoch, epoch) != epoch
    }

    fn is_enabled(&self) -> Option<bool> {
        let changes = matches!(self.doing, Some(Doing::Draining { .. }));
        let member = self.member();
        (!changes && !self.device.is_in_line(self.waiter())).then(|| member.is_open() || !member.is_idle())
    }

    fn enable(&mut self, limits: Limits, entries: u16) -> bool {
        if !self.is_attached() {
            return false;
        }
        self.open = entries.min(self.entries);
        self.enabled_in = self.device.epoch();
        self.ran_after = self.device.resets.load(Ordering::Acquire);
        self.share.limit(limits.max_transfer_log2);
        // While the device is reset this waits.
        if self.member().open(self.open) {
            self.doing = Some(Doing::Enabled);
        }
        true
    }

    fn disable(&mut self) {
        self.member().close();
        self.doing = Some(Doing::Draining { since_ns: self.device.host.now_ns() });
    }

    fn reset(&mut self) {
        self.member().close();
        self.member().silence();
        self.doing = None;
        match self.abort().filter(|_| !self.member().is_idle()) {
            Some(abort) => self.device.give(self.waiter(), abort, false),
            None => self.doing = Some(Doing::Reset { since_ns: self.device.host.now_ns() }),
        }
    }

    fn progress(&mut self) -> Progress {
        let queue = self.share.queue().index();
        if self.doing.is_some() {
            self.share.collect();
        }
        // What is held waits for its VM, so that its time does not count.
        if self.member().is_held() {
            self.begin_anew();
        }
        match self.doing {
            Some(Doing::Enabled) => {
                self.doing = None;
                Progress::Ended(Command::EnableWq(queue), Ok(()))
            }
            Some(Doing::Reset { .. }) if self.member().is_idle() => {
                self.doing = None;
                self.share.queue().forget(self.member());
                Progress::Ended(Command::ResetWq(queue), Ok(()))
            }
            Some(Doing::Reset { since_ns }) => Progress::Waiting(Command::ResetWq(queue), since_ns),
            Some(Doing::Draining { .. }) if self.member().is_done() => {
                self.doing = None;
                Progress::Ended(Command::DisableWq(queue), Ok(()))
            }
            // Others have their turns, too.
            Some(Doing::Draining { since_ns }) => Progress::Waiting(Command::DisableWq(queue), since_ns),
            None if self.member().is_suspended() => Progress::Lost,
            None => {
                let progress = self.device.progress(self.waiter());
                if let Progress::Ended(Command::AbortPasid(_), Ok(())) = progress {
                    self.share.queue().forget(self.member());
                }
                progress
            }
        }
    }

    fn withdraw(&mut self) {
        let draining = matches!(self.doing.take(), Some(Doing::Draining { .. }));
        if draining && self.device.epoch() == self.enabled_in {
            self.member().open(self.open);
        }
        self.device.withdraw(self.waiter());
    }

    fn is_waiting(&self) -> bool {
        let waits_for_room = || self.share.queue().is_asked() && self.member().waits();
        self.doing.is_some() || self.device.is_in_line(self.waiter()) || waits_for_room()
    }

    fn pause(&mut self) {
        self.share.queue().hold(self.member());
    }

    /// That nothing is in flight is told by the completion records: the guest is told by them, too.
    fn paused(&mut self, _commanded: bool) -> Paused {
        self.share.collect();
        let member = self.member();
        if member.has_flights() || member.is_suspended() || self.device.is_in_line(self.waiter()) {
            Paused::Draining
        } else if member.waits() {
            Paused::Held
        } else {
            Paused::Drained
        }
    }

    fn resume(&mut self) -> Result<(), String> {
        self.begin_anew();
        self.share.queue().release(self.member());
        Ok(())
    }

    fn quiesce(&mut self, patience_ns: u64) -> Result<(), String> {
        self.member().close();
        self.member().silence();
        self.doing = None;
        if self.may_be_running && !self.was_stopped_by_reset() {
            self.abort_for_good(patience_ns).inspect_err(|failure| {
                if !core::mem::replace(&mut self.retired, true) {
                    log::error!(
                        "parent {}: {} retired: {failure}; it is used again once the device has confirmed its stop",
                        self.device.name,
                        self.member()
                    );
                }
            })?;
        }
        self.retired = false;
        self.stopping = false;
        self.device.permit_interrupt(self.member().interrupt.entry, None);
        self.share.queue().forget(self.member());
        self.member().set_reach(None);
        self.member().errors.clear();
        self.may_be_running = false;
        Ok(())
    }

    fn share(&mut self) -> Option<&mut Share> {
        Some(&mut self.share)
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let [submitted, completed, deferred, waiting, in_flight] = self.member().counts();
        Vec::from([
            ("weight", self.weight.to_string()),
            (
                "submitted",
                format!("{submitted} ({completed} completed, {in_flight} in flight, {waiting} wait)"),
            ),
            ("retries", deferred.to_string()),
        ])
    }
}

impl<R: Registers, C: ConfigSpace> Drop for ShareLease<R, C> {
    fn drop(&mut self) {
        if self.may_be_running {
            log::error!("parent {}: {} was dropped without being quiesced", self.device.name, self.member());
            return;
        }
        self.share.queue().leave(self.member());
        self.device.free_entries.lock().push(self.member().interrupt.clone());
    }
}
