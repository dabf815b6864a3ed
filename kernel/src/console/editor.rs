// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line being typed to the monitor: editing keys, echo, history.
//!
//! The cursor is always at the end of the line: commands are short, and this keeps the echo to a few
//! bytes that every terminal understands.
//!
//! **Invariant.** A line is given out as it was sent, or refused whole: what does not fit or is not understood
//! is never left out of it, so that no command is shortened into another one.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

use crate::base::refusal::Refusal;
use crate::dev::Received;

/// Longest line, in characters. A longer one is refused.
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

/// The word whose appearance in a refused line means that a program waits for JSON.
const JSON_FLAG: &[u8; 6] = b"--json";

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    TooLong,
    Byte(u8),
    Damaged,
}

/// A line that is refused whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    flaw: Flaw,
    /// It asked for JSON, in the part that fitted or beyond.
    pub json: bool,
}

impl BadLine {
    /// Why, and what would help.
    pub fn refusal(&self) -> Refusal {
        let (why, remedy) = match self.flaw {
            Flaw::TooLong => (
                format!("the line has more than {MAX_LINE} characters; nothing was done"),
                "send a shorter one",
            ),
            Flaw::Byte(byte) => (
                format!("the line has the byte {byte:#04x}, which is not understood; nothing was done"),
                "send letters, digits and signs of ASCII, with blanks between words",
            ),
            Flaw::Damaged => (
                String::from("a part of the line was lost or damaged on its way; nothing was done"),
                "send it again",
            ),
        };
        Refusal::new("monitor", why, remedy)
    }
}

/// What a byte did to the line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// The line is still being typed.
    Going,
    /// Enter was pressed.
    Done(String),
    /// Enter was pressed after a line that is refused.
    Refused(BadLine),
    /// Ctrl-C was pressed; the line is empty again.
    Cancelled,
}

/// Where in an escape sequence the input is (ECMA-48): a key, or the late answer of a terminal to the guest that
/// had the line before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Sequence {
    #[default]
    None,
    /// After ESC.
    Escape,
    /// ESC `[` or ESC `O`; parameters, then a final byte. Whether there was a parameter.
    Control(bool),
    /// A string (DCS, OSC, APC, PM, SOS), until BEL or ESC `\`.
    String,
    /// Bytes of a report of the mouse (xterm: ESC `[` `M` and three bytes) that are still to come.
    Mouse(u8),
}

/// The line and what was typed before it.
#[derive(Debug, Default)]
pub(super) struct Editor {
    line: String,
    /// Why the line will be refused.
    flaw: Option<Flaw>,
    /// The last characters, for [`JSON_FLAG`], and whether they were it.
    tail: [u8; JSON_FLAG.len()],
    json: bool,
    /// Escape sequences are keys. Else they are not understood.
    has_keys: bool,
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

    /// For a person at a terminal, with keys that send escape sequences, or for a program.
    pub fn new(has_keys: bool) -> Self {
        Self { has_keys, ..Self::default() }
    }

    /// Takes what came in; `echo` is what the terminal must be sent.
    pub fn take(&mut self, received: Received, echo: &mut dyn FnMut(u8)) -> Edit {
        let byte = match received {
            Received::Byte(byte) => byte,
            // A terminal's BREAK is a request to a guest's kernel; to the monitor it says nothing.
            Received::Break => return Edit::Going,
            Received::Damaged => {
                self.spoil(Flaw::Damaged, echo);
                return Edit::Going;
            }
        };
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        if self.in_sequence(byte, echo) {
            return Edit::Going;
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => return self.finish(),
            CTRL_C => {
                self.clear();
                return Edit::Cancelled;
            }
            CTRL_U => {
                self.erase(self.line.len(), echo);
                self.clear();
            }
            ESCAPE if self.has_keys => self.sequence = Sequence::Escape,
            b' '..=b'~' => self.add(byte, echo),
            BACKSPACE | DELETE if self.flaw.is_none() => self.erase(1, echo),
            CTRL_W if self.flaw.is_none() => {
                let kept = self.line.trim_end().rfind(' ').map_or(0, |space| space + 1);
                self.erase(self.line.len() - kept, echo);
            }
            BACKSPACE | DELETE | CTRL_W => echo(BELL),
            _ => self.spoil(Flaw::Byte(byte), echo),
        }
        Edit::Going
    }

    /// Takes a byte that belongs to an escape sequence; `false` where it belongs to the line. A control character
    /// ends a sequence that line noise began.
    fn in_sequence(&mut self, byte: u8, echo: &mut dyn FnMut(u8)) -> bool {
        let control = byte < 0x20;
        let (next, taken) = match self.sequence {
            Sequence::None => return false,
            Sequence::Mouse(left @ 2..) => (Sequence::Mouse(left - 1), true),
            Sequence::Mouse(_) => (Sequence::None, true),
            Sequence::String if byte == BELL => (Sequence::None, true),
            Sequence::String if !control => (Sequence::String, true),
            _ if byte == ESCAPE => (Sequence::Escape, true),
            _ if control => (Sequence::None, false),
            Sequence::Escape => match byte {
                b'[' | b'O' => (Sequence::Control(false), true),
                b'P' | b']' | b'_' | b'^' | b'X' => (Sequence::String, true),
                _ => (Sequence::None, true),
            },
            // Parameters and intermediates come before the final byte.
            Sequence::Control(_) if byte < 0x40 => (Sequence::Control(true), true),
            Sequence::Control(false) if byte == b'M' => (Sequence::Mouse(3), true),
            Sequence::Control(parameters) => {
                match byte {
                    b'A' if !parameters => self.recall(self.back + 1, echo),
                    b'B' if !parameters => self.recall(self.back.saturating_sub(1), echo),
                    _ => {}
                }
                (Sequence::None, true)
            }
            Sequence::String => (Sequence::String, true),
        };
        self.sequence = next;
        taken
    }

    fn add(&mut self, byte: u8, echo: &mut dyn FnMut(u8)) {
        self.tail.rotate_left(1);
        self.tail[JSON_FLAG.len() - 1] = byte;
        self.json |= self.tail == *JSON_FLAG;
        if self.line.len() >= MAX_LINE {
            self.spoil(Flaw::TooLong, echo);
        } else if self.flaw.is_some() {
            echo(BELL);
        } else {
            self.line.push(char::from(byte));
            echo(byte);
        }
    }

    /// The line will be refused; the first flaw is the one that is named.
    fn spoil(&mut self, flaw: Flaw, echo: &mut dyn FnMut(u8)) {
        self.flaw.get_or_insert(flaw);
        echo(BELL);
    }

    /// Nothing has been typed.
    fn clear(&mut self) {
        self.line.clear();
        self.flaw = None;
        self.tail = [0; JSON_FLAG.len()];
        self.json = false;
        self.back = 0;
    }

    fn finish(&mut self) -> Edit {
        let line = core::mem::take(&mut self.line);
        let (flaw, json) = (self.flaw, self.json);
        self.clear();
        if let Some(flaw) = flaw {
            return Edit::Refused(BadLine { flaw, json });
        }
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        Edit::Done(line)
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
        self.clear();
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
        let mut editor = Editor::new(true);
        let (mut lines, mut screen) = (Vec::new(), String::new());
        for &byte in bytes {
            let edit = editor.take(Received::Byte(byte), &mut |echo| match echo {
                BACKSPACE => drop(screen.pop()),
                BELL => {}
                // The middle of an erasure: written, then moved back over.
                echo => screen.push(char::from(echo)),
            });
            match edit {
                Edit::Going => {}
                Edit::Done(line) => {
                    lines.push(line);
                    screen.clear();
                }
                Edit::Refused(_) | Edit::Cancelled => screen.clear(),
            }
        }
        (lines, screen)
    }

    /// Types bytes up to the first line that is refused.
    fn refused(editor: &mut Editor, bytes: &[u8]) -> BadLine {
        for &byte in bytes {
            match editor.take(Received::Byte(byte), &mut |_| {}) {
                Edit::Refused(bad) => return bad,
                Edit::Done(line) => panic!("{line:?} is taken for a command"),
                Edit::Going | Edit::Cancelled => {}
            }
        }
        panic!("no answer");
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
    fn a_line_that_does_not_fit_is_refused_whole() {
        let mut editor = Editor::new(false);
        let long = format!("--json vdev{:223}destroy dsa0/dsa-dwq#12\n", "");
        let bad = refused(&mut editor, long.as_bytes());
        assert_eq!((bad.flaw, bad.json), (Flaw::TooLong, true));
        assert!(bad.refusal().to_string().contains("more than 256 characters; nothing was done"));
        // JSON is asked for in the part that does not fit.
        let bad = refused(&mut editor, format!("vdevs{:300}--json\n", "").as_bytes());
        assert!(bad.json);
        // The next line is as good as ever, and one that just fits is taken.
        assert_eq!(typed(&[vec![b'x'; MAX_LINE], vec![b'\r']].concat()).0[0].len(), MAX_LINE);
        assert!(typed(&[vec![b'x'; MAX_LINE + 1], vec![b'\r']].concat()).0.is_empty());
    }

    #[test]
    fn a_line_with_a_stray_byte_is_refused_whole() {
        for line in [
            &b"vm alpha\xe9 stop\n"[..],
            b"vm alpha\t stop\n",
            b"\0vm alpha stop\r",
            b"vm alpha \x7f\x01stop\n",
        ] {
            let bad = refused(&mut Editor::new(false), line);
            assert!(matches!(bad.flaw, Flaw::Byte(_)), "{line:?}");
        }
        let mut editor = Editor::new(false);
        let bad = refused(&mut editor, b"vms --json\xff\n");
        assert_eq!((bad.flaw, bad.json), (Flaw::Byte(0xff), true));
        // A program has no keys, so an escape sequence is no key.
        assert_eq!(refused(&mut editor, b"vm alpha\x1b[D stop\n").flaw, Flaw::Byte(0x1b));
        // Erasing what is left on the screen does not make the line a good one, starting over does.
        assert_eq!(refused(&mut editor, b"vms\xff\x7f\x7f\x7f\n").flaw, Flaw::Byte(0xff));
        assert_eq!(typed(b"\xffbad\x15vms\r\xff\x03vdevs\r").0, ["vms", "vdevs"]);
    }

    #[test]
    fn a_line_with_a_gap_is_refused_whole() {
        let mut editor = Editor::new(true);
        for byte in b"vm al" {
            editor.take(Received::Byte(*byte), &mut |_| {});
        }
        editor.take(Received::Damaged, &mut |_| {});
        editor.take(Received::Break, &mut |_| {});
        assert_eq!(refused(&mut editor, b"pha stop\r").flaw, Flaw::Damaged);
    }

    #[test]
    fn late_answers_of_the_terminal_are_no_part_of_the_line() {
        let answers = [
            &b"\x1b[24;80R"[..],
            b"\x1b[?62;c",
            b"\x1b[>0;276;0c",
            b"\x1b]11;rgb:0000/0000/0000\x07",
            b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\",
            b"\x1bP1+r544e=787465726d\x1b\\",
            b"\x1b[M !!",
            b"\x1b[<0;10;10M",
            b"\x1b[1;2A",
        ];
        for answer in answers {
            let line = [b"v", answer, b"ms\r"].concat();
            assert_eq!(typed(&line).0, ["vms"], "{answer:?}");
        }
        // One that never ends is ended by Enter.
        assert_eq!(typed(b"vms\x1b]11;\r").0, ["vms"]);
    }

    proptest! {
        #[test]
        fn the_screen_shows_the_line(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), b'a'..=b'z', Just(0x7f), Just(0x1b), Just(b'['), Just(b'A')], 0..200)
        ) {
            let mut editor = Editor::new(true);
            let mut screen = String::new();
            for byte in bytes {
                let edit = editor.take(Received::Byte(byte), &mut |echo| match echo {
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

        /// What is done is what was sent.
        #[test]
        fn a_line_is_taken_as_it_was_sent_or_not_at_all(
            line in proptest::collection::vec(
                prop_oneof![20 => b' '..=b'~', 1 => 0x80u8.., 1 => Just(b'\t'), 1 => Just(0x1b)], 0..400)
        ) {
            let mut editor = Editor::new(false);
            let mut last = Edit::Going;
            for byte in line.iter().copied().chain([b'\n']) {
                last = editor.take(Received::Byte(byte), &mut |_| {});
            }
            let good = line.len() <= MAX_LINE && line.iter().all(|byte| (b' '..=b'~').contains(byte));
            match last {
                Edit::Done(taken) => prop_assert!(good && taken.as_bytes() == line),
                Edit::Refused(_) => prop_assert!(!good),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
