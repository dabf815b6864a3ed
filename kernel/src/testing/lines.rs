// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the thread of each test logs.

use std::cell::RefCell;
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

std::thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Keeps what this thread logs from now on, from information up.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| log::set_logger(&Lines).expect("the only one"));
    log::set_max_level(LevelFilter::Info);
    LINES.take();
}

/// The texts of what was logged, oldest first.
pub fn kept() -> Vec<String> {
    LINES.with_borrow(Vec::clone)
}
