// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as a slice's device sees it, for a driver that completes on its behalf.

use alloc::sync::Arc;

use spin::Mutex;

use crate::base::addr::{GuestPhys, HostPhys, Iova};
use crate::dma::ioas::IoAddressSpace;
use crate::memory::SharedMemory;
use crate::memory::ram::GuestRam;
use crate::vdev::parent::{SliceMemory, UntranslatedMemory};

/// The I/O address space behind a slice, which can be replaced.
pub(super) type PresentSpace = Arc<Mutex<Arc<IoAddressSpace>>>;

/// Memory behind an I/O address space.
pub(super) struct SpaceMemory {
    pub(super) space: PresentSpace,
    pub(super) ram: Arc<SharedMemory>,
}

impl SliceMemory for SpaceMemory {
    fn write_u64(&self, iova: Iova, value: u64) -> bool {
        let place = self.space.lock().translate(iova, size_of_val(&value) as u64);
        place.is_some_and(|place| self.ram.write_u64(place, value))
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        self.space.lock().translate(iova, len).is_some()
    }

    fn limit(&self) -> Iova {
        self.space.lock().limit()
    }
}

/// All RAM of a VM, at its guest-physical addresses: what a slice without an IOMMU may be led to.
pub(super) struct WholeMemory {
    pub(super) layout: Arc<GuestRam>,
    pub(super) ram: Arc<SharedMemory>,
}

impl SliceMemory for WholeMemory {
    fn write_u64(&self, iova: Iova, value: u64) -> bool {
        self.ram.write_u64(GuestPhys(iova.0), value)
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        self.run(iova).is_some_and(|(_, follow)| len <= follow)
    }

    /// No page of the driver's lies there.
    fn limit(&self) -> Iova {
        Iova(u64::MAX)
    }
}

impl UntranslatedMemory for WholeMemory {
    fn run(&self, address: Iova) -> Option<(HostPhys, u64)> {
        self.layout.translate(GuestPhys(address.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::LARGE_PAGE_SIZE;
    use crate::base::id::VmId;
    use crate::memory::NoMemory;
    use crate::memory::frames::Frames;
    use crate::memory::ram::RamRange;

    #[test]
    fn without_an_iommu_a_run_ends_where_the_vms_memory_does() {
        const PAGE: u64 = LARGE_PAGE_SIZE;
        let frames = Frames::new([(HostPhys(8 * PAGE), PAGE), (HostPhys(16 * PAGE), 2 * PAGE)]);
        let frames = frames.allocate_guest(3 * PAGE).unwrap().scrub(&mut |_, _| ());
        let ranges = [(0, 1), (4, 2)]
            .map(|(start, pages)| RamRange { start: GuestPhys(start * PAGE), len: pages * PAGE });
        let layout = Arc::new(GuestRam::new(VmId(0), frames, &ranges).unwrap());
        let own = |host: u64| layout.segments().iter().any(|s| (s.host.0..s.host.0 + s.len).contains(&host));
        let memory = WholeMemory { layout: layout.clone(), ram: Arc::new(NoMemory) };
        for page in 0..8 {
            for offset in [0, 8, PAGE - 8] {
                let address = page * PAGE + offset;
                let run = memory.run(Iova(address));
                assert_eq!(run.is_some(), [0, 4, 5].contains(&page), "{address:#x}");
                let Some((host, follow)) = run else { continue };
                assert!(own(host.0) && own(host.0 + follow - 1), "{address:#x}");
                assert!(memory.covers(Iova(address), follow) && !memory.covers(Iova(address), follow + 1));
            }
        }
        assert!(memory.run(Iova(u64::MAX)).is_none() && !memory.covers(Iova(u64::MAX - 7), 8));
    }
}
