// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of one VM: why it exited how often, and how long it ran.
//!
//! **Principle.** Counting is one relaxed atomic addition on a line of the VM's own; readers see each
//! counter at some recent moment, and never keep a vCPU waiting.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::info::ExitCount;

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

/// Counters of one VM. On cache lines of their own, so that counting in one VM does not slow another.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct VmStats {
    exits: [AtomicU64; ExitKind::ALL.len()],
    run_ns: AtomicU64,
    faults: AtomicU64,
    starts: AtomicU64,
}

impl VmStats {
    /// One exit.
    pub fn count_exit(&self, kind: ExitKind) {
        if let Some(counter) = self.exits.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A vCPU ran for `ns` nanoseconds.
    pub fn add_run_time(&self, ns: u64) {
        self.run_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_start(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// Exits of one kind.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.exits
            .get(kind as usize)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Exits of all kinds, in the order of [`ExitKind::ALL`].
    pub fn all_exits(&self) -> Vec<ExitCount> {
        ExitKind::ALL
            .iter()
            .map(|kind| ExitCount {
                kind: kind.name(),
                count: self.exits(*kind),
            })
            .collect()
    }

    /// Time its vCPUs ran, in nanoseconds.
    pub fn run_ns(&self) -> u64 {
        self.run_ns.load(Ordering::Relaxed)
    }

    /// DMA faults of its vdevs.
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
