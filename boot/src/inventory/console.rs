// SPDX-License-Identifier: MIT OR Apache-2.0
//! The firmware's console, a page at a time.

use core::time::Duration;

use uefi::boot;
use uefi::proto::console::text::Key;
use uefi::system;

use crate::output;

/// What a console has that does not say it.
const COLUMNS: usize = 80;
/// And its rows.
const ROWS: usize = 25;
/// How long a page stays where nobody presses a key, in steps of [`STEP`]: a minute.
const STEPS: u32 = 3000;
/// Between two looks for a key.
const STEP: Duration = Duration::from_millis(20);
/// The key that shows the rest without a pause.
const REST: char = 'c';

/// The console.
pub struct Console {
    /// Characters in a line that may be used. The last column stays free: some consoles begin a new line behind it.
    pub columns: usize,
    rows: usize,
    /// Lines since the last pause.
    shown: usize,
    pauses: bool,
}

impl Console {
    /// As the firmware has left it.
    pub fn new() -> Self {
        let mode = system::with_stdout(|console| console.current_mode().ok().flatten());
        let size = mode.map(|mode| (mode.columns(), mode.rows()));
        let (columns, rows) =
            size.filter(|(columns, rows)| *columns > 20 && *rows > 4).unwrap_or((COLUMNS, ROWS));
        Self { columns: columns - 1, rows, shown: 0, pauses: true }
    }

    /// Shows a line, behind a pause where the page is full.
    pub fn line(&mut self, line: &str) {
        if self.pauses && self.shown + 2 > self.rows {
            let key = wait("-- more: any key; c: all the rest --");
            self.pauses = !matches!(key, Some(Key::Printable(key)) if char::from(key) == REST);
            self.shown = 0;
        }
        output::write(line);
        // The firmware makes it a carriage return and a line feed.
        output::write("\n");
        self.shown += 1;
    }
}

/// Waits for a key, at most a minute.
pub fn wait(prompt: &str) -> Option<Key> {
    output::write(prompt);
    let pressed = (0..STEPS).find_map(|_| {
        let key = system::with_stdin(|keys| keys.read_key().ok().flatten());
        if key.is_none() {
            boot::stall(STEP);
        }
        key
    });
    output::write("\n");
    pressed
}
