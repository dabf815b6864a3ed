// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: on a terminal a live console; elsewhere the demonstration to its end, with a summary; or the
//! serial line on a socket.

use crate::workshop::Shop;
use crate::{command, image};
use anyhow::{Context, Result, bail, ensure};
use pasidon_harness::demonstration::{self, Copies, Results};
use pasidon_harness::{Arch, Cpu, Machine, Platform, Workshop};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use toml::{Table, Value};

/// Runs that configuration (the demonstration's when none is given) on a machine of `arch` with processors `cpu`, its
/// serial line on `socket` if that is given.
///
/// # Errors
/// When something cannot be made or started; without a terminal also when a guest's copies were not all right.
pub fn run(arch: Arch, cpu: Cpu, configuration: Option<&Path>, socket: Option<&Path>) -> Result<()> {
    let text = image::configuration(arch, configuration)?;
    if let Some(socket) = socket {
        return on_socket(arch, cpu, &text, socket);
    }
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        return live(arch, cpu, &text);
    }
    let framed = demonstration::framed(&text)?;
    let disk = image::make(arch, &framed, None)?;
    let platform = demonstration::platform(Platform::disk(arch, &disk));
    let machine = Machine::start(&Shop::new(arch, cpu).qemu()?, &platform, &framed)?;
    println!("Pasidon boots; {} guests", machine.vms().len());
    let results = demonstration::follow(&machine, |line| println!("{line}"))?;
    print!("\n{}", summary(&results));
    let Some((_, Copies { by, .. })) = results.guests.first() else {
        bail!("the configuration starts no guest");
    };
    let passed = results.guests.iter().all(|(_, copies)| copies.good());
    ensure!(passed, "not every guest's {by} passed");
    println!("every guest's {by} passed");
    Ok(())
}

/// One line for each vdev, with its VM's copies.
fn summary(results: &Results) -> String {
    let header = ["VM", "vdev", "PASID", "test", "copies", "failures", "copies/s", "submission exits"]
        .map(str::to_owned);
    let mut rows = vec![header.to_vec()];
    for (vm, copies) in &results.guests {
        for vdev in results.vdevs.iter().filter(|vdev| vdev.vm == *vm) {
            rows.push(vec![
                vm.clone(),
                vdev.name.clone(),
                vdev.pasid.to_string(),
                copies.by.clone(),
                copies.done.to_string(),
                copies.failures.to_string(),
                copies.per_second.clone(),
                vdev.submission_exits.to_string(),
            ]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Starts the machine on this terminal and stays with it until it ends.
fn live(arch: Arch, cpu: Cpu, text: &str) -> Result<()> {
    let disk = image::make(arch, text, None)?;
    let qemu = Shop::new(arch, cpu).qemu()?;
    let private = tempfile::Builder::new().prefix("pasidon-").tempdir()?;
    let platform = demonstration::platform(Platform::disk(arch, &disk));
    let mut machine = Command::new(&qemu.program);
    machine.args(platform.command_line(&qemu, private.path())?);
    // QEMU itself puts the terminal into raw mode; what it prints goes through here.
    machine.args(["-chardev", "stdio,id=serial,mux=on,signal=off", "-serial", "chardev:serial"]);
    machine.args(["-mon", "chardev=serial,mode=readline"]).stdout(Stdio::piped());
    print!("{}", keys(arch, text));
    std::io::stdout().flush()?;
    // A QEMU that is killed does not put the terminal back.
    let terminal = command::output(Command::new("stty").arg("-g").stdin(Stdio::inherit()));
    let mut child = machine.spawn().context("starting QEMU")?;
    let passed_on = child.stdout.take().map_or(Ok(()), pass_on);
    let status = child.wait()?;
    if let Ok(settings) = terminal {
        let _ = Command::new("stty").arg(settings).status();
    }
    passed_on?;
    println!();
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// Starts the machine with its serial line, framed, on a socket, and stays until it ends.
fn on_socket(arch: Arch, cpu: Cpu, text: &str, socket: &Path) -> Result<()> {
    // QEMU would put its own in the place of whatever has that name.
    let shown = socket.display();
    ensure!(UnixStream::connect(socket).is_err(), "{shown} is a running machine's; choose another name");
    if let Ok(metadata) = std::fs::symlink_metadata(socket) {
        ensure!(metadata.file_type().is_socket(), "{shown} is there already; choose another name");
    }
    let disk = image::make(arch, &demonstration::framed(text)?, None)?;
    let qemu = Shop::new(arch, cpu).qemu()?;
    let private = tempfile::Builder::new().prefix("pasidon-").tempdir()?;
    let platform = demonstration::platform(Platform::disk(arch, &disk));
    let mut machine = Command::new(&qemu.program);
    machine.args(platform.command_line(&qemu, private.path())?).stdin(Stdio::null());
    let path = socket.to_string_lossy().replace(',', ",,");
    machine.args(["-chardev", &format!("socket,id=serial,path={path},server=on,wait=off")]);
    machine.args(["-serial", "chardev:serial"]);
    println!("Pasidon boots; look at it with: cargo xtask watch {shown}\nCtrl-C ends it");
    let status = machine.status().context("starting QEMU")?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// What is running and which keys do what.
fn keys(arch: Arch, text: &str) -> String {
    let table: Table = toml::from_str(text).unwrap_or_default();
    let empty = Vec::new();
    let vms = table.get("vm").and_then(Value::as_array).unwrap_or(&empty);
    let iommu = arch.iommu();
    let mut screen =
        format!("\nPasidon on a QEMU machine ({arch}): 2 processors, 2 GiB, {iommu}, one DSA\n\n");
    for vm in vms {
        let word = |name: &str| vm.get(name).and_then(Value::as_str).unwrap_or("?");
        let vdevs = vm.get("vdev").and_then(Value::as_array).unwrap_or(&empty);
        let vdev = |vdev: &Value| {
            let word = |name: &str| vdev.get(name).and_then(Value::as_str).unwrap_or("?");
            format!("{}/{}", word("parent"), word("type"))
        };
        let vdevs: Vec<String> = vdevs.iter().map(vdev).collect();
        screen += &format!("  VM {:8} {:6} {}\n", word("name"), word("memory"), vdevs.join(", "));
    }
    screen += "
  Ctrl-]          from a guest's console to the monitor
  console NAME    in the monitor: to the console of that VM
  help            in the monitor: all its commands
  Ctrl-a x        end the machine (Ctrl-a h: more of QEMU's own keys)

The firmware takes a few seconds.\n\n";
    screen
}

/// What the firmware sends before anything else on a line: clear the screen, move the cursor, set the mode.
const FIRMWARE_SCREEN_CODES: [&[u8]; 3] = [b"\x1b[2J", b"\x1b[01;01H", b"\x1b[=3h"];

/// Passes the machine's output on, without the firmware's clearing of the screen, which would wipe the summary away.
fn pass_on(mut output: ChildStdout) -> Result<()> {
    let mut filter = ScreenFilter::default();
    let mut block = [0; 4096];
    let mut terminal = std::io::stdout();
    loop {
        let length = output.read(&mut block)?;
        if length == 0 {
            return Ok(());
        }
        terminal.write_all(&filter.pass(&block[..length]))?;
        terminal.flush()?;
    }
}

/// Drops the firmware's screen codes until the first line that is not the firmware's.
#[derive(Default)]
struct ScreenFilter {
    held: Vec<u8>,
    seen: Vec<u8>,
    open: bool,
}

impl ScreenFilter {
    /// What starts Pasidon's own output.
    const BANNER: &[u8] = b"Pasidon";

    fn pass(&mut self, block: &[u8]) -> Vec<u8> {
        if self.open {
            return block.to_vec();
        }
        let mut out = Vec::new();
        for &byte in block {
            self.held.push(byte);
            if FIRMWARE_SCREEN_CODES.contains(&self.held.as_slice()) {
                self.held.clear();
            } else if !FIRMWARE_SCREEN_CODES.iter().any(|code| code.starts_with(&self.held)) {
                out.append(&mut self.held);
            }
        }
        self.seen.extend_from_slice(&out);
        self.open = self.seen.windows(Self::BANNER.len()).any(|window| window == Self::BANNER);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_does_not_clear_the_screen_and_pasidon_may() {
        let mut filter = ScreenFilter::default();
        let mut out = filter.pass(b"\x1b[2J\x1b[01;01H\x1b[=3");
        out.extend(filter.pass(b"hBdsDxe: \x1b[1mloading\r\nPasidon 0.1\r\n"));
        assert_eq!(out, b"BdsDxe: \x1b[1mloading\r\nPasidon 0.1\r\n");
        assert_eq!(filter.pass(b"\x1b[2Jtop"), b"\x1b[2Jtop");
    }
}
