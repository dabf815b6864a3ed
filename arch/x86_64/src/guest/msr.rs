// SPDX-License-Identifier: MIT OR Apache-2.0
//! MSRs that do not live in the processor's guest state.
//!
//! **Principle.** Three kinds: those with a model behind them (APIC, timer, MTRR default, clock), those
//! that Linux reads without expecting a fault and that hold one harmless value here, and all others,
//! which give the guest a general-protection fault, are counted, and are logged once per number.
//!
//! Source: Intel SDM volume 4; AMD APM volume 2, appendix A; AMD BKDG/PPR for the family-specific ones.

use alloc::string::String;

use arrayvec::ArrayVec;
use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;

use super::GeneralProtection;
use super::lapic::{
    ApicEvent, LocalApic, MSR_APIC_BASE, MSR_TSC_DEADLINE, X2APIC_MSR_FIRST, X2APIC_MSR_LAST,
};
use super::pv_eoi::PvEoi;
use super::pvclock::GuestClock;

const IA32_TSC: u32 = 0x10;
const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const IA32_MCG_CAP: u32 = 0x179;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_DEBUGCTL: u32 = 0x1d9;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const KVM_EOI_EN: u32 = 0x4b56_4d04;
/// PERFEVTSEL0 to 3 and PERFCTR0 to 3 of the K7.
const AMD_K7_COUNTERS: core::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
const AMD_SYSCFG: u32 = 0xc001_0010;
const AMD_HWCR: u32 = 0xc001_0015;
const AMD_NB_CFG: u32 = 0xc001_001f;
const AMD_INT_PENDING: u32 = 0xc001_0055;
const AMD_MMIO_CONF_BASE: u32 = 0xc001_0058;
const AMD_TSEG_ADDR: u32 = 0xc001_0112;
const AMD_TSEG_MASK: u32 = 0xc001_0113;
const AMD_LS_CFG: u32 = 0xc001_1020;
const AMD_IC_CFG: u32 = 0xc001_1021;
const AMD_DC_CFG: u32 = 0xc001_1022;
const AMD_TW_CFG: u32 = 0xc001_1023;
const AMD_DE_CFG: u32 = 0xc001_1029;
const AMD_BU_CFG2: u32 = 0xc001_102a;
const AMD_EX_CFG: u32 = 0xc001_102c;

/// Feature control is locked, and nothing is enabled in it.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// Bits of IA32_ARCH_CAPABILITIES that say which faults a processor does not have, or has beside those that its model
/// tells, and that a guest needs nothing else for (Intel SDM 4, table 2-2): RDCL_NO, RSBA, SKIP_L1DFL_VMENTRY, SSB_NO,
/// MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, RRSBA, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const ARCH_CAPABILITIES_OFFERED: u64 =
    1 | 0b1_1111 << 2 | 1 << 8 | 0b111 << 13 | 0b11 << 19 | 1 << 24 | 0b11 << 26;
/// Fast strings on; branch trace store and PEBS not available.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// MTRRs enabled, default type write-back, no variable and no fixed ranges (MTRRCAP reads zero). So all
/// memory is write-back for the MTRRs, and the page tables decide.
const MTRR_DEF_TYPE_RESET: u64 = 1 << 11 | 6;
const MTRR_DEF_TYPE_WRITABLE: u64 = 0xcff;
/// The TSC counts at the P0 frequency; Linux reports a firmware bug where this is clear.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// LFENCE serialises (it does on every processor with SVM that Linux runs on).
const DE_CFG_LFENCE_SERIALISE: u64 = 1 << 1;

/// Numbers of unknown MSRs that are remembered as logged.
const LOGGED: usize = 32;

/// State and counters of these MSRs, one per vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    vm: String,
    mtrr_def_type: u64,
    system_time: u64,
    wall_clock: u64,
    unknown: u64,
    logged: ArrayVec<u32, LOGGED>,
    /// A clock structure that could not be written was logged.
    clock_logged: bool,
    /// IA32_ARCH_CAPABILITIES, where there is one.
    arch_capabilities: Option<u64>,
    /// How the guest may end interrupts.
    pub eoi: PvEoi,
}

impl Msrs {
    /// After reset. `vm` is the VM's name, for the log.
    pub fn new(vm: impl Into<String>) -> Self {
        Self {
            vm: vm.into(),
            mtrr_def_type: MTRR_DEF_TYPE_RESET,
            system_time: 0,
            wall_clock: 0,
            unknown: 0,
            logged: ArrayVec::new(),
            clock_logged: false,
            arch_capabilities: None,
            eoi: PvEoi::default(),
        }
    }

    /// The same with IA32_ARCH_CAPABILITIES, of what the processor has there.
    pub fn with_arch_capabilities(self, value: Option<u64>) -> Self {
        Self { arch_capabilities: value.map(|value| value & ARCH_CAPABILITIES_OFFERED), ..self }
    }

    /// Accesses to MSRs that do not exist.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// RDMSR. `now` is the guest's TSC.
    ///
    /// # Errors
    /// When the guest has no such MSR.
    pub fn read(&mut self, msr: u32, lapic: &LocalApic, now: u64) -> Result<u64, GeneralProtection> {
        match msr {
            MSR_APIC_BASE | MSR_TSC_DEADLINE | X2APIC_MSR_FIRST..=X2APIC_MSR_LAST => lapic.read_msr(msr, now),
            IA32_TSC => Ok(now),
            IA32_FEATURE_CONTROL => Ok(FEATURE_CONTROL_LOCKED),
            IA32_MISC_ENABLE => Ok(MISC_ENABLE),
            IA32_MTRR_DEF_TYPE => Ok(self.mtrr_def_type),
            IA32_ARCH_CAPABILITIES if let Some(value) = self.arch_capabilities => Ok(value),
            KVM_SYSTEM_TIME_NEW => Ok(self.system_time),
            KVM_WALL_CLOCK_NEW => Ok(self.wall_clock),
            KVM_EOI_EN => Ok(self.eoi.msr()),
            AMD_HWCR => Ok(HWCR_TSC_FREQ_SEL),
            AMD_DE_CFG => Ok(DE_CFG_LFENCE_SERIALISE),
            // A processor with AMD's signature has them, without a bit of CPUID that says so. These count nothing and
            // hold nothing, by which Linux sees that there is no use in them.
            msr if AMD_K7_COUNTERS.contains(&msr) => Ok(0),
            // No machine-check banks; Linux looks without asking CPUID.
            IA32_MCG_CAP => Ok(0),
            IA32_PLATFORM_ID | IA32_BIOS_SIGN_ID | PLATFORM_INFO | IA32_MTRRCAP | IA32_DEBUGCTL => Ok(0),
            AMD_SYSCFG | AMD_NB_CFG | AMD_INT_PENDING | AMD_MMIO_CONF_BASE | AMD_TSEG_ADDR
            | AMD_TSEG_MASK => Ok(0),
            AMD_LS_CFG | AMD_IC_CFG | AMD_DC_CFG | AMD_TW_CFG | AMD_BU_CFG2 | AMD_EX_CFG => Ok(0),
            _ => Err(self.unknown_msr("read of", msr)),
        }
    }

    /// WRMSR. `now` is the guest's TSC; the clock structures are written to `memory`.
    ///
    /// # Errors
    /// When the guest has no such MSR, or it does not take the value.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        lapic: &mut LocalApic,
        clock: &GuestClock,
        memory: &dyn GuestMemory,
        now: u64,
    ) -> Result<Option<ApicEvent>, GeneralProtection> {
        match msr {
            MSR_APIC_BASE | MSR_TSC_DEADLINE | X2APIC_MSR_FIRST..=X2APIC_MSR_LAST => {
                return lapic.write_msr(msr, value, now);
            }
            IA32_MTRR_DEF_TYPE => {
                let valid_type = matches!(value & 0xff, 0 | 1 | 4 | 5 | 6);
                if value & !MTRR_DEF_TYPE_WRITABLE != 0 || !valid_type {
                    return Err(GeneralProtection);
                }
                self.mtrr_def_type = value;
            }
            KVM_SYSTEM_TIME_NEW => {
                self.system_time = value;
                self.write_system_time(clock, memory);
            }
            KVM_WALL_CLOCK_NEW => {
                self.wall_clock = value;
                let written = clock.write_wall_clock(memory, GuestPhys(value));
                self.note_clock("wall clock", written);
            }
            KVM_EOI_EN => self.eoi.set_msr(value, memory)?,
            msr if AMD_K7_COUNTERS.contains(&msr) => {}
            // Settings without effect here: Linux writes back what it read with bits of its own.
            IA32_BIOS_SIGN_ID | IA32_MISC_ENABLE | IA32_DEBUGCTL | AMD_SYSCFG | AMD_HWCR | AMD_NB_CFG => {}
            AMD_INT_PENDING | AMD_MMIO_CONF_BASE | AMD_LS_CFG | AMD_IC_CFG | AMD_DC_CFG | AMD_TW_CFG => {}
            AMD_DE_CFG | AMD_BU_CFG2 | AMD_EX_CFG => {}
            _ => return Err(self.unknown_msr("write of", msr)),
        }
        Ok(None)
    }

    /// Writes the system time to where the guest wants it, if it does.
    pub fn write_system_time(&mut self, clock: &GuestClock, memory: &dyn GuestMemory) {
        if let Some(address) = self.system_time_address() {
            let written = clock.write_system_time(memory, address);
            self.note_clock("system time", written);
        }
    }

    /// The VM stood still for a while: tells the guest, where it has the clock that can say so.
    pub fn was_paused(&mut self, clock: &GuestClock, memory: &dyn GuestMemory) {
        if let Some(address) = self.system_time_address() {
            let written = clock.tell_stopped(memory, address);
            self.note_clock("system time", written);
        }
    }

    /// Where the guest wants the system time, if it does.
    fn system_time_address(&self) -> Option<GuestPhys> {
        const ENABLE: u64 = 1;
        (self.system_time & ENABLE != 0).then_some(GuestPhys(self.system_time & !ENABLE))
    }

    fn note_clock(&mut self, what: &str, written: Result<(), pasidon_kernel::memory::BadGuestAddress>) {
        if let Err(error) = written
            && !core::mem::replace(&mut self.clock_logged, true)
        {
            log::warn!("vm {}: {what} structure not written: {error} (said once)", self.vm);
        }
    }

    fn unknown_msr(&mut self, access: &str, msr: u32) -> GeneralProtection {
        self.unknown = self.unknown.saturating_add(1);
        if !self.logged.contains(&msr) && self.logged.try_push(msr).is_ok() {
            log::info!("vm {}: {access} unknown MSR {msr:#x} answered with #GP (said once)", self.vm);
        }
        GeneralProtection
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_arch_common::testing::TestMemory;
    use proptest::prelude::*;

    const CLOCK: GuestClock = GuestClock::new(1_000_000_000, 0, 0);

    #[test]
    fn unknown_msrs_fault_and_are_counted() {
        let mut msrs = Msrs::new("alpha");
        let mut lapic = LocalApic::new(0);
        let memory = TestMemory::new(0, 0x1000);
        for _ in 0..3 {
            assert_eq!(msrs.read(0x1234, &lapic, 0), Err(GeneralProtection));
        }
        assert_eq!(msrs.write(0x1234, 0, &mut lapic, &CLOCK, &memory, 0), Err(GeneralProtection));
        assert_eq!((msrs.unknown(), msrs.logged.len()), (4, 1));
    }

    #[test]
    fn amds_first_counters_are_there_and_count_nothing() {
        let mut msrs = Msrs::new("alpha");
        let mut lapic = LocalApic::new(0);
        let memory = TestMemory::new(0, 0x1000);
        for msr in 0xc001_0000..=0xc001_0007 {
            assert!(msrs.write(msr, 0xffff, &mut lapic, &CLOCK, &memory, 0).is_ok());
            assert_eq!(msrs.read(msr, &lapic, 0), Ok(0));
        }
        assert_eq!(msrs.read(0xc001_0200, &lapic, 0), Err(GeneralProtection), "PERFCTR_CORE");
        assert_eq!(msrs.unknown(), 1);
    }

    #[test]
    fn a_guest_learns_which_faults_its_processor_does_not_have_and_no_more() {
        let (lapic, memory) = (LocalApic::new(0), TestMemory::new(0, 0x1000));
        let mut none = Msrs::new("alpha");
        assert_eq!(none.read(IA32_ARCH_CAPABILITIES, &lapic, 0), Err(GeneralProtection));
        let mut all = Msrs::new("alpha").with_arch_capabilities(Some(u64::MAX));
        let value = all.read(IA32_ARCH_CAPABILITIES, &lapic, 0).unwrap();
        for (bit, offered) in
            [(0, true), (1, false), (5, true), (7, false), (10, false), (13, true), (62, false)]
        {
            assert_eq!(value >> bit & 1 != 0, offered, "bit {bit}");
        }
        let mut lapic = lapic;
        assert!(
            all.write(IA32_ARCH_CAPABILITIES, 0, &mut lapic, &CLOCK, &memory, 0).is_err(),
            "it is read only"
        );
    }

    #[test]
    fn mtrrs_say_write_back_and_nothing_else() {
        let mut msrs = Msrs::new("alpha");
        let mut lapic = LocalApic::new(0);
        let memory = TestMemory::new(0, 0x1000);
        assert_eq!(msrs.read(IA32_MTRRCAP, &lapic, 0), Ok(0));
        assert_eq!(msrs.read(IA32_MTRR_DEF_TYPE, &lapic, 0), Ok(0x806));
        for (value, fine) in [(0, true), (0x806, true), (2, false), (0x1000, false)] {
            let result = msrs.write(IA32_MTRR_DEF_TYPE, value, &mut lapic, &CLOCK, &memory, 0);
            assert_eq!(result.is_ok(), fine, "{value:#x}");
        }
    }

    #[test]
    fn clock_structures_are_written_where_the_guest_says() {
        let mut msrs = Msrs::new("alpha");
        let mut lapic = LocalApic::new(0);
        let memory = TestMemory::new(0, 0x1000);
        let mut write = |msr, value| msrs.write(msr, value, &mut lapic, &CLOCK, &memory, 0);
        write(KVM_SYSTEM_TIME_NEW, 0x201).unwrap();
        assert_eq!(memory.bytes(0x200 + 28, 2), [1, 1], "shift and flags");
        write(KVM_SYSTEM_TIME_NEW, 0x300).unwrap();
        assert_eq!(memory.u32(0x300), 0, "not enabled");
        write(KVM_WALL_CLOCK_NEW, 0x400).unwrap();
        assert_eq!(memory.u32(0x400), 2);
        write(KVM_WALL_CLOCK_NEW, u64::MAX).unwrap();
        assert!(msrs.clock_logged, "and no more lines about it");
    }

    #[test]
    fn a_pause_is_told_where_the_guest_has_its_clock_and_nowhere_else() {
        let mut msrs = Msrs::new("alpha");
        let mut lapic = LocalApic::new(0);
        let memory = TestMemory::new(0, 0x1000);
        msrs.was_paused(&CLOCK, &memory);
        assert_eq!(memory.bytes(0, 0x1000), [0; 0x1000], "it has none");
        for (value, flags) in [(0x201, 3), (0x200, 1)] {
            msrs.write(KVM_SYSTEM_TIME_NEW, 0x201, &mut lapic, &CLOCK, &memory, 0).unwrap();
            msrs.write(KVM_SYSTEM_TIME_NEW, value, &mut lapic, &CLOCK, &memory, 0).unwrap();
            let before = memory.bytes(0x200, 29);
            msrs.was_paused(&CLOCK, &memory);
            assert_eq!(memory.bytes(0x200 + 29, 1), [flags], "{value:#x}");
            assert_eq!(memory.bytes(0x200, 29), before, "the time is as true as before");
        }
    }

    proptest! {
        #[test]
        fn no_msr_access_panics(ops in proptest::collection::vec((any::<bool>(), any::<u32>(), any::<u64>()), 0..100)) {
            const NAMED: [u32; 9] =
                [0x1b, 0x6e0, 0x80b, 0x830, 0x2ff, 0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d04, 0xc001_0015];
            let mut msrs = Msrs::new("alpha");
            let mut lapic = LocalApic::new(0);
            let memory = TestMemory::new(0, 0x1000);
            for (write, pick, value) in ops {
                let msr = NAMED.get((pick % 16) as usize).copied().unwrap_or(pick);
                if write {
                    let _ = msrs.write(msr, value, &mut lapic, &CLOCK, &memory, value);
                } else {
                    let _ = msrs.read(msr, &lapic, value);
                }
            }
        }
    }
}
