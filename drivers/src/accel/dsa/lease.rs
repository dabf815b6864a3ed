// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vdev's model has of the device: a queue of its own (`dedicated`), or a share of one (`shared`).
//!
//! **Principle.** A vdev reaches the device only through its lease, which knows what is its own and names nothing
//! else. A lease that ends without the device's confirmation that nothing of it is in flight gives nothing back: what
//! it had is retired until that confirmation comes, or the whole device is reset.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::{Attached, InterruptBinding, Paused, UntranslatedMemory};

use super::device::{Device, Limits};
use super::errors::ErrorMailbox;
use super::share::guest::Share;
use super::slot::Progress;
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// The guest's vector of completions, which is also its handle where the device's is not used.
pub(super) const VECTOR_COMPLETION: u16 = 1;

/// The right to a part of the device.
pub(super) trait Lease: Send {
    /// How the driver reaches registers.
    type Registers: Registers;
    /// And configuration space.
    type Config: ConfigSpace;

    /// The device.
    fn device(&self) -> &Device<Self::Registers, Self::Config>;

    /// What it is, for messages: `WQ 3`.
    fn name(&self) -> String;

    /// Which queue it is, for the monitor.
    fn queue(&self) -> String;

    /// The most entries that the guest's queue can have.
    fn entries(&self) -> u16;

    /// Whether guests may submit batches, whose members nobody but the device sees.
    fn takes_batches(&self) -> bool {
        true
    }

    /// Errors that the device reported for it.
    fn errors(&self) -> &ErrorMailbox;

    /// Its tag while one is attached.
    fn pasid(&self) -> Option<Pasid>;

    /// What the guest's descriptors name the interrupt of their completion with.
    fn handle(&self) -> u16;

    /// The physical interrupt of completions, and what it is to the guest.
    fn interrupt(&self) -> InterruptBinding;

    /// The physical portal page that the guest reaches directly, where it does.
    fn portal(&self) -> Option<HostPhys> {
        None
    }

    /// The page where the device writes what the driver must be able to believe, where there is one.
    fn window(&self) -> Option<HostPhys> {
        None
    }

    /// Sets the tag and lets completions use the interrupt. The guest's queue stays disabled.
    fn attach(&mut self, attached: &Attached);

    /// The same without a tag, where there is no IOMMU.
    ///
    /// # Errors
    /// When it sends what nobody checks.
    fn attach_untranslated(&mut self, memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal>;

    /// Whether it is attached, with a tag or without.
    fn is_attached(&self) -> bool {
        self.pasid().is_some()
    }

    /// Whether the whole device was reset since the last call: the guest's queue is then disabled.
    fn lost_by_reset(&mut self) -> bool;

    /// Whether the guest's queue is enabled, as the device says; `None` while that is about to change.
    fn is_enabled(&self) -> Option<bool>;

    /// Has the queue, which is disabled, enabled, for as many descriptors as the guest gave it; false where it is not
    /// attached.
    fn enable(&mut self, limits: Limits, entries: u16) -> bool;

    /// Has it disabled, what was submitted completed first.
    fn disable(&mut self);

    /// Has it disabled, what was submitted dropped.
    fn reset(&mut self);

    /// Where the last of these three is. The end is told once.
    fn progress(&mut self) -> Progress;

    /// Takes it back, where it has not begun.
    fn withdraw(&mut self);

    /// Whether one of them is under way.
    fn is_waiting(&self) -> bool;

    /// Has the queue stopped at once, unless it is disabled for certain. Waits for nothing.
    fn stop(&mut self) {
        if self.is_enabled() != Some(false) {
            self.reset();
        }
    }

    /// The VM is paused, and its guest submits nothing: nothing more is sent on its behalf. What is under way is found
    /// out by [`Lease::paused`].
    fn pause(&mut self);

    /// How far that is. Waits for nothing. `commanded`: a command of the guest's on its queue has not ended.
    fn paused(&mut self, commanded: bool) -> Paused;

    /// What was held is sent again.
    ///
    /// # Errors
    /// When the device is at something during which the guest must not submit.
    fn resume(&mut self) -> Result<(), String>;

    /// Stops it for good and takes its tag away, within `patience_ns` for its turn and as much for the command
    /// itself. On failure it is retired, and the command stays in line: a later try finds out what became of it.
    fn quiesce(&mut self, patience_ns: u64) -> Result<(), String>;

    /// The share, where what the guest submits comes by way of the hypervisor.
    fn share(&mut self) -> Option<&mut Share> {
        None
    }

    /// For the monitor: what is worth knowing beside the vdev's own.
    fn describe(&self) -> Vec<(&'static str, String)>;
}
