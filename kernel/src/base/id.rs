// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of things by number, each kind a type of its own.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub $raw);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A VM: its place among those that there are, and how many had that place before it. So what comes late for one
    /// that was removed is for nobody; it would have to be 2,048 definitions late to be for another, and what it is about
    /// (a vdev, an address space) has a number of its own that is never used again.
    VmId(u16)
}

impl VmId {
    /// How many VMs there can be at a time.
    pub const PLACES: usize = 31;
    /// What two that follow each other at one place differ by.
    const STEP: u16 = 32;

    /// The first VM at a place below [`VmId::PLACES`].
    pub(crate) const fn first_at(place: u8) -> Self {
        Self(place as u16 % Self::STEP)
    }

    /// The next one at the same place.
    pub(crate) const fn next(self) -> Self {
        Self(self.0.wrapping_add(Self::STEP))
    }

    /// Its place, which no other VM has as long as it is there.
    pub const fn place(self) -> usize {
        (self.0 % Self::STEP) as usize
    }
}

const _: () = assert!(VmId::PLACES <= VmId::STEP as usize);
id! {
    /// A vdev. Never used for another one, so that it says which life of a queue is meant.
    VdevId(u32)
}
id! {
    /// An I/O address space. Never used for another one.
    IoasId(u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_and_its_numbers_differ_for_2048_vms() {
        for place in 0..VmId::PLACES as u8 {
            let mut seen = alloc::collections::BTreeSet::new();
            let mut vm = VmId::first_at(place);
            assert_eq!(vm.0, u16::from(place), "the first ones are numbered as they come");
            for _ in 0..2048 {
                assert_eq!(vm.place(), usize::from(place));
                assert!(seen.insert(vm));
                vm = vm.next();
            }
        }
    }
}
