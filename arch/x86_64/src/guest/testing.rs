// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory for tests.

use std::sync::Mutex;

use pasidon_kernel::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};

/// RAM from guest-physical 0 without a hole, all zero at first.
pub(crate) struct TestMemory(Mutex<Vec<u8>>);

impl TestMemory {
    pub(crate) fn new(size: usize) -> Self {
        Self(Mutex::new(vec![0; size]))
    }

    /// `len` bytes at `address`.
    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(GuestPhys(address), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    pub(crate) fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }
}

fn range(ram: &[u8], address: GuestPhys, len: usize) -> Result<core::ops::Range<usize>, BadGuestAddress> {
    let start = usize::try_from(address.0).ok();
    let end = start.and_then(|s| s.checked_add(len)).filter(|e| *e <= ram.len());
    start.zip(end).map(|(s, e)| s..e).ok_or(BadGuestAddress {
        address,
        len: len as u64,
    })
}

impl GuestMemory for TestMemory {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        let ram = self.0.lock().unwrap();
        buffer.copy_from_slice(&ram[range(&ram, address, buffer.len())?]);
        Ok(())
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        let mut ram = self.0.lock().unwrap();
        let range = range(&ram, address, bytes.len())?;
        ram[range].copy_from_slice(bytes);
        Ok(())
    }

    fn ram_size(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
}
