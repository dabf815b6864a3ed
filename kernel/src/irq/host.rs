// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the machine itself offers to the hypervisor: time, and interrupt vectors of its own.

use alloc::sync::Arc;

use crate::base::id::VmId;
use crate::irq::HostVector;
use crate::memory::ram::GuestRam;
use crate::memory::{NoMemory, SharedMemory};
use crate::vm::exit::MsiMessage;

/// Services of the processor the hypervisor runs on; implemented by `arch`.
pub trait Host: Send + Sync {
    /// Monotonic time since boot, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Has the first processor look at what was left for it; nothing where that is the caller, which looks by itself.
    /// From any processor, also from interrupt handlers.
    fn wake_first(&self);

    /// Takes a free interrupt vector: for a VM on the processor that runs it, where there is one left, so
    /// that its devices interrupt nobody else. The route that the vector leads to is registered by the
    /// caller before the device is given the message.
    fn allocate_vector(&self, vm: Option<VmId>) -> Option<HostVector>;

    /// Returns when an interrupt that a processor accepted with this vector before the call has been
    /// handled. Called after the message was masked and unmapped, and before the vector is given back, so
    /// that a late interrupt cannot be taken for one of the vector's next owner. Must not be called from
    /// an interrupt handler. Doing nothing is right only where vectors are never given out again.
    fn settle_vector(&self, _vector: HostVector) {}

    /// The message that raises a vector without interrupt remapping, for parents that are used without an
    /// IOMMU; `None` where that is not possible.
    fn unremapped_message(&self, _vector: HostVector) -> Option<MsiMessage> {
        None
    }

    /// The RAM of a VM, for drivers that complete on behalf of its vdevs. Whoever holds it holds the RAM. A host that
    /// has no such drivers has no memory for them.
    fn guest_memory(&self, _ram: &Arc<GuestRam>) -> Arc<SharedMemory> {
        Arc::new(NoMemory)
    }

    /// Gives a vector back. The caller has made sure that no message for it is under way.
    fn free_vector(&self, vector: HostVector);
}
