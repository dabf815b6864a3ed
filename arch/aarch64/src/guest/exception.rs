// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions that a guest is given: what its registers are when its handler starts.
//!
//! **Principle.** What the processor would do when it takes an exception to EL1, as values: registers go in,
//! registers come out. Which PSTATE bits the guest has does not matter: bits that do not exist stay zero.
//!
//! Source: Arm DDI 0487 (Arm ARM), sections D1.3 (exception entry) and C5.2.19 (SPSR_EL1);
//! pseudocode AArch64.TakeException.

/// An exception for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// The instruction is undefined.
    Undefined,
    /// A synchronous external abort on the data access to this virtual address: nothing is there.
    DataAbort {
        /// FAR_EL1.
        address: u64,
    },
    /// A synchronous external abort on the fetch from this virtual address: nothing is there.
    InstructionAbort {
        /// FAR_EL1.
        address: u64,
    },
}

/// The part of the guest's registers that an exception entry reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// ELR_EL2: the instruction.
    pub pc: u64,
    /// SPSR_EL2: its PSTATE.
    pub pstate: u64,
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// ESR_EL2.IL: the instruction has 32 bits.
    pub long_instruction: bool,
}

/// The registers that it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entered {
    /// ELR_EL2: first instruction of the handler.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, where it changes.
    pub far: Option<u64>,
}

/// PSTATE bits in SPSR format.
pub(super) mod pstate {
    pub const MODE: u64 = 0xf;
    pub const EL1T: u64 = 4;
    pub const EL1H: u64 = 5;
    /// The mode is an AArch32 one.
    pub const AARCH32: u64 = 1 << 4;
    pub const DAIF: u64 = 0xf << 6;
    /// Under which condition the next T32 instructions are: IT\[7:2\] and IT\[1:0\].
    pub const IT_HIGH: u64 = 0x3f << 10;
    pub const IT_LOW: u64 = 0b11 << 25;
    /// How an indirect branch came here; AArch64 only.
    pub const BTYPE: u64 = 0b11 << 10;
    /// One more instruction, then a step is over.
    pub const SS: u64 = 1 << 21;
    pub const SSBS: u64 = 1 << 12;
    pub const PAN: u64 = 1 << 22;
    pub const DIT: u64 = 1 << 24;
    pub const NZCV: u64 = 0xf << 28;
}

/// SCTLR_EL1 bits.
mod sctlr {
    /// PSTATE.PAN stays as it is (otherwise it is set).
    pub const SPAN: u64 = 1 << 23;
    /// PSTATE.SSBS of a handler.
    pub const DSSBS: u64 = 1 << 44;
}

/// ESR_EL1.
mod esr {
    pub const EC_SHIFT: u32 = 26;
    pub const UNKNOWN: u64 = 0;
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub const INSTRUCTION_ABORT_SAME: u64 = 0x21;
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    pub const DATA_ABORT_SAME: u64 = 0x25;
    pub const IL: u64 = 1 << 25;
    /// Synchronous external abort, not on a translation table walk.
    pub const EXTERNAL: u64 = 0x10;
}

/// Vector offsets.
mod vector {
    pub const SAME_SP0: u64 = 0;
    pub const SAME: u64 = 0x200;
    pub const LOWER: u64 = 0x400;
    pub const LOWER_AARCH32: u64 = 0x600;
}

/// Whether its instructions are A64.
pub const fn is_a64(pstate: u64) -> bool {
    pstate & pstate::AARCH32 == 0
}

/// Whether it is at EL0.
pub const fn is_user(pstate: u64) -> bool {
    // AArch32 is EL0's only.
    !is_a64(pstate) || pstate & pstate::MODE == 0
}

/// PC and PSTATE behind an instruction that was carried out for the guest, as the processor would leave them: a step
/// over it is over, no branch came here, and of an IT block one instruction less is to come. `long`: ESR_EL2.IL.
pub const fn behind(pc: u64, pstate: u64, long: bool) -> (u64, u64) {
    const IT_HIGH_SHIFT: u32 = 8;
    const IT_LOW_SHIFT: u32 = 25;
    const LONG: u64 = 4;
    const SHORT: u64 = 2;
    let next = pc.wrapping_add(if long { LONG } else { SHORT });
    let stepped = pstate & !pstate::SS;
    if stepped & pstate::AARCH32 == 0 {
        return (next, stepped & !pstate::BTYPE);
    }
    // AArch32.ITAdvance().
    let it = (stepped & pstate::IT_HIGH) >> IT_HIGH_SHIFT | (stepped & pstate::IT_LOW) >> IT_LOW_SHIFT;
    let it = if it & 0b111 == 0 { 0 } else { it & 0xe0 | it << 1 & 0x1f };
    let rest = stepped & !(pstate::IT_HIGH | pstate::IT_LOW);
    (next & u32::MAX as u64, rest | it << IT_HIGH_SHIFT & pstate::IT_HIGH | (it & 0b11) << IT_LOW_SHIFT)
}

/// Has the guest take `exception` at `from`. `has_pan`: the guest's ID_AA64MMFR1_EL1 shows PAN.
pub fn enter(exception: Exception, from: &Interrupted, has_pan: bool) -> Entered {
    let mode = from.pstate & pstate::MODE;
    let lower = is_user(from.pstate);
    let offset = if from.pstate & pstate::AARCH32 != 0 {
        vector::LOWER_AARCH32
    } else if lower {
        vector::LOWER
    } else if mode == pstate::EL1T {
        vector::SAME_SP0
    } else {
        vector::SAME
    };
    let il = if from.long_instruction { esr::IL } else { 0 };
    let (esr, far) = match exception {
        // An exception of unknown reason always has IL.
        Exception::Undefined => (esr::UNKNOWN << esr::EC_SHIFT | esr::IL, None),
        Exception::DataAbort { address } => {
            let class = if lower { esr::DATA_ABORT_LOWER } else { esr::DATA_ABORT_SAME };
            (class << esr::EC_SHIFT | il | esr::EXTERNAL, Some(address))
        }
        Exception::InstructionAbort { address } => {
            let class = if lower { esr::INSTRUCTION_ABORT_LOWER } else { esr::INSTRUCTION_ABORT_SAME };
            // There is no instruction whose length could be told; IL is set then.
            (class << esr::EC_SHIFT | esr::IL | esr::EXTERNAL, Some(address))
        }
    };
    let mut handler = from.pstate & (pstate::NZCV | pstate::DIT | pstate::PAN) | pstate::DAIF | pstate::EL1H;
    if has_pan && from.sctlr & sctlr::SPAN == 0 {
        handler |= pstate::PAN;
    }
    if from.sctlr & sctlr::DSSBS != 0 {
        handler |= pstate::SSBS;
    }
    Entered { pc: from.vbar.wrapping_add(offset), pstate: handler, elr: from.pc, spsr: from.pstate, esr, far }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VBAR: u64 = 0xffff_8000_0801_0800;

    fn from(pstate: u64) -> Interrupted {
        Interrupted { pc: 0x1234, pstate, vbar: VBAR, sctlr: sctlr::SPAN, long_instruction: true }
    }

    #[test]
    fn the_vector_is_that_of_where_it_came_from() {
        for (pstate, offset) in [(0x5, 0x200), (0x4, 0), (0x0, 0x400), (0x10, 0x600), (0x30, 0x600)] {
            let entered = enter(Exception::Undefined, &from(pstate), false);
            assert_eq!(entered.pc - VBAR, offset);
            assert_eq!((entered.elr, entered.spsr, entered.esr), (0x1234, pstate, 0x200_0000));
            assert_eq!((entered.pstate, entered.far), (0x3c5, None));
        }
    }

    #[test]
    fn an_abort_says_where_and_from_which_level() {
        for (pstate, class) in [(0x3c5, 0x25), (0, 0x24)] {
            let entered = enter(Exception::DataAbort { address: 0xdead }, &from(pstate), false);
            assert_eq!((entered.esr, entered.far), (class << 26 | 0x200_0010, Some(0xdead)));
        }
    }

    #[test]
    fn a_fetch_that_nobody_answers_is_an_abort_of_an_instruction() {
        for (pstate, class) in [(0x3c5, 0x21), (0, 0x20), (0x10, 0x20)] {
            let mut from = from(pstate);
            from.long_instruction = false;
            let entered = enter(Exception::InstructionAbort { address: 0x1000 }, &from, false);
            assert_eq!((entered.esr, entered.far), (class << 26 | 0x200_0010, Some(0x1000)));
        }
    }

    #[test]
    fn behind_an_instruction_a_step_is_over_and_no_branch_came() {
        let (ss, btype) = (1 << 21, 3 << 10);
        assert_eq!(behind(0x1000, ss | btype | 0x3c5, true), (0x1004, 0x3c5));
        assert_eq!(behind(u64::MAX - 3, 0, true), (0, 0));
        // A 16-bit T32 instruction, the first of an ITTE block: IT is 0b0000_0110 for EQ, then 0b0000_1100.
        let it = |it: u64| (it >> 2) << 10 | (it & 3) << 25;
        let user = pstate::AARCH32 | 1 << 5;
        assert_eq!(behind(0x1000, ss | user | it(0b0000_0110), false), (0x1002, user | it(0b0000_1100)));
        assert_eq!(behind(0xffff_fffe, user | it(0b0001_0110), false), (0, user | it(0b0000_1100)));
        assert_eq!(behind(0x1000, user | it(0b0001_1000), true), (0x1004, user));
    }

    #[test]
    fn who_is_at_el0() {
        for (pstate, user) in [(0, true), (0x10, true), (4, false), (0x3c5, false)] {
            assert_eq!(is_user(pstate), user, "{pstate:#x}");
        }
    }

    #[test]
    fn flags_stay_and_what_protects_the_handler_is_set() {
        let before = 0xf << 28 | 1 << 24 | 1 << 21 | 1 << 20 | 3 << 10 | 5;
        let mut interrupted = from(before);
        assert_eq!(enter(Exception::Undefined, &interrupted, true).pstate, 0xf << 28 | 1 << 24 | 0x3c5);
        interrupted.sctlr = sctlr::DSSBS;
        let entered = enter(Exception::Undefined, &interrupted, true);
        assert_eq!(entered.pstate, 0xf << 28 | 1 << 24 | 1 << 22 | 1 << 12 | 0x3c5);
        assert_eq!(enter(Exception::Undefined, &interrupted, false).pstate & pstate::PAN, 0);
    }
}
