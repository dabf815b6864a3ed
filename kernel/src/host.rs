// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the machine itself offers to the hypervisor: time, and interrupt vectors of its own.

use crate::iommu::HostVector;

/// Services of the processor the hypervisor runs on; implemented by `arch`.
pub trait Host: Send + Sync {
    /// Monotonic time since boot, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Takes a free interrupt vector on some processor. The route that the vector leads to is
    /// registered by the caller before the device is given the message.
    fn allocate_vector(&self) -> Option<HostVector>;

    /// Gives a vector back. The caller has made sure that no message for it is under way.
    fn free_vector(&self, vector: HostVector);
}
