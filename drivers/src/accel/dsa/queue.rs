// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work queues and their leases.
//!
//! **Principle.** A vdev reaches the device only through its [`QueueLease`], which knows one queue and
//! names no other. A lease that ends without the device's confirmation that the queue stopped does not
//! give the queue back: it is retired until the next bring-up.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

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

/// Who may use a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum QueueState {
    /// No one.
    Free,
    /// The named VM.
    Leased(String),
    /// No one any more: it did not stop for the reason given.
    Retired(String),
}

/// One work queue of the device.
pub(super) struct Queue {
    pub index: u8,
    /// Entries; 0 if it cannot be used.
    pub size: u16,
    /// Whether the configuration planned this very size.
    pub planned: bool,
    /// What descriptors name its interrupt with.
    pub handle: u16,
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
            handle: 0,
            state: Mutex::new(QueueState::Free),
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

    /// Whether it can be leased.
    pub fn is_free(&self) -> bool {
        self.size > 0 && *self.state.lock() == QueueState::Free
    }
}

/// The right to use one queue.
pub(super) struct QueueLease<R: Registers, C: ConfigSpace> {
    device: Arc<Device<R, C>>,
    index: usize,
    /// Set from the first attach on; cleared when the device confirmed the stop.
    may_be_running: bool,
}

impl<R: Registers, C: ConfigSpace> QueueLease<R, C> {
    /// Takes a free queue; `None` where it was taken meanwhile.
    pub fn take(device: &Arc<Device<R, C>>, index: usize, vm: &str) -> Option<Self> {
        let queue = device.queues.get(index)?;
        let mut state = queue.state.lock();
        if *state != QueueState::Free || queue.size == 0 {
            return None;
        }
        *state = QueueState::Leased(vm.to_string());
        drop(state);
        queue.errors.clear();
        Some(Self {
            device: Arc::clone(device),
            index,
            may_be_running: false,
        })
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
        if !matches!(*state, QueueState::Retired(_)) {
            log::error!(
                "parent {}: WQ {} retired: {why}; it is used again only after a restart",
                self.device.name,
                self.queue().index
            );
            *state = QueueState::Retired(why.to_string());
        }
    }
}

impl<R: Registers, C: ConfigSpace> Drop for QueueLease<R, C> {
    fn drop(&mut self) {
        if self.may_be_running {
            self.retire("its vdev ended without being quiesced");
            return;
        }
        let mut state = self.queue().state.lock();
        if matches!(*state, QueueState::Leased(_)) {
            *state = QueueState::Free;
        }
    }
}
