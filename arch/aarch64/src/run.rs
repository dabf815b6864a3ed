// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a pCPU does all day: [`pasidon_arch_common::run`], with the interrupts of Arm.

use core::convert::Infallible;

use pasidon_arch_common::run::note_device_interrupt;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::refusal::Refusal;

pub use pasidon_arch_common::run::{has_parent_events, note_parent_event, rounds, take_parent_events};

use crate::hardware::{El2, WORLD};
use crate::interrupts::{self, vector};
use crate::{gic, pcpu, time};

/// What every pCPU works on.
pub type World = pasidon_arch_common::run::World<El2>;

/// Makes the world known to all pCPUs and installs the handlers. To be called once, by the first pCPU, before
/// any calls [`run`].
pub fn install(world: World) {
    WORLD.call_once(|| world);
    interrupts::install(vector::DEVICES.start, |intid| {
        note_device_interrupt::<El2>(HostVector { vector: intid, cpu: gic::affinity(pcpu::current().mpidr) });
    });
    // The interrupt itself is the message: the loop looks at everything anyway.
    interrupts::install(vector::KICK, |_| {});
    interrupts::install(time::vector(), |_| time::arm_timer(None));
    // These end a guest's run, and are over by the time that they could be taken.
    interrupts::install(gic::maintenance(), |_| {});
    interrupts::install(time::virtual_timer(), |_| {});
}

/// Runs vCPUs on the pCPU that calls, for ever. Refused where the processor cannot; the world must be
/// installed.
pub fn run() -> Result<Infallible, Refusal> {
    pasidon_arch_common::run::run::<El2>()
}
