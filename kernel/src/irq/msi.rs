// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor needs from whatever stands between a device's interrupt messages and the processors.
//!
//! **Principle.** It is a part of the IOMMU on some machines and a device of its own on others, so it is an
//! interface of its own. A message raises exactly what it was mapped to, and only from the requester it was
//! mapped for.
//!
//! **Contract.** Every method returns only when its effect is complete in the hardware: after
//! [`MsiController::unmap_interrupt`] no new message of the device raises the interrupt.

use crate::base::addr::Requester;
use crate::base::refusal::Refusal;
use crate::irq::HostVector;
use crate::vm::exit::MsiMessage;

/// A remapped interrupt of a physical device: what to write into its MSI-X table, and the handle to free
/// it with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemappedInterrupt {
    /// Names the remapping entry.
    pub handle: u32,
    /// What the device must write.
    pub message: MsiMessage,
}

/// What isolates interrupt messages (or several such behind one interface). All methods may be called from
/// any processor.
pub trait MsiController: Send + Sync {
    /// Lets exactly `requester` raise `target`.
    ///
    /// # Errors
    /// When no entry is left, or the controller cannot reach the target.
    fn map_interrupt(&self, requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal>;

    /// Takes that back: entry removed, caches invalidated and waited for.
    ///
    /// # Errors
    /// When the handle is not in use, or the hardware does not confirm; the entry then stays taken and the call may be
    /// repeated.
    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal>;
}
