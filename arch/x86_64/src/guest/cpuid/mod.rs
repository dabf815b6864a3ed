// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUID tells a guest.
//!
//! **Principle.** An allow-list: a feature bit reaches the guest only if the processor has it *and* it is
//! named here; a leaf that is not named reads as zero. What the hypervisor itself provides (x2APIC,
//! TSC-deadline timer, the clock) is added. All leaves are computed once; an exit is a look-up.
//!
//! Source: AMD APM volume 3, appendix E; Intel SDM volume 2A, CPUID; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst` for the paravirtual leaves.

mod features;

use alloc::vec::Vec;
pub use core::arch::x86_64::CpuidResult;

use features::{
    AddressSizesEbx, ExtendedEcx, ExtendedEdx, Leaf1Ecx, Leaf1Edx, Leaf7Ebx, Leaf7Ecx, Leaf7Edx,
    ParavirtFeatures, XsaveFeatures,
};

/// Leaf numbers.
mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHES: u32 = 4;
    pub const POWER: u32 = 6;
    pub const STRUCTURED: u32 = 7;
    pub const TOPOLOGY: u32 = 0xb;
    pub const XSAVE: u32 = 0xd;
    pub const TSC: u32 = 0x15;
    pub const FREQUENCY: u32 = 0x16;
    pub const HYPERVISOR: u32 = 0x4000_0000;
    pub const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
    pub const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    pub const EXTENDED: u32 = 0x8000_0000;
    pub const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub const BRAND: u32 = 0x8000_0002;
    pub const BRAND_LAST: u32 = 0x8000_0004;
    pub const AMD_L1: u32 = 0x8000_0005;
    pub const AMD_L2: u32 = 0x8000_0006;
    pub const ADVANCED_POWER: u32 = 0x8000_0007;
    pub const ADDRESS_SIZES: u32 = 0x8000_0008;
}

/// Bits of EDX that AMD repeats from leaf 1 in leaf 0x8000_0001 (where the bit means the same).
const SHARED_EDX: u32 = 0x0183_f3ff;
/// Invariant TSC: leaf 0x8000_0007, EDX.
const INVARIANT_TSC: u32 = 1 << 8;
/// Always-running APIC timer: leaf 6, EAX.
const ARAT: u32 = 1 << 2;
/// EFER.LMSLE does not exist: leaf 0x8000_0008, EBX. Processors without this bit have segment limits in long mode.
const LMSLE_UNSUPPORTED: u32 = 1 << 20;
/// State components that guests may enable: x87, SSE, AVX and AVX-512.
pub const XCR0_OFFERED: u64 = 0xe7;
/// The three AVX-512 components.
const XCR0_AVX512: u64 = 0xe0;
/// AVX's upper halves.
const XCR0_AVX: u64 = 4;
/// Legacy region and header of an XSAVE area, in bytes.
const XSAVE_HEADER_END: u32 = 576;

/// The facts about the vCPU that the processor's own CPUID does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidConfig {
    /// APIC ID of the vCPU.
    pub apic_id: u32,
    /// Physical address bits offered at most (the second-stage tables' reach).
    pub physical_bits: u8,
    /// Whether the TSC runs at one pace, always.
    pub invariant_tsc: bool,
    /// Ticks of the TSC in a second, which are those of the local APIC's timer.
    pub tsc_hz: u64,
    /// Components of XCR0 that the vCPU's save area has room for; cut down to [`XCR0_OFFERED`].
    pub xcr0: u64,
    /// Whether IA32_TSC_AUX is switched with the vCPU: offers RDTSCP and RDPID.
    pub tsc_aux: bool,
    /// Whether IA32_ARCH_CAPABILITIES tells the guest which faults its processor does not have.
    pub arch_capabilities: bool,
}

/// Guest registers that CPUID depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidState {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

struct Entry {
    leaf: u32,
    /// `None` where the leaf has no sub-leaves.
    subleaf: Option<u32>,
    result: CpuidResult,
}

/// One component of the XSAVE area.
struct Component {
    bit: u64,
    size: u32,
    offset: u32,
    aligned: bool,
}

/// The answers to CPUID for one vCPU.
pub struct CpuidPolicy {
    /// Ascending by leaf and sub-leaf.
    entries: Vec<Entry>,
    components: Vec<Component>,
    xcr0: u64,
    apic_id: u32,
}

const ZERO: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

impl CpuidPolicy {
    /// Computes all leaves. `host` is the processor's CPUID: leaf and sub-leaf to result.
    pub fn new(config: &CpuidConfig, host: &dyn Fn(u32, u32) -> CpuidResult) -> Self {
        let max = host(leaf::VENDOR, 0).eax;
        let basic = |l: u32, s: u32| if l <= max { host(l, s) } else { ZERO };
        let mut policy =
            Self { entries: Vec::new(), components: Vec::new(), xcr0: 0, apic_id: config.apic_id };
        let features = features(config, host(leaf::FEATURES, 0));
        let has_xsave = features.ecx & Leaf1Ecx::XSAVE.bits() != 0;
        if has_xsave {
            let d0 = basic(leaf::XSAVE, 0);
            policy.xcr0 = (u64::from(d0.edx) << 32 | u64::from(d0.eax)) & config.xcr0 & XCR0_OFFERED;
        }
        let xcr0 = policy.xcr0;

        let vendor = host(leaf::VENDOR, 0);
        policy.add(leaf::VENDOR, None, CpuidResult { eax: leaf::FREQUENCY, ..vendor });
        policy.add(leaf::FEATURES, None, without_missing_avx(features, xcr0));
        // Leaf 4 ends at the first sub-leaf of type 0; its counts of sharing processors become "one".
        const CACHE_LEVELS: u32 = 4;
        for subleaf in 0..CACHE_LEVELS {
            let cache = basic(leaf::CACHES, subleaf);
            if cache.eax & 0x1f == 0 {
                break;
            }
            policy.add(leaf::CACHES, Some(subleaf), CpuidResult { eax: cache.eax & 0x3ff, ..cache });
        }
        policy.add(leaf::POWER, None, CpuidResult { eax: ARAT, ..ZERO });
        policy.add(leaf::STRUCTURED, Some(0), structured(config, xcr0, basic(leaf::STRUCTURED, 0)));
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        for (subleaf, kind) in [(0, SMT), (1, CORE)] {
            let topology = CpuidResult { eax: 0, ebx: 1, ecx: kind | subleaf, edx: config.apic_id };
            policy.add(leaf::TOPOLOGY, Some(subleaf), topology);
        }
        if has_xsave {
            policy.add_xsave(host);
        }
        policy.add_rates(config);
        policy.add_paravirt(config);
        policy.add_extended(config, features.edx, host);
        policy
    }

    fn add(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        self.entries.push(Entry { leaf, subleaf, result });
    }

    fn add_xsave(&mut self, host: &dyn Fn(u32, u32) -> CpuidResult) {
        let xcr0 = self.xcr0;
        let mut subleaves = Vec::new();
        for index in 2..64 {
            if xcr0 & 1 << index == 0 {
                continue;
            }
            let component = host(leaf::XSAVE, index);
            self.components.push(Component {
                bit: 1 << index,
                size: component.eax,
                offset: component.ebx,
                aligned: component.ecx & 2 != 0,
            });
            subleaves.push((index, CpuidResult { ecx: component.ecx & 2, edx: 0, ..component }));
        }
        let all = self.standard_size(xcr0);
        let d0 = CpuidResult { eax: xcr0 as u32, ebx: all, ecx: all, edx: (xcr0 >> 32) as u32 };
        self.add(leaf::XSAVE, Some(0), d0);
        let eax = host(leaf::XSAVE, 1).eax & XsaveFeatures::all().bits();
        self.add(leaf::XSAVE, Some(1), CpuidResult { eax, ..ZERO });
        for (index, result) in subleaves {
            self.add(leaf::XSAVE, Some(index), result);
        }
    }

    /// Leaves 0x15 and 0x16. The core crystal clock is what the local APIC's timer counts: here the TSC itself.
    fn add_rates(&mut self, config: &CpuidConfig) {
        const HZ_PER_MHZ: u64 = 1_000_000;
        let mhz = (config.tsc_hz / HZ_PER_MHZ) as u32 & 0xffff;
        let tsc = match u32::try_from(config.tsc_hz) {
            Ok(ecx) => CpuidResult { eax: 1, ebx: 1, ecx, edx: 0 },
            // It cannot be said.
            Err(_) => ZERO,
        };
        self.add(leaf::TSC, None, tsc);
        let frequency = CpuidResult { eax: mhz, ebx: mhz, ecx: mhz, edx: 0 };
        self.add(leaf::FREQUENCY, None, frequency);
    }

    fn add_paravirt(&mut self, config: &CpuidConfig) {
        let signature = CpuidResult {
            eax: leaf::HYPERVISOR_TIMING,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        };
        self.add(leaf::HYPERVISOR, None, signature);
        let features = CpuidResult { eax: ParavirtFeatures::all().bits(), ..ZERO };
        self.add(leaf::HYPERVISOR_FEATURES, None, features);
        // Rates of the TSC and of the local APIC's timer in kHz, as several hypervisors tell them.
        const HZ_PER_KHZ: u64 = 1000;
        let khz = u32::try_from(config.tsc_hz / HZ_PER_KHZ).unwrap_or(0);
        let timing = CpuidResult { eax: khz, ebx: khz, ..ZERO };
        self.add(leaf::HYPERVISOR_TIMING, None, timing);
    }

    fn add_extended(&mut self, config: &CpuidConfig, leaf1_edx: u32, host: &dyn Fn(u32, u32) -> CpuidResult) {
        let vendor = host(leaf::EXTENDED, 0);
        let extended = |l: u32| if l <= vendor.eax { host(l, 0) } else { ZERO };
        self.add(leaf::EXTENDED, None, CpuidResult { eax: leaf::ADDRESS_SIZES, ..vendor });
        let features = extended(leaf::EXTENDED_FEATURES);
        let mut offered = ExtendedEdx::all();
        offered.set(ExtendedEdx::RDTSCP, config.tsc_aux);
        self.add(
            leaf::EXTENDED_FEATURES,
            None,
            CpuidResult {
                eax: features.eax,
                ebx: 0,
                ecx: features.ecx & ExtendedEcx::all().bits(),
                edx: features.edx & (offered.bits() | leaf1_edx & SHARED_EDX),
            },
        );
        for number in (leaf::BRAND..=leaf::BRAND_LAST).chain([leaf::AMD_L1, leaf::AMD_L2]) {
            self.add(number, None, extended(number));
        }
        let edx = if config.invariant_tsc { INVARIANT_TSC } else { 0 };
        self.add(leaf::ADVANCED_POWER, None, CpuidResult { edx, ..ZERO });
        let sizes = extended(leaf::ADDRESS_SIZES);
        let physical = (sizes.eax & 0xff).min(u32::from(config.physical_bits));
        self.add(
            leaf::ADDRESS_SIZES,
            None,
            CpuidResult {
                eax: sizes.eax & 0xff00 | physical,
                ebx: sizes.ebx & AddressSizesEbx::all().bits() | LMSLE_UNSUPPORTED,
                ..ZERO
            },
        );
    }

    /// Size of a standard-format XSAVE area with the given components.
    fn standard_size(&self, xcr0: u64) -> u32 {
        let enabled = self.components.iter().filter(|c| xcr0 & c.bit != 0);
        enabled.map(|c| c.offset.saturating_add(c.size)).max().unwrap_or(0).max(XSAVE_HEADER_END)
    }

    /// Size of a compacted XSAVE area with the given components.
    fn compacted_size(&self, xcr0: u64) -> u32 {
        self.components.iter().filter(|c| xcr0 & c.bit != 0).fold(XSAVE_HEADER_END, |end, c| {
            let start = if c.aligned { end.saturating_add(63) & !63 } else { end };
            start.saturating_add(c.size)
        })
    }

    /// The components of XCR0 that the guest may enable; XSETBV of others is a general-protection fault.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// The answer to CPUID with `leaf` in EAX and `subleaf` in ECX.
    pub fn query(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> CpuidResult {
        let key = |e: &Entry| (e.leaf, e.subleaf.unwrap_or(subleaf));
        let Ok(at) = self.entries.binary_search_by(|e| key(e).cmp(&(leaf, subleaf))) else {
            return match leaf {
                // Sub-leaves beyond the last name themselves and the processor.
                leaf::TOPOLOGY => CpuidResult { ecx: subleaf & 0xff, edx: self.apic_id, ..ZERO },
                _ => ZERO,
            };
        };
        let mut result = self.entries[at].result;
        match (leaf, subleaf) {
            (leaf::FEATURES, _) if state.osxsave => result.ecx |= Leaf1Ecx::OSXSAVE.bits(),
            (leaf::XSAVE, 0) => result.ebx = self.standard_size(state.xcr0),
            (leaf::XSAVE, 1) if result.eax & XsaveFeatures::XSAVEC.bits() != 0 => {
                result.ebx = self.compacted_size(state.xcr0);
            }
            _ => {}
        }
        result
    }
}

/// Leaf 1.
fn features(config: &CpuidConfig, host: CpuidResult) -> CpuidResult {
    const ONE_PROCESSOR: u32 = 1 << 16;
    const CLFLUSH_SIZE: u32 = 0xff00;
    let provided = Leaf1Ecx::X2APIC | Leaf1Ecx::TSC_DEADLINE | Leaf1Ecx::HYPERVISOR;
    let offered = Leaf1Ecx::all() - Leaf1Ecx::OSXSAVE - provided;
    CpuidResult {
        eax: host.eax,
        ebx: host.ebx & CLFLUSH_SIZE | ONE_PROCESSOR | (config.apic_id & 0xff) << 24,
        ecx: host.ecx & offered.bits() | provided.bits(),
        // The APIC and the MTRRs are ours, whatever the processor has.
        edx: host.edx & Leaf1Edx::all().bits() | (Leaf1Edx::APIC | Leaf1Edx::MTRR).bits(),
    }
}

/// Leaf 1 without the instructions whose registers the guest cannot enable.
fn without_missing_avx(mut features: CpuidResult, xcr0: u64) -> CpuidResult {
    if xcr0 & XCR0_AVX == 0 {
        features.ecx &= !(Leaf1Ecx::AVX | Leaf1Ecx::FMA | Leaf1Ecx::F16C).bits();
    }
    features
}

/// Leaf 7.0.
fn structured(config: &CpuidConfig, xcr0: u64, host: CpuidResult) -> CpuidResult {
    const AVX512_EBX: Leaf7Ebx = Leaf7Ebx::AVX512F
        .union(Leaf7Ebx::AVX512DQ)
        .union(Leaf7Ebx::AVX512_IFMA)
        .union(Leaf7Ebx::AVX512CD)
        .union(Leaf7Ebx::AVX512BW)
        .union(Leaf7Ebx::AVX512VL);
    const AVX512_ECX: Leaf7Ecx = Leaf7Ecx::AVX512_VBMI
        .union(Leaf7Ecx::AVX512_VBMI2)
        .union(Leaf7Ecx::AVX512_VNNI)
        .union(Leaf7Ecx::AVX512_BITALG)
        .union(Leaf7Ecx::AVX512_VPOPCNTDQ);
    let (mut ebx, mut ecx) = (Leaf7Ebx::all(), Leaf7Ecx::all());
    if xcr0 & XCR0_AVX == 0 {
        ebx -= Leaf7Ebx::AVX2;
        ecx -= Leaf7Ecx::VAES | Leaf7Ecx::VPCLMULQDQ;
    }
    if xcr0 & XCR0_AVX512 != XCR0_AVX512 {
        ebx -= AVX512_EBX;
        ecx -= AVX512_ECX;
    }
    ecx.set(Leaf7Ecx::RDPID, config.tsc_aux);
    let mut edx = Leaf7Edx::all();
    edx.set(Leaf7Edx::ARCH_CAPABILITIES, config.arch_capabilities);
    CpuidResult {
        // The only sub-leaf.
        eax: 0,
        ebx: host.ebx & ebx.bits(),
        ecx: host.ecx & ecx.bits(),
        edx: host.edx & edx.bits(),
    }
}

#[cfg(test)]
mod tests;
