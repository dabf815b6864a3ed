// SPDX-License-Identifier: MIT OR Apache-2.0
//! EL2's control registers on a processor: [`super::traps`] says what is in them.
//!
//! **Invariant.** Every register that decides what a guest reaches is written here, whole; a register that the
//! processor has not is not touched.

use core::arch::asm;

use super::identification;
use super::traps::{self, Control, Need};
use crate::cpu::{HCR, HCR_E2H};
use crate::features::Features;

macro_rules! write {
    ($name:literal, $value:expr) => {
        // SAFETY: at EL2 by the caller's promise; it says what guests may do, not what the hypervisor may.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

/// Programs all of them on the processor that calls. The guest's stage 2 is on afterwards.
///
/// # Safety
/// At EL2; VTTBR_EL2 and VTCR_EL2 hold what they are to, and no guest is loaded.
pub unsafe fn program(features: &Features) {
    let id = &identification::read;
    let there = |need: Need| need.is_met(id);
    let value = |control| traps::value(control, id);
    let vhe = features.vhe;
    let mdcr: u64;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mrs {}, mdcr_el2", out(reg) mdcr, options(nomem, nostack, preserves_flags)) };
    write!("mdcr_el2", mdcr & traps::MDCR_HPMN | value(Control::Mdcr));
    write!("cptr_el2", traps::cptr(vhe, id));
    write!("cnthctl_el2", traps::cnthctl(vhe, id));
    // AArch32's coprocessor 15 is not EL0's.
    write!("hstr_el2", 0_u64);
    if there(traps::HCX) {
        write!("S3_4_C1_C2_2", value(Control::Hcrx));
    }
    if there(traps::FGT) {
        let (registers, debug) = (value(Control::Hfgtr), value(Control::Hdfgtr));
        // HFGRTR_EL2, HFGWTR_EL2, HDFGRTR_EL2, HDFGWTR_EL2.
        write!("S3_4_C1_C1_4", registers);
        write!("S3_4_C1_C1_5", registers);
        write!("S3_4_C3_C1_4", debug);
        write!("S3_4_C3_C1_5", debug);
        // HFGITR_EL2: no instruction that a guest has comes here.
        write!("S3_4_C1_C1_6", 0_u64);
        if there(traps::AMU) {
            // HAFGRTR_EL2: CPTR_EL2.TAM traps all of them.
            write!("S3_4_C3_C1_6", 0_u64);
        }
    }
    if there(traps::FGT2) {
        // HDFGRTR2_EL2, HDFGWTR2_EL2, HFGRTR2_EL2, HFGWTR2_EL2, HFGITR2_EL2: all that is newer is trapped.
        write!("S3_4_C3_C1_0", 0_u64);
        write!("S3_4_C3_C1_1", 0_u64);
        write!("S3_4_C3_C1_2", 0_u64);
        write!("S3_4_C3_C1_3", 0_u64);
        write!("S3_4_C3_C1_7", 0_u64);
    }
    if there(traps::MPAM) {
        write!("S3_4_C10_C5_0", value(Control::Mpam2));
        if has_mpam_hcr() {
            write!("S3_4_C10_C4_0", value(Control::MpamHcr));
        }
    }
    let e2h = if vhe { HCR_E2H } else { 0 };
    write!("hcr_el2", HCR | e2h | value(Control::Hcr));
    // A processor comes out of reset with its OS lock closed, and then no breakpoint of a guest's ever fires.
    write!("oslar_el1", 0_u64);
    write!("osdlr_el1", 0_u64);
    // SAFETY: what comes next sees all of it.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Whether MPAMHCR_EL2 exists: MPAMIDR_EL1.HAS_HCR. Only where MPAM does.
fn has_mpam_hcr() -> bool {
    const HAS_HCR: u64 = 1 << 17;
    let mpamidr: u64;
    // SAFETY: reading an ID register changes nothing.
    unsafe { asm!("mrs {}, S3_0_C10_C4_4", out(reg) mpamidr, options(nomem, nostack, preserves_flags)) };
    mpamidr & HAS_HCR != 0
}
