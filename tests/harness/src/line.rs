// SPDX-License-Identifier: MIT OR Apache-2.0
//! This end of a machine's serial line: one stream per guest, and the monitor's answers.
//!
//! Invariant: what is taken for the monitor's answer came on the monitor's channel. Who opens a line that is in use
//! does not know which channel is current, and so must [`Line::join`] it: a guest could print an answer.

use crate::transcript::Transcript;
use anyhow::{Context, Result, bail, ensure};
use pasidon_kernel::console::framing::{Decoder, Encoder, MONITOR_CHANNEL, SELECT_MONITOR};
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The stream of monitor and log.
const MONITOR: usize = MONITOR_CHANNEL as usize;
/// How long Pasidon's monitor may take to answer a command.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from the line at a time.
const READ_BLOCK: usize = 4096;
/// What the monitor's editor takes for: forget this line.
const FORGET_LINE: u8 = 0x15;

/// How a serial line is to be read.
#[derive(Clone, Copy)]
pub enum Framing {
    /// One stream.
    Plain,
    /// Framed by Pasidon.
    Framed,
}

/// This end of a serial line.
pub struct Line {
    input: Mutex<(Encoder, Box<dyn Write + Send>)>,
    transcript: Arc<Transcript>,
    /// One monitor command at a time: its answer is the next line of JSON.
    monitor: Mutex<()>,
}

impl Line {
    /// A line that what is typed goes to `input` of; something else carries what comes into the transcript, as [`carry`]
    /// does.
    pub fn new(input: impl Write + Send + 'static, transcript: Arc<Transcript>) -> Line {
        Line { input: Mutex::new((Encoder::default(), Box::new(input))), transcript, monitor: Mutex::new(()) }
    }

    /// A framed line of a machine that runs already, with what comes from `output`.
    pub fn framed(input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Line {
        let transcript = Arc::new(Transcript::new(["monitor and log".to_owned()]));
        let sink = Arc::clone(&transcript);
        std::thread::spawn(move || {
            carry(output, Framing::Framed, &sink);
            sink.end("the line was closed at its other end".to_owned());
        });
        Line::new(input, transcript)
    }

    /// Brings both ends of a framed line to the monitor's channel, wherever they are, and waits until the monitor says
    /// a word back that nobody else knows.
    ///
    /// # Errors
    /// When it does not within the time.
    pub fn join(&self, timeout: Duration) -> Result<()> {
        let word = format!("line-{:016x}", RandomState::new().hash_one(std::process::id()));
        // Twice: the first one may come behind half an escape of whoever had the line before.
        let mut bytes = [SELECT_MONITOR, SELECT_MONITOR].concat();
        bytes.push(FORGET_LINE);
        bytes.extend(format!("help {word} --json\r").bytes());
        self.write(&bytes)?;
        self.transcript.expect(MONITOR, &format!("\\{{\"error\"[^\n]*{word}[^\n]*\n"), timeout).map(drop)
    }

    /// Gives the monitor a command, and returns its answer in JSON.
    ///
    /// # Errors
    /// When the monitor refuses, or no line of JSON comes back in time.
    pub fn monitor(&self, command: &str) -> Result<Value> {
        let text = self.ask(command, MONITOR_TIMEOUT)?;
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("monitor: {command}: not JSON: {text}"))?;
        if let Some(error) = answer.get("error") {
            bail!("monitor: {command}: {error}");
        }
        Ok(answer)
    }

    /// Like [`Line::monitor`], but returns the line as it came, whatever it says.
    ///
    /// # Errors
    /// When no line of JSON comes back in that time.
    pub fn ask(&self, command: &str, timeout: Duration) -> Result<String> {
        let _one_at_a_time = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        let command = format!("{command} --json");
        // Log lines share the stream and may come in between; they never start like this. Only what comes from now
        // on can be the answer.
        let log = self.console(MONITOR);
        let seen = self.transcript.skip(MONITOR);
        log.send_line(&command)?;
        let answer = log.expect(r"^[{\[].*$\n", timeout).with_context(|| format!("monitor: {command}"))?;
        // Log lines that came before the answer are still to be seen by who waits for them.
        self.transcript.go_back(MONITOR, seen);
        Ok(answer[0].trim().to_owned())
    }

    /// The stream of that channel.
    pub fn console(&self, channel: usize) -> Console<'_> {
        Console { line: self, channel }
    }

    /// The stream of Pasidon's log and monitor; of a line without Pasidon, all of it.
    pub fn log(&self) -> Console<'_> {
        self.console(MONITOR)
    }

    /// What came in so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    fn send(&self, channel: usize, bytes: &[u8]) -> Result<()> {
        let channel = u8::try_from(channel).context("no such channel")?;
        let mut encoded = Vec::with_capacity(bytes.len() + 2);
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let (encoder, line) = &mut *input;
        encoder.send(channel, bytes, &mut |byte| encoded.push(byte));
        line.write_all(&encoded).and_then(|()| line.flush()).with_context(|| self.closed())
    }

    /// Sends bytes as they are, which must leave the monitor's channel the current one.
    fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let (encoder, line) = &mut *input;
        *encoder = Encoder::default();
        line.write_all(bytes).and_then(|()| line.flush()).with_context(|| self.closed())
    }

    fn closed(&self) -> String {
        format!("writing to the serial line; the machine may have ended\n{}", self.transcript.render())
    }
}

/// One stream of a line.
#[derive(Clone, Copy)]
pub struct Console<'m> {
    line: &'m Line,
    channel: usize,
}

impl Console<'_> {
    /// Waits until `pattern` (a regular expression; `^` and `$` match at line ends) matches what this console said
    /// since the previous match, and returns the groups of the match; group 0 is the match itself.
    ///
    /// # Errors
    /// When the time is up or the machine ends first; the error holds every stream's transcript.
    pub fn expect(&self, pattern: &str, timeout: Duration) -> Result<Vec<String>> {
        self.line.transcript.expect(self.channel, pattern, timeout)
    }

    /// Types a line, with the carriage return that a terminal's Enter key sends.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn send_line(&self, line: &str) -> Result<()> {
        self.send(format!("{line}\r").as_bytes())
    }

    /// Types bytes as they are.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        self.line.send(self.channel, bytes)
    }

    /// Types a command at the guest's shell prompt, waits for the next prompt, and returns what the command printed.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn command(&self, command: &str, timeout: Duration) -> Result<String> {
        // Longer lines come back broken by the guest's line editor.
        ensure!(
            PROMPT.len() + command.len() < COLUMNS,
            "too long for a line of {COLUMNS} columns: {command}"
        );
        self.send_line(command)?;
        let echo = regex::escape(command);
        let groups = self.expect(&format!("{echo}\n((?s:.*?))^{PROMPT}"), timeout)?;
        Ok(groups[1].trim_end().to_owned())
    }

    /// How often `pattern` occurs in all that this console has said.
    ///
    /// # Errors
    /// When the pattern is no regular expression.
    pub fn count(&self, pattern: &str) -> Result<usize> {
        self.line.transcript.count(self.channel, pattern)
    }

    /// When, counted from the machine's start, the line of the previous match began.
    pub fn time_of_match(&self) -> Duration {
        self.line.transcript.time_of_match(self.channel)
    }
}

/// What the Linux guest's shell takes for the width of its terminal.
const COLUMNS: usize = 80;
/// The prompt of the Linux guest's shell, as `tests/guests/linux/init` sets it.
pub const PROMPT: &str = "guest# ";

/// Carries what comes on a serial line into the transcript until it ends, each channel into the stream of its number.
pub fn carry(output: impl Read, framing: Framing, transcript: &Transcript) {
    let mut decoder = Decoder::default();
    copy_blocks(output, |block| match framing {
        Framing::Plain => transcript.receive(block.iter().map(|byte| (MONITOR, *byte))),
        Framing::Framed => {
            let received = block.iter().filter_map(|byte| decoder.receive(*byte));
            transcript.receive(received.map(|(channel, byte)| (usize::from(channel), byte)));
        }
    });
}

/// Hands everything that can be read to `sink`, block by block.
pub fn copy_blocks(mut input: impl Read, mut sink: impl FnMut(&[u8])) {
    let mut block = [0; READ_BLOCK];
    while let Ok(length @ 1..) = input.read(&mut block) {
        sink(&block[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    /// A line whose other end runs in a thread of its own.
    fn line(other: impl FnOnce(BufReader<UnixStream>, UnixStream) + Send + 'static) -> Line {
        let (here, there) = UnixStream::pair().unwrap();
        let reader = BufReader::new(there.try_clone().unwrap());
        std::thread::spawn(move || other(reader, there));
        Line::framed(here.try_clone().unwrap(), here)
    }

    /// The command that comes next, as the monitor would get it.
    fn command(reader: &mut BufReader<UnixStream>) -> String {
        let mut bytes = Vec::new();
        reader.read_until(b'\r', &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_guest_cannot_answer_for_the_monitor() {
        let line = line(|mut reader, mut writer| {
            // Guest 1 is current, and whoever joins takes it for the monitor.
            writer.write_all(b"{\"error\":{}}\n[\"forged\"]\nhalf a line").unwrap();
            let asked = command(&mut reader);
            let word = asked.strip_prefix("\x10@\x10@\x15help ").unwrap();
            let word = word.strip_suffix(" --json\r").unwrap();
            let answer = format!("\x10@{{\"error\":{{\"why\":\"unknown command {word}\"}}}}\r\n\x10A[1]\n");
            writer.write_all(answer.as_bytes()).unwrap();
            assert_eq!(command(&mut reader), "vms --json\r");
            writer.write_all(b"\x10A[2]\n\x10@a line of the log\r\n[3]\r\n").unwrap();
        });
        line.join(MONITOR_TIMEOUT).unwrap();
        assert_eq!(line.ask("vms", MONITOR_TIMEOUT).unwrap(), "[3]");
    }

    #[test]
    fn a_line_that_is_not_answered_cannot_be_joined() {
        let echo = line(|mut reader, mut writer| {
            // An echo, and an answer of whoever did not see the word.
            let typed = command(&mut reader);
            writer.write_all(typed.as_bytes()).unwrap();
            writer.write_all(b"\n{\"error\":{\"why\":\"unknown command line-0\"}}\n").unwrap();
            let _ = command(&mut reader);
        });
        assert!(echo.join(Duration::from_millis(50)).is_err());
        let closed = line(|_, _| ());
        assert!(closed.join(MONITOR_TIMEOUT).is_err());
    }
}
