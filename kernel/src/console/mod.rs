// SPDX-License-Identifier: MIT OR Apache-2.0
//! One serial line for the monitor, the log and the console of every guest.
//!
//! **Plain mode**, for people: one of them has the line at a time. The guest that has it prints and reads
//! raw bytes; `Ctrl-]` leaves it for the monitor, and in the monitor goes back to it. What the others
//! print is kept and shown when they are entered. A line of the log that comes while a guest has the
//! line stands on a line of its own behind `[pasidon] `.
//!
//! **Framed mode**, for programs: all of them at once, see [`framing`]. There is no prompt and no echo.
//! Channel 0 is monitor and log, channel n the n-th VM of the configuration, counted from 1.
//!
//! **Invariants.** In framed mode no byte is lost or mixed up: each call hands all its bytes to the sink,
//! which may wait for the line. Text of the monitor is cleared of control characters, so that only
//! this module and the guest that has the line move a terminal's cursor.

mod backlog;
mod editor;
pub mod framing;

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use backlog::Backlog;
use editor::{Edit, Editor};
use framing::{Decoder, Encoder, MONITOR_CHANNEL};

use crate::config::ConsoleMode;
use crate::refusal::Refusal;

pub use editor::MAX_LINE;

/// `Ctrl-]`.
pub const LEAVE_KEY: u8 = 0x1d;
/// What the monitor waits behind.
const PROMPT: &str = "pasidon> ";
/// What marks a line of the log within a guest's output.
const LOG_MARK: &str = "[pasidon] ";
/// Carriage return and erasure of the line (ECMA-48 EL).
const CLEAR_LINE: &[u8] = b"\r\x1b[K";
/// Cursor to the top left corner, erasure of the display (ECMA-48 CUP, ED).
const CLEAR_SCREEN: &[u8] = b"\x1b[H\x1b[2J";

/// Where bytes for the line go: it may wait until the line takes them.
pub type Sink<'a> = &'a mut dyn FnMut(u8);

/// What came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A byte for a guest's console. `vm` is its [`VmConfig::index`](crate::config::VmConfig::index).
    Guest {
        /// The VM.
        vm: usize,
        /// The byte.
        byte: u8,
    },
    /// A command for the monitor. [`Console::answer`] must follow, with or without text.
    Line(String),
    /// A key pressed while a live display runs ([`Console::live`]): it should end. [`Console::answer`]
    /// must follow.
    Cancel,
}

/// What the monitor is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Monitor {
    /// Waiting for a command; in plain mode the prompt and the line so far are on the screen.
    Prompting,
    /// A command has been taken and not been answered.
    Answering,
    /// A live display runs.
    Live,
}

/// A VM's console.
#[derive(Debug)]
struct Guest {
    name: String,
    backlog: Backlog,
}

/// The serial line.
#[derive(Debug)]
pub struct Console {
    mode: ConsoleMode,
    guests: Vec<Guest>,
    encoder: Encoder,
    decoder: Decoder,
    editor: Editor,
    monitor: Monitor,
    /// The guest that has the line in plain mode.
    focus: Option<usize>,
    /// The guest that had it last.
    last_focus: Option<usize>,
    /// The last byte sent in plain mode ended a line.
    at_line_start: bool,
}

impl Console {
    /// A console for the VMs of those names, by their index in the configuration (a refused one counts,
    /// with any name). The monitor has the line, without a prompt until [`Console::answer`] is called
    /// for the first time.
    pub fn new(mode: ConsoleMode, names: impl IntoIterator<Item = String>) -> Self {
        let guests = names.into_iter().map(|name| Guest {
            name,
            backlog: Backlog::default(),
        });
        Self {
            mode,
            guests: guests.collect(),
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            editor: Editor::default(),
            monitor: Monitor::Answering,
            focus: None,
            last_focus: None,
            at_line_start: true,
        }
    }

    /// How the line is shared.
    pub fn mode(&self) -> ConsoleMode {
        self.mode
    }

    /// The guest that has the line, in plain mode.
    pub fn focus(&self) -> Option<usize> {
        self.focus
    }

    /// How many bytes of a guest wait until it is entered, in plain mode.
    pub fn unseen(&self, vm: usize) -> usize {
        self.guests.get(vm).map_or(0, |guest| guest.backlog.unseen())
    }

    /// Bytes that a guest printed. Those of a VM that is not in the configuration go nowhere.
    pub fn guest_output(&mut self, vm: usize, bytes: &[u8], sink: Sink<'_>) {
        let Some(guest) = self.guests.get_mut(vm) else {
            return;
        };
        match self.mode {
            ConsoleMode::Framed => {
                // Channels beyond the last one are cut off by the encoder.
                let channel = u8::try_from(vm + 1).unwrap_or(u8::MAX);
                self.encoder.send(channel, bytes, sink);
            }
            ConsoleMode::Plain => {
                let shown = self.focus == Some(vm);
                guest.backlog.keep(bytes, shown);
                if shown && let Some(last) = bytes.last() {
                    bytes.iter().copied().for_each(&mut *sink);
                    self.at_line_start = *last == b'\n';
                }
            }
        }
    }

    /// Lines that nobody asked for: log, faults. Wherever the line is just now, they stand on lines of
    /// their own.
    pub fn log(&mut self, text: &str, sink: Sink<'_>) {
        if self.mode == ConsoleMode::Framed {
            return self.print("", text, sink);
        }
        match (self.focus, self.monitor) {
            (Some(_), _) => self.print(LOG_MARK, text, sink),
            (None, Monitor::Prompting) => {
                self.raw(CLEAR_LINE, sink);
                self.at_line_start = true;
                self.print("", text, sink);
                self.prompt(sink);
            }
            (None, _) => self.print("", text, sink),
        }
    }

    /// The answer to [`Input::Line`] or [`Input::Cancel`]: shows it, if there is any, and asks for the
    /// next command.
    pub fn answer(&mut self, text: &str, sink: Sink<'_>) {
        self.print("", text, sink);
        self.monitor = Monitor::Prompting;
        self.prompt(sink);
    }

    /// One picture of a live display (`top`), in the place of the last one. Any key ends it, by
    /// [`Input::Cancel`].
    pub fn live(&mut self, text: &str, sink: Sink<'_>) {
        self.monitor = Monitor::Live;
        if self.mode == ConsoleMode::Plain {
            if self.focus.is_some() {
                return;
            }
            self.raw(CLEAR_SCREEN, sink);
            self.at_line_start = true;
        }
        self.print("", text, sink);
    }

    /// Gives the line to a guest, after what it printed in the meantime. Comes in the place of
    /// [`Console::answer`].
    ///
    /// # Errors
    /// In framed mode, where every guest has its channel all the time, and for an unknown VM.
    pub fn enter(&mut self, vm: usize, sink: Sink<'_>) -> Result<(), Refusal> {
        let Some(guest) = self.guests.get_mut(vm) else {
            return Err(Refusal::new("console", "there is no such VM", "see vms"));
        };
        if self.mode == ConsoleMode::Framed {
            return Err(Refusal::new(
                format!("console {}", guest.name),
                "the line is framed",
                format!("it is channel {} all the time", vm + 1),
            ));
        }
        self.monitor = Monitor::Prompting;
        self.focus = Some(vm);
        self.last_focus = Some(vm);
        let mut banner = format!("--- console {}, Ctrl-] leaves it ---\n", guest.name);
        match guest.backlog.take_dropped() {
            0 => {}
            lost => banner += &format!("--- {lost} bytes before this were not kept ---\n"),
        }
        self.print("", &banner, sink);
        let mut last = b'\n';
        if let Some(guest) = self.guests.get_mut(vm) {
            guest.backlog.replay(&mut |byte| {
                last = byte;
                sink(byte);
            });
        }
        self.at_line_start = last == b'\n';
        Ok(())
    }

    /// Gives the line back to the monitor, as `Ctrl-]` does.
    pub fn leave(&mut self, sink: Sink<'_>) {
        if let Some(vm) = self.focus.take() {
            let name = self.guests.get(vm).map_or("", |guest| &guest.name);
            let banner = format!("--- monitor, Ctrl-] returns to {name} ---\n");
            self.print("", &banner, sink);
            if self.monitor == Monitor::Prompting {
                self.prompt(sink);
            }
        }
    }

    /// Takes a byte that came in on the line; `sink` gets its echo.
    pub fn input(&mut self, byte: u8, sink: Sink<'_>) -> Option<Input> {
        match self.mode {
            ConsoleMode::Framed => {
                let (channel, byte) = self.decoder.receive(byte)?;
                if channel == MONITOR_CHANNEL {
                    return self.monitor_input(byte, sink);
                }
                let vm = usize::from(channel) - 1;
                (vm < self.guests.len()).then_some(Input::Guest { vm, byte })
            }
            ConsoleMode::Plain => match self.focus {
                Some(_) if byte == LEAVE_KEY => {
                    self.leave(sink);
                    None
                }
                Some(vm) => Some(Input::Guest { vm, byte }),
                None => self.monitor_input(byte, sink),
            },
        }
    }

    fn monitor_input(&mut self, byte: u8, sink: Sink<'_>) -> Option<Input> {
        if self.monitor == Monitor::Live {
            self.monitor = Monitor::Answering;
            return Some(Input::Cancel);
        }
        let plain = self.mode == ConsoleMode::Plain;
        if plain && byte == LEAVE_KEY {
            if let Some(vm) = self.last_focus {
                self.raw(b"\r\n", sink);
                self.at_line_start = true;
                // The VM is in the list, and the line is plain.
                let _ = self.enter(vm, sink);
            }
            return None;
        }
        let mut ignore = |_| {};
        let echo: Sink<'_> = if plain { &mut *sink } else { &mut ignore };
        match self.editor.take(byte, echo) {
            Edit::Going => None,
            Edit::Cancelled => {
                if plain {
                    self.raw(b"^C\r\n", sink);
                    self.prompt(sink);
                }
                None
            }
            Edit::Done(line) => {
                if plain {
                    self.raw(b"\r\n", sink);
                    self.at_line_start = true;
                }
                self.monitor = Monitor::Answering;
                Some(Input::Line(line))
            }
        }
    }

    /// The prompt and the line so far.
    fn prompt(&mut self, sink: Sink<'_>) {
        if self.mode == ConsoleMode::Plain && self.focus.is_none() {
            for text in [PROMPT, self.editor.line()] {
                text.bytes().for_each(&mut *sink);
            }
            self.at_line_start = false;
        }
    }

    /// Whole lines of text, each behind `mark`, on lines of their own. Without text, nothing.
    fn print(&mut self, mark: &str, text: &str, sink: Sink<'_>) {
        if text.is_empty() {
            return;
        }
        if self.mode == ConsoleMode::Plain && !self.at_line_start {
            self.raw(b"\r\n", sink);
        }
        for line in text.lines() {
            self.raw(mark.as_bytes(), sink);
            let mut utf8 = [0; 4];
            for character in line.chars() {
                let character = if character.is_control() { '?' } else { character };
                self.raw(character.encode_utf8(&mut utf8).as_bytes(), sink);
            }
            self.raw(b"\r\n", sink);
        }
        self.at_line_start = true;
    }

    /// Bytes of the monitor.
    fn raw(&mut self, bytes: &[u8], sink: Sink<'_>) {
        match self.mode {
            ConsoleMode::Plain => bytes.iter().copied().for_each(&mut *sink),
            ConsoleMode::Framed => self.encoder.send(MONITOR_CHANNEL, bytes, sink),
        }
    }
}
