// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts of the device: its MSI-X entries, its own events, and the errors it reports.
//!
//! **Invariant.** An error goes to the one queue the device names, never to another; what a guest sees of it
//! carries the guest's numbers. The device has one record for all queues, which holds the first error until it
//! is taken: when it says that further ones were lost, each queue may have lost one, and is told.

use alloc::string::ToString;

use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::vdev::parent::ParentEvent;
use pasidon_kernel::vm::exit::MsiMessage;

use super::device::Device;
use super::errors::{ErrorRecord, describe};
use super::queue::Queue;
use super::registers::{GENSTS, INTCAUSE, SWERR, gensts, ims_entry, intcause, msix_entry, swerr};
use crate::pci::ConfigSpace;
use crate::registers::Registers;

/// Most passes of the event handler: a device that keeps raising causes must not keep the processor.
const MAX_PASSES: usize = 8;

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// Programs and unmasks, or masks and clears, one interrupt entry.
    pub fn set_interrupt(&self, entry: u16, message: Option<MsiMessage>) {
        let entries = self.capabilities.interrupt_entries();
        if entry >= entries {
            log::warn!("parent {}: interrupt entry {entry} does not exist (it has {entries})", self.name);
            return;
        }
        // While the device is being reset that is all: the end of the reset writes what is noted here.
        self.gate.with_slot(|slot| slot.messages[usize::from(entry)] = message);
        if let Some(access) = self.gate.open() {
            self.write_msix_entry(access.registers, entry, message);
        }
    }

    /// The same for an entry that exists.
    pub fn write_msix_entry(&self, registers: &R, entry: u16, message: Option<MsiMessage>) {
        let at = self.msix_entry(entry);
        // Masked while it changes, so that no half-written message is ever sent.
        let control = self.control_of(registers, entry);
        registers.write32(at + msix_entry::CONTROL, control | msix_entry::MASKED);
        let MsiMessage { address, data } = message.unwrap_or_default();
        registers.write32(at + msix_entry::ADDRESS_LOW, address as u32);
        registers.write32(at + msix_entry::ADDRESS_HIGH, (address >> 32) as u32);
        registers.write32(at + msix_entry::DATA, data);
        if message.is_some() {
            registers.write32(at + msix_entry::CONTROL, control);
        }
        // The read pushes the writes, and messages the device sent before them.
        registers.read32(at + msix_entry::CONTROL);
    }

    /// The control word of an entry, unmasked: that of the IMS holds the permission, too.
    fn control_of(&self, registers: &R, entry: u16) -> u32 {
        let permission = ims_entry::PASID_EN | 0xf_ffff << ims_entry::PASID_SHIFT;
        match self.capabilities.ims_index(entry) {
            Some(_) => registers.read32(self.msix_entry(entry) + msix_entry::CONTROL) & permission,
            None => 0,
        }
    }

    /// Masks or unmasks an entry that is programmed. False where it is not, and while the device is reset: then nothing
    /// is written.
    pub fn hold_interrupt(&self, entry: u16, hold: bool) -> bool {
        let Some(mut access) = self.gate.open() else {
            return false;
        };
        let message = access.slot().messages.get(usize::from(entry));
        if message.is_none_or(Option::is_none) {
            return false;
        }
        let control = self.msix_entry(entry) + msix_entry::CONTROL;
        let mask = if hold { msix_entry::MASKED } else { 0 };
        access.registers.write32(control, self.control_of(access.registers, entry) | mask);
        true
    }

    /// The event interrupt: acknowledges causes first, so that what happens meanwhile raises a new one. A reset
    /// of the device takes causes and errors away.
    pub fn handle_event(&self, sink: &mut dyn FnMut(ParentEvent)) -> Drained {
        for _ in 0..MAX_PASSES {
            let Some(access) = self.gate.open() else {
                return Drained::Empty;
            };
            let registers = access.registers;
            let cause = registers.read32(INTCAUSE);
            let error = registers.read64(SWERR) & swerr::VALID;
            // All ones: the device does not answer. An error that nobody takes would keep the next from being
            // announced, also where its cause was cleared before.
            if cause == u32::MAX || cause == 0 && error == 0 {
                return Drained::Empty;
            }
            registers.write32(INTCAUSE, cause);
            let record = (cause & intcause::SWERR != 0 || error != 0).then(|| self.read_error(registers));
            let status = registers.read32(GENSTS);
            drop(access);
            if let Some(record) = record.flatten() {
                self.take_error(record, sink);
            }
            if cause & intcause::HALT != 0 && status & gensts::STATE_MASK == gensts::HALT {
                sink(ParentEvent::Halted(alloc::format!(
                    "the device halted and needs a {}",
                    gensts::reset_type(status)
                )));
            }
            if cause & intcause::HANDLES_REVOKED != 0 {
                sink(ParentEvent::Halted(
                    "the device revoked its interrupt handles; completions may be missed".into(),
                ));
            }
        }
        Drained::Again
    }

    /// Reads and acknowledges SWERR.
    fn read_error(&self, registers: &R) -> Option<ErrorRecord> {
        let record = ErrorRecord(core::array::from_fn(|word| registers.read64(SWERR + word * 8)));
        let first = record.0[0];
        // All ones: the device is being reset.
        if first & swerr::VALID == 0 || first == u64::MAX {
            return None;
        }
        registers.write64(SWERR, first & (swerr::VALID | swerr::OVERFLOW));
        Some(record)
    }

    fn take_error(&self, record: ErrorRecord, sink: &mut dyn FnMut(ParentEvent)) {
        let first = record.0[0];
        let queue = record
            .queue()
            .and_then(|index| self.queues.get(index))
            .filter(|queue| record.may_be_of(queue.pasid()));
        if let Some(queue) = queue {
            queue.errors.put(record);
        }
        let member = self.shared.as_ref().and_then(|shared| {
            let of_it = record.queue() == Some(usize::from(shared.index()));
            shared.member_of(record.pasid().filter(|_| of_it)?)
        });
        if let Some(member) = &member {
            member.errors.put(record);
        }
        let place = match (queue, &member) {
            (Some(queue), None) => alloc::format!("WQ {}", queue.index),
            (_, Some(member)) => member.to_string(),
            (None, None) => "the device".into(),
        };
        let lost = if first & swerr::OVERFLOW != 0 {
            for queue in self.queues.iter().filter(|queue| queue.pasid().is_some()) {
                queue.errors.note_lost();
            }
            if let Some(shared) = &self.shared {
                shared.for_each(|member| member.errors.note_lost());
            }
            ", further errors, of whatever queue, were lost"
        } else {
            ""
        };
        sink(ParentEvent::Error {
            pasid: member.and_then(|member| member.pasid()).or(queue.and_then(Queue::pasid)),
            text: alloc::format!(
                "{place}: {} (SWERR {:#04x}), operation {:#04x}, address {:#x}{lost}",
                describe(record.field(swerr::CODE_SHIFT, 0xff)),
                record.field(swerr::CODE_SHIFT, 0xff),
                record.field(swerr::OPERATION_SHIFT, 0xff),
                record.0[2],
            ),
        });
    }
}
