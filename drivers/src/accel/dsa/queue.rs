// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work queues: who has each, and what others must know of it.

use alloc::string::String;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use pasidon_kernel::dma::pasid::Pasid;
use spin::Mutex;

use super::errors::ErrorMailbox;
use super::partition::QueueSize;

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
    /// Whether it is shared, and nobody's own.
    pub shared: bool,
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
            shared: size.shared,
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

    /// Its tag from here on.
    pub fn set_pasid(&self, pasid: Option<Pasid>) {
        self.pasid.store(pasid.map_or(NO_PASID, Pasid::value), Ordering::Release);
    }

    /// What descriptors name its interrupt with.
    pub fn handle(&self) -> u16 {
        self.handle.load(Ordering::Acquire)
    }

    pub fn set_handle(&self, handle: u16) {
        self.handle.store(handle, Ordering::Release);
    }

    /// Whether somebody could have it for themselves.
    pub fn is_offered(&self) -> bool {
        self.size > 0 && !self.shared
    }

    /// Whether it can be leased.
    pub fn is_free(&self) -> bool {
        self.is_offered() && *self.state.lock() == QueueState::default()
    }

    /// Takes its retirement back; only after the device confirmed its stop, or was reset.
    pub fn revive(&self) {
        let mut state = self.state.lock();
        state.retired = None;
        if state.owner.is_none() {
            self.set_pasid(None);
        }
    }
}
