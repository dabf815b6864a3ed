// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command queue: invalidations, each batch waited for, and getting past errors.
//!
//! **Principle.** A batch ends in CMD_SYNC, and is done when the unit has consumed that. A command that the
//! unit refuses is replaced by a CMD_SYNC, so that what follows is still carried out, and the batch counts as
//! failed. A unit that does not come forward within a second is given up for good.
//! Source: SMMUv3 specification, "Commands" and "Command errors".

use alloc::format;

use core::sync::atomic::{Ordering, fence};

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::host::Host;
use spin::Mutex;

use super::registers::{GlobalError, Identification, offset};
use crate::iommu::domains::DomainId;
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Opcodes.
mod opcode {
    pub const CFGI_STE: u64 = 0x03;
    pub const CFGI_STE_RANGE: u64 = 0x04;
    pub const CFGI_CD: u64 = 0x05;
    pub const TLBI_NH_ASID: u64 = 0x11;
    pub const TLBI_NH_VA: u64 = 0x12;
    pub const TLBI_EL2_ALL: u64 = 0x20;
    pub const TLBI_NSNH_ALL: u64 = 0x30;
    pub const ATC_INV: u64 = 0x40;
    pub const SYNC: u64 = 0x46;
}

/// CFGI_STE_RANGE.Range for all streams: CFGI_ALL.
const RANGE_ALL: u64 = 31;
/// SSV: the SubstreamID counts.
const SUBSTREAM_VALID: u64 = 1 << 11;
/// ATC_INV.Size for all addresses.
const ATC_ALL: u64 = 52;
/// Bytes of a command.
const COMMAND_BYTES: u64 = 16;
/// Largest queue made, log2 of commands: one page.
const LOG2_LIMIT: u32 = 8;
/// CMDQ_CONS.ERR.
const ERROR_SHIFT: u32 = 24;
/// Reasons in CMDQ_CONS.ERR.
mod error {
    /// The command is not one the unit knows.
    pub const ILLEGAL: u32 = 1;
    /// A device did not answer ATC_INV; CONS is at the CMD_SYNC.
    pub const ATC_TIMEOUT: u32 = 3;
}
/// Errors of one batch after which the queue is given up.
const ERRORS_LIMIT: usize = 64;

/// What a unit can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Forget all stream table entries and context descriptors.
    ForgetConfiguration,
    /// Forget the entry of a stream, its context descriptors, and the first-level descriptor above.
    ForgetStream {
        /// StreamID.
        stream: u32,
    },
    /// Forget one context descriptor and the first-level descriptor above.
    ForgetContext {
        /// StreamID.
        stream: u32,
        /// SubstreamID.
        tag: Pasid,
    },
    /// Forget all translations.
    ForgetTranslations,
    /// Forget all translations of EL2.
    ForgetHypervisorTranslations,
    /// Forget the translations of a table.
    ForgetTable {
        /// Its ASID.
        asid: DomainId,
    },
    /// Forget what translates one address in a table, tables on the way included.
    ForgetAddress {
        /// Its ASID.
        asid: DomainId,
        /// A page.
        address: u64,
    },
    /// Make a device forget all translations of one tag.
    ForgetInDevice {
        /// StreamID.
        stream: u32,
        /// SubstreamID.
        tag: Pasid,
    },
    /// What follows starts when everything before is done.
    Sync,
}

impl Command {
    fn words(self) -> [u64; 2] {
        let of = |stream: u32| u64::from(stream) << 32;
        let substream = |tag: Pasid| u64::from(tag.value()) << 12;
        let asid = |asid: DomainId| u64::from(asid) << 48;
        match self {
            Self::ForgetConfiguration => [opcode::CFGI_STE_RANGE, RANGE_ALL],
            Self::ForgetStream { stream } => [opcode::CFGI_STE | of(stream), 0],
            Self::ForgetContext { stream, tag } => [opcode::CFGI_CD | substream(tag) | of(stream), 0],
            Self::ForgetTranslations => [opcode::TLBI_NSNH_ALL, 0],
            Self::ForgetHypervisorTranslations => [opcode::TLBI_EL2_ALL, 0],
            Self::ForgetTable { asid: id } => [opcode::TLBI_NH_ASID | asid(id), 0],
            Self::ForgetAddress { asid: id, address } => [opcode::TLBI_NH_VA | asid(id), address],
            Self::ForgetInDevice { stream, tag } => {
                [opcode::ATC_INV | SUBSTREAM_VALID | substream(tag) | of(stream), ATC_ALL]
            }
            Self::Sync => [opcode::SYNC, 0],
        }
    }

    /// Whether a build for the test that must then fail leaves it out.
    fn left_out(self) -> bool {
        match self {
            Self::ForgetContext { .. } => cfg!(feature = "omit-cd-invalidation"),
            Self::ForgetTable { .. } | Self::ForgetAddress { .. } => cfg!(feature = "omit-tlb-invalidation"),
            _ => false,
        }
    }
}

/// What the queue works on.
pub struct Access<'a, R, M> {
    /// The unit's registers.
    pub registers: &'a R,
    /// The memory it reads.
    pub memory: &'a TableMemory<M>,
    /// Time.
    pub host: &'a dyn Host,
    /// Held while GERRORN is changed.
    pub errors: &'a Mutex<()>,
}

impl<R, M> Clone for Access<'_, R, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, M> Copy for Access<'_, R, M> {}

/// The queue of one unit. Callers hold the unit's lock.
#[derive(Debug)]
pub struct Queue {
    base: HostPhys,
    /// Log2 of the number of commands.
    log2: u32,
    /// Index and wrap bit of the next command.
    prod: u32,
    broken: bool,
    issued: u64,
}

impl Queue {
    /// Memory for a queue.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, unit: Identification) -> Result<Self, Refusal> {
        let log2 = unit.command_queue_log2().min(LOG2_LIMIT);
        let pages = (COMMAND_BYTES << log2).div_ceil(PAGE_SIZE) as usize;
        Ok(Self { base: memory.alloc(pages, "SMMU command queue")?, log2, prod: 0, broken: false, issued: 0 })
    }

    /// The value of CMDQ_BASE.
    pub const fn base_register(&self) -> u64 {
        self.base.0 | self.log2 as u64
    }

    /// Commands handed to the unit so far, CMD_SYNC included.
    pub const fn issued(&self) -> u64 {
        self.issued
    }

    /// Starts again from slot 0, as CMDQ_PROD and CMDQ_CONS were set.
    pub fn restart(&mut self) {
        self.prod = 0;
        self.broken = false;
    }

    /// Hands commands over and waits until they are done. The caller puts [`Command::Sync`] where one must
    /// be done before the next starts; the last is always waited for.
    pub fn execute<R: Registers, M: DmaMemory>(
        &mut self,
        access: Access<'_, R, M>,
        commands: &[Command],
    ) -> Result<(), Refusal> {
        if self.broken {
            return Err(Refusal::new(
                "SMMU command queue",
                "it stopped after an earlier error",
                "restart the machine: this unit can end no attachment safely any more",
            ));
        }
        // One place for the closing CMD_SYNC. Every batch is waited for, so the queue is empty here.
        let room = (1 << self.log2) - 1;
        let mut result = Ok(());
        for batch in commands.chunks(room.max(1)) {
            for &command in batch.iter().filter(|command| !command.left_out()) {
                self.push(access.memory, command);
            }
            self.push(access.memory, Command::Sync);
            // What lies in the queue must be there before the unit is told.
            fence(Ordering::SeqCst);
            access.registers.write32(offset::CMDQ_PROD, self.prod);
            result = result.and(self.wait(access));
            if self.broken {
                break;
            }
        }
        result
    }

    fn push<M: DmaMemory>(&mut self, memory: &TableMemory<M>, command: Command) {
        self.put(memory, self.prod, command);
        self.prod = (self.prod + 1) & self.index_mask();
        self.issued += 1;
    }

    fn put<M: DmaMemory>(&self, memory: &TableMemory<M>, index: u32, command: Command) {
        let slot = (index & ((1 << self.log2) - 1)) as usize;
        for (word, value) in command.words().into_iter().enumerate() {
            memory.write(self.base, 2 * slot + word, value);
        }
    }

    /// Index and wrap bit.
    const fn index_mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    /// Waits until the unit has consumed everything.
    fn wait<R: Registers, M: DmaMemory>(&mut self, access: Access<'_, R, M>) -> Result<(), Refusal> {
        let mut result = Ok(());
        for _ in 0..ERRORS_LIMIT {
            let mut failed = false;
            let in_time = wait_until(access.host, COMMAND_LIMIT_NS, || {
                failed = active_errors(access.registers).contains(GlobalError::COMMAND_QUEUE);
                failed || access.registers.read32(offset::CMDQ_CONS) & self.index_mask() == self.prod
            });
            if failed {
                result = result.and(Err(self.get_past_error(access)));
            } else if in_time {
                return result;
            } else {
                break;
            }
        }
        self.broken = true;
        let cons = access.registers.read32(offset::CMDQ_CONS);
        Err(Refusal::new(
            "SMMU command queue",
            format!("the unit does not carry commands out (CMDQ_CONS {cons:#x}, CMDQ_PROD {:#x})", self.prod),
            "restart the machine: this unit can end no attachment safely any more",
        ))
    }

    /// Makes the unit go on after an error. Returns the refusal that says what happened.
    fn get_past_error<R: Registers, M: DmaMemory>(&self, access: Access<'_, R, M>) -> Refusal {
        let cons = access.registers.read32(offset::CMDQ_CONS);
        let slot = (cons & ((1 << self.log2) - 1)) as usize;
        let refusal = match cons >> ERROR_SHIFT & 0x7f {
            error::ILLEGAL => {
                let command = access.memory.read(self.base, 2 * slot);
                self.put(access.memory, cons, Command::Sync);
                Refusal::new(
                    "SMMU command queue",
                    format!("the unit refused command {slot} ({command:#018x})"),
                    "report this: the driver wrote what the unit does not take",
                )
            }
            error::ATC_TIMEOUT => Refusal::new(
                "SMMU command queue",
                "a device did not answer the invalidation of its TLB (ATC_INV)",
                "reset the device, then end the attachment again",
            ),
            // The read of the command failed: it is tried again.
            code => Refusal::new(
                "SMMU command queue",
                format!("the unit could not read command {slot} (error {code})"),
                "restart the machine",
            ),
        };
        fence(Ordering::SeqCst);
        let _changing = access.errors.lock();
        acknowledge(access.registers, GlobalError::COMMAND_QUEUE);
        refusal
    }
}

/// Errors that are active.
pub fn active_errors<R: Registers>(registers: &R) -> GlobalError {
    let (set, seen) = (registers.read32(offset::GERROR), registers.read32(offset::GERRORN));
    GlobalError::from_bits_truncate(set ^ seen)
}

/// Takes note of an active error, which makes the unit go on. Where it is not active nothing changes. The
/// caller holds the lock of GERRORN.
pub fn acknowledge<R: Registers>(registers: &R, error: GlobalError) {
    let active = active_errors(registers) & error;
    registers.write32(offset::GERRORN, registers.read32(offset::GERRORN) ^ active.bits());
}
