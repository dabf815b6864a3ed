// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is worth knowing about the processor on a machine that Pasidon has not run on yet.
//!
//! **Invariant.** Nothing is written, and only what exists is read: a model-specific register that the processor does
//! not have would be #GP, so each is read only behind the bit that the manuals tie it to, and only the few that are worth
//! it: not every hypervisor or emulator has what its CPUID promises.
//!
//! Source: Intel SDM volume 4, chapter 2 (IA32_FEATURE_CONTROL, IA32_VMX_*, IA32_ARCH_CAPABILITIES,
//! IA32_XAPIC_DISABLE_STATUS), volume 3, appendix A (VMX capabilities); APM volume 2, 15.30.1 (VM_CR).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::arch::asm;

use crate::cpu::{self, Efer, Features, cpuid, msr, read_msr};
use crate::vmx;
use crate::vmx::controls::{IA32_VMX_BASIC, IA32_VMX_EPT_VPID_CAP, IA32_VMX_MISC, IA32_VMX_PROCBASED_CTLS2};

const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;

/// IA32_VMX_PROCBASED_CTLS: secondary controls may be used, so that IA32_VMX_PROCBASED_CTLS2 exists.
const SECONDARY_CONTROLS: u64 = 1 << 63;
/// IA32_VMX_PROCBASED_CTLS2: EPT or VPIDs may be used, so that IA32_VMX_EPT_VPID_CAP exists.
const EPT_OR_VPID: u64 = 1 << 33 | 1 << 37;

/// What CPUID says beside [`Features`].
struct Leaves {
    basic: core::arch::x86_64::CpuidResult,
    structured: core::arch::x86_64::CpuidResult,
}

impl Leaves {
    fn read() -> Self {
        const STRUCTURED: u32 = 7;
        // Leaves beyond the highest return those of another one.
        let there = cpuid(0, 0).eax >= STRUCTURED;
        let nothing = core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        Self { basic: cpuid(1, 0), structured: if there { cpuid(STRUCTURED, 0) } else { nothing } }
    }

    fn apic(&self) -> bool {
        self.basic.edx & 1 << 9 != 0
    }

    /// Every feature that is of interest, and whether it is there.
    fn features(&self, features: &Features) -> [(bool, &'static str); 21] {
        let (basic, structured) = (&self.basic, &self.structured);
        let bit = |register: u32, bit: u32| register & 1 << bit != 0;
        [
            (features.long_mode, "64-bit mode"),
            (features.nx, "NX"),
            (features.cx16, "CMPXCHG16B"),
            (features.x2apic, "x2APIC"),
            (features.svm, "SVM"),
            (features.npt, "nested paging (NPT)"),
            (features.vmx, "VMX"),
            (features.tsc_deadline, "TSC deadline"),
            (features.invariant_tsc, "invariant TSC"),
            (features.xsave, "XSAVE"),
            (features.smep, "SMEP"),
            (features.smap, "SMAP"),
            (features.gib_pages, "pages of 1 GiB"),
            (bit(basic.edx, 7), "machine-check exception (MCE)"),
            (bit(basic.edx, 14), "machine-check architecture (MCA)"),
            (bit(basic.ecx, 30), "RDRAND"),
            (bit(structured.ecx, 16), "five-level paging (LA57)"),
            (bit(structured.ecx, 7), "CET shadow stacks"),
            (bit(structured.edx, 20), "CET branch tracking"),
            (bit(structured.ecx, 28), "MOVDIR64B"),
            (bit(structured.ecx, 29), "ENQCMD"),
        ]
    }
}

/// A register that says what VMX can do; 0 where one before it says that it does not exist. Only where there is VMX.
fn vmx_register(register: u32) -> u64 {
    // SAFETY: there is VMX, and with it these registers, but for those asked for here.
    let read = |register| unsafe { read_msr(register) };
    let secondary = read(IA32_VMX_PROCBASED_CTLS) & SECONDARY_CONTROLS != 0;
    let there = match register {
        IA32_VMX_PROCBASED_CTLS2 => secondary,
        IA32_VMX_EPT_VPID_CAP => secondary && read(IA32_VMX_PROCBASED_CTLS2) & EPT_OR_VPID != 0,
        _ => true,
    };
    if there { read(register) } else { 0 }
}

/// The processor that calls, as names and values.
pub fn processor() -> Vec<(&'static str, String)> {
    let leaves = Leaves::read();
    let features = Features::read();
    let mut facts =
        Vec::from([("name", format!("{}, {}", vendor(), cpu::brand())), ("model", model(&leaves))]);
    if leaves.basic.ecx & 1 << 31 != 0 {
        facts.push(("hypervisor", "this is a virtual machine (CPUID says so)".to_string()));
    }
    let list = |wanted: bool| {
        let all = leaves.features(&features).into_iter();
        let names: Vec<&str> = all.filter(|(there, _)| *there == wanted).map(|(_, name)| name).collect();
        names.join(", ")
    };
    facts.extend([
        ("has", list(true)),
        ("has not", list(false)),
        ("addresses", format!("{} bits", features.physical_bits)),
        ("paging", paging()),
        ("left on", control()),
        ("local APIC", local_apic(&leaves)),
    ]);
    facts.extend(svm(&features));
    facts.extend(vmx(&features));
    facts
}

fn vendor() -> String {
    let leaf = cpuid(0, 0);
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn model(leaves: &Leaves) -> String {
    let signature = leaves.basic.eax;
    let field = |low: u32, bits: u32| signature >> low & ((1 << bits) - 1);
    let (mut family, mut model) = (field(8, 4), field(4, 4));
    if family == 0xf || family == 6 {
        model |= field(16, 4) << 4;
    }
    if family == 0xf {
        family += field(20, 8);
    }
    format!("family {family:#x}, model {model:#x}, stepping {:#x} (CPUID {signature:#010x})", field(0, 4))
}

fn cr0() -> u64 {
    let value: u64;
    // SAFETY: reading CR0 at privilege level 0 changes nothing.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reading CR4 at privilege level 0 changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn paging() -> String {
    let levels = if cpu::five_levels() { "5 levels (the firmware left LA57 on)" } else { "4 levels" };
    // SAFETY: long mode runs, so there is EFER.
    let efer = unsafe { read_msr(msr::EFER) };
    let nx = if Efer::from_bits_retain(efer).contains(Efer::NXE) { "on" } else { "off" };
    format!("{levels}, NX {nx}")
}

/// What of the control registers would surprise.
fn control() -> String {
    let (cr0, cr4) = (cr0(), cr4());
    let bits = [(6, "MCE"), (13, "VMXE"), (14, "SMXE"), (20, "SMEP"), (21, "SMAP"), (23, "CET")];
    let on: Vec<&str> =
        bits.into_iter().filter(|(bit, _)| cr4 & 1 << bit != 0).map(|(_, name)| name).collect();
    let on =
        if on.is_empty() { "none of MCE, VMXE, SMXE, SMEP, SMAP, CET".to_string() } else { on.join(", ") };
    format!("{on} (CR0 {cr0:#x}, CR4 {cr4:#x})")
}

fn local_apic(leaves: &Leaves) -> String {
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// The processor has IA32_XAPIC_DISABLE_STATUS.
    const XAPIC_DISABLE: u64 = 1 << 21;
    const LEGACY_XAPIC_DISABLED: u64 = 1 << 0;
    if !leaves.apic() {
        return "none, or switched off".to_string();
    }
    // SAFETY: there is a local APIC.
    let base = unsafe { read_msr(msr::IA32_APIC_BASE) };
    let mode = match (base & ENABLED != 0, base & X2APIC != 0) {
        (false, _) => "off",
        (true, false) => "xAPIC mode",
        (true, true) => "x2APIC mode",
    };
    let locked = cpu::arch_capabilities().is_some_and(|capabilities| capabilities & XAPIC_DISABLE != 0)
        // SAFETY: the register before it says that it exists.
        && unsafe { read_msr(msr::IA32_XAPIC_DISABLE_STATUS) } & LEGACY_XAPIC_DISABLED != 0;
    let locked = if locked { ", which the firmware has locked" } else { "" };
    format!("{mode}{locked}, registers at {:#x}", base & ADDRESS)
}

fn svm(features: &Features) -> Option<(&'static str, String)> {
    const LOCK: u64 = 1 << 3;
    const SVMDIS: u64 = 1 << 4;
    if !features.svm {
        return None;
    }
    let leaf = cpuid(0x8000_000a, 0);
    // SAFETY: there is SVM.
    let control = unsafe { read_msr(msr::VM_CR) };
    let state = match (control & SVMDIS != 0, control & LOCK != 0) {
        (false, _) => "can be used",
        (true, false) => "disabled, not locked",
        (true, true) => "disabled and locked",
    };
    Some(("SVM", format!("{state}, {} ASIDs, revision {} (VM_CR {control:#x})", leaf.ebx, leaf.eax & 0xff)))
}

fn vmx(features: &Features) -> Vec<(&'static str, String)> {
    const LOCK: u64 = 1 << 0;
    const OUTSIDE_SMX: u64 = 1 << 2;
    if !features.vmx {
        return Vec::new();
    }
    let control = vmx_register(msr::IA32_FEATURE_CONTROL);
    let state = match (control & LOCK != 0, control & OUTSIDE_SMX != 0) {
        (true, true) => "VMX is switched on and locked",
        (true, false) => "locked with VMX off: switch VMX on in the firmware set-up",
        (false, _) => "not locked: VMX can be switched on",
    };
    let posted = if vmx::takes_posted_interrupts() { "taken for guests" } else { "not taken for guests" };
    Vec::from([
        ("VMX", format!("{state} (IA32_FEATURE_CONTROL {control:#x})")),
        ("posted interrupts", posted.to_string()),
        ("VMX_BASIC", hex(vmx_register(IA32_VMX_BASIC))),
        ("VMX_PINBASED", hex(vmx_register(IA32_VMX_PINBASED_CTLS))),
        ("VMX_PROCBASED", hex(vmx_register(IA32_VMX_PROCBASED_CTLS))),
        ("VMX_PROCBASED2", hex(vmx_register(IA32_VMX_PROCBASED_CTLS2))),
        ("VMX_EPT_VPID", hex(vmx_register(IA32_VMX_EPT_VPID_CAP))),
        ("VMX_MISC", hex(vmx_register(IA32_VMX_MISC))),
    ])
}

fn hex(value: u64) -> String {
    format!("{value:#018x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_cpu::{Model, Processor};
    use pasidon_kernel::base::refusal::Refusal;

    fn looked(model: Model) -> Vec<(&'static str, String)> {
        Processor::new(model).run(processor).unwrap()
    }

    fn checked() -> Result<(), Refusal> {
        cpu::check().map(drop)
    }

    fn fact<'f>(facts: &'f [(&'static str, String)], name: &str) -> &'f str {
        facts.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    #[test]
    fn a_processor_of_either_make_is_described_without_a_fault() {
        let amd = looked(Model::Ryzen);
        assert!(fact(&amd, "name").starts_with("AuthenticAMD, AMD "), "{amd:?}");
        assert!(fact(&amd, "SVM").starts_with("can be used, "), "{amd:?}");
        assert!(fact(&amd, "has not").contains("VMX"), "{amd:?}");
        assert_eq!(fact(&amd, "VMX"), "");
        let intel = looked(Model::SapphireRapids);
        assert!(fact(&intel, "name").starts_with("GenuineIntel, "), "{intel:?}");
        assert!(fact(&intel, "model").starts_with("family 0x6, model 0x8f, "), "{intel:?}");
        assert!(fact(&intel, "VMX").starts_with("not locked: "), "{intel:?}");
        assert!(fact(&intel, "VMX_EPT_VPID").starts_with("0x"), "{intel:?}");
        assert_eq!(fact(&intel, "posted interrupts"), "taken for guests");
        assert_eq!(fact(&intel, "SVM"), "");
    }

    #[test]
    fn what_the_firmware_locked_is_said() {
        let mut processor = Processor::new(Model::SapphireRapids);
        let locked = processor
            .run(|| {
                // SAFETY: the processor is the test's, and has VMX.
                unsafe { cpu::write_msr(msr::IA32_FEATURE_CONTROL, 1) };
                super::processor()
            })
            .unwrap();
        assert!(fact(&locked, "VMX").starts_with("locked with VMX off"), "{locked:?}");
        assert!(processor.run(checked).unwrap().unwrap_err().why.contains("disabled VMX"));
        drop(processor);
        for model in [Model::Ryzen, Model::SapphireRapids] {
            assert_eq!(Processor::new(model).run(checked).unwrap(), Ok(()), "{model:?}");
        }
    }
}
