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
    fn write(&self, iova: Iova, bytes: &[u8]) -> bool {
        let place = self.space.translate(iova, bytes.len() as u64);
        place.is_some_and(|place| self.ram.write(place, bytes).is_ok())
    }

    fn covers(&self, iova: Iova, len: u64) -> bool {
        self.space.translate(iova, len).is_some()
    }

    fn limit(&self) -> Iova {
        self.space.limit()
    }
}
