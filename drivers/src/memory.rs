// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that devices read and write: tables, queues, status words.

use pasidon_kernel::base::addr::HostPhys;

/// Source of, and access to, memory shared with a device. Implemented on physical frames by the
/// hypervisor and on a map of pages in host tests.
pub trait DmaMemory: Send + Sync {
    /// `pages` contiguous zeroed 4 KiB pages, aligned to their total size rounded up to a power of two;
    /// `None` when memory is short.
    fn alloc(&self, pages: usize) -> Option<HostPhys>;

    /// Gives pages from [`DmaMemory::alloc`] back; no device may use them any more.
    fn free(&self, start: HostPhys, pages: usize);

    /// Reads an aligned 64-bit word (volatile: a device may have written it).
    fn read64(&self, address: HostPhys) -> u64;

    /// Writes an aligned 64-bit word in one store, ordered after all earlier stores.
    fn write64(&self, address: HostPhys, value: u64);

    /// Writes two 64-bit words, aligned to 16 bytes, in one store that no device sees by halves, ordered as
    /// [`DmaMemory::write64`] is. Nobody else may write to them meanwhile.
    fn write128(&self, address: HostPhys, value: [u64; 2]);

    /// Makes earlier writes to `address .. address + len` visible to a device that does not snoop.
    fn flush(&self, address: HostPhys, len: usize);
}
