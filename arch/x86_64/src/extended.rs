// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processor state that no control block holds: x87, SSE, AVX and AVX-512, XCR0, debug address registers and
//! IA32_TSC_AUX.
//!
//! **Principle.** The hypervisor is built without floating point, so a vCPU's state stays in the registers
//! across exits; it is exchanged only when the vCPU leaves its pCPU or comes back. Restoring writes every
//! component that any guest may enable, so nothing of the last guest is left for the next; FNINIT before it does
//! so for the x87 instruction and data pointers, which AMD processors restore only where an x87 exception
//! is pending.
//!
//! Source: Intel SDM volume 1, chapter 13 "Managing State Using the XSAVE Feature Set"; APM volume 3, appendix
//! E.4.7 (CPUID 8000_0008 EBX, RstrFpErrPtrs).

mod vectors;

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::ptr::NonNull;

use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use crate::guest::cpuid::XCR0_OFFERED;
use vectors::LiveVectors;

const IA32_TSC_AUX: u32 = 0xc000_0103;
/// Alignment that XSAVE asks for.
const AREA_ALIGN: usize = 64;
/// FCW and MXCSR after reset, and where they are in the area.
const FCW_RESET: u16 = 0x37f;
const FCW_OFFSET: usize = 0;
const MXCSR_RESET: u32 = 0x1f80;
const MXCSR_OFFSET: usize = 24;
/// XCR0 after reset: x87 only.
const XCR0_RESET: u64 = 1;
const XCR0_SSE: u64 = 1 << 1;
const XCR0_AVX: u64 = 1 << 2;
const XCR0_AVX512: u64 = 7 << 5;
/// CPUID leaf of XSAVE.
const CPUID_XSAVE: u32 = 0xd;

/// What this processor's extended state is, the same for all vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtendedFeatures {
    /// Components of XCR0 that the processor has and a guest may be given.
    pub xcr0: u64,
    /// Whether IA32_TSC_AUX exists.
    pub tsc_aux: bool,
}

impl ExtendedFeatures {
    /// Looks at the processor. XSAVE was checked for at start.
    pub fn detect() -> Self {
        let xsave = __cpuid_count(CPUID_XSAVE, 0);
        const EXTENDED_FEATURES: u32 = 0x8000_0001;
        const RDTSCP: u32 = 1 << 27;
        Self {
            xcr0: (u64::from(xsave.edx) << 32 | u64::from(xsave.eax)) & XCR0_OFFERED,
            tsc_aux: __cpuid_count(EXTENDED_FEATURES, 0).edx & RDTSCP != 0,
        }
    }
}

/// An XSAVE area.
#[derive(Debug)]
struct Area {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory.
unsafe impl Send for Area {}

impl Area {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.next_multiple_of(AREA_ALIGN), AREA_ALIGN)
            .unwrap_or(Layout::new::<[u8; 4096]>());
        // SAFETY: the size is not zero: an area has at least 576 bytes.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        // SAFETY: both offsets lie in the legacy region, and are aligned.
        unsafe {
            start.add(FCW_OFFSET).cast::<u16>().write(FCW_RESET);
            start.add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_RESET);
        }
        Self { start, layout }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it was allocated, all of it zeroed, with this size, and is borrowed with `self`.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and nobody else has it.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Extended state of one vCPU.
#[derive(Debug)]
pub struct Extended {
    features: ExtendedFeatures,
    area: Area,
    xcr0: u64,
    tsc_aux: u64,
    /// DR0 to DR3.
    debug: [u64; 4],
}

/// Lets this pCPU manage extended state. What is not a guest's, and no write of a guest's reaches, is off, whatever the
/// firmware left: supervisor components, components that fault at first use, the PASID of ENQCMD.
///
/// # Safety
/// The processor has XSAVE.
pub unsafe fn enable() {
    // SAFETY: the bits exist where XSAVE does, and change nothing for code that uses no floating point. The registers are
    // written where CPUID says that they exist; zero is what they are after reset.
    unsafe {
        Cr4::update(|cr4| *cr4 |= Cr4Flags::OSFXSR | Cr4Flags::OSXSAVE);
        for msr in never_the_guests() {
            Msr::new(msr).write(0);
        }
    }
}

/// Registers beside XCR0 that this processor has, and that stay zero.
fn never_the_guests() -> impl Iterator<Item = u32> {
    const XSS: (u32, u32) = (0xda0, 1 << 3);
    const XFD: (u32, u32) = (0x1c4, 1 << 4);
    const PASID: u32 = 0xd93;
    /// Leaf 7, ECX.
    const ENQCMD: u32 = 1 << 29;
    let features = __cpuid_count(CPUID_XSAVE, 1).eax;
    let by_xsave = [XSS, XFD].into_iter().filter(move |(_, feature)| features & feature != 0);
    let enqcmd = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ecx & ENQCMD != 0;
    by_xsave.map(|(msr, _)| msr).chain(enqcmd.then_some(PASID))
}

/// Sets XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set, and the processor has all components of `value`.
unsafe fn write_xcr0(value: u64) {
    // SAFETY: by the contract.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, nomem));
    }
}

impl Extended {
    /// State after reset, for a guest that may use these features.
    pub fn new(features: ExtendedFeatures) -> Self {
        let size = __cpuid_count(CPUID_XSAVE, 0).ecx;
        Self {
            features,
            area: Area::new(size.max(576) as usize),
            xcr0: XCR0_RESET,
            tsc_aux: 0,
            debug: [0; 4],
        }
    }

    /// Puts the state into the registers. The pCPU must not hold another vCPU's state that is still wanted.
    ///
    /// # Safety
    /// CR4.OSXSAVE is set. Floating-point registers are the guests' alone.
    pub unsafe fn load(&mut self) {
        let mask = self.features.xcr0;
        // SAFETY: the mask holds what the processor has; the area is large enough for all its components,
        // aligned, and was zeroed or written by XSAVE. Debug registers without DR7 (in the control block) do
        // nothing.
        unsafe {
            write_xcr0(mask);
            asm!(
                "fninit",
                "xrstor64 [{area}]",
                area = in(reg) self.area.start.as_ptr(),
                in("eax") mask as u32,
                in("edx") (mask >> 32) as u32,
                options(nostack),
            );
            write_xcr0(self.xcr0);
            let [dr0, dr1, dr2, dr3] = self.debug;
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                 in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, options(nostack, nomem));
            if self.features.tsc_aux {
                Msr::new(IA32_TSC_AUX).write(self.tsc_aux);
            }
        }
    }

    /// Takes the state out of the registers.
    ///
    /// # Safety
    /// As for [`Extended::load`], which was the last to load on this pCPU.
    pub unsafe fn save(&mut self) {
        let mask = self.features.xcr0;
        // SAFETY: as in `load`.
        unsafe {
            write_xcr0(mask);
            self.xsave(mask);
            let [dr0, dr1, dr2, dr3] = &mut self.debug;
            asm!(
                "mov {}, dr0",
                "mov {}, dr1",
                "mov {}, dr2",
                "mov {}, dr3",
                out(reg) * dr0,
                out(reg) * dr1,
                out(reg) * dr2,
                out(reg) * dr3,
                options(nostack, nomem)
            );
        }
    }

    /// Writes components to the area.
    ///
    /// # Safety
    /// XCR0 has all of them.
    unsafe fn xsave(&mut self, mask: u64) {
        // SAFETY: the area is aligned, and large enough for every component that the processor has.
        unsafe {
            asm!(
                "xsave64 [{area}]",
                area = in(reg) self.area.start.as_ptr(),
                in("eax") mask as u32,
                in("edx") (mask >> 32) as u32,
                options(nostack),
            );
        }
    }

    /// Takes some components out of the registers, where they stay too.
    ///
    /// # Safety
    /// As for [`Extended::save`]; the components are among the guest's features.
    unsafe fn take_components(&mut self, mask: u64) {
        // SAFETY: as in `load`.
        unsafe {
            write_xcr0(self.features.xcr0);
            self.xsave(mask);
            write_xcr0(self.xcr0);
        }
    }

    /// Puts some components into the registers.
    ///
    /// # Safety
    /// As for [`Extended::load`]; the components are among the guest's features, without x87, and the area holds them.
    unsafe fn put_components(&mut self, mask: u64) {
        // SAFETY: as in `load`.
        unsafe {
            write_xcr0(self.features.xcr0);
            asm!(
                "xrstor64 [{area}]",
                area = in(reg) self.area.start.as_ptr(),
                in("eax") mask as u32,
                in("edx") (mask >> 32) as u32,
                options(nostack),
            );
            write_xcr0(self.xcr0);
        }
    }

    /// The vector registers, for instructions that are carried out for the guest.
    ///
    /// # Safety
    /// The state was loaded on this pCPU, and stays so while the registers are borrowed.
    pub unsafe fn vectors(&mut self) -> LiveVectors<'_> {
        // SAFETY: the same contract.
        unsafe { LiveVectors::new(self) }
    }

    /// XCR0 as the guest set it.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// XSETBV of XCR0 by the guest, whose state is loaded. False where it must get a general-protection
    /// fault.
    pub fn set_xcr0(&mut self, value: u64) -> bool {
        if !valid_xcr0(value, self.features.xcr0) {
            return false;
        }
        self.xcr0 = value;
        // SAFETY: the value was checked against what the processor has.
        unsafe { write_xcr0(value) };
        true
    }

    /// IA32_TSC_AUX; `None` where it does not exist.
    pub fn tsc_aux(&self) -> Option<u64> {
        self.features.tsc_aux.then_some(self.tsc_aux)
    }

    /// Writes IA32_TSC_AUX for the guest, whose state is loaded. False where it does not exist or the value
    /// does not fit.
    pub fn set_tsc_aux(&mut self, value: u64) -> bool {
        if !self.features.tsc_aux || value > u64::from(u32::MAX) {
            return false;
        }
        self.tsc_aux = value;
        // SAFETY: the MSR exists.
        unsafe { Msr::new(IA32_TSC_AUX).write(value) };
        true
    }
}

/// Whether XSETBV takes the value (SDM 1, 13.3): x87 always, AVX needs SSE, AVX-512 is one and needs AVX.
fn valid_xcr0(value: u64, offered: u64) -> bool {
    let avx512 = value & XCR0_AVX512;
    value & !offered == 0
        && value & XCR0_RESET != 0
        && (value & XCR0_AVX == 0 || value & XCR0_SSE != 0)
        && (avx512 == 0 || (avx512 == XCR0_AVX512 && value & XCR0_AVX != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasidon_cpu::{Model, Processor};

    /// YMM15, which the compiler does not use for the code here, DR3 and IA32_TSC_AUX.
    fn registers() -> ([u64; 4], u64, u32) {
        // To zero it might take vector registers.
        let mut ymm15 = core::mem::MaybeUninit::<[u64; 4]>::uninit();
        let (dr3, aux);
        // SAFETY: room for all of it, at privilege level 0, with AVX in XCR0; the first instruction fills `ymm15`.
        unsafe {
            asm!("vmovdqu [{}], ymm15", in(reg) ymm15.as_mut_ptr(), options(nostack));
            asm!("mov {}, dr3", "rdtscp", out(reg) dr3, out("ecx") aux, out("eax") _, out("edx") _);
            (ymm15.assume_init(), dr3, aux)
        }
    }

    #[test]
    fn what_one_guest_leaves_in_registers_the_next_does_not_find_and_it_does_again() {
        const AVX: u64 = XCR0_RESET | XCR0_SSE | XCR0_AVX;
        let (left, pattern) = (0x1234_5678u64, [0x5a5a_5a5a_5a5a_5a5au64; 4]);
        for model in [Model::Ryzen, Model::SapphireRapids] {
            let seen = Processor::new(model).run(|| {
                let features = ExtendedFeatures::detect();
                let (mut first, mut second) = (Extended::new(features), Extended::new(features));
                // SAFETY: the processor has XSAVE; the code around uses no register that is looked at.
                unsafe {
                    enable();
                    let host = crate::cpu::read_xcr0();
                    first.load();
                    assert!(first.set_xcr0(AVX) && first.set_tsc_aux(7));
                    asm!("vmovdqu ymm15, [{}]", "mov dr3, {}", in(reg) &pattern, in(reg) left, options(nostack));
                    first.save();
                    second.load();
                    assert_eq!(crate::cpu::read_xcr0(), XCR0_RESET);
                    assert!(second.set_xcr0(AVX));
                    let by_second = registers();
                    second.save();
                    first.load();
                    let by_first = registers();
                    write_xcr0(host);
                    (by_second, by_first)
                }
            });
            let (by_second, by_first) = seen.unwrap();
            assert_eq!(by_second, ([0; 4], 0, 0), "{model:?}");
            assert_eq!(by_first, (pattern, left, 7), "{model:?}");
        }
    }

    #[test]
    fn what_the_firmware_left_on_is_off() {
        let found = Processor::new(Model::SapphireRapids).run(|| {
            const XSS: u32 = 0xda0;
            const PASID: u32 = 0xd93;
            /// CET's, which this model has.
            const USER_SHADOW_STACKS: u64 = 1 << 11;
            const VALID_PASID: u64 = 1 << 31 | 7;
            // SAFETY: the processor has XSAVE, and all that `never_the_guests` names.
            unsafe {
                for (msr, value) in [(XSS, USER_SHADOW_STACKS), (PASID, VALID_PASID)] {
                    Msr::new(msr).write(value);
                    assert_eq!(Msr::new(msr).read(), value);
                }
                enable();
                never_the_guests().map(|msr| (msr, Msr::new(msr).read())).collect::<Vec<_>>()
            }
        });
        assert_eq!(found.unwrap(), [(0xda0, 0), (0xd93, 0)], "this model has no XFD");
    }

    #[test]
    fn xcr0_follows_the_rules() {
        for (value, offered, valid) in [
            (1, 7, true),
            (7, 7, true),
            (0, 7, false),
            (6, 7, false),
            (5, 7, false),
            (7, 3, false),
            (0xe7, 0xe7, true),
            (0x67, 0xe7, false),
            (0xe3, 0xe7, false),
            (1 << 63 | 1, 0xe7, false),
        ] {
            assert_eq!(valid_xcr0(value, offered), valid, "{value:#x} of {offered:#x}");
        }
    }
}
