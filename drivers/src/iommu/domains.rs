// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page tables of the machine, each with the identifier under which every unit caches it.
//!
//! **Invariant.** A domain identifier belongs to one page table for as long as a unit may hold something
//! of it: a table is removed only when no attachment is left, and the last detach invalidated the domain.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::TableId;
use pasidon_kernel::dma::pasid::Pasid;

use crate::sparse::Sparse;

/// What a unit tags its caches of one page table with: a domain identifier, an ASID.
pub(super) type DomainId = u16;

/// A page table and who uses it.
pub(super) struct Domain<T> {
    pub(super) id: DomainId,
    pub(super) table: T,
    /// Number of attachments on each unit.
    users: Vec<usize>,
    /// Attachments of devices with TLBs of their own: unit, what the device is called there, tag.
    device_tlbs: BTreeSet<(usize, u32, Pasid)>,
    /// An invalidation failed: units may hold what is no longer mapped.
    pub(super) stale: bool,
    /// Pages taken out of the tree that a unit may still read.
    pub(super) limbo: Vec<HostPhys>,
}

impl<T> Domain<T> {
    /// Number of attachments.
    pub(super) fn users(&self) -> usize {
        self.users.iter().sum()
    }

    /// Whether some attachment is on the unit.
    pub(super) fn is_on(&self, unit: usize) -> bool {
        self.users[unit] != 0
    }

    /// Attachments of devices with TLBs of their own, on one unit.
    pub(super) fn device_tlbs(&self, unit: usize) -> impl Iterator<Item = (u32, Pasid)> {
        self.device_tlbs.iter().filter(move |(of, ..)| *of == unit).map(|&(_, device, pasid)| (device, pasid))
    }

    /// Counts an attachment.
    pub(super) fn attached(&mut self, unit: usize, device: u32, pasid: Pasid, device_tlb: bool) {
        self.users[unit] += 1;
        if device_tlb {
            self.device_tlbs.insert((unit, device, pasid));
        }
    }

    /// Counts it off.
    pub(super) fn detached(&mut self, unit: usize, device: u32, pasid: Pasid) {
        self.users[unit] -= 1;
        self.device_tlbs.remove(&(unit, device, pasid));
    }
}

/// All of them. The outside knows a page table by its domain identifier.
pub(super) struct Domains<T> {
    entries: Sparse<Domain<T>>,
    /// The last identifier given out: they go round, so that one is reused as late as possible.
    recent: DomainId,
    /// Identifiers that every unit has are 1 to this. 0 is reserved.
    limit: DomainId,
    units: usize,
}

impl<T> Domains<T> {
    pub(super) fn new(limit: DomainId, units: usize) -> Self {
        let limit = if cfg!(feature = "few-domains") { 2 } else { limit };
        Self { entries: Sparse::default(), recent: 0, limit, units }
    }

    /// Number of tables.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a free identifier for a table that `make` makes.
    pub(super) fn create(&mut self, make: impl FnOnce() -> Result<T, Refusal>) -> Result<TableId, Refusal> {
        let free = |id: &DomainId| self.entries.get(usize::from(*id)).is_none();
        let after = (self.recent..self.limit).map(|before| before + 1);
        let id = after.chain(1..=self.recent).find(free).ok_or_else(|| {
            Refusal::new(
                "I/O page table",
                format!("all {} domain identifiers are in use", self.limit),
                "end a VM first",
            )
        })?;
        let domain = Domain {
            id,
            table: make()?,
            users: vec![0; self.units],
            device_tlbs: BTreeSet::new(),
            stale: false,
            limbo: Vec::new(),
        };
        self.recent = id;
        self.entries.insert(id.into(), domain);
        Ok(TableId(id.into()))
    }

    /// A table by the name the outside has for it.
    pub(super) fn get(&mut self, table: TableId) -> Result<&mut Domain<T>, Refusal> {
        DomainId::try_from(table.0)
            .ok()
            .and_then(|id| self.entries.get_mut(id.into()))
            .ok_or_else(|| Refusal::new(format!("I/O page table {}", table.0), "does not exist", ""))
    }

    /// A table by its identifier.
    pub(super) fn by_id(&mut self, id: DomainId) -> Option<&mut Domain<T>> {
        self.entries.get_mut(id.into())
    }

    /// Takes out a table that is attached nowhere.
    pub(super) fn remove(&mut self, table: TableId) -> Result<Domain<T>, Refusal> {
        let domain = self.get(table)?;
        let (id, users) = (domain.id, domain.users());
        if users == 0
            && let Some(domain) = self.entries.remove(id.into())
        {
            return Ok(domain);
        }
        Err(Refusal::new(
            format!("I/O page table {}", table.0),
            format!("attached {users} times"),
            "detach it first",
        ))
    }
}
