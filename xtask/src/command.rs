// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running other programs: every failure says which program, in which folder, and what it printed last.

use crate::progress::Step;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Lines of a failed program's output that an error repeats.
const TAIL_LINES: usize = 40;

/// A cargo of the pinned toolchain, in the top folder of the checkout.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

/// Runs `command` with this process's terminal.
///
/// # Errors
/// When the program cannot be started or does not exit with 0.
pub fn run_visible(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", describe(command));
    }
    Ok(())
}

/// Runs `command` quietly under `step`, which shows the last line printed; a failure repeats the end of the output.
///
/// # Errors
/// When the program cannot be started or does not exit with 0.
pub fn run(command: &mut Command, step: &Step) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let described = describe(command);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("starting {described}"))?;
    // The command keeps both write ends; without this the pipe would never report its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        step.note(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait()?;
    if !status.success() {
        let tail = Vec::from(tail).join("\n");
        bail!("{described} failed: {status}; it printed last:\n{tail}");
    }
    Ok(())
}

/// Runs `command` and returns what it printed on its standard output, without the last line feed.
///
/// # Errors
/// When the program cannot be started or does not exit with 0; the error repeats its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", describe(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}; it said: {}", describe(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs `command`, prints what it prints on its standard output as it comes, and returns that, and whether the
/// program exited with 0.
///
/// # Errors
/// When the program cannot be started.
pub fn output_echoed(command: &mut Command) -> Result<(String, bool)> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {}", describe(command)))?;
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("no standard output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text, child.wait()?.success()))
}

/// Whether a program of that name lies in one of the folders of `PATH`.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether this process may install system packages itself.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0")
}

/// The command line as one would type it, for messages.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
