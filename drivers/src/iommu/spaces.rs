// SPDX-License-Identifier: MIT OR Apache-2.0
//! All units of one make behind the kernel's [`Iommu`], with the I/O page tables that they share.
//!
//! **Principle.** Tables are shared by all units, and each unit answers for its own caches ([`IommuUnit`]). A page
//! that left a tree is freed only after every unit that may know it has forgotten it.
//! **Invariant.** An invalidation that fails on a unit is asked of the others all the same, and leaves its mark: the next
//! one on that table covers all of it, and nothing is freed before that has worked on every unit.
//!
//! **Locks.** The tables' lock is taken before a unit's, and both are held while a unit carries out commands, each of
//! which is bounded in time. So nothing here is called from an interrupt handler but [`Iommu::drain_faults`], which
//! waits for no lock.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use pasidon_kernel::base::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::fault::Noted;
use pasidon_kernel::dma::iommu::{AttachFailed, Iommu, IommuCapabilities, TableId};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::memory::page_table::{Geometry, PageTable, Removed};
use spin::Mutex;

use super::domains::{Domain, Domains};
use super::unit::{DeviceTlb, IommuUnit, Place, Topology};
use crate::table_memory::TableMemory;

/// A page table that a unit walks.
type TableOf<U> = PageTable<<U as IommuUnit>::Entries, TableMemory<<U as IommuUnit>::Memory>>;

/// All units of one make, and all page tables that they walk.
pub struct Spaces<U: IommuUnit> {
    pub(super) units: Vec<U>,
    pub(super) topology: U::Topology,
    capabilities: IommuCapabilities,
    memory: TableMemory<U::Memory>,
    geometry: Geometry<U::Entries>,
    domains: Mutex<Domains<TableOf<U>>>,
}

impl<U: IommuUnit> Spaces<U> {
    /// No tables yet. Offers what every unit has.
    pub(super) fn over(
        units: Vec<U>,
        topology: U::Topology,
        memory: TableMemory<U::Memory>,
        geometry: Geometry<U::Entries>,
    ) -> Self {
        let least = |of: fn(&U) -> u32| units.iter().map(of).min().unwrap_or(0);
        let last_domain = units.iter().map(U::last_domain).min().unwrap_or(0);
        Self {
            capabilities: IommuCapabilities {
                pasid_bits: least(U::pasid_bits).min(Pasid::BITS) as u8,
                address_bits: geometry.address_bits,
                largest_page: geometry.largest_page(),
                lacks_dirty_tracking: units.iter().find_map(U::lacks_dirty_tracking),
            },
            domains: Mutex::new(Domains::new(last_domain, units.len())),
            units,
            topology,
            memory,
            geometry,
        }
    }

    /// Takes every unit over from the firmware. When it returns `Ok`, everything that the units confine is blocked
    /// until its device is claimed: DMA, and where they confine them interrupt messages. Called once, on one
    /// processor, with interrupts off.
    ///
    /// # Errors
    /// When a unit does not do in time what it is told; nothing may then be taken for blocked.
    pub fn take_over(&self) -> Result<(), Refusal> {
        self.units.iter().try_for_each(U::take_over)
    }

    /// The units, in the order of the firmware's table.
    pub fn units(&self) -> &[U] {
        &self.units
    }

    /// What the firmware says of units and devices.
    pub fn topology(&self) -> &U::Topology {
        &self.topology
    }

    /// [`Iommu::claim`] for a device that may use ATS: its own TLB is then invalidated too. Its driver
    /// turns ATS on only after this returned.
    ///
    /// # Errors
    /// When no unit is on its way to memory, it may not use ATS, it is claimed already, or the unit does not confirm.
    pub fn claim_with_device_tlb(&self, requester: Requester, tlb: DeviceTlb) -> Result<(), Refusal> {
        self.claim_device(requester, Some(tlb))
    }

    fn claim_device(&self, requester: Requester, tlb: Option<DeviceTlb>) -> Result<(), Refusal> {
        let Place { unit, device } = self.topology.claimable(requester, tlb.is_some())?;
        self.units[unit].claim(device, tlb).map_err(|refusal| refusal.within(requester))
    }

    /// Makes all units forget a range of a table, then frees the pages that left the tree. Until that
    /// has worked they are kept.
    fn forget_removed(
        &self,
        domain: &mut Domain<TableOf<U>>,
        start: u64,
        len: u64,
        removed: Removed,
    ) -> Result<(), Refusal> {
        domain.limbo.extend(removed.pages);
        if removed.changed || domain.stale {
            let (start, len) = if domain.stale { (0, self.geometry.end()) } else { (start, len) };
            domain.stale = true;
            let mut forgotten = Ok(());
            for (number, unit) in self.units.iter().enumerate() {
                if domain.is_on(number) {
                    // One that does not answer keeps none of the others from forgetting.
                    let here = unit.forget_range(domain.id, start, len, domain.device_tlbs(number));
                    forgotten = forgotten.and(here);
                }
            }
            forgotten?;
            domain.stale = false;
        }
        domain.table.free(domain.limbo.drain(..));
        Ok(())
    }

    /// Lets all units see a new mapping.
    fn publish(&self, domain: &Domain<TableOf<U>>, start: u64, len: u64) -> Result<(), Refusal> {
        self.units
            .iter()
            .enumerate()
            .filter(|(number, _)| domain.is_on(*number))
            .try_for_each(|(_, unit)| unit.publish(domain.id, start, len))
    }
}

impl<U: IommuUnit> Iommu for Spaces<U> {
    fn name(&self) -> &str {
        U::NAME
    }

    fn capabilities(&self) -> IommuCapabilities {
        self.capabilities
    }

    fn create_table(&self) -> Result<TableId, Refusal> {
        self.domains.lock().create(|| PageTable::new(self.memory.clone(), self.geometry))
    }

    fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        let Range { start, end } = U::INTERRUPT_RANGE;
        if iova.0 < end && start < iova.0.saturating_add(len) {
            return Err(Refusal::new(
                format!("I/O page table: {iova} + {len:#x}"),
                format!("overlaps the interrupt range {start:#x}..{end:#x}, which is never translated"),
                "leave that hole in the guest's memory map",
            ));
        }
        let mut domains = self.domains.lock();
        let domain = domains.get(table)?;
        domain.table.map(iova.0, host, len, writable)?;
        let Err(refusal) = self.publish(domain, iova.0, len) else {
            return Ok(());
        };
        // What is taken out again may have been used meanwhile. Where the units cannot be made to forget it, the domain
        // stays marked, and the next unmap has to make up for it.
        let removed = domain.table.unmap(iova.0, len)?;
        if let Err(refusal) = self.forget_removed(domain, iova.0, len, removed) {
            log::error!("{refusal}");
        }
        Err(refusal)
    }

    fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal> {
        let mut domains = self.domains.lock();
        let domain = domains.get(table)?;
        let removed = domain.table.unmap(iova.0, len)?;
        self.forget_removed(domain, iova.0, len, removed)
    }

    fn destroy_table(&self, table: TableId) -> Result<(), Refusal> {
        // The last detach invalidated the whole domain on every unit that knew it.
        let Domain { mut table, limbo, .. } = self.domains.lock().remove(table)?;
        table.free(limbo);
        table.destroy();
        Ok(())
    }

    fn confines(&self, requester: Requester) -> bool {
        self.topology.place(requester).is_ok()
    }

    fn claim(&self, requester: Requester) -> Result<(), Refusal> {
        self.claim_device(requester, None)
    }

    fn attach(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed> {
        let Place { unit: number, device } = self.topology.place(requester)?;
        let unit = &self.units[number];
        let mut domains = self.domains.lock();
        let domain = domains.get(table).map_err(|refusal| refusal.within(requester))?;
        let attached = unit.attach(device, pasid, domain.id, domain.table.top());
        if attached.as_ref().err().is_none_or(|failed| failed.tag_kept) {
            domain.attached(number, device, pasid, unit.has_device_tlb(device));
        }
        attached.map_err(|failed| failed.within(requester))
    }

    fn replace(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), AttachFailed> {
        let Place { unit: number, device } = self.topology.place(requester)?;
        let unit = &self.units[number];
        let mut domains = self.domains.lock();
        let domain = domains.get(table).map_err(|refusal| refusal.within(requester))?;
        let replaced = unit.replace(device, pasid, domain.id, domain.table.top());
        if replaced.as_ref().err().is_none_or(|failed| failed.tag_kept) {
            domain.attached(number, device, pasid, unit.has_device_tlb(device));
        }
        let before = replaced.map_err(|failed| failed.within(requester))?;
        if let Some(domain) = domains.by_id(before) {
            domain.detached(number, device, pasid);
        }
        Ok(())
    }

    fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        let Place { unit, device } = self.topology.place(requester)?;
        let mut domains = self.domains.lock();
        let parted = self.units[unit].detach(device, pasid).map_err(|refusal| refusal.within(requester))?;
        for id in parted.domains() {
            if let Some(domain) = domains.by_id(id) {
                domain.detached(unit, device, pasid);
            }
        }
        Ok(())
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        let units = self.units.iter();
        units.fold(Drained::Empty, |left, unit| left.and(unit.drain_faults(sink)))
    }

    fn commands_issued(&self) -> u64 {
        self.units.iter().map(U::commands_issued).sum()
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let dirty = match self.capabilities.lacks_dirty_tracking {
            Some(lack) => format!("not marked ({lack})"),
            None => "marked, not read".to_string(),
        };
        let mut lines =
            vec![("page tables", format!("{}", self.domains.lock().len())), ("dirty pages", dirty)];
        lines.extend(self.units.iter().flat_map(U::describe));
        lines.extend(self.topology.describe());
        lines
    }
}
