// SPDX-License-Identifier: MIT OR Apache-2.0
//! Take-over of a unit from the firmware.
//!
//! **Order.** What the firmware had on goes off; then the empty root table, the queue, the global
//! invalidations, interrupt remapping and translation go on, in this order, so that the unit never runs on
//! tables it has not forgotten. Protected memory regions go off last: until translation blocks everything,
//! they may be what protects memory. Called once, on one processor, with interrupts off.
//! Source: Intel VT-d specification, "Set Root Table Pointer Operation", "Queued Invalidation Interface",
//! "Interrupt Remapping Setup", "Protected Memory Enable Register".

use alloc::format;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;

use super::fault;
use super::invalidation::Invalidation;
use super::registers::{
    EVENT_INTERRUPT_MASK, Global, PMEN_EPM, PMEN_PRS, RTADDR_TTM_SCALABLE, command, offset, status,
};
use super::unit::{Inner, Unit};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Base of the interrupt address range, with the low 8 bits of the APIC identifier in 19:12.
const EVENT_ADDRESS: u32 = 0xfee0_0000;
/// Place of those bits.
const EVENT_DESTINATION_SHIFT: u32 = 12;

impl<R: Registers, M: DmaMemory> Unit<R, M> {
    /// Takes the unit over. When it returns, all DMA and all interrupt messages of all devices it serves
    /// are blocked, until they are claimed and mapped.
    pub(super) fn bring_up(&self) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let Inner { contexts, queue, interrupts, .. } = &mut *inner;
        let registers = &self.registers;

        registers.write32(offset::FECTL, EVENT_INTERRUPT_MASK);
        registers.write32(offset::IECTL, EVENT_INTERRUPT_MASK);
        for (bit, name) in [
            (Global::INTERRUPT_REMAPPING, "interrupt remapping"),
            (Global::TRANSLATION, "translation"),
            (Global::COMPATIBILITY_FORMAT, "compatibility-format interrupts"),
            (Global::QUEUED_INVALIDATION, "queued invalidation"),
        ] {
            if status(registers).contains(bit) {
                log::info!("{}: the firmware left {name} on; turning it off", self.name());
                self.set(bit, false, name)?;
            }
        }
        fault::discard(registers, self.capability);

        self.push_out()?;
        registers.write64(offset::RTADDR, contexts.root().0 | RTADDR_TTM_SCALABLE);
        self.set(Global::ROOT_TABLE, true, "the root table pointer")?;

        registers.write64(offset::IQT, 0);
        registers.write64(offset::IQA, queue.address_register());
        queue.restart();
        self.set(Global::QUEUED_INVALIDATION, true, "queued invalidation")?;
        self.forget(
            queue,
            &[
                Invalidation::ContextGlobal,
                Invalidation::Fence,
                Invalidation::PasidCacheGlobal,
                Invalidation::Fence,
                Invalidation::IotlbGlobal,
            ],
        )?;

        registers.write64(offset::IRTA, interrupts.address_register());
        self.set(Global::INTERRUPT_TABLE, true, "the interrupt remapping table pointer")?;
        self.forget(queue, &[Invalidation::InterruptGlobal])?;
        self.set(Global::INTERRUPT_REMAPPING, true, "interrupt remapping")?;

        self.set(Global::TRANSLATION, true, "translation")?;
        self.protected_memory_off()?;
        if cfg!(feature = "omit-pasid-cache-invalidation") {
            log::warn!(
                "{}: built WITHOUT PASID-cache invalidation, for the test that must then fail; not for use",
                self.name()
            );
        }
        Ok(())
    }

    /// Sends the unit's fault event to a vector of the hypervisor's own, and lets it come. These messages
    /// are not remapped.
    pub(super) fn set_fault_interrupt(&self, target: HostVector) {
        let registers = &self.registers;
        registers.write32(offset::FECTL, EVENT_INTERRUPT_MASK);
        registers.write32(offset::FEDATA, target.vector);
        registers.write32(offset::FEADDR, EVENT_ADDRESS | (target.cpu & 0xff) << EVENT_DESTINATION_SHIFT);
        registers.write32(offset::FEUADDR, target.cpu & !0xff);
        registers.write32(offset::FECTL, 0);
        // The read keeps the write from being late.
        registers.read32(offset::FECTL);
    }

    fn protected_memory_off(&self) -> Result<(), Refusal> {
        let registers = &self.registers;
        if !self.capability.protected_memory() || registers.read32(offset::PMEN) & PMEN_EPM == 0 {
            return Ok(());
        }
        registers.write32(offset::PMEN, registers.read32(offset::PMEN) & !PMEN_EPM);
        if wait_until(self.host, COMMAND_LIMIT_NS, || registers.read32(offset::PMEN) & PMEN_PRS == 0) {
            Ok(())
        } else {
            Err(Refusal::new(
                self.name(),
                "the protected memory regions stay on (PMEN.PRS)",
                "turn DMA protection off in the firmware",
            ))
        }
    }

    fn set(&self, bit: Global, on: bool, name: &str) -> Result<(), Refusal> {
        if command(&self.registers, self.host, bit, on) {
            return Ok(());
        }
        Err(Refusal::new(
            self.name(),
            format!(
                "{name} does not go {} (GSTS {:#010x})",
                if on { "on" } else { "off" },
                status(&self.registers).bits()
            ),
            "restart the machine",
        ))
    }
}
