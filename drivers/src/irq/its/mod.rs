// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm's interrupt translation services (ITS): which message of which device raises which interrupt where.
//!
//! **Principle.** A device writes an EventID to the doorbell of an ITS, and the bus adds its DeviceID. The two
//! together select an LPI and, through a collection, the redistributor of the processor that takes it. There is one
//! collection per processor. What is not mapped raises nothing, and what is mapped is one device's: so the doorbell
//! may lie in reach of every device. All ITSs of the machine, and the redistributors, stand behind one [`Its`].
//!
//! **Invariant.** An LPI belongs to one event at most. Event and LPI are used again only when the redistributor has
//! seen that the LPI is disabled and the event discarded.
//!
//! **Locks.** One lock is held while an ITS carries out commands (each wait bounded by a second, see `commands`),
//! and only that of the allocator is taken meanwhile. So nothing here is called from an interrupt handler.
//!
//! | file | duty |
//! |---|---|
//! | `registers` | names and fields of the registers |
//! | `tables` | memory for devices and collections |
//! | `lpis` | redistributors, and which LPI is whose |
//! | `commands` | the command queue, and getting past its errors |
//! | `unit` | the operations of one ITS, in the right order |
//!
//! Source: Arm Generic Interrupt Controller architecture specification, versions 3 and 4 (IHI 0069), chapter
//! "Locality-specific Peripheral Interrupts and the ITS".

pub mod registers;

mod commands;
mod lpis;
mod tables;
mod unit;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::msi::{MsiController, RemappedInterrupt};
use pasidon_kernel::vm::exit::MsiMessage;
use spin::Mutex;

use self::lpis::{Lpis, Owner};
use self::registers::gits;
use self::unit::{Surroundings, Unit};
use crate::iort::Iort;
use crate::memory::DmaMemory;
use crate::registers::{MapRegisters, Registers};
use crate::table_memory::TableMemory;

pub use self::lpis::{LPIS, Redistributor};

/// An ITS as the MADT describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItsNode {
    /// What the IORT calls it.
    pub identifier: u32,
    /// Where its registers are: two windows of 64 KiB.
    pub registers: HostPhys,
}

impl ItsNode {
    /// How people call it: by the address of its registers.
    fn name(&self) -> String {
        format!("its {}", self.registers)
    }

    /// Where devices write.
    const fn doorbell(&self) -> HostPhys {
        HostPhys(self.registers.0 + gits::TRANSLATER)
    }
}

/// All ITSs of the machine, and the LPIs of all its processors.
pub struct Its<R, M> {
    iort: Iort,
    memory: TableMemory<M>,
    host: &'static dyn Host,
    redistributors: Vec<Redistributor<R>>,
    /// Of the processor of each redistributor.
    affinities: Vec<u32>,
    inner: Mutex<Inner<R>>,
}

/// What changes while they run.
struct Inner<R> {
    units: Vec<Unit<R>>,
    lpis: Lpis,
}

impl<R: Registers, M: DmaMemory> Its<R, M> {
    /// Finds out what they can do and makes tables; writes no register. `redistributors`: those of all
    /// processors that shall take interrupts of devices. `map_registers` maps as device memory.
    ///
    /// # Errors
    /// When there is no ITS or no redistributor, one lacks what Pasidon needs of it, or there is no memory for tables.
    pub fn new(
        nodes: &[ItsNode],
        iort: Iort,
        redistributors: Vec<Redistributor<R>>,
        memory: Arc<M>,
        host: &'static dyn Host,
        map_registers: MapRegisters<'_, R>,
    ) -> Result<Self, Refusal> {
        if nodes.is_empty() || redistributors.is_empty() {
            return Err(Refusal::new(
                "its",
                "the MADT names no ITS, or no redistributor",
                "use a machine whose GIC has an ITS, or in QEMU -M virt,gic-version=3",
            ));
        }
        // Whether the tables are read through the processors' caches is known only once they are given away, and
        // differs from table to table. They are small and change seldom, so all that is written is flushed.
        let memory = TableMemory::new(memory, false);
        let lpis = Lpis::new(&memory, &redistributors)?;
        let targets: Vec<_> =
            redistributors.iter().map(|redistributor| (redistributor.base, redistributor.number())).collect();
        let units = nodes
            .iter()
            .map(|&node| Unit::new(node, &targets, &memory, map_registers))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            iort,
            memory,
            host,
            affinities: redistributors.iter().map(Redistributor::affinity).collect(),
            redistributors,
            inner: Mutex::new(Inner { units, lpis }),
        })
    }

    /// Takes all of them over from the firmware. When it returns `Ok`, no message of any device raises anything
    /// until it is mapped. Called once, on one processor, with interrupts off.
    ///
    /// # Errors
    /// When an ITS or a redistributor does not do in time what it is told.
    pub fn take_over(&self) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let Inner { units, lpis } = &mut *inner;
        // No ITS may send anything while the redistributors' tables change.
        units.iter().try_for_each(|unit| unit.turn_off(self.host))?;
        lpis.install(&self.redistributors, self.host)?;
        units.iter_mut().try_for_each(|unit| unit.turn_on(self.surroundings()))
    }

    /// The pages that devices write their messages to: of GITS_TRANSLATER of each, and nothing else is in reach of
    /// a device there.
    pub fn doorbells(&self) -> Vec<HostPhys> {
        let inner = self.inner.lock();
        let page = |unit: &Unit<R>| HostPhys(unit.node().doorbell().0 & !(PAGE_SIZE - 1));
        inner.units.iter().map(page).collect()
    }

    /// What the monitor shows of them.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let inner = self.inner.lock();
        let mut lines = vec![("LPIs", format!("{} of {} mapped", inner.lpis.in_use(), LPIS.len()))];
        lines.extend(inner.units.iter().flat_map(Unit::describe));
        lines
    }

    const fn surroundings(&self) -> Surroundings<'_, M> {
        Surroundings { memory: &self.memory, host: self.host }
    }

    /// The number of the ITS that a requester's messages reach, and the requester's DeviceID there.
    fn source(&self, units: &[Unit<R>], requester: Requester) -> Result<(usize, u32), Refusal> {
        let refuse = |why: &str| Refusal::new("interrupt messages", why, "update the firmware");
        let source =
            self.iort.message_source(requester).ok_or_else(|| refuse("the IORT leads them to no ITS"))?;
        let identifiers = self.iort.its_groups.get(source.group).map_or(&[][..], |group| &group.identifiers);
        identifiers
            .iter()
            .find_map(|&identifier| units.iter().position(|unit| unit.node().identifier == identifier))
            .map(|unit| (unit, source.device))
            .ok_or_else(|| refuse("the IORT leads them to an ITS that the MADT does not name"))
    }

    fn map(
        &self,
        inner: &mut Inner<R>,
        requester: Requester,
        target: HostVector,
    ) -> Result<MsiMessage, Refusal> {
        let Inner { units, lpis } = inner;
        let intid = target.vector;
        let redistributor = self.affinities.iter().position(|&cpu| cpu == target.cpu);
        let redistributor = redistributor.ok_or_else(|| {
            Refusal::new(
                format!("interrupt {intid}"),
                format!("processor {:#x} has no redistributor", target.cpu),
                "name a processor of this machine",
            )
        })?;
        let (number, device) = self.source(units, requester)?;
        let around = self.surroundings();
        match *lpis.owner(intid)? {
            None => {}
            Some(Owner { given: true, .. }) => {
                return Err(Refusal::new(
                    format!("interrupt {intid}"),
                    "an event is mapped to it already",
                    "unmap that first",
                ));
            }
            // What an earlier call could not clean up.
            Some(Owner { unit, event, .. }) => {
                units[unit].end(around, lpis, event)?;
                *lpis.owner(intid)? = None;
            }
        }
        let unit = &mut units[number];
        let event = unit.take(around, device, requester, intid, redistributor)?;
        let owner = |given| Owner { unit: number, event, given };
        *lpis.owner(intid)? = Some(owner(false));
        if let Err(refusal) = unit.map(around, lpis, event) {
            lpis.configure(&self.memory, intid, false);
            // An ITS that is late is not waited for a second time; whoever wants the LPI next will.
            if unit.is_settled() && unit.end(around, lpis, event).is_ok() {
                *lpis.owner(intid)? = None;
            }
            return Err(refusal);
        }
        *lpis.owner(intid)? = Some(owner(true));
        Ok(MsiMessage { address: unit.node().doorbell().0, data: event.number })
    }
}

/// A handle is the number of the LPI.
impl<R: Registers, M: DmaMemory> MsiController for Its<R, M> {
    fn map_interrupt(&self, requester: Requester, target: HostVector) -> Result<RemappedInterrupt, Refusal> {
        let message = self
            .map(&mut self.inner.lock(), requester, target)
            .map_err(|refusal| refusal.within(requester))?;
        Ok(RemappedInterrupt { handle: target.vector, message })
    }

    fn unmap_interrupt(&self, handle: u32) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let Inner { units, lpis } = &mut *inner;
        let owner = lpis.owner(handle)?.filter(|owner| owner.given);
        let owner = owner
            .ok_or_else(|| Refusal::new(format!("interrupt {handle}"), "no event is mapped to it", ""))?;
        units[owner.unit].end(self.surroundings(), lpis, owner.event)?;
        *lpis.owner(handle)? = None;
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
