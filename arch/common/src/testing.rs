// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory for tests of the architecture crates, which ask for it by the feature `testing`.

use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};
use spin::Mutex;

/// RAM in one piece, all zero at first.
#[derive(Debug)]
pub struct TestMemory {
    base: u64,
    ram: Mutex<Vec<u8>>,
}

impl TestMemory {
    /// `size` bytes from the guest-physical address `base` on.
    pub fn new(base: u64, size: usize) -> Self {
        Self { base, ram: Mutex::new(vec![0; size]) }
    }

    /// `len` bytes at `address`, which must be RAM.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(GuestPhys(address), &mut bytes).expect("RAM");
        bytes
    }

    /// The word at `address`, which must be RAM.
    pub fn u32(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(GuestPhys(address), &mut bytes).expect("RAM");
        u32::from_le_bytes(bytes)
    }

    /// The two words at `address`, which must be RAM.
    pub fn u64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(GuestPhys(address), &mut bytes).expect("RAM");
        u64::from_le_bytes(bytes)
    }

    /// Writes to `address`, which must be RAM.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.write(GuestPhys(address), bytes).expect("RAM");
    }

    /// Writes two words to `address`, which must be RAM.
    pub fn put_u64(&self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    /// Hands `act` the part of RAM at `address`.
    fn with<T>(
        &self,
        address: GuestPhys,
        len: usize,
        act: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, BadGuestAddress> {
        let mut ram = self.ram.lock();
        let start = address.0.checked_sub(self.base);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let part = start.and_then(|start| ram.get_mut(start..start.checked_add(len)?));
        part.map(act).ok_or(BadGuestAddress { address, len: len as u64 })
    }
}

impl GuestMemory for TestMemory {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        self.with(address, buffer.len(), |part| buffer.copy_from_slice(part))
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        self.with(address, bytes.len(), |part| part.copy_from_slice(bytes))
    }

    fn ram_size(&self) -> u64 {
        self.ram.lock().len() as u64
    }
}
