// SPDX-License-Identifier: MIT OR Apache-2.0
//! The invalidation queue: how the unit is made to forget.
//!
//! **Contract.** [`Queue::execute`] returns `Ok` only when the unit has carried out every command and said
//! so with a status write. It always returns: a descriptor the unit refuses, a device that does not
//! answer, and a unit that stops reading each end in a refusal within a fixed time. A refusal means that
//! old translations may still be in use, so the caller must not free or reuse anything.
//! Source: Intel VT-d specification, "Queued Invalidation Interface" and "Queued Invalidation Ordering".

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::host::Host;

use super::registers::{Capability, FaultStatus, IQA_DW, offset};
use crate::iommu::domains::DomainId;
use crate::iommu::unit::DeviceTlb;
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::wait::{COMMAND_LIMIT_NS, wait_until};

/// Bytes per descriptor (IQA.DW = 1).
const DESCRIPTOR_BYTES: u64 = 32;
/// 64-bit words per descriptor.
const DESCRIPTOR_WORDS: usize = 4;
/// Descriptors in the queue: one page (IQA.QS = 0).
const SLOTS: usize = 128;
/// Most commands handed over at a time, so that a batch with its waits always fits.
const BATCH: usize = 48;
/// Attempts to get past devices that do not answer before the queue counts as broken.
const TIMEOUT_RECOVERIES: usize = 2 * BATCH;

/// Granularity field (G) of context-cache and IOTLB descriptors.
mod granularity {
    pub const GLOBAL: u64 = 1 << 4;
    pub const DOMAIN: u64 = 2 << 4;
    pub const SELECTIVE: u64 = 3 << 4;
    /// PASID-cache: one PASID.
    pub const PC_PASID: u64 = 1 << 4;
    /// PASID-cache: everything.
    pub const PC_GLOBAL: u64 = 3 << 4;
    /// PASID-based IOTLB: all of one PASID.
    pub const PIOTLB_PASID: u64 = 2 << 4;
    /// Interrupt-entry cache: one range of indexes.
    pub const IEC_INDEX: u64 = 1 << 4;
}

/// Descriptor types (bits 3:0).
mod kind {
    pub const CONTEXT_CACHE: u64 = 1;
    pub const IOTLB: u64 = 2;
    pub const INTERRUPT_ENTRY_CACHE: u64 = 4;
    pub const WAIT: u64 = 5;
    pub const PASID_IOTLB: u64 = 6;
    pub const PASID_CACHE: u64 = 7;
    pub const PASID_DEVICE_TLB: u64 = 8;
}

/// IOTLB descriptor, DW: writes that are translated already finish first.
const IOTLB_DRAIN_WRITES: u64 = 1 << 6;
/// IOTLB descriptor, DR: reads likewise.
const IOTLB_DRAIN_READS: u64 = 1 << 7;
/// Wait descriptor, SW: write the status word.
const WAIT_STATUS_WRITE: u64 = 1 << 5;
/// Wait descriptor, FN: what follows starts only after what came before is complete.
const WAIT_FENCE: u64 = 1 << 6;
/// PASID-based device TLB descriptor: S = 1 with all address bits set but the highest covers everything.
const DEVICE_TLB_EVERYTHING: u64 = 0x7fff_ffff_ffff_f000 | 1 << 11;

/// One thing to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// All context entries.
    ContextGlobal,
    /// The context entry of one requester.
    ContextDevice {
        /// Routing ID.
        rid: u16,
    },
    /// All PASID entries.
    PasidCacheGlobal,
    /// One PASID's entries in one domain.
    PasidCache {
        /// The entry's domain.
        domain: DomainId,
        /// The tag.
        pasid: Pasid,
    },
    /// All translations.
    IotlbGlobal,
    /// All translations of a domain.
    IotlbDomain {
        /// The domain.
        domain: DomainId,
    },
    /// 2^`mask` pages of a domain from an aligned address.
    IotlbPages {
        /// The domain.
        domain: DomainId,
        /// First page, aligned to the size.
        address: u64,
        /// log2 of the number of pages, at most CAP.MAMV.
        mask: u32,
    },
    /// All translations of one PASID in a domain.
    PasidIotlb {
        /// The domain.
        domain: DomainId,
        /// The tag.
        pasid: Pasid,
    },
    /// What the device itself cached for one PASID.
    PasidDeviceTlb {
        /// Routing ID of the device.
        rid: u16,
        /// PFSID: the function that throttles, 0 where ECAP.DIT is clear.
        pfsid: u16,
        /// The tag.
        pasid: Pasid,
        /// How to reach it.
        tlb: DeviceTlb,
    },
    /// All interrupt remapping entries.
    InterruptGlobal,
    /// One interrupt remapping entry.
    Interrupt {
        /// Its index.
        index: u16,
    },
    /// What follows waits for what came before.
    Fence,
}

/// A descriptor as it lies in the queue.
type Descriptor = [u64; DESCRIPTOR_WORDS];

impl Invalidation {
    /// Encodes everything but waits.
    fn words(self, drain: u64) -> Descriptor {
        let did = |domain: DomainId| u64::from(domain) << 16;
        let tag = |pasid: Pasid| u64::from(pasid.value()) << 32;
        let (low, high) = match self {
            Self::ContextGlobal => (kind::CONTEXT_CACHE | granularity::GLOBAL, 0),
            Self::ContextDevice { rid } => {
                (kind::CONTEXT_CACHE | granularity::SELECTIVE | u64::from(rid) << 32, 0)
            }
            Self::PasidCacheGlobal => (kind::PASID_CACHE | granularity::PC_GLOBAL, 0),
            Self::PasidCache { domain, pasid } => {
                (kind::PASID_CACHE | granularity::PC_PASID | did(domain) | tag(pasid), 0)
            }
            Self::IotlbGlobal => (kind::IOTLB | granularity::GLOBAL | drain, 0),
            Self::IotlbDomain { domain } => (kind::IOTLB | granularity::DOMAIN | drain | did(domain), 0),
            Self::IotlbPages { domain, address, mask } => {
                (kind::IOTLB | granularity::SELECTIVE | drain | did(domain), address | u64::from(mask))
            }
            Self::PasidIotlb { domain, pasid } => {
                (kind::PASID_IOTLB | granularity::PIOTLB_PASID | did(domain) | tag(pasid), 0)
            }
            Self::PasidDeviceTlb { rid, pfsid, pasid, tlb } => {
                let depth = u64::from(tlb.queue_depth.clamp(1, 32) & 31) << 4;
                let pfsid = u64::from(pfsid & 0xf) << 12 | u64::from(pfsid >> 4) << 52;
                (
                    kind::PASID_DEVICE_TLB | depth | pfsid | u64::from(rid) << 16 | tag(pasid),
                    DEVICE_TLB_EVERYTHING,
                )
            }
            Self::InterruptGlobal => (kind::INTERRUPT_ENTRY_CACHE, 0),
            Self::Interrupt { index } => {
                (kind::INTERRUPT_ENTRY_CACHE | granularity::IEC_INDEX | u64::from(index) << 32, 0)
            }
            Self::Fence => (kind::WAIT, 0),
        };
        [low, high, 0, 0]
    }
}

/// The queue of one unit. Callers hold the unit's lock.
#[derive(Debug)]
pub struct Queue {
    base: HostPhys,
    /// A page whose first word the unit writes when a wait descriptor is reached.
    status: HostPhys,
    tail: usize,
    /// Value the last wait descriptor writes.
    sequence: u32,
    drain: u64,
    broken: bool,
    issued: u64,
}

/// Clears errors that the queue was left with. The caller holds the unit's lock, so nobody waits for them.
pub fn clear_errors<R: Registers>(registers: &R) {
    let errors = FaultStatus::IQE | FaultStatus::ITE | FaultStatus::ICE;
    registers.write32(offset::FSTS, errors.bits());
}

/// How one batch ended early.
enum Interrupted {
    Refused(Refusal),
    DeviceTimeout,
}

impl Queue {
    /// Memory for a queue of a unit with these capabilities.
    pub fn new<M: DmaMemory>(memory: &M, capability: Capability) -> Result<Self, Refusal> {
        let short =
            || Refusal::new("VT-d invalidation queue", "no memory left", "give the guests less memory");
        let base = memory.alloc(1).ok_or_else(short)?;
        let Some(status) = memory.alloc(1) else {
            memory.free(base, 1);
            return Err(short());
        };
        let mut drain = 0;
        if capability.drains_writes() {
            drain |= IOTLB_DRAIN_WRITES;
        }
        if capability.drains_reads() {
            drain |= IOTLB_DRAIN_READS;
        }
        Ok(Self { base, status, tail: 0, sequence: 0, drain, broken: false, issued: 0 })
    }

    /// The value of IQA for this queue: 256-bit descriptors, 2^(0 + 7) of them.
    pub const fn address_register(&self) -> u64 {
        self.base.0 | IQA_DW
    }

    /// Descriptors handed to the unit so far, waits included.
    pub const fn issued(&self) -> u64 {
        self.issued
    }

    /// Starts again from slot 0, as the unit does when QIE goes from 0 to 1.
    pub fn restart(&mut self) {
        self.tail = 0;
        self.broken = false;
    }

    /// Hands commands over and waits until they are done. Every command must have been given a [fence]
    /// where the specification's order asks for one; the last is always waited for.
    ///
    /// [fence]: Invalidation::Fence
    pub fn execute<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &M,
        host: &dyn Host,
        commands: &[Invalidation],
    ) -> Result<(), Refusal> {
        if self.broken {
            return Err(Refusal::new(
                "VT-d invalidation",
                "the queue stopped after an earlier error",
                "restart the machine: this unit can end no attachment safely any more",
            ));
        }
        let mut unanswered = false;
        for batch in commands.chunks(BATCH) {
            self.submit(registers, memory, host, batch)?;
            match self.wait(registers, memory, host) {
                Ok(()) => {}
                Err(Interrupted::Refused(refusal)) => return Err(refusal),
                Err(Interrupted::DeviceTimeout) => {
                    self.get_past_timeouts(registers, memory, host)?;
                    unanswered = true;
                }
            }
        }
        if unanswered {
            return Err(Refusal::new(
                "VT-d invalidation",
                "a device did not answer the invalidation of its TLB (FSTS.ITE)",
                "reset the device, then end the attachment again",
            ));
        }
        Ok(())
    }

    /// Writes one batch and a closing wait, and moves the tail.
    fn submit<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &M,
        host: &dyn Host,
        batch: &[Invalidation],
    ) -> Result<(), Refusal> {
        let needed = batch.len() + 1;
        let tail = self.tail;
        let room = || {
            let head = (registers.read64(offset::IQH) / DESCRIPTOR_BYTES) as usize % SLOTS;
            (head + SLOTS - tail - 1) % SLOTS >= needed
        };
        if !wait_until(host, COMMAND_LIMIT_NS, room) {
            self.broken = true;
            return Err(self.stuck(registers));
        }
        let words: Vec<Descriptor> = batch
            .iter()
            .map(|&command| match command {
                Invalidation::Fence => self.next_wait(),
                other => other.words(self.drain),
            })
            .collect();
        for descriptor in words {
            self.push(memory, descriptor);
        }
        let closing = self.next_wait();
        self.push(memory, closing);
        registers.write64(offset::IQT, self.tail as u64 * DESCRIPTOR_BYTES);
        Ok(())
    }

    /// A wait descriptor with the next sequence number. Each is a fence too.
    fn next_wait(&mut self) -> Descriptor {
        self.sequence = self.sequence.wrapping_add(1);
        [kind::WAIT | WAIT_STATUS_WRITE | WAIT_FENCE | u64::from(self.sequence) << 32, self.status.0, 0, 0]
    }

    fn push<M: DmaMemory>(&mut self, memory: &M, descriptor: Descriptor) {
        self.put(memory, self.tail, descriptor);
        self.tail = (self.tail + 1) % SLOTS;
        self.issued += 1;
    }

    fn put<M: DmaMemory>(&self, memory: &M, slot: usize, descriptor: Descriptor) {
        let start = self.base.0 + slot as u64 * DESCRIPTOR_BYTES;
        for (at, word) in descriptor.into_iter().enumerate() {
            memory.write64(HostPhys(start + at as u64 * 8), word);
        }
    }

    /// Waits for the last wait descriptor, or for an error.
    fn wait<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &M,
        host: &dyn Host,
    ) -> Result<(), Interrupted> {
        let mut errors = FaultStatus::empty();
        let in_time = wait_until(host, COMMAND_LIMIT_NS, || {
            let done = memory.read64(self.status) as u32 == self.sequence;
            errors = FaultStatus::from_bits_truncate(registers.read32(offset::FSTS));
            if errors.contains(FaultStatus::ICE) {
                // A device answered twice or late; nothing was left undone.
                registers.write32(offset::FSTS, FaultStatus::ICE.bits());
            }
            done || errors.intersects(FaultStatus::IQE | FaultStatus::ITE)
        });
        if errors.contains(FaultStatus::IQE) {
            return Err(Interrupted::Refused(self.get_past_refused(registers, memory, host)));
        }
        if errors.contains(FaultStatus::ITE) {
            return Err(Interrupted::DeviceTimeout);
        }
        if !in_time {
            return Err(Interrupted::Refused(self.stuck(registers)));
        }
        Ok(())
    }

    /// After IQE: replaces everything the unit has not done by waits, clears the error and starts it
    /// again. Returns the refusal that says what happened.
    fn get_past_refused<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &M,
        host: &dyn Host,
    ) -> Refusal {
        let head = (registers.read64(offset::IQH) / DESCRIPTOR_BYTES) as usize % SLOTS;
        let start = HostPhys(self.base.0 + head as u64 * DESCRIPTOR_BYTES);
        let refusal = Refusal::new(
            "VT-d invalidation",
            format!(
                "the unit refused descriptor {head} ({:#018x}, IQERCD {:#x})",
                memory.read64(start),
                registers.read64(offset::IQERCD)
            ),
            "report this: the driver wrote what the unit does not take",
        );
        let mut slot = head;
        while slot != self.tail {
            let wait = self.next_wait();
            self.put(memory, slot, wait);
            slot = (slot + 1) % SLOTS;
        }
        registers.write32(offset::FSTS, FaultStatus::IQE.bits());
        // Not every unit goes on by itself when the error is cleared.
        registers.write64(offset::IQT, self.tail as u64 * DESCRIPTOR_BYTES);
        if !wait_until(host, COMMAND_LIMIT_NS, || memory.read64(self.status) as u32 == self.sequence) {
            self.broken = true;
        }
        refusal
    }

    /// After ITE: the pending waits were dropped and nothing is fetched until the error is cleared.
    /// Clears it and waits anew, as often as devices in this batch can have failed.
    fn get_past_timeouts<R: Registers, M: DmaMemory>(
        &mut self,
        registers: &R,
        memory: &M,
        host: &dyn Host,
    ) -> Result<(), Refusal> {
        for _ in 0..TIMEOUT_RECOVERIES {
            registers.write32(offset::FSTS, FaultStatus::ITE.bits());
            self.submit(registers, memory, host, &[])?;
            match self.wait(registers, memory, host) {
                Ok(()) => return Ok(()),
                Err(Interrupted::DeviceTimeout) => {}
                Err(Interrupted::Refused(refusal)) => return Err(refusal),
            }
        }
        self.broken = true;
        Err(self.stuck(registers))
    }

    fn stuck<R: Registers>(&self, registers: &R) -> Refusal {
        Refusal::new(
            "VT-d invalidation",
            format!(
                "not done within {} ms (IQH {:#x}, IQT {:#x}, FSTS {:#x})",
                COMMAND_LIMIT_NS / 1_000_000,
                registers.read64(offset::IQH),
                registers.read64(offset::IQT),
                registers.read32(offset::FSTS)
            ),
            "reset the device that should have answered, then try again",
        )
    }
}
