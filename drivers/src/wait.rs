// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for a unit, with a limit.

use pasidon_kernel::irq::host::Host;

/// How long a unit may take to carry out a command before it is given up, in nanoseconds.
pub(crate) const COMMAND_LIMIT_NS: u64 = 1_000_000_000;

/// Spins until `done` says so, at most `limit_ns` nanoseconds. Returns whether it did.
pub(crate) fn wait_until(host: &dyn Host, limit_ns: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = host.now_ns().saturating_add(limit_ns);
    loop {
        if done() {
            return true;
        }
        if host.now_ns() >= deadline {
            return done();
        }
        core::hint::spin_loop();
    }
}
