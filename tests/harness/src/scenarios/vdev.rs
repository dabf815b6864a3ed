// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's own driver makes of its vdev when something is done to it.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, dsa_up, shell, vm};
use crate::arch::Arch;
use crate::demonstration;
use crate::machine::{Machine, PROMPT};
use crate::scenario::Scenario;
use anyhow::{Context, Result};

/// The operator takes a vdev away, and the guest's driver notices nothing until it lets go.
pub const DESTROYED: Scenario = Scenario {
    name: "vdev-destroyed",
    about: "vdevs destroyed under bound drivers, one idle, one in the middle of DMA: both let go, and a new vdev works",
    arches: Arch::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
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
        check(
            &machine,
            alpha,
            "echo 1 >/sys/bus/pci/rescan; ls /sys/bus/pci/devices | grep -c :0[12].0",
            "2",
        )?;
        check(&machine, alpha, "dsa-up 1", " up")?;
        let test = match lab.arch() {
            Arch::X86_64 => "dsa-test 50",
            Arch::Aarch64 => "dsa-test 50 0000:00:02.0",
        };
        check(&machine, alpha, test, "copies=50 failures=0")?;
        Ok(())
    },
};

fn destroy(machine: &Machine, vm: &str) -> Result<()> {
    let vdevs = demonstration::vdevs(machine)?;
    let vdev = vdevs
        .iter()
        .find(|vdev| vdev.vm == vm)
        .context("the VM has no vdev")?;
    machine.monitor(&format!("vdev destroy {}", vdev.name)).map(drop)
}

/// Linux turns bus mastering off when devices sleep, and when a driver in user space dies.
pub const BUS_MASTER: Scenario = Scenario {
    name: "bus-master",
    about: "devices sleep and wake, a user-space driver is killed in the middle of DMA: Linux's own driver works after both",
    arches: &[Arch::X86_64],
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let function = "/sys/bus/pci/devices/0000:00:01.0";
        check(&machine, alpha, "uio-up 0000:00:01.0", " up")?;
        // It holds /dev/uio0, whose last user's end turns bus mastering off.
        alpha.send_line("dsa-user verify --operations 100000000 3</dev/uio0 &")?;
        alpha.expect("dsa-user: .*, waiting by polling", COMMAND_TIMEOUT)?;
        check(&machine, alpha, "kill -9 $!; wait $!; echo $?", "137")?;
        check(&machine, alpha, &format!("cd {function}; echo $?"), "0")?;
        let command = "dd if=config bs=1 skip=4 count=1 2>/dev/null | hexdump -e '1/1 \"%02x\\n\"'";
        check(&machine, alpha, command, "02")?;
        check(
            &machine,
            alpha,
            "echo 0000:00:01.0 >driver/unbind; echo >driver_override; echo $?",
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
