// SPDX-License-Identifier: MIT OR Apache-2.0
//! Posted interrupts: how devices' interrupts reach a guest while it runs, without the hypervisor.
//!
//! **Principle.** Whoever posts one sets its bit in the VM's descriptor, and if none waited there raises the VM's
//! notification, on the pCPU that the vCPU is seated on. A processor that runs the guest takes what is posted into the
//! virtual-APIC page and delivers it. One that does not gets an ordinary interrupt, whose route wakes the vCPU; what is
//! posted stays in the descriptor until the next entry, and as long as it does nothing is raised again. So a VM costs others
//! one interrupt at most between two of its turns.
//!
//! Source: Intel SDM volume 3, 30.6 "Posted-Interrupt Processing"; VT-d specification, "Posted Interrupt Descriptor".

use alloc::boxed::Box;
use core::fmt::Debug;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::msi::PostedInterrupts;
use pasidon_kernel::vm::sched::PcpuId;
use spin::Once;

use crate::vector::Vector;

/// The word with ON, the notification and where it goes; those before it have a bit for each vector.
const CONTROL: usize = 4;
/// ON: a notification is under way.
const OUTSTANDING: u64 = 1 << 0;
const VECTOR_SHIFT: u32 = 16;
/// NDST, as of x2APIC mode.
const DESTINATION_SHIFT: u32 = 32;
const REQUESTS: Range<usize> = 0..CONTROL;

/// Makes the descriptor of a VM whose vCPU is seated on that pCPU; `None` where no vector is left there.
pub type Maker = fn(VmId, PcpuId) -> Option<Posted>;

static MAKER: Once<Maker> = Once::new();

/// Says who makes descriptors; once. Before that there are none.
pub fn install(maker: Maker) {
    MAKER.call_once(|| maker);
}

/// A descriptor for a VM whose vCPU is seated on that pCPU; `None` where it cannot have one.
pub fn make(vm: VmId, pcpu: PcpuId) -> Option<Posted> {
    MAKER.get().and_then(|make| make(vm, pcpu))
}

/// The descriptor of one VM, which has one vCPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Posted {
    words: [AtomicU64; 8],
    vector: Vector,
    /// What raises the notification: it ends when nobody can post any more.
    _notification: Box<dyn Debug + Send + Sync>,
}

impl Posted {
    /// One with nothing posted, whose vCPU is seated where `target` is raised; `notification` holds that.
    pub fn new(target: HostVector, notification: Box<dyn Debug + Send + Sync>) -> Self {
        let control = u64::from(target.vector) << VECTOR_SHIFT | u64::from(target.cpu) << DESTINATION_SHIFT;
        let mut words = [const { AtomicU64::new(0) }; 8];
        words[CONTROL] = AtomicU64::new(control);
        Self { words, vector: target.vector as Vector, _notification: notification }
    }

    /// The vector of the notification.
    pub fn vector(&self) -> Vector {
        self.vector
    }

    /// Takes what is posted. To be called on the vCPU's pCPU, between two entries.
    #[inline]
    pub fn take(&self, mut accept: impl FnMut(u8)) {
        // Hardly ever is something there, and to look costs less than to take.
        if self.words[CONTROL].load(Ordering::Relaxed) & OUTSTANDING == 0 {
            return;
        }
        // First this: what is posted behind it raises a notification again.
        self.words[CONTROL].fetch_and(!OUTSTANDING, Ordering::SeqCst);
        for index in REQUESTS {
            let mut word = self.words[index].swap(0, Ordering::SeqCst);
            while word != 0 {
                accept((64 * index as u32 + word.trailing_zeros()) as u8);
                word &= word - 1;
            }
        }
    }
}

impl PostedInterrupts for Posted {
    fn address(&self) -> HostPhys {
        HostPhys((&raw const self.words).addr() as u64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// A descriptor with that notification.
    pub fn posted(vector: u32, cpu: u32) -> Posted {
        Posted::new(HostVector { vector, cpu }, Box::new(()))
    }

    impl Posted {
        /// Does what an IOMMU does; whether it would raise the notification.
        pub fn post(&self, vector: u8) -> bool {
            self.words[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::SeqCst);
            self.words[CONTROL].fetch_or(OUTSTANDING, Ordering::SeqCst) & OUTSTANDING == 0
        }
    }

    #[test]
    fn the_descriptor_is_what_hardware_reads() {
        let descriptor = posted(0x51, 0x1_0203);
        assert!(descriptor.address().0.is_multiple_of(64));
        // SAFETY: it is memory of this test's.
        let read = || unsafe { (descriptor.address().0 as *const [u64; 8]).read_volatile() };
        assert_eq!(read(), [0, 0, 0, 0, 0x51 << 16 | 0x1_0203 << 32, 0, 0, 0]);
        assert!(descriptor.post(0x41));
        assert!(!descriptor.post(0xff), "one notification is enough");
        assert_eq!(read(), [0, 2, 0, 1 << 63, 0x51 << 16 | 0x1_0203 << 32 | 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_posted_is_taken_once_and_the_next_one_is_told_of() {
        let descriptor = posted(0x51, 0);
        let taken = || {
            let mut vectors = Vec::new();
            descriptor.take(|vector| vectors.push(vector));
            vectors
        };
        assert_eq!(taken(), [0_u8; 0]);
        for vector in [0x41, 0x10, 0xff] {
            descriptor.post(vector);
        }
        assert_eq!(taken(), [0x10, 0x41, 0xff]);
        assert_eq!(taken(), [0_u8; 0]);
        assert!(descriptor.post(0x41));
    }
}
