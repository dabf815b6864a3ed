// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running machine: its consoles, Pasidon's monitor and log, and QMP.
//!
//! Invariant: a machine ends with the value that stands for it, however a scenario ends.

use crate::line::{Console, Framing, Line, carry, copy_blocks};
use crate::platform::{Platform, Qemu};
use crate::qmp::Qmp;
use crate::transcript::Transcript;
use anyhow::{Context, Result, bail, ensure};
use pasidon_kernel::console::framing::CHANNELS;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// The stream of what QEMU says, behind those of the channels.
const STREAM_OF_QEMU: usize = CHANNELS as usize;
/// How long QEMU may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The first accelerator, as QEMU calls it (qom-set, qom-get).
pub const ACCELERATOR: &str = "/machine/peripheral/dsa0";

/// A running machine.
pub struct Machine {
    child: Mutex<Child>,
    line: Line,
    /// Names of the VMs, in the order of the configuration.
    vms: Vec<String>,
    private: TempDir,
}

impl Machine {
    /// Starts a machine that does not run Pasidon: everything on the serial line is its [`Machine::log`].
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start_plain(qemu: &Qemu, platform: &Platform) -> Result<Machine> {
        Machine::start_line(qemu, platform, Vec::new(), Framing::Plain)
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
        Machine::start_line(qemu, platform, vms, Framing::Framed)
    }

    fn start_line(qemu: &Qemu, platform: &Platform, vms: Vec<String>, framing: Framing) -> Result<Machine> {
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
        let first = match framing {
            Framing::Plain => "serial line",
            Framing::Framed => "monitor and log",
        };
        // VMs that are defined later have channels behind these.
        let later = (vms.len() + 1..STREAM_OF_QEMU).map(|channel| format!("channel {channel}"));
        let names = std::iter::once(first.to_owned()).chain(vms.iter().cloned()).chain(later);
        let names = names.take(STREAM_OF_QEMU).chain(["QEMU".to_owned()]);
        let transcript = Arc::new(Transcript::new(names));
        let sink = Arc::clone(&transcript);
        std::thread::spawn(move || {
            copy_blocks(errors, |block| sink.receive(block.iter().map(|byte| (STREAM_OF_QEMU, *byte))));
        });
        let sink = Arc::clone(&transcript);
        std::thread::spawn(move || {
            carry(output, framing, &sink);
            sink.end("QEMU ended".to_owned());
        });
        Ok(Machine { child: Mutex::new(child), line: Line::new(input, transcript), vms, private })
    }

    /// Names of the VMs, in the order of the configuration.
    pub fn vms(&self) -> &[String] {
        &self.vms
    }

    /// The console of the VM of that name; of one that is not in the configuration, the channel that the monitor names.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn console(&self, vm: &str) -> Result<Console<'_>> {
        if let Some(index) = self.vms.iter().position(|name| name == vm) {
            return Ok(self.line.console(index + 1));
        }
        let channel = self.monitor(&format!("console {vm}"))?["channel"].as_u64();
        Ok(self.line.console(channel.context("the monitor names no channel")?.try_into()?))
    }

    /// Pasidon's log and monitor; of a machine without Pasidon, its serial line.
    pub fn log(&self) -> Console<'_> {
        self.line.log()
    }

    /// Gives the monitor a command, and returns its answer in JSON.
    ///
    /// # Errors
    /// When the monitor refuses, or no line of JSON comes back in time.
    pub fn monitor(&self, command: &str) -> Result<Value> {
        self.line.monitor(command)
    }

    /// A new QMP connection. The serial line must have shown something before, so that QEMU is known to listen.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.private.path().join("qmp"))
    }

    /// What the first accelerator's model has counted, by the name of its property, such as `stat-completed`.
    ///
    /// # Errors
    /// As [`Machine::qmp`]; when there is no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let path = json!({ "path": ACCELERATOR, "property": name });
        let value = self.qmp()?.execute("qom-get", path)?;
        value.as_u64().with_context(|| format!("{name}: {value}"))
    }

    /// Waits until QEMU has ended by itself, as it does when the machine is switched off or resets.
    ///
    /// # Errors
    /// When the time is up first.
    pub fn wait_for_end(&self, timeout: Duration) -> Result<()> {
        self.line.transcript().wait_for_end(timeout).map(drop)
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
        self.line.transcript().render()
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
