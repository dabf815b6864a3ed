// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as a slice's device sees it, for a driver that completes on its behalf.

use alloc::sync::Arc;

use crate::base::addr::Iova;
use crate::dma::ioas::IoAddressSpace;
use crate::memory::SharedMemory;
use crate::vdev::parent::SliceMemory;

/// Memory behind an I/O address space.
pub(super) struct SpaceMemory {
    pub(super) space: Arc<IoAddressSpace>,
    pub(super) ram: Arc<SharedMemory>,
}

impl SliceMemory for SpaceMemory {
    fn write_u64(&self, iova: Iova, value: u64) -> bool {
        let place = self.space.translate(iova, size_of_val(&value) as u64);
        place.is_some_and(|place| self.ram.write_u64(place, value))
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        self.space.translate(iova, len).is_some()
    }

    fn limit(&self) -> Iova {
        self.space.limit()
    }
}
