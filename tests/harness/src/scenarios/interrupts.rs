// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that the hardware posts to guests.

use super::pasidon::{BOOT_TIMEOUT, HOST, check, copies, dsa_up, named, shell, until, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// Copies of a guest that computes meanwhile: each ends with an interrupt.
const BUSY_COPIES: u64 = 1000;
/// Copies of a guest that sleeps meanwhile.
const IDLE_COPIES: u64 = 200;
/// Keeps the guest's processor from ever being idle.
const COMPUTE: &str = "(while :; do :; done) & echo started";

/// Whether a completion reaches its guest without the hypervisor.
pub const POSTED: Scenario = Scenario {
    name: "posted-interrupts",
    about: "completions reach a guest that runs without an exit, and wake one that does not; the monitor says which way each goes",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Vmx],
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let [alpha, beta] = [shell(&machine, "alpha")?, shell(&machine, "beta")?];
        ensure!(posted(&machine, "alpha")?.is_empty(), "nothing can be posted before a driver wants it");
        for console in [alpha, beta] {
            dsa_up(&machine, console)?;
        }
        for name in ["alpha", "beta"] {
            let as_vectors = posted(&machine, name)?;
            ensure!(
                as_vectors.len() == 1,
                "{name}: one interrupt of its queue is posted, not {as_vectors:?}"
            );
        }

        // While it runs: no exit but those of its own clock.
        check(&machine, alpha, COMPUTE, "started")?;
        let before = Counts::read(&machine, alpha, "alpha")?;
        copies(&machine, alpha, BUSY_COPIES)?;
        let cost = Counts::read(&machine, alpha, "alpha")?.since(&before);
        println!("  busy: {BUSY_COPIES} copies: {cost}");
        ensure!(cost.interrupts >= BUSY_COPIES, "the guest got fewer interrupts than copies: {cost}");
        ensure!(cost.delivered == 0, "the hypervisor delivered some: {cost}");
        // What it prints, and CPUID as its kernel loads dmatest, is no completion's either. Each tick is a timer of the
        // host's that ends the guest, and one that the guest sets.
        let others: u64 = ["io", "identification"].iter().filter_map(|kind| cost.exits.get(*kind)).sum();
        let by_completions = cost.exits.values().sum::<u64>().saturating_sub(others + 2 * cost.ticks);
        ensure!(by_completions * 5 <= BUSY_COPIES, "{by_completions} exits beside those: {cost}");

        // While it sleeps, and another guest too: it is woken.
        check(&machine, alpha, "kill $!; wait; echo stopped", "stopped")?;
        let before = Counts::read(&machine, alpha, "alpha")?;
        copies(&machine, alpha, IDLE_COPIES)?;
        let cost = Counts::read(&machine, alpha, "alpha")?.since(&before);
        println!("  idle: {IDLE_COPIES} copies: {cost}");
        ensure!(cost.interrupts >= IDLE_COPIES, "the guest got fewer interrupts than copies: {cost}");
        ensure!(cost.delivered == 0, "the hypervisor delivered some: {cost}");

        // An entry that the guest masks is the hypervisor's again.
        check(&machine, beta, "echo dsa0 > /sys/bus/dsa/drivers/idxd/unbind; echo result=$?", "result=0")?;
        until(&machine, BOOT_TIMEOUT, || {
            let left = posted(&machine, "beta")?;
            Ok((!left.is_empty()).then(|| format!("still posted: {left:?}")))
        })?;
        dsa_up(&machine, beta)?;
        ensure!(posted(&machine, "beta")?.len() == 1, "a queue that is back is posted again");
        copies(&machine, beta, IDLE_COPIES)?;
        Ok(())
    },
};

/// The guest's vectors that interrupts of its vdevs are posted as.
fn posted(machine: &Machine, vm: &str) -> Result<Vec<u64>> {
    let lines = interrupts(machine, vm)?;
    Ok(lines.iter().filter_map(|line| line["posted_as"].as_u64()).collect())
}

/// What the monitor says of the physical interrupts of a VM.
fn interrupts(machine: &Machine, vm: &str) -> Result<Vec<Value>> {
    let answer = machine.monitor("interrupts")?;
    let lines = answer.as_array().with_context(|| format!("interrupts: not a list: {answer}"))?;
    Ok(lines.iter().filter(|line| line["vm"] == vm).cloned().collect())
}

/// What a guest and its hypervisor have counted.
struct Counts {
    /// Exits, by their kind.
    exits: BTreeMap<String, u64>,
    /// Interrupts of its vdevs that the hypervisor delivered.
    delivered: u64,
    /// Those that the guest took, and ticks of its clock.
    interrupts: u64,
    ticks: u64,
}

impl Counts {
    fn read(machine: &Machine, console: Console<'_>, name: &str) -> Result<Counts> {
        let said = check(machine, console, "grep -E 'LOC:|idxd-portal' /proc/interrupts", "LOC:")?;
        let count = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let counted =
            |what: &str| -> u64 { said.lines().filter(|line| line.contains(what)).filter_map(count).sum() };
        let vm = named(machine, "vms", name)?;
        let exits = vm["exits"].as_array().context("no exits")?;
        let delivered = interrupts(machine, name)?;
        Ok(Counts {
            exits: exits
                .iter()
                .filter_map(|line| Some((line["kind"].as_str()?.to_owned(), line["count"].as_u64()?)))
                .collect(),
            delivered: delivered.iter().filter_map(|line| line["delivered"].as_u64()).sum(),
            interrupts: counted("idxd-portal"),
            ticks: counted("LOC:"),
        })
    }

    fn since(&self, before: &Counts) -> Counts {
        Counts {
            exits: self
                .exits
                .iter()
                .map(|(kind, count)| (kind.clone(), count - before.exits.get(kind).unwrap_or(&0)))
                .collect(),
            delivered: self.delivered - before.delivered,
            interrupts: self.interrupts - before.interrupts,
            ticks: self.ticks - before.ticks,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { exits, delivered, interrupts, ticks } = self;
        write!(
            f,
            "exits {exits:?}, {interrupts} interrupts in the guest, {delivered} of them by the hypervisor, {ticks} ticks of its clock"
        )
    }
}
