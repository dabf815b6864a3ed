// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses, each kind a type of its own, so that a guest's number can never be used as a host's.

use core::fmt;

/// Size of the smallest page of every translation structure here, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// Size of a large page (one level up on x86-64 and on a 4 KiB granule of Arm), in bytes. Guest memory
/// is handed out in these.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// This address plus `offset` bytes; `None` on overflow.
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Whether the address is a multiple of `align` (a power of two).
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An address in a guest's physical address space.
    GuestPhys
}
address! {
    /// An address in the machine's physical address space.
    HostPhys
}
address! {
    /// An address as a device puts it on the bus; translated by an I/O address space.
    Iova
}

/// A PCI requester: segment and routing ID (bus 15:8, device 7:3, function 2:0). On Arm the StreamID is
/// derived from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Requester {
    /// PCI segment group.
    pub segment: u16,
    /// Routing ID.
    pub rid: u16,
}

impl Requester {
    /// From segment, bus, device (0..32) and function (0..8).
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self { segment, rid: (bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16 }
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.rid >> 8) as u8
    }

    /// Device number, 0..32.
    pub const fn device(self) -> u8 {
        (self.rid >> 3) as u8 & 31
    }

    /// Function number, 0..8.
    pub const fn function(self) -> u8 {
        self.rid as u8 & 7
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus(), self.device(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requester_prints_as_people_write_it() {
        let requester = Requester::new(0, 0x6a, 1, 3);
        assert_eq!(requester.to_string(), "0000:6a:01.3");
        assert_eq!((requester.bus(), requester.device(), requester.function()), (0x6a, 1, 3));
    }

    #[test]
    fn addition_that_wraps_is_none() {
        assert_eq!(GuestPhys(u64::MAX).checked_add(1), None);
        assert_eq!(GuestPhys(0x1000).checked_add(1), Some(GuestPhys(0x1001)));
    }
}
