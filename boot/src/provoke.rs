// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures on purpose, for the tests of what the hypervisor says at its end. Only in builds with the feature
//! `provoke`: there the name of the first VM in the configuration says which.

use core::hint::black_box;

use pasidon_arch::interrupts::{self, Vector, vector};
use pasidon_arch::{fault, pcpu};
use pasidon_kernel::config::Config;

/// Whether this build fails on purpose.
pub const ON: bool = cfg!(feature = "provoke");
/// The number in the panic's message.
const NUMBER: u32 = 42;
/// What is read from.
const NULL_FIELD: usize = 0x18;

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
    let first = config.and_then(|config| config.vms.first());
    match first.map(|vm| vm.name.value.as_str()) {
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
        other => log::error!(
            "this build fails as the first VM is called: panic, null-read or stack-overflow, not {other:?}"
        ),
    }
}

/// Where the other pCPUs go on in such a build: busy, so that one that stands still was stopped.
pub fn processor() -> ! {
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
