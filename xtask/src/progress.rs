// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress of steps that take longer than a few seconds: a moving line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Without a terminal, a running step says where it is this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
/// Longest part of a program's output line that is shown behind a step's title.
const NOTE_WIDTH: usize = 70;

/// One step of the set-up, from [`Step::start`] to [`Step::done`]; dropping it without `done` says that it failed.
pub struct Step {
    title: String,
    bar: ProgressBar,
    started: Instant,
    last_plain: Cell<Instant>,
    finished: bool,
}

impl Step {
    /// Announces the step. The title says what is made and, when it is long, about how long it takes.
    pub fn start(title: impl Into<String>) -> Step {
        let title = title.into();
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}");
        bar.set_style(style.expect("a constant template"));
        bar.set_prefix(title.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        if bar.is_hidden() {
            eprintln!("  {title} …");
        }
        let now = Instant::now();
        Step { title, bar, started: now, last_plain: Cell::new(now), finished: false }
    }

    /// Shows what the step is at.
    pub fn note(&self, line: &str) {
        let short: String = line.trim().chars().take(NOTE_WIDTH).collect();
        if self.bar.is_hidden() {
            if self.last_plain.get().elapsed() >= PLAIN_INTERVAL {
                self.last_plain.set(Instant::now());
                eprintln!("  {} [{} s] {short}", self.title, self.started.elapsed().as_secs());
            }
        } else {
            self.bar.set_message(short);
        }
    }

    /// Says that the step is complete and how long it took.
    pub fn done(mut self) {
        self.finished = true;
        self.close("done");
    }

    fn close(&self, outcome: &str) {
        self.bar.finish_and_clear();
        eprintln!("  {}: {outcome} in {:.1} s", self.title, self.started.elapsed().as_secs_f32());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.close("failed");
        }
    }
}
