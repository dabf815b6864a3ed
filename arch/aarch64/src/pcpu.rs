// SPDX-License-Identifier: MIT OR Apache-2.0
//! What belongs to one pCPU. TPIDR_EL2 holds its address.
//!
//! **Invariant.** A [`Pcpu`] is never freed, and is in the list from before its processor runs Rust code.

use core::arch::asm;
use core::sync::atomic::AtomicU8;

use pasidon_arch_common::pcpus::Pcpus;

pub use pasidon_arch_common::pcpus::MAX_PCPUS;

use crate::stack::Stack;

static PCPUS: Pcpus<Pcpu> = Pcpus::new();

/// One pCPU.
#[repr(C)]
#[derive(Debug)]
pub struct Pcpu {
    /// Where its exceptions' stack starts; the vectors read it.
    pub(crate) exception_top: u64,
    /// Its number: 0 is the one that booted, the others follow without a gap.
    pub index: u32,
    /// Affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// Address of its redistributor's registers.
    pub redistributor: u64,
    /// The stack it runs on.
    pub stack: Stack,
    /// The stack its exceptions come on.
    pub exception_stack: Stack,
    /// Whether it came when it was started, see [`crate::smp`].
    pub(crate) arrival: AtomicU8,
}

// SAFETY: nothing in it changes after its processor has started, but for what is atomic.
unsafe impl Sync for Pcpu {}

impl Pcpu {
    /// A pCPU that is in no list yet, for ever in memory.
    pub(crate) fn new(
        index: u32,
        mpidr: u64,
        redistributor: u64,
        [stack, exception_stack]: [Stack; 2],
    ) -> &'static Pcpu {
        alloc::boxed::Box::leak(alloc::boxed::Box::new(Pcpu {
            exception_top: exception_stack.top,
            index,
            mpidr,
            redistributor,
            stack,
            exception_stack,
            arrival: AtomicU8::new(0),
        }))
    }

    /// All its stacks.
    pub fn stacks(&self) -> impl Iterator<Item = Stack> + Clone {
        [self.stack, self.exception_stack].into_iter()
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
        let this = core::ptr::from_ref(self);
        // SAFETY: the register is the hypervisor's alone.
        unsafe { asm!("msr tpidr_el2, {}", in(reg) this, options(nostack, preserves_flags)) };
    }
}

/// That of the processor that runs this. Only after [`crate::smp::init`].
pub fn current() -> &'static Pcpu {
    let pcpu: *const Pcpu;
    // SAFETY: the register is the address of a `Pcpu`, which lives for ever.
    unsafe {
        asm!("mrs {}, tpidr_el2", out(reg) pcpu, options(nomem, nostack, preserves_flags));
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

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Pcpu> {
    PCPUS.iter()
}
