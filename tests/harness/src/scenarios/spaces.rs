// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O address spaces that change while devices use them.

use super::pasidon::{COMMAND_TIMEOUT, COPIES_TIMEOUT, HOST, check, copies_done, dsa_up, in_slot, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Half of a guest's memory.
const HALF: u64 = 128 * MIB;
/// Where a guest's memory is left alone, from its start on, and what follows.
const BEFORE: u64 = 128 * MIB;
const AFTER: u64 = 126 * MIB;
/// How long copies go on.
const SECONDS: u64 = 10;
/// Exchanges in the meantime, at least.
const EXCHANGES: usize = 40;

/// The address space behind a vdev is exchanged while its guest copies.
pub const REPLACE: Scenario = Scenario {
    name: "replace-space",
    about: "the address space behind a vdev is exchanged under load: each line of a copy lands in one of the two places, none is lost",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = lab.arch().words_to_set_aside();
        let shares = lab.arch() == Arch::X86_64;
        let mut configuration = [HOST, &vm("alpha", 1, words), &vm("beta", 1, "")].concat();
        if shares {
            // Such a vdev has a page of its driver's in its address space, too.
            let share = "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"dsa-swq\"\n  entries = 8\n\n";
            configuration += &(vm("gamma", 0, words) + share);
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let beta = shell(&machine, "beta")?;
        dsa_up(&machine, beta)?;
        let names: &[&str] = if shares { &["alpha", "gamma"] } else { &["alpha"] };
        for name in names {
            exchange(lab, &machine, name, names)?;
        }
        beta.send_line("dsa-test 2000")?;
        copies_done(&machine, beta, 2000)?;
        let faults = machine.monitor("faults")?;
        ensure!(faults["records"] == 0, "no access of anybody met neither: {faults}");
        Ok(())
    },
};

/// A vdev that reaches a part of its guest's memory, beside one that reaches all of it on its own.
pub const DMA_ONLY: Scenario = Scenario {
    name: "dma-only",
    about: "a vdev with windows of its guest's memory works there, and is refused in the rest of it, where the guest's other vdev works",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let start = lab.arch().ram_start();
        let halves = [start, start + HALF].map(|at| format!("{at:#x}+{}M", HALF / MIB));
        let [lower, upper] = &halves;
        let vdev = |kind: &str, space: &str| {
            format!(
                "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"{kind}\"\n  entries = 8\n  address_space = \"{space}\"\n"
            )
        };
        let windows = format!("  windows = [\"{upper}\"]\n");
        // More than either half has, so that there are some in each.
        let mut configuration = [HOST, &vm("alpha", 0, "hugepages=72"), &vdev("dsa-dwq", "own")].concat();
        let confined: &[(u8, &str)] = match lab.arch() {
            Arch::X86_64 => &[(2, "dsa-dwq"), (3, "dsa-swq")],
            Arch::Aarch64 => &[(2, "dsa-dwq")],
        };
        for (_, kind) in confined {
            configuration += &(vdev(kind, "dma-only") + &windows);
        }
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let verify = |slot, half: &str| -> Result<()> {
            let device = in_slot(slot);
            check(&machine, alpha, &format!("V='dsa-user verify --operations 100'; W={half}; echo $?"), "0")?;
            check(&machine, alpha, &format!("$V --device {device} --within $W"), "failures=0").map(drop)
        };
        for half in &halves {
            verify(1, half)?;
        }
        let faults = || -> Result<u64> {
            let faults = machine.monitor("faults")?;
            faults["records"].as_u64().with_context(|| format!("faults: {faults}"))
        };
        ensure!(faults()? == 0, "a fault before anybody left its memory");
        for (slot, kind) in confined {
            verify(*slot, upper)?;
            // What it may read goes nowhere else.
            let (from, to) = (start + HALF, start + HALF / 2);
            check(
                &machine,
                alpha,
                &format!("P='dsa-user poke --src={from:#x} --dst={to:#x}'; echo $?"),
                "0",
            )?;
            let poke = format!("$P --len=64 --within {upper} --device {}", in_slot(*slot));
            // Nobody answers a write, so the device takes it for done.
            check(&machine, alpha, &poke, "result=ok")?;
            let vdev = format!("vm alpha vdev dsa0/{kind}#{slot}");
            let said = format!("fault: {vdev} pasid .*: write to {to:#x} refused");
            machine.log().expect(&said, COMMAND_TIMEOUT)?;
            let before = faults()?;
            verify(*slot, upper)?;
            ensure!(faults()? == before, "a fault within the windows");
        }
        for half in [lower, upper] {
            verify(1, half)?;
        }
        // Each has its own, beside the VM's; it goes with its vdev.
        let spaces = || -> Result<usize> {
            let iommu = machine.monitor("iommu")?;
            iommu["iommu"]["spaces"].as_array().map(Vec::len).with_context(|| format!("iommu: {iommu}"))
        };
        ensure!(spaces()? == 2 + confined.len(), "an address space for each vdev, and the VM's");
        machine.monitor("vdev destroy 2 now")?;
        ensure!(spaces()? == 1 + confined.len(), "the address space went with its vdev");
        Ok(())
    },
};

/// Copies in one guest, while what is behind its vdev is exchanged to and fro.
fn exchange(lab: &Lab<'_>, machine: &Machine, name: &str, all: &[&str]) -> Result<()> {
    let console = shell(machine, name)?;
    let (vdev, own) = vdev_of(machine, name)?;
    let (start, here) = (lab.arch().ram_start(), lab.arch().set_aside());
    let there = here + MIB;
    // The same memory but for two pieces, which change places.
    let created = machine.monitor(&format!("ioas create {name}"))?;
    let other = created["ioas"].as_u64().with_context(|| format!("ioas create: {created}"))?;
    for (guest, iova, len) in
        [(start, start, BEFORE), (there, here, MIB), (here, there, MIB), (there + MIB, there + MIB, AFTER)]
    {
        machine.monitor(&format!("ioas map {other} {guest:#x} {iova:#x} {len}"))?;
    }
    // Another guest's vdev is not led there.
    for neighbour in all.iter().chain(&["beta"]).filter(|neighbour| **neighbour != name) {
        let (vdev, before) = vdev_of(machine, neighbour)?;
        refused(machine, &format!("ioas attach {other} {vdev}"), "it has no vdev")?;
        ensure!(vdev_of(machine, neighbour)?.1 == before, "{neighbour}'s vdev has another address space");
    }
    console.send_line(&format!("dsa-user landing --dst={here:#x} --other={there:#x} --seconds {SECONDS}"))?;
    console.expect("^dsa-user: .*, waiting by .*$", COMMAND_TIMEOUT)?;
    for _ in 0..EXCHANGES / 2 {
        for space in [other, own] {
            machine.monitor(&format!("ioas attach {space} {vdev}"))?;
            ensure!(vdev_of(machine, name)?.1 == space, "the monitor shows another address space");
        }
    }
    let line = console.expect("PASIDON landing (.*)\n", COPIES_TIMEOUT)?;
    println!("  {name}: {}", line[1].trim());
    let value = |key: &str| -> Result<u64> {
        let word = line[1].split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Ok(word.with_context(|| format!("no {key} in: {}", line[0]))?.trim().parse()?)
    };
    let found = |key: &str| value(key).map(|count| count > 0);
    ensure!(found("dst")? && found("other")?, "copies in both places: {}\n{}", line[0], machine.transcript());
    for key in ["lost", "doubled", "failures"] {
        ensure!(value(key)? == 0, "{}\n{}", line[0], machine.transcript());
    }
    // It is in use until the other is back.
    machine.monitor(&format!("ioas attach {other} {vdev}"))?;
    refused(machine, &format!("ioas destroy {other}"), "may still reach it")?;
    machine.monitor(&format!("ioas attach {own} {vdev}"))?;
    machine.monitor(&format!("ioas destroy {other}"))?;
    Ok(())
}

/// The number of a guest's vdev, and of the address space behind it.
fn vdev_of(machine: &Machine, name: &str) -> Result<(u64, u64)> {
    let vdevs = machine.monitor("vdevs")?;
    let found = vdevs.as_array().and_then(|list| list.iter().find(|vdev| vdev["vm"] == name));
    let numbers = |vdev: &Value| Some((vdev["id"].as_u64()?, vdev["ioas"].as_u64()?));
    found.and_then(numbers).with_context(|| format!("no vdev of {name} with an address space: {vdevs}"))
}

fn refused(machine: &Machine, command: &str, why: &str) -> Result<()> {
    let Err(error) = machine.monitor(command) else { bail!("not refused: {command}") };
    ensure!(format!("{error:#}").contains(why), "{command}: wanted {why}, got {error:#}");
    Ok(())
}
