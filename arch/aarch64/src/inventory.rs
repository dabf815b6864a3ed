// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is worth knowing about the processor on a machine that Pasidon has not run on yet.
//!
//! **Invariant.** Nothing is written; what is read exists on every processor, at the exception level that reads it.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D19.2 (HCR_EL2, ID_AA64*, MIDR_EL1, MPIDR_EL1), D19.12
//! (CNTFRQ_EL0).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;

use aarch64_cpu::registers::{
    CNTFRQ_EL0, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, MIDR_EL1, Readable,
};

use crate::cpu::{self, Features};

/// The processor that calls, as names and values.
pub fn processor() -> Vec<(&'static str, String)> {
    let features = Features::read();
    let midr = MIDR_EL1.get();
    let all = [
        (features.el2, "EL2"),
        (features.vhe, "VHE"),
        (features.pages_4k, "4 KiB pages"),
        (features.gic_registers, "GICv3 system registers"),
        (features.vmid_16, "VMIDs of 16 bits"),
    ];
    let list = |wanted: bool| {
        let names = all.iter().filter(|(there, _)| *there == wanted).map(|(_, name)| *name);
        let names = names.collect::<Vec<_>>().join(", ");
        if names.is_empty() { String::from("nothing") } else { names }
    };
    let mut facts = Vec::from([
        ("name", cpu::name()),
        (
            "model",
            format!("variant {:#x}, revision {:#x} (MIDR_EL1 {midr:#010x})", midr >> 20 & 0xf, midr & 0xf),
        ),
        ("has", list(true)),
        ("has not", list(false)),
        ("addresses", format!("{} bits", features.physical_bits)),
        ("MPIDR", format!("{:#x}", cpu::mpidr())),
        ("counter", format!("{} Hz", CNTFRQ_EL0.get())),
        ("ID_AA64PFR0", format!("{:#018x}", ID_AA64PFR0_EL1.get())),
        ("ID_AA64PFR1", format!("{:#018x}", ID_AA64PFR1_EL1.get())),
        ("ID_AA64MMFR0", format!("{:#018x}", ID_AA64MMFR0_EL1.get())),
        ("ID_AA64MMFR1", format!("{:#018x}", ID_AA64MMFR1_EL1.get())),
    ]);
    if features.el2 {
        let hcr: u64;
        // SAFETY: at EL2 the register is there; reading it changes nothing.
        unsafe { asm!("mrs {}, hcr_el2", out(reg) hcr, options(nomem, nostack, preserves_flags)) };
        let vhe = if hcr & cpu::HCR_E2H == 0 { "off" } else { "on" };
        facts.push(("left by firmware", format!("VHE {vhe} (HCR_EL2 {hcr:#x})")));
    }
    facts
}
