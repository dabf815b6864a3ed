// SPDX-License-Identifier: MIT OR Apache-2.0
//! The physical device: what it is programmed with, and its commands while nobody else uses it.
//!
//! **Invariants.** After bring-up the device stays enabled; only queues, their interrupt permissions and MSI-X
//! entries change. What serves one queue writes only that queue's registers. A reset of the whole device
//! excludes everything else (`access`), and is seen by every lease as a new epoch.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pasidon_kernel::base::addr::{HostPhys, Requester};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::host::Host;
use spin::Mutex;

use super::access::{Closed, Gate};
use super::capabilities::{Capabilities, OPCAP_WORDS};
use super::commands::{Command, CommandFailure, error};
use super::queue::Queue;
use super::registers::{CMD, CMDSTS, GENSTS, cmd, gensts, ims_entry, msix_entry, msixperm, wqcfg};
use super::share::{ShareInterrupt, SharedQueue};
use super::{Options, Silicon};
use crate::pci::{ConfigSpace, Function, MsixLocation, PasidCapability};
use crate::registers::Registers;

/// Batch, whose members the device fetches after the check of the batch itself.
pub(super) const OPERATION_BATCH: u64 = 1 << 1;
/// Largest transfer a guest may ask for, log2 of bytes: what Linux uses. Longer ones would hold up the
/// other queues of the group.
const MAX_TRANSFER_LOG2: u8 = 21;
/// Smallest batch limit the device takes, log2.
const MIN_BATCH_LOG2: u8 = 1;
/// Priority of every queue, 1..=15: all alike.
const PRIORITY: u32 = 8;

/// What one queue is programmed with; nothing in it comes from a guest unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// Log2 of the largest transfer in bytes.
    pub max_transfer_log2: u8,
    /// Log2 of the largest batch in descriptors.
    pub max_batch_log2: u8,
}

/// The device and what is known about it.
pub(super) struct Device<R, C> {
    pub name: String,
    pub gate: Gate<R>,
    pub function: Function<C>,
    pub host: Arc<dyn Host>,
    pub silicon: Silicon,
    pub options: Options,
    pub capabilities: Capabilities,
    /// Its MSI-X capability.
    pub msix: MsixLocation,
    /// Its PASID capability.
    pub pasid: PasidCapability,
    /// No IOMMU stands in front of it: nothing is sent with a PASID.
    pub untranslated: bool,
    /// Operations guests may use.
    pub operations: [u64; OPCAP_WORDS],
    /// BAR2.
    pub portals: HostPhys,
    pub queues: Vec<Queue>,
    /// The queue that is shared.
    pub shared: Option<Arc<SharedQueue>>,
    /// Interrupt entries for shares.
    pub share_interrupts: Mutex<Vec<ShareInterrupt>>,
    /// Those of them that nobody has.
    pub free_entries: Mutex<Vec<ShareInterrupt>>,
    /// Counts the resets of the whole device since bring-up.
    pub epoch: AtomicU32,
    /// A reset is under way, or did not end well: nobody gets a part of it.
    pub is_down: AtomicBool,
    /// How often a reset ended well, so that nothing of what ran before it is left.
    pub resets: AtomicU32,
    /// Whether a command is in line.
    pub busy: AtomicBool,
    /// Vdevs whose guest waits for the end of a command.
    pub attended: AtomicU32,
}

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// How often the whole device was reset.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the device stopped by itself and waits for a reset. Not known, so no, while it is being reset.
    pub fn is_halted(&self) -> bool {
        let status = self.gate.open().map(|access| access.registers.read32(GENSTS));
        status.is_some_and(|status| status != u32::MAX && status & gensts::STATE_MASK == gensts::HALT)
    }

    /// Width of the PASIDs it can send, in bits.
    pub fn pasid_bits(&self) -> u8 {
        self.pasid.bits.min(Pasid::BITS as u8)
    }

    /// Gives the device a command and waits for its end, at most for the deadline of the options. Returns
    /// the result field. Only while nobody else uses the device.
    pub fn execute(&self, closed: &Closed<'_, R>, command: Command) -> Result<u16, CommandFailure> {
        let patience = self.options.command_deadline_ns;
        if self.wait_for_command(closed).is_none() {
            return Err(CommandFailure::Busy(command, patience));
        }
        closed.registers.write32(CMD, command.encode());
        let Some(status) = self.wait_for_command(closed) else {
            return Err(CommandFailure::Unfinished(command, patience));
        };
        match (status & cmd::ERROR_MASK) as u8 {
            error::NONE => Ok((status >> cmd::RESULT_SHIFT) as u16),
            code => Err(CommandFailure::Refused(command, code)),
        }
    }

    /// Waits until no command is active; the final CMDSTS.
    fn wait_for_command(&self, closed: &Closed<'_, R>) -> Option<u32> {
        let deadline = self.host.now_ns().saturating_add(self.options.command_deadline_ns);
        loop {
            // Time first: the device had all of it, however long this processor was away.
            let late = self.host.now_ns() > deadline;
            let status = closed.registers.read32(CMDSTS);
            if status & cmd::ACTIVE == 0 {
                return Some(status);
            }
            if late {
                return None;
            }
            core::hint::spin_loop();
        }
    }

    /// The limits a guest may use at most.
    pub fn limits(&self) -> Limits {
        let general = self.capabilities.general;
        Limits {
            max_transfer_log2: general.max_transfer_log2().min(MAX_TRANSFER_LOG2),
            max_batch_log2: general.max_batch_log2().max(MIN_BATCH_LOG2),
        }
    }

    /// Programs a queue that is disabled as dedicated, tagged and unprivileged.
    pub fn program_dedicated(&self, wq: u8, size: u16, pasid: u32, limits: Limits) {
        if let Some(access) = self.gate.open() {
            let mode = wqcfg::MODE_DEDICATED | wqcfg::PASID_EN | pasid << wqcfg::PASID_SHIFT;
            self.program(access.registers, wq, size, mode, limits);
        }
    }

    /// Programs a queue that is disabled as the one that is shared: each descriptor brings its tag, or none has one. All of
    /// it can be filled by the hypervisor, which alone reaches its portals.
    pub fn program_shared(&self, registers: &R, wq: u8, size: u16) {
        let mode = if self.untranslated { wqcfg::MODE_DEDICATED } else { wqcfg::PASID_EN };
        self.program(registers, wq, size, mode, self.limits());
    }

    fn program(&self, registers: &R, wq: u8, size: u16, mode: u32, limits: Limits) {
        let at = self.capabilities.wqcfg_of(wq);
        let ceiling = self.limits();
        let priority =
            if self.capabilities.work_queues.priority() { PRIORITY << wqcfg::PRIORITY_SHIFT } else { 0 };
        let batch = if self.operations[0] & OPERATION_BATCH != 0 {
            limits.max_batch_log2.clamp(MIN_BATCH_LOG2, ceiling.max_batch_log2)
        } else {
            MIN_BATCH_LOG2
        };
        let transfer = limits.max_transfer_log2.min(ceiling.max_transfer_log2);
        registers.write32(at + wqcfg::THRESHOLD, u32::from(size));
        registers.write32(at + wqcfg::MODE, mode | priority);
        registers
            .write32(at + wqcfg::LIMITS, u32::from(transfer) | u32::from(batch) << wqcfg::MAX_BATCH_SHIFT);
        registers.write32(at + wqcfg::OCCUPANCY_LIMIT, 0);
        if self.capabilities.has_opcfg() {
            for (word, bits) in self.operations.into_iter().enumerate() {
                registers.write64(at + wqcfg::OPCFG + word * 8, bits);
            }
        }
    }

    /// Allows completions of queues tagged with `pasid` (and no others) to use an interrupt entry; `None`
    /// takes the permission away. Returns when the device has it. While the device is being reset there is
    /// nothing to do: the end of the reset gives present tags their permissions.
    pub fn permit_interrupt(&self, entry: u16, pasid: Option<u32>) {
        if let Some(access) = self.gate.open() {
            self.write_permission(access.registers, entry, pasid);
        }
    }

    /// The caller excludes others from the entry.
    pub fn write_permission(&self, registers: &R, entry: u16, pasid: Option<u32>) {
        if self.capabilities.ims_index(entry).is_some() {
            let control = self.msix_entry(entry) + msix_entry::CONTROL;
            let mask = registers.read32(control) & msix_entry::MASKED;
            let permission = pasid.map_or(0, |pasid| pasid << ims_entry::PASID_SHIFT | ims_entry::PASID_EN);
            registers.write32(control, mask | permission);
            registers.read32(control);
            return;
        }
        let at = self.capabilities.msixperm_of(entry);
        let value = pasid.map_or(0, |pasid| pasid << msixperm::PASID_SHIFT | msixperm::PASID_EN);
        registers.write32(at, value);
        // The read pushes the write before it, and interrupts the device sent earlier.
        registers.read32(at);
    }

    /// Offset of an interrupt entry.
    pub fn msix_entry(&self, entry: u16) -> usize {
        self.capabilities.interrupt_entry_of(entry)
    }

    /// Where it is on the bus.
    pub fn requester(&self) -> Requester {
        self.function.requester()
    }
}
