// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the models of all units need around them: memory and time; and registers that nobody may write.

mod memory;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;

use crate::registers::Registers;

pub use self::memory::{ModelMemory, View, Watcher};

/// Registers with values, at their offsets, that are read only.
pub struct ReadOnly(BTreeMap<usize, u64>);

impl ReadOnly {
    pub fn new(values: &[(usize, u64)]) -> Self {
        Self(values.iter().copied().collect())
    }
}

impl Registers for ReadOnly {
    fn read32(&self, offset: usize) -> u32 {
        self.read64(offset) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        panic!("{value:#x} is written to {offset:#x}");
    }

    fn read64(&self, offset: usize) -> u64 {
        *self.0.get(&offset).unwrap_or_else(|| panic!("{offset:#x} is read"))
    }

    fn write64(&self, offset: usize, value: u64) {
        panic!("{value:#x} is written to {offset:#x}");
    }
}

/// Time that goes on by a fixed step each time it is asked for.
#[derive(Default)]
pub struct ModelHost(AtomicU64);

impl Host for ModelHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(100_000, Ordering::Relaxed)
    }

    fn wake_first(&self) {}

    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        None
    }

    fn free_vector(&self, _vector: HostVector) {}
}
