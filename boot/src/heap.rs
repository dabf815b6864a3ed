// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose RAM the hypervisor's [heap](pasidon_arch_common::heap) is made of: the firmware's at first, then what no guest
//! has.

use pasidon_arch_common::heap::{Heap, Source};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::frames::Frames;
use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE};

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Boot services, which are over when the heap has another source.
struct Firmware;

impl Source for Firmware {
    fn take(&self, bytes: usize) -> Option<HostPhys> {
        let pages = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, bytes / PAGE_SIZE);
        pages.ok().map(|start| HostPhys(start.as_ptr() as u64))
    }

    fn give_back(&self, _start: HostPhys, _bytes: usize) {
        // Nothing is given back this early.
    }
}

/// Lets the heap get RAM from the firmware. Once, before the first allocation. False: there is not even a first piece.
pub fn begin() -> bool {
    HEAP.set_source(Some(&Firmware));
    HEAP.prepare(0)
}

/// Lets it get none, but has room for `bytes` until [`grow_from`]. False: the firmware has not that much.
pub fn leave_firmware(bytes: usize) -> bool {
    let prepared = HEAP.prepare(bytes);
    HEAP.set_source(None);
    prepared
}

/// Lets it get RAM that no guest has, from here on.
pub fn grow_from(frames: &'static Frames) {
    HEAP.set_source(Some(frames));
}

/// Gives back what is not needed, and gets more where room is short. With no lock held.
pub fn tend() {
    HEAP.tend();
}

/// Its size, and what of it is in use, in bytes.
pub fn counts() -> (u64, u64) {
    let (bytes, used) = HEAP.counts();
    (bytes as u64, used as u64)
}
