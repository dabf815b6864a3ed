// SPDX-License-Identifier: MIT OR Apache-2.0
//! PASIDs: the tag that selects an I/O address space.

use core::fmt;

/// A process address space identifier (PCIe), the same thing as an Arm SubstreamID. 20 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pasid(u32);

impl Pasid {
    /// Width on the bus, in bits (PCIe 6.20).
    pub const BITS: u32 = 20;

    /// `None` where `value` does not fit in 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << Self::BITS {
            Some(Self(value))
        } else {
            None
        }
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
