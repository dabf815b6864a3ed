// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel VT-d in scalable mode: a second-stage page table per PASID.
//!
//! **Principle.** The PASID entry joins a device's tag to a page table, and nothing else does: what has no
//! entry is blocked. All units of the machine stand behind one [`Vtd`], which shares the page tables
//! between them; a unit has its own root, context, PASID and interrupt tables and its own queue.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `capabilities` | what a unit must be able to do |
//! | `survey` | what can be told of the units without changing anything |
//! | `dmar`, `scope` | which units there are, and whom each serves |
//! | `bring_up` | take-over from the firmware |
//! | `tables` | root, context and PASID tables |
//! | `second_stage` | entries of page tables; the tree is the kernel's [`page_table`](pasidon_kernel::memory::page_table) |
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
mod capabilities;
mod fault;
mod interrupt_remapping;
mod invalidation;
pub(super) mod second_stage;
mod survey;
mod tables;
mod unit;

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::msi::{Delivery, MsiController, RemappedInterrupt};

use self::capabilities::{check_table, common_geometry};
use self::dmar::Dmar;
use self::scope::{Bridges, Coverage};
use super::spaces::Spaces;
use super::unit::{Place, Topology};
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;

pub use self::survey::survey;
pub use self::unit::Unit;

/// Where the unit's number starts in an interrupt handle; the entry's index is below.
const HANDLE_UNIT_SHIFT: u32 = 16;

/// All remapping units of the machine.
pub type Vtd<R, M> = Spaces<Unit<R, M>>;

impl<R: Registers, M: DmaMemory> Vtd<R, M> {
    /// Finds out what the units can do and makes empty tables; writes no register. `x2apic`: interrupt
    /// destinations are 32-bit APIC identifiers. `bridges` reads the bus numbers behind a bridge from its
    /// configuration space. `map_registers` maps uncached.
    ///
    /// # Errors
    /// When the firmware has interrupt remapping off, a unit lacks what Pasidon needs of it, or there is no memory for
    /// tables.
    pub fn new(
        dmar: &Dmar,
        memory: Arc<M>,
        host: &'static dyn Host,
        x2apic: bool,
        bridges: Bridges<'_>,
        map_registers: MapRegisters<'_, R>,
    ) -> Result<Self, Refusal> {
        check_table(dmar)?;
        let units = dmar
            .units
            .iter()
            .map(|unit| {
                let registers = map_registers(unit.registers, unit.registers_len)?;
                Unit::new(registers, Arc::clone(&memory), host, unit, x2apic)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let abilities = units.iter().map(|unit| (unit.capability(), unit.extended_capability()));
        let geometry = common_geometry(dmar, &Vec::from_iter(abilities))?;
        let walks_snoop = units.iter().all(|unit| unit.extended_capability().page_walk_coherent());
        let tables = TableMemory::new(memory, walks_snoop);
        Ok(Self::over(units, Coverage::new(dmar, bridges), tables, geometry))
    }

    /// Sends the fault events of all units to a vector of the hypervisor, whose handler calls
    /// [`Iommu::drain_faults`](pasidon_kernel::dma::iommu::Iommu::drain_faults). After [`Vtd::take_over`].
    pub fn set_fault_interrupt(&self, target: HostVector) {
        for unit in &self.units {
            unit.set_fault_interrupt(target);
        }
    }
}

impl<R: Registers, M: DmaMemory> MsiController for Vtd<R, M> {
    fn map_interrupt(&self, requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal> {
        let Place { unit, .. } = self.topology.place(requester)?;
        let index = self.units[unit]
            .map_interrupt(requester.rid, target)
            .map_err(|refusal| refusal.within(requester))?;
        Ok(RemappedInterrupt {
            handle: (unit as u32) << HANDLE_UNIT_SHIFT | u32::from(index),
            message: interrupt_remapping::message(index),
        })
    }

    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal> {
        unit_of(&self.units, handle)?.unmap_interrupt(handle as u16)
    }

    fn can_post(&self, requester: Requester) -> bool {
        let place = self.topology.place(requester);
        place.is_ok_and(|Place { unit, .. }| self.units[unit].capability().posted_interrupts())
    }

    fn redirect(&self, handle: u32, to: Delivery<'_>) -> Result<(), Refusal> {
        unit_of(&self.units, handle)?.redirect(handle as u16, to)
    }
}

/// Whose entry an interrupt handle names.
fn unit_of<U>(units: &[U], handle: u32) -> Result<&U, Refusal> {
    let unit = units.get((handle >> HANDLE_UNIT_SHIFT) as usize);
    unit.ok_or_else(|| Refusal::new(format!("interrupt handle {handle:#x}"), "not in use", ""))
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;
