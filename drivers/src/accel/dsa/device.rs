// SPDX-License-Identifier: MIT OR Apache-2.0
//! The physical device: bring-up, and the one place that gives it commands.
//!
//! **Invariants.** One command at a time, each with a deadline. After bring-up the device stays enabled;
//! only queues, their interrupt permissions and MSI-X entries change. What serves one queue writes only
//! that queue's registers.
//!
//! **Order of bring-up.** Memory decoding; what firmware left is reset; PASID on, ATS and page requests
//! off (a change of these while the device is enabled halts it); groups, engines and queue sizes (writable
//! only while it is disabled); user-mode interrupts allowed; enabled.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::addr::{HostPhys, Requester};
use pasidon_kernel::host::Host;
use pasidon_kernel::refusal::Refusal;
use spin::Mutex;

use super::capabilities::{Capabilities, OPCAP_WORDS};
use super::commands::{Command, CommandFailure, code, error};
use super::queue::Queue;
use super::registers::{
    CMD, CMDSTS, GENCFG, GENCTRL, GENSTS, cmd, gencfg, genctrl, gensts, grpcfg, msix_entry, msixperm, portal,
    wqcfg,
};
use super::{Options, Setup, Silicon};
use crate::pci::{ConfigSpace, Function};
use crate::registers::Registers;

/// Operations of DSA 1.0, as in OPCAP word 0. Later ones (inter-domain among them) are not given to
/// guests: they reach other address spaces.
const OPERATIONS_1_0: u64 = 1 << 0x20 | 0x3f << 0x10 | 0x3ff;
/// Batch, whose members the device fetches after the check of the batch itself.
const OPERATION_BATCH: u64 = 1 << 1;
/// Largest transfer a guest may ask for, log2 of bytes: what Linux uses. Longer ones would hold up the
/// other queues of the group.
const MAX_TRANSFER_LOG2: u8 = 21;
/// Largest batch, log2 of descriptors: what Linux uses.
const MAX_BATCH_LOG2: u8 = 5;
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
    /// Width of the PASIDs it can send.
    pub pasid_bits: u8,
    /// Operations guests may use.
    pub operations: [u64; OPCAP_WORDS],
    /// BAR2.
    pub portals: HostPhys,
    pub queues: Vec<Queue>,
    /// Held while the device executes a command.
    commands: Mutex<()>,
}

impl<R: Registers, C: ConfigSpace> Device<R, C> {
    /// Brings the device up. On refusal it is left disabled and without bus mastering.
    pub fn bring_up(setup: Setup<R, C>) -> Result<Self, Refusal> {
        let name = setup.name.clone();
        let function = setup.function.identity();
        Self::new(setup).map_err(|refusal| {
            Refusal {
                what: String::new(),
                ..refusal
            }
            .within(alloc::format!("parent {name} ({function})"))
        })
    }

    fn new(setup: Setup<R, C>) -> Result<Self, Refusal> {
        let Setup {
            name,
            function,
            registers,
            host,
            partition,
            options,
        } = setup;
        let refuse = |why: String, remedy: &str| Refusal::new("", why, remedy);
        let identity = function.identity();
        let silicon = Silicon::of(identity.vendor, identity.device).ok_or_else(|| {
            refuse(
                "not a Data Streaming Accelerator this driver knows".into(),
                "name a function that is 8086:11fb or 8086:0b25",
            )
        })?;
        let bar0 = function.memory_bar(0)?;
        let bar2 = function.memory_bar(2)?;
        let msix = function
            .msix()
            .ok_or_else(|| refuse("it has no MSI-X".into(), "name another device"))?;
        let pasid = function.pasid().filter(|pasid| pasid.bits > 0).ok_or_else(|| {
            refuse(
                "it cannot tag its requests (no PASID capability)".into(),
                "switch PASID on in the firmware's setup",
            )
        })?;
        function.set_bus_master(false);
        function.enable_memory();
        let window = usize::try_from(bar0.size).unwrap_or(usize::MAX);
        let capabilities = Capabilities::read(&registers, window, &msix)
            .map_err(|why| refuse(why, "name another device, or check the firmware's setup"))?;
        let needed = portal::STRIDE * u64::from(capabilities.work_queues.queues());
        if bar2.size < needed {
            return Err(refuse(
                alloc::format!("BAR2 of {:#x} bytes lacks portals for its queues", bar2.size),
                "name another device",
            ));
        }
        let mut operations = [0; OPCAP_WORDS];
        operations[0] = capabilities.operations[0] & OPERATIONS_1_0;
        if silicon == Silicon::SapphireRapids {
            operations[0] &= !OPERATION_BATCH;
        }
        let mut device = Self {
            name,
            registers,
            function,
            host,
            silicon,
            options,
            capabilities,
            pasid_bits: pasid.bits.min(20),
            operations,
            portals: bar2.address,
            queues: Vec::new(),
            commands: Mutex::new(()),
        };
        device.reset()?;
        device.function.disable_ats_and_pri();
        device.function.enable_pasid(&pasid);
        device.mask_interrupts();
        device.function.enable_msix(&msix);
        device.make_queues(&partition);
        device.configure();
        device.function.set_bus_master(true);
        if let Err(failure) = device.execute(Command::EnableDevice) {
            device.function.set_bus_master(false);
            return Err(refuse(
                failure.to_string(),
                "try again after a cold start of the machine",
            ));
        }
        device.request_handles()?;
        Ok(device)
    }

    /// Stops whatever firmware may have left running.
    fn reset(&self) -> Result<(), Refusal> {
        let status = self.registers.read32(GENSTS);
        let needs_more = status & gensts::STATE_MASK == gensts::HALT
            && status >> gensts::RESET_TYPE_SHIFT & gensts::RESET_TYPE_MASK != gensts::RESET_SOFTWARE;
        if !needs_more && self.execute(Command::ResetDevice).is_ok() && self.is_disabled() {
            return Ok(());
        }
        self.function.function_level_reset(&*self.host)?;
        if self.is_disabled() {
            return Ok(());
        }
        Err(Refusal::new(
            "",
            alloc::format!(
                "still {} after a function-level reset",
                gensts::state(self.registers.read32(GENSTS))
            ),
            "try again after a cold start of the machine",
        ))
    }

    fn is_disabled(&self) -> bool {
        self.registers.read32(GENSTS) & gensts::STATE_MASK == gensts::DISABLED
    }

    fn make_queues(&mut self, partition: &super::Partition) {
        let caps = &self.capabilities;
        // MSI-X entry 0 carries the device's own events; each queue needs one more.
        let usable = usize::from(caps.msix_entries.saturating_sub(1));
        let count = usize::from(caps.work_queues.queues()).min(usable);
        let sizes = partition.sizes(count, caps.work_queues.total_size());
        self.queues = (0u8..)
            .zip(sizes)
            .map(|(index, size)| Queue::new(index, size))
            .collect();
    }

    /// Writes everything that can be written only while the device is disabled.
    fn configure(&self) {
        let caps = &self.capabilities;
        for wq in 0..caps.work_queues.queues() {
            let size = self.queues.get(usize::from(wq)).map_or(0, |queue| queue.size);
            self.registers
                .write32(caps.wqcfg_of(wq) + wqcfg::SIZE, u32::from(size));
        }
        let used: Vec<u8> = self
            .queues
            .iter()
            .filter(|queue| queue.size > 0)
            .map(|queue| queue.index)
            .collect();
        // One group and engine for each queue as far as they go, so that queues do not wait for each
        // other; beyond that, queues share round robin.
        let groups = usize::from(caps.groups.groups())
            .min(usize::from(caps.engines))
            .min(used.len());
        for group in 0..usize::from(caps.groups.groups()) {
            let at = caps.grpcfg + group * grpcfg::STRIDE;
            let mut wqs = [0u64; 4];
            let mut engines = 0u64;
            if group < groups {
                for &wq in used.iter().skip(group).step_by(groups) {
                    wqs[usize::from(wq / 64)] |= 1 << (wq % 64);
                }
                for engine in (group..usize::from(caps.engines).min(64)).step_by(groups) {
                    engines |= 1 << engine;
                }
            }
            for (word, bits) in wqs.into_iter().enumerate() {
                self.registers.write64(at + grpcfg::WQS + word * 8, bits);
            }
            self.registers.write64(at + grpcfg::ENGINES, engines);
            // Read buffers stay as reset left them: all allowed to each group.
            let flags = self.registers.read64(at + grpcfg::FLAGS) & !grpcfg::TRAFFIC_CLASS_MASK;
            self.registers
                .write64(at + grpcfg::FLAGS, flags | grpcfg::TRAFFIC_CLASS_1);
        }
        for entry in 0..caps.msix_entries {
            self.registers.write32(caps.msixperm_of(entry), 0);
        }
        // Without it a descriptor of an unprivileged queue that asks for an interrupt is refused.
        let general = self.registers.read32(GENCFG);
        self.registers.write32(GENCFG, general | gencfg::USER_INT_EN);
        self.registers
            .write32(GENCTRL, genctrl::SWERR_INT_EN | genctrl::HALT_INT_EN);
    }

    /// The number by which descriptors name each queue's interrupt.
    fn request_handles(&mut self) -> Result<(), Refusal> {
        for index in 0..self.queues.len() {
            let entry = self.queues[index].interrupt_entry();
            self.queues[index].handle = if self.capabilities.has_command(code::REQUEST_HANDLE) {
                self.execute(Command::RequestHandle(entry))
                    .map_err(|failure| Refusal::new("", failure.to_string(), "name another device"))?
            } else {
                entry
            };
        }
        Ok(())
    }

    /// Gives the device a command and waits for its end, at most for the deadline of the options. Returns
    /// the result field.
    pub fn execute(&self, command: Command) -> Result<u16, CommandFailure> {
        let _exclusive = self.commands.lock();
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
            max_batch_log2: general.max_batch_log2().clamp(MIN_BATCH_LOG2, MAX_BATCH_LOG2),
        }
    }

    /// Programs a queue as dedicated, tagged, unprivileged, and enables it.
    pub fn enable_queue(&self, wq: u8, size: u16, pasid: u32, limits: Limits) -> Result<(), CommandFailure> {
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
        self.execute(Command::EnableWq(wq)).map(|_| ())
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
        let at = self.capabilities.msixperm_of(entry);
        let value = pasid.map_or(0, |pasid| pasid << msixperm::PASID_SHIFT | msixperm::PASID_EN);
        self.registers.write32(at, value);
        // The read pushes the write before it, and interrupts the device sent earlier.
        self.registers.read32(at);
    }

    fn mask_interrupts(&self) {
        for entry in 0..self.capabilities.msix_entries {
            let at = self.msix_entry(entry);
            self.registers
                .write32(at + msix_entry::CONTROL, msix_entry::MASKED);
        }
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
