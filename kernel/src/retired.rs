// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a device or IOMMU that did not stop has cost.
//!
//! **Principle.** What cannot be proven quiet is kept, listed and never used again: this is where it is
//! kept. The record owns the thing, so that no other code can come by it.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::attachment::RetiredAttachment;
use crate::id::VdevId;
use crate::info::RetiredInfo;
use crate::ioas::IoAddressSpace;
use crate::iommu::HostVector;
use crate::ram::GuestRam;
use crate::vdev::Vdev;

/// One thing that is not used again before the machine restarts.
#[derive(Debug)]
pub struct Retirement {
    /// Name of the VM it belonged to.
    pub vm: String,
    /// Why.
    pub why: String,
    /// The thing.
    pub what: Retired,
}

/// What was retired.
#[derive(Debug)]
pub enum Retired {
    /// A PASID, and with it its queue and address space.
    Attachment {
        /// Name of the parent.
        parent: String,
        /// The attachment.
        attachment: RetiredAttachment,
    },
    /// A vdev that could not be ended at all, with everything it holds.
    Vdev(Arc<Vdev>),
    /// A slice of a parent that is used without an IOMMU: it may still reach the RAM.
    Untranslated {
        /// Name of the parent.
        parent: String,
        /// The slice.
        vdev: VdevId,
        /// What it may reach.
        ram: Arc<GuestRam>,
    },
    /// An interrupt vector.
    Vector(HostVector),
    /// RAM that a device may still reach, with the address spaces that map it.
    Memory {
        /// The RAM.
        ram: Arc<GuestRam>,
        /// Those that could not be destroyed.
        spaces: Vec<Arc<IoAddressSpace>>,
    },
}

impl Retirement {
    pub(crate) fn info(&self) -> RetiredInfo {
        let (what, value) = match &self.what {
            Retired::Attachment { attachment, .. } => ("pasid", u64::from(attachment.pasid.value())),
            Retired::Vdev(vdev) => ("vdev", u64::from(vdev.id().0)),
            Retired::Untranslated { vdev, .. } => ("vdev", u64::from(vdev.0)),
            Retired::Vector(vector) => ("interrupt", u64::from(vector.vector)),
            Retired::Memory { ram, .. } => ("memory", ram.bytes()),
        };
        RetiredInfo {
            what,
            vm: self.vm.to_string(),
            value,
            why: self.why.to_string(),
        }
    }
}
