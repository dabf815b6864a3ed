// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running machine: its consoles, Pasidon's monitor and log, and QMP.
//!
//! Invariant: a machine ends with the value that stands for it, however a scenario ends.

use crate::platform::{Platform, Qemu};
use crate::qmp::Qmp;
use crate::transcript::Transcript;
use anyhow::{Context, Result, bail, ensure};
use pasidon_kernel::console::framing::{Decoder, Encoder, MONITOR_CHANNEL};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// The stream of monitor and log.
const MONITOR: usize = MONITOR_CHANNEL as usize;
/// How long Pasidon's monitor may take to answer a command.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from the serial line at a time.
const READ_BLOCK: usize = 4096;

/// How the serial line of a machine is to be read.
enum Line {
    /// One stream.
    Plain,
    /// Framed by Pasidon.
    Framed,
}

/// A running machine.
pub struct Machine {
    child: Mutex<Child>,
    input: Mutex<(Encoder, ChildStdin)>,
    transcript: Arc<Transcript>,
    /// Names of the VMs, in the order of the configuration.
    vms: Vec<String>,
    /// One monitor command at a time: its answer is the next line of JSON.
    monitor: Mutex<()>,
    private: TempDir,
}

impl Machine {
    /// Starts a machine that does not run Pasidon: everything on the serial line is its [`Machine::log`].
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start_plain(qemu: &Qemu, platform: &Platform) -> Result<Machine> {
        Machine::start_line(qemu, platform, Vec::new(), Line::Plain)
    }

    /// Starts a machine that runs Pasidon with `configuration`, which must say `[host] console = "framed"`.
    ///
    /// Names of VMs are taken from the configuration as far as it can be read: a test may want it to be wrong.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(qemu: &Qemu, platform: &Platform, configuration: &str) -> Result<Machine> {
        let vms = match toml::from_str::<toml::Table>(configuration) {
            Ok(table) => vm_names(&table),
            Err(_) => Vec::new(),
        };
        Machine::start_line(qemu, platform, vms, Line::Framed)
    }

    fn start_line(qemu: &Qemu, platform: &Platform, vms: Vec<String>, line: Line) -> Result<Machine> {
        let private = tempfile::Builder::new().prefix("pasidon-").tempdir()?;
        let mut command = Command::new(&qemu.program);
        command.args(platform.command_line(qemu, private.path())?);
        command.envs(platform.variables().iter().map(|(name, value)| (name, value)));
        command.args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", private.path().join("qmp").display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", qemu.program.display()))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("QEMU's pipes are missing");
        };
        let first = match line {
            Line::Plain => "serial line",
            Line::Framed => "monitor and log",
        };
        let names = std::iter::once(first).chain(vms.iter().map(String::as_str)).chain(["QEMU"]);
        let transcript = Arc::new(Transcript::new(names.map(str::to_owned)));
        let stream_of_qemu = vms.len() + 1;
        let sink = Arc::clone(&transcript);
        std::thread::spawn(move || {
            copy_blocks(errors, |block| sink.receive(block.iter().map(|byte| (stream_of_qemu, *byte))));
        });
        let sink = Arc::clone(&transcript);
        std::thread::spawn(move || {
            read_serial_line(output, line, &sink, stream_of_qemu);
            sink.end("QEMU ended".to_owned());
        });
        let (child, input) = (Mutex::new(child), Mutex::new((Encoder::default(), input)));
        Ok(Machine { child, input, transcript, vms, monitor: Mutex::new(()), private })
    }

    /// Names of the VMs, in the order of the configuration.
    pub fn vms(&self) -> &[String] {
        &self.vms
    }

    /// The console of the VM of that name.
    ///
    /// # Errors
    /// When the configuration has no such VM.
    pub fn console(&self, vm: &str) -> Result<Console<'_>> {
        match self.vms.iter().position(|name| name == vm) {
            Some(index) => Ok(Console { machine: self, channel: index + 1 }),
            None => bail!("the configuration has no VM {vm}"),
        }
    }

    /// Pasidon's log and monitor; of a machine without Pasidon, its serial line.
    pub fn log(&self) -> Console<'_> {
        Console { machine: self, channel: MONITOR }
    }

    /// Gives the monitor a command, and returns its answer in JSON.
    ///
    /// # Errors
    /// When the monitor refuses, or no line of JSON comes back in time.
    pub fn monitor(&self, command: &str) -> Result<Value> {
        let _one_at_a_time = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        let command = format!("{command} --json");
        // Log lines share the stream and may come in between; they never start like this. Only what comes from now
        // on can be the answer.
        let log = self.log();
        let seen = self.transcript.skip(MONITOR);
        log.send_line(&command)?;
        let answer =
            log.expect(r"^[{\[].*$\n", MONITOR_TIMEOUT).with_context(|| format!("monitor: {command}"))?;
        // Log lines that came before the answer are still to be seen by who waits for them.
        self.transcript.go_back(MONITOR, seen);
        let answer: Value = serde_json::from_str(answer[0].trim())
            .with_context(|| format!("monitor: {command}: not JSON: {}", answer[0]))?;
        if let Some(error) = answer.get("error") {
            bail!("monitor: {command}: {error}");
        }
        Ok(answer)
    }

    /// A new QMP connection. The serial line must have shown something before, so that QEMU is known to listen.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.private.path().join("qmp"))
    }

    /// Waits until QEMU has ended by itself, as it does when the machine is switched off or resets.
    ///
    /// # Errors
    /// When the time is up first.
    pub fn wait_for_end(&self, timeout: Duration) -> Result<()> {
        self.transcript.wait_for_end(timeout).map(drop)
    }

    /// Has QEMU end in order, so that what it writes down at its end is there. The serial line must have shown something
    /// before, as for [`Machine::qmp`].
    ///
    /// # Errors
    /// When QEMU does not answer, or does not end.
    pub fn quit(self) -> Result<()> {
        self.qmp()?.execute("quit", json!({}))?;
        self.wait_for_end(END_TIMEOUT)?;
        let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
        ensure!(status.success(), "QEMU ended with {status}\n{}", self.transcript());
        Ok(())
    }

    /// Everything every stream has said so far.
    pub fn transcript(&self) -> String {
        self.transcript.render()
    }

    fn send(&self, channel: usize, bytes: &[u8]) -> Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let (encoder, line) = &mut *input;
        let channel = u8::try_from(channel).context("no such channel")?;
        let mut encoded = Vec::with_capacity(bytes.len() + 2);
        encoder.send(channel, bytes, &mut |byte| encoded.push(byte));
        line.write_all(&encoded).and_then(|()| line.flush()).with_context(|| {
            format!("writing to the serial line; QEMU may have ended\n{}", self.transcript.render())
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already; there is nothing to do about other failures here.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// One stream of a machine.
#[derive(Clone, Copy)]
pub struct Console<'m> {
    machine: &'m Machine,
    channel: usize,
}

impl Console<'_> {
    /// Waits until `pattern` (a regular expression; `^` and `$` match at line ends) matches what this console said
    /// since the previous match, and returns the groups of the match; group 0 is the match itself.
    ///
    /// # Errors
    /// When the time is up or the machine ends first; the error holds every stream's transcript.
    pub fn expect(&self, pattern: &str, timeout: Duration) -> Result<Vec<String>> {
        self.machine.transcript.expect(self.channel, pattern, timeout)
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
        self.machine.send(self.channel, bytes)
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
        self.machine.transcript.count(self.channel, pattern)
    }

    /// When, counted from the machine's start, the line of the previous match began.
    pub fn time_of_match(&self) -> Duration {
        self.machine.transcript.time_of_match(self.channel)
    }
}

/// What the Linux guest's shell takes for the width of its terminal.
const COLUMNS: usize = 80;
/// The prompt of the Linux guest's shell, as `tests/guests/linux/init` sets it.
pub const PROMPT: &str = "guest# ";

/// The names of the `[[vm]]` tables, in order; one without a name is called by its place.
fn vm_names(table: &toml::Table) -> Vec<String> {
    let Some(vms) = table.get("vm").and_then(toml::Value::as_array) else {
        return Vec::new();
    };
    let name = |(index, vm): (usize, &toml::Value)| match vm.get("name").and_then(toml::Value::as_str) {
        Some(name) => name.to_owned(),
        None => format!("vm {}", index + 1),
    };
    vms.iter().enumerate().map(name).collect()
}

/// Carries a serial line into the transcript until it ends. Channels beyond the VMs are not to be mixed up with
/// QEMU's own stream, which comes right behind the VMs'.
fn read_serial_line(output: impl Read, line: Line, transcript: &Transcript, stream_of_qemu: usize) {
    let mut decoder = Decoder::default();
    copy_blocks(output, |block| match line {
        Line::Plain => transcript.receive(block.iter().map(|byte| (MONITOR, *byte))),
        Line::Framed => {
            let received = block.iter().filter_map(|byte| decoder.receive(*byte));
            transcript.receive(received.map(|(channel, byte)| {
                let channel = usize::from(channel);
                (if channel < stream_of_qemu { channel } else { channel + 1 }, byte)
            }));
        }
    });
}

fn copy_blocks(mut input: impl Read, mut sink: impl FnMut(&[u8])) {
    let mut block = [0; READ_BLOCK];
    while let Ok(length @ 1..) = input.read(&mut block) {
        sink(&block[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_are_named_in_the_order_of_the_configuration() {
        let table =
            toml::from_str("[host]\n[[vm]]\nname = \"beta\"\n[[vm]]\n[[vm]]\nname = \"alpha\"\n").unwrap();
        assert_eq!(vm_names(&table), ["beta", "vm 2", "alpha"]);
    }
}
