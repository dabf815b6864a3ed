// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUID tells a guest.
//!
//! **Principle.** An allow-list: a feature bit reaches the guest only if the processor has it *and* it is
//! named here; a leaf that is not named reads as zero. What the hypervisor itself provides (x2APIC,
//! TSC-deadline timer, the clock) is added. All leaves are computed once; an exit is a look-up.
//!
//! Source: AMD APM volume 3, appendix E; Intel SDM volume 2A, CPUID; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst` for the paravirtual leaves.

use alloc::vec::Vec;
pub use core::arch::x86_64::CpuidResult;

use bitflags::bitflags;

/// Leaf numbers.
mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHES: u32 = 4;
    pub const POWER: u32 = 6;
    pub const STRUCTURED: u32 = 7;
    pub const TOPOLOGY: u32 = 0xb;
    pub const XSAVE: u32 = 0xd;
    pub const HYPERVISOR: u32 = 0x4000_0000;
    pub const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
    pub const EXTENDED: u32 = 0x8000_0000;
    pub const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub const BRAND: u32 = 0x8000_0002;
    pub const BRAND_LAST: u32 = 0x8000_0004;
    pub const AMD_L1: u32 = 0x8000_0005;
    pub const AMD_L2: u32 = 0x8000_0006;
    pub const ADVANCED_POWER: u32 = 0x8000_0007;
    pub const ADDRESS_SIZES: u32 = 0x8000_0008;
}

bitflags! {
    /// Leaf 1, EDX.
    #[derive(Clone, Copy)]
    struct Leaf1Edx: u32 {
        const FPU = 1;
        const VME = 1 << 1;
        const DE = 1 << 2;
        const PSE = 1 << 3;
        const TSC = 1 << 4;
        const MSR = 1 << 5;
        const PAE = 1 << 6;
        const CX8 = 1 << 8;
        const APIC = 1 << 9;
        const SEP = 1 << 11;
        const MTRR = 1 << 12;
        const PGE = 1 << 13;
        const CMOV = 1 << 15;
        const PAT = 1 << 16;
        const PSE36 = 1 << 17;
        const CLFSH = 1 << 19;
        const MMX = 1 << 23;
        const FXSR = 1 << 24;
        const SSE = 1 << 25;
        const SSE2 = 1 << 26;
    }

    /// Leaf 1, ECX. Not offered: MONITOR, VMX, DTES64 and other debugging, PDCM.
    #[derive(Clone, Copy)]
    struct Leaf1Ecx: u32 {
        const SSE3 = 1;
        const PCLMULQDQ = 1 << 1;
        const SSSE3 = 1 << 9;
        const FMA = 1 << 12;
        const CX16 = 1 << 13;
        const PCID = 1 << 17;
        const SSE4_1 = 1 << 19;
        const SSE4_2 = 1 << 20;
        const X2APIC = 1 << 21;
        const MOVBE = 1 << 22;
        const POPCNT = 1 << 23;
        const TSC_DEADLINE = 1 << 24;
        const AES = 1 << 25;
        const XSAVE = 1 << 26;
        const OSXSAVE = 1 << 27;
        const AVX = 1 << 28;
        const F16C = 1 << 29;
        const RDRAND = 1 << 30;
        const HYPERVISOR = 1 << 31;
    }

    /// Leaf 7.0, EBX. Not offered: TSC_ADJUST, SGX, HLE, RTM, MPX, PQM, PT.
    #[derive(Clone, Copy)]
    struct Leaf7Ebx: u32 {
        const FSGSBASE = 1;
        const BMI1 = 1 << 3;
        const AVX2 = 1 << 5;
        const FDP_EXCPTN_ONLY = 1 << 6;
        const SMEP = 1 << 7;
        const BMI2 = 1 << 8;
        const ERMS = 1 << 9;
        const INVPCID = 1 << 10;
        const ZERO_FCS_FDS = 1 << 13;
        const AVX512F = 1 << 16;
        const AVX512DQ = 1 << 17;
        const RDSEED = 1 << 18;
        const ADX = 1 << 19;
        const SMAP = 1 << 20;
        const AVX512_IFMA = 1 << 21;
        const CLFLUSHOPT = 1 << 23;
        const CLWB = 1 << 24;
        const AVX512CD = 1 << 28;
        const SHA = 1 << 29;
        const AVX512BW = 1 << 30;
        const AVX512VL = 1 << 31;
    }

    /// Leaf 7.0, ECX. Not offered: PKU, WAITPKG, CET_SS, LA57, ENQCMD (which needs a PASID of the guest's
    /// own).
    #[derive(Clone, Copy)]
    struct Leaf7Ecx: u32 {
        const AVX512_VBMI = 1 << 1;
        const UMIP = 1 << 2;
        const AVX512_VBMI2 = 1 << 6;
        const GFNI = 1 << 8;
        const VAES = 1 << 9;
        const VPCLMULQDQ = 1 << 10;
        const AVX512_VNNI = 1 << 11;
        const AVX512_BITALG = 1 << 12;
        const AVX512_VPOPCNTDQ = 1 << 14;
        const RDPID = 1 << 22;
        const MOVDIRI = 1 << 27;
        const MOVDIR64B = 1 << 28;
    }

    /// Leaf 7.0, EDX.
    #[derive(Clone, Copy)]
    struct Leaf7Edx: u32 {
        const FSRM = 1 << 4;
    }

    /// Leaf 0xD.1, EAX. Not offered: XSAVES, which has state behind IA32_XSS.
    #[derive(Clone, Copy)]
    struct XsaveFeatures: u32 {
        const XSAVEOPT = 1;
        const XSAVEC = 1 << 1;
        const XGETBV_ECX1 = 1 << 2;
    }

    /// Leaf 0x8000_0001, ECX. Not offered: SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, TOPOEXT, counters.
    #[derive(Clone, Copy)]
    struct ExtendedEcx: u32 {
        const LAHF_LM = 1;
        const ABM = 1 << 5;
        const SSE4A = 1 << 6;
        const MISALIGNSSE = 1 << 7;
        const PREFETCHW = 1 << 8;
    }

    /// Leaf 0x8000_0001, EDX, beside the bits it shares with leaf 1.
    #[derive(Clone, Copy)]
    struct ExtendedEdx: u32 {
        const SYSCALL = 1 << 11;
        const NX = 1 << 20;
        const MMXEXT = 1 << 22;
        const FXSR_OPT = 1 << 25;
        const PAGE1GB = 1 << 26;
        const RDTSCP = 1 << 27;
        const LM = 1 << 29;
        const THREEDNOWEXT = 1 << 30;
        const THREEDNOW = 1 << 31;
    }

    /// Leaf 0x8000_0008, EBX.
    #[derive(Clone, Copy)]
    struct AddressSizesEbx: u32 {
        const CLZERO = 1;
        const XSAVEERPTR = 1 << 2;
    }

    /// Leaf 0x4000_0001, EAX.
    #[derive(Clone, Copy)]
    struct ParavirtFeatures: u32 {
        /// Port delays are not needed: saves the writes to port 0x80.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock of [`pvclock`](super::pvclock) at its present MSRs.
        const CLOCKSOURCE2 = 1 << 3;
        /// Its readings agree on all vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}

/// Bits of EDX that AMD repeats from leaf 1 in leaf 0x8000_0001 (where the bit means the same).
const SHARED_EDX: u32 = 0x0183_f3ff;
/// Invariant TSC: leaf 0x8000_0007, EDX.
const INVARIANT_TSC: u32 = 1 << 8;
/// Always-running APIC timer: leaf 6, EAX.
const ARAT: u32 = 1 << 2;
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
    /// Components of XCR0 that the vCPU's save area has room for; cut down to [`XCR0_OFFERED`].
    pub xcr0: u64,
    /// Whether IA32_TSC_AUX is switched with the vCPU: offers RDTSCP and RDPID.
    pub tsc_aux: bool,
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
}

const ZERO: CpuidResult = CpuidResult {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
};

impl CpuidPolicy {
    /// Computes all leaves. `host` is the processor's CPUID: leaf and sub-leaf to result.
    pub fn new(config: &CpuidConfig, host: &dyn Fn(u32, u32) -> CpuidResult) -> Self {
        let max = host(leaf::VENDOR, 0).eax;
        let basic = |l: u32, s: u32| if l <= max { host(l, s) } else { ZERO };
        let mut policy = Self {
            entries: Vec::new(),
            components: Vec::new(),
            xcr0: 0,
        };
        let features = features(config, host(leaf::FEATURES, 0));
        let has_xsave = features.ecx & Leaf1Ecx::XSAVE.bits() != 0;
        if has_xsave {
            let d0 = basic(leaf::XSAVE, 0);
            policy.xcr0 = (u64::from(d0.edx) << 32 | u64::from(d0.eax)) & config.xcr0 & XCR0_OFFERED;
        }
        let xcr0 = policy.xcr0;

        let vendor = host(leaf::VENDOR, 0);
        let highest = if has_xsave { leaf::XSAVE } else { leaf::TOPOLOGY };
        policy.add(
            leaf::VENDOR,
            None,
            CpuidResult {
                eax: highest,
                ..vendor
            },
        );
        policy.add(leaf::FEATURES, None, without_missing_avx(features, xcr0));
        // Leaf 4 ends at the first sub-leaf of type 0; its counts of sharing processors become "one".
        const CACHE_LEVELS: u32 = 4;
        for subleaf in 0..CACHE_LEVELS {
            let cache = basic(leaf::CACHES, subleaf);
            if cache.eax & 0x1f == 0 {
                break;
            }
            policy.add(
                leaf::CACHES,
                Some(subleaf),
                CpuidResult {
                    eax: cache.eax & 0x3ff,
                    ..cache
                },
            );
        }
        policy.add(leaf::POWER, None, CpuidResult { eax: ARAT, ..ZERO });
        policy.add(
            leaf::STRUCTURED,
            Some(0),
            structured(config, xcr0, basic(leaf::STRUCTURED, 0)),
        );
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        for (subleaf, kind) in [(0, SMT), (1, CORE)] {
            let topology = CpuidResult {
                eax: 0,
                ebx: 1,
                ecx: kind | subleaf,
                edx: config.apic_id,
            };
            policy.add(leaf::TOPOLOGY, Some(subleaf), topology);
        }
        if has_xsave {
            policy.add_xsave(host);
        }
        policy.add_paravirt();
        policy.add_extended(config, features.edx, host);
        policy
    }

    fn add(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        self.entries.push(Entry {
            leaf,
            subleaf,
            result,
        });
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
            subleaves.push((
                index,
                CpuidResult {
                    ecx: component.ecx & 2,
                    edx: 0,
                    ..component
                },
            ));
        }
        let all = self.standard_size(xcr0);
        let d0 = CpuidResult {
            eax: xcr0 as u32,
            ebx: all,
            ecx: all,
            edx: (xcr0 >> 32) as u32,
        };
        self.add(leaf::XSAVE, Some(0), d0);
        let eax = host(leaf::XSAVE, 1).eax & XsaveFeatures::all().bits();
        self.add(leaf::XSAVE, Some(1), CpuidResult { eax, ..ZERO });
        for (index, result) in subleaves {
            self.add(leaf::XSAVE, Some(index), result);
        }
    }

    fn add_paravirt(&mut self) {
        let signature = CpuidResult {
            eax: leaf::HYPERVISOR_FEATURES,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        };
        self.add(leaf::HYPERVISOR, None, signature);
        let features = CpuidResult {
            eax: ParavirtFeatures::all().bits(),
            ..ZERO
        };
        self.add(leaf::HYPERVISOR_FEATURES, None, features);
    }

    fn add_extended(&mut self, config: &CpuidConfig, leaf1_edx: u32, host: &dyn Fn(u32, u32) -> CpuidResult) {
        let vendor = host(leaf::EXTENDED, 0);
        let extended = |l: u32| if l <= vendor.eax { host(l, 0) } else { ZERO };
        self.add(
            leaf::EXTENDED,
            None,
            CpuidResult {
                eax: leaf::ADDRESS_SIZES,
                ..vendor
            },
        );
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
                ebx: sizes.ebx & AddressSizesEbx::all().bits(),
                ..ZERO
            },
        );
    }

    /// Size of a standard-format XSAVE area with the given components.
    fn standard_size(&self, xcr0: u64) -> u32 {
        let enabled = self.components.iter().filter(|c| xcr0 & c.bit != 0);
        enabled
            .map(|c| c.offset.saturating_add(c.size))
            .max()
            .unwrap_or(0)
            .max(XSAVE_HEADER_END)
    }

    /// Size of a compacted XSAVE area with the given components.
    fn compacted_size(&self, xcr0: u64) -> u32 {
        self.components
            .iter()
            .filter(|c| xcr0 & c.bit != 0)
            .fold(XSAVE_HEADER_END, |end, c| {
                let start = if c.aligned {
                    end.saturating_add(63) & !63
                } else {
                    end
                };
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
            // Topology sub-leaves beyond the last name the sub-leaf and the processor, as leaf 0xB must.
            let id = self
                .entries
                .iter()
                .find(|e| e.leaf == leaf::TOPOLOGY)
                .map_or(0, |e| e.result.edx);
            return match leaf {
                leaf::TOPOLOGY => CpuidResult {
                    ecx: subleaf & 0xff,
                    edx: id,
                    ..ZERO
                },
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
    CpuidResult {
        // The only sub-leaf.
        eax: 0,
        ebx: host.ebx & ebx.bits(),
        ecx: host.ecx & ecx.bits(),
        edx: host.edx & Leaf7Edx::all().bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: CpuidConfig = CpuidConfig {
        apic_id: 0,
        physical_bits: 40,
        invariant_tsc: true,
        xcr0: 0xff,
        tsc_aux: false,
    };
    const STATE: CpuidState = CpuidState {
        osxsave: false,
        xcr0: 1,
    };

    /// A processor with every feature bit set.
    fn generous(leaf: u32, subleaf: u32) -> CpuidResult {
        const ONES: CpuidResult = CpuidResult {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        match (leaf, subleaf) {
            (leaf::VENDOR, _) => CpuidResult { eax: 0x20, ..ONES },
            (leaf::EXTENDED, _) => CpuidResult {
                eax: 0x8000_0021,
                ..ONES
            },
            (leaf::XSAVE, 2) => CpuidResult {
                eax: 256,
                ebx: 576,
                ..ZERO
            },
            (leaf::XSAVE, 5) => CpuidResult {
                eax: 64,
                ebx: 1088,
                ..ZERO
            },
            (leaf::XSAVE, 6) => CpuidResult {
                eax: 512,
                ebx: 1152,
                ..ZERO
            },
            (leaf::XSAVE, 7) => CpuidResult {
                eax: 1024,
                ebx: 1664,
                ecx: 2,
                ..ZERO
            },
            _ => ONES,
        }
    }

    fn query(policy: &CpuidPolicy, leaf: u32, subleaf: u32) -> CpuidResult {
        policy.query(leaf, subleaf, &STATE)
    }

    #[test]
    fn what_must_not_be_offered_is_not_even_on_a_processor_with_everything() {
        let policy = CpuidPolicy::new(&CONFIG, &generous);
        let one = query(&policy, 1, 0);
        assert_eq!(one.ecx & (1 << 3 | 1 << 5), 0, "MONITOR, VMX");
        assert_eq!(
            one.ecx & (1 << 21 | 1 << 24 | 1 << 31),
            1 << 21 | 1 << 24 | 1 << 31
        );
        assert_eq!(
            query(&policy, 0x8000_0001, 0).ecx & (1 << 2 | 1 << 22),
            0,
            "SVM, TOPOEXT"
        );
        assert_eq!(
            query(&policy, 0x8000_0001, 0).edx & 1 << 27,
            0,
            "RDTSCP without TSC_AUX"
        );
        let seven = query(&policy, 7, 0);
        assert_eq!(
            seven.ecx & (1 << 29 | 1 << 16 | 1 << 3 | 1 << 22),
            0,
            "ENQCMD, LA57, PKU, RDPID"
        );
        assert_eq!(seven.ecx & (3 << 27), 3 << 27, "MOVDIRI, MOVDIR64B");
        assert_eq!(seven.edx & (1 << 26 | 1 << 29), 0, "SPEC_CTRL, ARCH_CAPABILITIES");
        for (leaf, subleaf) in [
            (5, 0),
            (7, 1),
            (0xa, 0),
            (0xf, 0),
            (0x14, 0),
            (0x8000_000a, 0),
            (0xd, 9),
        ] {
            assert_eq!(query(&policy, leaf, subleaf), ZERO, "{leaf:#x}.{subleaf}");
        }
    }

    #[test]
    fn nothing_is_invented_on_a_processor_without_features() {
        let policy = CpuidPolicy::new(&CONFIG, &|_, _| ZERO);
        assert_eq!(query(&policy, 0, 0).eax, leaf::TOPOLOGY);
        assert_eq!(query(&policy, 1, 0).ecx & 1 << 26, 0);
        assert_eq!(query(&policy, 7, 0), ZERO);
        assert_eq!((query(&policy, 0xd, 0), policy.xcr0()), (ZERO, 0));
        assert_eq!(query(&policy, 0x8000_0001, 0), ZERO);
    }

    #[test]
    fn xsave_sizes_follow_xcr0_and_avx512_needs_its_state() {
        let policy = CpuidPolicy::new(&CONFIG, &generous);
        assert_eq!(policy.xcr0(), 0xe7);
        let at = |xcr0| {
            let state = CpuidState { osxsave: true, xcr0 };
            (policy.query(0xd, 0, &state).ebx, policy.query(0xd, 1, &state).ebx)
        };
        assert_eq!(at(1), (576, 576));
        assert_eq!(at(7), (832, 832));
        assert_eq!(at(0xe7), (2688, 832 + 64 + 512 + 1024));
        assert_eq!(query(&policy, 0xd, 0).ecx, 2688);
        assert_eq!(
            policy
                .query(
                    1,
                    0,
                    &CpuidState {
                        osxsave: true,
                        xcr0: 1
                    }
                )
                .ecx
                & 1 << 27,
            1 << 27
        );

        let narrow = CpuidPolicy::new(&CpuidConfig { xcr0: 7, ..CONFIG }, &generous);
        assert_eq!(query(&narrow, 7, 0).ebx & 1 << 16, 0);
        assert_eq!(query(&narrow, 7, 0).ebx & 1 << 5, 1 << 5);
        let none = CpuidPolicy::new(&CpuidConfig { xcr0: 3, ..CONFIG }, &generous);
        assert_eq!(query(&none, 1, 0).ecx & 1 << 28, 0);
    }

    #[test]
    fn topology_and_signature_read_as_linux_expects() {
        let policy = CpuidPolicy::new(&CONFIG, &generous);
        assert_eq!(
            query(&policy, 0xb, 0),
            CpuidResult {
                eax: 0,
                ebx: 1,
                ecx: 0x100,
                edx: 0
            }
        );
        assert_eq!(
            query(&policy, 0xb, 1),
            CpuidResult {
                eax: 0,
                ebx: 1,
                ecx: 0x201,
                edx: 0
            }
        );
        assert_eq!(query(&policy, 0xb, 7), CpuidResult { ecx: 7, ..ZERO });
        assert_eq!(query(&policy, 0x4000_0000, 5).ebx.to_le_bytes(), *b"KVMK");
        assert_eq!(query(&policy, 0x4000_0001, 0).eax, 1 << 1 | 1 << 3 | 1 << 24);
        assert_eq!(query(&policy, 0x8000_0008, 0).eax & 0xff, 40);
        assert_eq!(query(&policy, 0x8000_0007, 0).edx, 1 << 8);
        assert_eq!(query(&policy, 1, 0).ebx >> 16, 1);
    }

    proptest! {
        #[test]
        fn every_leaf_is_found_whatever_the_subleaf(leaf in any::<u32>(), subleaf in any::<u32>()) {
            let policy = CpuidPolicy::new(&CONFIG, &generous);
            policy.query(leaf, subleaf, &CpuidState { osxsave: true, xcr0: u64::MAX });
            for entry in policy.entries.iter().filter(|e| e.subleaf.is_none()) {
                prop_assert_eq!(query(&policy, entry.leaf, subleaf).eax, entry.result.eax);
            }
        }
    }
}
