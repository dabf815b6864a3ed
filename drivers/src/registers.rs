// SPDX-License-Identifier: MIT OR Apache-2.0
//! Register access of a device, real or modelled.

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;

/// Maps a window of device registers: its address, which the firmware named, and its length in bytes. Refused where
/// no registers can be there.
pub type MapRegisters<'a, R> = &'a mut dyn FnMut(HostPhys, u64) -> Result<R, Refusal>;

/// A window of device registers. Offsets are bytes from its start and naturally aligned.
pub trait Registers: Send + Sync {
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);
    /// Reads 64 bits in one access.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 64 bits in one access.
    fn write64(&self, offset: usize, value: u64);
}

/// Registers of a real device, mapped uncached.
#[derive(Debug)]
pub struct Mmio {
    base: *mut u8,
    len: usize,
}

// SAFETY: the window is device registers; accesses are volatile and single instructions, and exclusion
// between processors is the driver's business, which holds its own locks.
unsafe impl Send for Mmio {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// # Safety
    /// `base .. base + len` must stay mapped, uncached, for the life of the value, and be registers of
    /// a device that this driver alone drives.
    pub const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(
            offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.len,
            "register offset {offset:#x}"
        );
        self.base.wrapping_add(offset).cast()
    }
}

impl Registers for Mmio {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: in the window and aligned (checked by `at`), mapped by the contract of `new`.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }
}
