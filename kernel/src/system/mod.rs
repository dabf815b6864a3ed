// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole: parents, IOMMU, PASIDs, memory and VMs, and the operations that need several of them.
//!
//! **Principle.** Everything a monitor command or a guest's end comes down to is one method here, with
//! the order of a VM's life written out once. Nothing here knows how a processor or a device does it.
//!
//! **Locks.** Each protects one list, is held for a few steps, and never while a device, the IOMMU or the
//! architecture is waited for; the exception is one I/O address space's own lock, which only operations
//! on that address space take. A vCPU's exit path takes none of them.

mod definition;
mod departures;
mod life;
mod parents;
mod pause;
mod reclaim;
mod snapshot;
pub mod startup;
mod vdevs;
mod vectors;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64};

use spin::{Mutex, RwLock};

use crate::base::addr::Requester;
use crate::base::id::{VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::dma::iommu::Iommu;
use crate::dma::pasid::{NamespaceScope, Pasid, PasidNamespaces};
use crate::irq::RouteTable;
use crate::irq::host::Host;
use crate::irq::msi::MsiController;
use crate::memory::frames::Frames;
use crate::vdev::retired::{Retirement, Retry};
use crate::vdev::{Services, Vdev};
use crate::vm::VmEnd;

#[cfg(test)]
pub(crate) use definition::Definable;
pub use definition::Definitions;
use definition::Vms;
use departures::Leaving;
pub use departures::{Departed, Dismissal, PATIENCE_NS};
pub use life::Served;
use parents::ParentEntry;
pub use parents::{ParentOptions, ParentReport, check_confined};
pub use reclaim::{EndReport, ReclaimReport};
pub use vdevs::VdevName;

/// What the system is made of.
pub struct SystemParts {
    /// The machine.
    pub host: &'static dyn Host,
    /// The IOMMU, after bring-up.
    pub iommu: Option<&'static dyn Iommu>,
    /// What isolates interrupt messages, after bring-up: the IOMMU itself, or a device beside it.
    pub msi: Option<&'static dyn MsiController>,
    /// Physical memory.
    pub frames: &'static Frames,
    /// Hardware identifiers of the processors that take interrupts.
    pub cpus: Vec<u32>,
    /// The vectors that devices can be given on each of them.
    pub vectors: Range<u32>,
    /// Largest PASID to use; `None` for all that the IOMMU understands.
    pub last_pasid: Option<Pasid>,
    /// Whether PASIDs differ on the whole host, or on each device.
    pub pasid_scope: NamespaceScope,
}

/// The hypervisor's state.
pub struct System {
    services: Services,
    frames: &'static Frames,
    parents: Vec<ParentEntry>,
    vms: RwLock<Vms>,
    /// Whom a tag belongs to; retired ones stay, so that their faults have a name.
    tags: Mutex<BTreeMap<(Requester, Pasid), Arc<Vdev>>>,
    /// Vdevs that could not be told what happened to them, because their VM's devices were in use.
    untold: Mutex<BTreeSet<(VmId, VdevId)>>,
    /// Vdevs that their guests were asked to let go of.
    leaving: Mutex<Vec<Leaving>>,
    retired: Mutex<Vec<Retirement>>,
    /// VMs that are [`VmState::Held`](crate::vm::VmState::Held), and the ends that are not proven yet.
    held: Mutex<BTreeMap<VmId, VmEnd>>,
    /// When to look again at what is retired, and at who is held.
    retry: Mutex<Retry>,
    /// What was retired and has come back.
    revived: AtomicU64,
    next_vdev: AtomicU32,
    next_ioas: AtomicU32,
}

impl System {
    /// A system without parents and VMs.
    ///
    /// # Errors
    /// When the IOMMU understands no PASIDs.
    pub fn new(parts: SystemParts) -> Result<Self, Refusal> {
        let bits = parts
            .iommu
            .map_or(Pasid::BITS, |iommu| u32::from(iommu.capabilities().pasid_bits).min(Pasid::BITS));
        let widest = Pasid::new(((1u64 << bits) - 1) as u32);
        let widest = widest.ok_or_else(|| Refusal::new("PASID namespace", "no such width", ""))?;
        let last = parts.last_pasid.map_or(widest, |last| last.min(widest));
        Ok(Self {
            services: Services {
                host: parts.host,
                iommu: parts.iommu,
                msi: parts.msi,
                pasids: Mutex::new(PasidNamespaces::new(parts.pasid_scope, last)?),
                routes: RouteTable::new(parts.cpus, parts.vectors),
            },
            frames: parts.frames,
            parents: Vec::new(),
            vms: RwLock::default(),
            tags: Mutex::new(BTreeMap::new()),
            untold: Mutex::new(BTreeSet::new()),
            leaving: Mutex::new(Vec::new()),
            retired: Mutex::new(Vec::new()),
            held: Mutex::new(BTreeMap::new()),
            retry: Mutex::new(Retry::soon(0)),
            revived: AtomicU64::new(0),
            next_vdev: AtomicU32::new(1),
            next_ioas: AtomicU32::new(1),
        })
    }

    /// The interrupt routes: what interrupt handlers look up.
    pub fn routes(&self) -> &RouteTable {
        &self.services.routes
    }

    /// Why isolation is weaker than it should be; empty is what one wants.
    pub fn taints(&self) -> Vec<String> {
        let of = |entry: &ParentEntry| {
            let name = entry.parent.name();
            entry.options.taints().map(|taint| format!("{name}: {taint}")).collect::<Vec<_>>()
        };
        self.parents.iter().flat_map(of).collect()
    }

    /// What was retired.
    #[cfg(test)]
    pub(crate) fn retired(&self) -> spin::MutexGuard<'_, Vec<Retirement>> {
        self.retired.lock()
    }
}
