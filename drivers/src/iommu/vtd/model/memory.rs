// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory with two views: what the processor wrote, and what a device that does not snoop sees of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, Weak};

use pasidon_kernel::addr::{HostPhys, PAGE_SIZE};

use super::UnitModel;
use crate::memory::DmaMemory;

const WORDS: usize = PAGE_SIZE as usize / 8;
/// Where allocation starts. Addresses are never used twice, so that a use after free is seen.
const FIRST_PAGE: u64 = 0x10_0000;

#[derive(Clone)]
struct Page {
    processor: [u64; WORDS],
    device: [u64; WORDS],
}

#[derive(Default)]
struct Inner {
    pages: BTreeMap<u64, Page>,
    allocations: BTreeMap<u64, usize>,
    next: u64,
    /// Pages that may still be allocated.
    left: usize,
}

/// The memory of a model machine.
pub struct ModelMemory {
    inner: Mutex<Inner>,
    units: Mutex<Vec<Weak<UnitModel>>>,
}

impl ModelMemory {
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                next: FIRST_PAGE,
                left: usize::MAX,
                ..Inner::default()
            }),
            units: Mutex::new(Vec::new()),
        }
    }

    /// A unit whose caches must hold nothing of a page that is freed.
    pub fn watch(&self, unit: Weak<UnitModel>) {
        self.units.lock().unwrap().push(unit);
    }

    pub fn limit(&self, pages: usize) {
        self.inner.lock().unwrap().left = pages;
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.inner.lock().unwrap().allocations.values().sum()
    }

    /// What a device reads; `snoops`: through the processor's caches.
    pub fn device_read(&self, address: u64, snoops: bool) -> u64 {
        let inner = self.inner.lock().unwrap();
        let page = inner
            .pages
            .get(&(address / PAGE_SIZE))
            .unwrap_or_else(|| panic!("the unit reads {address:#x}, which is not allocated"));
        let word = (address % PAGE_SIZE) as usize / 8;
        if snoops {
            page.processor[word]
        } else {
            page.device[word]
        }
    }

    /// What a device writes: always coherent.
    pub fn device_write32(&self, address: u64, value: u32) {
        let mut inner = self.inner.lock().unwrap();
        let page = inner
            .pages
            .get_mut(&(address / PAGE_SIZE))
            .expect("the unit writes to memory that is not allocated");
        let word = (address % PAGE_SIZE) as usize / 8;
        let shift = (address % 8) * 8;
        let merged = page.processor[word] & !(0xffff_ffff << shift) | u64::from(value) << shift;
        page.processor[word] = merged;
        page.device[word] = merged;
    }
}

impl DmaMemory for ModelMemory {
    fn alloc(&self, pages: usize) -> Option<HostPhys> {
        let mut inner = self.inner.lock().unwrap();
        if inner.left < pages {
            return None;
        }
        inner.left -= pages;
        let start = inner.next.next_multiple_of(pages.next_power_of_two() as u64);
        inner.next = start + pages as u64;
        for page in start..start + pages as u64 {
            // The device's view is rubbish until the zeros are flushed.
            let fresh = Page {
                processor: [0; WORDS],
                device: [u64::MAX; WORDS],
            };
            inner.pages.insert(page, fresh);
        }
        inner.allocations.insert(start, pages);
        Some(HostPhys(start * PAGE_SIZE))
    }

    fn free(&self, start: HostPhys, pages: usize) {
        for unit in self.units.lock().unwrap().iter().filter_map(Weak::upgrade) {
            unit.assert_forgotten(start.0, pages as u64 * PAGE_SIZE);
        }
        let mut inner = self.inner.lock().unwrap();
        let first = start.0 / PAGE_SIZE;
        assert_eq!(inner.allocations.remove(&first), Some(pages), "free of {start}");
        for page in first..first + pages as u64 {
            inner.pages.remove(&page);
        }
        inner.left = inner.left.saturating_add(pages);
    }

    fn read64(&self, address: HostPhys) -> u64 {
        assert!(address.is_aligned(8));
        let inner = self.inner.lock().unwrap();
        let page = inner
            .pages
            .get(&(address.0 / PAGE_SIZE))
            .expect("read of freed memory");
        page.processor[(address.0 % PAGE_SIZE) as usize / 8]
    }

    fn write64(&self, address: HostPhys, value: u64) {
        assert!(address.is_aligned(8));
        let mut inner = self.inner.lock().unwrap();
        let page = inner
            .pages
            .get_mut(&(address.0 / PAGE_SIZE))
            .expect("write to freed memory");
        page.processor[(address.0 % PAGE_SIZE) as usize / 8] = value;
    }

    fn flush(&self, address: HostPhys, len: usize) {
        let mut inner = self.inner.lock().unwrap();
        for word in (address.0 & !7..address.0 + len as u64).step_by(8) {
            let page = inner
                .pages
                .get_mut(&(word / PAGE_SIZE))
                .expect("flush of freed memory");
            let at = (word % PAGE_SIZE) as usize / 8;
            page.device[at] = page.processor[at];
        }
    }
}
