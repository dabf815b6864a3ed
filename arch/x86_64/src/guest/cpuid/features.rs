// SPDX-License-Identifier: MIT OR Apache-2.0
//! The allow-lists: every feature bit that a guest may see, by leaf and register. A bit that is not named
//! here does not reach a guest.

use bitflags::bitflags;

bitflags! {
    /// Leaf 1, EDX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf1Edx: u32 {
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
    pub(super) struct Leaf1Ecx: u32 {
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
    pub(super) struct Leaf7Ebx: u32 {
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
    pub(super) struct Leaf7Ecx: u32 {
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
    pub(super) struct Leaf7Edx: u32 {
        const FSRM = 1 << 4;
        /// IA32_ARCH_CAPABILITIES exists.
        const ARCH_CAPABILITIES = 1 << 29;
    }

    /// Leaf 0xD.1, EAX. Not offered: XSAVES, which has state behind IA32_XSS.
    #[derive(Clone, Copy)]
    pub(super) struct XsaveFeatures: u32 {
        const XSAVEOPT = 1;
        const XSAVEC = 1 << 1;
        const XGETBV_ECX1 = 1 << 2;
    }

    /// Leaf 0x8000_0001, ECX. Not offered: SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, TOPOEXT, counters.
    #[derive(Clone, Copy)]
    pub(super) struct ExtendedEcx: u32 {
        const LAHF_LM = 1;
        const ABM = 1 << 5;
        const SSE4A = 1 << 6;
        const MISALIGNSSE = 1 << 7;
        const PREFETCHW = 1 << 8;
    }

    /// Leaf 0x8000_0001, EDX, beside the bits it shares with leaf 1.
    #[derive(Clone, Copy)]
    pub(super) struct ExtendedEdx: u32 {
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
    pub(super) struct AddressSizesEbx: u32 {
        const CLZERO = 1;
        const XSAVEERPTR = 1 << 2;
    }

    /// Leaf 0x4000_0001, EAX.
    #[derive(Clone, Copy)]
    pub(super) struct ParavirtFeatures: u32 {
        /// Port delays are not needed: saves the writes to port 0x80.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock of [`pvclock`](crate::guest::pvclock) at its present MSRs.
        const CLOCKSOURCE2 = 1 << 3;
        /// Interrupts can be ended by [`pv_eoi`](crate::guest::pv_eoi).
        const PV_EOI = 1 << 6;
        /// Its readings agree on all vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}
