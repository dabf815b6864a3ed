// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a VM stood still because the monitor paused it.
//!
//! **Principle.** One account for each life of a VM, which all its vCPUs read, so that their clocks stay together. It
//! changes only while none of them runs: a pause begins when the last one has stopped, and ends before the first one
//! may go on.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

/// The pauses of one life of a VM.
#[derive(Debug, Default)]
pub struct Pauses {
    /// When the present one began, in nanoseconds of the host's clock.
    since: Mutex<Option<u64>>,
    /// What those before it took, in nanoseconds.
    total: AtomicU64,
}

impl Pauses {
    /// None yet.
    pub const fn new() -> Self {
        Self { since: Mutex::new(None), total: AtomicU64::new(0) }
    }

    /// All vCPUs have stopped. In a pause, nothing: it began when it did.
    pub fn begin(&self, now_ns: u64) {
        self.since.lock().get_or_insert(now_ns);
    }

    /// The vCPUs are about to go on. Without a pause, nothing.
    pub fn end(&self, now_ns: u64) {
        if let Some(since) = self.since.lock().take() {
            self.total.fetch_add(now_ns.saturating_sub(since), Ordering::SeqCst);
        }
    }

    /// What the pauses that are over took, in nanoseconds.
    pub fn total_ns(&self) -> u64 {
        self.total.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_counts_once_and_when_it_is_over() {
        let pauses = Pauses::new();
        pauses.end(5);
        assert_eq!(pauses.total_ns(), 0, "the first start ends no pause");
        pauses.begin(10);
        pauses.begin(15);
        assert_eq!(pauses.total_ns(), 0);
        pauses.end(30);
        pauses.end(50);
        assert_eq!(pauses.total_ns(), 20);
        pauses.begin(100);
        pauses.end(101);
        assert_eq!(pauses.total_ns(), 21);
        pauses.begin(200);
        pauses.end(199);
        assert_eq!(pauses.total_ns(), 21, "no clock goes back");
    }
}
