// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest has in the processor.
//!
//! **Principle.** Two parts. [`Context`] changes hands at every entry and exit, because the hypervisor uses the
//! same registers. [`SystemContext`] is EL1's, which the hypervisor never uses: it stays in the processor from one
//! exit to the next, and changes hands only where another vCPU comes.
//!
//! With VHE the names of EL1's registers mean EL2's own while the hypervisor runs, and EL1's have other names
//! (…_EL12, …_EL02); those are given by encoding, as assemblers know them only where VHE is a target feature.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.1.4 (VHE, register redirection), D19.2.

use core::arch::asm;

use crate::guest::boot::EntryState;
use crate::guest::{exception, mmio};

/// General, SIMD and floating-point registers, and why the guest stopped. `enter` knows the layout.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct Context {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL0.
    pub sp_el0: u64,
    /// Where it goes on: ELR_EL2.
    pub pc: u64,
    /// In which state: SPSR_EL2.
    pub pstate: u64,
    /// ESR_EL2 of the last exit.
    pub esr: u64,
    /// FAR_EL2 of the last exit.
    pub far: u64,
    /// HPFAR_EL2 of the last exit.
    pub hpfar: u64,
    _reserved: u64,
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
    /// V0 to V31.
    pub v: [u128; 32],
}

impl Context {
    /// Before the first instruction.
    pub fn new(entry: &EntryState) -> Self {
        let mut x = [0; 31];
        x[0] = entry.x0;
        Self {
            x,
            sp_el0: 0,
            pc: entry.pc,
            pstate: entry.pstate,
            esr: 0,
            far: 0,
            hpfar: 0,
            _reserved: 0,
            fpcr: 0,
            fpsr: 0,
            v: [0; 32],
        }
    }

    /// Goes on behind the instruction that it left for.
    pub fn skip(&mut self) {
        (self.pc, self.pstate) = exception::behind(self.pc, self.pstate, self.is_long());
    }

    /// The instruction that it left for has 32 bits.
    pub fn is_long(&self) -> bool {
        /// ESR_EL2.IL.
        const IL: u64 = 1 << 25;
        self.esr & IL != 0
    }

    /// X0 to X30, and 0 for XZR.
    pub fn x(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Sets one of them; XZR takes nothing.
    pub fn set_x(&mut self, number: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }
}

/// A context together with SP_EL1, which is the stack pointer where PSTATE says so.
pub struct ContextRegisters<'a> {
    /// The general and SIMD registers.
    pub context: &'a mut Context,
    /// SP_EL1.
    pub sp_el1: &'a mut u64,
}

impl ContextRegisters<'_> {
    /// PSTATE: at EL1 with a stack pointer of its own.
    fn on_sp_el1(&self) -> bool {
        const SP: u64 = 1;
        self.context.pstate & SP != 0
    }
}

impl mmio::GuestRegisters for ContextRegisters<'_> {
    fn x(&self, number: u8) -> u64 {
        self.context.x(number)
    }

    fn set_x(&mut self, number: u8, value: u64) {
        self.context.set_x(number, value);
    }

    fn sp(&self) -> u64 {
        if self.on_sp_el1() { *self.sp_el1 } else { self.context.sp_el0 }
    }

    fn set_sp(&mut self, value: u64) {
        if self.on_sp_el1() {
            *self.sp_el1 = value;
        } else {
            self.context.sp_el0 = value;
        }
    }

    fn v(&self, number: u8) -> u128 {
        self.context.v[usize::from(number % 32)]
    }

    fn set_v(&mut self, number: u8, value: u128) {
        self.context.v[usize::from(number % 32)] = value;
    }
}

/// Says that EL1's registers are a vCPU's, and that an ISB is behind them: from now on its stage 2 may be chosen. The
/// other way round a speculative walk could take one guest's stage 1 through another's stage 2, and keep what it found
/// under the wrong VMID (Arm errata 1165522, 1319367, 1319537 and 1530923).
#[derive(Debug)]
pub struct Stage1Loaded(());

macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading it changes nothing, and EL2 may.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

macro_rules! write {
    ($name:literal, $value:expr) => {
        // SAFETY: EL1's own; nothing of the hypervisor's depends on it.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

macro_rules! system_context {
    ($($(#[$doc:meta])* $field:ident: $vhe:literal $plain:literal,)*) => {
        /// EL1's registers.
        #[derive(Clone, Debug, Default)]
        pub struct SystemContext {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl SystemContext {
            /// Puts them into the processor. `vhe`: HCR_EL2.E2H is set.
            ///
            /// # Safety
            /// At EL2, with no other vCPU's in the processor that were not saved.
            pub unsafe fn load(&self, vhe: bool) -> Stage1Loaded {
                if vhe {
                    $(write!($vhe, self.$field);)*
                } else {
                    $(write!($plain, self.$field);)*
                }
                // SAFETY: only what comes next sees them.
                unsafe { asm!("isb", options(nostack, preserves_flags)) };
                Stage1Loaded(())
            }

            /// Takes them out of the processor. `vhe` as in [`SystemContext::load`].
            pub fn save(&mut self, vhe: bool) {
                if vhe {
                    $(self.$field = read!($vhe);)*
                } else {
                    $(self.$field = read!($plain);)*
                }
            }
        }
    };
}

system_context! {
    /// SCTLR_EL1.
    sctlr: "S3_5_C1_C0_0" "sctlr_el1",
    /// CPACR_EL1.
    cpacr: "S3_5_C1_C0_2" "cpacr_el1",
    /// TTBR0_EL1.
    ttbr0: "S3_5_C2_C0_0" "ttbr0_el1",
    /// TTBR1_EL1.
    ttbr1: "S3_5_C2_C0_1" "ttbr1_el1",
    /// TCR_EL1.
    tcr: "S3_5_C2_C0_2" "tcr_el1",
    /// SPSR_EL1.
    spsr: "S3_5_C4_C0_0" "spsr_el1",
    /// ELR_EL1.
    elr: "S3_5_C4_C0_1" "elr_el1",
    /// AFSR0_EL1.
    afsr0: "S3_5_C5_C1_0" "afsr0_el1",
    /// AFSR1_EL1.
    afsr1: "S3_5_C5_C1_1" "afsr1_el1",
    /// ESR_EL1.
    esr: "S3_5_C5_C2_0" "esr_el1",
    /// FAR_EL1.
    far: "S3_5_C6_C0_0" "far_el1",
    /// MAIR_EL1.
    mair: "S3_5_C10_C2_0" "mair_el1",
    /// AMAIR_EL1.
    amair: "S3_5_C10_C3_0" "amair_el1",
    /// VBAR_EL1.
    vbar: "S3_5_C12_C0_0" "vbar_el1",
    /// CONTEXTIDR_EL1.
    contextidr: "S3_5_C13_C0_1" "contextidr_el1",
    /// CNTKCTL_EL1.
    cntkctl: "S3_5_C14_C1_0" "cntkctl_el1",
    /// CNTV_CVAL_EL0.
    cntv_cval: "S3_5_C14_C3_2" "cntv_cval_el0",
    /// CNTV_CTL_EL0.
    cntv_ctl: "S3_5_C14_C3_1" "cntv_ctl_el0",
    /// SP_EL1.
    sp: "sp_el1" "sp_el1",
    /// TPIDR_EL0.
    tpidr_el0: "tpidr_el0" "tpidr_el0",
    /// TPIDRRO_EL0.
    tpidrro_el0: "tpidrro_el0" "tpidrro_el0",
    /// TPIDR_EL1.
    tpidr_el1: "tpidr_el1" "tpidr_el1",
    /// PAR_EL1.
    par: "par_el1" "par_el1",
    /// CSSELR_EL1.
    csselr: "csselr_el1" "csselr_el1",
    /// MDSCR_EL1.
    mdscr: "mdscr_el1" "mdscr_el1",
}
