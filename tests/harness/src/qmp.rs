// SPDX-License-Identifier: MIT OR Apache-2.0
//! The QEMU Machine Protocol, as far as scenarios change a machine from outside.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to a running QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects to the socket and leaves the negotiation mode.
    ///
    /// # Errors
    /// When nobody listens there, or the other side does not speak QMP.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let writer =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        writer.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Qmp { reader: BufReader::new(writer.try_clone()?), writer };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("no QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result.
    ///
    /// # Errors
    /// When QEMU refuses the command or does not answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        writeln!(self.writer, "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut answer = self.read().with_context(|| format!("QMP {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QMP {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            // Everything else is an event.
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
