// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's heap: one piece of memory taken from the firmware in the beginning, never returned.

use linked_list_allocator::LockedHeap;
use pasidon_kernel::base::addr::HostPhys;
use uefi::Status;
use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE};

/// Size of the heap. Guests' memory and the files of the ESP do not come from it; page tables, the tables of
/// the IOMMU and the stacks do.
pub const HEAP_BYTES: usize = 64 << 20;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gets the heap from the firmware. Once, before the first allocation.
///
/// # Errors
/// When there is not that much memory in one piece: the firmware's status.
pub fn init() -> Result<(), Status> {
    let pages = HEAP_BYTES / PAGE_SIZE;
    let start = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, pages)
        .map_err(|error| error.status())?;
    // SAFETY: the pages are ours for ever, and the heap gets them once.
    unsafe { HEAP.lock().init(start.as_ptr(), HEAP_BYTES) };
    Ok(())
}

/// How many bytes of the heap are in use.
pub fn used() -> usize {
    HEAP.lock().used()
}

/// Where it lies, and its size in bytes.
pub fn range() -> (HostPhys, u64) {
    (HostPhys(HEAP.lock().bottom() as u64), HEAP_BYTES as u64)
}
