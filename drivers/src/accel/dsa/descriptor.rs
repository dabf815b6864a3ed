// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors of guests that come by way of the hypervisor: what is checked, what is changed, and how they complete.
//!
//! **Principle.** The hypervisor checks what it answers for, and what the device would not notice because of what the
//! hypervisor changes. All else the device checks itself, as it does for a queue that the guest reaches directly: its
//! verdict is the guest's. What is changed is the tag, the privilege, the place of the completion record, and the
//! interrupt: the device completes to the driver, which completes to the guest.
//!
//! Source: Intel DSA Architecture Specification 341204-006, chapters "Descriptor format", "Completion record format"
//! and the pages of the operations.

use pasidon_kernel::base::addr::Iova;
use pasidon_kernel::vdev::parent::SliceMemory;

use super::capabilities::OPCAP_WORDS;
use super::registers::{SWERR_WORDS, swerr};

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Words of a descriptor.
const WORDS: usize = DESCRIPTOR_BYTES / 8;
/// Bytes of a completion record, and what its address is a multiple of.
pub(super) const RECORD_BYTES: u64 = 32;
/// Words of a completion record.
pub(super) const RECORD_WORDS: usize = RECORD_BYTES as usize / 8;
/// What a descriptor costs at least, in bytes of transfer: one that moves a page.
const COST_MIN: u32 = 4096;

/// Flags, as in bits 55:32 of the first word.
pub(super) mod flag {
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// The address of the completion record is valid.
    pub const RECORD_VALID: u32 = 1 << 2;
    /// A completion record is written also where there is no error.
    pub const REQUEST_RECORD: u32 = 1 << 3;
    pub const REQUEST_INTERRUPT: u32 = 1 << 4;
    /// The result is compared with the expected one.
    pub const CHECK_RESULT: u32 = 1 << 7;
    pub const CACHE_CONTROL: u32 = 1 << 8;
    /// Traffic classes of three addresses and the completion record.
    pub const TRAFFIC_CLASSES: u32 = 0xf << 9;
    pub const STRICT_ORDER: u32 = 1 << 13;
    /// What was written is read before the completion record is written.
    pub const READ_BACK: u32 = 1 << 14;
    pub const MASK: u32 = 0xff_ffff;
}

/// Flags of what the driver submits: it is completed to the driver, with an interrupt.
pub(super) const COMPLETES_TO_DRIVER: u32 =
    flag::RECORD_VALID | flag::REQUEST_RECORD | flag::REQUEST_INTERRUPT;

/// Operations that are looked at.
pub(super) mod operation {
    pub const NOOP: u8 = 0x00;
    pub const DRAIN: u8 = 0x02;
    pub const MEMORY_MOVE: u8 = 0x03;
    pub const FILL: u8 = 0x04;
    pub const COMPARE: u8 = 0x05;
    pub const COMPARE_PATTERN: u8 = 0x06;
    pub const CREATE_DELTA: u8 = 0x07;
    pub const APPLY_DELTA: u8 = 0x08;
    pub const DUALCAST: u8 = 0x09;
    pub const CRC: u8 = 0x10;
    pub const COPY_WITH_CRC: u8 = 0x11;
    pub const DIF_CHECK: u8 = 0x12;
    pub const DIF_INSERT: u8 = 0x13;
    pub const DIF_STRIP: u8 = 0x14;
    pub const DIF_UPDATE: u8 = 0x15;
    pub const CACHE_FLUSH: u8 = 0x20;
}

/// Codes of completion records and of SWERR.
pub(super) mod status {
    /// Bits that are the code.
    pub const CODE: u64 = 0x3f;
    /// It went well.
    pub const SUCCESS: u8 = 0x01;
    /// It went well, and the result is not the expected one.
    pub const FALSE_PREDICATE: u8 = 0x02;
    pub const PAGE_FAULT: u8 = 0x03;
    pub const OPERATION: u8 = 0x10;
    pub const FLAGS: u8 = 0x11;
    pub const SIZE: u8 = 0x13;
    pub const OVERLAP: u8 = 0x16;
    pub const HANDLE: u8 = 0x19;
    pub const RECORD_FAULT: u8 = 0x1a;
    pub const RECORD_ALIGNMENT: u8 = 0x1b;
    /// With a fault: at a write.
    pub const WRITE: u8 = 0x80;
    /// SWERR only: a dedicated queue was full.
    pub const QUEUE_FULL: u8 = 0x53;
}

/// An address of a descriptor, beside that of its completion record.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// The word that it is in.
    pub word: usize,
    /// Whether the device writes there.
    pub written: bool,
}

impl Operand {
    /// The status of a fault there.
    pub fn fault(self) -> u8 {
        status::PAGE_FAULT | if self.written { status::WRITE } else { 0 }
    }
}

/// The addresses of an operation. Where a word is one only with a flag, it is zero without.
pub(super) fn operands(code: u8) -> &'static [Operand] {
    const fn read(word: usize) -> Operand {
        Operand { word, written: false }
    }
    const fn written(word: usize) -> Operand {
        Operand { word, written: true }
    }
    match code {
        operation::MEMORY_MOVE
        | operation::APPLY_DELTA
        | operation::DIF_INSERT
        | operation::DIF_STRIP
        | operation::DIF_UPDATE => const { &[read(2), written(3)] },
        operation::FILL => const { &[written(3)] },
        // A flush writes nothing that was not written.
        operation::CACHE_FLUSH => const { &[read(3)] },
        operation::COMPARE | operation::DRAIN => const { &[read(2), read(3)] },
        operation::COMPARE_PATTERN | operation::DIF_CHECK => const { &[read(2)] },
        operation::CREATE_DELTA => const { &[read(2), read(3), written(5)] },
        operation::DUALCAST => const { &[read(2), written(3), written(5)] },
        operation::CRC => const { &[read(2), read(6)] },
        operation::COPY_WITH_CRC => const { &[read(2), written(3), read(6)] },
        _ => &[],
    }
}

/// A descriptor as the guest stored it, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor([u64; WORDS]);

/// A descriptor as the device gets it.
pub type Submission = [u64; WORDS];

/// What the guest's queue allows.
pub(super) struct Rules<'a> {
    /// As in OPCAP.
    pub operations: &'a [u64; OPCAP_WORDS],
    pub max_transfer_log2: u8,
    /// The one that the guest was given for completions.
    pub handle: u16,
    pub memory: &'a dyn SliceMemory,
}

/// Why a descriptor goes to no device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    /// As in a completion record.
    pub code: u8,
    /// Invalid flags, with [`status::FLAGS`].
    pub flags: u32,
    /// Where it faults, with a fault.
    pub address: u64,
}

/// What the guest wants to hear of a descriptor's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wishes {
    operation: u8,
    /// Where the completion record goes.
    record: Option<Iova>,
    /// Also where there is no error.
    always: bool,
    interrupt: bool,
}

/// A completion record, as the device writes it.
pub(super) type Record = [u64; RECORD_WORDS];

/// The code of a completion record.
pub(super) fn status_of(record: &Record) -> u8 {
    (record[0] & status::CODE) as u8
}

/// The result of a completion record, of operations that have one.
pub(super) fn result_of(record: &Record) -> u8 {
    (record[0] >> 8) as u8
}

/// What the guest finds of a descriptor's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Answer {
    /// To be written for the guest.
    pub record: Option<(Iova, Record)>,
    /// To be recorded in SWERR.
    pub error: Option<[u64; SWERR_WORDS]>,
    /// The guest gets the interrupt of completions.
    pub interrupt: bool,
}

impl Descriptor {
    pub fn new(bytes: &[u8; DESCRIPTOR_BYTES]) -> Self {
        Self(core::array::from_fn(|word| {
            u64::from_le_bytes(core::array::from_fn(|byte| bytes[word * 8 + byte]))
        }))
    }

    /// A word of it.
    pub fn word(&self, word: usize) -> u64 {
        self.0[word]
    }

    pub fn flags(&self) -> u32 {
        (self.0[0] >> 32) as u32 & flag::MASK
    }

    fn has(&self, flags: u32) -> bool {
        self.flags() & flags == flags
    }

    pub fn operation(&self) -> u8 {
        (self.0[0] >> 56) as u8
    }

    /// Bytes of transfer.
    pub fn size(&self) -> u32 {
        self.0[4] as u32
    }

    fn handle(&self) -> u16 {
        (self.0[4] >> 32) as u16
    }

    /// What it costs of the device's time, in bytes.
    pub fn cost(&self) -> u32 {
        if self.moves_data() { self.size().max(COST_MIN) } else { COST_MIN }
    }

    fn moves_data(&self) -> bool {
        !matches!(self.operation(), operation::NOOP | operation::DRAIN)
    }

    /// What the guest wants to hear of its end. Something is left out that could not be done.
    pub fn wishes(&self) -> Wishes {
        Wishes {
            operation: self.operation(),
            record: self.has(flag::RECORD_VALID).then_some(Iova(self.0[1])),
            always: self.has(flag::REQUEST_RECORD),
            interrupt: self.has(flag::REQUEST_INTERRUPT),
        }
    }

    /// Checks what the device does not, because of what is changed, or is not asked to.
    pub fn check(&self, rules: &Rules<'_>) -> Result<(), Refused> {
        let refuse = |code: u8| Err(Refused { code, flags: 0, address: 0 });
        if self.has(flag::RECORD_VALID) {
            let record = Iova(self.0[1]);
            if !record.is_aligned(RECORD_BYTES) {
                return refuse(status::RECORD_ALIGNMENT);
            }
            if !rules.memory.covers(record, RECORD_BYTES) {
                return Err(Refused { code: status::RECORD_FAULT, flags: 0, address: record.0 });
            }
        }
        let operation = usize::from(self.operation());
        if rules.operations[operation / 64] >> (operation % 64) & 1 == 0 {
            return refuse(status::OPERATION);
        }
        let invalid = self.invalid_flags();
        if invalid != 0 {
            return Err(Refused { code: status::FLAGS, flags: invalid, address: 0 });
        }
        if self.has(flag::REQUEST_INTERRUPT) && self.handle() != rules.handle {
            return refuse(status::HANDLE);
        }
        if self.moves_data() && u64::from(self.size()) > 1 << rules.max_transfer_log2 {
            return refuse(status::SIZE);
        }
        // Twice: with DIF, one side is longer than the other by a few bytes per block.
        let span = u64::from(self.size()) * 2;
        let limit = rules.memory.limit();
        let beyond = operands(self.operation()).iter().find(|operand| {
            let end = self.word(operand.word).checked_add(span);
            end.is_none_or(|end| end > limit.0)
        });
        beyond.map_or(Ok(()), |operand| {
            Err(Refused { code: operand.fault(), flags: 0, address: self.word(operand.word) })
        })
    }

    /// Flags that do not fit together, or that queues do not allow.
    fn invalid_flags(&self) -> u32 {
        let flags = self.flags();
        let mut invalid = flags & flag::BLOCK_ON_FAULT;
        if !self.has(flag::RECORD_VALID) {
            invalid |= flags & flag::REQUEST_RECORD;
        }
        let needed = match self.operation() {
            operation::COMPARE
            | operation::COMPARE_PATTERN
            | operation::CREATE_DELTA
            | operation::CRC
            | operation::COPY_WITH_CRC => flag::RECORD_VALID | flag::REQUEST_RECORD,
            operation::DRAIN if flags & (flag::REQUEST_RECORD | flag::REQUEST_INTERRUPT) == 0 => {
                flag::REQUEST_RECORD
            }
            _ => 0,
        };
        invalid | needed & !flags
    }

    /// As the device gets it: unprivileged with that tag, completing to the driver.
    pub fn submission(&self, pasid: u32, record: Iova, handle: u16) -> Submission {
        let flags = u64::from(COMPLETES_TO_DRIVER) << 32;
        let mut words = self.0;
        words[0] = words[0] & !u64::from(u32::MAX) | flags | u64::from(pasid);
        words[1] = record.0;
        words[4] = words[4] & !(0xffff << 32) | u64::from(handle) << 32;
        words
    }
}

impl Refused {
    /// A queue that was full: the descriptor is lost.
    pub const FULL: Self = Self { code: status::QUEUE_FULL, flags: 0, address: 0 };

    /// What the guest finds instead.
    pub fn answer(&self, wishes: &Wishes) -> Answer {
        let mut record = [u64::from(self.code), 0, 0, 0];
        record[1] = self.address;
        record[2] = self.flags.into();
        match self.code {
            // There is no place for a record, or hardware tells of these in SWERR in any case.
            status::HANDLE | status::RECORD_FAULT | status::RECORD_ALIGNMENT | status::QUEUE_FULL => {
                Answer { error: Some(self.error(wishes.operation)), ..Answer::default() }
            }
            _ => wishes.answer(&record),
        }
    }

    fn error(&self, operation: u8) -> [u64; SWERR_WORDS] {
        let valid = swerr::VALID | swerr::DESCRIPTOR_VALID | swerr::WQ_VALID;
        let first = valid
            | u64::from(self.code) << swerr::CODE_SHIFT
            | u64::from(operation) << swerr::OPERATION_SHIFT;
        [first, u64::from(self.flags) << 32, self.address, 0]
    }
}

impl Wishes {
    /// What the guest finds of a descriptor that ended with that record.
    pub fn answer(&self, record: &Record) -> Answer {
        let code = status_of(record);
        let failed = code != status::SUCCESS;
        match self.record {
            Some(place) => Answer {
                record: (self.always || failed).then_some((place, *record)),
                error: None,
                interrupt: self.interrupt,
            },
            None if failed => {
                let refused = Refused { code, flags: record[2] as u32 & flag::MASK, address: record[1] };
                Answer { record: None, error: Some(refused.error(self.operation)), interrupt: self.interrupt }
            }
            None => Answer { interrupt: self.interrupt, ..Answer::default() },
        }
    }
}
