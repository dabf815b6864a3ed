// SPDX-License-Identifier: MIT OR Apache-2.0
//! What scenarios have in common: how long things may take, what a guest answers, and of those that boot Pasidon
//! configurations and what the monitor says.

use crate::demonstration::Copies;
use crate::line::{Console, PROMPT};
use crate::machine::Machine;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Firmware, Pasidon and a guest's kernel, up to its init.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// A command in a guest or in the monitor that does little.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// A guest's test of some thousand copies, beside others.
pub const COPIES_TIMEOUT: Duration = Duration::from_secs(600);

/// The `[host]` section that the harness needs, and the accelerator of the reference platform.
pub const HOST: &str = "[host]\nconsole = \"framed\"\n\n[parent.dsa0]\npci = \"0000:00:04.0\"\n\n";

/// A Linux guest with `vdevs` work queues of `dsa0`, words added to its kernel's command line. The kernel prints errors
/// only, since each character of its messages is an exit; `loglevel=7` among the words has it print them all.
pub fn vm(name: &str, vdevs: usize, words: &str) -> String {
    let vdev = "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"dsa-dwq\"\n  entries = 8\n\n";
    format!(
        "[[vm]]\nname = \"{name}\"\nmemory = \"256M\"\nkernel = \"guests/vmlinux\"\ninitrd = \"guests/initrd.img\"\n\
         cmdline = \"console=ttyS0 quiet pasidon.name={name} {words}\"\n\n{}",
        vdev.repeat(vdevs)
    )
}

/// The PCI function of the vdev in a guest's slot of that number, as Linux calls it: each slot has a bus of its own.
pub fn in_slot(number: u8) -> String {
    format!("0000:{number:02x}:00.0")
}

/// Waits until the Linux guest of that name is at its shell, and returns its console.
///
/// # Errors
/// When it does not get there in time.
pub fn shell<'m>(machine: &'m Machine, name: &str) -> Result<Console<'m>> {
    let console = machine.console(name)?;
    console.expect(&format!("^PASIDON guest {name} up$"), BOOT_TIMEOUT)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    Ok(console)
}

/// Types a command at the guest's shell and makes sure that what it prints contains `wanted`.
///
/// # Errors
/// When it prints something else, or nothing in time.
pub fn check(machine: &Machine, console: Console<'_>, command: &str, wanted: &str) -> Result<String> {
    let said = console.command(command, COPIES_TIMEOUT)?;
    ensure!(said.contains(wanted), "{command}: wanted {wanted}, got {said}\n{}", machine.transcript());
    Ok(said)
}

/// The same for a command that only reads, and all that it prints.
///
/// # Errors
/// As there.
pub fn check_exactly(machine: &Machine, console: Console<'_>, command: &str, wanted: &str) -> Result<()> {
    let said = console.command(command, COMMAND_TIMEOUT)?;
    ensure!(said == wanted, "{command}: wanted {wanted}, got {said}\n{}", machine.transcript());
    Ok(())
}

/// Has a driver in the guest take the accelerator.
///
/// # Errors
/// When that fails.
pub fn dsa_up(machine: &Machine, console: Console<'_>) -> Result<()> {
    let said = console.command("dsa-up", COPIES_TIMEOUT)?;
    let up = said.lines().any(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        matches!(words[..], ["PASIDON", "dsa", _, "up", ..])
    });
    ensure!(up, "dsa-up: {said}\n{}", machine.transcript());
    Ok(())
}

/// Loads the drivers by which `dsa-user` in the guest can wait for interrupts.
///
/// # Errors
/// When that fails.
pub fn user_interrupts_up(machine: &Machine, console: Console<'_>) -> Result<()> {
    check(machine, console, "insmod /lib/modules/uio.ko && insmod /lib/modules/uio_msix.ko; echo $?", "0")?;
    Ok(())
}

/// Has the guest do that many verified copies, after [`dsa_up`].
///
/// # Errors
/// When one fails, or they are not all done in time.
pub fn copies(machine: &Machine, console: Console<'_>, count: u64) -> Result<Copies> {
    console.send_line(&format!("dsa-test {count}"))?;
    let copies = copies_done(machine, console, count)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    Ok(copies)
}

/// Waits for the end of that many verified copies, which somebody has started with `dsa-test`.
///
/// # Errors
/// When one failed, or they are not all done in time.
pub fn copies_done(machine: &Machine, console: Console<'_>, count: u64) -> Result<Copies> {
    let line = console.expect(Copies::LINE, COPIES_TIMEOUT)?.swap_remove(0);
    let copies = Copies::parse(&line)?;
    ensure!(
        copies.good() && copies.done == count,
        "wanted {count} copies without a failure: {copies:?}\n{}",
        machine.transcript()
    );
    Ok(copies)
}

/// The entry with that `name` of a list that the monitor gives, such as `vms`.
///
/// # Errors
/// When the answer is no list or has no such entry.
pub fn named(machine: &Machine, command: &str, name: &str) -> Result<Value> {
    let answer = machine.monitor(command)?;
    let list = answer.as_array().with_context(|| format!("{command}: not a list: {answer}"))?;
    let found = list.iter().find(|entry| entry["name"] == name);
    found.cloned().with_context(|| format!("{command}: no {name} in {answer}"))
}

/// Looks until nothing is missing any more; looking is what takes the time in between. `missing` says what is.
///
/// # Errors
/// When that fails, or something is still missing after `timeout`: what, and the machine's transcript.
pub fn until(
    machine: &Machine,
    timeout: Duration,
    mut missing: impl FnMut() -> Result<Option<String>>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while let Some(what) = missing()? {
        ensure!(Instant::now() < deadline, "{what}\n{}", machine.transcript());
    }
    Ok(())
}

/// Asks the monitor until the VM is in that state.
///
/// # Errors
/// When it does not get there in time.
pub fn wait_for_state(machine: &Machine, vm: &str, state: &str) -> Result<()> {
    until(machine, BOOT_TIMEOUT, || {
        let found = named(machine, "vms", vm)?;
        Ok((found["state"] != state).then(|| format!("VM {vm} is not {state} but: {found}")))
    })
}
