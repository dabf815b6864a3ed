// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial line: who may write to it, and how what is typed finds its way.
//!
//! **Principle.** One lock around the [`Console`], given in the order in which it was asked for: a guest that
//! prints without end delays the monitor by one byte at a time, and cannot keep it from the line. Log messages
//! never wait for it: whoever has the line prints what has been logged meanwhile before he gives it back, and what
//! comes while he prints that is left to the desk.

use alloc::string::String;
use alloc::vec::Vec;

use pasidon_arch::{serial, time};
use pasidon_kernel::config::ConsoleMode;
use pasidon_kernel::console::Console;
use spin::Once;
use spin::mutex::TicketMutex;

use crate::output::{self, LOGGER};

/// The line, once the configuration is known; before, messages go out as they are.
static LINE: Once<TicketMutex<Console>> = Once::new();

fn put(byte: u8) {
    serial::write(&[byte]);
}

/// Messages wait: shows them, unless somebody has the line, who then does. Those that come meanwhile are the
/// desk's, so that nobody who happens to log prints for others without end.
pub fn show_log() {
    let left = match LINE.get().and_then(TicketMutex::try_lock) {
        Some(mut console) => LOGGER.drain(&mut |message| console.log(message, &mut put)),
        None => false,
    };
    if left && let Some(desk) = super::DESK.get() {
        desk.note_log();
    }
}

/// A number that no guest knows: made of the clocks, which did not run for any guest yet.
fn mark() -> u16 {
    /// Mixes all bits into the upper ones (Fibonacci hashing).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let count = time::now_ns() ^ time::unix_ns().rotate_left(32);
    (count.wrapping_mul(FACTOR) >> 48) as u16
}

/// Gives the line to a console for the VMs of these names, by their index in the configuration.
pub fn open(mode: ConsoleMode, names: Vec<String>) {
    LINE.call_once(|| TicketMutex::new(Console::new(mode, names, mark())));
    output::CONSOLE.call_once(|| show_log);
    show_log();
}

/// Uses the console.
pub fn with<R>(act: impl FnOnce(&mut Console, &mut dyn FnMut(u8)) -> R) -> Option<R> {
    let line = LINE.get()?;
    let result = {
        let mut console = line.lock();
        let result = act(&mut console, &mut put);
        // What this leaves is seen below.
        let _ = LOGGER.drain(&mut |message| console.log(message, &mut put));
        result
    };
    // Whoever logged while the line was being given back did not get it.
    show_log();
    Some(result)
}
