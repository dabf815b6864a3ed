// SPDX-License-Identifier: MIT OR Apache-2.0
//! PASIDs: the tag that selects an I/O address space, and who may use which.
//!
//! **Principle.** A number is leased ([`PasidLease`]) to one attachment and comes back only inside the proof
//! ([`Quiesced`](crate::dma::attachment::Quiesced)) that nothing can send with it any more. A lease that is dropped in any
//! other way is *retired*: its number is not used again and counted, because a PASID is not reused on hope.
//!
//! **Invariants.** No number is in two leases. PASID 0 is never leased: it stands for untagged DMA
//! (RID_PASID of VT-d, Arm's traffic without SubstreamID).
//!
//! Source: PCIe 6.20 (PASID TLP prefix).

mod lease;
mod namespaces;
mod scope;
mod space;

use core::fmt;

pub use lease::{LeaseRecord, PasidLease, PasidQuota};
pub use namespaces::PasidNamespaces;
pub use scope::NamespaceScope;
pub use space::PasidSpace;

/// A process address space identifier (PCIe), the same thing as an Arm SubstreamID. 20 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pasid(u32);

impl Pasid {
    /// Width on the bus, in bits (PCIe 6.20).
    pub const BITS: u32 = 20;

    /// `None` where `value` does not fit in 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << Self::BITS { Some(Self(value)) } else { None }
    }

    /// The number.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
