// SPDX-License-Identifier: MIT OR Apache-2.0
//! ID registers as a guest reads them: what the processor has, cut down to what is virtualised or harmless.
//!
//! **Principle.** An allow-list of fields. Each of the 4-bit fields of each register that is shown stands in a
//! table with a rule and its reason; whatever is not in a table (AArch32, new registers) reads as zero, which
//! means "not there". Hiding a field does not take the feature away where no trap does: it takes the promise
//! away, and what would need state to be switched is trapped as well (see [`super`]).
//!
//! Source: Arm DDI 0487 (Arm ARM), section D17.2 (D19.2 in later issues), each register's page.

use crate::system_register::SystemRegister;

/// What a field shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// What the processor has.
    Pass,
    /// That, but not more than this.
    AtMost(u8),
    /// Always this.
    Is(u8),
}

/// One field of 4 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its lowest bit.
    pub shift: u8,
    /// Name in the specification; "-" where it is reserved.
    pub name: &'static str,
    /// What it shows.
    pub rule: Rule,
    /// Why.
    pub why: &'static str,
}

/// An ID register that is not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRegister {
    /// Its encoding.
    pub register: SystemRegister,
    /// Name in the specification.
    pub name: &'static str,
    /// All of its fields, from the top.
    pub fields: [Field; 16],
}

const fn pass(shift: u8, name: &'static str, why: &'static str) -> Field {
    Field { shift, name, rule: Rule::Pass, why }
}

const fn at_most(shift: u8, name: &'static str, most: u8, why: &'static str) -> Field {
    Field { shift, name, rule: Rule::AtMost(most), why }
}

const fn is(shift: u8, name: &'static str, value: u8, why: &'static str) -> Field {
    Field { shift, name, rule: Rule::Is(value), why }
}

const fn hide(shift: u8, name: &'static str, why: &'static str) -> Field {
    is(shift, name, 0, why)
}

const RESERVED: &str = "reserved";
const INSTRUCTIONS: &str = "instructions without state of their own";
const EL2: &str = "matters to a hypervisor only, and the guest has no EL2";
const TABLES: &str = "a property of stage 1, which is the guest's own";
const PSTATE: &str = "a bit of PSTATE, which every exit saves";
const POINTS: &str = "switched with the vCPU";
const SPECULATION: &str = "a true property of the processor's speculation";
const POINTER_KEYS: &str = "pointer authentication keys are not switched";
const HCRX: &str = "off unless HCRX_EL2 allows it";

const fn id(crm: u8, op2: u8) -> SystemRegister {
    SystemRegister::new(3, 0, 0, crm, op2)
}

/// ID_AA64DFR0_EL1.
pub const DFR0: SystemRegister = id(5, 0);

/// ID_AA64ISAR0_EL1.
pub const ISAR0: SystemRegister = id(6, 0);

/// ID_AA64MMFR0_EL1.PARange of the guest: 40 bits, the least that covers its memory map.
const PA_RANGE_40: u8 = 2;

/// The registers that show something, in the order of their encodings.
pub const REGISTERS: [IdRegister; 9] = [
    IdRegister {
        register: id(4, 0),
        name: "ID_AA64PFR0_EL1",
        fields: [
            pass(60, "CSV3", SPECULATION),
            at_most(56, "CSV2", 1, "2 would add SCXTNUM_ELx, which are not switched"),
            hide(52, "RME", "there are no realms"),
            pass(48, "DIT", PSTATE),
            hide(44, "AMU", "activity monitors show other guests' work"),
            hide(40, "MPAM", "partitioning is the machine's"),
            hide(36, "SEL2", "there is no Secure state"),
            hide(32, "SVE", "its registers are not switched; trapped by CPTR_EL2.TZ"),
            hide(28, "RAS", "error records are the machine's; trapped by HCR_EL2.TERR"),
            is(24, "GIC", 1, "system registers of the GIC CPU interface"),
            pass(20, "AdvSIMD", "switched with the vCPU"),
            pass(16, "FP", "switched with the vCPU"),
            hide(12, "EL3", "there is no EL3"),
            hide(8, "EL2", "there is no EL2: no nested virtualisation"),
            is(4, "EL1", 1, "AArch64 only"),
            is(0, "EL0", 1, "AArch64 only: AArch32 state is not switched"),
        ],
    },
    IdRegister {
        register: id(4, 1),
        name: "ID_AA64PFR1_EL1",
        fields: [
            hide(60, "PFAR", "fault addresses of RAS"),
            hide(56, "DF2", "delegated errors of RAS"),
            hide(52, "MTEX", "tags are not switched"),
            hide(48, "THE", "needs registers that are not switched"),
            hide(44, "GCS", "needs registers that are not switched"),
            hide(40, "MTE_frac", "tags are not switched"),
            hide(36, "NMI", "the interrupt controller has no non-maskable interrupts"),
            at_most(32, "CSV2_frac", 1, "2 would add SCXTNUM_ELx, which are not switched"),
            hide(28, "RNDR_trap", "for EL3"),
            hide(24, "SME", "its registers are not switched; trapped by CPTR_EL2.TSM"),
            hide(20, "-", RESERVED),
            hide(16, "MPAM_frac", "partitioning is the machine's"),
            hide(12, "RAS_frac", "error records are the machine's"),
            hide(8, "MTE", "tags are not switched; off by HCR_EL2.ATA"),
            pass(4, "SSBS", PSTATE),
            pass(0, "BT", "branch targets: PSTATE.BTYPE and stage 1"),
        ],
    },
    IdRegister {
        register: DFR0,
        name: "ID_AA64DFR0_EL1",
        fields: [
            hide(60, "HPMN0", EL2),
            hide(56, "ExtTrcBuff", "trace is the machine's"),
            hide(52, "BRBE", "branch records are not switched"),
            hide(48, "MTPMU", "performance counters are not offered"),
            hide(44, "TraceBuffer", "trace is the machine's"),
            hide(40, "TraceFilt", "trace is the machine's"),
            is(36, "DoubleLock", 0xf, "not there (0 would say that it is)"),
            hide(32, "PMSVer", "statistical profiling is not offered"),
            pass(28, "CTX_CMPs", POINTS),
            hide(24, "SEBEP", "for profiling"),
            pass(20, "WRPs", POINTS),
            hide(16, "PMSS", "for profiling"),
            pass(12, "BRPs", POINTS),
            hide(8, "PMUVer", "performance counters are not offered; trapped by MDCR_EL2.TPM"),
            hide(4, "TraceVer", "trace is the machine's"),
            is(0, "DebugVer", 6, "Armv8, the least that there may be"),
        ],
    },
    IdRegister {
        register: ISAR0,
        name: "ID_AA64ISAR0_EL1",
        fields: [
            pass(60, "RNDR", INSTRUCTIONS),
            pass(56, "TLB", "invalidation of the guest's own VMID"),
            pass(52, "TS", INSTRUCTIONS),
            pass(48, "FHM", INSTRUCTIONS),
            pass(44, "DP", INSTRUCTIONS),
            pass(40, "SM4", INSTRUCTIONS),
            pass(36, "SM3", INSTRUCTIONS),
            pass(32, "SHA3", INSTRUCTIONS),
            pass(28, "RDM", INSTRUCTIONS),
            hide(24, "TME", "a transaction would not survive an exit"),
            pass(20, "Atomic", INSTRUCTIONS),
            pass(16, "CRC32", INSTRUCTIONS),
            pass(12, "SHA2", INSTRUCTIONS),
            pass(8, "SHA1", INSTRUCTIONS),
            pass(4, "AES", INSTRUCTIONS),
            hide(0, "-", RESERVED),
        ],
    },
    IdRegister {
        register: id(6, 1),
        name: "ID_AA64ISAR1_EL1",
        fields: [
            hide(60, "LS64", HCRX),
            hide(56, "XS", HCRX),
            pass(52, "I8MM", INSTRUCTIONS),
            pass(48, "DGH", INSTRUCTIONS),
            pass(44, "BF16", INSTRUCTIONS),
            at_most(40, "SPECRES", 1, INSTRUCTIONS),
            pass(36, "SB", INSTRUCTIONS),
            pass(32, "FRINTTS", INSTRUCTIONS),
            hide(28, "GPI", POINTER_KEYS),
            hide(24, "GPA", POINTER_KEYS),
            at_most(20, "LRCPC", 2, INSTRUCTIONS),
            pass(16, "FCMA", INSTRUCTIONS),
            pass(12, "JSCVT", INSTRUCTIONS),
            hide(8, "API", POINTER_KEYS),
            hide(4, "APA", POINTER_KEYS),
            pass(0, "DPB", INSTRUCTIONS),
        ],
    },
    IdRegister {
        register: id(6, 2),
        name: "ID_AA64ISAR2_EL1",
        fields: [
            hide(60, "ATS1A", EL2),
            hide(56, "LUT", "newer than what was looked at"),
            hide(52, "CSSC", "newer than what was looked at"),
            hide(48, "RPRFM", "newer than what was looked at"),
            hide(44, "-", RESERVED),
            hide(40, "PRFMSLC", "newer than what was looked at"),
            hide(36, "SYSINSTR_128", "newer than what was looked at"),
            hide(32, "SYSREG_128", "newer than what was looked at"),
            pass(28, "CLRBHB", SPECULATION),
            hide(24, "PAC_frac", POINTER_KEYS),
            pass(20, "BC", INSTRUCTIONS),
            hide(16, "MOPS", HCRX),
            hide(12, "APA3", POINTER_KEYS),
            hide(8, "GPA3", POINTER_KEYS),
            pass(4, "RPRES", "FPCR, switched with the vCPU"),
            hide(0, "WFxT", "a wait with a time-out is not known to the scheduler"),
        ],
    },
    IdRegister {
        register: id(7, 0),
        name: "ID_AA64MMFR0_EL1",
        fields: [
            hide(60, "ECV", EL2),
            hide(56, "FGT", EL2),
            hide(52, "-", RESERVED),
            hide(48, "-", RESERVED),
            hide(44, "ExS", "an exit without synchronisation was not looked at"),
            hide(40, "TGran4_2", EL2),
            hide(36, "TGran64_2", EL2),
            hide(32, "TGran16_2", EL2),
            pass(28, "TGran4", TABLES),
            pass(24, "TGran64", TABLES),
            pass(20, "TGran16", TABLES),
            hide(16, "BigEndEL0", "device accesses are decoded as little-endian"),
            hide(12, "SNSMem", "there is no Secure state"),
            hide(8, "BigEnd", "device accesses are decoded as little-endian"),
            pass(4, "ASIDBits", TABLES),
            at_most(0, "PARange", PA_RANGE_40, "the size of the guest's memory map, as power of two"),
        ],
    },
    IdRegister {
        register: id(7, 1),
        name: "ID_AA64MMFR1_EL1",
        fields: [
            pass(60, "ECBHB", SPECULATION),
            hide(56, "CMOW", HCRX),
            hide(52, "TIDCP1", "implementation-defined registers are not offered"),
            pass(48, "nTLBPA", SPECULATION),
            pass(44, "AFP", "FPCR, switched with the vCPU"),
            hide(40, "HCX", EL2),
            pass(36, "ETS", TABLES),
            hide(32, "TWED", EL2),
            hide(28, "XNX", EL2),
            hide(24, "SpecSEI", "error reports are the machine's"),
            pass(20, "PAN", PSTATE),
            hide(16, "LO", "its registers are not switched; trapped by HCR_EL2.TLOR"),
            pass(12, "HPDS", TABLES),
            hide(8, "VH", EL2),
            hide(4, "VMIDBits", EL2),
            at_most(0, "HAFDBS", 2, TABLES),
        ],
    },
    IdRegister {
        register: id(7, 2),
        name: "ID_AA64MMFR2_EL1",
        fields: [
            pass(60, "E0PD", TABLES),
            hide(56, "EVT", EL2),
            pass(52, "BBM", TABLES),
            pass(48, "TTL", TABLES),
            hide(44, "-", RESERVED),
            hide(40, "FWB", EL2),
            pass(36, "IDS", "ID registers that do not exist are reported in a way of their own"),
            pass(32, "AT", "unaligned single-copy atomicity: a property of loads and stores"),
            pass(28, "ST", TABLES),
            hide(24, "NV", EL2),
            pass(20, "CCIDX", "the format of CCSIDR_EL1, which is not trapped"),
            at_most(16, "VARange", 1, TABLES),
            hide(12, "IESB", "error synchronisation belongs to RAS"),
            pass(8, "LSM", "bits of SCTLR_EL1, which is switched"),
            pass(4, "UAO", PSTATE),
            pass(0, "CnP", TABLES),
        ],
    },
];

impl IdRegister {
    /// What a guest reads where the processor has `hardware`.
    pub fn show(&self, hardware: u64) -> u64 {
        self.fields.iter().fold(0, |shown, field| {
            let has = (hardware >> field.shift & 0xf) as u8;
            let value = match field.rule {
                Rule::Pass => has,
                Rule::AtMost(most) => has.min(most),
                Rule::Is(value) => value,
            };
            shown | u64::from(value) << field.shift
        })
    }
}

/// What a guest reads from a register of the ID space (Op0 3, Op1 0, CRn 0, CRm 1 to 7); `None` for others.
/// `hardware` reads one of [`REGISTERS`] as the processors that the VM runs on have it in common.
pub fn read(register: SystemRegister, hardware: &dyn Fn(SystemRegister) -> u64) -> Option<u64> {
    let (first, last) = (id(1, 0), id(7, 7));
    if !(first..=last).contains(&register) {
        return None;
    }
    let shown = REGISTERS.iter().find(|r| r.register == register);
    Some(shown.map_or(0, |r| r.show(hardware(register))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(name: &str, hardware: u64) -> u64 {
        let register = REGISTERS.iter().find(|r| r.name == name).unwrap();
        read(register.register, &|_| hardware).unwrap()
    }

    fn field(name: &str, field: &str, hardware: u64) -> u64 {
        let register = REGISTERS.iter().find(|r| r.name == name).unwrap();
        let shift = register.fields.iter().find(|f| f.name == field).unwrap().shift;
        shown(name, hardware) >> shift & 0xf
    }

    #[test]
    fn every_field_is_there_once_with_its_reason() {
        for register in &REGISTERS {
            for (field, shift) in register.fields.iter().zip((0..64u8).step_by(4).rev()) {
                assert_eq!(field.shift, shift, "{} {}", register.name, field.name);
                assert!(!field.why.is_empty() && !field.name.is_empty());
            }
        }
        assert!(REGISTERS.windows(2).all(|w| w[0].register < w[1].register));
    }

    #[test]
    fn what_is_not_virtualised_is_hidden_whatever_the_processor_has() {
        let all = u64::MAX;
        for (register, name) in [
            ("ID_AA64PFR0_EL1", "SVE"),
            ("ID_AA64PFR0_EL1", "RAS"),
            ("ID_AA64PFR0_EL1", "AMU"),
            ("ID_AA64PFR0_EL1", "MPAM"),
            ("ID_AA64PFR0_EL1", "EL2"),
            ("ID_AA64PFR1_EL1", "SME"),
            ("ID_AA64PFR1_EL1", "MTE"),
            ("ID_AA64DFR0_EL1", "PMUVer"),
            ("ID_AA64DFR0_EL1", "PMSVer"),
            ("ID_AA64DFR0_EL1", "TraceVer"),
            ("ID_AA64ISAR1_EL1", "API"),
            ("ID_AA64ISAR1_EL1", "APA"),
            ("ID_AA64ISAR1_EL1", "GPI"),
            ("ID_AA64ISAR1_EL1", "LS64"),
            ("ID_AA64ISAR2_EL1", "APA3"),
            ("ID_AA64MMFR1_EL1", "LO"),
            ("ID_AA64MMFR1_EL1", "VH"),
        ] {
            assert_eq!(field(register, name, all), 0, "{register}.{name}");
        }
        assert_eq!(field("ID_AA64PFR0_EL1", "EL0", 2), 1);
        assert_eq!(field("ID_AA64MMFR0_EL1", "PARange", 6), 2);
    }

    #[test]
    fn a_processor_without_floating_point_or_a_granule_shows_none() {
        // 0xf is "not there" for these.
        assert_eq!(field("ID_AA64PFR0_EL1", "FP", 0xff << 16), 0xf);
        assert_eq!(field("ID_AA64MMFR0_EL1", "TGran4", 0xf << 28), 0xf);
    }

    #[test]
    fn the_rest_of_the_space_reads_as_zero_and_what_is_outside_is_not_here() {
        let ones = |_| u64::MAX;
        // ID_PFR0_EL1, MVFR0_EL1, ID_AA64ZFR0_EL1, ID_AA64SMFR0_EL1, ID_AA64DFR1_EL1, ID_AA64MMFR3_EL1.
        for register in [id(1, 0), id(3, 0), id(4, 4), id(4, 5), id(5, 1), id(7, 3), id(7, 7)] {
            assert_eq!(read(register, &ones), Some(0));
        }
        for register in [id(0, 0), id(8, 0), SystemRegister::new(3, 1, 0, 4, 0)] {
            assert_eq!(read(register, &ones), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_shown_that_the_processor_has_not(index in 0..REGISTERS.len(), hardware: u64) {
            let register = &REGISTERS[index];
            let shown = register.show(hardware);
            for field in &register.fields {
                let (has, shows) = (hardware >> field.shift & 0xf, shown >> field.shift & 0xf);
                prop_assert!(shows <= has || matches!(field.rule, Rule::Is(_)), "{}", field.name);
            }
        }
    }
}
