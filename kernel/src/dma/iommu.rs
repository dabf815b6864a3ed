// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor needs from an IOMMU, whatever its make.
//!
//! **Contract.** Every method returns only when its effect is complete in the hardware: tables written,
//! caches invalidated, invalidations waited for. After [`Iommu::detach`] no DMA with that tag can reach
//! the old table. The cost of attach and detach does not depend on how many others are attached.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

use crate::base::addr::{HostPhys, Iova, Requester};
use crate::base::drained::Drained;
use crate::base::refusal::Refusal;
use crate::dma::fault::Noted;
use crate::dma::pasid::Pasid;

/// Names one I/O page table of a driver. Chosen by the driver, never reused while attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableId(pub u32);

/// What an IOMMU can do; read once at bring-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IommuCapabilities {
    /// Width of the PASIDs it understands, in bits (0: none).
    pub pasid_bits: u8,
    /// Width of the IOVAs it translates, in bits.
    pub address_bits: u8,
    /// Largest leaf it takes, in bytes.
    pub largest_page: u64,
    /// What its units lack to mark the pages that devices write to, as a register says it; `None` where all mark them.
    pub lacks_dirty_tracking: Option<&'static str>,
}

/// A tag was not joined to a table, or not to another one.
#[derive(Debug)]
pub struct AttachFailed {
    /// Why.
    pub refusal: Refusal,
    /// The IOMMU was told of it before it failed, or cannot tell: as far as anyone knows the tag reaches the table,
    /// until a detach has worked. Otherwise nothing is left of the attempt.
    pub tag_kept: bool,
}

impl AttachFailed {
    /// The same, its refusal seen from one level further out.
    pub fn within(self, outer: impl Display) -> Self {
        Self { refusal: self.refusal.within(outer), ..self }
    }
}

/// Refused before anything was written.
impl From<Refusal> for AttachFailed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, tag_kept: false }
    }
}

/// An IOMMU (or several behind one interface). All methods may be called from any processor.
pub trait Iommu: Send + Sync {
    /// Short name for people: `vtd`.
    fn name(&self) -> &str;

    /// What it can do.
    fn capabilities(&self) -> IommuCapabilities;

    /// Makes an empty I/O page table.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn create_table(&self) -> Result<TableId, Refusal>;

    /// Maps `len` bytes (page multiples) readable, and writable where `writable`. Uses the largest
    /// leaves that fit. The range must not be mapped yet.
    ///
    /// # Errors
    /// When part of the range is mapped, there is no memory for tables, or a unit does not confirm.
    fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal>;

    /// Removes a range, invalidates it on every attachment of the table, and waits.
    ///
    /// # Errors
    /// When a unit does not confirm, or a border lies inside of what was mapped in one piece: not every format of tables can
    /// take a large leaf apart while it is in use.
    fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal>;

    /// Frees a table.
    ///
    /// # Errors
    /// When it is attached anywhere.
    fn destroy_table(&self, table: TableId) -> Result<(), Refusal>;

    /// Whether it stands between a device and memory.
    fn confines(&self, requester: Requester) -> bool;

    /// Takes a device: its untagged DMA is blocked, its tagged DMA too until a PASID is attached.
    ///
    /// # Errors
    /// When no unit stands in front of it, the firmware uses it, it is claimed already, or the unit does not confirm.
    fn claim(&self, requester: Requester) -> Result<(), Refusal>;

    /// Joins tag and table for a claimed device.
    ///
    /// # Errors
    /// When the tag is in use on that device, or the IOMMU does not confirm.
    fn attach(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed>;

    /// Leads a tag that is attached to another table, while its device may be sending: each access meets the old table or
    /// the new one, and from the return on the new one only. None meets neither.
    ///
    /// # Errors
    /// When there is no such attachment, it leads to that table already, its last replacement was not confirmed, or the
    /// IOMMU does not confirm. Where the tag was kept ([`AttachFailed::tag_kept`]) it may reach both until a detach has
    /// worked.
    fn replace(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed>;

    /// Parts tag and table: entry cleared, PASID cache, IOTLB and device TLB invalidated and waited
    /// for. The device must not send with that tag any more.
    ///
    /// # Errors
    /// When there is no such attachment, or the IOMMU does not confirm.
    fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal>;

    /// Reads and clears which pages of a range devices have written to since the last time, as ranges for `sink`: what a
    /// migration copies again. A page that is written to while it is read is told now or the next time.
    ///
    /// # Errors
    /// When the hardware does not mark pages, or this driver does not read the marks; none does yet. Whoever needs to know
    /// pauses the vdevs and takes all that is mapped for written.
    fn take_dirty(
        &self,
        _table: TableId,
        iova: Iova,
        len: u64,
        _sink: &mut dyn FnMut(Iova, u64),
    ) -> Result<(), Refusal> {
        let why = match self.capabilities().lacks_dirty_tracking {
            Some(lack) => format!("the IOMMU does not mark what devices write to ({lack})"),
            None => {
                "the IOMMU marks what devices write to, but this version does not read the marks".to_string()
            }
        };
        let what = format!("I/O page table: dirty pages of {len:#x} bytes at {iova}");
        Err(Refusal::new(what, why, "pause the vdevs, and take all that is mapped for written"))
    }

    /// Reads and clears recorded faults, oldest first, and at most so many that a flood does not hold the
    /// caller for long. Called after the fault interrupt; waits for no lock that mapping holds.
    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained;

    /// Invalidation commands issued since bring-up (for `bench` and `top`).
    fn commands_issued(&self) -> u64;

    /// For the monitor: name and value of what is worth knowing (units, what they can do, who is claimed).
    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
