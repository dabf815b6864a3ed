// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accelerators behind several IOMMU units: a VM's address space is one, whichever of them it is used through.

use super::hot_plug::{is_there, is_well};
use super::lifecycle::counters;
use super::pasidon::{COMMAND_TIMEOUT, COPIES_TIMEOUT, HOST, check, in_slot, shell, vm, wait_for_state};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration::{self, Vdev};
use crate::line::{Console, PROMPT};
use crate::machine::Machine;
use crate::platform::FURTHER_BUS_NUMBER;
use crate::scenario::Scenario;
use anyhow::{Context, Result, bail, ensure};

/// Verified operations of each vdev, each with an interrupt.
const OPERATIONS: u64 = 300;
const MIB: u64 = 1 << 20;
/// Above a guest's 256 MiB.
const BEYOND: u64 = 0x2000_0000;
/// A guest's memory, but for the MiB that is mapped by itself.
const BEFORE: u64 = 128 * MIB;
const AFTER: u64 = 127 * MIB;

/// Two units, and parents behind both.
pub const TWO: Scenario = Scenario {
    name: "two-units",
    about: "accelerators behind two IOMMU units: one address space through both, copies with interrupts at once, faults told by the right unit, an unmapping seen by both, a move across, and the end",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let bus = FURTHER_BUS_NUMBER;
        let parents = format!(
            "[parent.dsa1]\npci = \"0000:{bus:02x}:01.0\"\n\n[parent.dsa2]\npci = \"0000:{:02x}:00.0\"\n\n",
            bus + 1
        );
        // Two programs at once, and memory that Linux leaves alone.
        let words = format!("hugepages=4 {}", lab.arch().words_to_set_aside());
        let alpha = vm("alpha", 1, &words) + &vdev("dsa1");
        let beta = vm("beta", 0, &words) + &vdev("dsa1");
        let configuration = [HOST, &parents, &alpha, &beta].concat();
        let machine =
            lab.pasidon(&configuration, |platform| demonstration::platform(platform).further_unit(""))?;
        let units = format!("iommu: {}, 2 unit.s.: every device is blocked", lab.arch().iommu());
        machine.log().expect(&units, COPIES_TIMEOUT)?;
        let [alpha, beta] = [shell(&machine, "alpha")?, shell(&machine, "beta")?];
        for (console, slots) in [(alpha, 2), (beta, 1)] {
            drivers(&machine, console, slots)?;
        }
        one_space(&machine, "alpha", 2)?;

        // All three at once, one of alpha's behind each unit.
        alpha.send_line("v 1 & v 2 & wait; cat /tmp/v1 /tmp/v2")?;
        beta.send_line("v 1; cat /tmp/v1")?;
        for (console, count) in [(alpha, 2), (beta, 1)] {
            verified(&machine, console, count)?;
        }
        for vdev in demonstration::vdevs(&machine)? {
            ensure!(vdev.interrupts >= OPERATIONS && vdev.submission_exits == 0, "{vdev:?}");
        }

        // What one unit's device writes, the other's reads: the same memory under the same address.
        let here = lab.arch().set_aside();
        passed_on(&machine, alpha, here)?;
        let beyond = lab.arch().ram_start() + BEYOND;
        for (name, parent, slot) in [("alpha", "dsa0", 1), ("alpha", "dsa1", 2), ("beta", "dsa1", 1)] {
            denied(&machine, name, parent, slot, beyond + u64::from(slot) * MIB)?;
        }
        unmapped(&machine, alpha, lab.arch().ram_start(), here)?;

        // To a parent behind the other unit; beta's vdev is behind that one, too.
        let moved = vdev_of(&machine, "alpha", "dsa0")?;
        machine.monitor(&format!("vdev move {} dsa2/dsa-dwq entries=8", number(&moved)?))?;
        is_there(&machine, alpha, 3, true)?;
        check(&machine, alpha, &format!("uio-up {} uio_msix", in_slot(3)), " up")?;
        is_there(&machine, alpha, 1, false)?;
        alpha.send_line("v 2 & v 3 & wait; cat /tmp/v2 /tmp/v3")?;
        beta.send_line("v 1; cat /tmp/v1")?;
        for (console, count) in [(alpha, 2), (beta, 1)] {
            verified(&machine, console, count)?;
        }
        denied(&machine, "alpha", "dsa2", 3, beyond)?;
        is_well(alpha)?;

        // Both units let go of it, and it comes back as it was.
        let mut ends = Vec::new();
        for round in 0..2 {
            if round > 0 {
                machine.monitor("vm alpha start")?;
                let alpha = shell(&machine, "alpha")?;
                drivers(&machine, alpha, 2)?;
                one_space(&machine, "alpha", 2)?;
                alpha.send_line("v 1 & v 2 & wait; cat /tmp/v1 /tmp/v2")?;
                verified(&machine, alpha, 2)?;
            }
            machine.monitor("vm alpha stop")?;
            wait_for_state(&machine, "alpha", "stopped")?;
            ends.push(counters(&machine, &["dsa0", "dsa1", "dsa2"])?);
            let pasids = machine.monitor("pasids")?;
            let left = pasids.as_array().is_some_and(|list| list.len() == 1 && list[0]["vm"] == "beta");
            ensure!(left, "alpha has ended, and there is: {pasids}\n{}", machine.transcript());
        }
        ensure!(ends[0] == ends[1], "{ends:?}\n{}", machine.transcript());
        beta.send_line("v 1; cat /tmp/v1")?;
        verified(&machine, beta, 1)
    },
};

/// A work queue of that parent, in a configuration.
fn vdev(parent: &str) -> String {
    format!("  [[vm.vdev]]\n  parent = \"{parent}\"\n  type = \"dsa-dwq\"\n  entries = 8\n\n")
}

/// Gives the vdevs in the guest's first slots to the driver in user space, and defines `v`, which has the one in a slot
/// work.
fn drivers(machine: &Machine, console: Console<'_>, slots: u8) -> Result<()> {
    for slot in 1..=slots {
        check(machine, console, &format!("uio-up {} uio_msix", in_slot(slot)), " up")?;
    }
    for line in [
        &format!("V='dsa-user verify --only copy,fill --operations {OPERATIONS}'"),
        "v() { $V --wait interrupt --device 0000:0$1:00.0 >/tmp/v$1 2>&1; }",
        "P='dsa-user poke --wait interrupt --device'",
        "p() { d=0000:0$1:00.0; shift; $P $d $*; }",
    ] {
        console.command(line, COMMAND_TIMEOUT)?;
    }
    Ok(())
}

/// Waits for what `v` says: that many times that all went well, with an interrupt for each operation.
fn verified(machine: &Machine, console: Console<'_>, count: usize) -> Result<()> {
    for _ in 0..count {
        // The driver counts interrupts from its own start on.
        let said =
            console.expect(r"PASIDON dsa-user .* failures=(\d+) interrupts=(\d+) .*\n", COPIES_TIMEOUT)?;
        let interrupts: u64 = said[2].parse()?;
        ensure!(&said[1] == "0" && interrupts >= OPERATIONS, "{}\n{}", said[0], machine.transcript());
    }
    console.expect(PROMPT, COMMAND_TIMEOUT).map(drop)
}

/// All vdevs of the VM have the same I/O address space.
fn one_space(machine: &Machine, name: &str, vdevs: usize) -> Result<()> {
    let iommu = machine.monitor("iommu")?;
    let spaces = iommu["iommu"]["spaces"].as_array().context("no spaces")?;
    let own: Vec<_> = spaces.iter().filter(|space| space["vm"] == name).collect();
    let pasids = own.first().and_then(|space| space["pasids"].as_array()).map(Vec::len);
    ensure!(own.len() == 1 && pasids == Some(vdevs), "{name}: {iommu}");
    Ok(())
}

/// The second vdev copies what the first one has written.
fn passed_on(machine: &Machine, console: Console<'_>, here: u64) -> Result<()> {
    let [from, over, to] = [0, 1, 2].map(|part| here + part * MIB);
    let poke = |slot: u8, src: u64, dst: u64, rest: &str| {
        let command = format!("p {slot} --src {src:#x} --dst {dst:#x} --len 65536 {rest}");
        check(machine, console, &command, "result=ok")
    };
    let said = poke(1, from, over, "--fill 17")?;
    ensure!(said.contains("match=yes"), "{said}");
    poke(2, over, to, "")?;
    for address in [to, to + 0xfffc] {
        check(machine, console, &format!("devmem {address:#x}"), "0x11111111")?;
    }
    Ok(())
}

/// A write to memory that is not the guest's is refused, and told with whose it was.
fn denied(machine: &Machine, name: &str, parent: &str, slot: u8, address: u64) -> Result<()> {
    let vdev = vdev_of(machine, name, parent)?;
    let console = machine.console(name)?;
    // The device takes a write for done.
    check(machine, console, &format!("p {slot} --dst {address:#x}"), "result=ok")?;
    told(machine, &vdev, address)
}

/// Waits for the line about a fault at that address, which has to name that vdev.
fn told(machine: &Machine, vdev: &Vdev, address: u64) -> Result<()> {
    let line = machine.log().expect("^.*: fault: vm .*$\n", COMMAND_TIMEOUT)?.swap_remove(0);
    let wanted = format!("vm {} vdev {} pasid {}: ", vdev.vm, vdev.name, vdev.pasid);
    ensure!(
        line.contains(&wanted) && line.contains(&format!("{address:#x}")),
        "wanted {wanted}at {address:#x}: {line}"
    );
    Ok(())
}

/// What is taken out of an address space that both units know is gone for the devices of both, although both have used
/// it.
fn unmapped(machine: &Machine, console: Console<'_>, start: u64, here: u64) -> Result<()> {
    let vdevs = [vdev_of(machine, "alpha", "dsa0")?, vdev_of(machine, "alpha", "dsa1")?];
    let created = machine.monitor("ioas create alpha")?;
    let space = created["ioas"].as_u64().with_context(|| format!("ioas create: {created}"))?;
    for (at, len) in [(start, BEFORE), (here, MIB), (here + MIB, AFTER)] {
        machine.monitor(&format!("ioas map {space} {at:#x} {at:#x} {len}"))?;
    }
    let before = machine.monitor("vdevs")?[0]["ioas"].clone();
    for vdev in &vdevs {
        machine.monitor(&format!("ioas attach {space} {}", number(vdev)?))?;
    }
    let poke = |slot: usize| format!("p {slot} --dst {here:#x} --len 64 --fill 34");
    for slot in [1, 2] {
        check(machine, console, &poke(slot), "result=ok match=yes")?;
    }
    machine.monitor(&format!("ioas unmap {space} {here:#x} {MIB}"))?;
    for (slot, vdev) in (1..).zip(&vdevs) {
        console.command(&format!("devmem {here:#x} 32 0"), COMMAND_TIMEOUT)?;
        check(machine, console, &poke(slot), "match=no")?;
        told(machine, vdev, here)?;
    }
    // One after the other: until both are back, the space is in use.
    for vdev in &vdevs {
        let Err(refused) = machine.monitor(&format!("ioas destroy {space}")) else {
            bail!("the space of {} was destroyed", vdev.name);
        };
        ensure!(format!("{refused:#}").contains("may still reach it"), "{refused:#}");
        machine.monitor(&format!("ioas attach {before} {}", number(vdev)?))?;
    }
    machine.monitor(&format!("ioas destroy {space}"))?;
    check(machine, console, &poke(1), "result=ok match=yes")?;
    check(machine, console, &poke(2), "result=ok match=yes").map(drop)
}

/// The VM's vdev of that parent.
fn vdev_of(machine: &Machine, name: &str, parent: &str) -> Result<Vdev> {
    let vdevs = demonstration::vdevs(machine)?;
    let of = |vdev: &&Vdev| vdev.vm == name && vdev.name.starts_with(&format!("{parent}/"));
    let found = vdevs.iter().find(of).cloned();
    found.with_context(|| format!("no vdev of {name} and {parent}: {vdevs:?}"))
}

/// The number by which the monitor knows it.
fn number(vdev: &Vdev) -> Result<&str> {
    let number = vdev.name.split_once('#').map(|(_, number)| number);
    number.with_context(|| format!("no number in {}", vdev.name))
}
