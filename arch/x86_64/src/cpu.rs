// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor itself: what it can do, its model-specific registers, and the control-register state that
//! every pCPU runs the hypervisor with.
//!
//! **Invariant.** All pCPUs have the same CR0, CR4, EFER and PAT while the hypervisor runs: [`set_up`] writes
//! whole values, nothing of the firmware's is kept but the depth of the page tables.
//!
//! Source: AMD64 Architecture Programmer's Manual (APM) volumes 2 and 3; Intel SDM volume 3.

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

use bitflags::bitflags;
use pasidon_arch_common::entropy::{KEY_LEN, Key};
use pasidon_kernel::base::refusal::Refusal;
use x86_64::instructions::random::RdRand;

use crate::vmx::controls::Controls;

/// Model-specific registers by their specification names.
pub mod msr {
    /// Whether the firmware allows VMX, and whether that can still be changed.
    pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
    /// Local APIC base and mode.
    pub const IA32_APIC_BASE: u32 = 0x1b;
    /// Why the local APIC's mode cannot be changed.
    pub const IA32_XAPIC_DISABLE_STATUS: u32 = 0xbd;
    /// Which faults the processor does not have.
    pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
    /// Compare value of the local APIC timer in TSC-deadline mode.
    pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
    /// Page attribute table.
    pub const IA32_PAT: u32 = 0x277;
    /// First of the x2APIC registers; the register at xAPIC offset `o` is this plus `o >> 4`.
    pub const X2APIC_FIRST: u32 = 0x800;
    /// Extended feature enables.
    pub const EFER: u32 = 0xc000_0080;
    /// Base of FS.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// Base of GS.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// Base that SWAPGS exchanges with that of GS.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// Whether SVM is disabled by the firmware.
    pub const VM_CR: u32 = 0xc001_0114;
}

/// VM_CR.SVMDIS: EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// IA32_FEATURE_CONTROL: nothing of it can be changed until the next reset.
const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMXON works outside of SMX.
const FEATURE_CONTROL_VMX: u64 = 1 << 2;

bitflags! {
    /// CR0 (APM 2, 3.1.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr0: u64 {
        /// Protection enabled.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Extension type; always set.
        const ET = 1 << 4;
        /// Numeric errors are exceptions.
        const NE = 1 << 5;
        /// Read-only pages are so for the hypervisor too.
        const WP = 1 << 16;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4 (APM 2, 3.1.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        /// Physical address extension; needed by long mode.
        const PAE = 1 << 5;
        /// Machine checks are exceptions instead of a shutdown.
        const MCE = 1 << 6;
        /// FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// SSE exceptions are #XF.
        const OSXMMEXCPT = 1 << 10;
        /// Five levels of page tables.
        const LA57 = 1 << 12;
        /// XSAVE and XCR0.
        const OSXSAVE = 1 << 18;
        /// No execution of user pages by the hypervisor.
        const SMEP = 1 << 20;
        /// No access to user pages by the hypervisor.
        const SMAP = 1 << 21;
    }
}

bitflags! {
    /// EFER (APM 2, 3.1.7).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        /// SYSCALL.
        const SCE = 1 << 0;
        /// Long mode enabled.
        const LME = 1 << 8;
        /// Long mode active: follows LME and CR0.PG, and is written as it is.
        const LMA = 1 << 10;
        /// The no-execute bit of page tables counts.
        const NXE = 1 << 11;
        /// SVM instructions.
        const SVME = 1 << 12;
    }
}

/// The PAT after reset, which [`crate::paging`] counts on: WB, WT, UC-, UC and the same again.
pub const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

/// What the hypervisor runs with on every pCPU; paging and protection of course, WP for W^X.
pub const CR0: Cr0 = Cr0::PE.union(Cr0::MP).union(Cr0::ET).union(Cr0::NE).union(Cr0::WP).union(Cr0::PG);
/// EFER of every pCPU until SVM is switched on. Processors raise #GP where LMA is not written as it is.
pub const EFER: Efer = EFER_BEFORE_PAGING.union(Efer::LMA);
/// EFER of a pCPU that has yet to turn paging, and with it long mode, on.
pub const EFER_BEFORE_PAGING: Efer = Efer::LME.union(Efer::NXE);

/// CPUID of a leaf and subleaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor must have it, or this raises #GP.
pub unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says that the register exists; reading one changes no memory.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor must have it and accept the value, and what it changes must be what all code here expects.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: by the caller's promise. Memory is not excluded: some registers order or redirect accesses.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// Reads XCR0. CR4.OSXSAVE must be set, which [`set_up`] does where there is XSAVE ([`Features::xsave`]).
///
/// # Safety
/// Only where [`Features::xsave`] holds.
pub unsafe fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says that there is XSAVE, and OSXSAVE is set with it.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
/// Only where [`Features::xsave`] holds, with bits that CPUID leaf 0xd allows.
pub unsafe fn write_xcr0(value: u64) {
    // SAFETY: by the caller's promise; the hypervisor itself uses no extended state.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// Where CPUID leaves come from: the processor, or a test.
type Leaves<'a> = &'a dyn Fn(u32, u32) -> CpuidResult;

/// What the processor has, as far as the host side asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Long mode.
    pub long_mode: bool,
    /// No-execute pages.
    pub nx: bool,
    /// CMPXCHG16B.
    pub cx16: bool,
    /// x2APIC mode of the local APIC.
    pub x2apic: bool,
    /// SVM.
    pub svm: bool,
    /// Nested paging.
    pub npt: bool,
    /// VMX.
    pub vmx: bool,
    /// The local APIC timer can compare with the TSC.
    pub tsc_deadline: bool,
    /// The TSC runs at one rate in all power states.
    pub invariant_tsc: bool,
    /// XSAVE.
    pub xsave: bool,
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// Supervisor-mode access prevention.
    pub smap: bool,
    /// Pages of 1 GiB.
    pub gib_pages: bool,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

impl Features {
    /// Of this processor.
    pub fn read() -> Self {
        Self::from_leaves(&cpuid)
    }

    fn from_leaves(leaves: Leaves<'_>) -> Self {
        const HIGHEST: u32 = 0;
        const BASIC: u32 = 1;
        const STRUCTURED: u32 = 7;
        const EXTENDED: u32 = 0x8000_0000;
        const EXTENDED_FEATURES: u32 = 0x8000_0001;
        const POWER: u32 = 0x8000_0007;
        const ADDRESS_SIZES: u32 = 0x8000_0008;
        const SVM: u32 = 0x8000_000a;
        const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        // Leaves beyond the highest return those of another one.
        let read = |leaf: u32| {
            let range = if leaf >= EXTENDED { EXTENDED } else { HIGHEST };
            if leaf <= leaves(range, 0).eax { leaves(leaf, 0) } else { NOTHING }
        };
        let bit = |register: u32, bit: u32| register & 1 << bit != 0;
        let (basic, structured, extended) = (read(BASIC), read(STRUCTURED), read(EXTENDED_FEATURES));
        let svm = bit(extended.ecx, 2);
        Self {
            long_mode: bit(extended.edx, 29),
            nx: bit(extended.edx, 20),
            cx16: bit(basic.ecx, 13),
            x2apic: bit(basic.ecx, 21),
            svm,
            vmx: bit(basic.ecx, 5),
            npt: svm && bit(read(SVM).edx, 0),
            tsc_deadline: bit(basic.ecx, 24),
            invariant_tsc: bit(read(POWER).edx, 8),
            xsave: bit(basic.ecx, 26),
            smep: bit(structured.ebx, 7),
            smap: bit(structured.ebx, 20),
            gib_pages: bit(extended.edx, 26),
            // Processors without the leaf have 36.
            physical_bits: match read(ADDRESS_SIZES).eax as u8 {
                0 => 36,
                bits => bits.min(52),
            },
        }
    }

    /// Whether Pasidon can run here. Two things are looked for in one go, so that one line says all.
    ///
    /// # Errors
    /// When something is missing.
    pub fn check(&self) -> Result<(), Refusal> {
        let wanted = [
            (self.long_mode, "64-bit mode"),
            (self.nx, "no-execute pages (NX)"),
            (self.cx16, "CMPXCHG16B"),
            (self.x2apic, "x2APIC"),
            (self.svm || self.vmx, "SVM or VMX"),
            (self.npt || self.vmx || !self.svm, "nested paging (NPT)"),
        ];
        let missing = wanted.into_iter().filter(|(there, _)| !there).map(|(_, name)| name);
        let missing = missing.collect::<Vec<_>>().join(", ");
        if missing.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            "processor",
            alloc::format!("it has no {missing}"),
            "switch it on in the firmware set-up; with QEMU use -accel tcg -cpu max",
        ))
    }
}

/// What this processor has, when Pasidon can run on it.
///
/// # Errors
/// When something is missing, or the firmware has switched it off.
pub fn check() -> Result<Features, Refusal> {
    let features = Features::read();
    features.check()?;
    check_svm_enabled(&features)?;
    if features.vmx {
        check_vmx_enabled()?;
        // SAFETY: there is VMX, and of its registers those are read that the ones before say exist.
        Controls::new(&|register| unsafe { read_msr(register) })?;
    }
    Ok(features)
}

/// Whether the firmware left SVM switchable. Only for a processor with SVM.
///
/// # Errors
/// When VM_CR.SVMDIS is set.
fn check_svm_enabled(features: &Features) -> Result<(), Refusal> {
    // SAFETY: VM_CR exists where there is SVM; `svm` was read from CPUID.
    if features.svm && unsafe { read_msr(msr::VM_CR) } & VM_CR_SVMDIS != 0 {
        return Err(Refusal::new(
            "processor",
            "the firmware has disabled SVM (VM_CR.SVMDIS)",
            "switch virtualization (SVM) on in the firmware set-up",
        ));
    }
    Ok(())
}

/// Whether the firmware left VMX on, or open to be turned on; if so, IA32_FEATURE_CONTROL. Only for a processor with VMX.
///
/// # Errors
/// When it is locked off.
fn check_vmx_enabled() -> Result<u64, Refusal> {
    // SAFETY: the register exists where there is VMX.
    let control = unsafe { read_msr(msr::IA32_FEATURE_CONTROL) };
    if control & (FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX) == FEATURE_CONTROL_LOCK {
        return Err(Refusal::new(
            "processor",
            "the firmware has disabled VMX (IA32_FEATURE_CONTROL)",
            "switch virtualization (VMX, VT-x) on in the firmware set-up",
        ));
    }
    Ok(control)
}

/// Allows VMX on the processor that calls, where the firmware has left that open. Only for a processor with VMX.
///
/// # Errors
/// When the firmware has locked it off.
pub fn unlock_vmx() -> Result<(), Refusal> {
    let control = check_vmx_enabled()?;
    if control & FEATURE_CONTROL_LOCK == 0 {
        // SAFETY: it is not locked; both bits exist where there is VMX.
        unsafe {
            write_msr(msr::IA32_FEATURE_CONTROL, control | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX);
        }
    }
    Ok(())
}

/// The processor's name of itself, without the padding.
pub fn brand() -> String {
    const FIRST: u32 = 0x8000_0002;
    const LAST: u32 = 0x8000_0004;
    if cpuid(0x8000_0000, 0).eax < LAST {
        return String::from("unnamed processor");
    }
    let mut bytes = Vec::new();
    for leaf in FIRST..=LAST {
        let CpuidResult { eax, ebx, ecx, edx } = cpuid(leaf, 0);
        for register in [eax, ebx, ecx, edx] {
            bytes.extend(register.to_le_bytes());
        }
    }
    brand_text(&bytes)
}

fn brand_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// CR4 that every pCPU gets. `five_levels`: the firmware left five-level paging on, which cannot be changed
/// in long mode.
pub fn cr4(features: &Features, five_levels: bool) -> Cr4 {
    let mut cr4 = Cr4::PAE | Cr4::MCE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    cr4.set(Cr4::LA57, five_levels);
    cr4.set(Cr4::OSXSAVE, features.xsave);
    cr4.set(Cr4::SMEP, features.smep);
    cr4.set(Cr4::SMAP, features.smap);
    cr4
}

/// Whether this processor walks five levels.
pub fn five_levels() -> bool {
    let cr4: u64;
    // SAFETY: reading CR4 at privilege level 0 changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    Cr4::from_bits_retain(cr4).contains(Cr4::LA57)
}

/// Gives this processor the hypervisor's CR0, CR4, EFER and PAT. Its page tables may be anyone's.
///
/// # Safety
/// At privilege level 0 with interrupts off, on a processor that passed [`Features::check`]. No page that the
/// caller writes to may be read-only from here on.
pub unsafe fn set_up(features: &Features) {
    let cr4 = cr4(features, five_levels()).bits();
    let cr0 = CR0.bits();
    // SAFETY: long mode and NX are there; LME and LMA are kept, and the other values describe the mode that the
    // code runs in already. OSXSAVE, SMEP and SMAP are set only where CPUID has them.
    unsafe {
        write_msr(msr::EFER, EFER.bits());
        write_msr(msr::IA32_PAT, PAT_AFTER_RESET);
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
    }
}

/// IA32_ARCH_CAPABILITIES, where this processor has it.
pub fn arch_capabilities() -> Option<u64> {
    const STRUCTURED: u32 = 7;
    /// EDX.
    const ARCH_CAPABILITIES: u32 = 1 << 29;
    let there = cpuid(0, 0).eax >= STRUCTURED && cpuid(STRUCTURED, 0).edx & ARCH_CAPABILITIES != 0;
    // SAFETY: CPUID has just said that the register exists.
    there.then(|| unsafe { read_msr(msr::IA32_ARCH_CAPABILITIES) })
}

/// Random numbers of this processor's own; `None` where it has none, or gives none.
pub fn random() -> Option<Key> {
    const TRIES: usize = 16;
    let source = RdRand::new()?;
    let mut key = [0; KEY_LEN];
    for part in key.chunks_mut(size_of::<u64>()) {
        part.copy_from_slice(&(0..TRIES).find_map(|_| source.get_u64())?.to_le_bytes());
    }
    Some(key)
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing can interrupt the processor any more but NMI and SMI, after which it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_cpu::{Model, Processor};

    #[test]
    fn a_processor_gets_whole_values_and_nothing_of_the_firmwares_stays() {
        const TSD: u64 = 1 << 2;
        for model in [Model::Ryzen, Model::SapphireRapids] {
            let (features, found) = Processor::new(model)
                .run(|| {
                    let features = Features::read();
                    // SAFETY: the processor is the test's, whose memory is mapped for privilege level 0, all of it
                    // writable but what it does not write.
                    unsafe {
                        write_msr(msr::IA32_PAT, 0x0606_0606_0606_0606);
                        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, const TSD);
                        set_up(&features);
                        let (cr0, cr4): (u64, u64);
                        asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4);
                        (features, [cr0, cr4, read_msr(msr::EFER), read_msr(msr::IA32_PAT)])
                    }
                })
                .unwrap();
            let wanted = [CR0.bits(), cr4(&features, false).bits(), EFER.bits(), PAT_AFTER_RESET];
            assert_eq!(found, wanted, "{model:?}: {found:x?}");
            assert!(features.smap && features.xsave && features.gib_pages, "{model:?}: {features:?}");
            assert_eq!((features.svm, features.vmx), (model == Model::Ryzen, model != Model::Ryzen));
        }
    }

    #[test]
    fn what_is_missing_on_a_processor_or_switched_off_is_said() {
        let check = || check().map_err(|refusal| refusal.to_string());
        let mut ryzen = Processor::new(Model::Ryzen);
        assert!(ryzen.run(check).unwrap().is_ok());
        // SAFETY: VM_CR exists here.
        ryzen.run(|| unsafe { write_msr(msr::VM_CR, VM_CR_SVMDIS) }).unwrap();
        assert!(ryzen.run(check).unwrap().unwrap_err().contains("SVMDIS"));
        drop(ryzen);
        let mut intel = Processor::new(Model::SapphireRapids);
        assert!(intel.run(check).unwrap().is_ok());
        // SAFETY: the register exists where there is VMX.
        intel.run(|| unsafe { write_msr(msr::IA32_FEATURE_CONTROL, FEATURE_CONTROL_LOCK) }).unwrap();
        assert!(intel.run(check).unwrap().unwrap_err().contains("disabled VMX"));
    }

    #[test]
    fn random_numbers_come_and_differ() {
        let [first, second] = Processor::new(Model::Ryzen).run(|| [random(), random()]).unwrap();
        assert!(first.is_some() && first != second);
    }

    fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
        CpuidResult { eax, ebx, ecx, edx }
    }

    #[test]
    fn says_everything_that_is_missing_in_one_line() {
        let none = Features::from_leaves(&|_, _| leaf(0, 0, 0, 0));
        assert_eq!(none.physical_bits, 36);
        let line = none.check().unwrap_err().to_string();
        for name in ["64-bit", "NX", "CMPXCHG16B", "x2APIC", "SVM or VMX"] {
            assert!(line.contains(name), "{name} in {line}");
        }
        let all = Features::from_leaves(&|number, _| match number {
            0 => leaf(7, 0, 0, 0),
            1 => leaf(0, 0, 1 << 21 | 1 << 13, 0),
            0x8000_0000 => leaf(0x8000_000a, 0, 0, 0),
            0x8000_0001 => leaf(0, 0, 1 << 2, 1 << 29 | 1 << 20),
            0x8000_0008 => leaf(0x3028, 0, 0, 0),
            0x8000_000a => leaf(0, 0, 0, 1),
            _ => leaf(0, 0, 0, 0),
        });
        assert_eq!(all.check(), Ok(()));
        assert_eq!(all.physical_bits, 40);
        let no_npt = Features { npt: false, ..all };
        assert_eq!(no_npt.check().unwrap_err().why, "it has no nested paging (NPT)");
        assert_eq!(Features { svm: false, vmx: true, ..no_npt }.check(), Ok(()));
    }

    #[test]
    fn leaves_beyond_the_highest_are_not_believed() {
        // Every leaf answers with all ones, but the highest are the first of each range.
        let features = Features::from_leaves(&|number, _| match number {
            0 => leaf(0, 0, 0, 0),
            0x8000_0000 => leaf(0x8000_0000, 0, 0, 0),
            _ => leaf(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
        });
        assert!(!features.long_mode && !features.x2apic && !features.smep);
    }

    #[test]
    fn efer_is_written_with_the_mode_that_the_processor_is_in() {
        assert!(EFER.contains(Efer::LME | Efer::LMA), "set_up runs in long mode");
        assert!(!EFER_BEFORE_PAGING.contains(Efer::LMA), "the trampoline does not yet");
    }

    #[test]
    fn brand_is_one_line_without_padding() {
        assert_eq!(brand_text(b"  AMD  EPYC 7xx1 \0\0garbage"), "AMD EPYC 7xx1");
    }
}
