// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where snapshots come from: a framed serial line, which is asked, or one that was recorded.
//!
//! Invariant: a machine is asked one question at a time, and rests at least as long as its answers took.

use crate::command;
use crate::watch::snapshot::{COMMANDS, Snapshot};
use anyhow::{Context, Result, bail};
use pasidon_harness::Line;
use pasidon_kernel::console::framing::{Decoder, MONITOR_CHANNEL};
use serde_json::Value;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a machine may take until its monitor answers: its firmware may still be at work.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one try of that takes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may take: a long one is slow on a real serial line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// What is said of an answer that is not JSON.
const DAMAGED: &str = "an answer is damaged";
/// Pasidon sets its serial port so.
const BAUD: &str = "115200";

/// A running machine's line, to be asked again and again.
pub struct Poll {
    line: Line,
    interval: Duration,
    record: Option<(File, PathBuf)>,
    /// When the next question may come.
    next: Instant,
}

impl Poll {
    /// Opens the line at `path`, and waits until the monitor answers on it. What it answers is added to the file `record`
    /// too.
    ///
    /// # Errors
    /// When there is no such line, or no monitor that answers.
    pub fn open(path: &Path, interval: Duration, record: Option<&Path>) -> Result<Poll> {
        let record = record.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.with_context(|| format!("writing {}", path.display())).map(|file| (file, path.to_owned()))
        });
        let record = record.transpose()?;
        let line = open(path)?;
        join(&line, path)?;
        Ok(Poll { line, interval, record, next: Instant::now() })
    }

    /// Waits until it is time, and asks.
    ///
    /// # Errors
    /// When an answer does not come.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        let started = Instant::now();
        let mut snapshot = Snapshot::default();
        for command in COMMANDS {
            let answer = self.line.ask(command, ANSWER_TIMEOUT).map_err(first_line)?;
            if let Some((file, path)) = &mut self.record {
                writeln!(file, "{answer}").with_context(|| format!("writing {}", path.display()))?;
            }
            match serde_json::from_str(&answer) {
                Ok(answer) => snapshot.take(command, answer),
                Err(_) => snapshot.notes.push(DAMAGED.to_owned()),
            }
        }
        // Nobody reads what guests print; it must not pile up.
        self.line.transcript().forget();
        self.next = Instant::now() + self.interval.max(started.elapsed());
        Ok(snapshot)
    }
}

/// A transcript of all streams belongs to an error of a test, not to one of a command.
fn first_line(error: anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", format!("{error:#}").lines().next().unwrap_or_default().to_owned())
}

fn open(path: &Path) -> Result<Line> {
    let shown = path.display();
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{shown} is not there; start a machine with `cargo xtask run --socket {shown}`, or name a serial device"
        ),
        Err(error) => bail!("{shown}: {error}"),
    };
    let refused = |error: std::io::Error| match error.kind() {
        ErrorKind::ConnectionRefused => {
            anyhow::anyhow!("nobody listens at {shown} any more; start the machine again, or delete the file")
        }
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{shown}: {error}; take the group that owns it (often dialout), or sudo")
        }
        _ => anyhow::anyhow!("{shown}: {error}"),
    };
    if kind.is_socket() {
        let stream = UnixStream::connect(path).map_err(refused)?;
        return Ok(Line::framed(stream.try_clone()?, stream));
    }
    if !kind.is_char_device() {
        bail!("{shown} is no serial line; what was recorded is read with --transcript {shown}");
    }
    let device = File::options().read(true).write(true).open(path).map_err(refused)?;
    command::output(Command::new("stty").arg("-F").arg(path).args([BAUD, "raw", "-echo"]))
        .with_context(|| format!("{shown} is no serial line"))?;
    Ok(Line::framed(device.try_clone()?, device))
}

/// Tries until the monitor answers.
fn join(line: &Line, path: &Path) -> Result<()> {
    let started = Instant::now();
    let mut said = false;
    while let Err(error) = line.join(JOIN_TIMEOUT) {
        let error = first_line(error);
        if error.to_string().contains("before the end") {
            bail!("{} was closed at its other end; is its machine still there?", path.display());
        }
        if started.elapsed() > BOOT_TIMEOUT {
            bail!(
                "no monitor answers at {}; its configuration needs `console = \"framed\"` under [host], and nobody else may have the line",
                path.display()
            );
        }
        if !said {
            eprintln!("  waiting for the monitor at {} …", path.display());
            said = true;
        }
    }
    Ok(())
}

/// The snapshots in what was recorded of a line: its bytes as they came, or only the monitor's answers, one a line. What
/// is damaged is left out and noted.
///
/// # Errors
/// When it cannot be read, or has no answer of the monitor.
pub fn transcript(path: &Path) -> Result<Vec<Snapshot>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => bail!("{}: {error}; a transcript is what --record wrote", path.display()),
    };
    let snapshots = snapshots(&bytes);
    if snapshots.is_empty() {
        bail!(
            "{} is no transcript: there is no answer of the monitor with --json in it; `cargo xtask watch LINE --record FILE` writes one",
            path.display()
        );
    }
    Ok(snapshots)
}

/// All snapshots in these bytes.
pub fn snapshots(bytes: &[u8]) -> Vec<Snapshot> {
    let mut decoder = Decoder::default();
    let received = bytes.iter().filter_map(|byte| decoder.receive(*byte));
    let monitor: Vec<u8> =
        received.filter(|(channel, _)| *channel == MONITOR_CHANNEL).map(|(_, byte)| byte).collect();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    let mut current = Snapshot::default();
    let mut told = false;
    for line in monitor.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if !line.starts_with(b"{") && !line.starts_with(b"[") {
            continue;
        }
        let Ok(answer) = serde_json::from_slice::<Value>(line) else {
            current.notes.push(DAMAGED.to_owned());
            continue;
        };
        let Some(command) = current.command_of(&answer) else { continue };
        if command == COMMANDS[0] && told {
            snapshots.push(std::mem::take(&mut current));
        }
        current.take(command, answer);
        told = true;
    }
    if told {
        snapshots.push(current);
    }
    snapshots
}
