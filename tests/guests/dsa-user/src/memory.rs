// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that the device may read and write, and memory at an address of the user's choice.
//!
//! **Principle.** One huge page: contiguous, never moved or swapped, so that one look at its guest-physical address
//! holds for all of it. Without an IOMMU of the guest's own, that is the address the device uses.
//!
//! Source: Linux, `Documentation/admin-guide/mm/pagemap.rst` and `hugetlbpage.rst`.

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
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

/// One huge page.
pub struct Memory {
    base: *mut u8,
    guest_physical: u64,
}

impl Memory {
    /// Takes a huge page, and finds out where it is. Where it has to be in a range, as many as it takes; the others are given
    /// back with the program's end.
    pub fn new(within: Option<Within>) -> Result<Self> {
        loop {
            let page = Self::take()?;
            if within.is_none_or(|within| within.holds(page.guest_physical)) {
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
        Ok(Self { base, guest_physical: (entry & FRAME) * PAGE_SIZE })
    }

    /// The address for the device.
    pub fn address(&self, offset: usize) -> u64 {
        self.guest_physical + offset as u64
    }

    /// For the processor, while the device does not write there.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` is, and borrowed mutably; the device writes between submission and
        // completion only, and then only `status` is looked at.
        unsafe { core::slice::from_raw_parts_mut(self.base, SIZE) }
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
