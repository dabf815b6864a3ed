// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host does to the MSI-X vectors of a vdev.
//!
//! **Principle.** The host's mask is its own and lies on top of the guest's: an interrupt is sent when neither masks it.
//! What comes meanwhile is one interrupt, sent when the last mask goes, as PCI has it for the guest's. The guest cannot
//! change the host's mask, not by a reset of its function either; it ends with the vdev.
//!
//! Source: PCI Express Base 5.0, section 6.1.4; the actions are those of `VFIO_DEVICE_SET_IRQS` in Linux's
//! `include/uapi/linux/vfio.h`.

/// What is done to vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VectorControl {
    /// Holds their interrupts back.
    Mask,
    /// Lets them through again, and sends what is pending.
    Unmask,
    /// Whether each interrupt that is sent masks its vector.
    Automask(bool),
    /// An interrupt comes, as if the device had sent it.
    Trigger,
}

/// Which vectors of a vdev.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vectors {
    /// One.
    One(u16),
    /// All that the vdev has; to be triggered, all that the guest has programmed.
    All,
}

impl Vectors {
    /// Whether that vector is one of them.
    pub fn contain(self, vector: u16) -> bool {
        match self {
            Self::One(one) => one == vector,
            Self::All => true,
        }
    }
}

impl core::fmt::Display for Vectors {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::One(vector) => write!(f, "vector {vector}"),
            Self::All => f.write_str("all vectors"),
        }
    }
}
