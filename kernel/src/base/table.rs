// SPDX-License-Identifier: MIT OR Apache-2.0
//! Aligned tables and other forms in which people read numbers.
//!
//! The table crates all need `std`, or bring borders, colours and wrapping that a serial line does not
//! want; what is needed here is one page.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Spaces between columns.
const GAP: usize = 2;

/// How a column is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns by heading; a heading that starts with `#` is a column of numbers, which are aligned on the
    /// right, and loses the sign.
    pub fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        let column = |heading: &str| match heading.strip_prefix('#') {
            Some(number) => (number.to_string(), Align::Right),
            None => (heading.to_string(), Align::Left),
        };
        Self { columns: headings.into_iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty; cells beyond the last column are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().take(self.columns.len()).collect());
    }

    /// Whether there are only headings.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines; without rows, `otherwise`.
    pub fn render_or(&self, otherwise: &str) -> String {
        if self.is_empty() { format!("{otherwise}\n") } else { self.render() }
    }

    /// The table as lines of at most `width` characters where that can be: what is too wide goes on in the lines below
    /// it, in its own column.
    pub fn render_within(&self, width: usize) -> String {
        /// No column becomes narrower than this.
        const NARROWEST: usize = 8;
        let mut widths = self.widths();
        while widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1) > width {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        let mut folded = Self { columns: self.columns.clone(), rows: Vec::new() };
        for row in &self.rows {
            let cells: Vec<Vec<String>> =
                row.iter().zip(&widths).map(|(cell, width)| fold(cell, *width)).collect();
            for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
                folded.row(cells.iter().map(|cell| cell.get(line).cloned().unwrap_or_default()));
            }
        }
        folded.render()
    }

    /// How wide each column is.
    fn widths(&self) -> Vec<usize> {
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            let headings = self.columns.get(index).map(|(heading, _)| heading);
            cells.chain(headings).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..self.columns.len()).map(width).collect()
    }

    /// The table as lines.
    pub fn render(&self) -> String {
        let widths = self.widths();
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| heading.clone()).collect();
        let mut out = String::new();
        for row in core::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (index, (width, (_, align))) in widths.iter().zip(&self.columns).enumerate() {
                let cell = row.get(index).map_or("", String::as_str);
                let padding = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => line.extend([cell, &padding]),
                    Align::Right => line.extend([&padding, cell]),
                }
                line.push_str(&" ".repeat(GAP));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Text as lines of at most `width` characters, broken between words, and within a word where that alone is wider. At
/// least one line.
pub fn fold(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::from([String::new()]);
    let mut used = 0;
    for word in text.split(' ') {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > width {
            lines.push(String::new());
            used = 0;
        } else if used > 0 {
            lines.last_mut().into_iter().for_each(|line| line.push(' '));
            used += 1;
        }
        for character in word.chars() {
            if used == width {
                lines.push(String::new());
                used = 0;
            }
            lines.last_mut().into_iter().for_each(|line| line.push(character));
            used += 1;
        }
    }
    lines
}

/// Names and values, one pair a line, values aligned.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in pairs {
        out.push_str(format!("{name:width$}  {value}").trim_end());
        out.push('\n');
    }
    out
}

/// Bytes in the largest unit that leaves a whole number: `256M`.
pub fn bytes(bytes: u64) -> String {
    let (shift, unit) = match bytes.trailing_zeros() {
        _ if bytes == 0 => (0, ""),
        30.. => (30, "G"),
        20..30 => (20, "M"),
        10..20 => (10, "K"),
        _ => (0, ""),
    };
    format!("{}{unit}", bytes >> shift)
}

/// A span of time: `0:01:23` in hours, minutes and seconds.
pub fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "#COUNT", "REASON"]);
        assert_eq!(table.render_or("none"), "none\n");
        table.row(["alpha", "7", ""].map(String::from));
        table.row(["b\u{e4}ta", "12345678", "no mapping"].map(String::from));
        table.row([String::from("short")]);
        assert_eq!(
            table.render(),
            "NAME      COUNT  REASON\n\
             alpha         7\n\
             b\u{e4}ta   12345678  no mapping\n\
             short\n"
        );
    }

    #[test]
    fn what_is_too_wide_goes_on_below_in_its_column() {
        let mut table = Table::new(["WHAT", "#N", "WHY"]);
        table.row(["processor", "1", "it has no nested paging"].map(String::from));
        table.row(["vtd", "20", "none"].map(String::from));
        assert_eq!(table.render_within(100), table.render());
        assert_eq!(
            table.render_within(27),
            "WHAT        N  WHY\n\
             processor   1  it has no\n\
             \u{20}              nested\n\
             \u{20}              paging\n\
             vtd        20  none\n"
        );
        assert_eq!(fold("a bc  def", 3), ["a", "bc ", "def"]);
        assert_eq!(fold("abcdefg h", 3), ["abc", "def", "g h"]);
        assert_eq!(fold("", 3), [""]);
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(pairs([("a", "1".to_string()), ("long", String::new())]), "a     1\nlong\n");
    }

    #[test]
    fn quantities() {
        for (number, text) in [
            (0, "0"),
            (1023, "1023"),
            (4096, "4K"),
            (256 << 20, "256M"),
            (3 << 30, "3G"),
            ((1 << 30) + 1, "1073741825"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(duration(83_999_999_999), "0:01:23");
        assert_eq!(duration(u64::MAX), "5124095:34:33");
    }
}
