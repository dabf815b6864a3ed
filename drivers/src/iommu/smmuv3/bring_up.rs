// SPDX-License-Identifier: MIT OR Apache-2.0
//! Take-over of a unit from the firmware.
//!
//! **Order.** First everything is terminated while the unit is off (GBPA.ABORT), then it goes off; then the
//! empty stream table, the command queue, the invalidation of everything, the event queue and translation go
//! on, in this order, so that no traffic passes at any moment and the unit never runs on tables it has not
//! forgotten. Called once, on one processor, with interrupts off.
//! Source: SMMUv3 specification, "Reset, enable and initialization".

use alloc::format;

use pasidon_kernel::base::refusal::Refusal;

use super::commands::Command;
use super::registers::{
    CR1_CACHEABLE, CR2_PRIVATE_TLB, CR2_RECORD_INVALID_STREAMS, Control, GBPA_ABORT, GBPA_UPDATE, IRQ_ERRORS,
    IRQ_EVENTS, control, interrupts, offset,
};
use super::unit::{Inner, Unit};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

impl<R: Registers, M: DmaMemory> Unit<R, M> {
    /// Takes the unit over. When it returns, all DMA of all devices behind it is blocked until they are
    /// claimed.
    pub(super) fn bring_up(&self) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let mut events = self.events.lock();
        let Inner { streams, queue, .. } = &mut *inner;
        let registers = &self.registers;

        self.abort_while_off()?;
        let left_on = Control::from_bits_truncate(registers.read32(offset::CR0ACK));
        if left_on.contains(Control::TRANSLATION) {
            log::info!("{}: the firmware left translation on; turning it off", self.name());
        }
        self.set(Control::empty(), "off")?;
        if !interrupts(registers, self.host, 0) {
            return Err(self.deaf("interrupts do not go off (IRQ_CTRLACK)"));
        }
        // Errors of the firmware's time are none of ours.
        registers.write32(offset::GERRORN, registers.read32(offset::GERROR));

        registers.write32(offset::CR1, CR1_CACHEABLE);
        registers.write32(offset::CR2, CR2_RECORD_INVALID_STREAMS | CR2_PRIVATE_TLB);
        registers.write64(offset::STRTAB_BASE, streams.base_register());
        registers.write32(offset::STRTAB_BASE_CFG, streams.configuration_register());
        registers.write64(offset::CMDQ_BASE, queue.base_register());
        registers.write32(offset::CMDQ_PROD, 0);
        registers.write32(offset::CMDQ_CONS, 0);
        queue.restart();
        registers.write64(offset::EVENTQ_BASE, events.base_register());
        registers.write32(offset::EVENTQ_PROD, 0);
        registers.write32(offset::EVENTQ_CONS, 0);
        events.restart();

        let mut on = Control::COMMAND_QUEUE;
        self.set(on, "the command queue on")?;
        // Configuration before translations, as a walk of old configuration may make new translations.
        self.execute(queue, &[Command::ForgetConfiguration])?;
        if self.identification.hypervisor_streams() {
            self.execute(queue, &[Command::ForgetHypervisorTranslations])?;
        }
        self.execute(queue, &[Command::ForgetTranslations])?;
        on |= Control::EVENT_QUEUE;
        self.set(on, "the event queue on")?;
        if self.identification.ats() {
            on |= Control::ATS_CHECK;
        }
        self.set(on | Control::TRANSLATION, "translation on")?;
        for (left_out, what) in [
            (cfg!(feature = "omit-cd-invalidation"), "context descriptors"),
            (cfg!(feature = "omit-tlb-invalidation"), "translations"),
        ] {
            if left_out {
                log::warn!(
                    "{}: built WITHOUT invalidation of {what}, for the test that must then fail; not for use",
                    self.name()
                );
            }
        }
        Ok(())
    }

    /// Lets the unit raise its wired interrupts for events and global errors.
    pub(super) fn enable_fault_interrupt(&self) -> Result<(), Refusal> {
        if self.identification.messages() {
            // No message: the wire.
            self.registers.write64(offset::EVENTQ_IRQ_CFG0, 0);
            self.registers.write64(offset::GERROR_IRQ_CFG0, 0);
        }
        if interrupts(&self.registers, self.host, IRQ_EVENTS | IRQ_ERRORS) {
            Ok(())
        } else {
            Err(self.deaf("interrupts do not go on (IRQ_CTRLACK)"))
        }
    }

    /// Terminates all traffic for the time that translation is off.
    fn abort_while_off(&self) -> Result<(), Refusal> {
        let registers = &self.registers;
        let updated =
            || wait_until(self.host, COMMAND_LIMIT_NS, || registers.read32(offset::GBPA) & GBPA_UPDATE == 0);
        if updated() {
            let rest = registers.read32(offset::GBPA);
            registers.write32(offset::GBPA, rest | GBPA_ABORT | GBPA_UPDATE);
            if updated() {
                return Ok(());
            }
        }
        Err(self.deaf("bypass does not go off (GBPA.UPDATE)"))
    }

    fn set(&self, bits: Control, what: &str) -> Result<(), Refusal> {
        if control(&self.registers, self.host, bits) {
            return Ok(());
        }
        let state = self.registers.read32(offset::CR0ACK);
        Err(self.deaf(&format!("it does not go {what} (CR0ACK {state:#x})")))
    }

    fn deaf(&self, why: &str) -> Refusal {
        Refusal::new(self.name(), why, "restart the machine")
    }
}
