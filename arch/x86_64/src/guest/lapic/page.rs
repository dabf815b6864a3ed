// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of a local APIC that the processor may use itself while the guest runs: VMX's virtual-APIC page.
//!
//! **Principle.** They lie here always, also where only the hypervisor uses them, so that there is no second copy to keep
//! in step. A register lies at 16 times its number.
//!
//! Source: Intel SDM volume 3, 30.1.1 "Virtualized APIC Registers".

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use pasidon_kernel::base::addr::HostPhys;

use super::reg;

/// Words from one register to the next.
const STEP: usize = 4;
/// Words of a page.
const WORDS: usize = 1024;
/// Registers of a set of vectors: 32 in each.
const SET: u32 = 8;

/// The page. The processor uses it while the guest runs; everybody else that does not.
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; WORDS]);

impl ApicPage {
    /// All zeros.
    pub fn new() -> Arc<Self> {
        Arc::new(Self([const { AtomicU32::new(0) }; WORDS]))
    }

    /// Its physical address: memory is mapped there.
    pub fn address(&self) -> HostPhys {
        HostPhys((&raw const *self).addr() as u64)
    }

    /// The priority class in TPR: CR8.
    pub fn class(&self) -> u8 {
        (self.get(reg::TPR) >> 4) as u8 & 0xf
    }

    /// Sets it. An unchanged class leaves TPR as it is, with the bits that CR8 does not show.
    pub fn set_class(&self, class: u8) {
        if self.class() != class & 0xf {
            self.set(reg::TPR, u32::from(class & 0xf) << 4);
        }
    }

    /// The register of that number, below 256.
    #[inline]
    pub(super) fn get(&self, number: u32) -> u32 {
        self.0[number as usize * STEP % WORDS].load(Ordering::Relaxed)
    }

    /// Sets it.
    #[inline]
    pub(super) fn set(&self, number: u32, value: u32) {
        self.0[number as usize * STEP % WORDS].store(value, Ordering::Relaxed);
    }
}

impl fmt::Debug for ApicPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApicPage").field("tpr", &self.get(reg::TPR)).finish_non_exhaustive()
    }
}

/// A set of vectors: the number of its first register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Vectors {
    /// ISR.
    InService = reg::ISR as isize,
    /// TMR.
    LevelTriggered = reg::TMR as isize,
    /// IRR.
    Requested = reg::IRR as isize,
}

/// The sets of vectors in a page.
#[derive(Debug)]
pub(super) struct Sets {
    pub(super) page: Arc<ApicPage>,
    /// That there may be vectors in ISR, and in IRR: hardly ever are there any, and this is asked at each entry.
    serves: bool,
    waits: bool,
    /// The hypervisor has changed some.
    changed: bool,
}

impl Sets {
    /// Those of a page, all of whose registers become zero.
    pub(super) fn clear(page: Arc<ApicPage>) -> Self {
        for word in &page.0 {
            word.store(0, Ordering::Relaxed);
        }
        Self { page, serves: false, waits: false, changed: true }
    }

    /// The processor has used the page: there may be vectors in any set.
    pub(super) fn used_by_processor(&mut self) {
        (self.serves, self.waits) = (true, true);
    }

    /// Whether the hypervisor has changed any since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    fn note(&mut self, set: Vectors, may_hold: bool) {
        self.changed = true;
        match set {
            Vectors::InService => self.serves = may_hold,
            Vectors::Requested => self.waits = may_hold,
            Vectors::LevelTriggered => {}
        }
    }

    pub(super) fn insert(&mut self, set: Vectors, vector: u8) {
        let (number, bit) = place(set, vector);
        self.page.set(number, self.page.get(number) | bit);
        self.note(set, true);
    }

    pub(super) fn remove(&mut self, set: Vectors, vector: u8) {
        let (number, bit) = place(set, vector);
        self.page.set(number, self.page.get(number) & !bit);
        self.note(set, (0..SET).any(|index| self.page.get(set as u32 + index) != 0));
    }

    pub(super) fn contains(&self, set: Vectors, vector: u8) -> bool {
        let (number, bit) = place(set, vector);
        self.page.get(number) & bit != 0
    }

    #[inline]
    pub(super) fn highest(&self, set: Vectors) -> Option<u8> {
        let may_hold = match set {
            Vectors::InService => self.serves,
            Vectors::Requested => self.waits,
            Vectors::LevelTriggered => true,
        };
        if !may_hold {
            return None;
        }
        let (index, word) = (0..SET)
            .rev()
            .map(|index| (index, self.page.get(set as u32 + index)))
            .find(|(_, word)| *word != 0)?;
        Some((32 * index + 31 - word.leading_zeros()) as u8)
    }

    /// A set as four words, the lowest vectors first.
    pub(super) fn words(&self, set: Vectors) -> [u64; 4] {
        let register = |index| u64::from(self.page.get(set as u32 + index));
        [0, 2, 4, 6].map(|index| register(index) | register(index + 1) << 32)
    }
}

/// The register of a vector, and its bit there.
fn place(set: Vectors, vector: u8) -> (u32, u32) {
    (set as u32 + u32::from(vector >> 5), 1 << (vector & 31))
}
