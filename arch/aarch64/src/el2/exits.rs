// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a guest left: from the vector it came through and its syndrome to [`Reason`].
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D1.3 (exceptions), ESR_EL2.

/// The vector that an exception from the guest came through, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Vector {
    /// Something that the guest did.
    Synchronous = 0,
    /// An interrupt of the host's.
    Irq = 1,
    /// As above, of group 0.
    Fiq = 2,
    /// An error that was not told by whom.
    SError = 3,
}

/// Why the guest stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A host interrupt is waiting.
    HostInterrupt,
    /// WFI, or WFE.
    Wait {
        /// It was WFE.
        event: bool,
    },
    /// HVC or SMC with this immediate.
    Call {
        /// It was SMC: ELR_EL2 is at the instruction, not behind it.
        smc: bool,
        /// The number in the instruction.
        immediate: u16,
    },
    /// A system register or instruction: ISS.
    SystemRegister(u32),
    /// An access that stage 2 does not allow.
    DataAbort {
        /// ISS.
        iss: u32,
        /// FAR_EL2.
        address: u64,
        /// HPFAR_EL2.
        hpfar: u64,
    },
    /// A fetch that stage 2 does not allow.
    InstructionAbort {
        /// FAR_EL2.
        address: u64,
        /// HPFAR_EL2.
        hpfar: u64,
    },
    /// An instruction, or a part of the processor, that this machine does not have.
    Undefined,
    /// An SError came while the guest ran.
    SystemError(u32),
    /// None of these: ESR_EL2.
    Unknown(u32),
}

/// Exception classes, ESR_EL2.EC.
mod class {
    pub const UNKNOWN: u64 = 0x00;
    pub const WFX: u64 = 0x01;
    pub const CP15_MCR: u64 = 0x03;
    pub const CP15_MCRR: u64 = 0x04;
    pub const CP14_MCR: u64 = 0x05;
    pub const CP14_LDC: u64 = 0x06;
    pub const SVE_SIMD_FP: u64 = 0x07;
    pub const VMRS: u64 = 0x08;
    pub const POINTER_AUTHENTICATION: u64 = 0x09;
    pub const LD64B: u64 = 0x0a;
    pub const CP14_MRRC: u64 = 0x0c;
    pub const ILLEGAL_STATE: u64 = 0x0e;
    pub const HVC64: u64 = 0x16;
    pub const SMC64: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const SVE: u64 = 0x19;
    pub const POINTER_AUTHENTICATION_FAILURE: u64 = 0x1c;
    pub const SME: u64 = 0x1d;
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    pub const DATA_ABORT: u64 = 0x24;
    pub const SERROR: u64 = 0x2f;
}

const CLASS_SHIFT: u32 = 26;
const CLASS_MASK: u64 = 0x3f;
const ISS_MASK: u64 = 0x1ff_ffff;
const IMMEDIATE_MASK: u64 = 0xffff;
/// ISS of WFx, TI: 0 WFI, 1 WFE, 2 WFIT, 3 WFET.
const WFX_EVENT: u64 = 1;

/// What an exit was, from the vector it came through and ESR_EL2, FAR_EL2 and HPFAR_EL2.
pub fn reason(vector: Vector, esr: u64, far: u64, hpfar: u64) -> Reason {
    match vector {
        Vector::Irq | Vector::Fiq => return Reason::HostInterrupt,
        Vector::SError => return Reason::SystemError(esr as u32),
        Vector::Synchronous => {}
    }
    let iss = esr & ISS_MASK;
    match esr >> CLASS_SHIFT & CLASS_MASK {
        class::WFX => Reason::Wait { event: iss & WFX_EVENT != 0 },
        class @ (class::HVC64 | class::SMC64) => {
            Reason::Call { smc: class == class::SMC64, immediate: (iss & IMMEDIATE_MASK) as u16 }
        }
        class::SYSTEM_REGISTER => Reason::SystemRegister(iss as u32),
        class::DATA_ABORT => Reason::DataAbort { iss: iss as u32, address: far, hpfar },
        class::INSTRUCTION_ABORT => Reason::InstructionAbort { address: far, hpfar },
        class::UNKNOWN
        | class::CP15_MCR
        | class::CP15_MCRR
        | class::CP14_MCR
        | class::CP14_LDC
        | class::VMRS
        | class::CP14_MRRC
        | class::SVE_SIMD_FP
        | class::POINTER_AUTHENTICATION
        | class::LD64B
        | class::ILLEGAL_STATE
        | class::SVE
        | class::POINTER_AUTHENTICATION_FAILURE
        | class::SME => Reason::Undefined,
        class::SERROR => Reason::SystemError(esr as u32),
        _ => Reason::Unknown(esr as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synchronous(class: u64, iss: u64) -> Reason {
        reason(Vector::Synchronous, class << CLASS_SHIFT | iss, 0x1234, 0x50)
    }

    #[test]
    fn syndromes_become_reasons() {
        for (class, iss, expected) in [
            (0x01, 0x1e0_0000, Reason::Wait { event: false }),
            (0x01, 0x1e0_0001, Reason::Wait { event: true }),
            (0x16, 7, Reason::Call { smc: false, immediate: 7 }),
            (0x17, 0, Reason::Call { smc: true, immediate: 0 }),
            (0x18, 0x30_0c00, Reason::SystemRegister(0x30_0c00)),
            (0x24, 0x180_0007, Reason::DataAbort { iss: 0x180_0007, address: 0x1234, hpfar: 0x50 }),
            (0x20, 7, Reason::InstructionAbort { address: 0x1234, hpfar: 0x50 }),
            (0x00, 0, Reason::Undefined),
            (0x19, 0, Reason::Undefined),
            // AArch32's, which a guest is not offered but EL0 may come to.
            (0x03, 0, Reason::Undefined),
            (0x0c, 0, Reason::Undefined),
            (0x3c, 0, Reason::Unknown(0xf000_0000)),
        ] {
            assert_eq!(synchronous(class, iss), expected, "{class:#x}");
        }
    }

    #[test]
    fn interrupts_have_no_syndrome() {
        assert_eq!(reason(Vector::Irq, u64::MAX, 0, 0), Reason::HostInterrupt);
        assert_eq!(reason(Vector::Fiq, 0, 0, 0), Reason::HostInterrupt);
        assert_eq!(reason(Vector::SError, 2, 0, 0), Reason::SystemError(2));
    }
}
