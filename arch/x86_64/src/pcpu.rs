// SPDX-License-Identifier: MIT OR Apache-2.0
//! What belongs to one pCPU. GS base holds its address while the hypervisor runs.
//!
//! **Invariant.** A [`Pcpu`] is never freed, and is in the list from before its processor runs Rust code.

use core::arch::asm;

use pasidon_arch_common::pcpus::Pcpus;

pub use pasidon_arch_common::pcpus::MAX_PCPUS;

use crate::cpu::{self, msr};
use crate::descriptors::Descriptors;
use crate::stack::Stack;

static PCPUS: Pcpus<Pcpu> = Pcpus::new();

/// One pCPU.
#[repr(C)]
#[derive(Debug)]
pub struct Pcpu {
    /// Its own address, first, so that one load through GS gives it.
    this: *const Pcpu,
    /// Its number: 0 is the one that booted, the others follow without a gap.
    pub index: u32,
    /// Its local APIC's ID.
    pub apic_id: u32,
    /// The stack it runs on.
    pub stack: Stack,
    /// Its GDT, TSS and exception stacks.
    pub(crate) descriptors: Descriptors,
}

// SAFETY: nothing in it changes after its processor has started, and the pointer is only to itself.
unsafe impl Sync for Pcpu {}

impl Pcpu {
    /// A pCPU that is in no list yet, for ever in memory.
    pub(crate) fn new(index: u32, apic_id: u32, stack: Stack, descriptors: Descriptors) -> &'static Pcpu {
        let pcpu = alloc::boxed::Box::leak(alloc::boxed::Box::new(Pcpu {
            this: core::ptr::null(),
            index,
            apic_id,
            stack,
            descriptors,
        }));
        pcpu.this = pcpu;
        pcpu
    }

    /// All its stacks: the one it runs on, and those of the exceptions that have their own.
    pub fn stacks(&self) -> impl Iterator<Item = Stack> + Clone {
        core::iter::once(self.stack).chain(self.descriptors.stacks)
    }

    /// Puts it into the list, as the last one.
    pub(crate) fn enlist(&'static self) {
        PCPUS.enlist(self.index, self);
    }

    /// Takes it out of the list again: its processor did not start.
    pub(crate) fn strike(&'static self) {
        PCPUS.strike(self.index);
    }

    /// Makes it that of the processor that runs this.
    ///
    /// # Safety
    /// It must be this processor's.
    pub(crate) unsafe fn make_current(&'static self) {
        // SAFETY: every 64-bit processor has the register, and nothing else uses GS.
        unsafe { cpu::write_msr(msr::GS_BASE, core::ptr::from_ref(self) as u64) };
    }
}

/// That of the processor that runs this. Only after [`crate::smp::init`].
pub fn current() -> &'static Pcpu {
    let pcpu: *const Pcpu;
    // SAFETY: GS base is the address of a `Pcpu`, which starts with its own address and lives for ever.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) pcpu, options(nostack, preserves_flags, readonly));
        &*pcpu
    }
}

/// As [`current`], but `None` as long as there is no pCPU; for what may run before that.
pub fn try_current() -> Option<&'static Pcpu> {
    (count() > 0).then(current)
}

/// How many pCPUs there are.
pub fn count() -> usize {
    PCPUS.count()
}

/// The pCPU of that number.
pub fn get(index: u32) -> Option<&'static Pcpu> {
    PCPUS.get(index)
}

/// The APIC ID of the pCPU of that number.
pub fn apic_id_of(index: u32) -> Option<u32> {
    get(index).map(|pcpu| pcpu.apic_id)
}
