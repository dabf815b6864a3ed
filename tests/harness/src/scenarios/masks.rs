// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts of a vdev that the monitor holds back, lets through, and has come.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, shell, until, user_interrupts_up, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The queue's vector: that of completions.
const VECTOR: u64 = 1;
/// One copy, whose completion is waited for by interrupt: ten seconds at most.
const COPY: &str = "dsa-user poke --wait interrupt --fill 90";
const COPIED: &str = "PASIDON poke .*result=ok match=yes";

/// Mask, unmask, automask and trigger, as their guest sees them.
pub const MASKS: Scenario = Scenario {
    name: "vdev-interrupts",
    about: "the monitor masks, unmasks, automasks and triggers a vdev's interrupts: a completion's is held back and not lost, its guest counts what comes, a neighbour notices nothing",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let [alpha, beta] = [shell(&machine, "alpha")?, shell(&machine, "beta")?];
        let guest = Guest { machine: &machine, console: alpha };
        let refusal =
            guest.irq("trigger").err().context("a vector was triggered that no driver has set up")?;
        ensure!(refusal.to_string().contains("MSI-X off"), "{refusal:#}");
        for console in [alpha, beta] {
            user_interrupts_up(&machine, console)?;
            check(&machine, console, "dsa-user verify --operations 20 --wait interrupt", "failures=0")?;
        }

        // A completion's interrupt is held back, the neighbour's are not, and it comes when it may.
        guest.irq("mask")?;
        check(&machine, beta, "dsa-user verify --operations 20 --wait interrupt", "failures=0")?;
        let before = guest.count()?;
        let told = guest.told()?;
        check(&machine, alpha, &format!("{COPY} & echo started"), "started")?;
        guest.until("it is pended", |now| pended(now) == pended(&told) + 1)?;
        ensure!(guest.count()? == before, "a masked interrupt came\n{}", machine.transcript());
        ensure!(guest.told()?["pending"] == true, "nothing is pending: {}", guest.told()?);
        guest.irq("unmask")?;
        alpha.expect(COPIED, COMMAND_TIMEOUT)?;
        guest.comes_to(before + 1)?;

        // One of the monitor's is as the device's.
        guest.irq("trigger")?;
        guest.comes_to(before + 2)?;
        guest.irq("mask")?;
        guest.irq("trigger")?;
        guest.irq("trigger")?;
        ensure!(guest.count()? == before + 2, "a masked interrupt came\n{}", machine.transcript());
        guest.irq("unmask")?;
        guest.comes_to(before + 3)?;

        // One, and then none until it is asked for.
        guest.irq("automask on")?;
        check(&machine, alpha, COPY, "result=ok match=yes")?;
        guest.comes_to(before + 4)?;
        let told = guest.told()?;
        ensure!(told["masked"] == true, "it is not masked after an interrupt: {told}");
        check(&machine, alpha, &format!("{COPY} & echo started"), "started")?;
        guest.until("it is pended", |now| pended(now) == pended(&told) + 1)?;
        ensure!(guest.count()? == before + 4, "a second one came\n{}", machine.transcript());
        guest.irq("unmask")?;
        alpha.expect(COPIED, COMMAND_TIMEOUT)?;
        guest.comes_to(before + 5)?;
        guest.irq("automask off")?;
        guest.irq("unmask")?;
        check(&machine, alpha, "dsa-user verify --operations 20 --wait interrupt", "failures=0")?;
        let now = guest.told()?;
        ensure!(now["triggered"] == 3, "three were triggered: {now}");

        // The mask goes with the vdev.
        guest.irq("mask")?;
        machine.monitor("vm alpha restart")?;
        let alpha = shell(&machine, "alpha")?;
        user_interrupts_up(&machine, alpha)?;
        check(&machine, alpha, "dsa-user verify --operations 20 --wait interrupt", "failures=0")?;
        Ok(())
    },
};

/// A guest with a vdev, and the monitor's word about it.
struct Guest<'m> {
    machine: &'m Machine,
    console: Console<'m>,
}

impl Guest<'_> {
    /// What the monitor says of the vector.
    fn told(&self) -> Result<Value> {
        let answer = self.machine.monitor("interrupts")?;
        let lines = answer.as_array().with_context(|| format!("interrupts: not a list: {answer}"))?;
        let found = lines.iter().find(|line| line["vm"] == "alpha" && line["vector"] == VECTOR);
        found.cloned().with_context(|| format!("interrupts: no vector of alpha in {answer}"))
    }

    /// Does something to the vector.
    fn irq(&self, what: &str) -> Result<()> {
        let vdev = self.told()?["vdev"].as_str().context("no vdev")?.to_owned();
        self.machine.monitor(&format!("vdev irq {vdev} {VECTOR} {what}")).map(drop)
    }

    /// How many of its interrupts the guest has counted.
    fn count(&self) -> Result<u64> {
        let command = "grep uio_msix /proc/interrupts | awk '{print \"count=\" $2}'";
        let said = check(self.machine, self.console, command, "count=")?;
        let count = said.lines().find_map(|line| line.trim().strip_prefix("count=")?.parse().ok());
        count.with_context(|| format!("no number in {said}"))
    }

    /// Waits until the guest has counted so many; one more is an error.
    fn comes_to(&self, wanted: u64) -> Result<()> {
        until(self.machine, BOOT_TIMEOUT, || {
            let count = self.count()?;
            ensure!(count <= wanted, "{count} interrupts instead of {wanted}\n{}", self.machine.transcript());
            Ok((count < wanted).then(|| format!("{count} interrupts instead of {wanted}")))
        })
    }

    /// Asks the monitor until that is so of the vector.
    fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        until(self.machine, BOOT_TIMEOUT, || {
            let told = self.told()?;
            Ok((!is_so(&told)).then(|| format!("not yet: {what}: {told}")))
        })
    }
}

fn pended(told: &Value) -> u64 {
    told["pended"].as_u64().unwrap_or_default()
}
