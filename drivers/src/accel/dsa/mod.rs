// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel Data Streaming Accelerator as a parent, and its slices as vdevs.
//!
//! **Principle.** The hypervisor owns everything of the device but one page per work queue. A vdev of type
//! `dsa-dwq` is one dedicated work queue: its portal page is mapped into the guest, its PASID is set by
//! the hypervisor in the queue's configuration (what a descriptor says about PASIDs is ignored by the
//! device for such queues), and its interrupts are let through only with that PASID. One of type `dsa-swq` is a share
//! of a shared work queue: its portal is trapped, and each descriptor is checked and gets the vdev's PASID. To the guest
//! both are a device with one dedicated queue. BAR0 of the guest is
//! a model (`vdev`); what the guest writes there never reaches the device as it is.
//!
//! | module | subject |
//! |---|---|
//! | [`registers`] | offsets and bits, with the specification's names |
//! | [`commands`] | command codes and errors |
//! | `capabilities` | what the device can do, checked |
//! | [`partition`] | sharing out of queue entries |
//! | `survey` | what can be told without changing anything |
//! | `bring_up` | bring-up and recovery |
//! | `access`, `device` | who may touch the registers; queue programming |
//! | `slot`, `dispatch` | commands on queues, one after another |
//! | `queue` | queues, and who has each |
//! | `lease`, `dedicated`, `shared` | the right to a part of the device; to a whole queue; to a share of one |
//! | `share`, `descriptor` | the queue that is shared; what guests submit to it |
//! | `pieces` | the same without an IOMMU, at host addresses |
//! | `interrupts`, `errors` | MSI-X entries, events; what the device reports of errors |
//! | `parent` | the [`Parent`](pasidon_kernel::vdev::parent::Parent) made of all that |
//! | `vdev` | what a guest sees |
//!
//! Source: Intel DSA Architecture Specification 341204-006; Intel security advisory INTEL-SA-01084.

use alloc::string::String;
use alloc::sync::Arc;

use pasidon_kernel::irq::host::Host;

use crate::memory::DmaMemory;
use crate::pci::Function;

mod access;
mod bring_up;
mod capabilities;
pub mod commands;
mod dedicated;
mod descriptor;
mod device;
mod dispatch;
mod errors;
mod interrupts;
mod lease;
mod parent;
pub mod partition;
mod pieces;
mod queue;
pub mod registers;
mod share;
mod shared;
mod slot;
mod survey;
mod vdev;

#[cfg(test)]
pub(crate) mod tests;

pub use capabilities::Capabilities;
pub use descriptor::{DESCRIPTOR_BYTES, Submission};
pub use parent::DsaParent;
pub use partition::Partition;
pub use share::{Enqueue, Store};
pub use survey::{Survey, check_portals, survey};

/// Name of the type of a dedicated work queue.
pub const TYPE_DWQ: &str = "dsa-dwq";

/// Name of the type of a share of a shared work queue.
pub const TYPE_SWQ: &str = "dsa-swq";

/// Longest time a command may take, unless the options say otherwise, in nanoseconds.
pub const COMMAND_DEADLINE_NS: u64 = 1_000_000_000;

/// What [`DsaParent::new`] needs.
pub struct Setup<R, C> {
    /// Name in the configuration: `dsa0`.
    pub name: String,
    /// The PCI function, owned by this driver from now on.
    pub function: Function<C>,
    /// All of its BAR0.
    pub registers: R,
    /// For deadlines.
    pub host: Arc<dyn Host>,
    /// What sizes the configuration wants.
    pub partition: Partition,
    /// How descriptors of trapped types get to it.
    pub sending: Sending,
    /// For completion records.
    pub memory: Arc<dyn DmaMemory>,
    /// Settings.
    pub options: Options,
}

/// How descriptors of trapped types get to the device, where the processor can do that.
pub enum Sending {
    /// Behind an IOMMU, each with the PASID of its vdev.
    Tagged(Option<Arc<dyn Enqueue>>),
    /// Without an IOMMU, at host addresses.
    Untranslated(Option<Arc<dyn Store>>),
}

/// Settings of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Map portals into guests even where the silicon is not safe for that (INTEL-SA-01084).
    pub allow_unsafe_portals: bool,
    /// Longest time a command may take, in nanoseconds.
    pub command_deadline_ns: u64,
    /// Merge stores of 8 bytes to a trapped portal to one of 64, as what lies before a device does where processors
    /// have none of these.
    pub merge_stores: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow_unsafe_portals: false, command_deadline_ns: COMMAND_DEADLINE_NS, merge_stores: false }
    }
}

/// Which part the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silicon {
    /// 8086:0b25 (Sapphire Rapids, Emerald Rapids): not safe for untrusted direct submission.
    SapphireRapids,
    /// 8086:11fb (Granite Rapids D): safe.
    GraniteRapidsD,
}

impl Silicon {
    /// Intel.
    pub const VENDOR: u16 = 0x8086;
    /// Device ID of Sapphire Rapids and Emerald Rapids; also what guests see.
    pub const DEVICE_SAPPHIRE_RAPIDS: u16 = 0x0b25;
    /// Device ID of Granite Rapids D.
    pub const DEVICE_GRANITE_RAPIDS_D: u16 = 0x11fb;

    /// By PCI IDs; `None` for what this driver does not drive.
    pub const fn of(vendor: u16, device: u16) -> Option<Self> {
        match (vendor, device) {
            (Self::VENDOR, Self::DEVICE_SAPPHIRE_RAPIDS) => Some(Self::SapphireRapids),
            (Self::VENDOR, Self::DEVICE_GRANITE_RAPIDS_D) => Some(Self::GraniteRapidsD),
            _ => None,
        }
    }

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SapphireRapids => "DSA of Sapphire Rapids or Emerald Rapids",
            Self::GraniteRapidsD => "DSA of Granite Rapids D",
        }
    }

    /// Whether a portal may be mapped into a guest without an explicit opt-in.
    pub const fn safe_portals(self) -> bool {
        matches!(self, Self::GraniteRapidsD)
    }
}
