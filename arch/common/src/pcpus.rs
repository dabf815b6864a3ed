// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of pCPUs, by number and without a gap.
//!
//! **Invariant.** What is in it is never freed, and is in it from before its processor runs Rust code.

use alloc::string::String;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// How many pCPUs are used; further ones are left off.
pub const MAX_PCPUS: usize = 64;

/// Memory that other processors are started with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trampoline {
    /// How many pages.
    pub pages: usize,
    /// They must lie below this address.
    pub below: u64,
}

/// The machine's processors, once they run, for the log.
#[derive(Clone, Debug)]
pub struct Processors {
    /// How many run.
    pub count: usize,
    /// How many the firmware names.
    pub found: usize,
    /// What tells them apart.
    pub ids: String,
    /// What they are called.
    pub name: String,
    /// Their clocks and rates.
    pub clocks: String,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

/// What belongs to each pCPU, by its number.
#[derive(Debug)]
pub struct Pcpus<T: 'static> {
    list: [AtomicPtr<T>; MAX_PCPUS],
    count: AtomicUsize,
}

impl<T: Sync> Pcpus<T> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            list: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_PCPUS],
            count: AtomicUsize::new(0),
        }
    }

    /// Makes `pcpu` the last one, with that number, which is how many there were.
    pub fn enlist(&self, index: u32, pcpu: &'static T) {
        let index = index as usize;
        self.list[index].store(core::ptr::from_ref(pcpu).cast_mut(), Ordering::Release);
        self.count.store(index + 1, Ordering::Release);
    }

    /// Takes the last one out again: its processor did not start.
    pub fn strike(&self, index: u32) {
        let index = index as usize;
        self.count.store(index, Ordering::Release);
        self.list[index].store(core::ptr::null_mut(), Ordering::Release);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The one of that number.
    pub fn get(&self, index: u32) -> Option<&'static T> {
        let pcpu = self.list.get(index as usize)?.load(Ordering::Acquire);
        // SAFETY: null, or one that lives for ever and may be seen by all.
        unsafe { pcpu.as_ref() }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'static T> {
        (0..self.count() as u32).filter_map(|index| self.get(index))
    }
}

impl<T: Sync> Default for Pcpus<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_did_not_start_leaves_no_gap() {
        static LIST: Pcpus<u32> = Pcpus::new();
        LIST.enlist(0, &10);
        LIST.enlist(1, &11);
        LIST.strike(1);
        assert_eq!((LIST.count(), LIST.get(1)), (1, None));
        LIST.enlist(1, &12);
        assert_eq!(LIST.iter().collect::<Vec<_>>(), [&10, &12]);
        assert_eq!(LIST.get(u32::MAX), None);
    }
}
