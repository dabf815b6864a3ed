// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a value stands in `pasidon.toml`, and the one-line errors that point at it.

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt;
use core::ops::Deref;

use super::FILE_NAME;
use crate::base::refusal::Refusal;

/// A place in the file, both numbers counted from 1; columns count characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl Position {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1 };

    /// The position of a byte offset. An offset beyond the end, or within a character, counts as the
    /// character boundary before it.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX - 1) + 1;
        Self {
            line: count(before.bytes().filter(|byte| *byte == b'\n').count()),
            column: count(before[line_start..].chars().count()),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value with the place it was written at; a value left to its default stands at its section's heading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub at: Position,
}

impl<T> Spanned<T> {
    /// A value and its place.
    pub const fn new(value: T, at: Position) -> Self {
        Self { value, at }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What an error stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Everything: nothing may be started.
    Whole,
    /// One parent, by its place among the `[parent.NAME]` sections of the file, counted from 0. The VMs that
    /// have a vdev of it get errors of their own.
    Parent(usize),
    /// One VM, by its place among the `[[vm]]` sections of the file, counted from 0. The others may start.
    Vm(usize),
    /// One file of VMs that may be defined later, by its place in [`HostConfig::definitions`](super::HostConfig), counted
    /// from 0.
    Definition(usize),
}

/// One error of the configuration, printed as `FILE:LINE:COL: what; remedy`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// What it stops.
    pub scope: Scope,
    /// In which file.
    pub file: Cow<'static, str>,
    /// Where.
    pub at: Position,
    /// What is wrong, outermost thing first: `vm alpha: memory: …`.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

impl ConfigError {
    /// From its parts, in `pasidon.toml`.
    pub fn new(scope: Scope, at: Position, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { scope, file: FILE_NAME.into(), at, what: what.into(), remedy: remedy.into() }
    }

    /// A refusal met while the configuration was carried out, pointing at the value that asked for it.
    pub fn from_refusal(scope: Scope, at: Position, refusal: &Refusal) -> Self {
        Self::new(scope, at, alloc::format!("{}: {}", refusal.what, refusal.why), refusal.remedy.clone())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.at, self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl core::error::Error for ConfigError {}

/// Text of the file, fit to stand in a one-line message: quoted, control characters escaped, cut short.
pub(super) fn quoted(text: &str) -> String {
    alloc::format!("\"{}\"", shortened(text))
}

/// Text of the file with control characters escaped, cut to what a reader needs to recognise it.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 48;
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            out.push('…');
            break;
        }
        out.extend(character.escape_debug());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "a = 1\n\u{e4}\u{f6} = 2\r\nx";
        assert_eq!(Position::of(text, 0), Position::START);
        assert_eq!(Position::of(text, 4).to_string(), "1:5");
        assert_eq!(Position::of(text, text.find("= 2").unwrap()).to_string(), "2:4");
        assert_eq!(Position::of(text, 7).to_string(), "2:1", "within a character");
        assert_eq!(Position::of(text, 10_000).to_string(), "3:2");
        assert_eq!(Position::of("", 0), Position::START);
    }

    #[test]
    fn an_error_is_one_line_whatever_the_file_holds() {
        let what = alloc::format!("unknown key {}", quoted("a\nb\u{1b}[2J"));
        let error = ConfigError::new(Scope::Whole, Position { line: 3, column: 7 }, what, "remove it");
        assert_eq!(error.to_string(), r#"pasidon.toml:3:7: unknown key "a\nb\u{1b}[2J"; remove it"#);
        assert!(quoted(&"x".repeat(1000)).chars().count() < 60);
    }
}
