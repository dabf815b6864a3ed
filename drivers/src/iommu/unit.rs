// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a make of IOMMU brings: its unit, and what the firmware says of who is behind which.
//!
//! **Principle.** A make knows its registers, its tables and its order of invalidations. What all makes do alike is
//! [`Spaces`](super::Spaces), which asks for nothing but what is here.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::fault::Noted;
use pasidon_kernel::dma::iommu::AttachFailed;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::memory::page_table::{Format, Top};

use super::attachments::Parted;
use super::domains::DomainId;
use crate::memory::DmaMemory;

/// One unit. A device is called what it is called there. Every method returns when the unit has confirmed.
pub trait IommuUnit: Send + Sync {
    /// Short name of the make, for people: `vtd`.
    const NAME: &'static str;
    /// IOVAs that never reach a page table, because they are for interrupts. Nothing may be mapped there.
    const INTERRUPT_RANGE: Range<u64>;

    /// What its tables and queues lie in.
    type Memory: DmaMemory;
    /// The entries of the page tables that it walks; a leaf says whether it may be written through.
    type Entries: Format<Attributes = bool> + Send + Sync;
    /// Where devices are.
    type Topology: Topology;

    /// Width of the PASIDs that a device gets, in bits.
    fn pasid_bits(&self) -> u32;

    /// The largest identifier that it can tag the cache of a table with.
    fn last_domain(&self) -> DomainId;

    /// What it lacks to mark the pages that devices write to, as a register says it.
    fn lacks_dirty_tracking(&self) -> Option<&'static str>;

    /// Takes the unit over from the firmware. When it returns `Ok`, everything that the unit confines is blocked
    /// until it is claimed. Called once, on one processor, with interrupts off.
    ///
    /// # Errors
    /// When the unit does not do in time what it is told; nothing may then be taken for blocked.
    fn take_over(&self) -> Result<(), Refusal>;

    /// Takes a device: PASIDs on and none attached, so that all its DMA is still blocked. With `device_tlb` it may
    /// ask for translations (ATS).
    ///
    /// # Errors
    /// When it is claimed already, there is no memory for its tables, or the unit does not confirm; it stays blocked.
    fn claim(&self, device: u32, device_tlb: Option<DeviceTlb>) -> Result<(), Refusal>;

    /// Joins a tag of a claimed device to a table.
    ///
    /// # Errors
    /// When the device is not claimed, the tag is in use, or the unit does not confirm.
    fn attach(&self, device: u32, tag: Pasid, domain: DomainId, table: Top) -> Result<(), AttachFailed>;

    /// Leads a tag to another table. Returns the domain that it led to.
    ///
    /// # Errors
    /// As [`Iommu::replace`](pasidon_kernel::dma::iommu::Iommu::replace).
    fn replace(
        &self,
        device: u32,
        tag: Pasid,
        domain: DomainId,
        table: Top,
    ) -> Result<DomainId, AttachFailed>;

    /// Parts a tag from its table, and forgets the whole domain. Returns what it led to.
    ///
    /// # Errors
    /// When there is no such attachment, or the unit or the device does not confirm. It may still use the old table: the
    /// tag stays taken, and the call may be repeated.
    fn detach(&self, device: u32, tag: Pasid) -> Result<Parted, Refusal>;

    /// Lets the unit see a new mapping.
    ///
    /// # Errors
    /// When the unit does not confirm.
    fn publish(&self, domain: DomainId, start: u64, len: u64) -> Result<(), Refusal>;

    /// Forgets the translations of a range of a domain, and of the devices with TLBs of their own that are
    /// attached to it.
    ///
    /// # Errors
    /// When the unit or a device does not confirm: they may still use what was forgotten.
    fn forget_range(
        &self,
        domain: DomainId,
        start: u64,
        len: u64,
        device_tlbs: impl Iterator<Item = (u32, Pasid)>,
    ) -> Result<(), Refusal>;

    /// Whether a device was claimed with a TLB of its own.
    fn has_device_tlb(&self, device: u32) -> bool;

    /// Reads and clears recorded faults, as [`Iommu::drain_faults`](pasidon_kernel::dma::iommu::Iommu::drain_faults).
    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained;

    /// Commands handed over so far.
    fn commands_issued(&self) -> u64;

    /// For the monitor: name and value of what is worth knowing about it.
    fn describe(&self) -> Vec<(&'static str, String)>;
}

/// Where devices are, as the firmware's tables say it.
pub trait Topology: Send + Sync {
    /// The place of a device.
    ///
    /// # Errors
    /// When no unit is on its way to memory.
    fn place(&self, requester: Requester) -> Result<Place, Refusal>;

    /// The place of a device that is to be claimed, with a TLB of its own or without.
    ///
    /// # Errors
    /// When no unit is on its way to memory, the firmware uses the device, or does not let it have a TLB.
    fn claimable(&self, requester: Requester, device_tlb: bool) -> Result<Place, Refusal>;

    /// For the monitor: name and value of what is worth knowing beside the units.
    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// A device, by the unit that it is behind and what it is called there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of the unit, in the order of the firmware's table.
    pub unit: usize,
    /// What the device is called there: a requester ID, a StreamID.
    pub device: u32,
}

/// The TLB of a device that uses ATS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlb {
    /// Invalidate queue depth of the device's ATS capability, 1 to 32. Asked for by units that hand invalidations
    /// over at the device's pace.
    pub queue_depth: u8,
}
