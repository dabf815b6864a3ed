// SPDX-License-Identifier: MIT OR Apache-2.0
//! System registers and instructions other than ID registers that a guest's access to is trapped.
//!
//! **Invariant.** Each row names the [`Trap`] that brings the access here, and that is a bit of what is programmed: a
//! row without one does not build.
//!
//! Source: Arm DDI 0487 (Arm ARM), chapters D13 (debug) and D17 (D19 in later issues); Linux 6.1,
//! `arch/arm64/kernel/{debug-monitors,hw_breakpoint}.c`, for those it touches without asking an ID register.

use super::debug::Part;
use crate::el2::traps::Trap;
use crate::guest::gic::SgiGroup;
use crate::system_register::SystemRegister;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// Reads as this, ignores writes.
    Reads(u64),
    /// MDSCR_EL1: a register of the vCPU's own.
    DebugControl,
    /// Of the breakpoint or watchpoint whose number is CRm.
    Point(Part),
    /// A write generates an SGI.
    Sgi(SgiGroup),
    /// A write deactivates an interrupt.
    Deactivate,
    /// Undefined, as on a processor without it.
    Undefined,
}

use Behaviour::{Deactivate, DebugControl, Point, Reads, Sgi, Undefined};

/// Registers that behave alike: all whose encoding, under a mask, is this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The encoding.
    pub register: SystemRegister,
    /// The bits of the encoding that count.
    pub mask: u32,
    /// Name in the specification.
    pub name: &'static str,
    /// What an access does.
    pub behaviour: Behaviour,
    /// Why.
    pub why: &'static str,
    /// What brings the access here.
    pub trap: Trap,
}

const EXACT: u32 = 0xffff;
const CRM: u32 = 0xf << 3;
const OP2: u32 = 7;
const ANY_OP2: u32 = EXACT & !OP2;
const OP0_OP1: u32 = 0b11 << 14 | 0b111 << 11;
/// The upper bit of CRn.
const CRN_TOP: u32 = 1 << 10;

const fn one(op: [u8; 5], name: &'static str, behaviour: Behaviour, why: &'static str, trap: Trap) -> Entry {
    many(op, EXACT, name, behaviour, why, trap)
}

const fn many(
    op: [u8; 5],
    mask: u32,
    name: &'static str,
    behaviour: Behaviour,
    why: &'static str,
    trap: Trap,
) -> Entry {
    let [op0, op1, crn, crm, op2] = op;
    Entry { register: SystemRegister::new(op0, op1, crn, crm, op2), mask, name, behaviour, why, trap }
}

/// OSLSR_EL1: the OS lock is implemented and open (OSLM is 0b10).
const OS_LOCK_OPEN: u64 = 1 << 3;
/// ICC_SRE_EL1: system registers, and no bypass; fixed.
const SRE_FIXED: u64 = 7;

const ZERO: Behaviour = Reads(0);
const POINT: &str = "switched with the vCPU while one is on";
const EXTERNAL: &str = "for an external debugger, of which there is none";
const LOCK: &str = "Linux opens the lock at start; it is open";
const NO_COUNTERS: &str = "performance counters are not offered";
const NO_KEYS: &str = "pointer authentication is not offered";
const NO_RAS: &str = "error records are the machine's";
const NO_TAGS: &str = "memory tagging is not offered";
const NO_SVE: &str = "scalable vectors are not offered";
const NO_BRANCHES: &str = "branch records are not switched";
const NO_REGIONS: &str = "limited ordering regions are not offered";
const NO_PARTITIONS: &str = "partitioning is the machine's";
const NEWER: &str = "not offered, and not switched";
const NO_CONTEXT: &str = "CSV2 says that it is not there";
const NO_PHYSICAL_TIMER: &str = "the virtual timer is the guest's";
const IMPLEMENTATION: &str = "says nothing that an architecture defines";

/// All of them. The first that fits counts.
pub const ENTRIES: &[Entry] = &[
    // Interrupts.
    one([3, 0, 12, 11, 5], "ICC_SGI1R_EL1", Sgi(SgiGroup::Group1), "sends an SGI", Trap::Sgi),
    one([3, 0, 12, 11, 6], "ICC_ASGI1R_EL1", Sgi(SgiGroup::Group0), "sends an SGI", Trap::Sgi),
    one([3, 0, 12, 11, 7], "ICC_SGI0R_EL1", Sgi(SgiGroup::Group0), "sends an SGI", Trap::Sgi),
    one([3, 0, 12, 11, 1], "ICC_DIR_EL1", Deactivate, "ends one that has no list register", Trap::Tdir),
    one([3, 0, 12, 12, 5], "ICC_SRE_EL1", Reads(SRE_FIXED), "there is no other interface", Trap::SreEnable),
    // Debug.
    one([2, 0, 0, 2, 2], "MDSCR_EL1", DebugControl, "Linux steps programs with it", Trap::Tda),
    one([2, 0, 1, 0, 4], "OSLAR_EL1", ZERO, LOCK, Trap::Tdosa),
    one([2, 0, 1, 1, 4], "OSLSR_EL1", Reads(OS_LOCK_OPEN), LOCK, Trap::Tdosa),
    one([2, 0, 1, 3, 4], "OSDLR_EL1", ZERO, LOCK, Trap::Tdosa),
    one([2, 0, 0, 2, 0], "MDCCINT_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 0, 0, 2], "OSDTRRX_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 0, 3, 2], "OSDTRTX_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 0, 6, 2], "OSECCR_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 1, 0, 0], "MDRAR_EL1", ZERO, EXTERNAL, Trap::Tdra),
    one([2, 0, 1, 4, 4], "DBGPRCR_EL1", ZERO, EXTERNAL, Trap::Tdosa),
    one([2, 0, 7, 8, 6], "DBGCLAIMSET_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 7, 9, 6], "DBGCLAIMCLR_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 0, 7, 14, 6], "DBGAUTHSTATUS_EL1", ZERO, EXTERNAL, Trap::Tda),
    one([2, 3, 0, 1, 0], "MDCCSR_EL0", ZERO, EXTERNAL, Trap::Tda),
    one([2, 3, 0, 4, 0], "DBGDTR_EL0", ZERO, EXTERNAL, Trap::Tda),
    one([2, 3, 0, 5, 0], "DBGDTRRX_EL0 and DBGDTRTX_EL0", ZERO, EXTERNAL, Trap::Tda),
    many([2, 0, 0, 0, 4], EXACT & !CRM, "DBGBVR<n>_EL1", Point(Part::BreakpointValue), POINT, Trap::Tda),
    many([2, 0, 0, 0, 5], EXACT & !CRM, "DBGBCR<n>_EL1", Point(Part::BreakpointControl), POINT, Trap::Tda),
    many([2, 0, 0, 0, 6], EXACT & !CRM, "DBGWVR<n>_EL1", Point(Part::WatchpointValue), POINT, Trap::Tda),
    many([2, 0, 0, 0, 7], EXACT & !CRM, "DBGWCR<n>_EL1", Point(Part::WatchpointControl), POINT, Trap::Tda),
    many([2, 1, 0, 0, 0], OP0_OP1 | CRN_TOP, "TRC*", Undefined, EXTERNAL, Trap::Tta),
    many([2, 1, 8, 0, 0], OP0_OP1 | CRN_TOP, "BRB*_EL1", Undefined, NO_BRANCHES, Trap::NBrb),
    // What an implementation may put anything into.
    one([3, 0, 1, 0, 1], "ACTLR_EL1", ZERO, IMPLEMENTATION, Trap::Tacr),
    one([3, 0, 0, 0, 6], "REVIDR_EL1", ZERO, IMPLEMENTATION, Trap::Tid1),
    one([3, 1, 0, 0, 7], "AIDR_EL1", ZERO, IMPLEMENTATION, Trap::Tid1),
    // Caches by set and way: all memory is coherent, and stays with whom it belongs to.
    one([1, 0, 7, 6, 2], "DC ISW", ZERO, "nothing is lost by not doing it", Trap::Tsw),
    one([1, 0, 7, 10, 2], "DC CSW", ZERO, "nothing is lost by not doing it", Trap::Tsw),
    one([1, 0, 7, 14, 2], "DC CISW", ZERO, "nothing is lost by not doing it", Trap::Tsw),
    // Not offered: the ID registers say so.
    one([3, 0, 9, 14, 1], "PMINTENSET_EL1", Undefined, NO_COUNTERS, Trap::Tpm),
    one([3, 0, 9, 14, 2], "PMINTENCLR_EL1", Undefined, NO_COUNTERS, Trap::Tpm),
    one([3, 0, 9, 14, 6], "PMMIR_EL1", Undefined, NO_COUNTERS, Trap::Tpm),
    many([3, 3, 9, 12, 0], ANY_OP2, "PMCR_EL0 and others", Undefined, NO_COUNTERS, Trap::Tpm),
    many([3, 3, 9, 13, 0], ANY_OP2, "PMCCNTR_EL0 and others", Undefined, NO_COUNTERS, Trap::Tpm),
    many([3, 3, 9, 14, 0], ANY_OP2, "PMUSERENR_EL0 and others", Undefined, NO_COUNTERS, Trap::Tpm),
    many(
        [3, 3, 14, 8, 0],
        EXACT & !(7 << 3 | OP2),
        "PMEVCNTR<n>_EL0 and PMEVTYPER<n>_EL0",
        Undefined,
        NO_COUNTERS,
        Trap::Tpm,
    ),
    many([3, 0, 9, 9, 0], ANY_OP2, "PMS*_EL1", Undefined, "statistical profiling is not offered", Trap::Tpms),
    many(
        [3, 0, 9, 10, 0],
        ANY_OP2,
        "PMB*_EL1",
        Undefined,
        "statistical profiling is not offered",
        Trap::E2pb,
    ),
    many([3, 0, 9, 11, 0], ANY_OP2, "TRB*_EL1", Undefined, "trace is the machine's", Trap::E2tb),
    many(
        [3, 3, 13, 2, 0],
        ANY_OP2,
        "AMCR_EL0 and others",
        Undefined,
        "activity monitors are the machine's",
        Trap::Tam,
    ),
    many(
        [3, 3, 13, 4, 0],
        EXACT & !(3 << 3 | OP2),
        "AMEV*0<n>_EL0",
        Undefined,
        "activity monitors are the machine's",
        Trap::Tam,
    ),
    many(
        [3, 3, 13, 12, 0],
        EXACT & !(3 << 3 | OP2),
        "AMEV*1<n>_EL0",
        Undefined,
        "activity monitors are the machine's",
        Trap::Tam,
    ),
    many([3, 0, 2, 1, 0], ANY_OP2, "APIAKey*_EL1 and APIBKey*_EL1", Undefined, NO_KEYS, Trap::Apk),
    many([3, 0, 2, 2, 0], ANY_OP2, "APDAKey*_EL1 and APDBKey*_EL1", Undefined, NO_KEYS, Trap::Apk),
    many([3, 0, 2, 3, 0], ANY_OP2, "APGAKey*_EL1", Undefined, NO_KEYS, Trap::Apk),
    many([3, 0, 5, 3, 0], ANY_OP2, "ERRIDR_EL1 and ERRSELR_EL1", Undefined, NO_RAS, Trap::Terr),
    many([3, 0, 5, 4, 0], EXACT & !(1 << 3 | OP2), "ERX*_EL1", Undefined, NO_RAS, Trap::Terr),
    one([3, 0, 1, 0, 5], "RGSR_EL1", Undefined, NO_TAGS, Trap::Ata),
    one([3, 0, 1, 0, 6], "GCR_EL1", Undefined, NO_TAGS, Trap::Ata),
    many([3, 0, 5, 6, 0], ANY_OP2, "TFSR_EL1 and TFSRE0_EL1", Undefined, NO_TAGS, Trap::Ata),
    one([3, 1, 0, 0, 4], "GMID_EL1", Undefined, NO_TAGS, Trap::Tid5),
    one([3, 0, 1, 2, 0], "ZCR_EL1", Undefined, NO_SVE, Trap::Sve),
    one([3, 0, 1, 2, 1], "TRFCR_EL1", Undefined, EXTERNAL, Trap::Ttrf),
    one([3, 0, 1, 2, 4], "SMPRI_EL1", Undefined, NO_SVE, Trap::NSmpri),
    one([3, 0, 1, 2, 6], "SMCR_EL1", Undefined, NO_SVE, Trap::Sme),
    one([3, 1, 0, 0, 6], "SMIDR_EL1", Undefined, NO_SVE, Trap::Tid1),
    one([3, 3, 4, 2, 2], "SVCR", Undefined, NO_SVE, Trap::Sme),
    one([3, 3, 13, 0, 5], "TPIDR2_EL0", Undefined, NO_SVE, Trap::NTpidr2),
    one([3, 0, 13, 0, 7], "SCXTNUM_EL1", Undefined, NO_CONTEXT, Trap::EnScxt),
    one([3, 3, 13, 0, 7], "SCXTNUM_EL0", Undefined, NO_CONTEXT, Trap::EnScxt),
    many([3, 0, 10, 4, 0], EXACT & !0b11, "LOR*_EL1", Undefined, NO_REGIONS, Trap::Tlor),
    one([3, 0, 10, 4, 7], "LORID_EL1", Undefined, NO_REGIONS, Trap::Tlor),
    one([3, 0, 10, 4, 4], "MPAMIDR_EL1", Undefined, NO_PARTITIONS, Trap::TrapMpamIdr),
    many([3, 0, 10, 5, 0], ANY_OP2, "MPAM0_EL1 and MPAM1_EL1", Undefined, NO_PARTITIONS, Trap::TrapMpam),
    // Newer than what is switched.
    one([3, 0, 1, 0, 3], "SCTLR2_EL1", Undefined, NEWER, Trap::Sctlr2En),
    one([3, 0, 2, 0, 3], "TCR2_EL1", Undefined, NEWER, Trap::Tcr2En),
    many([3, 0, 2, 5, 0], ANY_OP2, "GCS*_EL1", Undefined, NEWER, Trap::NGcs),
    one([3, 3, 2, 5, 1], "GCSPR_EL0", Undefined, NEWER, Trap::NGcs),
    one([3, 3, 4, 4, 2], "FPMR", Undefined, NEWER, Trap::EnFpm),
    one([3, 0, 10, 2, 1], "MAIR2_EL1", Undefined, NEWER, Trap::NMair2),
    one([3, 0, 10, 3, 1], "AMAIR2_EL1", Undefined, NEWER, Trap::NMair2),
    one([3, 0, 10, 2, 2], "PIRE0_EL1", Undefined, NEWER, Trap::NPermissions),
    one([3, 0, 10, 2, 3], "PIR_EL1", Undefined, NEWER, Trap::NPermissions),
    one([3, 0, 10, 2, 4], "POR_EL1", Undefined, NEWER, Trap::NPermissions),
    one([3, 0, 10, 2, 5], "S2POR_EL1", Undefined, NEWER, Trap::NPermissions),
    one([3, 3, 10, 2, 4], "POR_EL0", Undefined, NEWER, Trap::NPermissions),
    one([3, 0, 13, 0, 3], "RCWSMASK_EL1", Undefined, NEWER, Trap::NRcwmask),
    one([3, 0, 13, 0, 5], "ACCDATA_EL1", Undefined, NEWER, Trap::NAccdata),
    one([3, 0, 13, 0, 6], "RCWMASK_EL1", Undefined, NEWER, Trap::NRcwmask),
    many([3, 3, 14, 2, 0], ANY_OP2, "CNTP_*_EL0", Undefined, NO_PHYSICAL_TIMER, Trap::PhysicalTimer),
];

/// How a register behaves; `None`: nobody knows it.
pub fn find(register: SystemRegister) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| register.bits() & entry.mask == entry.register.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_why_and_none_hides_another() {
        for (i, entry) in ENTRIES.iter().enumerate() {
            assert!(!entry.why.is_empty() && !entry.name.is_empty());
            assert_eq!(entry.register.bits() & !entry.mask, 0, "{}", entry.name);
            assert_eq!(find(entry.register), Some(entry), "{} is hidden", entry.name);
            for other in &ENTRIES[i + 1..] {
                let common = entry.mask & other.mask;
                let apart = (entry.register.bits() ^ other.register.bits()) & common != 0;
                assert!(apart, "{} and {} overlap", entry.name, other.name);
            }
        }
    }

    #[test]
    fn ranges_cover_what_they_name() {
        let name = |op: [u8; 5]| find(SystemRegister::new(op[0], op[1], op[2], op[3], op[4])).map(|e| e.name);
        assert_eq!(name([2, 0, 0, 15, 5]), Some("DBGBCR<n>_EL1"));
        assert_eq!(name([3, 3, 14, 15, 7]), Some("PMEVCNTR<n>_EL0 and PMEVTYPER<n>_EL0"));
        assert_eq!(name([3, 3, 9, 14, 3]), Some("PMUSERENR_EL0 and others"));
        assert_eq!(name([2, 1, 7, 3, 4]), Some("TRC*"));
        assert_eq!(name([2, 1, 9, 0, 1]), Some("BRB*_EL1"));
        assert_eq!(name([3, 3, 14, 3, 1]), None, "CNTV_CTL_EL0 is not trapped");
        assert_eq!(name([3, 0, 15, 2, 0]), None, "implementation-defined");
    }
}
