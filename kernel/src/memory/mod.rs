// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as device models and image loaders see it.
//!
//! **Principle.** A guest-physical address is a number a guest chose. It reaches memory only through
//! [`GuestMemory`], which checks it against the VM's own RAM; whoever holds a `&dyn GuestMemory` can
//! touch nothing else.

pub mod frames;
pub mod page_table;
pub mod ram;
pub mod ranges;

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

/// A VM without RAM.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        Err(BadGuestAddress { address, len: buffer.len() as u64 })
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        Err(BadGuestAddress { address, len: bytes.len() as u64 })
    }

    fn ram_size(&self) -> u64 {
        0
    }
}

/// Memory of a VM that several may use.
pub type SharedMemory = dyn GuestMemory + Send + Sync;

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

    /// The number that lies at `address`, which is a multiple of 8, the lowest byte first; `None` unless all of it is
    /// RAM. Where the memory is shared with a running guest it is read at once, as a processor reads an entry of its
    /// page tables.
    fn read_u64(&self, address: GuestPhys) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Writes a number at `address`, which is a multiple of 8, the lowest byte first; false, with nothing written, unless
    /// all of it is RAM. Where the memory is shared with a running guest it is written at once.
    fn write_u64(&self, address: GuestPhys, value: u64) -> bool {
        self.write(address, &value.to_le_bytes()).is_ok()
    }

    /// Whether all of the `len` bytes from `address` are RAM.
    fn is_ram(&self, address: GuestPhys, len: usize) -> bool {
        let mut probe = [0; 64];
        let step = probe.len();
        (0..len).step_by(step).all(|at| {
            let from = address.checked_add(at as u64);
            from.is_some_and(|from| self.read(from, &mut probe[..step.min(len - at)]).is_ok())
        })
    }

    /// Bytes of RAM, whatever holes the platform's layout puts between them.
    fn ram_size(&self) -> u64;
}
