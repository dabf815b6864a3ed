// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as device models and image loaders see it.
//!
//! **Principle.** A guest-physical address is a number a guest chose. It reaches memory only through
//! [`GuestMemory`], which checks it against the VM's own RAM; whoever holds a `&dyn GuestMemory` can
//! touch nothing else.

pub mod frames;
pub mod page_table;
pub mod ram;

use core::fmt;

use crate::base::addr::GuestPhys;

/// An access that does not lie wholly in the VM's RAM. Nothing was read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadGuestAddress {
    /// First byte of the access.
    pub address: GuestPhys,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for BadGuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {} are not guest RAM", self.len, self.address)
    }
}

impl core::error::Error for BadGuestAddress {}

/// The RAM of one VM. Calls may race with the guest's own accesses; each byte is then either old or new.
pub trait GuestMemory {
    /// Fills `buffer` from guest memory, or changes nothing.
    ///
    /// # Errors
    /// When not all of it is RAM.
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress>;

    /// Copies `bytes` to guest memory, or changes nothing.
    ///
    /// # Errors
    /// When not all of it is RAM.
    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress>;

    /// Bytes of RAM, whatever holes the platform's layout puts between them.
    fn ram_size(&self) -> u64;
}
