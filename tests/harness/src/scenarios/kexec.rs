// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's kernel that starts the next one by itself, in good order or because it crashed. There is no firmware and no
//! reset in between, so the next one finds every device, its vdev too, as the last one left it.

use super::pasidon::{
    BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, dsa_up, in_slot, named, shell, until, vm,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration::{self, Vdev};
use crate::image::Image;
use crate::line::{Console, PROMPT};
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Copies that a kernel does to show that it has the vdev.
const COPIES: u64 = 50;
/// How long nobody types.
const BETWEEN_KEYS: Duration = Duration::from_millis(100);

/// `alpha`, whose initrd has Debian's kexec and the kernel, and `beta`, which copies all the time.
fn machine(lab: &Lab<'_>, words: &str) -> Result<Machine> {
    let initrd = lab.workshop.initrd_with("kexec")?;
    let fill = |image: Image| image.file("guests/kexec.img", &initrd);
    let alpha =
        vm("alpha", 1, words).replace("guests/initrd.img", "guests/kexec.img").replace("256M", "512M");
    let configuration = [HOST, &alpha, &vm("beta", 1, "")].concat();
    let machine = lab.pasidon_with(&configuration, &[], fill, demonstration::platform)?;
    let beta = shell(&machine, "beta")?;
    dsa_up(&machine, beta)?;
    let rounds = "while dsa-test 50 && [ ! -e end ]; do :; done >log 2>&1 &";
    check(&machine, beta, rounds, "")?;
    Ok(machine)
}

fn vdev(machine: &Machine, vm: &str) -> Result<Vdev> {
    let vdevs = demonstration::vdevs(machine)?;
    let found = vdevs.into_iter().find(|vdev| vdev.vm == vm);
    found.with_context(|| format!("no vdev of {vm}"))
}

/// Waits until the neighbour has copied some more.
fn neighbour_goes_on(machine: &Machine) -> Result<()> {
    let before = vdev(machine, "beta")?.interrupts;
    until(machine, COMMAND_TIMEOUT, || {
        let now = vdev(machine, "beta")?.interrupts;
        Ok((now < before + COPIES).then(|| format!("beta stands still: {before} interrupts, then {now}")))
    })
}

/// Ends the neighbour's copies: none has failed.
fn all_is_well(machine: &Machine) -> Result<()> {
    let beta = machine.console("beta")?;
    beta.command(">end; wait", BOOT_TIMEOUT)?;
    check(machine, beta, "grep by= log | grep -v failures=0; echo status=$?", "status=1")?;
    let vdev = vdev(machine, "beta")?;
    ensure!(vdev.fault_records == 0, "{vdev:?}\n{}", machine.transcript());
    Ok(())
}

/// The kernel that runs takes the vdev and copies with it, and every copy's interrupt comes. No DMA of this vdev went
/// where it may not, also none of a kernel before.
fn takes_the_vdev(machine: &Machine, console: Console<'_>) -> Result<()> {
    dsa_up(machine, console)?;
    let before = vdev(machine, "alpha")?.interrupts;
    copies(machine, console, COPIES)?;
    let after = vdev(machine, "alpha")?;
    ensure!(
        after.interrupts >= before + COPIES && after.fault_records == 0,
        "{COPIES} copies after {before} interrupts: {after:?}\n{}",
        machine.transcript()
    );
    Ok(())
}

/// A kernel that is to come after the one that runs: the same, with the same programs.
struct Next<'a> {
    /// How kexec is to load it.
    flags: &'a str,
    /// Its host's name.
    name: &'a str,
    /// Words for it.
    words: &'a str,
    /// What its initrd has besides what every guest needs.
    files: &'a str,
}

impl Next<'_> {
    fn load(&self, lab: &Lab<'_>, machine: &Machine, console: Console<'_>) -> Result<()> {
        let Next { flags, name, words, files } = self;
        for line in [
            &format!("cd / && find bin init lib* {files} >/tmp/list; echo status=$?"),
            "cpio -o -H newc </tmp/list >/tmp/next; echo status=$?",
            &format!("W='console={} quiet pasidon.name={name}'; echo status=$?", lab.arch().console()),
            &format!("W=\"$W {words}\"; echo status=$?"),
            &format!("K='kexec {flags} boot/vmlinuz --initrd=/tmp/next'; echo status=$?"),
            "$K --append=\"$W\"; echo status=$?",
        ] {
            check(machine, console, line, "status=0")?;
        }
        Ok(())
    }
}

/// Starts copies that do not end before their kernel does.
fn keep_copying(console: Console<'_>) -> Result<()> {
    console.send_line("dsa-test 100000000 &")?;
    console.expect("PASIDON dsa-test started$", COMMAND_TIMEOUT).map(drop)
}

/// What the last kernel left of the vdev: the function's command register, and the queue as Pasidon has it.
fn left(machine: &Machine, console: Console<'_>, command: &str, queue: &str) -> Result<()> {
    let function = in_slot(1);
    check(machine, console, &format!("cd /sys/bus/pci/devices/{function}; echo status=$?"), "status=0")?;
    let read = "hexdump -s 4 -n 1 -e '1/1 \"command=%02x\\n\"' config";
    check(machine, console, read, &format!("command={command}"))?;
    let name = vdev(machine, "alpha")?.name;
    let details = named(machine, "vdevs", &name)?["details"].take();
    let found = details.as_array().into_iter().flatten().find(|detail| detail["name"] == "queue");
    let state = found.and_then(|detail| detail["value"].as_str());
    ensure!(
        state.is_some_and(|state| state.ends_with(queue)),
        "wanted a queue that is {queue}: {details}\n{}",
        machine.transcript()
    );
    Ok(())
}

/// One kernel after the other.
pub const KEXEC: Scenario = Scenario {
    name: "guest-kexec",
    about: "a guest starts its next kernel by kexec (both system calls) in the middle of DMA: it takes the vdev; the neighbour copies on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let machine = machine(lab, "")?;
        let alpha = shell(&machine, "alpha")?;
        takes_the_vdev(&machine, alpha)?;
        // kexec_load; and kexec_file_load, which Debian's kernel has on x86 only.
        let ways: &[_] = match lab.arch() {
            Arch::X86_64 => &[("-s", "second"), ("-c", "third")],
            Arch::Aarch64 => &[("-c", "second")],
        };
        for (flag, name) in ways {
            let flags = &format!("{flag} -l");
            Next { flags, name, words: "", files: "boot" }.load(lab, &machine, alpha)?;
            keep_copying(alpha)?;
            alpha.send_line("kexec -e")?;
            alpha.expect(&format!("^PASIDON guest {name} up$"), BOOT_TIMEOUT)?;
            alpha.expect(PROMPT, COMMAND_TIMEOUT)?;
            neighbour_goes_on(&machine)?;
            // The last kernel disabled its devices, and stopped their DMA.
            left(&machine, alpha, "02", "(disabled)")?;
            takes_the_vdev(&machine, alpha)?;
        }
        all_is_well(&machine)
    },
};

/// A crash, and the kernel that comes after it.
pub const KDUMP: Scenario = Scenario {
    name: "guest-kdump",
    about: "a guest crashes in the middle of DMA and of an interrupt while somebody types: its crash kernel reads the dump, takes the vdev, restarts the VM; the neighbour copies on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let machine = machine(lab, "crashkernel=192M")?;
        let alpha = shell(&machine, "alpha")?;
        takes_the_vdev(&machine, alpha)?;
        // The words that Debian's kdump-tools gives a crash kernel.
        let words = "nr_cpus=1 irqpoll reset_devices";
        Next { flags: "-p", name: "dump", words, files: "" }.load(lab, &machine, alpha)?;
        keep_copying(alpha)?;
        // In the handler of the serial port's interrupt, which nobody ends any more.
        check(&machine, alpha, "echo 1 >/proc/sys/kernel/sysrq", "")?;
        machine.monitor("vm alpha break")?;
        alpha.send(b"c")?;
        until(&machine, BOOT_TIMEOUT, || {
            alpha.send_line("")?;
            let up = alpha.expect("^PASIDON guest dump up$", BETWEEN_KEYS);
            Ok(up.err().map(|_| "the crash kernel is not up".to_owned()))
        })?;
        alpha.expect(PROMPT, COMMAND_TIMEOUT)?;
        neighbour_goes_on(&machine)?;
        // Nobody stopped anything.
        left(&machine, alpha, "06", "(enabled)")?;
        check(&machine, alpha, "hexdump -n 4 -e '4/1 \"%_p\" \"\\n\"' /proc/vmcore", ".ELF")?;
        check(&machine, alpha, "head -c 8192 /proc/vmcore | strings | grep CRASHTIME", "CRASHTIME=")?;
        if lab.arch() == Arch::X86_64 {
            // Debian's kexec does not find where an arm64 kernel lies: its own addresses are wrong in the dump.
            let crashed = "vmcore-dmesg /proc/vmcore | tail -n 50 | grep 'sysrq: Trigger'";
            check(&machine, alpha, crashed, "sysrq: Trigger a crash")?;
        }
        takes_the_vdev(&machine, alpha)?;
        neighbour_goes_on(&machine)?;
        alpha.send_line("reboot -f")?;
        shell(&machine, "alpha")?;
        takes_the_vdev(&machine, alpha)?;
        all_is_well(&machine)
    },
};
