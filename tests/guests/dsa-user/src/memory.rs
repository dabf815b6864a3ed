// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that the device may read and write, and memory at an address of the user's choice.
//!
//! **Principle.** One huge page: contiguous, never moved or swapped, so that one look at its guest-physical address
//! holds for all of it. Without an IOMMU of the guest's own, that is the address the device uses.
//!
//! **With shared virtual addressing** none of this is needed: it is memory of the allocator's, as any `Vec`'s, and its
//! address for the device is the pointer. In exchange a page may be missing when the device comes to it.
//!
//! Source: Linux, `Documentation/admin-guide/mm/pagemap.rst` and `hugetlbpage.rst`; madvise(2).

use crate::descriptor::{Fault, RECORD};
use anyhow::{Context, Result, ensure};
use core::ops::Range;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};
use std::alloc::{Layout, alloc_zeroed};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
const PAGEMAP: &str = "/proc/self/pagemap";
const PHYSICAL: &str = "/dev/mem";
/// The default size of huge pages on both architectures, with pages of 4 KiB.
pub const SIZE: usize = 2 << 20;
const PAGE_SIZE: u64 = 4096;
/// Pagemap entry: bytes, page frame number, page present.
const ENTRY: u64 = 8;
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// A range of guest-physical addresses, written as `0x8000000+64M`.
#[derive(Clone, Copy)]
pub struct Within {
    start: u64,
    len: u64,
}

impl Within {
    fn holds(self, page: u64) -> bool {
        let offset = page.checked_sub(self.start);
        offset.is_some_and(|offset| offset.saturating_add(SIZE as u64) <= self.len)
    }
}

impl FromStr for Within {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (start, len) = text.split_once('+')?;
            let start = u64::from_str_radix(start.strip_prefix("0x")?, 16).ok()?;
            let len = len.strip_suffix('M')?.parse::<u32>().ok()?;
            Some(Self { start, len: u64::from(len) << 20 })
        };
        parse().ok_or("write an address and a size, like 0x8000000+64M")
    }
}

/// Memory of this program's, [`SIZE`] bytes. It stays until the program ends.
pub struct Memory {
    base: *mut u8,
    /// Its address for the device.
    device: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A huge page, whose address is guest-physical.
    HugePage,
    /// The allocator's, at its virtual address.
    Ordinary {
        /// Whether operations are to find pages that nobody has touched.
        untouched: bool,
    },
}

impl Memory {
    /// Takes a huge page, and finds out where it is. Where it has to be in a range, as many as it takes; the others are given
    /// back with the program's end.
    pub fn huge_page(within: Option<Within>) -> Result<Self> {
        loop {
            let page = Self::take()?;
            if within.is_none_or(|within| within.holds(page.device)) {
                return Ok(page);
            }
        }
    }

    fn take() -> Result<Self> {
        let count = fs::read_to_string(HUGE_PAGES).with_context(|| format!("reading {HUGE_PAGES}"))?;
        if count.trim() == "0" {
            fs::write(HUGE_PAGES, "1").with_context(|| format!("writing 1 to {HUGE_PAGES}"))?;
        }
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::LOCKED | MapFlags::POPULATE;
        // SAFETY: a new mapping where the kernel chooses; it is zeroed.
        let base =
            unsafe { mmap_anonymous(core::ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, flags) }
                .context("taking a huge page; boot the guest with more hugepages=")?
                .cast::<u8>();
        let mut entry = [0; ENTRY as usize];
        File::open(PAGEMAP)
            .and_then(|map| map.read_exact_at(&mut entry, base as u64 / PAGE_SIZE * ENTRY))
            .with_context(|| format!("reading {PAGEMAP}"))?;
        let entry = u64::from_le_bytes(entry);
        ensure!(
            entry & PRESENT != 0 && entry & FRAME != 0,
            "{PAGEMAP} does not tell the address; run as root"
        );
        Ok(Self { base, device: (entry & FRAME) * PAGE_SIZE, kind: Kind::HugePage })
    }

    /// Takes memory as any program does, for a device that uses virtual addresses. All of it has been touched, unless operations
    /// are to find it `untouched`: then only the first page, where completion records go, since the device tells nobody about
    /// one that it cannot write.
    pub fn ordinary(untouched: bool) -> Result<Self> {
        let layout = Layout::from_size_align(SIZE, PAGE_SIZE as usize)?;
        // SAFETY: the layout has a size.
        let base = unsafe { alloc_zeroed(layout) };
        ensure!(!base.is_null(), "no memory: {SIZE} bytes are needed");
        let mut memory = Self { base, device: base as u64, kind: Kind::Ordinary { untouched } };
        // Nobody says whether the allocator has written the zeros or knew of them.
        memory.bytes().fill(0);
        if untouched {
            // Each page is to be missing by itself. Where Linux has no transparent huge pages, it always is.
            // SAFETY: within the allocation; says only how it is to be backed.
            unsafe { madvise(base.cast(), SIZE, Advice::LinuxNoHugepage) }.ok();
            memory.forget(PAGE_SIZE as usize..SIZE)?;
        }
        Ok(memory)
    }

    /// The address for the device.
    pub fn address(&self, offset: usize) -> u64 {
        self.device + offset as u64
    }

    /// Whether operations are to find pages that nobody has touched.
    pub fn untouched(&self) -> bool {
        self.kind == Kind::Ordinary { untouched: true }
    }

    /// Gives back all pages in which the range lies, as they were when memory was fresh: not there, and zero for whoever looks.
    pub fn forget(&mut self, range: Range<usize>) -> Result<()> {
        self.advise(range, Advice::LinuxDontNeed)
    }

    /// Reads the pages in which the range lies, as a program does that looks before it writes. What was not there is then Linux's
    /// page of zeros, which is copied at the first write and may not be written by anyone else.
    pub fn look_at(&mut self, range: Range<usize>) -> Result<()> {
        self.advise(range, Advice::LinuxPopulateRead)
    }

    /// Does about a page that the device could not use what the program's own access would do: has it brought in, and for a write
    /// made its own. Returns whether that was possible: only for memory of this program's that has virtual addresses. What is in
    /// it stays. (Writing a byte of it as it was would do the same; the compiler must then not make a read of it.)
    pub fn bring_in(&self, fault: Fault) -> Result<bool> {
        let offset = fault.address.checked_sub(self.device).filter(|offset| *offset < SIZE as u64);
        let (Some(offset), Kind::Ordinary { .. }) = (offset, self.kind) else { return Ok(false) };
        let advice = if fault.write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        self.advise(offset as usize..offset as usize + 1, advice)?;
        Ok(true)
    }

    /// Tells Linux about all pages in which a range lies.
    fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        assert!(self.kind != Kind::HugePage && range.end <= SIZE);
        let page = PAGE_SIZE as usize;
        let start = range.start / page * page;
        // Linux takes the whole of the last page.
        let len = range.end - start;
        // SAFETY: within the allocation, which nobody has borrowed; pages are made present or, by `forget`, become zero.
        unsafe { madvise(self.base.add(start).cast(), len, advice) }.with_context(|| {
            format!("telling Linux {advice:?} about {len:#x} bytes at {:#x}", self.address(start))
        })
    }

    /// For the processor, while the device does not write there.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` is, and borrowed mutably; the device writes between submission and
        // completion only, and then only `status` is looked at.
        unsafe { core::slice::from_raw_parts_mut(self.base, SIZE) }
    }

    /// Clears a completion record for the next descriptor.
    pub fn clear_record(&mut self, offset: usize) {
        self.bytes()[offset..offset + RECORD].fill(0);
    }

    /// A completion record that the device has written.
    pub fn record(&self, offset: usize) -> [u8; RECORD] {
        assert!(offset + RECORD <= SIZE);
        // SAFETY: within the memory, and nobody writes there: the device is done with it.
        unsafe { self.base.add(offset).cast::<[u8; RECORD]>().read() }
    }

    /// A byte that the device writes while it is looked at.
    pub fn status(&self, offset: usize) -> u8 {
        assert!(offset < SIZE);
        // SAFETY: within the mapping, and an atomic is what may change under our eyes.
        unsafe { AtomicU8::from_ptr(self.base.add(offset)) }.load(Ordering::Acquire)
    }
}

/// Memory at a guest-physical address that the kernel was told to leave alone. It stays mapped until the program ends.
pub struct Physical {
    base: *mut u64,
    words: usize,
}

impl Physical {
    /// Maps `len` bytes, in whole words.
    pub fn map(address: u64, len: usize) -> Result<Self> {
        let what = || format!("mapping {len:#x} bytes at {address:#x} through {PHYSICAL}");
        ensure!(address.is_multiple_of(size_of::<u64>() as u64), "address {address:#x} is no multiple of 8");
        let file = OpenOptions::new().read(true).write(true).open(PHYSICAL).with_context(what)?;
        let within = address % PAGE_SIZE;
        // SAFETY: a new mapping where the kernel chooses; it refuses what is its own.
        let base = unsafe {
            mmap(
                core::ptr::null_mut(),
                len + within as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                address - within,
            )
        }
        .with_context(what)?;
        Ok(Self {
            base: base.cast::<u8>().wrapping_add(within as usize).cast(),
            words: len / size_of::<u64>(),
        })
    }

    /// Writes a byte all over.
    pub fn fill(&mut self, byte: u8) {
        for word in 0..self.words {
            // SAFETY: within the mapping and aligned. One access each: Arm maps it as device memory, which takes no others.
            unsafe { self.base.add(word).write_volatile(u64::from_ne_bytes([byte; 8])) };
        }
    }

    /// Whether there is nothing but that byte.
    pub fn is_all(&self, byte: u8) -> bool {
        self.holds(0, self.words * size_of::<u64>(), byte)
    }

    /// Whether so many bytes from an offset on are that byte; both are multiples of 8, within it.
    pub fn holds(&self, offset: usize, len: usize, byte: u8) -> bool {
        let words = offset / size_of::<u64>()..(offset + len) / size_of::<u64>();
        assert!(words.end <= self.words);
        words.into_iter().all(|word| {
            // SAFETY: as above.
            unsafe { self.base.add(word).read_volatile() == u64::from_ne_bytes([byte; 8]) }
        })
    }
}

#[cfg(test)]
impl Memory {
    /// Whether a page may be read, and whether it may be written: it is this program's alone.
    pub fn state(&self, offset: usize) -> [bool; 2] {
        const EXCLUSIVE: u64 = 1 << 56;
        let mut entry = [0; ENTRY as usize];
        let map = File::open(PAGEMAP).unwrap();
        map.read_exact_at(&mut entry, self.address(offset) / PAGE_SIZE * ENTRY).unwrap();
        let entry = u64::from_le_bytes(entry);
        [PRESENT, EXCLUSIVE].map(|bit| entry & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_memory_has_the_addresses_of_the_program() {
        let mut memory = Memory::ordinary(false).unwrap();
        assert!(!memory.untouched());
        assert_eq!(memory.address(0x123), memory.bytes().as_ptr() as u64 + 0x123);
        assert!(memory.address(0).is_multiple_of(PAGE_SIZE));
    }

    #[test]
    fn whole_pages_are_forgotten_and_no_others() {
        let mut memory = Memory::ordinary(true).unwrap();
        let page = PAGE_SIZE as usize;
        memory.bytes().fill(7);
        memory.forget(3 * page - 1..3 * page + 1).unwrap();
        memory.look_at(2 * page..3 * page).unwrap();
        let zero: Vec<bool> = memory.bytes().chunks(page).map(|page| page == vec![0; page.len()]).collect();
        assert_eq!(zero[..6], [false, false, true, true, false, false]);
    }

    #[test]
    fn only_the_first_page_has_been_touched_where_the_others_are_not_to_be() {
        let pages = |untouched| {
            let memory = Memory::ordinary(untouched).unwrap();
            [0, 0x1000, SIZE / 2, SIZE - 1].map(|offset| memory.state(offset)[0])
        };
        assert_eq!(pages(false), [true; 4]);
        assert_eq!(pages(true), [true, false, false, false]);
    }

    #[test]
    fn a_page_is_brought_in_as_it_is_needed_and_only_an_own_one() {
        let mut memory = Memory::ordinary(true).unwrap();
        let at = |memory: &Memory, address, write| memory.bring_in(Fault { address, write }).unwrap();
        let page = memory.address(0x1000);
        assert!(at(&memory, page, false));
        // The page of zeros is there, and everyone's.
        assert_eq!(memory.state(0x1000), [true, false]);
        assert!(at(&memory, page + 0xfff, true));
        assert_eq!(memory.state(0x1000), [true, true]);
        assert_eq!(memory.state(0x2000), [false, false]);
        memory.bytes()[0x1fff] = 7;
        assert!(at(&memory, page, true) && at(&memory, memory.address(SIZE - 1), true));
        assert_eq!((memory.bytes()[0x1fff], memory.state(SIZE - 1)), (7, [true, true]));
        assert!(!at(&memory, memory.address(SIZE), true) && !at(&memory, memory.address(0) - 1, false));
    }
}
