// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial line: who may write to it, and how what is typed finds its way.
//!
//! **Principle.** One lock around the [`Console`], given in the order in which it was asked for: a guest that
//! prints without end delays the monitor by one byte at a time, and cannot keep it from the line. Log messages
//! never wait for it: whoever has the line prints what has been logged meanwhile before he gives it back, and what
//! comes while he prints that is left to the desk.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use pasidon_arch::serial;
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

/// Gives the line to a console for the VMs of these names, by their index in the configuration.
pub fn open(mode: ConsoleMode, names: Vec<String>) {
    LINE.call_once(|| TicketMutex::new(Console::new(mode, names)));
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

/// Bytes typed for guests that had no room for them yet.
#[derive(Default)]
pub struct Typed(Vec<VecDeque<u8>>);

/// Bytes kept per guest; what is typed beyond is dropped, as on a line without flow control.
const TYPED_MAX: usize = 64 << 10;

impl Typed {
    /// A byte for the guest with this index.
    pub fn push(&mut self, vm: usize, byte: u8) {
        if self.0.len() <= vm {
            self.0.resize_with(vm + 1, VecDeque::new);
        }
        let queue = &mut self.0[vm];
        if queue.len() < TYPED_MAX {
            queue.push_back(byte);
        }
    }

    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(VecDeque::is_empty)
    }

    /// Calls `offer` with each guest's next bytes, until it says that there is no room.
    pub fn hand_out(&mut self, offer: &mut dyn FnMut(usize, u8) -> bool) {
        for (vm, queue) in self.0.iter_mut().enumerate() {
            while let Some(byte) = queue.front() {
                if !offer(vm, *byte) {
                    break;
                }
                queue.pop_front();
            }
        }
    }
}
