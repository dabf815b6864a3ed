// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exception means, in words. Values only.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D19.2 (ESR_EL2: exception classes, and the ISS of aborts).

use core::fmt;

use pasidon_arch_common::denial::{Access, Target, not_allowed, not_mapped};

/// Exception classes: ESR_EL2.EC.
mod class {
    pub const UNKNOWN: u64 = 0x00;
    pub const WAIT: u64 = 0x01;
    pub const FP_ACCESS: u64 = 0x07;
    pub const BRANCH_TARGET: u64 = 0x0d;
    pub const ILLEGAL_STATE: u64 = 0x0e;
    pub const HVC: u64 = 0x16;
    pub const SMC: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const SVE_ACCESS: u64 = 0x19;
    pub const POINTER_AUTHENTICATION: u64 = 0x1c;
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub const INSTRUCTION_ABORT: u64 = 0x21;
    pub const PC_ALIGNMENT: u64 = 0x22;
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    pub const DATA_ABORT: u64 = 0x25;
    pub const SP_ALIGNMENT: u64 = 0x26;
    pub const SERROR: u64 = 0x2f;
    pub const BREAKPOINT: u64 = 0x3c;
}

/// How an exception came: the group of the vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Kind {
    /// By an instruction.
    Synchronous = 0,
    /// IRQ.
    Irq = 1,
    /// FIQ.
    Fiq = 2,
    /// SError.
    SError = 3,
}

impl Kind {
    /// From the number that the vector passes on; what is none counts as an SError.
    pub fn from_number(number: u64) -> Self {
        match number {
            0 => Kind::Synchronous,
            1 => Kind::Irq,
            2 => Kind::Fiq,
            _ => Kind::SError,
        }
    }
}

/// An exception.
pub struct Cause {
    /// How it came.
    pub kind: Kind,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// What lies at the faulting address.
    pub target: Target,
}

fn class_of(esr: u64) -> u64 {
    const EC_SHIFT: u32 = 26;
    esr >> EC_SHIFT & 0x3f
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.kind, self.esr))?;
        if self.kind != Kind::Synchronous {
            return Ok(());
        }
        match class_of(self.esr) {
            class::DATA_ABORT | class::INSTRUCTION_ABORT => self.abort(f),
            class::BREAKPOINT => write!(f, " {:#x}", self.esr & 0xffff),
            _ => Ok(()),
        }
    }
}

impl Cause {
    fn abort(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WNR: u64 = 1 << 6;
        const FNV: u64 = 1 << 10;
        const STATUS: u64 = 0x3f;
        /// Status codes but for the level in their lower two bits.
        const ADDRESS_SIZE: u64 = 0b00_0000;
        const TRANSLATION: u64 = 0b00_0100;
        const ACCESS_FLAG: u64 = 0b00_1000;
        const PERMISSION: u64 = 0b00_1100;
        const EXTERNAL: u64 = 0b01_0000;
        const EXTERNAL_ON_WALK: u64 = 0b01_0100;
        const ALIGNMENT: u64 = 0b10_0001;
        const LEVEL: u64 = 0b11;
        let access = match class_of(self.esr) {
            class::INSTRUCTION_ABORT => Access::Execute,
            _ if self.esr & WNR != 0 => Access::Write,
            _ => Access::Read,
        };
        if self.esr & FNV != 0 {
            return write!(f, ": {} of an address that is not known", access.name());
        }
        let address = self.far;
        let status = self.esr & STATUS;
        if status & !LEVEL == TRANSLATION && self.target == Target::Guard {
            return write!(f, ": stack overflow: {address:#x} is in the guard page below the stack");
        }
        write!(f, ": {} of {address:#x}, ", access.name())?;
        if status == ALIGNMENT {
            return f.write_str("which is not aligned");
        }
        f.write_str(match status & !LEVEL {
            TRANSLATION => not_mapped(self.target),
            PERMISSION => not_allowed(access, self.target),
            ADDRESS_SIZE => "which is larger than a physical address",
            ACCESS_FLAG => "whose page table entry has no access flag",
            EXTERNAL => "to which nobody answers (external abort)",
            EXTERNAL_ON_WALK => "whose page table cannot be read (external abort)",
            _ => "which failed",
        })
    }
}

/// An exception's name.
pub fn name(kind: Kind, esr: u64) -> &'static str {
    match kind {
        Kind::Irq => return "IRQ where none is taken",
        Kind::Fiq => return "FIQ that nobody asked for",
        Kind::SError => return "SError: an asynchronous error of the memory or a device",
        Kind::Synchronous => {}
    }
    match class_of(esr) {
        class::UNKNOWN => "undefined instruction",
        class::WAIT => "trapped WFI or WFE",
        class::FP_ACCESS => "trapped floating point",
        class::BRANCH_TARGET => "branch target",
        class::ILLEGAL_STATE => "illegal execution state",
        class::HVC => "HVC",
        class::SMC => "trapped SMC",
        class::SYSTEM_REGISTER => "trapped system register",
        class::SVE_ACCESS => "trapped SVE",
        class::POINTER_AUTHENTICATION => "pointer authentication",
        class::INSTRUCTION_ABORT_LOWER => "instruction abort of a guest",
        class::INSTRUCTION_ABORT => "instruction abort",
        class::PC_ALIGNMENT => "PC alignment",
        class::DATA_ABORT_LOWER => "data abort of a guest",
        class::DATA_ABORT => "data abort",
        class::SP_ALIGNMENT => "SP alignment",
        class::SERROR => "SError",
        class::BREAKPOINT => "BRK",
        _ => "exception of an unknown class",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(class: u64, iss: u64, far: u64, target: Target) -> String {
        let cause = Cause { kind: Kind::Synchronous, esr: class << 26 | 1 << 25 | iss, far, target };
        cause.to_string()
    }

    #[test]
    fn aborts_say_what_was_done_to_what() {
        let data = |iss, far, target| text(class::DATA_ABORT, iss, far, target);
        assert_eq!(data(0x06, 0x18, Target::Null), "data abort: read of 0x18, a null pointer");
        assert_eq!(data(0x44, 0x5000, Target::Other), "data abort: write of 0x5000, which is not mapped");
        assert!(data(0x4f, 0x5000, Target::Code).ends_with("which is code: W^X violation"));
        assert!(data(0x4f, 0x5000, Target::Constants).ends_with("which is constant: W^X violation"));
        assert!(data(0x47, 0x5ff8, Target::Guard).contains("stack overflow: 0x5ff8"));
        assert!(data(0x21, 0x5001, Target::Other).ends_with("not aligned"));
        assert!(data(0x10, 0x5000, Target::Other).contains("nobody answers"));
        assert!(data(0x410, 0x5000, Target::Other).contains("not known"));
        let fetch = text(class::INSTRUCTION_ABORT, 0x0f, 0x5000, Target::Other);
        assert_eq!(fetch, "instruction abort: execution of 0x5000, which is not code: W^X violation");
    }

    #[test]
    fn others_are_named() {
        assert_eq!(text(class::UNKNOWN, 0, 0, Target::Null), "undefined instruction");
        assert_eq!(text(class::BREAKPOINT, 1, 0, Target::Null), "BRK 0x1");
        assert_eq!(name(Kind::from_number(3), 0), name(Kind::SError, 0));
    }
}
