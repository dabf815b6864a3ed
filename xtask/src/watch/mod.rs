// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask watch`: what a machine does, seen from the host through its framed serial line.
//!
//! Principle: it asks the monitor what anybody may ask, and changes nothing. What was recorded is shown as what is live.

mod history;
mod rates;
mod reach;
mod snapshot;
mod source;
mod tables;
mod view;

#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};
use clap::Args;
use history::History;
use snapshot::Snapshot;
use source::Poll;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use view::Moments;

/// Snapshots that `--once` takes of a running machine: rates need two.
const ONCE: usize = 2;

/// What to watch, and how it is shown.
#[derive(Args)]
pub struct Watch {
    /// The framed serial line of a running machine: the socket of `cargo xtask run --socket FILE`, or a serial device.
    #[arg(required_unless_present = "transcript")]
    line: Option<PathBuf>,
    /// In the place of a running machine, what was recorded of one: by --record, or a framed line byte by byte.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["line", "record"])]
    transcript: Option<PathBuf>,
    /// Prints the tables once, as plain text, and ends. Without it there is a view on the terminal that stays.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks at a running machine. It rests at least as long as its answers took.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Adds every answer of the machine to this file, for --transcript.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    ensure!((0.1..=3600.0).contains(&seconds), "from 0.1 to 3600 seconds");
    Ok(Duration::from_secs_f64(seconds))
}

/// Shows what `options` ask for.
///
/// # Errors
/// When there is nothing to show: no such line or transcript, or no answer; and when the view has no terminal.
pub fn run(options: &Watch) -> Result<()> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    ensure!(options.once || terminal, "there is no terminal to show it on; --once prints tables");
    let moments = match (&options.line, &options.transcript) {
        (Some(line), _) => {
            let mut poll = Poll::open(line, options.interval, options.record.as_deref())?;
            if options.once {
                Moments::Recorded((0..ONCE).map(|_| poll.snapshot()).collect::<Result<_>>()?)
            } else {
                Moments::Live(ask_on(poll))
            }
        }
        (None, Some(path)) => Moments::Recorded(source::transcript(path)?),
        (None, None) => Moments::Recorded(Vec::new()),
    };
    match moments {
        Moments::Recorded(snapshots) if options.once => print!("{}", text(&snapshots)),
        moments => view::show(moments)?,
    }
    Ok(())
}

/// Asks a machine again and again until it does not answer, or nobody wants to know any more.
fn ask_on(mut poll: Poll) -> Receiver<Result<Snapshot>> {
    // A place for the next one only: while the view is paused, nothing is asked.
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        loop {
            let snapshot = poll.snapshot();
            let failed = snapshot.is_err();
            if sender.send(snapshot).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

/// The last of these moments as plain text.
fn text(snapshots: &[Snapshot]) -> String {
    let Some(last) = snapshots.last() else { return String::new() };
    let history = History::of(snapshots);
    let words: Vec<String> =
        tables::summary(last, &history).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
    let mut text = format!("{}\n", words.join("  "));
    tables::alarms(last).iter().for_each(|alarm| text += &format!("{alarm}\n"));
    for grid in tables::tables(last, &history) {
        text += &format!("\n{}\n{}", grid.title, grid.text());
    }
    text
}
