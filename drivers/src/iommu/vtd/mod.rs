// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel VT-d in scalable mode: a second-stage page table per PASID.
//!
//! **Principle.** The PASID entry joins a device's tag to a page table, and nothing else does: what has no
//! entry is blocked. All units of the machine stand behind one [`Vtd`], which shares the page tables
//! between them; a unit has its own root, context, PASID and interrupt tables and its own queue.
//!
//! **Locks.** The page tables' lock is taken before a unit's, and both are held while the unit carries out
//! invalidations (each bounded by a second, see `invalidation`), so nothing here is called from an
//! interrupt handler but [`Iommu::drain_faults`], which waits for no lock.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `capabilities` | what a unit must be able to do |
//! | `dmar`, `scope` | which units there are, and whom each serves |
//! | `bring_up` | take-over from the firmware |
//! | `tables` | root, context and PASID tables |
//! | `second_stage` | entries of page tables; the tree is in [`page_table`](super) |
//! | `invalidation` | the queue, and getting past its errors |
//! | `interrupt_remapping` | who may raise which vector |
//! | `fault` | fault records in words |
//! | `unit` | the operations of one unit, in the right order |
//! | `describe` | a unit in words |
//!
//! Source: Intel Virtualization Technology for Directed I/O, architecture specification.

pub mod dmar;
pub mod registers;
pub mod scope;

mod bring_up;
mod capabilities;
mod describe;
mod fault;
mod interrupt_remapping;
mod invalidation;
pub(super) mod second_stage;
mod tables;
mod unit;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova, Requester};
use pasidon_kernel::drained::Drained;
use pasidon_kernel::fault::Noted;
use pasidon_kernel::host::Host;
use pasidon_kernel::iommu::{Iommu, IommuCapabilities, TableId};
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::msi::{MsiController, RemappedInterrupt};
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;

use self::capabilities::common_geometry;
use self::dmar::Dmar;
use self::scope::{Bridges, Coverage, DeviceSet};
use self::second_stage::SecondStageEntries;
use super::domains::DomainId;
use super::spaces::{Place, Spaces};
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;

pub use self::invalidation::DeviceTlb;
pub use self::unit::Unit;

/// Where the unit's number starts in an interrupt handle; the entry's index is below.
const HANDLE_UNIT_SHIFT: u32 = 16;

/// All remapping units of the machine.
pub struct Vtd<R, M> {
    spaces: Spaces<Unit<R, M>, SecondStageEntries, M>,
    coverage: Coverage,
    reserved: Vec<ReservedRegion>,
    /// Devices that the firmware says work only with ATS (SATC).
    ats_required: Vec<DeviceSet>,
    capabilities: IommuCapabilities,
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

impl<R: Registers, M: DmaMemory> Vtd<R, M> {
    /// Finds out what the units can do and makes empty tables; writes no register. `x2apic`: interrupt
    /// destinations are 32-bit APIC identifiers. `bridges` reads the bus numbers behind a bridge from its
    /// configuration space. `map_registers` maps uncached.
    pub fn new(
        dmar: &Dmar,
        memory: Arc<M>,
        host: &'static dyn Host,
        x2apic: bool,
        bridges: Bridges<'_>,
        map_registers: MapRegisters<'_, R>,
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
                let registers = map_registers(unit.registers, unit.registers_len)?;
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
            ats_required: dmar
                .ats_devices
                .iter()
                .filter(|list| list.ats_required)
                .map(|list| DeviceSet::resolve(list.segment, &list.scopes, bridges))
                .collect(),
            capabilities,
            spaces: Spaces::new(
                units,
                TableMemory::new(memory, walks_snoop),
                geometry,
                last_domain as DomainId,
            ),
        })
    }

    /// Takes every unit over from the firmware. When it returns `Ok`, all DMA and all interrupt messages
    /// of all devices are blocked until they are claimed. Called once, on one processor, with interrupts
    /// off.
    pub fn take_over(&self) -> Result<(), Refusal> {
        self.spaces.units.iter().try_for_each(Unit::take_over)
    }

    /// Sends the fault events of all units to a vector of the hypervisor, whose handler calls
    /// [`Iommu::drain_faults`]. After [`Vtd::take_over`].
    pub fn set_fault_interrupt(&self, target: HostVector) {
        for unit in &self.spaces.units {
            unit.set_fault_interrupt(target);
        }
    }

    /// The units, in the order of the DMAR table.
    pub fn units(&self) -> &[Unit<R, M>] {
        &self.spaces.units
    }

    /// Whether a unit stands between a device and memory.
    pub fn serves(&self, requester: Requester) -> bool {
        self.coverage.unit_of(requester).is_some()
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
        if tlb.is_none() && self.ats_required.iter().any(|set| set.contains(requester)) {
            log::warn!(
                "{requester}: the firmware says that it works only with ATS (SATC, ATC_REQUIRED); it is used without"
            );
        }
        let unit = self.unit_of(requester)?;
        self.spaces.units[unit]
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

    fn place(&self, requester: Requester) -> Result<Place, Refusal> {
        let unit = self.unit_of(requester)?;
        let device = requester.rid.into();
        Ok(Place { unit, device })
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
        self.spaces.create_table()
    }

    fn map(
        &self,
        table: TableId,
        iova: Iova,
        host: HostPhys,
        len: u64,
        writable: bool,
    ) -> Result<(), Refusal> {
        self.spaces.map(table, iova, host, len, writable)
    }

    fn unmap(&self, table: TableId, iova: Iova, len: u64) -> Result<(), Refusal> {
        self.spaces.unmap(table, iova, len)
    }

    fn destroy_table(&self, table: TableId) -> Result<(), Refusal> {
        self.spaces.destroy_table(table)
    }

    fn claim(&self, requester: Requester) -> Result<(), Refusal> {
        self.claim_device(requester, None)
    }

    fn attach(&self, requester: Requester, pasid: Pasid, table: TableId) -> Result<(), Refusal> {
        let attached = self.spaces.attach(self.place(requester)?, pasid, table);
        attached.map_err(|refusal| refusal.within(requester))
    }

    fn detach(&self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        let detached = self.spaces.detach(self.place(requester)?, pasid);
        detached.map_err(|refusal| refusal.within(requester))
    }

    fn may_be_attached(&self, requester: Requester, pasid: Pasid) -> bool {
        self.place(requester)
            .is_ok_and(|place| self.spaces.may_be_attached(place, pasid))
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        let units = self.spaces.units.iter();
        units.fold(Drained::Empty, |left, unit| left.and(unit.drain_faults(sink)))
    }

    fn commands_issued(&self) -> u64 {
        self.spaces.commands_issued()
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("page tables", format!("{}", self.spaces.len()))];
        for unit in &self.spaces.units {
            lines.extend(unit.describe());
        }
        for region in &self.reserved {
            let devices = region.devices.to_string();
            lines.push((
                "reserved",
                format!("{}..={} by {devices}", region.base, region.limit),
            ));
        }
        let required = self.ats_required.iter();
        lines.extend(required.map(|devices| ("ATS required", devices.to_string())));
        lines
    }
}

impl<R: Registers, M: DmaMemory> MsiController for Vtd<R, M> {
    fn map_interrupt(&self, requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal> {
        let unit = self.unit_of(requester)?;
        let index = self.spaces.units[unit]
            .map_interrupt(requester.rid, target)
            .map_err(|refusal| refusal.within(requester))?;
        Ok(RemappedInterrupt {
            handle: (unit as u32) << HANDLE_UNIT_SHIFT | u32::from(index),
            message: interrupt_remapping::message(index),
        })
    }

    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal> {
        self.spaces
            .units
            .get((handle >> HANDLE_UNIT_SHIFT) as usize)
            .ok_or_else(|| Refusal::new(format!("interrupt handle {handle:#x}"), "not in use", ""))?
            .unmap_interrupt(handle as u16)
    }
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
