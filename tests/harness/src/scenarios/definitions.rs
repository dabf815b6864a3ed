// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that come and go while the machine runs.

use super::lifecycle::{SMALLEST_BLOCK, counters, heap_used};
use super::pasidon::{
    BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, copies_done, dsa_up, named, shell, vm,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::image::Image;
use crate::line::PROMPT;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, bail, ensure};

/// How often a VM is defined, started, stopped and removed without being waited for.
const ROUNDS: usize = 12;
/// The copies that the neighbour does meanwhile.
const NEIGHBOURS: u64 = 2_000;
/// What is in the file that no VM is made of.
const WRONG: &str = "[[vm]]\nname = \"old\"\nmemory = \"64\"\nkernel = \"guests/vmlinux\"\n";

/// A VM from a file, for some lives.
pub const DEFINE: Scenario = Scenario {
    name: "vm-define",
    about: "a VM is defined, started, stopped and removed, and again, 14 times: copies in it are right, its name, place, PASID and memory come back, the neighbour's copies go on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let host = HOST.replacen(
            "[host]",
            "[host]\ndefinitions = [\"vms/gamma.toml\", \"vms/old.toml\", \"vms/gone.toml\"]",
            1,
        );
        let gamma = lab.arch().configuration(&vm("gamma", 1, ""));
        let fill = |image: Image| image.text("vms/gamma.toml", &gamma).text("vms/old.toml", WRONG);
        let configuration = host + &vm("alpha", 1, "");
        let machine = lab.pasidon_with(&configuration, &[], fill, demonstration::platform)?;
        let log = machine.log();
        // What is wrong is said in a line each, and stops nothing else.
        for line in [
            r#"vms/old.toml:3:10: vm old: memory "64" is no size; "#,
            r#"pasidon.toml:\d+:\d+: definition "vms/gone.toml": it is not there; "#,
        ] {
            log.expect(line, BOOT_TIMEOUT)?;
        }
        let alpha = shell(&machine, "alpha")?;
        dsa_up(&machine, alpha)?;
        refused(&machine, "vm define elsewhere", "known: vms/gamma.toml, vms/old.toml, vms/gone.toml")?;
        refused(&machine, "vm define vms/old.toml", "vms/old.toml:3:10: vm old: memory")?;
        refused(&machine, "vm gamma start", "unknown vm gamma")?;
        let mut lives = Vec::new();

        // Two lives that are lived, with the neighbour at work.
        alpha.send_line(&format!("dsa-test {NEIGHBOURS}"))?;
        for _ in 0..2 {
            machine.monitor("vm define vms/gamma.toml")?;
            refused(&machine, "vm define vms/gamma.toml", "there is one of that name")?;
            machine.monitor("vm gamma start")?;
            refused(&machine, "vm gamma remove", "it is running")?;
            let gamma = shell(&machine, "gamma")?;
            dsa_up(&machine, gamma)?;
            copies(&machine, gamma, 50)?;
            machine.monitor("vm gamma stop")?;
            machine.monitor("vm gamma remove")?;
            refused(&machine, "console gamma", "unknown vm gamma")?;
            lives.push(counters(&machine, &["dsa0"])?);
        }
        copies_done(&machine, alpha, NEIGHBOURS)?;
        alpha.expect(PROMPT, COMMAND_TIMEOUT)?;
        let [start, again] = &lives[..] else { bail!("{lives:?}") };
        ensure!(again == start, "after one {start:?}, after two {again:?}\n{}", machine.transcript());

        // And some that only cost.
        let mut used = Vec::new();
        for round in 1..=ROUNDS {
            for command in ["vm define vms/gamma.toml", "vm gamma start", "vm gamma stop", "vm gamma remove"]
            {
                machine.monitor(command)?;
            }
            let now = counters(&machine, &["dsa0"])?;
            ensure!(
                now == *start,
                "round {round}: at the start {start:?}, now {now:?}\n{}",
                machine.transcript()
            );
            used.push(heap_used(&machine)?);
        }
        let half = ROUNDS / 2;
        let (before, after) = (used[half - 1], used[ROUNDS - 1]);
        ensure!(
            after < before + SMALLEST_BLOCK * half as u64,
            "the hypervisor's heap grew from {before} to {after} bytes in {half} rounds: {used:?}"
        );
        copies(&machine, alpha, 50)?;

        // One of the configuration goes the same way, and its place is the next one's.
        machine.monitor("vm define vms/gamma.toml")?;
        machine.monitor("vm alpha stop")?;
        machine.monitor("vm alpha remove")?;
        ensure!(named(&machine, "vms", "alpha").is_err(), "alpha is still there\n{}", machine.transcript());
        machine.monitor("vm gamma start")?;
        let gamma = shell(&machine, "gamma")?;
        check(&machine, gamma, "hostname", "gamma").map(drop)
    },
};

/// A command that the monitor refuses, with these words.
fn refused(machine: &Machine, command: &str, wanted: &str) -> Result<()> {
    match machine.monitor(command) {
        Err(error) if format!("{error:#}").contains(wanted) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{command}: wanted {wanted}")),
        Ok(answer) => bail!("{command}: wanted {wanted}, got {answer}\n{}", machine.transcript()),
    }
}
