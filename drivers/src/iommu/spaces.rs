// SPDX-License-Identifier: MIT OR Apache-2.0
//! The I/O page tables of the machine over all units of one make: what [`Iommu`](pasidon_kernel::iommu::Iommu) does
//! alike on every make.
//!
//! **Principle.** Tables are shared by all units, and each unit answers for its own caches ([`IommuUnit`]). A page
//! that left a tree is freed only after every unit that may know it has forgotten it.
//! **Invariant.** An invalidation that fails leaves its mark: the next one on that table covers all of it, and
//! nothing is freed before that has worked.
//!
//! **Locks.** The tables' lock is taken before a unit's, and both are held while a unit carries out commands.

use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova};
use pasidon_kernel::iommu::TableId;
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;
use spin::Mutex;

use super::attachments::AttachFailed;
use super::domains::{Domain, DomainId, Domains};
use super::page_table::{Format, Geometry, MapFailed, PageTable, Removed};
use crate::memory::DmaMemory;
use crate::table_memory::TableMemory;

/// One unit. A device is called what it is called there. Every method returns when the unit has confirmed.
pub(super) trait IommuUnit {
    /// The entries of the page tables that it walks.
    type Entries: Format;

    /// Joins a tag of a claimed device to a table.
    fn attach(
        &self,
        device: u32,
        tag: Pasid,
        domain: DomainId,
        table: &PageTable<Self::Entries>,
    ) -> Result<(), AttachFailed>;

    /// Parts a tag from its table, and forgets the whole domain. On a refusal the unit or the device may still use
    /// the old table: the tag stays taken, and the call may be repeated. Returns the domain it led to.
    fn detach(&self, device: u32, tag: Pasid) -> Result<DomainId, Refusal>;

    /// Lets the unit see a new mapping.
    fn publish(&self, domain: DomainId, start: u64, len: u64) -> Result<(), Refusal>;

    /// Forgets the translations of a range of a domain, and of the devices with TLBs of their own that are
    /// attached to it.
    fn forget_range(
        &self,
        domain: DomainId,
        start: u64,
        len: u64,
        device_tlbs: impl Iterator<Item = (u32, Pasid)>,
    ) -> Result<(), Refusal>;

    /// Whether a device was claimed with a TLB of its own.
    fn has_device_tlb(&self, device: u32) -> bool;

    /// Whether the tag is taken: attached, or ended without the unit's confirmation.
    fn is_taken(&self, device: u32, tag: Pasid) -> bool;

    /// Commands handed over so far.
    fn commands_issued(&self) -> u64;
}

/// A device, by the unit that it is behind and what it is called there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) unit: usize,
    pub(super) device: u32,
}

/// All page tables, and the units that walk them.
pub(super) struct Spaces<U, F, M> {
    pub(super) units: Vec<U>,
    memory: TableMemory<M>,
    geometry: Geometry<F>,
    domains: Mutex<Domains<F>>,
}

impl<F: Format, U: IommuUnit<Entries = F>, M: DmaMemory> Spaces<U, F, M> {
    /// No tables yet. `last_domain` is the highest identifier that every unit has.
    pub(super) fn new(
        units: Vec<U>,
        memory: TableMemory<M>,
        geometry: Geometry<F>,
        last_domain: DomainId,
    ) -> Self {
        Self {
            domains: Mutex::new(Domains::new(last_domain, units.len())),
            units,
            memory,
            geometry,
        }
    }

    /// Number of page tables.
    pub(super) fn len(&self) -> usize {
        self.domains.lock().len()
    }

    pub(super) fn create_table(&self) -> Result<TableId, Refusal> {
        self.domains
            .lock()
            .create(|| PageTable::new(&self.memory, self.geometry))
    }

    pub(super) fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        let mut domains = self.domains.lock();
        let domain = domains.get(table)?;
        let failed = match domain.stage.map(&self.memory, iova, host, len, writable) {
            Ok(()) => match self.publish(domain, iova.0, len) {
                Ok(()) => return Ok(()),
                Err(refusal) => MapFailed {
                    refusal,
                    removed: domain.stage.unmap(&self.memory, iova, len)?,
                },
            },
            Err(failed) => failed,
        };
        // What the roll-back took out may have been used meanwhile. Where the units cannot be made to
        // forget it, the domain stays marked, and the next unmap has to make up for it.
        if let Err(refusal) = self.forget_removed(domain, iova.0, len, failed.removed) {
            log::error!("{refusal}");
        }
        Err(failed.refusal)
    }

    pub(super) fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal> {
        let mut domains = self.domains.lock();
        let domain = domains.get(table)?;
        let removed = domain.stage.unmap(&self.memory, iova, len)?;
        self.forget_removed(domain, iova.0, len, removed)
    }

    pub(super) fn destroy_table(&self, table: TableId) -> Result<(), Refusal> {
        // The last detach invalidated the whole domain on every unit that knew it.
        let domain = self.domains.lock().remove(table)?;
        for page in domain.limbo {
            self.memory.free(page, 1);
        }
        domain.stage.destroy(&self.memory);
        Ok(())
    }

    pub(super) fn attach(&self, place: Place, tag: Pasid, table: TableId) -> Result<(), Refusal> {
        let Place { unit: number, device } = place;
        let unit = &self.units[number];
        let mut domains = self.domains.lock();
        let domain = domains.get(table)?;
        let (kept, result) = match unit.attach(device, tag, domain.id, &domain.stage) {
            Ok(()) => (true, Ok(())),
            Err(failed) => (failed.tag_kept, Err(failed.refusal)),
        };
        if kept {
            domain.attached(number, device, tag, unit.has_device_tlb(device));
        }
        result
    }

    pub(super) fn detach(&self, place: Place, tag: Pasid) -> Result<(), Refusal> {
        let Place { unit, device } = place;
        let mut domains = self.domains.lock();
        let id = self.units[unit].detach(device, tag)?;
        if let Some(domain) = domains.by_id(id) {
            domain.detached(unit, device, tag);
        }
        Ok(())
    }

    pub(super) fn may_be_attached(&self, place: Place, tag: Pasid) -> bool {
        self.units[place.unit].is_taken(place.device, tag)
    }

    pub(super) fn commands_issued(&self) -> u64 {
        self.units.iter().map(U::commands_issued).sum()
    }

    /// Makes all units forget a range of a table, then frees the pages that left the tree. Until that
    /// has worked they are kept.
    fn forget_removed(
        &self,
        domain: &mut Domain<F>,
        start: u64,
        len: u64,
        removed: Removed,
    ) -> Result<(), Refusal> {
        domain.limbo.extend(removed.pages);
        if removed.changed || domain.stale {
            let (start, len) = if domain.stale {
                (0, 1 << self.geometry.address_bits)
            } else {
                (start, len)
            };
            domain.stale = true;
            for (number, unit) in self.units.iter().enumerate() {
                if domain.is_on(number) {
                    unit.forget_range(domain.id, start, len, domain.device_tlbs(number))?;
                }
            }
            domain.stale = false;
        }
        for page in domain.limbo.drain(..) {
            self.memory.free(page, 1);
        }
        Ok(())
    }

    /// Lets all units see a new mapping.
    fn publish(&self, domain: &Domain<F>, start: u64, len: u64) -> Result<(), Refusal> {
        self.units
            .iter()
            .enumerate()
            .filter(|(number, _)| domain.is_on(*number))
            .try_for_each(|(_, unit)| unit.publish(domain.id, start, len))
    }
}
