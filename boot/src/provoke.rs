// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures on purpose, for the tests of what the hypervisor says at its end. Only in builds with the feature
//! `provoke`: there the name of the first VM in the configuration says which.

use core::hint::black_box;

use pasidon_arch::interrupts;
use pasidon_arch::vector::{self, Vector};
use pasidon_arch::{fault, pcpu};
use pasidon_kernel::config::Config;
use pasidon_kernel::system::System;
use pasidon_kernel::vm::VmState;
use spin::Once;

/// Whether this build fails on purpose.
const ON: bool = cfg!(feature = "provoke");
/// The first VM's name where everything works but one pCPU.
const LOST_PCPU: &str = "lost-pcpu";
/// The number in the panic's message.
const NUMBER: u32 = 42;
/// What is read from.
const NULL_FIELD: usize = 0x18;

/// The system whose pCPU gets lost.
static SYSTEM: Once<&'static System> = Once::new();

fn first_vm(config: Option<&Config>) -> Option<&str> {
    let first = config?.vms.first()?;
    Some(first.name.value.as_str())
}

/// What the other pCPUs do, where that is not what they are for: they are busy, so that one that stands still was
/// stopped.
pub fn processor(config: Option<&Config>) -> Option<fn() -> !> {
    (ON && first_vm(config) != Some(LOST_PCPU)).then_some(busy)
}

/// Fails, in a build that is to, as the first VM is called: `panic`, `null-read` or `stack-overflow`. On the first pCPU,
/// once all others run.
pub fn fail(config: Option<&Config>) {
    if !ON {
        return;
    }
    fault::add_context(|out| {
        // The sink cannot fail.
        let _ = writeln!(out, "provoked: a line of context");
    });
    match first_vm(config) {
        Some("panic") => {
            // The backtrace has to find its way out of an interrupt.
            interrupts::install(vector::KICK, in_handler);
            interrupts::kick(pcpu::current().index);
            loop {
                interrupts::window();
            }
        }
        Some("null-read") => read(black_box(NULL_FIELD) as *const u64),
        Some("stack-overflow") => {
            black_box(deeper(0));
        }
        // See `lose_pcpu`.
        Some(LOST_PCPU) => {}
        other => log::error!(
            "this build fails as the first VM is called: panic, null-read, stack-overflow or {LOST_PCPU}, not {other:?}"
        ),
    }
}

/// In a build that fails and whose first VM is called `lost-pcpu`, a further pCPU that is interrupted while the second VM
/// is to pause does not come back until the first is paused. To be called when the run loop's interrupts are installed.
pub fn lose_pcpu(system: &'static System) {
    let first = system.vms().first().map(|vm| vm.name() == LOST_PCPU);
    if ON && first == Some(true) {
        SYSTEM.call_once(|| system);
        interrupts::install(vector::KICK, stay);
    }
}

fn stay(_: Vector) {
    let paused = |place: usize| {
        let vms = SYSTEM.get().map(|system| system.vms()).unwrap_or_default();
        vms.get(place).is_some_and(|vm| vm.state() == VmState::Paused)
    };
    if pcpu::current().index == 0 || !paused(1) {
        return;
    }
    while !paused(0) {
        core::hint::spin_loop();
    }
}

fn busy() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[inline(never)]
fn in_handler(vector: Vector) {
    let number = black_box(NUMBER);
    panic!("provoked in the handler of vector {vector:#x}: {number}");
}

#[inline(never)]
fn read(pointer: *const u64) {
    // SAFETY: not even nearly; the fault is what is wanted.
    black_box(unsafe { pointer.read_volatile() });
}

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if black_box(depth) == u64::MAX {
        return depth;
    }
    deeper(depth + 1).wrapping_add(black_box(depth))
}
