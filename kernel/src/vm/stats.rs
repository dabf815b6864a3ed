// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of one VM: why it exited how often, and how long it ran.
//!
//! **Principle.** Counting is one relaxed atomic addition on a line of the VM's own; readers see each
//! counter at some recent moment, and never keep a vCPU waiting.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::monitor::info::ExitCount;
use crate::vdev::gate::Away;

macro_rules! exit_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal),* $(,)?) => {
        /// Why a vCPU came back to the hypervisor, in terms that hold on every architecture.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum ExitKind {
            $($(#[$doc])* $kind,)*
        }

        impl ExitKind {
            /// All kinds, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The word for people and for `--json`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

exit_kinds! {
    /// An access to an emulated device in memory.
    Mmio = "mmio",
    /// An access to the port space.
    Io = "io",
    /// A stage-2 fault that was not a device access.
    Stage2Fault = "stage2-fault",
    /// A system or model-specific register.
    SystemRegister = "system-register",
    /// An identification instruction (CPUID and its like).
    Identification = "identification",
    /// A call to the hypervisor.
    Hypercall = "hypercall",
    /// The vCPU waits for an interrupt.
    Halt = "halt",
    /// The vCPU can take an interrupt again.
    InterruptWindow = "interrupt-window",
    /// A physical interrupt came while the guest ran.
    Interrupt = "interrupt",
    /// The vCPU cannot go on.
    Shutdown = "shutdown",
    /// Everything else.
    Other = "other",
}

/// Time that vCPUs ran. One that runs now counts up to now, however long its turn.
#[derive(Clone, Copy, Debug, Default)]
struct RunTime {
    /// Turns that are over, in nanoseconds.
    past: u64,
    /// How many vCPUs run.
    running: u64,
    /// Sum of the times at which those began.
    begun: u64,
}

impl RunTime {
    fn until(&self, now: u64) -> u64 {
        let current = self.running.saturating_mul(now).saturating_sub(self.begun);
        self.past.saturating_add(current)
    }
}

/// Counters of one VM. On cache lines of their own, so that counting in one VM does not slow another.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct VmStats {
    exits: [AtomicU64; ExitKind::ALL.len()],
    run_time: Mutex<RunTime>,
    faults: AtomicU64,
    pub(crate) away: Away,
    starts: AtomicU64,
}

impl VmStats {
    /// One exit.
    pub fn count_exit(&self, kind: ExitKind) {
        if let Some(counter) = self.exits.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A vCPU begins to run at `now`, in nanoseconds since boot. [`VmStats::end_run`] must follow. Not to be
    /// called from an interrupt handler.
    pub fn begin_run(&self, now: u64) {
        let mut time = self.run_time.lock();
        time.running += 1;
        time.begun = time.begun.saturating_add(now);
    }

    /// The vCPU that began to run at `began` has run until `now`.
    pub fn end_run(&self, began: u64, now: u64) {
        let mut time = self.run_time.lock();
        time.running = time.running.saturating_sub(1);
        time.begun = time.begun.saturating_sub(began);
        time.past = time.past.saturating_add(now.saturating_sub(began));
    }

    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_start(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// Exits of one kind.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.exits.get(kind as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Exits of all kinds, in the order of [`ExitKind::ALL`].
    pub fn all_exits(&self) -> Vec<ExitCount> {
        ExitKind::ALL
            .iter()
            .map(|kind| ExitCount { kind: kind.name().into(), count: self.exits(*kind) })
            .collect()
    }

    /// Time its vCPUs ran until `now`, in nanoseconds. Not to be called from an interrupt handler.
    pub fn run_ns(&self, now: u64) -> u64 {
        self.run_time.lock().until(now)
    }

    /// Records of DMA faults of its vdevs.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How often it was started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_while_it_lasts() {
        let stats = VmStats::default();
        stats.begin_run(100);
        assert_eq!(stats.run_ns(130), 30);
        stats.begin_run(120);
        assert_eq!(stats.run_ns(130), 40, "two vCPUs");
        stats.end_run(100, 140);
        assert_eq!(stats.run_ns(150), 70);
        stats.end_run(120, 150);
        assert_eq!(stats.run_ns(1000), 70);
    }

    #[test]
    fn each_kind_has_a_counter_of_its_own() {
        let stats = VmStats::default();
        for (times, kind) in ExitKind::ALL.iter().enumerate() {
            for _ in 0..times {
                stats.count_exit(*kind);
            }
        }
        let counts: Vec<u64> = stats.all_exits().iter().map(|exit| exit.count).collect();
        assert_eq!(counts, (0..ExitKind::ALL.len() as u64).collect::<Vec<_>>());
        assert_eq!(stats.all_exits()[0].kind, "mmio");
    }
}
