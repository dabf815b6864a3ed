// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the models of all units need around them: memory and time.

mod memory;

use std::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::id::VmId;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;

pub use self::memory::{ModelMemory, View, Watcher};

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
