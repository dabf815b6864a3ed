// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is trapped while a guest runs, and how its stage 2 is walked: values of EL2's control registers.
//!
//! **Principle.** None of these bits means anything for the hypervisor itself, which never is at EL1 or EL0; so
//! they are set once per processor. What a guest does to its own translation, exceptions, timer and interrupt
//! acknowledgement costs no exit.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), HCR_EL2, MDCR_EL2, CNTHCTL_EL2, VTCR_EL2.

use crate::guest::layout::IPA_BITS;

/// HCR_EL2 bits for guests, beside those that the hypervisor itself needs.
pub mod hcr {
    /// Stage 2.
    const VM: u64 = 1 << 0;
    /// Set/way invalidation by a guest cleans too.
    const SWIO: u64 = 1 << 1;
    /// TLB and instruction-cache maintenance of a guest reaches all processors it may have been on.
    const FB: u64 = 1 << 9;
    /// Barriers of a guest are inner shareable at least.
    const BSU_INNER: u64 = 1 << 10;
    /// WFI.
    const TWI: u64 = 1 << 13;
    /// ID registers of groups 1 and 3.
    const TID1: u64 = 1 << 16;
    const TID3: u64 = 1 << 18;
    /// SMC.
    const TSC: u64 = 1 << 19;
    /// Implementation-defined registers.
    const TIDCP: u64 = 1 << 20;
    /// ACTLR_EL1.
    const TACR: u64 = 1 << 21;
    /// Set/way maintenance.
    const TSW: u64 = 1 << 22;
    /// LORegions.
    const TLOR: u64 = 1 << 35;
    /// Error records.
    const TERR: u64 = 1 << 36;

    /// All of them.
    pub const GUEST: u64 =
        VM | SWIO | FB | BSU_INNER | TWI | TID1 | TID3 | TSC | TIDCP | TACR | TSW | TLOR | TERR;
}

/// MDCR_EL2: debug registers, performance monitors and trace are trapped; profiling and trace buffers are not
/// EL1's. HPMN stays as it is.
pub mod mdcr {
    const TPMCR: u64 = 1 << 5;
    const TPM: u64 = 1 << 6;
    const TDA: u64 = 1 << 9;
    const TDOSA: u64 = 1 << 10;
    const TDRA: u64 = 1 << 11;
    const TTRF: u64 = 1 << 19;
    /// HPMN, the counters that EL1 could have.
    pub const HPMN: u64 = 0x1f;
    /// All of them.
    pub const GUEST: u64 = TPMCR | TPM | TDA | TDOSA | TDRA | TTRF;
}

/// CNTHCTL_EL2: the physical counter is open, EL1's physical timer is trapped.
pub const fn cnthctl(vhe: bool) -> u64 {
    /// EL1PCTEN without and with E2H.
    const COUNTER: u64 = 1 << 0;
    const COUNTER_E2H: u64 = 1 << 10;
    if vhe { COUNTER_E2H } else { COUNTER }
}

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

    #[test]
    fn control_registers_are_as_the_manual_has_them() {
        assert_eq!(vtcr(2, false), 0x8002_3559);
        assert_eq!(vtcr(6, true), 0x800d_3559, "no more than 48 bits");
        assert_eq!(vttbr(0x4000_1000, 3), 0x0003_0000_4000_1000);
        assert_eq!(
            hcr::GUEST & (1 << 27 | 1 << 34),
            0,
            "TGE and E2H are not the guest's"
        );
    }
}
