// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work queues and their leases.
//!
//! **Principle.** A vdev reaches the device only through its [`QueueLease`], which knows one queue and
//! names no other. A lease that ends without the device's confirmation that the queue stopped does not
//! give the queue back: it is retired until the whole device is reset.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use pasidon_kernel::addr::HostPhys;
use pasidon_kernel::pasid::Pasid;
use spin::Mutex;

use super::commands::{Command, CommandFailure};
use super::device::{Device, Limits};
use super::interrupts::ErrorMailbox;
use super::partition::QueueSize;
use super::registers::portal;
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Stands for "no PASID" in [`Queue::pasid`]; PASIDs have 20 bits.
const NO_PASID: u32 = u32::MAX;

/// Who may use a queue: no one yet, if both are `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct QueueState {
    /// The VM that has it.
    pub owner: Option<String>,
    /// Why it can go to no one any more: how it failed to stop.
    pub retired: Option<String>,
}

/// One work queue of the device.
pub(super) struct Queue {
    pub index: u8,
    /// Entries; 0 if it cannot be used.
    pub size: u16,
    /// Whether the configuration planned this very size.
    pub planned: bool,
    handle: AtomicU16,
    pub state: Mutex<QueueState>,
    pasid: AtomicU32,
    /// Errors the device reported for it, for its vdev.
    pub errors: ErrorMailbox,
}

impl Queue {
    pub fn new(index: u8, size: QueueSize) -> Self {
        Self {
            index,
            size: size.entries,
            planned: size.planned,
            handle: AtomicU16::new(0),
            state: Mutex::new(QueueState::default()),
            pasid: AtomicU32::new(NO_PASID),
            errors: ErrorMailbox::new(),
        }
    }

    /// The MSI-X entry of its completions. Entry 0 is the device's own.
    pub fn interrupt_entry(&self) -> u16 {
        u16::from(self.index) + 1
    }

    /// Its tag while one is attached.
    pub fn pasid(&self) -> Option<Pasid> {
        Pasid::new(self.pasid.load(Ordering::Acquire))
    }

    /// What descriptors name its interrupt with.
    pub fn handle(&self) -> u16 {
        self.handle.load(Ordering::Acquire)
    }

    pub fn set_handle(&self, handle: u16) {
        self.handle.store(handle, Ordering::Release);
    }

    /// Whether it can be leased.
    pub fn is_free(&self) -> bool {
        self.size > 0 && *self.state.lock() == QueueState::default()
    }

    /// Takes its retirement back; only after a reset of the whole device.
    pub fn revive(&self) {
        let mut state = self.state.lock();
        state.retired = None;
        if state.owner.is_none() {
            self.pasid.store(NO_PASID, Ordering::Release);
        }
    }
}

/// The right to use one queue.
pub(super) struct QueueLease<R: Registers, C: ConfigSpace> {
    device: Arc<Device<R, C>>,
    index: usize,
    /// Set from the first attach on; cleared when the device confirmed the stop.
    may_be_running: bool,
    /// The device's epoch as far as the vdev was told.
    epoch: u32,
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
            epoch: device.epoch(),
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
        self.queue().pasid.store(pasid.value(), Ordering::Release);
        self.device
            .permit_interrupt(self.queue().interrupt_entry(), Some(pasid.value()));
    }

    /// Enables the queue with its tag; `None` where it has none.
    pub fn enable(&self, limits: Limits) -> Option<Result<(), CommandFailure>> {
        let queue = self.queue();
        let pasid = queue.pasid()?;
        Some(
            self.device
                .enable_queue(queue.index, queue.size, pasid.value(), limits),
        )
    }

    /// Completes queued work, then disables the queue.
    pub fn disable(&self) -> Result<(), CommandFailure> {
        self.command(Command::DisableWq)
    }

    /// Waits for queued work.
    pub fn drain(&self) -> Result<(), CommandFailure> {
        self.command(Command::DrainWq)
    }

    /// Drops queued work.
    pub fn abort(&self) -> Result<(), CommandFailure> {
        self.command(Command::AbortWq)
    }

    /// Drops queued work, disables the queue and clears what it was programmed with.
    pub fn reset(&self) -> Result<(), String> {
        self.command(Command::ResetWq)
            .map_err(|failure| failure.to_string())?;
        if self.device.queue_is_disabled(self.queue().index) {
            Ok(())
        } else {
            Err(alloc::format!(
                "WQ {} is still enabled after Reset WQ",
                self.queue().index
            ))
        }
    }

    fn command(&self, command: impl FnOnce(u8) -> Command) -> Result<(), CommandFailure> {
        self.device.execute(command(self.queue().index)).map(|_| ())
    }

    /// Stops the queue for good and takes its interrupt permission and tag away. On failure the queue is
    /// retired; a later try may still get the confirmation, but the queue is not used again.
    pub fn quiesce(&mut self) -> Result<(), String> {
        if let Err(why) = self.reset() {
            self.retire(&why);
            return Err(why);
        }
        self.device.permit_interrupt(self.queue().interrupt_entry(), None);
        self.queue().pasid.store(NO_PASID, Ordering::Release);
        self.queue().errors.clear();
        self.may_be_running = false;
        Ok(())
    }

    fn retire(&self, why: &str) {
        let mut state = self.queue().state.lock();
        if state.retired.is_none() {
            log::error!(
                "parent {}: WQ {} retired: {why}; it is used again only after a reset of the device",
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
