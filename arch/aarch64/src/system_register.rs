// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of system registers.

use core::fmt;

/// A system register, or a system instruction, by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemRegister(u16);

impl SystemRegister {
    /// From the fields of MRS, MSR and SYS. Bits beyond a field's width are dropped.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 0xf) << 7
                | (crm as u16 & 0xf) << 3
                | op2 as u16 & 7,
        )
    }

    /// CRm, which numbers registers of a kind.
    pub(crate) const fn crm(self) -> usize {
        (self.0 >> 3 & 0xf) as usize
    }

    /// Op0 15:14, Op1 13:11, CRn 10:7, CRm 6:3, Op2 2:0.
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

/// As in `S3_0_C4_C0_0`.
impl fmt::Display for SystemRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits();
        let (op0, op1, crn, crm, op2) =
            (bits >> 14, bits >> 11 & 7, bits >> 7 & 0xf, bits >> 3 & 0xf, bits & 7);
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}
