// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scenarios, in the order they run: the platform first, then what stands on it.

mod clocks;
mod configuration;
mod definitions;
mod guests;
mod hostile;
mod hot_plug;
mod interrupts;
mod inventory;
mod inventory_mode;
mod kexec;
mod lifecycle;
mod lost;
mod masks;
mod no_iommu;
pub(crate) mod pasidon;
mod pausing;
mod platform;
mod report;
pub mod shared_queue;
mod sharing;
mod spaces;
mod sva;
mod units;
mod vdev;

use crate::scenario::Scenario;

/// Every scenario.
pub const ALL: &[Scenario] = &[
    platform::BOOT,
    platform::DMATEST,
    platform::FAULT,
    platform::UNITS,
    platform::USER_DRIVER,
    sva::DEVICE_TLB,
    platform::SELF_TEST,
    inventory::INVENTORY,
    inventory::DEVICE_TREE,
    inventory_mode::MODE,
    report::REPORT,
    lost::PCPU,
    guests::INVENTORY,
    guests::TWO,
    guests::THREE,
    guests::FPU,
    guests::NEIGHBOUR,
    guests::DEVICE_MEMORY,
    guests::WATCH,
    guests::SEED,
    guests::RULES,
    guests::ENDS,
    guests::RESTARTS,
    guests::WORDS,
    kexec::KEXEC,
    kexec::KDUMP,
    clocks::CLOCKS,
    clocks::PAUSE,
    pausing::DMA,
    interrupts::POSTED,
    masks::MASKS,
    sharing::BOTH,
    sharing::SAME_ADDRESSES,
    sharing::USER_SPACE,
    sharing::DENIED,
    sharing::DOORBELL,
    spaces::REPLACE,
    spaces::DMA_ONLY,
    units::TWO,
    shared_queue::DMATEST,
    shared_queue::HOSTILE_GUEST,
    shared_queue::FAIR,
    shared_queue::THOUSAND,
    vdev::DESTROYED,
    hot_plug::HOT_PLUG,
    hot_plug::MOVE,
    vdev::BUS_MASTER,
    vdev::SLEEP,
    vdev::ACCEL_CONFIG,
    lifecycle::KILLED,
    lifecycle::HANGS,
    lifecycle::STALE_PASID_CACHE,
    configuration::OF_ONE_VM,
    configuration::TWINS,
    configuration::OF_ALL,
    definitions::DEFINE,
    no_iommu::REFUSED,
    no_iommu::OFF,
    no_iommu::BYPASSED,
];

/// Those that take longest, the longest first: they are started before all others, so that none of them is left at the
/// end with a processor that has nothing to do beside it.
pub const LONGEST: &[&str] = &[
    "stale-pasid-cache",
    "killed-in-dma",
    "inventory",
    "swq-fair",
    "guest-kexec",
    "panic-report",
    "device-tree",
];

/// Those that are run on Bochs's processors, which do a tenth of the work per second, where nobody names any.
pub const ON_BOCHS: &[&str] = &[
    "inventory",
    "two-guests",
    "fpu-isolation",
    "dmatest-both",
    "dma-denied",
    "killed-in-dma",
    "guest-ends",
    "posted-interrupts",
    "hostile-neighbour",
    "processor-rules",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_first_and_what_bochs_runs_is_there() {
        for name in LONGEST.iter().chain(ON_BOCHS) {
            assert!(ALL.iter().any(|scenario| scenario.name == *name), "{name}");
        }
    }
}
