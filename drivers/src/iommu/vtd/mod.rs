// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel VT-d in scalable mode: a second-stage page table per PASID.
//!
//! **Principle.** The PASID entry joins a device's tag to a page table, and nothing else does: what has no
//! entry is blocked. All units of the machine stand behind one [`Vtd`], which shares the page tables
//! between them; a unit has its own root, context, PASID and interrupt tables and its own queue.
//!
//! **Locks.** The page tables' lock is taken before a unit's. Fault records have a lock of their own.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `dmar`, `scope` | which units there are, and whom each serves |
//! | `bring_up` | take-over from the firmware |
//! | `tables` | root, context and PASID tables |
//! | `second_stage` | page tables |
//! | `invalidation` | the queue, and getting past its errors |
//! | `interrupt_remapping` | who may raise which vector |
//! | `fault` | fault records in words |
//! | `unit` | the operations of one unit, in the right order |
//!
//! Source: Intel Virtualization Technology for Directed I/O, architecture specification.

pub mod dmar;
pub mod registers;
pub mod scope;

mod bring_up;
mod fault;
mod interrupt_remapping;
mod invalidation;
mod second_stage;
mod table_memory;
mod tables;
mod unit;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::fault::DmaFault;
use pasidon_kernel::host::Host;
use pasidon_kernel::iommu::{HostVector, Iommu, IommuCapabilities, RemappedInterrupt, TableId};
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;
use spin::Mutex;

use self::dmar::Dmar;
use self::scope::{Bridges, Coverage, DeviceSet};
use self::second_stage::{Geometry, MapFailed, Removed, SecondStage};
use self::table_memory::TableMemory;
use self::tables::DomainId;
use crate::memory::DmaMemory;
use crate::registers::Registers;

pub use self::invalidation::DeviceTlb;
pub use self::unit::Unit;

/// Where the unit's number starts in an interrupt handle; the entry's index is below.
const HANDLE_UNIT_SHIFT: u32 = 16;

/// All remapping units of the machine.
pub struct Vtd<R, M> {
    units: Vec<Unit<R, M>>,
    coverage: Coverage,
    reserved: Vec<ReservedRegion>,
    memory: TableMemory<M>,
    geometry: Geometry,
    capabilities: IommuCapabilities,
    /// Domain identifiers that every unit has: 1 to this. 0 is reserved.
    last_domain: DomainId,
    tables: Mutex<Tables>,
}

/// A region that the firmware says a device uses on its behalf (RMRR).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    /// First byte.
    pub base: HostPhys,
    /// Last byte.
    pub limit: HostPhys,
    /// The devices that use it.
    pub devices: DeviceSet,
}

/// The page tables, by domain identifier.
#[derive(Default)]
struct Tables {
    entries: BTreeMap<DomainId, Table>,
    last: DomainId,
}

struct Table {
    stage: SecondStage,
    /// Number of attachments on each unit.
    users: Vec<usize>,
    /// Attachments of devices with TLBs of their own: unit, routing ID, tag.
    device_tlbs: BTreeSet<(usize, u16, Pasid)>,
    /// An invalidation failed: units may hold what is no longer mapped.
    stale: bool,
    /// Pages taken out of the tree that a unit may still read.
    limbo: Vec<HostPhys>,
}

impl<R: Registers, M: DmaMemory> Vtd<R, M> {
    /// Finds out what the units can do and makes empty tables; writes no register. `x2apic`: interrupt
    /// destinations are 32-bit APIC identifiers. `bridges` reads the bus numbers behind a bridge from its
    /// configuration space. `map_registers` maps a window of registers (address, length), uncached.
    pub fn new(
        dmar: &Dmar,
        memory: Arc<M>,
        host: &'static dyn Host,
        x2apic: bool,
        bridges: Bridges<'_>,
        map_registers: &mut dyn FnMut(HostPhys, u64) -> R,
    ) -> Result<Self, Refusal> {
        if !dmar.interrupt_remapping {
            return Err(Refusal::new(
                "vtd",
                "the DMAR table says that interrupt remapping is off",
                "turn interrupt remapping (VT-d) on in the firmware, or in QEMU use intremap=on",
            ));
        }
        let units = dmar
            .units
            .iter()
            .map(|unit| {
                let registers = map_registers(unit.registers, unit.registers_len);
                Unit::new(registers, Arc::clone(&memory), host, unit, x2apic)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let geometry = common_geometry(dmar, &units)?;
        let least = |of: fn(&Unit<R, M>) -> u32| units.iter().map(of).min().unwrap_or(0);
        let last_domain = (1u32 << least(|unit| unit.capability().domain_bits()).min(16)) - 1;
        let capabilities = IommuCapabilities {
            pasid_bits: least(|unit| unit.extended_capability().pasid_bits().into()).min(Pasid::BITS) as u8,
            address_bits: geometry.address_bits,
            largest_page: geometry.largest_page(),
            interrupt_remapping: true,
        };
        let walks_snoop = units
            .iter()
            .all(|unit| unit.extended_capability().page_walk_coherent());
        Ok(Self {
            coverage: Coverage::new(&dmar.units, bridges),
            reserved: dmar
                .reserved
                .iter()
                .map(|region| ReservedRegion {
                    base: region.base,
                    limit: region.limit,
                    devices: DeviceSet::resolve(region.segment, &region.scopes, bridges),
                })
                .collect(),
            memory: TableMemory::new(memory, walks_snoop),
            geometry,
            capabilities,
            last_domain: last_domain as DomainId,
            tables: Mutex::new(Tables::default()),
            units,
        })
    }

    /// Takes every unit over from the firmware. When it returns `Ok`, all DMA and all interrupt messages
    /// of all devices are blocked until they are claimed. Called once, on one processor, with interrupts
    /// off.
    pub fn take_over(&self) -> Result<(), Refusal> {
        self.units.iter().try_for_each(Unit::take_over)
    }

    /// Sends the fault events of all units to a vector of the hypervisor, whose handler calls
    /// [`Iommu::drain_faults`]. After [`Vtd::take_over`].
    pub fn set_fault_interrupt(&self, target: HostVector) {
        for unit in &self.units {
            unit.set_fault_interrupt(target);
        }
    }

    /// The units, in the order of the DMAR table.
    pub fn units(&self) -> &[Unit<R, M>] {
        &self.units
    }

    /// Regions that the firmware says devices use on its behalf (RMRR). They are blocked like everything
    /// else from [`Vtd::take_over`] on; a device that has one cannot be claimed.
    pub fn reserved_regions(&self) -> &[ReservedRegion] {
        &self.reserved
    }

    /// [`Iommu::claim`] for a device that may use ATS: its own TLB is then invalidated too. Its driver
    /// turns ATS on only after this returned.
    pub fn claim_with_device_tlb(&self, requester: Requester, tlb: DeviceTlb) -> Result<(), Refusal> {
        self.claim_device(requester, Some(tlb))
    }

    fn claim_device(&self, requester: Requester, tlb: Option<DeviceTlb>) -> Result<(), Refusal> {
        if let Some(region) = self
            .reserved
            .iter()
            .find(|region| region.devices.contains(requester))
        {
            return Err(Refusal::new(
                format!("{requester}"),
                format!(
                    "the firmware uses it with memory {}..={} (RMRR)",
                    region.base, region.limit
                ),
                "turn off the firmware function that uses the device, or share another one",
            ));
        }
        let unit = self.unit_of(requester)?;
        self.units[unit]
            .claim(requester.rid, tlb)
            .map_err(|refusal| refusal.within(requester))
    }

    fn unit_of(&self, requester: Requester) -> Result<usize, Refusal> {
        self.coverage.unit_of(requester).ok_or_else(|| {
            Refusal::new(
                format!("{requester}"),
                "no remapping unit of the DMAR table serves it",
                "update the firmware, or share another device",
            )
        })
    }

    /// Makes all units forget a range of a table, then frees the pages that left the tree. Until that
    /// has worked they are kept.
    fn forget_removed(
        &self,
        domain: DomainId,
        table: &mut Table,
        start: u64,
        len: u64,
        removed: Removed,
    ) -> Result<(), Refusal> {
        table.limbo.extend(removed.pages);
        if removed.changed || table.stale {
            let (start, len) = if table.stale {
                (0, 1 << self.geometry.address_bits)
            } else {
                (start, len)
            };
            table.stale = true;
            self.forget_range(domain, table, start, len)?;
            table.stale = false;
        }
        for page in table.limbo.drain(..) {
            self.memory.free(page, 1);
        }
        Ok(())
    }

    fn forget_range(&self, domain: DomainId, table: &Table, start: u64, len: u64) -> Result<(), Refusal> {
        for (number, unit) in self.units.iter().enumerate() {
            if table.users[number] == 0 {
                continue;
            }
            let device_tlbs = table
                .device_tlbs
                .iter()
                .filter(|(of, ..)| *of == number)
                .map(|&(_, rid, pasid)| (rid, pasid));
            unit.forget_range(domain, start, len, device_tlbs)?;
        }
        Ok(())
    }
}

impl Tables {
    fn get(&mut self, id: TableId) -> Result<(DomainId, &mut Table), Refusal> {
        DomainId::try_from(id.0)
            .ok()
            .and_then(|domain| Some((domain, self.entries.get_mut(&domain)?)))
            .ok_or_else(|| Refusal::new(format!("I/O page table {}", id.0), "does not exist", ""))
    }

    /// A domain identifier that is not in use, going round so that one is reused as late as possible.
    fn free_domain(&self, last_domain: DomainId) -> Option<DomainId> {
        let round = (self.last..last_domain).map(|before| before + 1);
        round
            .chain(1..=self.last)
            .find(|domain| !self.entries.contains_key(domain))
    }
}

impl<R: Registers, M: DmaMemory> Iommu for Vtd<R, M> {
    fn name(&self) -> &str {
        "vtd"
    }

    fn capabilities(&self) -> IommuCapabilities {
        self.capabilities
    }

    fn create_table(&self) -> Result<TableId, Refusal> {
        let mut tables = self.tables.lock();
        let domain = tables.free_domain(self.last_domain).ok_or_else(|| {
            Refusal::new(
                "I/O page table",
                format!("all {} domain identifiers are in use", self.last_domain),
                "end a VM first",
            )
        })?;
        let stage = SecondStage::new(&self.memory, self.geometry)?;
        tables.last = domain;
        tables.entries.insert(
            domain,
            Table {
                stage,
                users: vec![0; self.units.len()],
                device_tlbs: BTreeSet::new(),
                stale: false,
                limbo: Vec::new(),
            },
        );
        Ok(TableId(domain.into()))
    }

    fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        let mut tables = self.tables.lock();
        let (domain, table) = tables.get(table)?;
        match table.stage.map(&self.memory, iova, host, len, writable) {
            Ok(()) => {}
            Err(MapFailed { refusal, removed }) => {
                // What the roll-back took out may have been used meanwhile. Where the units cannot be
                // made to forget it, the table says so at its next use.
                let _ = self.forget_removed(domain, table, iova.0, len, removed);
                return Err(refusal);
            }
        }
        for (number, unit) in self.units.iter().enumerate() {
            if table.users[number] == 0 {
                continue;
            }
            if unit.capability().caching_mode() {
                // The absence of the mapping may be cached.
                unit.forget_range(domain, iova.0, len, core::iter::empty())?;
            } else {
                unit.push_out()?;
            }
        }
        Ok(())
    }

    fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal> {
        let mut tables = self.tables.lock();
        let (domain, table) = tables.get(table)?;
        let removed = table.stage.unmap(&self.memory, iova, len)?;
        self.forget_removed(domain, table, iova.0, len, removed)
    }

    fn destroy_table(&self, id: TableId) -> Result<(), Refusal> {
        let mut tables = self.tables.lock();
        let (domain, table) = tables.get(id)?;
        let users: usize = table.users.iter().sum();
        if users != 0 {
            return Err(Refusal::new(
                format!("I/O page table {}", id.0),
                format!("attached {users} times"),
                "detach it first",
            ));
        }
        if let Some(table) = tables.entries.remove(&domain) {
            // The last detach invalidated the whole domain on every unit that knew it.
            for page in table.limbo {
                self.memory.free(page, 1);
            }
            table.stage.destroy(&self.memory);
        }
        Ok(())
    }

    fn claim(&self, requester: Requester) -> Result<(), Refusal> {
        self.claim_device(requester, None)
    }

    fn attach(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), Refusal> {
        let unit = self.unit_of(requester)?;
        let mut tables = self.tables.lock();
        let (domain, table) = tables.get(table)?;
        let (rid, levels) = (requester.rid, self.geometry.levels);
        let (kept, result) = match self.units[unit].attach(rid, pasid, domain, &table.stage, levels) {
            Ok(()) => (true, Ok(())),
            Err(failed) => (failed.tag_kept, Err(failed.refusal.within(requester))),
        };
        if kept {
            table.users[unit] += 1;
            if self.units[unit].has_device_tlb(rid) {
                table.device_tlbs.insert((unit, rid, pasid));
            }
        }
        result
    }

    fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        let unit = self.unit_of(requester)?;
        let mut tables = self.tables.lock();
        let domain = self.units[unit]
            .detach(requester.rid, pasid)
            .map_err(|refusal| refusal.within(requester))?;
        if let Some(table) = tables.entries.get_mut(&domain) {
            table.users[unit] -= 1;
            table.device_tlbs.remove(&(unit, requester.rid, pasid));
        }
        Ok(())
    }

    fn map_interrupt(&self, requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal> {
        let unit = self.unit_of(requester)?;
        let index = self.units[unit]
            .map_interrupt(requester.rid, target)
            .map_err(|refusal| refusal.within(requester))?;
        Ok(RemappedInterrupt {
            handle: (unit as u32) << HANDLE_UNIT_SHIFT | u32::from(index),
            message: interrupt_remapping::message(index),
        })
    }

    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal> {
        self.units
            .get((handle >> HANDLE_UNIT_SHIFT) as usize)
            .ok_or_else(|| Refusal::new(format!("interrupt handle {handle:#x}"), "not in use", ""))?
            .unmap_interrupt(handle as u16)
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(DmaFault)) -> bool {
        let mut lost = false;
        for unit in &self.units {
            lost |= unit.drain_faults(sink);
        }
        lost
    }

    fn commands_issued(&self) -> u64 {
        self.units.iter().map(Unit::commands_issued).sum()
    }
}

/// The page-table form that all units take.
fn common_geometry<R: Registers, M: DmaMemory>(
    dmar: &Dmar,
    units: &[Unit<R, M>],
) -> Result<Geometry, Refusal> {
    if units.is_empty() {
        return Err(Refusal::new(
            "vtd",
            "the DMAR table names no remapping unit",
            "turn VT-d on in the firmware, or in QEMU use -device intel-iommu",
        ));
    }
    let every = |has: fn(&Unit<R, M>) -> bool| units.iter().all(has);
    let (levels, level_bits) = if every(|unit| unit.capability().second_stage_levels(4)) {
        (4, 48)
    } else if every(|unit| unit.capability().second_stage_levels(3)) {
        (3, 39)
    } else {
        return Err(Refusal::new(
            "vtd",
            "the remapping units have no depth of page tables in common (CAP.SAGAW)",
            "share devices of one unit only; this machine is not supported yet",
        ));
    };
    let leaf_levels = if !every(|unit| unit.capability().second_stage_2m()) {
        1
    } else if !every(|unit| unit.capability().second_stage_1g()) {
        2
    } else {
        3
    };
    let width = units.iter().map(|unit| unit.capability().address_bits()).min();
    Ok(Geometry {
        levels,
        address_bits: width.map_or(level_bits, |width| width.clamp(WIDTH_FLOOR, level_bits)),
        host_bits: dmar.host_address_bits.clamp(WIDTH_FLOOR, HOST_WIDTH_LIMIT),
        leaf_levels,
        snoop: every(|unit| unit.extended_capability().snoop_control()),
    })
}

/// Narrowest address width believed.
const WIDTH_FLOOR: u8 = 32;
/// Widest host-physical address an entry can hold.
const HOST_WIDTH_LIMIT: u8 = 52;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
