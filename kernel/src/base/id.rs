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
    /// A VM, in the order of definition.
    VmId(u16)
}
id! {
    /// A vdev. Never used for another one, so that it says which life of a queue is meant.
    VdevId(u32)
}
id! {
    /// An I/O address space. Never used for another one.
    IoasId(u32)
}
