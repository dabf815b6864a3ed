// SPDX-License-Identifier: MIT OR Apache-2.0
//! One serial line for the monitor, the log and the console of every guest.
//!
//! **Plain mode**, for people: one of them has the line at a time. The guest that has it prints and reads
//! raw bytes; `Ctrl-]` leaves it for the monitor, and in the monitor goes back to it. What the others
//! print is kept and shown when they are entered. A line of the log that comes while a guest has the
//! line stands on a line of its own behind `[pasidon MARK] `.
//!
//! The leave key is one that was pressed: nothing else comes for a moment ([`LEAVE_QUIET_NS`]). Pressed twice, the
//! guest gets one. With anything else in that moment it was pasted, and stays in the guest with all the rest. On
//! leaving, the terminal is put back to what the monitor expects; what it answers late to the guest's questions
//! is no part of a command (`editor`).
//!
//! A guest that has the line can print anything, also what looks like the monitor. What it cannot know is the
//! mark: a number of this boot, which it has no way to read.
//!
//! **Framed mode**, for programs: all of them at once, see [`framing`]. There is no prompt and no echo.
//! Channel 0 is monitor and log, channel n + 1 the VM at place n ([`VmId::place`](crate::base::id::VmId::place)), whichever that is just now.
//!
//! **Invariants.** In framed mode no byte is lost or mixed up: each call hands all its bytes to the sink,
//! which may wait for the line. Text of the monitor is cleared of control characters, so that only
//! this module and the guest that has the line move a terminal's cursor.

mod backlog;
mod editor;
pub mod framing;
pub mod line;
pub mod log;
mod typed;

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;

use backlog::Backlog;
use editor::{Edit, Editor};
use framing::{Decoder, Encoder, FIRST_VM_CHANNEL, MONITOR_CHANNEL};

use crate::base::refusal::Refusal;
use crate::config::ConsoleMode;
use crate::dev::Received;

pub use editor::{BadLine, MAX_LINE};
pub use typed::{TYPED_MAX, Typed, TypedInfo};

/// `Ctrl-]`.
pub const LEAVE_KEY: u8 = 0x1d;
/// How long the line must be quiet after [`LEAVE_KEY`] for it to be a key that was pressed, in nanoseconds: longer
/// than the gaps within a paste, long enough to press it twice.
pub const LEAVE_QUIET_NS: u64 = 300_000_000;
/// A notice about the same thing does not come again within this time, in nanoseconds.
const NOTICE_NS: u64 = 1_000_000_000;
/// What the monitor waits behind.
const PROMPT: &str = "pasidon> ";
/// What a guest may have left the terminal in, undone: an unfinished sequence (CAN, ST), insert mode, the alternate
/// screens, application keys, reports of mouse and focus, bracketed paste, colours, character sets, origin mode,
/// a hidden cursor, no wrapping; then the margins, without losing the cursor's place (ECMA-48; DEC and xterm's private modes).
const RESTORE_TERMINAL: &[u8] = b"\x18\x1b\\\x1b[4l\x1b[?1047l\x1b[?47l\x1b[?1l\x1b>\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[0m\x1b(B\x0f\x1b[?6l\x1b[?25h\x1b[?7h\x1b7\x1b[r\x1b8";
/// Cursor to the last line, wherever that is (ECMA-48 CUP): nothing above it is written over.
const LAST_LINE: &[u8] = b"\x1b[9999;1H";
/// Carriage return and erasure of the line (ECMA-48 EL).
const CLEAR_LINE: &[u8] = b"\r\x1b[K";
/// Cursor to the top left corner, erasure of the display (ECMA-48 CUP, ED).
const CLEAR_SCREEN: &[u8] = b"\x1b[H\x1b[2J";

/// Where bytes for the line go: it may wait until the line takes them.
pub type Sink<'a> = &'a mut dyn FnMut(u8);

/// What came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Something for the console of the VM at a place.
    Guest {
        /// The VM.
        vm: usize,
        /// A byte, or a BREAK.
        received: Received,
    },
    /// A command for the monitor. [`Console::answer`] must follow, with or without text.
    Line(String),
    /// A line that is no command. [`Console::answer`] must follow, with the refusal.
    Refused(BadLine),
    /// A key pressed while a live display runs ([`Console::live`]): it should end. [`Console::answer`]
    /// must follow.
    Cancel,
}

/// What one thing that came in comes down to: the leave key may have waited before it.
pub type Inputs = ArrayVec<Input, 2>;

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
    /// A number that no guest knows.
    mark: u16,
    /// By the place of the VM.
    guests: Vec<Option<Guest>>,
    encoder: Encoder,
    decoder: Decoder,
    editor: Editor,
    monitor: Monitor,
    /// The guest that has the line in plain mode.
    focus: Option<usize>,
    /// The guest that had it last.
    last_focus: Option<usize>,
    /// When the leave key came, of which it is not known yet whether it was pressed or pasted.
    leaving: Option<u64>,
    /// When people were last told that it was pasted.
    noticed_ns: Option<u64>,
    /// The last byte sent in plain mode ended a line.
    at_line_start: bool,
}

impl Console {
    /// A console without VMs. The monitor has the line, without a prompt until [`Console::answer`] is called
    /// for the first time. `mark` shall be a number that guests cannot guess.
    pub fn new(mode: ConsoleMode, mark: u16) -> Self {
        Self {
            mode,
            mark,
            guests: Vec::new(),
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            editor: Editor::new(mode == ConsoleMode::Plain),
            monitor: Monitor::Answering,
            focus: None,
            last_focus: None,
            leaving: None,
            noticed_ns: None,
            at_line_start: true,
        }
    }

    /// How the line is shared.
    pub fn mode(&self) -> ConsoleMode {
        self.mode
    }

    /// There is a VM of that name at a place from now on.
    pub fn add(&mut self, vm: usize, name: &str) {
        if self.guests.len() <= vm {
            self.guests.resize_with(vm + 1, || None);
        }
        self.guests[vm] = Some(Guest { name: String::from(name), backlog: Backlog::default() });
    }

    /// The VM at that place is gone, and what it printed and nobody has seen. Not while it has the line.
    pub fn remove(&mut self, vm: usize) {
        if let Some(guest) = self.guests.get_mut(vm) {
            *guest = None;
        }
        self.last_focus = self.last_focus.filter(|last| *last != vm);
    }

    fn guest(&mut self, vm: usize) -> Option<&mut Guest> {
        self.guests.get_mut(vm)?.as_mut()
    }

    fn name_of(&self, vm: usize) -> &str {
        self.guests.get(vm).and_then(Option::as_ref).map_or("", |guest| &guest.name)
    }

    /// The guest that has the line, in plain mode.
    pub fn focus(&self) -> Option<usize> {
        self.focus
    }

    /// How many bytes of a guest wait until it is entered, in plain mode.
    pub fn unseen(&self, vm: usize) -> usize {
        self.guests.get(vm).and_then(Option::as_ref).map_or(0, |guest| guest.backlog.unseen())
    }

    /// Bytes that a guest printed. Those of a VM that is not there go nowhere.
    pub fn guest_output(&mut self, vm: usize, bytes: &[u8], sink: Sink<'_>) {
        let shown = self.focus == Some(vm);
        let mode = self.mode;
        let Some(guest) = self.guest(vm) else {
            return;
        };
        match mode {
            ConsoleMode::Framed => {
                // Channels beyond the last one are cut off by the encoder.
                let channel = u8::try_from(vm).map_or(u8::MAX, |vm| vm.saturating_add(FIRST_VM_CHANNEL));
                self.encoder.send(channel, bytes, sink);
            }
            ConsoleMode::Plain => {
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
            (Some(_), _) => self.marked(text, sink),
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
    /// When the mode is framed, where every guest has its channel all the time, and for an unknown VM.
    pub fn enter(&mut self, vm: usize, sink: Sink<'_>) -> Result<(), Refusal> {
        let framed = self.mode == ConsoleMode::Framed;
        let Some(guest) = self.guest(vm) else {
            return Err(Refusal::new("console", "there is no such VM", "see vms"));
        };
        if framed {
            return Err(Refusal::new(
                format!("console {}", guest.name),
                "the line is framed",
                format!("it is channel {} all the time", vm + usize::from(FIRST_VM_CHANNEL)),
            ));
        }
        let mut banner = format!("--- console {}, Ctrl-] leaves it ---\n", guest.name);
        match guest.backlog.take_dropped() {
            0 => {}
            lost => banner += &format!("--- {lost} bytes before this were not kept ---\n"),
        }
        self.monitor = Monitor::Prompting;
        self.focus = Some(vm);
        self.last_focus = Some(vm);
        self.leaving = None;
        self.print("", &banner, sink);
        let mut last = b'\n';
        if let Some(guest) = self.guest(vm) {
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
        self.leaving = None;
        if let Some(vm) = self.focus.take() {
            self.raw(RESTORE_TERMINAL, sink);
            self.raw(LAST_LINE, sink);
            self.raw(b"\r\n", sink);
            self.at_line_start = true;
            let name = self.name_of(vm);
            let banner = format!("--- monitor {:04x}, Ctrl-] returns to {name} ---\n", self.mark);
            self.print("", &banner, sink);
            if self.monitor == Monitor::Prompting {
                self.prompt(sink);
            }
        }
    }

    /// Whether [`Console::quiet`] wants to be called soon.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Nothing more waits on the line, at `now_ns`: if the leave key was the last and that was long enough ago, it was
    /// pressed.
    pub fn quiet(&mut self, now_ns: u64, sink: Sink<'_>) {
        let pressed = |came: u64| now_ns.saturating_sub(came) >= LEAVE_QUIET_NS;
        if self.leaving.is_some_and(pressed) {
            self.leave(sink);
        }
    }

    /// Takes what came in on the line at `now_ns`; `sink` gets its echo. When the line has nothing more,
    /// [`Console::quiet`] must be called.
    pub fn input(&mut self, received: Received, now_ns: u64, sink: Sink<'_>) -> Inputs {
        let mut inputs = Inputs::new();
        match self.mode {
            ConsoleMode::Framed => inputs.extend(self.framed_input(received, sink)),
            ConsoleMode::Plain => match self.focus {
                Some(vm) => self.guest_input(vm, received, now_ns, &mut inputs, sink),
                None => inputs.extend(self.monitor_input(received, sink)),
            },
        }
        inputs
    }

    fn framed_input(&mut self, received: Received, sink: Sink<'_>) -> Option<Input> {
        let (channel, received) = match received {
            Received::Byte(byte) => {
                let (channel, byte) = self.decoder.receive(byte)?;
                (channel, Received::Byte(byte))
            }
            other => (self.decoder.channel(), other),
        };
        if channel == MONITOR_CHANNEL {
            return self.monitor_input(received, sink);
        }
        let vm = usize::from(channel - FIRST_VM_CHANNEL);
        self.guest(vm).is_some().then_some(Input::Guest { vm, received })
    }

    /// What came in while the guest has the line.
    fn guest_input(
        &mut self,
        vm: usize,
        received: Received,
        now_ns: u64,
        inputs: &mut Inputs,
        sink: Sink<'_>,
    ) {
        let key = Input::Guest { vm, received: Received::Byte(LEAVE_KEY) };
        let leave = received == Received::Byte(LEAVE_KEY);
        match self.leaving.take() {
            None if leave => self.leaving = Some(now_ns),
            None => inputs.push(Input::Guest { vm, received }),
            Some(_) if leave => inputs.push(key),
            Some(_) => {
                inputs.push(key);
                inputs.push(Input::Guest { vm, received });
                let recently = |noticed: u64| now_ns.saturating_sub(noticed) < NOTICE_NS;
                if !self.noticed_ns.is_some_and(recently) {
                    let name = self.name_of(vm);
                    let notice =
                        format!("Ctrl-] came together with other keys and went to {name}; alone it leaves\n");
                    self.marked(&notice, sink);
                }
                self.noticed_ns = Some(now_ns);
            }
        }
    }

    fn monitor_input(&mut self, received: Received, sink: Sink<'_>) -> Option<Input> {
        if self.monitor == Monitor::Live {
            if received == Received::Break {
                return None;
            }
            self.monitor = Monitor::Answering;
            return Some(Input::Cancel);
        }
        let plain = self.mode == ConsoleMode::Plain;
        if plain && received == Received::Byte(LEAVE_KEY) {
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
        let input = match self.editor.take(received, echo) {
            Edit::Going => return None,
            Edit::Cancelled => {
                if plain {
                    self.raw(b"^C\r\n", sink);
                    self.prompt(sink);
                }
                return None;
            }
            Edit::Done(line) => Input::Line(line),
            Edit::Refused(bad) => Input::Refused(bad),
        };
        if plain {
            self.raw(b"\r\n", sink);
            self.at_line_start = true;
        }
        self.monitor = Monitor::Answering;
        Some(input)
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

    /// Whole lines of text within a guest's output.
    fn marked(&mut self, text: &str, sink: Sink<'_>) {
        let mark = format!("[pasidon {:04x}] ", self.mark);
        self.print(&mark, text, sink);
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
