// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page that a driver shares with one slice of its device: where the device writes what the driver must be able to
//! believe, because no guest can write there.
//!
//! **Principle.** The page lies in the slice's I/O address space and in no guest's stage 2. Its address is above every
//! address that a guest may name to the device ([`first`]), which the driver checks in what it submits.
//!
//! A slice of the same address space whose portal is mapped into the guest has nobody to check that: a guest that has
//! both kinds on one device can write to its own windows, and deceive what is counted of itself: then the device has more
//! of it than is known, and others may be told to try again. No end, and nothing of another's, rests on what lies in a
//! window.

use crate::base::addr::{HostPhys, Iova};

/// Where windows begin, below the end of the addresses that an IOMMU translates, in bytes.
const REGION: u64 = 1 << 30;

/// What a driver shares with one slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Where the device finds it.
    pub iova: Iova,
    /// The page.
    pub page: HostPhys,
}

/// The first address that no guest may name to a device, in I/O address spaces of so many bits.
pub const fn first(address_bits: u8) -> Iova {
    Iova(end(address_bits) - REGION)
}

/// The first address behind all windows.
pub(super) const fn end(address_bits: u8) -> u64 {
    // No IOMMU translates fewer than 39 bits; one that did would have no room for guests either.
    let bits = if address_bits < 32 {
        32
    } else if address_bits > 62 {
        62
    } else {
        address_bits
    };
    1 << bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_in_the_last_part_of_what_is_translated() {
        assert_eq!((first(39), end(39)), (Iova(0x7f_c000_0000), 0x80_0000_0000));
        assert_eq!(first(48), Iova(0xffff_c000_0000));
        for bits in 0..=u8::MAX {
            assert_eq!(end(bits) - first(bits).0, REGION);
        }
    }
}
