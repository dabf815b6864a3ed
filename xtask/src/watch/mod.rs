// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask watch`: what a machine does, seen from the host through its framed serial line.
//!
//! Principle: it asks the monitor what anybody may ask, and changes nothing. What was recorded is shown as what is live.

mod curves;
mod diagram;
mod history;
mod html;
mod markup;
mod rates;
mod reach;
mod snapshot;
mod source;
mod tables;
mod view;

#[cfg(test)]
mod tests;

use crate::progress::Step;
use anyhow::{Context, Result, ensure};
use clap::Args;
use history::{History, SAMPLES};
use snapshot::Snapshot;
use source::Poll;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
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
    /// Writes one page for a browser, with the tables, a picture of who may reach what, and the rates over time.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How long a running machine is watched for --html; of the time, the last 600 looks are kept.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, requires = "html")]
    seconds: Duration,
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
/// When there is nothing to show: no such line or transcript, or no answer; when the page cannot be written, and when the
/// view has no terminal.
pub fn run(options: &Watch) -> Result<()> {
    let stays = !options.once && options.html.is_none();
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    ensure!(
        terminal || !stays,
        "there is no terminal to show it on; --once prints tables, --html FILE writes a page"
    );
    let moments = match (&options.line, &options.transcript) {
        (Some(line), _) => {
            let mut poll = Poll::open(line, options.interval, options.record.as_deref())?;
            if stays {
                return view::show(Moments::Live(ask_on(poll)));
            }
            let least = options.html.as_ref().map_or(Duration::ZERO, |_| options.seconds);
            some(&mut poll, least)?
        }
        (None, Some(path)) => source::transcript(path)?,
        (None, None) => Vec::new(),
    };
    if stays {
        return view::show(Moments::Recorded(moments));
    }
    let (Some(last), history) = (moments.last(), History::of(&moments)) else { return Ok(()) };
    if let Some(path) = &options.html {
        std::fs::write(path, html::page(last, &history))
            .with_context(|| format!("writing {}", path.display()))?;
        eprintln!("  the page is {}", path.display());
    }
    if options.once {
        print!("{}", text(last, &history));
    }
    Ok(())
}

/// Watches a machine for that time, and for at least [`ONCE`] snapshots. One that ends in the meantime was seen until then.
fn some(poll: &mut Poll, least: Duration) -> Result<Vec<Snapshot>> {
    let step = (!least.is_zero()).then(|| Step::start(format!("watching for {:.0} s", least.as_secs_f64())));
    let started = Instant::now();
    let mut seen = VecDeque::new();
    while seen.len() < ONCE || started.elapsed() < least {
        match poll.snapshot() {
            Ok(snapshot) => seen.push_back(snapshot),
            Err(error) if seen.is_empty() => return Err(error),
            Err(error) => {
                eprintln!("  {error:#}");
                break;
            }
        }
        if seen.len() > SAMPLES {
            seen.pop_front();
        }
    }
    step.into_iter().for_each(Step::done);
    Ok(seen.into())
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

/// A moment as plain text.
fn text(snapshot: &Snapshot, history: &History) -> String {
    let words: Vec<String> = tables::summary(snapshot, history)
        .into_iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let mut text = format!("{}\n", words.join("  "));
    tables::alarms(snapshot).iter().for_each(|alarm| text += &format!("{alarm}\n"));
    for grid in tables::tables(snapshot, history) {
        text += &format!("\n{}\n{}", grid.title, grid.text());
    }
    text
}
