// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures on purpose, for the tests of what the hypervisor says at its end. Only in builds with one of the
//! features `fault-panic`, `fault-null-read` and `fault-stack-overflow`.

use core::hint::black_box;

use pasidon_arch::interrupts::{self, Vector, vector};
use pasidon_arch::{fault, pcpu};

/// Whether this build fails on purpose.
pub const ON: bool = cfg!(any(
    feature = "fault-panic",
    feature = "fault-null-read",
    feature = "fault-stack-overflow"
));
/// The number in the panic's message.
const NUMBER: u32 = 42;
/// What is read from.
const NULL_FIELD: usize = 0x18;

/// Fails, in a build that is to. On the first pCPU, once all others run.
pub fn fail() {
    if ON {
        fault::add_context(|out| {
            // The sink cannot fail.
            let _ = writeln!(out, "provoked: a line of context");
        });
    }
    if cfg!(feature = "fault-panic") {
        // The backtrace has to find its way out of an interrupt.
        interrupts::install(vector::KICK, in_handler);
        interrupts::kick(pcpu::current().index);
        loop {
            interrupts::window();
        }
    }
    if cfg!(feature = "fault-null-read") {
        read(black_box(NULL_FIELD) as *const u64);
    }
    if cfg!(feature = "fault-stack-overflow") {
        black_box(deeper(0));
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
