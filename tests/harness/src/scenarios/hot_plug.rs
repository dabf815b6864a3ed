// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that come and go while a guest runs, as stock Linux sees it.

use super::pasidon::{COMMAND_TIMEOUT, HOST, check, copies, dsa_up, in_slot, shell, until, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How long the hypervisor waits for a guest: `PATIENCE_NS` in `kernel/src/system/departures.rs`.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody looks for anything by hand: Linux is told.
pub const HOT_PLUG: Scenario = Scenario {
    name: "hot-plug",
    about: "vdevs come and go under a guest: Linux takes one up, lets go of one that copies, and one ends although the guest stands still",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        dsa_up(&machine, alpha)?;
        copies(&machine, alpha, 50)?;
        // One comes, and works beside the other.
        create(&machine)?;
        is_there(&machine, alpha, 2, true)?;
        let up = check(&machine, alpha, "dsa-up 1", " up")?;
        let channel = up.split_once("channel=").map(|(_, channel)| channel.trim().to_owned());
        let second = channel.unwrap_or_else(|| in_slot(2));
        check(&machine, alpha, &format!("dsa-test 50 {second}"), "copies=50 failures=0")?;
        // One that is taken away in the middle of DMA. Not from idxd, which in this version does not survive it.
        check(&machine, alpha, "echo 0 >/sys/bus/pci/drivers_autoprobe; echo $?", "0")?;
        create(&machine)?;
        is_there(&machine, alpha, 3, true)?;
        let function = in_slot(3);
        check(&machine, alpha, &format!("uio-up {function} uio_msix"), " up")?;
        keep_copying(&machine, alpha, &function)?;
        let begun = Instant::now();
        let said = destroy(&machine, "3")?;
        ensure!(said.contains("asked"), "{said}");
        ensure!(machine.monitor("vdev 3")?["state"] == "leaving", "{}", machine.transcript());
        machine.log().expect("vdev dsa0/dsa-dwq#3: the guest has let go of it$", COMMAND_TIMEOUT)?;
        let took = begun.elapsed();
        ensure!(took < PATIENCE, "only after {took:?}");
        println!("  let go of after {:.1} s", took.as_secs_f32());
        is_there(&machine, alpha, 3, false)?;
        ensure!(demonstration::vdevs(&machine)?.len() == 2, "{}", machine.transcript());
        // Its driver in user space is left with a device that has gone.
        stopped_copying(&machine, alpha)?;
        // A guest that stands still answers nothing.
        create(&machine)?;
        is_there(&machine, alpha, 3, true)?;
        machine.monitor("vm alpha pause")?;
        let begun = Instant::now();
        destroy(&machine, "4")?;
        machine
            .log()
            .expect("vdev dsa0/dsa-dwq#4: .*has not let go of it .*: it has ended$", 3 * PATIENCE)?;
        ensure!(begun.elapsed() >= PATIENCE - Duration::from_secs(1), "after {:?}", begun.elapsed());
        ensure!(demonstration::vdevs(&machine)?.len() == 2, "{}", machine.transcript());
        // It finds what remained, and that it was asked to let go of that.
        machine.monitor("vm alpha resume")?;
        is_there(&machine, alpha, 3, false)?;
        // Without a word: what remains stays until the guest has had enough of it.
        create(&machine)?;
        is_there(&machine, alpha, 3, true)?;
        let said = destroy(&machine, "5 now")?;
        ensure!(said.ends_with("destroyed"), "{said}");
        is_there(&machine, alpha, 3, true)?;
        check(&machine, alpha, "echo 0 >/sys/bus/pci/slots/3/power; echo $?", "0")?;
        is_there(&machine, alpha, 3, false)?;
        // Those that nobody took away have seen nothing of all this.
        check(&machine, alpha, "dsa-test 50", "copies=50 failures=0")?;
        check(&machine, alpha, &format!("dsa-test 50 {second}"), "copies=50 failures=0")?;
        is_well(alpha)
    },
};

/// A guest's vdev goes to another parent, another type and another queue, while it works.
pub const MOVE: Scenario = Scenario {
    name: "move-vdev",
    about: "a vdev moves under load to another parent, and to another type: the guest has the new one before the old one goes",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // HOST begins with the host's section and ends with that of dsa0.
        let host = HOST.replacen("[host]", "[host]\npasid_namespace = \"device\"", 1);
        let shared = "shared_entries = 16\n";
        let second = format!("{shared}\n[parent.dsa1]\npci = \"0000:00:05.0\"\n{shared}\n");
        // Two programs at once.
        let configuration = [host.trim_end(), "\n", &second, &vm("alpha", 1, "hugepages=4")].concat();
        let machine = lab.pasidon(&configuration, |platform| demonstration::platform(platform).dsa(""))?;
        let alpha = shell(&machine, "alpha")?;
        let ways: &[&str] = match lab.arch() {
            Arch::X86_64 => &["dsa1/dsa-dwq", "dsa0/dsa-swq", "dsa1/dsa-swq", "dsa1/dsa-dwq"],
            Arch::Aarch64 => &["dsa1/dsa-dwq", "dsa0/dsa-dwq"],
        };
        check(&machine, alpha, &format!("uio-up {} uio_msix", in_slot(1)), " up")?;
        let verify = "V='dsa-user verify --only copy,fill --wait interrupt'; echo $?";
        check(&machine, alpha, verify, "0")?;
        let works = |function: &str| {
            let verify = format!("$V --operations 100 --device {function}");
            check(&machine, alpha, &verify, "failures=0").map(drop)
        };
        let (mut vdev, mut slot) = (1, 1);
        for to in ways {
            // Many copies at once, all the time.
            keep_copying(&machine, alpha, &in_slot(slot))?;
            let said = machine.monitor(&format!("vdev move {vdev} {to} entries=8"))?;
            let next = said["vdev"].as_u64().with_context(|| format!("vdev move: {said}"))?;
            if vdev == 1 {
                let both = machine.monitor("pasids")?;
                let numbers = both.as_array().into_iter().flatten().map(|pasid| pasid["pasid"].as_u64());
                ensure!(numbers.eq([Some(1), Some(1)]), "wanted PASID 1 on each device: {both}");
            }
            // The new one works while the old one does, too.
            let free = if slot == 1 { 2 } else { 1 };
            is_there(&machine, alpha, free, true)?;
            let function = in_slot(free);
            check(&machine, alpha, &format!("uio-up {function} uio_msix"), " up")?;
            works(&function)?;
            machine.log().expect(&format!("#{vdev}: the guest has let go of it$"), COMMAND_TIMEOUT)?;
            is_there(&machine, alpha, slot, false)?;
            stopped_copying(&machine, alpha)?;
            works(&function)?;
            let vdevs = machine.monitor("vdevs")?;
            let name = format!("{to}#{next}");
            ensure!(
                vdevs.as_array().is_some_and(|list| list.len() == 1 && list[0]["name"] == *name),
                "wanted {name} alone: {vdevs}"
            );
            (vdev, slot) = (next, free);
        }
        // What cannot be had changes nothing.
        for nowhere in ["dsa0/none", "dsa7/dsa-dwq", "dsa0/dsa-dwq entries=60000"] {
            let refused = machine.monitor(&format!("vdev move {vdev} {nowhere}"));
            ensure!(refused.is_err(), "moved to {nowhere}: {refused:?}");
        }
        works(&in_slot(slot))?;
        let pasids = machine.monitor("pasids")?;
        ensure!(pasids.as_array().is_some_and(|list| list.len() == 1), "one PASID is left: {pasids}");
        is_well(alpha)
    },
};

/// Has a driver in user space copy all the time, from here on.
fn keep_copying(machine: &Machine, console: Console<'_>, function: &str) -> Result<()> {
    check(machine, console, "L='dsa-user load --seconds 600 --depth 4'; echo $?", "0")?;
    let load = format!("rm -f /tmp/load; $L --device {function} >/tmp/load 2>&1 &");
    check(machine, console, &load, "")?;
    let submits = "until [ -s /tmp/load ]; do usleep 100000; done; head -n 1 /tmp/load";
    check(machine, console, submits, "waiting by").map(drop)
}

/// It has ended, since its device has gone.
fn stopped_copying(machine: &Machine, console: Console<'_>) -> Result<()> {
    check(machine, console, "wait $!; grep -c error= /tmp/load", "1").map(drop)
}

/// The guest's kernel has nothing to say against what it went through.
pub(super) fn is_well(console: Console<'_>) -> Result<()> {
    // WARN() names the processor; others warn, too.
    let complaints = "dmesg | grep -A 2 -e BUG: -e Oops -e 'WARNING: CPU'";
    let said = console.command(complaints, COMMAND_TIMEOUT)?;
    ensure!(said.trim().is_empty(), "the guest's kernel says: {said}");
    Ok(())
}

fn create(machine: &Machine) -> Result<()> {
    machine.monitor("vdev create alpha dsa0/dsa-dwq entries=8").map(drop)
}

fn destroy(machine: &Machine, which: &str) -> Result<String> {
    let said = machine.monitor(&format!("vdev destroy {which}"))?;
    said["done"].as_str().map(str::to_owned).with_context(|| format!("vdev destroy: {said}"))
}

/// Waits until the guest's kernel has a function in that slot, or none.
pub(super) fn is_there(machine: &Machine, console: Console<'_>, slot: u8, wanted: bool) -> Result<()> {
    let function = in_slot(slot);
    until(machine, COMMAND_TIMEOUT, || {
        let look = format!("usleep 200000; [ -e /sys/bus/pci/devices/{function} ]; echo there=$?");
        let found = console.command(&look, COMMAND_TIMEOUT)?.contains("there=0");
        Ok((found != wanted).then(|| format!("{function}: wanted {wanted}")))
    })
}
