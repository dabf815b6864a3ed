// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm SMMUv3: a stage-1-format table of guest-physical memory per SubstreamID (PASID).
//!
//! **Principle.** One StreamID is shared by many VMs. Its stream table entry leads to context descriptors that
//! the hypervisor owns, one per SubstreamID, each with the ASID and the table of one VM's memory; stage 2 is
//! bypassed. What has no descriptor is blocked. Traffic without SubstreamID uses descriptor 0, which leads to
//! the doorbells of interrupt messages and to nothing else. All units of the machine stand behind one
//! [`Smmu`], which shares the tables between them.
//!
//! **Locks.** The tables' lock is taken before a unit's, and both are held while the unit carries out commands
//! (each batch bounded by a second, see `commands`), so nothing here is called from an interrupt handler
//! but [`Iommu::drain_faults`], which waits for no lock.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `capabilities` | what a unit must be able to do |
//! | `bring_up` | take-over from the firmware |
//! | `stream_table` | StreamID to stream table entry |
//! | `context` | SubstreamID to context descriptor |
//! | `stage1` | entries of tables; the tree is shared with the other IOMMUs |
//! | `commands` | the command queue, and getting past its errors |
//! | `events` | the event queue in words |
//! | `unit` | the operations of one unit, in the right order |
//!
//! Source: Arm System Memory Management Unit architecture specification, version 3 (IHI 0070).

pub mod registers;

mod bring_up;
mod capabilities;
mod commands;
mod context;
mod events;
pub(super) mod stage1;
mod stream_table;
mod unit;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Iova, PAGE_SIZE, Requester};
use pasidon_kernel::drained::Drained;
use pasidon_kernel::fault::Noted;
use pasidon_kernel::host::Host;
use pasidon_kernel::iommu::{Iommu, IommuCapabilities, TableId};
use pasidon_kernel::pasid::Pasid;
use pasidon_kernel::refusal::Refusal;

use self::registers::{Identification, REGISTERS_LEN};
use self::stage1::{Geometry, Stage1, Stage1Entries};
use super::domains::DomainId;
use super::spaces::{Place, Spaces};
use crate::iort::{Iort, Stream};
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;

pub use self::unit::Unit;

/// All SMMUs of the machine.
pub struct Smmu<R, M> {
    spaces: Spaces<Unit<R, M>, Stage1Entries, M>,
    iort: Iort,
    capabilities: IommuCapabilities,
}

impl<R: Registers, M: DmaMemory> Smmu<R, M> {
    /// Finds out what the units can do and makes empty tables; writes no register. `doorbells`: the pages
    /// that devices write their interrupt messages to, which untagged traffic reaches under their own
    /// addresses. Each must be that of GITS_TRANSLATER of an ITS: behind a doorbell that does not tell devices
    /// apart, one could raise the interrupts of another. `map_registers` maps as device memory.
    pub fn new(
        iort: Iort,
        memory: Arc<M>,
        host: &'static dyn Host,
        doorbells: &[HostPhys],
        map_registers: MapRegisters<'_, R>,
    ) -> Result<Self, Refusal> {
        if iort.units.is_empty() {
            return Err(Refusal::new(
                "smmuv3",
                "the IORT names no SMMUv3",
                "use a machine with one, or in QEMU -M virt,iommu=smmuv3",
            ));
        }
        let registers: Vec<R> = iort
            .units
            .iter()
            .map(|node| map_registers(node.registers, REGISTERS_LEN))
            .collect::<Result<_, _>>()?;
        let geometry = capabilities::geometry(registers.iter().map(Identification::read));
        // Whether walks are coherent is checked for each unit: one that does not is refused.
        let tables = TableMemory::new(Arc::clone(&memory), true);
        let doorbell_root = doorbell_table(&tables, geometry, doorbells)?;
        let units = iort
            .units
            .iter()
            .zip(registers)
            .enumerate()
            .map(|(number, (node, registers))| {
                let highest = iort.highest_stream(number);
                Unit::new(
                    registers,
                    Arc::clone(&memory),
                    host,
                    node.clone(),
                    highest,
                    doorbell_root,
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let least = |of: fn(&Unit<R, M>) -> u32| units.iter().map(of).min().unwrap_or(0);
        let last_asid = (1u32 << least(|unit| unit.identification().asid_bits())) - 1;
        let capabilities = IommuCapabilities {
            pasid_bits: least(Unit::substream_bits) as u8,
            address_bits: geometry.address_bits,
            largest_page: geometry.largest_page(),
        };
        Ok(Self {
            spaces: Spaces::new(units, tables, geometry, last_asid as DomainId),
            iort,
            capabilities,
        })
    }

    /// Takes every unit over from the firmware. When it returns `Ok`, all DMA of all devices behind one
    /// is blocked until they are claimed. Called once, on one processor, with interrupts off.
    pub fn take_over(&self) -> Result<(), Refusal> {
        self.spaces.units.iter().try_for_each(Unit::take_over)
    }

    /// Lets all units raise their wired interrupts for events and global errors ([`crate::iort::Gsivs`]), whose
    /// handler has [`Iommu::drain_faults`] called. After [`Smmu::take_over`].
    pub fn enable_fault_interrupts(&self) -> Result<(), Refusal> {
        self.spaces
            .units
            .iter()
            .try_for_each(Unit::enable_fault_interrupt)
    }

    /// The units, in the order of the IORT.
    pub fn units(&self) -> &[Unit<R, M>] {
        &self.spaces.units
    }

    /// Whether a unit stands between a device and memory.
    pub fn serves(&self, requester: Requester) -> bool {
        self.iort.stream(requester).is_some()
    }

    /// What the firmware says of units and requesters.
    pub fn iort(&self) -> &Iort {
        &self.iort
    }

    /// [`Iommu::claim`] for a device that may use ATS: its own TLB is then invalidated too. Its driver
    /// turns ATS on only after this returned.
    pub fn claim_with_device_tlb(&self, requester: Requester) -> Result<(), Refusal> {
        if !self.iort.ats(requester.segment) {
            return Err(Refusal::new(
                format!("{requester}: claim with ATS"),
                "its root complex takes no part in ATS (IORT)",
                "use the device without ATS",
            ));
        }
        self.claim_device(requester, true)
    }

    fn claim_device(&self, requester: Requester, device_tlb: bool) -> Result<(), Refusal> {
        let stream = self.stream_of(requester)?;
        if let Some(memory) = self.iort.reserved.iter().find(|memory| memory.concerns(stream)) {
            let first = memory.ranges.first().map_or(HostPhys(0), |range| range.0);
            return Err(Refusal::new(
                format!("{requester}"),
                format!("the firmware uses it with memory at {first} (RMR)"),
                "turn off the firmware function that uses the device, or share another one",
            ));
        }
        self.spaces.units[stream.unit]
            .claim(stream.id, device_tlb)
            .map_err(|refusal| refusal.within(requester))
    }

    fn stream_of(&self, requester: Requester) -> Result<Stream, Refusal> {
        self.iort.stream(requester).ok_or_else(|| {
            Refusal::new(
                format!("{requester}"),
                "no SMMU of the IORT is on its way to memory",
                "update the firmware, or share another device",
            )
        })
    }

    fn place(&self, requester: Requester) -> Result<Place, Refusal> {
        let Stream { unit, id } = self.stream_of(requester)?;
        Ok(Place { unit, device: id })
    }
}

/// The table of untagged traffic: each doorbell under its own address, and nothing else.
fn doorbell_table<M: DmaMemory>(
    memory: &TableMemory<M>,
    geometry: Geometry,
    doorbells: &[HostPhys],
) -> Result<HostPhys, Refusal> {
    let table = Stage1::new(
        memory,
        Geometry {
            format: Stage1Entries { doorbell: true },
            ..geometry
        },
    )?;
    for &page in doorbells {
        table
            .map(memory, Iova(page.0), page, PAGE_SIZE, true)
            .map_err(|failed| failed.refusal.within(format!("doorbell {page}")))?;
    }
    Ok(table.root())
}

impl<R: Registers, M: DmaMemory> Iommu for Smmu<R, M> {
    fn name(&self) -> &str {
        "smmuv3"
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
        self.claim_device(requester, false)
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
        let units = self.spaces.units.iter().enumerate();
        units.fold(Drained::Empty, |left, (number, unit)| {
            let requester = |id| self.iort.requester(Stream { unit: number, id });
            left.and(unit.drain_faults(&requester, sink))
        })
    }

    fn commands_issued(&self) -> u64 {
        self.spaces.commands_issued()
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = alloc::vec![("page tables", format!("{}", self.spaces.len()))];
        for unit in &self.spaces.units {
            lines.extend(unit.describe());
        }
        lines
    }
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
