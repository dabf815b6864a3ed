// SPDX-License-Identifier: MIT OR Apache-2.0
//! LPIs, the interrupts that messages raise: which are enabled, and who takes them.
//!
//! **Invariant.** An LPI belongs to one event at most, and is enabled only while that is mapped. One table of
//! configuration is shared by all redistributors; each has a table of its own for what is pending, which belongs
//! to the hardware.
//! Source: IHI 0069, "LPI Configuration tables" and "LPI Pending tables".

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::host::Host;

use super::registers::{LPI, gicr};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Width of the interrupt numbers in use. Every redistributor with LPIs has that many.
const ID_BITS: u32 = 14;
/// The interrupt numbers of the LPIs in use.
pub const LPIS: Range<u32> = 8192..1 << ID_BITS;
/// Pages of the configuration table: a byte per LPI.
const CONFIGURATION_PAGES: usize = (LPIS.end - LPIS.start) as usize / PAGE_SIZE as usize;
/// Pages of a pending table: a bit per interrupt number, but its base is aligned to 64 KiB.
const PENDING_PAGES: usize = 16;
/// Configuration: the priority that every physical interrupt has here.
const PRIORITY: u8 = 0xa0;
/// Configuration: the LPI is taken.
const ENABLED: u8 = 1 << 0;
/// Configuration: a bit that is one.
const RES1: u8 = 1 << 1;

/// A processor's redistributor.
#[derive(Debug)]
pub struct Redistributor<R> {
    /// Its first frame.
    pub registers: R,
    /// Where that frame is.
    pub base: HostPhys,
}

impl<R: Registers> Redistributor<R> {
    /// Affinity of its processor: Aff3 in bits 31:24 down to Aff0 in 7:0.
    pub fn affinity(&self) -> u32 {
        (self.registers.read64(gicr::TYPER) >> 32) as u32
    }

    /// Processor_Number.
    pub(super) fn number(&self) -> u64 {
        self.registers.read64(gicr::TYPER) >> 8 & 0xffff
    }

    fn refusal(&self, why: &str, remedy: &str) -> Refusal {
        Refusal::new(format!("redistributor {}", self.base), why, remedy)
    }

    /// Stops it from taking LPIs, where the firmware made it. What EnableLPIs is once it was set is up to the
    /// implementation: with GICR_CTLR.CES it can be cleared, without it may stay set for ever, and the tables in
    /// use must then not be changed.
    fn turn_off(&self, host: &dyn Host) -> Result<(), Refusal> {
        let registers = &self.registers;
        let control = registers.read32(gicr::CTLR);
        if control & gicr::CTLR_ENABLE_LPIS != 0 {
            registers.write32(gicr::CTLR, control & !gicr::CTLR_ENABLE_LPIS);
        }
        let off = || registers.read32(gicr::CTLR) & (gicr::CTLR_ENABLE_LPIS | gicr::CTLR_RWP) == 0;
        if wait_until(host, COMMAND_LIMIT_NS, off) {
            return Ok(());
        }
        Err(self.refusal(
            "the firmware turned its LPIs on, and they do not go off (GICR_CTLR.EnableLPIs)",
            "turn off the firmware's use of message-signalled interrupts",
        ))
    }
}

/// An event of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    pub(super) device: u32,
    pub(super) number: u32,
}

/// The event that an LPI belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    /// Number of the ITS.
    pub(super) unit: usize,
    pub(super) event: Event,
    /// The caller was told. Where not, mapping it failed in a way that the ITS may translate it nevertheless.
    pub(super) given: bool,
}

/// The LPIs of the machine.
#[derive(Debug)]
pub(super) struct Lpis {
    configuration: HostPhys,
    /// One per redistributor.
    pending: Vec<HostPhys>,
    owners: Vec<Option<Owner>>,
}

impl Lpis {
    /// Tables for these redistributors, all LPIs disabled. Writes no register.
    pub(super) fn new<R: Registers, M: DmaMemory>(
        memory: &TableMemory<M>,
        redistributors: &[Redistributor<R>],
    ) -> Result<Self, Refusal> {
        for redistributor in redistributors {
            if redistributor.registers.read64(gicr::TYPER) & gicr::TYPER_PLPIS == 0 {
                return Err(redistributor
                    .refusal("it has no LPIs (GICR_TYPER.PLPIS)", "use a machine whose GIC has an ITS"));
            }
        }
        let configuration = memory.alloc(CONFIGURATION_PAGES, "LPI configuration table")?;
        let disabled = u64::from_le_bytes([PRIORITY | RES1; 8]);
        for word in 0..LPIS.len() / 8 {
            memory.write(configuration, word, disabled);
        }
        let pending = redistributors.iter().map(|_| memory.alloc(PENDING_PAGES, "LPI pending table"));
        Ok(Self {
            configuration,
            pending: pending.collect::<Result<_, _>>()?,
            owners: vec![None; LPIS.len()],
        })
    }

    /// Gives the tables to the redistributors and lets them take LPIs. No ITS may be on.
    pub(super) fn install<R: Registers>(
        &self,
        redistributors: &[Redistributor<R>],
        host: &dyn Host,
    ) -> Result<(), Refusal> {
        // Redistributors may share what they hold of the configuration, so that none may be on while two differ.
        redistributors.iter().try_for_each(|redistributor| redistributor.turn_off(host))?;
        for (redistributor, pending) in redistributors.iter().zip(&self.pending) {
            let registers = &redistributor.registers;
            let configuration = self.configuration.0 | u64::from(ID_BITS - 1);
            LPI.write(registers, gicr::PROPBASER, configuration);
            LPI.write(registers, gicr::PENDBASER, pending.0 | gicr::PENDBASER_PTZ);
        }
        for redistributor in redistributors {
            let control = redistributor.registers.read32(gicr::CTLR);
            let on = control | gicr::CTLR_ENABLE_LPIS;
            redistributor.registers.write32(gicr::CTLR, on);
        }
        Ok(())
    }

    /// How many belong to events.
    pub(super) fn in_use(&self) -> usize {
        self.owners.iter().flatten().count()
    }

    /// Whom an LPI belongs to. Refused where it is none.
    pub(super) fn owner(&mut self, intid: u32) -> Result<&mut Option<Owner>, Refusal> {
        slot(intid).and_then(|slot| self.owners.get_mut(slot)).ok_or_else(|| {
            Refusal::new(
                format!("interrupt {intid}"),
                "no LPI in use here",
                format!("give interrupts from {} to {}", LPIS.start, LPIS.end - 1),
            )
        })
    }

    /// Writes the configuration of an LPI. In effect after INV and SYNC.
    pub(super) fn configure<M: DmaMemory>(&self, memory: &TableMemory<M>, intid: u32, enabled: bool) {
        let Some(slot) = slot(intid) else { return };
        let mut bytes = memory.read(self.configuration, slot / 8).to_le_bytes();
        bytes[slot % 8] = PRIORITY | RES1 | if enabled { ENABLED } else { 0 };
        memory.write(self.configuration, slot / 8, u64::from_le_bytes(bytes));
    }
}

/// Place of an LPI in the tables of those in use.
fn slot(intid: u32) -> Option<usize> {
    LPIS.contains(&intid).then(|| (intid - LPIS.start) as usize)
}
