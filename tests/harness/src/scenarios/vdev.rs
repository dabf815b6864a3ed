// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's own driver makes of its vdev when something is done to it.

use super::pasidon::{
    BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, dsa_up, in_slot, named, shell, until, vm,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::image::Image;
use crate::line::PROMPT;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The operator takes a vdev away, and the guest's driver notices nothing until it lets go.
pub const DESTROYED: Scenario = Scenario {
    name: "vdev-destroyed",
    about: "vdevs destroyed under bound drivers of guests that are not told, one idle, one in the middle of DMA: both let go, and a new vdev works",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // Without the driver for slots: Linux does not hear that it is to let go, and its drivers find out.
        let vm = |name| vm(name, 1, "pcie_ports=compat");
        let configuration = [HOST, &vm("alpha"), &vm("beta")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        for console in [alpha, beta] {
            dsa_up(&machine, console)?;
        }
        copies(&machine, alpha, 10)?;
        destroy(&machine, "alpha")?;
        check(&machine, alpha, "dsa-down", " down")?;
        // In the background, so that the shell stays free. What was in flight never completes.
        beta.send_line("dsa-test 100000000 &")?;
        beta.expect("PASIDON dsa-test started$", BOOT_TIMEOUT)?;
        destroy(&machine, "beta")?;
        check(&machine, beta, "dsa-down", " down")?;
        // The function stays where it was, and a new one comes beside it.
        machine.monitor("vdev create alpha dsa0/dsa-dwq entries=8")?;
        check(&machine, alpha, "cd /sys/bus/pci; echo 1 >rescan; ls devices | grep -c 0[12]:00.0", "2")?;
        check(&machine, alpha, "dsa-up 1", " up")?;
        let test = match lab.arch() {
            Arch::X86_64 => "dsa-test 50".to_owned(),
            Arch::Aarch64 => format!("dsa-test 50 {}", in_slot(2)),
        };
        check(&machine, alpha, &test, "copies=50 failures=0")?;
        Ok(())
    },
};

fn destroy(machine: &Machine, vm: &str) -> Result<()> {
    let vdevs = demonstration::vdevs(machine)?;
    let vdev = vdevs.iter().find(|vdev| vdev.vm == vm).context("the VM has no vdev")?;
    machine.monitor(&format!("vdev destroy {}", vdev.name)).map(drop)
}

/// Linux turns bus mastering off when devices sleep, and when a driver in user space dies.
pub const BUS_MASTER: Scenario = Scenario {
    name: "bus-master",
    about: "devices sleep and wake, a user-space driver is killed in the middle of DMA: Linux's own driver works after both",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let function = in_slot(1);
        check(&machine, alpha, &format!("uio-up {function}"), " up")?;
        // It holds /dev/uio0, whose last user's end turns bus mastering off.
        alpha.send_line("dsa-user verify --operations 100000000 3</dev/uio0 &")?;
        alpha.expect("dsa-user: .*, waiting by polling", COMMAND_TIMEOUT)?;
        check(&machine, alpha, "kill -9 $!; wait $!; echo $?", "137")?;
        check(&machine, alpha, &format!("cd /sys/bus/pci/devices/{function}; echo $?"), "0")?;
        let command = "dd if=config bs=1 skip=4 count=1 2>/dev/null | hexdump -e '1/1 \"%02x\\n\"'";
        check(&machine, alpha, command, "02")?;
        check(
            &machine,
            alpha,
            &format!("echo {function} >driver/unbind; echo >driver_override; echo $?"),
            "0",
        )?;
        dsa_up(&machine, alpha)?;
        copies(&machine, alpha, 50)?;
        // All but the last step of going to sleep, and back.
        alpha.send_line("echo devices >/sys/power/pm_test; echo freeze >/sys/power/state; echo slept $?")?;
        alpha.expect("^slept 0$", BOOT_TIMEOUT)?;
        alpha.expect(PROMPT, COMMAND_TIMEOUT)?;
        copies(&machine, alpha, 50)?;
        check(&machine, alpha, "dmesg | grep -c 'idxd.*err\\[0\\]'", "1")?;
        check(&machine, alpha, "dsa-down", " down")?;
        dsa_up(&machine, alpha)?;
        copies(&machine, alpha, 50)?;
        Ok(())
    },
};

/// A guest goes to sleep for real, and is woken.
pub const SLEEP: Scenario = Scenario {
    name: "guest-sleep",
    about: "a guest with a bound vdev sleeps (freeze) until a key is pressed at its console; copies go on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        dsa_up(&machine, alpha)?;
        copies(&machine, alpha, 50)?;
        let tty = lab.arch().console();
        let wakeup = format!("echo enabled >/sys/class/tty/{tty}/power/wakeup; echo $?");
        check(&machine, alpha, &wakeup, "0")?;
        alpha.send_line("echo freeze >/sys/power/state; echo slept $?")?;
        until_still(&machine, "alpha")?;
        ensure!(alpha.count("^slept")? == 0, "{}", machine.transcript());
        alpha.send_line("")?;
        alpha.expect("^slept 0$", COMMAND_TIMEOUT)?;
        alpha.expect(PROMPT, COMMAND_TIMEOUT)?;
        check(&machine, alpha, "echo $((6 * 7))", "42")?;
        copies(&machine, alpha, 50)?;
        check(&machine, alpha, "dsa-down", " down").map(drop)
    },
};

/// Waits until a VM does nothing while the monitor is asked often.
fn until_still(machine: &Machine, vm: &str) -> Result<()> {
    const ASKED: u32 = 30;
    let (mut last, mut still) = (Value::Null, 0);
    until(machine, COMMAND_TIMEOUT, || {
        let exits = named(machine, "vms", vm)?["exits"].take();
        still = if exits == last { still + 1 } else { 0 };
        last = exits;
        Ok((still < ASKED).then(|| format!("{vm} does not rest")))
    })
}

/// The usual tool for such devices, with the files that come with it. `docs/src/tools.md` says why each is refused.
pub const ACCEL_CONFIG: Scenario = Scenario {
    name: "accel-config",
    about: "Debian's accel-config says which of its own samples a vdev does not take; one made to fit loads, and saves as the same file again",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        const TOO_LARGE: &str = "wq0.0: size attribute write failed: Invalid argument";
        const NOT_ALL_THERE: &str = "Parse json and set device fail: -1";
        let initrd = lab.workshop.initrd_with("accel-config")?;
        let fill = |image: Image| image.file("guests/accel-config.img", &initrd);
        let alpha = vm("alpha", 1, "").replace("guests/initrd.img", "guests/accel-config.img");
        let machine = lab.pasidon_with(&[HOST, &alpha].concat(), &[], fill, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let samples = "/etc/accel-config/contrib/configs";
        for line in [
            "insmod /lib/modules/idxd_bus.ko && insmod /lib/modules/idxd.ko; echo $?".to_owned(),
            format!("cd {samples}; echo $?"),
        ] {
            check(&machine, alpha, &line, "0")?;
        }
        check(&machine, alpha, "ls *.conf | wc -l", "4")?;
        for (sample, why) in
            [("app", NOT_ALL_THERE), ("net", TOO_LARGE), ("os", TOO_LARGE), ("storage", TOO_LARGE)]
        {
            let load = format!("accel-config load-config -c {sample}_profile.conf; echo status=$?");
            let said = check(&machine, alpha, &load, why)?;
            ensure!(said.ends_with("status=1"), "{sample}: {said}");
        }
        // The one with a single queue, with what the page advises changed in it.
        let fit = "sed 's/shared/dedicated/; s/:16,/:8,/; s/:15$/:0/' os*.conf >/tmp/own";
        check(&machine, alpha, fit, "")?;
        let load = |file: &str| {
            let said = check(
                &machine,
                alpha,
                &format!("accel-config load-config -e -c {file}; echo status=$?"),
                "Enabling wq wq0.0",
            )?;
            ensure!(said.ends_with("status=0"), "{file}: {said}");
            copies(&machine, alpha, 50).map(drop)
        };
        let save = |file: &str| {
            check(&machine, alpha, &format!("accel-config save-config -s {file}; grep -c dsa0 {file}"), "1")
        };
        load("/tmp/own")?;
        save("/tmp/first")?;
        for line in [
            "rmmod dmatest; echo status=$?",
            "accel-config disable-wq dsa0/wq0.0; echo status=$?",
            "accel-config disable-device dsa0; echo status=$?",
        ] {
            check(&machine, alpha, line, "status=0")?;
        }
        load("/tmp/first")?;
        save("/tmp/second")?;
        check(&machine, alpha, "cmp /tmp/first /tmp/second && echo the same", "the same").map(drop)
    },
};
