// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory for tests.

use std::sync::Mutex;

use pasidon_kernel::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};

use super::layout;

/// RAM from where a guest has it, all zero at first.
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
}

fn range(ram: &[u8], address: GuestPhys, len: usize) -> Result<core::ops::Range<usize>, BadGuestAddress> {
    let start = address.0.checked_sub(layout::RAM_BASE);
    let start = start.and_then(|start| usize::try_from(start).ok());
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
