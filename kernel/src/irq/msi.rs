// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor needs from whatever stands between a device's interrupt messages and the processors.
//!
//! **Principle.** It is a part of the IOMMU on some machines and a device of its own on others, so it is an
//! interface of its own. A message raises exactly what it was mapped to, and only from the requester it was
//! mapped for.
//!
//! **Contract.** Every method returns only when its effect is complete in the hardware: after
//! [`MsiController::unmap_interrupt`] no new message of the device raises the interrupt.

use alloc::format;
use alloc::sync::Arc;
use core::fmt::Debug;

use crate::base::addr::{HostPhys, Requester};
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

/// Memory through which a running guest takes interrupts without the hypervisor: whoever raises one sets its bit there and
/// tells the processor, which hands it to the guest. Where the guest does not run, the processor tells the hypervisor.
///
/// Made by architecture code. The controller holds it for as long as the hardware may write to it.
pub trait PostedInterrupts: Send + Sync + Debug {
    /// Where it is: 64 bytes, aligned to as many.
    fn address(&self) -> HostPhys;
}

/// A guest's interrupt that is raised so.
#[derive(Clone, Debug)]
pub struct Posting {
    /// The guest's memory for it.
    pub descriptor: Arc<dyn PostedInterrupts>,
    /// The guest's vector, 16 or above.
    pub vector: u8,
}

/// What a message raises.
#[derive(Clone, Copy, Debug)]
pub enum Delivery<'a> {
    /// An interrupt of the hypervisor's.
    Host(HostVector),
    /// A guest's.
    Guest(&'a Posting),
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
    /// Whether messages of that device can be posted to guests ([`Delivery::Guest`]).
    fn can_post(&self, _requester: Requester) -> bool {
        false
    }

    /// Has the messages of that handle raise something else from now on; none is lost, and none raises both. When it
    /// returns, no message raises what was raised before.
    ///
    /// # Errors
    /// When the handle is not in use, the controller cannot reach the target, with nothing changed; or the hardware does
    /// not confirm: messages then raise the one or the other.
    fn redirect(&self, handle: u32, _to: Delivery<'_>) -> Result<(), Refusal> {
        Err(Refusal::new(format!("interrupt handle {handle}"), "cannot be redirected", "leave it as it is"))
    }
}
