// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest may write to CR0, CR4 and EFER.
//!
//! **Principle.** A bit belongs to a feature, and the guest may set it where its CPUID shows that feature; any other is
//! reserved. So what is not in the allow-list of [`super::cpuid`] cannot be turned on either, and with it none of
//! the registers that nobody switches between guests (PKRU, shadow stacks, user interrupts).
//! **Invariant.** What passes here is accepted by the processor, in the state that was asked about.
//!
//! Source: AMD APM volume 2, 3.1.1 (CR0), 3.1.3 (CR4), 3.1.7 (EFER), 5.5.1 (PCID); APM volume 3, appendix E (CPUID);
//! Intel SDM volume 2, "MOV—Move to/from Control Registers", volume 3, 5.4.1 (what loads PDPTEs).

use bitflags::bitflags;
use x86_64::registers::control::Cr0Flags;

use super::GeneralProtection;
use super::cpuid::{CpuidPolicy, CpuidState};

/// CR3 bits that hold the PCID.
const CR3_PCID: u64 = 0xfff;

bitflags! {
    /// CR4, as far as guests may have it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        /// Virtual 8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC is privileged.
        const TSD = 1 << 2;
        /// I/O breakpoints.
        const DE = 1 << 3;
        /// Large pages of legacy tables.
        const PSE = 1 << 4;
        /// 64-bit table entries.
        const PAE = 1 << 5;
        /// Machine checks are exceptions.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC in user mode.
        const PCE = 1 << 8;
        /// FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// SSE exceptions are #XF.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT and its like are privileged.
        const UMIP = 1 << 11;
        /// RDFSBASE and its like.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and XCR0.
        const OSXSAVE = 1 << 18;
        /// No execution of user pages by the supervisor.
        const SMEP = 1 << 20;
        /// No access to user pages by the supervisor.
        const SMAP = 1 << 21;
    }
}

bitflags! {
    /// EFER, as far as guests may have it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        /// SYSCALL.
        const SCE = 1 << 0;
        /// Long mode enabled.
        const LME = 1 << 8;
        /// Long mode active; nobody changes it by writing.
        const LMA = 1 << 10;
        /// No-execute pages.
        const NXE = 1 << 11;
        /// Fast FXSAVE.
        const FFXSR = 1 << 14;
    }
}

/// A feature bit of CPUID: leaf, register, bit.
type Feature = (u32, Register, u32);

#[derive(Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

const BASIC: u32 = 1;
const STRUCTURED: u32 = 7;
const EXTENDED: u32 = 0x8000_0001;
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// CR4 bits and what they belong to.
const CR4_FEATURES: [(Cr4, Feature); 14] = [
    (Cr4::VME.union(Cr4::PVI), (BASIC, Register::Edx, 1)),
    (Cr4::DE, (BASIC, Register::Edx, 2)),
    (Cr4::PSE, (BASIC, Register::Edx, 3)),
    (Cr4::TSD, (BASIC, Register::Edx, 4)),
    (Cr4::PAE, (BASIC, Register::Edx, 6)),
    (Cr4::PGE, (BASIC, Register::Edx, 13)),
    (Cr4::OSFXSR, (BASIC, Register::Edx, 24)),
    (Cr4::OSXMMEXCPT, (BASIC, Register::Edx, 25)),
    (Cr4::PCIDE, (BASIC, Register::Ecx, 17)),
    (Cr4::OSXSAVE, (BASIC, Register::Ecx, 26)),
    (Cr4::FSGSBASE, (STRUCTURED, Register::Ebx, 0)),
    (Cr4::SMEP, (STRUCTURED, Register::Ebx, 7)),
    (Cr4::SMAP, (STRUCTURED, Register::Ebx, 20)),
    (Cr4::UMIP, (STRUCTURED, Register::Ecx, 2)),
];
/// Those that every processor has. Machine checks are the hypervisor's, and RDPMC has nothing to read.
const CR4_ALWAYS: Cr4 = Cr4::MCE.union(Cr4::PCE);

/// EFER bits and what they belong to.
const EFER_FEATURES: [(Efer, Feature); 4] = [
    (Efer::SCE, (EXTENDED, Register::Edx, 11)),
    (Efer::NXE, (EXTENDED, Register::Edx, 20)),
    (Efer::FFXSR, (EXTENDED, Register::Edx, 25)),
    (Efer::LME, (EXTENDED, Register::Edx, 29)),
];

/// The control registers that the rules look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// EFER as the guest sees it.
    pub efer: u64,
}

impl ControlState {
    fn cr0_has(&self, bits: Cr0Flags) -> bool {
        self.cr0 & bits.bits() != 0
    }

    fn cr4_has(&self, bits: Cr4) -> bool {
        self.cr4 & bits.bits() != 0
    }

    fn efer_has(&self, bits: Efer) -> bool {
        self.efer & bits.bits() != 0
    }

    /// Whether page tables have three levels.
    pub fn pages_by_pae(&self) -> bool {
        self.cr0_has(Cr0Flags::PAGING) && self.cr4_has(Cr4::PAE) && !self.efer_has(Efer::LMA)
    }
}

/// What one vCPU may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlPolicy {
    cr4: Cr4,
    efer: Efer,
    physical_bits: u8,
}

impl ControlPolicy {
    /// What goes with the features that the guest is shown.
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        let state = CpuidState { osxsave: false, xcr0: 0 };
        let has = |&(leaf, register, bit): &Feature| {
            let answer = cpuid.query(leaf, 0, &state);
            let register = match register {
                Register::Ebx => answer.ebx,
                Register::Ecx => answer.ecx,
                Register::Edx => answer.edx,
            };
            register & 1 << bit != 0
        };
        let cr4 = CR4_FEATURES.iter().filter(|(_, feature)| has(feature));
        let efer = EFER_FEATURES.iter().filter(|(_, feature)| has(feature));
        Self {
            cr4: cr4.fold(CR4_ALWAYS, |all, (bits, _)| all | *bits),
            efer: efer.fold(Efer::empty(), |all, (bits, _)| all | *bits),
            physical_bits: cpuid.query(ADDRESS_SIZES, 0, &state).eax as u8,
        }
    }

    /// Bits of CR4 that the guest may have as it likes.
    pub fn cr4_allowed(&self) -> Cr4 {
        self.cr4
    }

    /// Bits of page-table entries that lie above a physical address.
    pub fn above_physical(&self) -> u64 {
        u64::MAX.checked_shl(self.physical_bits.into()).unwrap_or(0)
    }

    /// A write of CR0: the state that follows from it, EFER.LMA too. `cs_long` is bit L of CS, whatever the mode is.
    ///
    /// # Errors
    /// When reserved bits are set, or a change is one that the mode does not allow.
    pub fn cr0(
        &self,
        value: u64,
        now: &ControlState,
        cs_long: bool,
    ) -> Result<ControlState, GeneralProtection> {
        if value > u64::from(u32::MAX) {
            return Err(GeneralProtection);
        }
        let cr0 = Cr0Flags::from_bits_truncate(value) | Cr0Flags::EXTENSION_TYPE;
        let new = ControlState { cr0: cr0.bits(), ..*now };
        let turns_on = new.cr0_has(Cr0Flags::PAGING) && !now.cr0_has(Cr0Flags::PAGING);
        let turns_off = !new.cr0_has(Cr0Flags::PAGING) && now.cr0_has(Cr0Flags::PAGING);
        let contradiction = new.cr0_has(Cr0Flags::PAGING) && !new.cr0_has(Cr0Flags::PROTECTED_MODE_ENABLE)
            || new.cr0_has(Cr0Flags::NOT_WRITE_THROUGH) && !new.cr0_has(Cr0Flags::CACHE_DISABLE);
        let long = now.efer_has(Efer::LME);
        if contradiction
            || turns_on && long && (!now.cr4_has(Cr4::PAE) || cs_long)
            || turns_off && (now.cr4_has(Cr4::PCIDE) || now.efer_has(Efer::LMA) && cs_long)
        {
            return Err(GeneralProtection);
        }
        let active = if long && new.cr0_has(Cr0Flags::PAGING) { Efer::LMA.bits() } else { 0 };
        Ok(ControlState { efer: now.efer & !Efer::LMA.bits() | active, ..new })
    }

    /// A write of CR4.
    ///
    /// # Errors
    /// When reserved bits are set, or a change is one that the mode does not allow.
    pub fn cr4(&self, value: u64, now: &ControlState) -> Result<Cr4, GeneralProtection> {
        let cr4 = Cr4::from_bits(value).filter(|bits| self.cr4.contains(*bits)).ok_or(GeneralProtection)?;
        let long = now.efer_has(Efer::LMA);
        let turns_pcid_on = cr4.contains(Cr4::PCIDE) && !now.cr4_has(Cr4::PCIDE);
        if long && !cr4.contains(Cr4::PAE) || turns_pcid_on && !(long && now.cr3 & CR3_PCID == 0) {
            return Err(GeneralProtection);
        }
        Ok(cr4)
    }

    /// A write of EFER.
    ///
    /// # Errors
    /// When reserved bits are set, LMA changes, or LME does while the guest pages.
    pub fn efer(&self, value: u64, now: &ControlState) -> Result<Efer, GeneralProtection> {
        let efer = Efer::from_bits(value)
            .filter(|bits| (self.efer | Efer::LMA).contains(*bits))
            .ok_or(GeneralProtection)?;
        let changed = value ^ now.efer;
        if changed & Efer::LMA.bits() != 0 || now.cr0_has(Cr0Flags::PAGING) && changed & Efer::LME.bits() != 0
        {
            return Err(GeneralProtection);
        }
        Ok(efer)
    }
}

/// Whether translations that the processor holds may be wrong after this change (APM 2, 5.5.2).
pub fn changes_translations(old: &ControlState, new: &ControlState) -> bool {
    const PAGING: Cr4 =
        Cr4::PSE.union(Cr4::PAE).union(Cr4::PGE).union(Cr4::PCIDE).union(Cr4::SMEP).union(Cr4::SMAP);
    (old.cr4 ^ new.cr4) & PAGING.bits() != 0
        || (old.cr0 ^ new.cr0) & Cr0Flags::PAGING.bits() != 0
        // Whether no-execute bits count is cached with translations.
        || (old.efer ^ new.efer) & Efer::NXE.bits() != 0
}

/// Whether a processor that makes this change reads the top level of three-level page tables anew.
pub fn reloads_pdptes(old: &ControlState, new: &ControlState) -> bool {
    const CR0: Cr0Flags = Cr0Flags::CACHE_DISABLE.union(Cr0Flags::NOT_WRITE_THROUGH).union(Cr0Flags::PAGING);
    const CR4: Cr4 = Cr4::PAE.union(Cr4::PGE).union(Cr4::PSE).union(Cr4::SMEP);
    new.pages_by_pae() && ((old.cr0 ^ new.cr0) & CR0.bits() != 0 || (old.cr4 ^ new.cr4) & CR4.bits() != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::cpuid::{CpuidConfig, CpuidResult};
    use proptest::prelude::*;

    /// That of a guest on a processor whose every feature bit is `set`.
    pub fn policy(set: bool) -> ControlPolicy {
        let all = if set { u32::MAX } else { 0 };
        let config = CpuidConfig {
            apic_id: 0,
            physical_bits: 48,
            invariant_tsc: true,
            tsc_hz: 2_000_000_000,
            xcr0: u64::MAX,
            tsc_aux: true,
            arch_capabilities: true,
        };
        let host = |_, _| CpuidResult { eax: u32::MAX, ebx: all, ecx: all, edx: all };
        ControlPolicy::new(&CpuidPolicy::new(&config, &host))
    }

    const CR0_PG: u64 = Cr0Flags::PAGING.bits();
    const LONG: ControlState = ControlState { cr0: CR0_PG | 1, cr3: 0x1000, cr4: 0x20, efer: 0xd00 };

    #[test]
    fn what_nobody_switches_cannot_be_turned_on_not_even_on_a_processor_with_everything() {
        let policy = policy(true);
        for (bit, name) in [
            (12, "LA57"),
            (13, "VMXE"),
            (14, "SMXE"),
            (15, "reserved"),
            (19, "KL"),
            (22, "PKE"),
            (23, "CET"),
            (24, "PKS"),
            (25, "UINTR"),
            (28, "LAM_SUP"),
            (32, "FRED"),
            (63, "reserved"),
        ] {
            assert_eq!(policy.cr4(0x20 | 1 << bit, &LONG), Err(GeneralProtection), "{name}");
        }
        for (bit, name) in [
            (1, "reserved"),
            (9, "reserved"),
            (12, "SVME"),
            (13, "LMSLE"),
            (15, "TCE"),
            (17, "MCOMMIT"),
            (18, "INTWB"),
            (20, "UAIE"),
            (21, "AIBRSE"),
            (63, "reserved"),
        ] {
            assert_eq!(policy.efer(0xd00 | 1 << bit, &LONG), Err(GeneralProtection), "{name}");
        }
    }

    #[test]
    fn what_is_offered_can_be_turned_on_and_nothing_else() {
        let all = policy(true);
        assert_eq!(all.cr4(0x37_0fff, &LONG).map(|cr4| cr4.bits()), Ok(0x37_0fff));
        assert!(all.efer(0x4d01, &LONG).is_ok());
        let none = policy(false);
        let real = ControlState::default();
        assert!(none.cr4(0x140, &real).is_ok(), "MCE and PCE");
        for bit in (0..64).filter(|bit| !matches!(bit, 6 | 8)) {
            assert_eq!(none.cr4(1 << bit, &real), Err(GeneralProtection), "CR4 bit {bit}");
        }
        for bit in 0..64 {
            assert_eq!(none.efer(1 << bit, &real), Err(GeneralProtection), "EFER bit {bit}");
        }
    }

    #[test]
    fn the_mode_forbids_what_it_does_on_a_processor() {
        let policy = policy(true);
        assert!(policy.cr4(0, &LONG).is_err(), "PAE cleared in long mode");
        let legacy = ControlState { efer: 0, ..LONG };
        assert!(policy.cr4(0, &legacy).is_ok());
        assert!(policy.cr4(0x2_0020, &LONG).is_ok());
        assert!(policy.cr4(0x2_0020, &legacy).is_err(), "PCIDE outside of long mode");
        let tagged = ControlState { cr3: 0x1001, ..LONG };
        assert!(policy.cr4(0x2_0020, &tagged).is_err(), "PCIDE with a PCID in CR3");
        let on = ControlState { cr4: 0x2_0020, ..tagged };
        assert!(policy.cr4(0x2_0020, &on).is_ok(), "it is on already");
        assert!(policy.efer(0x900, &LONG).is_err(), "LMA as it is not");
        assert!(policy.efer(0xc00, &LONG).is_err(), "LME while it pages");
        assert!(policy.efer(0x901, &ControlState::default()).is_ok());
    }

    #[test]
    fn cr0_is_written_as_on_a_processor() {
        let policy = policy(true);
        let write = |value, now: &ControlState, cs_long| policy.cr0(value, now, cs_long);
        let real = ControlState { cr0: 0x10, ..ControlState::default() };
        assert_eq!(write(1, &real, false).unwrap().cr0, 0x11, "ET stays");
        assert_eq!(write(0x1ffa_ffc1, &real, false).unwrap().cr0, 0x11, "what does not exist is not kept");
        for (value, name) in
            [(1 << 32 | 1, "upper half"), (CR0_PG, "PG without PE"), (1 << 29, "NW without CD")]
        {
            assert_eq!(write(value, &real, false), Err(GeneralProtection), "{name}");
        }
        assert!(write(3 << 29, &real, false).is_ok(), "NW with CD");

        let on = CR0_PG | 0x11;
        let ready = ControlState { cr0: 0x11, cr4: 0x20, efer: 0x100, ..real };
        assert_eq!(write(on, &ready, false), Ok(ControlState { cr0: on, efer: 0x500, ..ready }), "long mode");
        assert!(write(on, &ControlState { cr4: 0, ..ready }, false).is_err(), "without PAE");
        assert!(write(on, &ready, true).is_err(), "with a 64-bit segment");
        let plain = ControlState { efer: 0, ..ready };
        assert_eq!(write(on, &plain, false).unwrap().efer, 0, "no long mode");

        let long = ControlState { cr0: on, efer: 0x500, ..ready };
        assert_eq!(write(0x11, &long, false), Ok(ready), "from compatibility mode");
        assert!(write(0x11, &long, true).is_err(), "from 64-bit code");
        let pcid = ControlState { cr4: 0x2_0020, ..long };
        assert!(write(0x11, &pcid, false).is_err(), "with PCIDs");
        assert_eq!(write(on | 8, &long, true).unwrap().efer, 0x500);
    }

    #[test]
    fn what_a_processor_reads_or_drops_by_itself_is_known() {
        let pae = ControlState { cr0: CR0_PG | 1, cr3: 0, cr4: 0x20, efer: 0 };
        let with = |cr0, cr4, efer| ControlState { cr0: pae.cr0 ^ cr0, cr4: pae.cr4 ^ cr4, efer, ..pae };
        for (name, new, drops, reads) in [
            ("nothing", pae, false, false),
            ("CD", with(1 << 30, 0, 0), false, true),
            ("TS", with(8, 0, 0), false, false),
            ("PG off", with(CR0_PG, 0, 0), true, false),
            ("PAE off", with(0, 0x20, 0), true, false),
            ("PGE", with(0, 0x80, 0), true, true),
            ("SMAP", with(0, 1 << 21, 0), true, false),
            ("OSFXSR", with(0, 0x200, 0), false, false),
            ("NXE", with(0, 0, 0x800), true, false),
        ] {
            assert_eq!(changes_translations(&pae, &new), drops, "{name}");
            assert_eq!(reloads_pdptes(&pae, &new), reads, "{name}");
        }
        assert!(!reloads_pdptes(&LONG, &ControlState { cr4: 0xa0, ..LONG }), "four levels");
        assert_eq!(policy(true).above_physical(), !((1 << 48) - 1));
    }

    proptest! {
        #[test]
        fn what_passes_is_within_the_mask(cr4: u64, efer: u64, now_cr4: u64, now_efer: u64, cr0: u64, cr3: u64) {
            let now = ControlState { cr0, cr3, cr4: now_cr4, efer: now_efer };
            let policy = policy(true);
            for value in [cr4, cr4 & 0x37_0fff] {
                if let Ok(written) = policy.cr4(value, &now) {
                    prop_assert_eq!(written.bits(), value);
                }
            }
            for value in [efer, efer & 0x4d01] {
                if let Ok(written) = policy.efer(value, &now) {
                    prop_assert_eq!(written.bits(), value);
                    prop_assert_eq!(value & 1 << 10, now_efer & 1 << 10);
                }
            }
        }
    }
}
