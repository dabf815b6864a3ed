// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ID registers of this processor, by their encodings.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), C5.1.3 (Op0 3, Op1 0, CRn 0, CRm 1 to 7).

use core::arch::asm;

use crate::system_register::SystemRegister;

macro_rules! space {
    ($register:expr; $($crm:literal: $($op2:literal)*;)*) => {
        $($(
            if $register == SystemRegister::new(3, 0, 0, $crm, $op2) {
                let value: u64;
                // SAFETY: reading an ID register changes nothing; those that do not exist are zero.
                unsafe {
                    asm!(
                        concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2),
                        out(reg) value,
                        options(nomem, nostack, preserves_flags)
                    );
                }
                return value;
            }
        )*)*
    };
}

/// What the processor says; 0 for what is no ID register.
pub fn read(register: SystemRegister) -> u64 {
    space!(register;
        1: 0 1 2 3 4 5 6 7;
        2: 0 1 2 3 4 5 6 7;
        3: 0 1 2 3 4 5 6 7;
        4: 0 1 2 3 4 5 6 7;
        5: 0 1 2 3 4 5 6 7;
        6: 0 1 2 3 4 5 6 7;
        7: 0 1 2 3 4 5 6 7;
    );
    0
}
