// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory by whole pages: for control blocks, tables, guests and devices.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const PAGE: usize = 4096;

mod sealed {
    /// What any bytes are a value of.
    pub trait Integer: Copy {}

    impl Integer for u8 {}
    impl Integer for u16 {}
    impl Integer for u32 {}
    impl Integer for u64 {}
}

use sealed::Integer;

/// Pages of the test's memory, zero at first, that test, processor and guests read and write.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    /// So many pages, at least one, one behind the other.
    ///
    /// # Panics
    /// When there is no such amount of memory.
    pub fn new(count: usize) -> Pages {
        let layout = Layout::from_size_align(count.max(1) * PAGE, PAGE).expect("an amount that exists");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Pages { start: start.unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// Where the first one begins, for the test and for the processor.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: there is at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads the value at `offset`, in bytes.
    ///
    /// # Panics
    /// When it does not lie in the pages, or `offset` is not aligned.
    pub fn read<T: Integer>(&self, offset: usize) -> T {
        // SAFETY: `at` checks place and alignment; the bytes were initialized, and any are an integer.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes `value` at `offset`, in bytes.
    ///
    /// # Panics
    /// When it does not fit into the pages, or `offset` is not aligned.
    pub fn write<T: Integer>(&self, offset: usize, value: T) {
        // SAFETY: `at` checks place and alignment. Nobody has references into the pages.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Panics
    /// When they do not fit into the pages.
    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.write(offset + index, *byte);
        }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len());
        assert!(
            fits && offset.is_multiple_of(align_of::<T>()),
            "no place in {} bytes: {offset:#x}",
            self.len()
        );
        // SAFETY: within the allocation.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
