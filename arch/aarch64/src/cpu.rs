// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor itself: what it can do, and the control registers that every pCPU runs the hypervisor with.
//!
//! **Principle.** HCR_EL2.E2H changes what other registers mean, so all of them are exchanged at once, with the
//! MMU off and without touching memory: `switch` for the first processor, which the firmware left with its own
//! tables, and the others' start-up code the same way.
//! **Invariants.** All pCPUs have the same values. The hypervisor runs at EL2 on SP_EL0, so that an exception
//! finds a stack of its own in SP_EL2 even where the other one is used up. IRQs are masked but where they are
//! taken; SErrors, and the FIQ that stops a pCPU, are not, once there are stacks for them.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D1.2 (exception levels), D8.1 (enabling the MMU), D19.2.

use alloc::string::String;
use core::arch::{asm, global_asm};

use aarch64_cpu::registers::{
    CurrentEL, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1, MIDR_EL1, MPIDR_EL1, Readable,
};
use pasidon_arch_common::entropy::{KEY_LEN, Key};
use pasidon_kernel::base::refusal::Refusal;

pub use crate::features::{Features, Likeness};

use crate::cache;
use crate::el2::{identification, traps};
use crate::features::{self, IdRegisters};
use crate::guest::sysreg::id::ISAR0;
use crate::stage1::{MAIR, Regime, SCTLR};

/// HCR_EL2 while the hypervisor runs: EL1 is AArch64; IRQs, FIQs and SErrors come to EL2.
pub const HCR: u64 = {
    const FMO: u64 = 1 << 3;
    const IMO: u64 = 1 << 4;
    const AMO: u64 = 1 << 5;
    const RW: u64 = 1 << 31;
    FMO | IMO | AMO | RW
};
/// HCR_EL2.E2H: VHE.
pub const HCR_E2H: u64 = 1 << 34;

impl Features {
    /// Of this processor.
    pub fn read() -> Self {
        Self::from_registers(IdRegisters {
            current_el: (CurrentEL.get() >> 2) as u8,
            pfr0: ID_AA64PFR0_EL1.get(),
            mmfr0: ID_AA64MMFR0_EL1.get(),
            mmfr1: ID_AA64MMFR1_EL1.get(),
        })
    }
}

impl Likeness {
    /// Of this processor.
    pub fn read() -> Self {
        Self::new(identification::read, cache::cache_type())
    }
}

/// What this processor has, when Pasidon can run on it.
///
/// # Errors
/// When something is missing, or the firmware has switched it off.
pub fn check() -> Result<Features, Refusal> {
    let features = Features::read();
    features.check()?;
    Ok(features)
}

/// The processor's name.
pub fn name() -> String {
    features::name(MIDR_EL1.get())
}

/// The affinity fields of MPIDR_EL1, which name a processor.
pub fn mpidr() -> u64 {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    MPIDR_EL1.get() & AFFINITY
}

/// The registers that [`switch`] sets; the offsets are in its code.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    hcr: u64,
    cptr: u64,
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
    vbar: u64,
}

impl Control {
    /// For a processor with these features and the tables at `root`.
    pub(crate) fn new(features: &Features, root: u64) -> Self {
        let regime = Regime::of(features);
        Self {
            hcr: if features.vhe { HCR | HCR_E2H } else { HCR },
            cptr: traps::cptr(features.vhe, &identification::read),
            mair: MAIR,
            tcr: regime.tcr(features),
            ttbr0: root,
            sctlr: SCTLR,
            vbar: (&raw const VECTOR_TABLE) as u64,
        }
    }
}

// X0: the registers to set. Changes X2 to X9 only, and touches no memory between MMU off and MMU on, so that it
// does not matter what the caches hold. It runs at its physical address, which is its virtual one as well.
global_asm!(
    ".p2align 6",
    ".globl pasidon_switch, pasidon_switch_end",
    "pasidon_switch:",
    "ldp x2, x3, [x0]",
    "ldp x4, x5, [x0, #16]",
    "ldp x6, x7, [x0, #32]",
    "ldr x8, [x0, #48]",
    "mrs x9, sctlr_el2",
    "bic x9, x9, #1",
    "bic x9, x9, #4",
    "dsb sy",
    "msr sctlr_el2, x9",
    "isb",
    "tlbi alle2",
    "dsb nsh",
    "isb",
    "msr hcr_el2, x2",
    "isb",
    "msr cptr_el2, x3",
    "msr mair_el2, x4",
    "msr tcr_el2, x5",
    "msr ttbr0_el2, x6",
    "msr vbar_el2, x8",
    "isb",
    "tlbi alle2",
    "ic iallu",
    "dsb nsh",
    "isb",
    "msr sctlr_el2, x7",
    "isb",
    "ret",
    "pasidon_switch_end:",
);

unsafe extern "C" {
    /// The first entry of the vector table, whose code stands in [`crate::interrupts`]; only its address is used.
    #[link_name = "pasidon_vectors"]
    static VECTOR_TABLE: u8;
    fn pasidon_switch(control: *const Control);
    /// Behind it; only its address is used.
    #[link_name = "pasidon_switch_end"]
    static SWITCH_END: u8;
}

/// Gives this processor those registers.
///
/// # Safety
/// Interrupts masked, on an identity map, with tables that map all that is in use at its physical address.
pub(crate) unsafe fn switch(control: &Control) {
    let code = pasidon_switch as *const () as u64;
    let length = (&raw const SWITCH_END) as u64 - code;
    // SAFETY: the code is mapped; the rest by the caller's promise. Without the MMU instructions are fetched from
    // memory, so it has to hold them.
    unsafe {
        cache::clean(code, length as usize);
        asm!(
            "bl {switch}",
            switch = sym pasidon_switch,
            in("x0") core::ptr::from_ref(control),
            out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _,
            out("x9") _, out("x30") _,
        );
    }
}

/// Masks everything that can interrupt this processor. Its page tables may be anyone's; the rest of what every
/// pCPU runs with comes together with the hypervisor's tables, see [`crate::paging::install`].
///
/// # Safety
/// At EL2, on a processor that passed [`Features::check`].
pub unsafe fn set_up(_features: &Features) {
    // SAFETY: masking is always allowed. Nothing of the firmware's is taken for a pCPU.
    unsafe { asm!("msr daifset, #0xf", "msr tpidr_el2, xzr", options(nomem, nostack)) };
}

/// Random numbers of this processor's own; `None` where it has none, or gives none.
pub fn random() -> Option<Key> {
    const RNDR: u64 = 0xf << 60;
    const TRIES: usize = 16;
    let word = || {
        let (value, given): (u64, u64);
        // SAFETY: the register is there; reading it changes nothing but the flags. Z says that it gave nothing.
        unsafe {
            asm!("mrs {}, S3_3_C2_C4_0", "cset {}, ne", out(reg) value, out(reg) given, options(nomem, nostack));
        }
        (given != 0).then_some(value)
    };
    if identification::read(ISAR0) & RNDR == 0 {
        return None;
    }
    let mut key = [0; KEY_LEN];
    for part in key.chunks_mut(size_of::<u64>()) {
        part.copy_from_slice(&(0..TRIES).find_map(|_| word())?.to_le_bytes());
    }
    Some(key)
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: everything is masked; what still wakes the processor lets it wait again.
        unsafe { asm!("msr daifset, #0xf", "wfi", options(nomem, nostack)) };
    }
}
