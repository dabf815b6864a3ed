// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;

const CONFIG: CpuidConfig = CpuidConfig {
    apic_id: 0,
    physical_bits: 40,
    invariant_tsc: true,
    tsc_hz: 2_345_678_901,
    xcr0: 0xff,
    tsc_aux: false,
    arch_capabilities: true,
};
const STATE: CpuidState = CpuidState { osxsave: false, xcr0: 1 };

/// A processor with every feature bit set.
fn generous(leaf: u32, subleaf: u32) -> CpuidResult {
    const ONES: CpuidResult = CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    match (leaf, subleaf) {
        (leaf::VENDOR, _) => CpuidResult { eax: 0x20, ..ONES },
        (leaf::EXTENDED, _) => CpuidResult { eax: 0x8000_0021, ..ONES },
        (leaf::XSAVE, 2) => CpuidResult { eax: 256, ebx: 576, ..ZERO },
        (leaf::XSAVE, 5) => CpuidResult { eax: 64, ebx: 1088, ..ZERO },
        (leaf::XSAVE, 6) => CpuidResult { eax: 512, ebx: 1152, ..ZERO },
        (leaf::XSAVE, 7) => CpuidResult { eax: 1024, ebx: 1664, ecx: 2, ..ZERO },
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
    assert_eq!(one.ecx & (1 << 21 | 1 << 24 | 1 << 31), 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(query(&policy, 0x8000_0001, 0).ecx & (1 << 2 | 1 << 22), 0, "SVM, TOPOEXT");
    assert_eq!(query(&policy, 0x8000_0001, 0).edx & 1 << 27, 0, "RDTSCP without TSC_AUX");
    let seven = query(&policy, 7, 0);
    assert_eq!(seven.ecx & (1 << 29 | 1 << 16 | 1 << 3 | 1 << 22), 0, "ENQCMD, LA57, PKU, RDPID");
    assert_eq!(query(&policy, 0x8000_0008, 0).ebx & 1 << 20, 1 << 20, "no LMSLE");
    assert_eq!(seven.ecx & (3 << 27), 3 << 27, "MOVDIRI, MOVDIR64B");
    assert_eq!(seven.edx & (0b111 << 26 | 1 << 30 | 1 << 31), 0, "controls of speculation");
    let without = CpuidPolicy::new(&CpuidConfig { arch_capabilities: false, ..CONFIG }, &generous);
    let told = [&policy, &without].map(|policy| query(policy, 7, 0).edx >> 29 & 1);
    assert_eq!(told, [1, 0], "ARCH_CAPABILITIES where its register is given");
    for (leaf, subleaf) in [(5, 0), (7, 1), (0xa, 0), (0xf, 0), (0x14, 0), (0x8000_000a, 0), (0xd, 9)] {
        assert_eq!(query(&policy, leaf, subleaf), ZERO, "{leaf:#x}.{subleaf}");
    }
}

#[test]
fn nothing_is_invented_on_a_processor_without_features() {
    let policy = CpuidPolicy::new(&CONFIG, &|_, _| ZERO);
    assert_eq!(query(&policy, 0, 0).eax, leaf::FREQUENCY);
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
    assert_eq!(policy.query(1, 0, &CpuidState { osxsave: true, xcr0: 1 }).ecx & 1 << 27, 1 << 27);

    let narrow = CpuidPolicy::new(&CpuidConfig { xcr0: 7, ..CONFIG }, &generous);
    assert_eq!(query(&narrow, 7, 0).ebx & 1 << 16, 0);
    assert_eq!(query(&narrow, 7, 0).ebx & 1 << 5, 1 << 5);
    let none = CpuidPolicy::new(&CpuidConfig { xcr0: 3, ..CONFIG }, &generous);
    assert_eq!(query(&none, 1, 0).ecx & 1 << 28, 0);
}

#[test]
fn topology_and_signature_read_as_linux_expects() {
    let policy = CpuidPolicy::new(&CONFIG, &generous);
    assert_eq!(query(&policy, 0xb, 0), CpuidResult { eax: 0, ebx: 1, ecx: 0x100, edx: 0 });
    assert_eq!(query(&policy, 0xb, 1), CpuidResult { eax: 0, ebx: 1, ecx: 0x201, edx: 0 });
    assert_eq!(query(&policy, 0xb, 7), CpuidResult { ecx: 7, ..ZERO });
    assert_eq!(query(&policy, 0x4000_0000, 5).ebx.to_le_bytes(), *b"KVMK");
    assert_eq!(query(&policy, 0x4000_0001, 0).eax, 1 << 1 | 1 << 3 | 1 << 6 | 1 << 24);
    assert_eq!(query(&policy, 0x8000_0008, 0).eax & 0xff, 40);
    assert_eq!(query(&policy, 0x8000_0007, 0).edx, 1 << 8);
    assert_eq!(query(&policy, 1, 0).ebx >> 16, 1);
}

#[test]
fn the_rate_of_the_tsc_is_told_in_every_way_that_kernels_look_for_it() {
    let policy = CpuidPolicy::new(&CONFIG, &|_, _| ZERO);
    let CpuidResult { eax, ebx, ecx, .. } = query(&policy, 0x15, 0);
    assert_eq!(u64::from(ecx) * u64::from(ebx) / u64::from(eax), CONFIG.tsc_hz);
    assert_eq!(query(&policy, 0x16, 0).eax, 2345);
    assert!(query(&policy, 0, 0).eax >= 0x16 && query(&policy, 0x4000_0000, 0).eax >= 0x4000_0010);
    let timing = query(&policy, 0x4000_0010, 0);
    assert_eq!((timing.eax, timing.ebx), (2_345_678, 2_345_678));
    let fast = CpuidConfig { tsc_hz: 5_000_000_000, ..CONFIG };
    let policy = CpuidPolicy::new(&fast, &|_, _| ZERO);
    assert_eq!(query(&policy, 0x15, 0), ZERO, "more than 32 bits");
    assert_eq!(query(&policy, 0x4000_0010, 0).eax, 5_000_000);
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
