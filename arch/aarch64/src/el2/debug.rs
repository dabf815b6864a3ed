// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's breakpoints and watchpoints in the processor.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D2.8 to D2.10, `DBGBVR<n>_EL1` and its like.

use core::arch::asm;

use super::identification;
use crate::guest::sysreg::debug::{Counts, Debug, Point};
use crate::guest::sysreg::id;

macro_rules! points {
    ($value:literal $control:literal; $($number:literal)*; $points:expr) => {
        for (number, point) in $points.iter().enumerate() {
            let Point { value, control } = *point;
            match number {
                $(
                    // SAFETY: there are as many; they match at EL1 and EL0 only, where the hypervisor never is.
                    $number => unsafe {
                        asm!(
                            concat!("msr S2_0_C0_C", $number, "_", $value, ", {}"),
                            concat!("msr S2_0_C0_C", $number, "_", $control, ", {}"),
                            in(reg) value,
                            in(reg) control,
                            options(nostack, preserves_flags)
                        );
                    },
                )*
                _ => {}
            }
        }
    };
}

/// Puts them in. The return to the guest is the context synchronisation that they need.
pub fn load(debug: &Debug) {
    let counts = Counts::new(identification::read(id::DFR0));
    points!(4 5; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; debug.breakpoints(counts));
    points!(6 7; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; debug.watchpoints(counts));
}

/// Takes them out: none is on.
pub fn clear() {
    load(&Debug::default());
}
