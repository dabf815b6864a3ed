// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is trapped while a guest runs, and how its stage 2 is walked: values of EL2's control registers.
//!
//! **Principle.** Each register is written whole, so nothing is left to the firmware, and only where the processor has
//! it. None of the bits means anything for the hypervisor itself, which never is at EL1 or EL0; so they are set once
//! per processor. What a guest does to its own translation, exceptions, timer and interrupt acknowledgement costs no
//! exit.
//! **Invariant.** A [`Trap`] is a name for the fields that do it, and [`value`] is made of all of them; whoever claims
//! that an access is trapped names one ([`crate::guest::sysreg::table`]).
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), the page of each register; for MPAM2_EL2 Arm DDI 0598.

use crate::guest::layout::IPA_BITS;
use crate::system_register::SystemRegister;

/// A control register whose fields decide what is trapped. Two of them are laid out differently with HCR_EL2.E2H.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Control {
    /// HCR_EL2.
    Hcr,
    /// HCRX_EL2.
    Hcrx,
    /// CPTR_EL2 without E2H.
    Cptr,
    /// CPTR_EL2 with E2H.
    CptrE2h,
    /// MDCR_EL2, but for HPMN.
    Mdcr,
    /// CNTHCTL_EL2 without E2H.
    Cnthctl,
    /// CNTHCTL_EL2 with E2H.
    CnthctlE2h,
    /// HFGRTR_EL2 and HFGWTR_EL2.
    Hfgtr,
    /// HDFGRTR_EL2 and HDFGWTR_EL2.
    Hdfgtr,
    /// MPAM2_EL2.
    Mpam2,
    /// MPAMHCR_EL2.
    MpamHcr,
    /// ICC_SRE_EL2.
    IccSre,
    /// ICH_HCR_EL2, which each entry has a value of its own for: this goes into it where it matters.
    IchHcr,
}

/// A field, and the value of it that traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bits {
    control: Control,
    mask: u64,
    value: u64,
}

/// The bit traps where it is set.
const fn set(control: Control, bit: u32) -> Bits {
    Bits { control, mask: 1 << bit, value: 1 << bit }
}

/// Where it is clear.
const fn clear(control: Control, bit: u32) -> Bits {
    zero(control, 1 << bit)
}

/// All of the field is zero.
const fn zero(control: Control, mask: u64) -> Bits {
    Bits { control, mask, value: 0 }
}

/// A field of an ID register that must be at least this for the trap to exist. Without it there is nothing to trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    register: SystemRegister,
    shift: u32,
    least: u64,
}

impl Need {
    /// Whether the processor whose ID registers `id` reads has it.
    pub fn is_met(self, id: &dyn Fn(SystemRegister) -> u64) -> bool {
        id(self.register) >> self.shift & 0xf >= self.least
    }
}

const fn need(crm: u8, op2: u8, shift: u32) -> Need {
    Need { register: SystemRegister::new(3, 0, 0, crm, op2), shift, least: 1 }
}

/// Error records, and DISR_EL1.
pub const RAS: Need = need(4, 0, 28);
/// Activity monitors.
pub const AMU: Need = need(4, 0, 44);
/// Partitioning.
pub const MPAM: Need = need(4, 0, 40);
const MTE: Need = need(4, 1, 8);
const PMU: Need = need(5, 0, 8);
const SPE: Need = need(5, 0, 32);
const TRACE: Need = need(5, 0, 4);
const TRACE_FILTER: Need = need(5, 0, 40);
const TRACE_BUFFER: Need = need(5, 0, 44);
const LOR: Need = need(7, 1, 16);
/// Fine-grained traps.
pub const FGT: Need = need(7, 0, 56);
/// More of them.
pub const FGT2: Need = Need { least: 2, ..FGT };
/// HCRX_EL2.
pub const HCX: Need = need(7, 1, 40);

macro_rules! traps {
    ($($(#[$doc:meta])* $name:ident: $need:expr, [$($bits:expr),+];)*) => {
        /// What has an access come to EL2.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Trap {
            $($(#[$doc])* $name,)*
        }

        /// All of them.
        const TRAPS: &[Trap] = &[$(Trap::$name,)*];

        impl Trap {
            const fn bits(self) -> &'static [Bits] {
                match self {
                    $(Trap::$name => const { &[$($bits),+] },)*
                }
            }

            const fn need(self) -> Option<Need> {
                match self {
                    $(Trap::$name => $need,)*
                }
            }
        }
    };
}

use Control::{
    Cnthctl, CnthctlE2h, Cptr, CptrE2h, Hcr, Hcrx, Hdfgtr, Hfgtr, IccSre, IchHcr, Mdcr, Mpam2, MpamHcr,
};

traps! {
    /// Software-generated interrupts: HCR_EL2.FMO and IMO.
    Sgi: None, [set(Hcr, 3), set(Hcr, 4)];
    /// ID registers of group 1, the implementer's.
    Tid1: None, [set(Hcr, 16)];
    /// ID registers of group 3, which kernels decide by.
    Tid3: None, [set(Hcr, 18)];
    /// Implementation-defined registers.
    Tidcp: None, [set(Hcr, 20)];
    /// ACTLR_EL1.
    Tacr: None, [set(Hcr, 21)];
    /// Set/way maintenance.
    Tsw: None, [set(Hcr, 22)];
    /// LORegions.
    Tlor: Some(LOR), [set(Hcr, 35)];
    /// Error records.
    Terr: Some(RAS), [set(Hcr, 36)];
    /// Keys of pointer authentication.
    Apk: None, [clear(Hcr, 40)];
    /// SCXTNUM_EL0 and SCXTNUM_EL1.
    EnScxt: None, [clear(Hcr, 53)];
    /// Allocation tags.
    Ata: None, [clear(Hcr, 56)];
    /// GMID_EL1.
    Tid5: Some(MTE), [set(Hcr, 58)];
    /// Scalable vectors: TZ; ZEN.
    Sve: None, [set(Cptr, 8), zero(CptrE2h, 0b11 << 16)];
    /// Scalable matrices: TSM; SMEN.
    Sme: None, [set(Cptr, 12), zero(CptrE2h, 0b11 << 24)];
    /// Trace registers: TTA.
    Tta: Some(TRACE), [set(Cptr, 20), set(CptrE2h, 28)];
    /// Activity monitors.
    Tam: Some(AMU), [set(Cptr, 30), set(CptrE2h, 30)];
    /// Performance counters.
    Tpm: Some(PMU), [set(Mdcr, 6), set(Mdcr, 5)];
    /// Breakpoints, watchpoints and the debugger's channel.
    Tda: None, [set(Mdcr, 9)];
    /// OS lock and power-down.
    Tdosa: None, [set(Mdcr, 10)];
    /// Where debug registers are in memory.
    Tdra: None, [set(Mdcr, 11)];
    /// The buffer of statistical profiling is not EL1's.
    E2pb: Some(SPE), [zero(Mdcr, 0b11 << 12)];
    /// Statistical profiling.
    Tpms: Some(SPE), [set(Mdcr, 14)];
    /// TRFCR_EL1.
    Ttrf: Some(TRACE_FILTER), [set(Mdcr, 19)];
    /// The trace buffer is not EL1's.
    E2tb: Some(TRACE_BUFFER), [zero(Mdcr, 0b11 << 24)];
    /// The physical timer: EL1PCEN; EL1PTEN.
    PhysicalTimer: None, [clear(Cnthctl, 1), clear(CnthctlE2h, 11)];
    /// TCR2_EL1.
    Tcr2En: Some(HCX), [clear(Hcrx, 14)];
    /// SCTLR2_EL1.
    Sctlr2En: Some(HCX), [clear(Hcrx, 15)];
    /// FPMR.
    EnFpm: Some(HCX), [clear(Hcrx, 23)];
    /// ACCDATA_EL1.
    NAccdata: Some(FGT), [clear(Hfgtr, 50)];
    /// Guarded control stacks.
    NGcs: Some(FGT), [clear(Hfgtr, 52), clear(Hfgtr, 53)];
    /// SMPRI_EL1.
    NSmpri: Some(FGT), [clear(Hfgtr, 54)];
    /// TPIDR2_EL0.
    NTpidr2: Some(FGT), [clear(Hfgtr, 55)];
    /// RCWMASK_EL1 and RCWSMASK_EL1.
    NRcwmask: Some(FGT), [clear(Hfgtr, 56)];
    /// PIR_EL1, PIRE0_EL1, POR_EL0, POR_EL1 and S2POR_EL1.
    NPermissions: Some(FGT), [zero(Hfgtr, 0b11111 << 57)];
    /// MAIR2_EL1 and AMAIR2_EL1.
    NMair2: Some(FGT), [zero(Hfgtr, 0b11 << 62)];
    /// Branch records.
    NBrb: Some(FGT), [zero(Hdfgtr, 0b111 << 59)];
    /// MPAM0_EL1 and MPAM1_EL1.
    TrapMpam: Some(MPAM), [set(Mpam2, 48), set(Mpam2, 49)];
    /// MPAMIDR_EL1, where MPAMHCR_EL2 exists.
    TrapMpamIdr: Some(MPAM), [set(MpamHcr, 31)];
    /// ICC_SRE_EL1: Enable is clear.
    SreEnable: None, [clear(IccSre, 3)];
    /// ICC_DIR_EL1, at entries that leave an active interrupt without a list register.
    Tdir: None, [set(IchHcr, TDIR)];
}

/// What is in a register besides traps.
const fn base(control: Control) -> u64 {
    match control {
        Control::Hcr => hcr::GUEST,
        // RES1 without E2H.
        Control::Cptr => 0x22ff,
        // Floating point is not trapped.
        Control::CptrE2h => 0b11 << 20,
        // The physical counter is open: EL1PCTEN.
        Control::Cnthctl => 1 << 0,
        Control::CnthctlE2h => 1 << 10,
        // System registers, no bypass.
        Control::IccSre => 0b111,
        // Nothing of what newer processors have is switched on, no access is trapped that every processor has; all of
        // MPAM is the default partition.
        Control::Hcrx
        | Control::Mdcr
        | Control::Hfgtr
        | Control::Hdfgtr
        | Control::Mpam2
        | Control::MpamHcr
        | Control::IchHcr => 0,
    }
}

/// What to write to a control register of a processor whose ID registers `id` reads.
pub fn value(control: Control, id: &dyn Fn(SystemRegister) -> u64) -> u64 {
    TRAPS
        .iter()
        .filter(|trap| trap.need().is_none_or(|need| need.is_met(id)))
        .flat_map(|trap| trap.bits())
        .filter(|bits| bits.control == control)
        .fold(base(control), |value, bits| value & !bits.mask | bits.value)
}

/// CPTR_EL2.
pub fn cptr(vhe: bool, id: &dyn Fn(SystemRegister) -> u64) -> u64 {
    value(if vhe { Control::CptrE2h } else { Control::Cptr }, id)
}

/// CNTHCTL_EL2.
pub fn cnthctl(vhe: bool, id: &dyn Fn(SystemRegister) -> u64) -> u64 {
    value(if vhe { Control::CnthctlE2h } else { Control::Cnthctl }, id)
}

/// HCR_EL2 bits for guests, beside traps of registers and what the hypervisor itself needs.
mod hcr {
    /// Stage 2.
    const VM: u64 = 1 << 0;
    /// Set/way invalidation by a guest cleans too.
    const SWIO: u64 = 1 << 1;
    /// Walks of stage 1 through what stage 2 has as device memory fault, and come here.
    const PTW: u64 = 1 << 2;
    /// TLB and instruction-cache maintenance of a guest reaches all processors it may have been on.
    const FB: u64 = 1 << 9;
    /// Barriers of a guest are inner shareable at least.
    const BSU_INNER: u64 = 1 << 10;
    /// WFI.
    const TWI: u64 = 1 << 13;
    /// SMC.
    const TSC: u64 = 1 << 19;

    /// All of them.
    pub const GUEST: u64 = VM | SWIO | PTW | FB | BSU_INNER | TWI | TSC;
}

/// ICH_HCR_EL2.TDIR.
pub const TDIR: u32 = 14;

/// HPMN of MDCR_EL2, the counters that EL1 could have: stays as it is, because zero is not allowed everywhere.
pub const MDCR_HPMN: u64 = 0x1f;

/// VTCR_EL2 for guest-physical addresses of [`IPA_BITS`] bits with pages of 4 KiB: `physical` is PARange of
/// ID_AA64MMFR0_EL1, `wide_vmids` whether VMIDs have 16 bits.
pub const fn vtcr(physical: u8, wide_vmids: bool) -> u64 {
    const T0SZ: u64 = 64 - IPA_BITS as u64;
    /// The walk starts at level 1, with one table: 39 bits.
    const SL0_LEVEL_1: u64 = 1 << 6;
    const INNER_WRITE_BACK: u64 = 1 << 8;
    const OUTER_WRITE_BACK: u64 = 1 << 10;
    const INNER_SHAREABLE: u64 = 0b11 << 12;
    const PS_SHIFT: u32 = 16;
    const VS: u64 = 1 << 19;
    const RES1: u64 = 1 << 31;
    /// 48 bits: larger ones need larger pages.
    const LARGEST: u8 = 5;
    let physical = if physical > LARGEST { LARGEST } else { physical };
    let wide = if wide_vmids { VS } else { 0 };
    RES1 | wide
        | (physical as u64) << PS_SHIFT
        | INNER_SHAREABLE
        | OUTER_WRITE_BACK
        | INNER_WRITE_BACK
        | SL0_LEVEL_1
        | T0SZ
}

/// VTTBR_EL2.
pub const fn vttbr(root: u64, vmid: u16) -> u64 {
    const VMID_SHIFT: u32 = 48;
    (vmid as u64) << VMID_SHIFT | root
}

const _: () = assert!(IPA_BITS == 39, "one table of level 1 is the root");

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has all, and one that has nothing.
    fn all(_: SystemRegister) -> u64 {
        0x1111_1111_1111_1111
    }

    fn nothing(_: SystemRegister) -> u64 {
        0
    }

    #[test]
    fn control_registers_are_as_the_manual_has_them() {
        assert_eq!(vtcr(2, false), 0x8002_3559);
        assert_eq!(vtcr(6, true), 0x800d_3559, "no more than 48 bits");
        assert_eq!(vttbr(0x4000_1000, 3), 0x0003_0000_4000_1000);
        assert_eq!(value(Control::Hcr, &all) & (1 << 27 | 1 << 34), 0, "TGE and E2H are not the guest's");
        assert_eq!(value(Control::Hcr, &nothing), 0x007d_261f);
        assert_eq!(value(Control::Hcr, &all), 1 << 58 | 0b11 << 35 | 0x007d_261f);
        assert_eq!((cnthctl(false, &all), cnthctl(true, &all)), (1, 1 << 10));
        assert_eq!(value(Control::IccSre, &all), 7);
    }

    #[test]
    fn monitors_trace_and_profiling_are_trapped_where_they_are() {
        let (plain, vhe) = (cptr(false, &all), cptr(true, &all));
        assert_eq!((plain >> 30 & 1, plain >> 20 & 1), (1, 1), "TAM and TTA");
        assert_eq!((vhe >> 30 & 1, vhe >> 28 & 1), (1, 1), "the same with E2H");
        assert_eq!((cptr(false, &nothing), cptr(true, &nothing)), (0x33ff, 0b11 << 20), "RES0 stays 0");
        let mdcr = value(Control::Mdcr, &all);
        assert_eq!(mdcr, 1 << 19 | 1 << 14 | 0b111 << 9 | 0b11 << 5);
        assert_eq!(value(Control::Mdcr, &nothing), 0b111 << 9);
        assert_eq!(value(Control::Mpam2, &all), 0b11 << 48);
    }

    #[test]
    fn what_is_newer_stays_off() {
        for control in [Control::Hcrx, Control::Hfgtr, Control::Hdfgtr] {
            assert_eq!((value(control, &all), value(control, &nothing)), (0, 0));
        }
    }

    #[test]
    fn no_trap_undoes_another() {
        for (i, trap) in TRAPS.iter().enumerate() {
            for other in &TRAPS[i + 1..] {
                for bits in trap.bits() {
                    let apart = |b: &Bits| b.control != bits.control || b.mask & bits.mask == 0;
                    assert!(other.bits().iter().all(apart), "{trap:?} and {other:?}");
                }
            }
            for bits in trap.bits() {
                assert_eq!(base(bits.control) & bits.mask & !bits.value, 0, "{trap:?}");
            }
        }
    }
}
