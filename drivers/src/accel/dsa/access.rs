// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may touch the device's registers, and when.
//!
//! **Principle.** Registers are reached through an [`Access`], which is held for a few register accesses and
//! never while the device is waited for, or through [`Closed`], while the device is being set up or reset. The
//! two exclude each other: whoever asks for an access meanwhile gets none, and does not wait.

use pasidon_kernel::vdev::parent::ParentUnreached;
use spin::{Mutex, MutexGuard};

use super::slot::Slot;

/// The device's registers.
pub(super) struct Gate<R> {
    registers: R,
    inside: Mutex<Inside>,
}

struct Inside {
    closed: bool,
    slot: Slot,
}

/// Why no guest writes to the device by its portals.
pub(super) enum Unreached<'a> {
    /// There has been no vdev.
    NoVdevYet,
    /// The portals are in no stage 2.
    Withheld(&'a ParentUnreached),
}

/// The right to a few accesses. Holds a lock.
pub(super) struct Access<'a, R> {
    pub registers: &'a R,
    inside: MutexGuard<'a, Inside>,
}

/// The device to oneself, for as long as a reset takes; it opens again when this is dropped.
pub(super) struct Closed<'a, R> {
    pub registers: &'a R,
    gate: &'a Gate<R>,
    _unreached: Unreached<'a>,
}

impl<R> Gate<R> {
    /// Registers of a device with these queues and MSI-X entries.
    pub fn new(registers: R, slot: Slot) -> Self {
        Self { registers, inside: Mutex::new(Inside { closed: false, slot }) }
    }

    /// `None` while the device is set up or reset.
    pub fn open(&self) -> Option<Access<'_, R>> {
        let inside = self.inside.lock();
        (!inside.closed).then_some(Access { registers: &self.registers, inside })
    }

    /// Keeps everybody else away, guests' portals included. `None` while somebody does already.
    pub fn close<'a>(&'a self, unreached: Unreached<'a>) -> Option<Closed<'a, R>> {
        let mut inside = self.inside.lock();
        let closed = core::mem::replace(&mut inside.closed, true);
        (!closed).then_some(Closed { registers: &self.registers, gate: self, _unreached: unreached })
    }

    /// What is known of the device without looking at it; also while the gate is closed.
    pub fn with_slot<T>(&self, call: impl FnOnce(&mut Slot) -> T) -> T {
        call(&mut self.inside.lock().slot)
    }
}

impl<R> Access<'_, R> {
    pub fn slot(&mut self) -> &mut Slot {
        &mut self.inside.slot
    }
}

impl<R> Drop for Closed<'_, R> {
    fn drop(&mut self) {
        self.gate.inside.lock().closed = false;
    }
}
