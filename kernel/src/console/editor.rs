// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line being typed to the monitor: editing keys, echo, history.
//!
//! The cursor is always at the end of the line: commands are short, and this keeps the echo to a few
//! bytes that every terminal understands.

use alloc::collections::VecDeque;
use alloc::string::String;

/// Longest line, in characters. More is answered with the bell.
pub const MAX_LINE: usize = 256;
/// Lines kept for the arrow keys.
const HISTORY: usize = 16;

const CTRL_C: u8 = 0x03;
const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const CTRL_W: u8 = 0x17;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;
/// Moves back, overwrites, moves back.
const ERASE: [u8; 3] = [BACKSPACE, b' ', BACKSPACE];

/// What a byte did to the line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// The line is still being typed.
    Going,
    /// Enter was pressed.
    Done(String),
    /// Ctrl-C was pressed; the line is empty again.
    Cancelled,
}

/// Where in an escape sequence the input is (ECMA-48: ESC `[` parameters final).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Sequence {
    #[default]
    None,
    Escape,
    Control,
}

/// The line and what was typed before it.
#[derive(Debug, Default)]
pub(super) struct Editor {
    line: String,
    sequence: Sequence,
    /// The last byte was a carriage return: a newline after it belongs to it.
    after_return: bool,
    history: VecDeque<String>,
    /// How many lines back in the history the shown line is; 0 is the line being typed.
    back: usize,
}

impl Editor {
    /// The line so far.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Takes a byte; `echo` is what the terminal must be sent.
    pub fn take(&mut self, byte: u8, echo: &mut dyn FnMut(u8)) -> Edit {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match self.sequence {
            Sequence::None => {}
            Sequence::Escape => {
                self.sequence = if byte == b'[' || byte == b'O' {
                    Sequence::Control
                } else {
                    Sequence::None
                };
                return Edit::Going;
            }
            Sequence::Control => {
                // Parameters and intermediates come before the final byte; a control character ends a
                // sequence that line noise began.
                if (0x20..0x40).contains(&byte) {
                    return Edit::Going;
                }
                self.sequence = Sequence::None;
                match byte {
                    b'A' => self.recall(self.back + 1, echo),
                    b'B' => self.recall(self.back.saturating_sub(1), echo),
                    _ => {}
                }
                if byte >= 0x40 {
                    return Edit::Going;
                }
            }
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => return Edit::Done(self.finish()),
            CTRL_C => {
                self.line.clear();
                self.back = 0;
                return Edit::Cancelled;
            }
            BACKSPACE | DELETE => self.erase(1, echo),
            CTRL_U => self.erase(self.line.len(), echo),
            CTRL_W => {
                let kept = self.line.trim_end().rfind(' ').map_or(0, |space| space + 1);
                self.erase(self.line.len() - kept, echo);
            }
            ESCAPE => self.sequence = Sequence::Escape,
            b' '..=b'~' if self.line.len() < MAX_LINE => {
                self.line.push(char::from(byte));
                echo(byte);
            }
            b' '..=b'~' => echo(BELL),
            _ => {}
        }
        Edit::Going
    }

    fn finish(&mut self) -> String {
        let line = core::mem::take(&mut self.line);
        self.back = 0;
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        line
    }

    /// The line holds ASCII only, so bytes are characters.
    fn erase(&mut self, count: usize, echo: &mut dyn FnMut(u8)) {
        for _ in 0..count {
            if self.line.pop().is_some() {
                ERASE.into_iter().for_each(&mut *echo);
            }
        }
    }

    fn recall(&mut self, back: usize, echo: &mut dyn FnMut(u8)) {
        if back > self.history.len() {
            return;
        }
        let line = match self.history.len().checked_sub(back) {
            Some(at) => self.history.get(at).cloned().unwrap_or_default(),
            None => String::new(),
        };
        self.erase(self.line.len(), echo);
        line.bytes().for_each(&mut *echo);
        self.line = line;
        self.back = back;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Types bytes; the lines that were entered, and what a terminal shows at the end of its last line.
    fn typed(bytes: &[u8]) -> (Vec<String>, String) {
        let mut editor = Editor::default();
        let (mut lines, mut screen) = (Vec::new(), String::new());
        for &byte in bytes {
            let edit = editor.take(byte, &mut |echo| match echo {
                BACKSPACE => drop(screen.pop()),
                // The middle of an erasure: written, then moved back over.
                echo => screen.push(char::from(echo)),
            });
            match edit {
                Edit::Going => {}
                Edit::Done(line) => {
                    lines.push(line);
                    screen.clear();
                }
                Edit::Cancelled => screen.clear(),
            }
        }
        (lines, screen)
    }

    #[test]
    fn lines_end_at_return_newline_or_both() {
        assert_eq!(typed(b"vms\rvdevs\nhelp\r\n\r\n").0, ["vms", "vdevs", "help", ""]);
    }

    #[test]
    fn editing_keys() {
        assert_eq!(typed(b"vmss\x7f\r").0, ["vms"]);
        assert_eq!(typed(b"\x08\x7fx\x08\x08y\r").0, ["y"]);
        assert_eq!(typed(b"wrong\x15right\r").0, ["right"]);
        assert_eq!(typed(b"vm alpha stop \x17start\r").0, ["vm alpha start"]);
        assert_eq!(typed(b"half\x03vms\r").0, ["vms"]);
        assert_eq!(typed(b"\xff\x00\x01a\r").0, ["a"]);
        assert_eq!(typed(b"a\x1b[1;5Cb\x1bZc\r").0, ["abc"]);
    }

    #[test]
    fn arrows_recall_lines() {
        const UP: &[u8] = b"\x1b[A";
        const DOWN: &[u8] = b"\x1b[B";
        let (lines, _) = typed(&[b"one\rtwo\rtwo\r", UP, UP, b"\r"].concat());
        assert_eq!(lines.last().unwrap(), "one");
        let (_, screen) = typed(&[b"one\rtwo\rxyz", UP, UP, UP, DOWN].concat());
        assert_eq!(screen, "two");
        let (_, screen) = typed(&[b"one\r", UP, DOWN, b"n"].concat());
        assert_eq!(screen, "n");
    }

    #[test]
    fn the_line_has_an_end() {
        let (lines, _) = typed(&[vec![b'x'; 1000], vec![b'\r']].concat());
        assert_eq!(lines[0].len(), MAX_LINE);
    }

    proptest! {
        #[test]
        fn the_screen_shows_the_line(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), b'a'..=b'z', Just(0x7f), Just(0x1b), Just(b'['), Just(b'A')], 0..200)
        ) {
            let mut editor = Editor::default();
            let mut screen = String::new();
            for byte in bytes {
                let edit = editor.take(byte, &mut |echo| match echo {
                    BACKSPACE => drop(screen.pop()),
                    BELL => {}
                    echo => screen.push(char::from(echo)),
                });
                if edit != Edit::Going {
                    screen.clear();
                }
                prop_assert_eq!(&screen, editor.line());
            }
        }
    }
}
