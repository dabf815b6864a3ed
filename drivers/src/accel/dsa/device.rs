// SPDX-License-Identifier: MIT OR Apache-2.0
//! The physical device, and the one place that gives it commands.
//!
//! **Invariants.** One command at a time, each with a deadline. After bring-up the device stays enabled;
//! only queues, their interrupt permissions and MSI-X entries change. What serves one queue writes only
//! that queue's registers. A reset of the whole device excludes everything else, and is seen by every
//! lease as a new epoch.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use pasidon_kernel::addr::{HostPhys, Requester};
use pasidon_kernel::exit::MsiMessage;
use pasidon_kernel::host::Host;
use pasidon_kernel::pasid::Pasid;
use spin::{Mutex, MutexGuard};

use super::capabilities::{Capabilities, OPCAP_WORDS};
use super::commands::{Command, CommandFailure, error};
use super::queue::Queue;
use super::registers::{CMD, CMDSTS, GENSTS, cmd, gensts, msix_entry, msixperm, wqcfg};
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
    pub registers: R,
    pub function: Function<C>,
    pub host: Arc<dyn Host>,
    pub silicon: Silicon,
    pub options: Options,
    pub capabilities: Capabilities,
    /// Its MSI-X capability.
    pub msix: MsixLocation,
    /// Its PASID capability.
    pub pasid: PasidCapability,
    /// Operations guests may use.
    pub operations: [u64; OPCAP_WORDS],
    /// BAR2.
    pub portals: HostPhys,
    pub queues: Vec<Queue>,
    /// Counts the resets of the whole device since bring-up.
    pub epoch: AtomicU32,
    /// Held while a command is executed or registers behind it change.
    pub exclusive: Mutex<Exclusive>,
}

/// What only the holder of the lock may use.
#[derive(Default)]
pub(super) struct Exclusive {
    /// What each MSI-X entry was programmed with, for the time after a reset.
    pub messages: Vec<Option<MsiMessage>>,
}

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// How often the whole device was reset.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the device stopped by itself and waits for a reset.
    pub fn is_halted(&self) -> bool {
        let status = self.registers.read32(GENSTS);
        status != u32::MAX && status & gensts::STATE_MASK == gensts::HALT
    }

    /// Width of the PASIDs it can send, in bits.
    pub fn pasid_bits(&self) -> u8 {
        self.pasid.bits.min(Pasid::BITS as u8)
    }

    pub fn exclusively(&self) -> MutexGuard<'_, Exclusive> {
        self.exclusive.lock()
    }

    /// Gives the device a command and waits for its end, at most for the deadline of the options. Returns
    /// the result field.
    pub fn execute(&self, command: Command) -> Result<u16, CommandFailure> {
        self.execute_exclusively(&mut self.exclusive.lock(), command)
    }

    pub fn execute_exclusively(&self, _: &mut Exclusive, command: Command) -> Result<u16, CommandFailure> {
        let patience = self.options.command_deadline_ns;
        if self.wait_for_command().is_none() {
            return Err(CommandFailure::Busy(command, patience));
        }
        self.registers.write32(CMD, command.encode());
        let Some(status) = self.wait_for_command() else {
            return Err(CommandFailure::Unfinished(command, patience));
        };
        match (status & cmd::ERROR_MASK) as u8 {
            error::NONE => Ok((status >> cmd::RESULT_SHIFT) as u16),
            code => Err(CommandFailure::Refused(command, code)),
        }
    }

    /// Waits until no command is active; the final CMDSTS.
    fn wait_for_command(&self) -> Option<u32> {
        let deadline = self
            .host
            .now_ns()
            .saturating_add(self.options.command_deadline_ns);
        loop {
            // Time first: the device had all of it, however long this processor was away.
            let late = self.host.now_ns() > deadline;
            let status = self.registers.read32(CMDSTS);
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

    /// Programs a queue as dedicated, tagged, unprivileged, and enables it.
    pub fn enable_queue(&self, wq: u8, size: u16, pasid: u32, limits: Limits) -> Result<(), CommandFailure> {
        let mut exclusive = self.exclusive.lock();
        let at = self.capabilities.wqcfg_of(wq);
        let ceiling = self.limits();
        let priority = if self.capabilities.work_queues.priority() {
            PRIORITY << wqcfg::PRIORITY_SHIFT
        } else {
            0
        };
        let batch = if self.operations[0] & OPERATION_BATCH != 0 {
            limits
                .max_batch_log2
                .clamp(MIN_BATCH_LOG2, ceiling.max_batch_log2)
        } else {
            MIN_BATCH_LOG2
        };
        let transfer = limits.max_transfer_log2.min(ceiling.max_transfer_log2);
        self.registers.write32(at + wqcfg::THRESHOLD, u32::from(size));
        self.registers.write32(
            at + wqcfg::MODE,
            wqcfg::MODE_DEDICATED | priority | pasid << wqcfg::PASID_SHIFT | wqcfg::PASID_EN,
        );
        self.registers.write32(
            at + wqcfg::LIMITS,
            u32::from(transfer) | u32::from(batch) << wqcfg::MAX_BATCH_SHIFT,
        );
        self.registers.write32(at + wqcfg::OCCUPANCY_LIMIT, 0);
        if self.capabilities.has_opcfg() {
            for (word, bits) in self.operations.into_iter().enumerate() {
                self.registers.write64(at + wqcfg::OPCFG + word * 8, bits);
            }
        }
        self.execute_exclusively(&mut exclusive, Command::EnableWq(wq))
            .map(|_| ())
    }

    /// Whether a queue is disabled, as the device says.
    pub fn queue_is_disabled(&self, wq: u8) -> bool {
        self.registers
            .read32(self.capabilities.wqcfg_of(wq) + wqcfg::STATE)
            >> wqcfg::STATE_SHIFT
            == 0
    }

    /// Allows completions of queues tagged with `pasid` (and no others) to use an MSI-X entry; `None`
    /// takes the permission away. Returns when the device has it.
    pub fn permit_interrupt(&self, entry: u16, pasid: Option<u32>) {
        self.permit_exclusively(&mut self.exclusive.lock(), entry, pasid);
    }

    pub fn permit_exclusively(&self, _: &mut Exclusive, entry: u16, pasid: Option<u32>) {
        let at = self.capabilities.msixperm_of(entry);
        let value = pasid.map_or(0, |pasid| pasid << msixperm::PASID_SHIFT | msixperm::PASID_EN);
        self.registers.write32(at, value);
        // The read pushes the write before it, and interrupts the device sent earlier.
        self.registers.read32(at);
    }

    /// Offset of an MSI-X table entry.
    pub fn msix_entry(&self, entry: u16) -> usize {
        self.capabilities.msix_table + usize::from(entry) * msix_entry::STRIDE
    }

    /// Where it is on the bus.
    pub fn requester(&self) -> Requester {
        self.function.requester()
    }
}
