// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory as the processor wrote it, as it is behind a chipset's write buffer, and as a device sees it
//! that does not snoop the processor's caches.

use std::collections::BTreeMap;
use std::sync::{Mutex, Weak};

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};

use crate::memory::DmaMemory;

/// A unit that walks the memory, as the memory knows it.
pub trait Watcher: Send + Sync {
    /// Something was written: devices that send all the time try again.
    fn noise(&self);
    /// A page is being freed: the test fails where a cache still leads to it.
    fn assert_forgotten(&self, start: u64, len: u64);
}

const WORDS: usize = PAGE_SIZE as usize / 8;
/// Where allocation starts. Addresses are never used twice, so that a use after free is seen.
const FIRST_PAGE: u64 = 0x10_0000;

#[derive(Clone)]
struct Page {
    processor: [u64; WORDS],
    snooped: [u64; WORDS],
    unsnooped: [u64; WORDS],
}

/// How a device reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Everything that was written: the invalidation queue.
    Immediate,
    /// Through the processor's caches, behind the write buffer.
    Snooped,
    /// What was flushed.
    Unsnooped,
}

impl View {
    pub fn tables(snoops: bool) -> Self {
        if snoops { Self::Snooped } else { Self::Unsnooped }
    }
}

#[derive(Default)]
struct Inner {
    pages: BTreeMap<u64, Page>,
    allocations: BTreeMap<u64, usize>,
    next: u64,
    /// Pages that may still be allocated.
    left: usize,
    /// Addresses of words in the write buffer, where there is one.
    buffer: Option<Vec<u64>>,
}

impl Inner {
    fn page(&mut self, address: u64, what: &str) -> &mut Page {
        self.pages
            .get_mut(&(address / PAGE_SIZE))
            .unwrap_or_else(|| panic!("{what} {address:#x}, which is not allocated"))
    }

    fn written(&mut self, address: u64) {
        match &mut self.buffer {
            Some(buffer) => buffer.push(address),
            None => self.reaches_memory(address),
        }
    }

    fn reaches_memory(&mut self, address: u64) {
        if let Some(page) = self.pages.get_mut(&(address / PAGE_SIZE)) {
            let word = word(address);
            page.snooped[word] = page.processor[word];
        }
    }
}

fn word(address: u64) -> usize {
    (address % PAGE_SIZE) as usize / 8
}

/// The memory of a model machine.
pub struct ModelMemory {
    inner: Mutex<Inner>,
    units: Mutex<Vec<Weak<dyn Watcher>>>,
}

impl ModelMemory {
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner { next: FIRST_PAGE, left: usize::MAX, ..Inner::default() }),
            units: Mutex::new(Vec::new()),
        }
    }

    /// A unit whose caches must hold nothing of a page that is freed.
    pub fn watch(&self, unit: Weak<dyn Watcher>) {
        self.units.lock().unwrap().push(unit);
    }

    pub fn limit(&self, pages: usize) {
        self.inner.lock().unwrap().left = pages;
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.inner.lock().unwrap().allocations.values().sum()
    }

    /// Puts a write buffer between the processor and memory.
    pub fn buffer_writes(&self) {
        self.inner.lock().unwrap().buffer = Some(Vec::new());
    }

    /// Empties it.
    pub fn push_out(&self) {
        let mut inner = self.inner.lock().unwrap();
        if let Some(words) = inner.buffer.as_mut().map(std::mem::take) {
            for address in words {
                inner.reaches_memory(address);
            }
        }
    }

    pub fn device_read(&self, address: u64, view: View) -> u64 {
        let mut inner = self.inner.lock().unwrap();
        let page = inner.page(address, "the unit reads");
        match view {
            View::Immediate => page.processor[word(address)],
            View::Snooped => page.snooped[word(address)],
            View::Unsnooped => page.unsnooped[word(address)],
        }
    }

    /// What a device changes in one go: always coherent.
    pub fn device_update<const LEN: usize, T>(
        &self,
        address: u64,
        update: impl FnOnce(&mut [u64; LEN]) -> T,
    ) -> T {
        let mut inner = self.inner.lock().unwrap();
        let page = inner.page(address, "the unit updates");
        let first = word(address);
        let words = <&mut [u64; LEN]>::try_from(&mut page.processor[first..first + LEN]).expect("as long");
        update(words)
    }

    /// What a device writes: always coherent.
    pub fn device_write32(&self, address: u64, value: u32) {
        let mut inner = self.inner.lock().unwrap();
        let page = inner.page(address, "the unit writes");
        let shift = (address % 8) * 8;
        let merged = page.processor[word(address)] & !(0xffff_ffff << shift) | u64::from(value) << shift;
        page.processor[word(address)] = merged;
    }

    /// Every unit's noisy devices try again.
    fn noise(&self) {
        let units = self.units.lock().unwrap();
        for unit in units.iter().filter_map(Weak::upgrade) {
            unit.noise();
        }
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
            // What a device sees is rubbish until the zeros reach it.
            let fresh =
                Page { processor: [0; WORDS], snooped: [u64::MAX; WORDS], unsnooped: [u64::MAX; WORDS] };
            inner.pages.insert(page, fresh);
            for address in (page * PAGE_SIZE..(page + 1) * PAGE_SIZE).step_by(8) {
                inner.written(address);
            }
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
        let mut inner = self.inner.lock().unwrap();
        inner.page(address.0, "the driver reads").processor[word(address.0)]
    }

    fn write64(&self, address: HostPhys, value: u64) {
        assert!(address.is_aligned(8));
        {
            let mut inner = self.inner.lock().unwrap();
            inner.page(address.0, "the driver writes").processor[word(address.0)] = value;
            inner.written(address.0);
        }
        self.noise();
    }

    fn write128(&self, address: HostPhys, value: [u64; 2]) {
        assert!(address.is_aligned(16));
        {
            let mut inner = self.inner.lock().unwrap();
            for (at, half) in (address.0..).step_by(8).zip(value) {
                inner.page(at, "the driver writes").processor[word(at)] = half;
                inner.written(at);
            }
        }
        self.noise();
    }

    fn flush(&self, address: HostPhys, len: usize) {
        {
            let mut inner = self.inner.lock().unwrap();
            for at in (address.0 & !7..address.0 + len as u64).step_by(8) {
                let page = inner.page(at, "the driver flushes");
                page.unsnooped[word(at)] = page.processor[word(at)];
            }
        }
        self.noise();
    }
}
