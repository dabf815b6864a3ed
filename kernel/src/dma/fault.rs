// SPDX-License-Identifier: MIT OR Apache-2.0
//! DMA faults, in the same words whatever IOMMU recorded them.

use crate::base::addr::Requester;
use crate::dma::pasid::Pasid;

/// What an IOMMU tells of requests that it refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// It recorded one. A record may stand for several faults: units may merge those of one device that come
    /// before the record is read.
    Fault(DmaFault),
    /// It recorded one of this number on its bus, which is no PCI function's.
    Stranger(u32),
    /// It had no room, so that at least one was not recorded.
    Lost,
}

/// One DMA or interrupt request that the IOMMU refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaFault {
    /// Who sent it.
    pub requester: Requester,
    /// With which tag, if any.
    pub pasid: Option<Pasid>,
    /// The address on the bus (page granular), or the interrupt index for interrupt requests.
    pub address: u64,
    /// Direction.
    pub access: FaultAccess,
    /// Why, in words: `no mapping`, `no write permission`, `PASID not attached`.
    pub reason: &'static str,
    /// The number the hardware gave for it.
    pub code: u8,
}

/// What the refused request tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAccess {
    /// Memory read.
    Read,
    /// Memory write.
    Write,
    /// An interrupt message.
    Interrupt,
}
