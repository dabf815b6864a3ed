// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm SMMUv3: a stage-1-format table of guest-physical memory per SubstreamID (PASID).
//!
//! **Principle.** One StreamID is shared by many VMs. Its stream table entry leads to context descriptors that
//! the hypervisor owns, one per SubstreamID, each with the ASID and the table of one VM's memory; stage 2 is
//! bypassed. What has no descriptor is blocked. Traffic without SubstreamID uses descriptor 0, which leads to
//! the doorbells of interrupt messages and to nothing else. All units of the machine stand behind one
//! [`Smmu`], which shares the tables between them.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `capabilities` | what a unit must be able to do |
//! | `survey` | what can be told of the units without changing anything |
//! | `bring_up` | take-over from the firmware |
//! | `stream_table` | StreamID to stream table entry |
//! | `context` | SubstreamID to context descriptor |
//! | `stage1` | entries of tables; the tree is the kernel's [`page_table`](pasidon_kernel::memory::page_table) |
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
mod survey;
mod unit;

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::memory::page_table::PageTable;

use self::registers::{Identification, REGISTERS_LEN};
use self::stage1::{Geometry, Stage1Entries};
use super::spaces::Spaces;
use super::unit::{Place, Topology};
use crate::iort::{Iort, Stream};
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;

pub use self::survey::survey;
pub use self::unit::Unit;

/// All SMMUs of the machine.
pub type Smmu<R, M> = Spaces<Unit<R, M>>;

impl<R: Registers, M: DmaMemory> Smmu<R, M> {
    /// Finds out what the units can do and makes empty tables; writes no register. `doorbells`: the pages
    /// that devices write their interrupt messages to, which untagged traffic reaches under their own
    /// addresses. Each must be that of GITS_TRANSLATER of an ITS: behind a doorbell that does not tell devices
    /// apart, one could raise the interrupts of another. `map_registers` maps as device memory.
    ///
    /// # Errors
    /// When there is no unit, one lacks what Pasidon needs of it, or there is no memory for tables.
    pub fn new(
        iort: Iort,
        memory: Arc<M>,
        host: &'static dyn Host,
        doorbells: &[HostPhys],
        map_registers: MapRegisters<'_, R>,
    ) -> Result<Self, Refusal> {
        capabilities::check_table(&iort)?;
        let iort = Arc::new(iort);
        let registers: Vec<R> = iort
            .units
            .iter()
            .map(|node| map_registers(node.registers, REGISTERS_LEN))
            .collect::<Result<_, _>>()?;
        let geometry = capabilities::geometry(registers.iter().map(Identification::read));
        // Whether walks are coherent is checked for each unit: one that does not is refused.
        let tables = TableMemory::new(Arc::clone(&memory), true);
        let doorbell_root = doorbell_table(tables.clone(), geometry, doorbells)?;
        let units = registers
            .into_iter()
            .enumerate()
            .map(|(number, registers)| {
                let memory = Arc::clone(&memory);
                Unit::new(registers, memory, host, Arc::clone(&iort), number, doorbell_root)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::over(units, iort, tables, geometry))
    }

    /// Lets all units raise their wired interrupts for events and global errors ([`crate::iort::Gsivs`]), whose
    /// handler has [`Iommu::drain_faults`](pasidon_kernel::dma::iommu::Iommu::drain_faults) called. After
    /// [`Smmu::take_over`].
    ///
    /// # Errors
    /// When a unit does not confirm in time.
    pub fn enable_fault_interrupts(&self) -> Result<(), Refusal> {
        self.units.iter().try_for_each(Unit::enable_fault_interrupt)
    }
}

impl Topology for Arc<Iort> {
    fn place(&self, requester: Requester) -> Result<Place, Refusal> {
        let Stream { unit, id } = self.stream(requester).ok_or_else(|| {
            Refusal::new(
                format!("{requester}"),
                "no SMMU of the IORT is on its way to memory",
                "update the firmware, or share another device",
            )
        })?;
        Ok(Place { unit, device: id })
    }

    fn claimable(&self, requester: Requester, device_tlb: bool) -> Result<Place, Refusal> {
        if device_tlb && !self.ats(requester.segment) {
            return Err(Refusal::new(
                format!("{requester}: claim with ATS"),
                "its root complex takes no part in ATS (IORT)",
                "use the device without ATS",
            ));
        }
        let place = self.place(requester)?;
        let stream = Stream { unit: place.unit, id: place.device };
        if let Some(memory) = self.reserved.iter().find(|memory| memory.concerns(stream)) {
            let first = memory.ranges.first().map_or(HostPhys(0), |range| range.0);
            return Err(Refusal::new(
                format!("{requester}"),
                format!("the firmware uses it with memory at {first} (RMR)"),
                "turn off the firmware function that uses the device, or share another one",
            ));
        }
        Ok(place)
    }
}

/// The table of untagged traffic: each doorbell under its own address, and nothing else.
fn doorbell_table<M: DmaMemory>(
    memory: TableMemory<M>,
    geometry: Geometry,
    doorbells: &[HostPhys],
) -> Result<HostPhys, Refusal> {
    let format = Stage1Entries { doorbell: true };
    let mut table = PageTable::new(memory, Geometry { format, ..geometry })?;
    for &page in doorbells {
        table
            .map(page.0, page, PAGE_SIZE, true)
            .map_err(|refusal| refusal.within(format!("doorbell {page}")))?;
    }
    Ok(table.top().root)
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
