// SPDX-License-Identifier: MIT OR Apache-2.0
//! Conditions of SETcc and CMOVcc.
//!
//! Source: Intel SDM volume 1, appendix B "EFLAGS Condition Codes".

use iced_x86::{ConditionCode, Mnemonic};
use x86_64::registers::rflags::RFlags;

/// Whether RFLAGS satisfies the condition.
pub(super) fn holds(condition: ConditionCode, rflags: u64) -> bool {
    let flag = |flag: RFlags| rflags & flag.bits() != 0;
    let less = flag(RFlags::SIGN_FLAG) != flag(RFlags::OVERFLOW_FLAG);
    let below_or_equal = flag(RFlags::CARRY_FLAG) || flag(RFlags::ZERO_FLAG);
    match condition {
        ConditionCode::o => flag(RFlags::OVERFLOW_FLAG),
        ConditionCode::no => !flag(RFlags::OVERFLOW_FLAG),
        ConditionCode::b => flag(RFlags::CARRY_FLAG),
        ConditionCode::ae => !flag(RFlags::CARRY_FLAG),
        ConditionCode::e => flag(RFlags::ZERO_FLAG),
        ConditionCode::ne => !flag(RFlags::ZERO_FLAG),
        ConditionCode::be => below_or_equal,
        ConditionCode::a => !below_or_equal,
        ConditionCode::s => flag(RFlags::SIGN_FLAG),
        ConditionCode::ns => !flag(RFlags::SIGN_FLAG),
        ConditionCode::p => flag(RFlags::PARITY_FLAG),
        ConditionCode::np => !flag(RFlags::PARITY_FLAG),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || flag(RFlags::ZERO_FLAG),
        ConditionCode::g => !less && !flag(RFlags::ZERO_FLAG),
        ConditionCode::None => false,
    }
}

/// SETcc.
pub(super) fn is_setcc(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Seto
            | Mnemonic::Setno
            | Mnemonic::Setb
            | Mnemonic::Setae
            | Mnemonic::Sete
            | Mnemonic::Setne
            | Mnemonic::Setbe
            | Mnemonic::Seta
            | Mnemonic::Sets
            | Mnemonic::Setns
            | Mnemonic::Setp
            | Mnemonic::Setnp
            | Mnemonic::Setl
            | Mnemonic::Setge
            | Mnemonic::Setle
            | Mnemonic::Setg
    )
}

/// CMOVcc.
pub(super) fn is_cmovcc(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmovo
            | Mnemonic::Cmovno
            | Mnemonic::Cmovb
            | Mnemonic::Cmovae
            | Mnemonic::Cmove
            | Mnemonic::Cmovne
            | Mnemonic::Cmovbe
            | Mnemonic::Cmova
            | Mnemonic::Cmovs
            | Mnemonic::Cmovns
            | Mnemonic::Cmovp
            | Mnemonic::Cmovnp
            | Mnemonic::Cmovl
            | Mnemonic::Cmovge
            | Mnemonic::Cmovle
            | Mnemonic::Cmovg
    )
}
