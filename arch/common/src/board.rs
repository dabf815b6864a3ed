// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices of one VM, and which vdev is where among them.

use alloc::vec::Vec;

use pasidon_kernel::base::id::VdevId;
use pasidon_kernel::dev::pci::Slot;

/// The devices of one VM.
#[derive(Debug)]
pub struct Board<P> {
    /// The devices.
    pub chipset: P,
    slots: Vec<(VdevId, Slot)>,
}

impl<P> Board<P> {
    /// With these devices, and no vdev among them.
    pub fn new(chipset: P) -> Self {
        Self { chipset, slots: Vec::new() }
    }

    /// A vdev was put into a slot.
    pub(crate) fn plug(&mut self, vdev: VdevId, slot: Slot) {
        self.slots.push((vdev, slot));
    }

    /// A vdev was ended in its slot.
    pub(crate) fn unplug(&mut self, vdev: VdevId) {
        self.slots.retain(|(id, _)| *id != vdev);
    }

    /// Where a vdev is plugged.
    pub fn slot(&self, vdev: VdevId) -> Option<Slot> {
        self.slots.iter().find(|(id, _)| *id == vdev).map(|(_, slot)| *slot)
    }
}
