// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a device or IOMMU that did not stop has cost.
//!
//! **Principle.** What cannot be proven quiet is kept and listed, and not used again until it is: this is
//! where it is kept. The record owns the thing, so that no other code can come by it.
//! [`crate::system::System::retry_retired`] asks again and again for the proof that was missing, less and less
//! often; so does a reset of the parent.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;

use crate::base::id::VdevId;
use crate::dma::attachment::RetiredAttachment;
use crate::dma::ioas::IoAddressSpace;
use crate::memory::frames::GuestGone;
use crate::memory::ram::GuestRam;
use crate::monitor::info::RetiredInfo;
use crate::vdev::interrupt::LostVector;
use crate::vdev::parent::VdevModel;

/// A slice whose queue did not stop, with the model that can be asked again.
pub struct StuckSlice(pub(crate) Box<dyn VdevModel>);

impl fmt::Debug for StuckSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StuckSlice")
    }
}

/// One thing that is not used again before its end is proven.
#[derive(Debug)]
pub struct Retirement {
    /// Name of the VM it belonged to.
    pub vm: String,
    /// Why.
    pub why: String,
    /// The thing.
    pub what: Retired,
    /// Since when, in nanoseconds since boot.
    pub since_ns: u64,
    /// How often the proof was asked for again.
    pub tries: u32,
}

/// When what was retired is asked for its proof again: soon at first, then half as often each time.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) due_ns: u64,
    pause_ns: u64,
}

impl Retry {
    /// The first pause, in nanoseconds.
    pub(crate) const FIRST_NS: u64 = 10_000_000;
    /// The longest. An IOMMU that does not answer may take a second of each try.
    pub(crate) const LAST_NS: u64 = 60_000_000_000;

    /// Something was retired just now, or came back: it is worth asking soon.
    pub(crate) fn soon(now_ns: u64) -> Self {
        Self { due_ns: now_ns.saturating_add(Self::FIRST_NS), pause_ns: Self::FIRST_NS }
    }

    /// A try was in vain.
    pub(crate) fn later(&mut self, now_ns: u64) {
        self.pause_ns = self.pause_ns.saturating_mul(2).min(Self::LAST_NS);
        self.due_ns = now_ns.saturating_add(self.pause_ns);
    }
}

/// What was retired.
#[derive(Debug)]
pub enum Retired {
    /// A PASID, and with it its address space.
    Attachment {
        /// Name of the parent.
        parent: String,
        /// The attachment.
        attachment: RetiredAttachment,
        /// Its queue, where that is what would not stop.
        slice: Option<StuckSlice>,
    },
    /// A slice of a parent that is used without an IOMMU: it may still reach the RAM.
    Untranslated {
        /// Name of the parent.
        parent: String,
        /// The vdev.
        vdev: VdevId,
        /// Its queue.
        slice: Option<StuckSlice>,
        /// What it may reach.
        ram: Arc<GuestRam>,
    },
    /// An interrupt vector.
    Vector(LostVector),
    /// An I/O address space whose table could not be destroyed.
    Space(Arc<IoAddressSpace>),
    /// RAM that a device may still reach, directly or through one of the address spaces.
    Memory {
        /// The RAM.
        ram: Arc<GuestRam>,
        /// The vCPUs, at least, are gone.
        gone: GuestGone,
    },
}

impl Retirement {
    /// A new record.
    pub(crate) fn new(vm: String, why: String, what: Retired, since_ns: u64) -> Self {
        Self { vm, why, what, since_ns, tries: 0 }
    }

    pub(crate) fn info(&self) -> RetiredInfo {
        let (what, value) = match &self.what {
            Retired::Attachment { attachment, .. } => ("pasid", u64::from(attachment.pasid.value())),
            Retired::Untranslated { vdev, .. } => ("vdev", u64::from(vdev.0)),
            Retired::Vector(vector) => ("interrupt", u64::from(vector.vector().vector)),
            Retired::Space(space) => ("ioas", u64::from(space.id().0)),
            Retired::Memory { ram, .. } => ("memory", ram.bytes()),
        };
        RetiredInfo {
            what: what.into(),
            vm: self.vm.to_string(),
            value,
            why: self.why.to_string(),
            since_ns: self.since_ns,
            tries: self.tries,
        }
    }
}
