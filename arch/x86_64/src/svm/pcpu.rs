// SPDX-License-Identifier: MIT OR Apache-2.0
//! What SVM needs once per pCPU: the host save area, and the address space identifiers.
//!
//! **ASIDs.** Each pCPU hands out its own, upwards; when they run out, everything is flushed and a new
//! generation begins. A vCPU that comes to a pCPU with an older generation takes a new one. So an ASID is
//! never used for two nested tables without a flush in between, and most switches need none.
//!
//! Source: AMD APM volume 2, 15.16 "TLB Control", 15.30 "SVM Related MSRs".

use core::arch::x86_64::__cpuid;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::frames::Frames;
use x86_64::registers::model_specific::Msr;

use super::enter;

/// CPUID leaf of SVM: revision, number of ASIDs (EBX), features (EDX).
const CPUID_SVM: u32 = 0x8000_000a;
const FEATURE_NESTED_PAGING: u32 = 1 << 0;
const FEATURE_NEXT_RIP_SAVE: u32 = 1 << 3;
const FEATURE_FLUSH_BY_ASID: u32 = 1 << 6;
const FEATURE_DECODE_ASSISTS: u32 = 1 << 7;

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const EFER: u32 = 0xc000_0080;
/// EFER.SVME.
pub const EFER_SVME: u64 = 1 << 12;

/// What VMRUN is to flush (VMCB offset 05Ch).
mod tlb_control {
    pub const NOTHING: u32 = 0;
    pub const ALL: u32 = 1;
    pub const THIS_ASID: u32 = 3;
}

/// The ASIDs of one pCPU.
#[derive(Clone, Copy, Debug)]
pub struct Asids {
    generation: u64,
    next: u32,
    /// Number of ASIDs, with 0, the host's.
    count: u32,
}

/// An ASID of a vCPU on one pCPU, for one generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asid {
    pcpu: u32,
    generation: u64,
    /// The number; 0: none yet.
    pub number: u32,
}

impl Asids {
    pub(super) fn new(count: u32) -> Self {
        Self {
            generation: 1,
            next: 1,
            // One for a guest there is always.
            count: count.max(2),
        }
    }

    /// Renews `asid` where it is not of this pCPU and generation. Returns whether all translations must be
    /// flushed.
    fn renew(&mut self, pcpu: u32, asid: &mut Asid) -> bool {
        if asid.number != 0 && asid.pcpu == pcpu && asid.generation == self.generation {
            return false;
        }
        let exhausted = self.next >= self.count;
        if exhausted {
            self.generation += 1;
            self.next = 1;
        }
        *asid = Asid { pcpu, generation: self.generation, number: self.next };
        self.next += 1;
        exhausted
    }
}

/// What the processor tells about an intercepted instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Assists {
    /// Where the next instruction is.
    pub next_rip: bool,
    /// Operands of moves to and from control registers, and bytes of what met a nested page fault.
    pub decode: bool,
}

/// SVM on one pCPU.
#[derive(Debug)]
pub struct SvmPcpu {
    index: u32,
    pub(super) host_vmcb: HostPhys,
    pub(super) asids: Asids,
    pub(super) assists: Assists,
    pub(super) flush_by_asid: bool,
    /// Flush everything at the next entry.
    flush_all: bool,
}

impl SvmPcpu {
    /// Turns SVM on for the pCPU that calls. Its descriptor tables and GS base must be final.
    ///
    /// # Errors
    /// When there is no nested paging, the firmware has locked SVM off, or there is no memory for the save areas.
    pub fn enable(index: u32, frames: &Frames) -> Result<Self, Refusal> {
        let refuse = |why: &str, remedy: &str| Refusal::new(alloc::format!("pCPU {index}"), why, remedy);
        let svm = __cpuid(CPUID_SVM);
        if svm.edx & FEATURE_NESTED_PAGING == 0 {
            return Err(refuse("no nested paging", "use a processor with AMD-V and NPT"));
        }
        let memory = || {
            frames
                .allocate_pages(1)
                .ok_or_else(|| refuse("no memory for its save areas", "give VMs less memory"))
        };
        let (hsave, host_vmcb) = (memory()?, memory()?);
        // SAFETY: both pages were just taken for this pCPU and are mapped.
        unsafe {
            crate::memory::zero(hsave, PAGE_SIZE);
            crate::memory::zero(host_vmcb, PAGE_SIZE);
        }
        // SAFETY: the MSRs exist where CPUID shows SVM. SVME changes nothing for code that uses no SVM.
        unsafe {
            if Msr::new(VM_CR).read() & VM_CR_SVMDIS != 0 {
                return Err(refuse("SVM is locked off by the firmware", "enable it in the firmware's setup"));
            }
            let mut efer = Msr::new(EFER);
            let value = efer.read();
            efer.write(value | EFER_SVME);
            Msr::new(VM_HSAVE_PA).write(hsave.0);
            enter::save_host(host_vmcb.0);
        }
        Ok(Self {
            index,
            host_vmcb,
            asids: Asids::new(svm.ebx),
            assists: Assists {
                next_rip: svm.edx & FEATURE_NEXT_RIP_SAVE != 0,
                decode: svm.edx & FEATURE_DECODE_ASSISTS != 0,
            },
            flush_by_asid: svm.edx & FEATURE_FLUSH_BY_ASID != 0,
            flush_all: true,
        })
    }

    /// Makes `asid` one that may be used here now.
    pub(super) fn renew(&mut self, asid: &mut Asid) {
        self.flush_all |= self.asids.renew(self.index, asid);
    }

    /// Has the next VMRUN flush everything.
    pub(super) fn flush_all_next(&mut self) {
        self.flush_all = true;
    }

    /// What the next VMRUN must flush.
    pub(super) fn take_tlb_control(&mut self, flush: bool) -> u32 {
        if core::mem::take(&mut self.flush_all) {
            tlb_control::ALL
        } else if !flush {
            tlb_control::NOTHING
        } else if self.flush_by_asid {
            tlb_control::THIS_ASID
        } else {
            tlb_control::ALL
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever uses an ASID finds no translation of another under it, unless a flush came between.
        #[test]
        fn an_asid_never_shows_anothers_translations(
            count in 0u32..6,
            switches in proptest::collection::vec((0usize..8, any::<bool>()), 1..200),
        ) {
            let mut asids = Asids::new(count);
            let mut vcpus = [Asid::default(); 8];
            // Whose translations are under each ASID.
            let mut tagged = [None; 8];
            for (vcpu, from_elsewhere) in switches {
                if from_elsewhere {
                    vcpus[vcpu].pcpu = 9;
                }
                if asids.renew(0, &mut vcpus[vcpu]) {
                    tagged = [None; 8];
                }
                let number = vcpus[vcpu].number as usize;
                prop_assert!(number > 0 && number < count.max(2) as usize);
                prop_assert!(tagged[number].is_none_or(|owner| owner == vcpu));
                tagged[number] = Some(vcpu);
            }
        }
    }
}
