// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a pCPU does all day: [`pasidon_arch_common::run`], with the interrupts of x86-64.

use core::convert::Infallible;

use pasidon_arch_common::notes::Notes;
use pasidon_arch_common::run::note_device_interrupt;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use spin::Once;

use crate::hardware::Pc;
use crate::{interrupts, pcpu, vector};

/// What every pCPU works on.
pub type World = pasidon_arch_common::run::World<Pc>;

static WORLD: Once<World> = Once::new();
/// What interrupt handlers leave on this machine.
pub static NOTES: Notes = Notes::new();

/// What every pCPU works on, once there is something.
pub(crate) fn world() -> Option<&'static World> {
    WORLD.get()
}

/// How often a pCPU has gone round its loop.
pub(crate) fn rounds(pcpu: u32) -> u64 {
    NOTES.rounds(pcpu)
}

/// Makes the world known to all pCPUs and installs the handlers. To be called once, by the first pCPU, before
/// any calls [`run`].
pub fn install(world: World) {
    WORLD.call_once(|| world);
    for vector in vector::DEVICES {
        interrupts::install(vector, |vector| {
            let from = HostVector { vector: vector.into(), cpu: pcpu::current().apic_id };
            if let Some(world) = self::world() {
                note_device_interrupt(world, from);
            }
        });
    }
    // The interrupt itself is the message: the loop looks at everything anyway.
    interrupts::install(vector::KICK, |_| {});
    interrupts::install(vector::TIMER, |_| {});
}

/// Runs vCPUs on the pCPU that calls, for ever.
///
/// # Errors
/// When the processor cannot run guests, or the world is not installed yet.
pub fn run() -> Result<Infallible, Refusal> {
    let none = || Refusal::new("run loop", "started before the world was installed", "");
    pasidon_arch_common::run::run(world().ok_or_else(none)?)
}
