// SPDX-License-Identifier: MIT OR Apache-2.0
//! No IOMMU, in the machine or before a device: nothing is shared there that an IOMMU would have to confine.

use super::hostile::{Attempt, END, NEVER, submit, submit_all};
use super::pasidon::{BOOT_TIMEOUT, HOST, check, copies, copies_done, dsa_up, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Both refusals.
pub const REFUSED: Scenario = Scenario {
    name: "no-iommu",
    about: "without an IOMMU a vdev is refused; with iommu = \"off\" dsa-dwq is refused with the reason, and TAINTED",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // The refusal names the VM, and what would help.
        refused(lab, HOST, "vm alpha: .*IOMMU.*; .+$")?;
        refused(lab, &off(), "vm alpha: .*dsa-dwq.*; .+$")?;
        Ok(())
    },
};

/// The same parent, by opt-in.
fn off() -> String {
    HOST.replace("[parent.dsa0]\n", "[parent.dsa0]\niommu = \"off\"\n")
}

/// Verified copies that each guest does.
const COPIES: u64 = 2_000;

/// Copies of a guest that reach beyond it: from or to where, from the start of its memory, how many bytes, and the status
/// that it finds.
const BEYOND: [(&str, u64, u64, u8); 6] = [
    ("src", END, 4096, 0x03),
    ("dst", END, 4096, 0x83),
    ("src", 2 * END, 4096, 0x03),
    ("dst", 2 * END, 4096, 0x83),
    ("dst", 0x1_2345_6000, 4096, 0x83),
    // It begins in the guest's memory, and does not end there. (What lies before the end is done, so that such a
    // destination would be the guest's own.)
    ("src", END - 4096, 8192, 0x03),
];

/// What nobody can prove to stay within the guest.
const UNPROVEN: [Attempt<'_>; 5] = [
    // Messages of interrupts.
    ("--dst=0xfee00000", "status=0x83"),
    // A drain that reads, a delta record, a CRC with a seed from memory, DIF.
    ("--operation=0x02 --flags=0x30000", "status=0x10"),
    ("--operation=0x08", "status=0x10"),
    ("--operation=0x10 --flags=0x10000", "status=0x10"),
    ("--operation=0x13", "status=0x10"),
];

/// Sharing without an IOMMU.
pub const OFF: Scenario = Scenario {
    name: "iommu-off",
    about: "iommu = \"off\": two guests with stock idxd copy at once, a third submits what reaches beyond it and is denied",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let share = "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"dsa-swq\"\n  entries = 16\n\n";
        let guests = ["alpha", "beta", "mallory"].map(|name| vm(name, 0, "") + share).concat();
        let machine = lab.pasidon(&[off(), guests].concat(), |platform| {
            demonstration::platform(platform).without_iommu()
        })?;
        machine.log().expect("TAINTED: dsa0: iommu = \"off\"", BOOT_TIMEOUT)?;
        let [alpha, beta] = [up(&machine, "alpha")?, up(&machine, "beta")?];
        let mallory = shell(&machine, "mallory")?;
        alpha.send_line(&format!("dsa-test {COPIES}"))?;
        beta.send_line(&format!("dsa-test {COPIES}"))?;
        let start = lab.arch().ram_start();
        for (which, place, len, status) in BEYOND {
            let options = format!("--{which}={:#x} --len={len}", start + place);
            let faults = start + place.max(END);
            submit(&machine, mallory, &options, &format!("status={status:#04x} address={faults:#x}"))?;
        }
        submit_all(&machine, mallory, &NEVER)?;
        submit_all(&machine, mallory, &UNPROVEN)?;
        copies_done(&machine, alpha, COPIES).context("alpha was harmed")?;
        copies_done(&machine, beta, COPIES).context("beta was harmed")?;
        // Who was denied may go on.
        check(&machine, mallory, "dsa-user verify --only copy,fill,compare --operations 200", "failures=0")?;

        // It is said wherever something is told of it.
        let vdevs = machine.monitor("vdevs")?;
        let vdevs = vdevs.as_array().context("vdevs: not a list")?;
        ensure!(vdevs.len() == 3, "three vdevs: {vdevs:?}");
        for told in vdevs.iter().chain(machine.monitor("parents")?.as_array().into_iter().flatten()) {
            ensure!(is_tainted(told), "not tainted: {told}");
        }
        for command in ["version", "iommu", "top"] {
            let told = machine.monitor(command)?;
            ensure!(is_tainted(&told), "{command} is not tainted: {told}");
        }
        ensure!(vdevs.iter().all(|vdev| vdev["pasid"].is_null()), "no PASID without an IOMMU: {vdevs:?}");

        // A guest that goes in the middle of its copies leaves the others theirs, and comes back.
        beta.send_line(&format!("dsa-test {COPIES}"))?;
        alpha.send_line("dsa-test 1000000")?;
        machine.monitor("vm alpha stop")?;
        copies_done(&machine, beta, COPIES)?;
        machine.monitor("vm alpha start")?;
        let alpha = up(&machine, "alpha")?;
        copies(&machine, alpha, 200).map(drop)
    },
};

fn is_tainted(told: &Value) -> bool {
    told["taints"].as_array().is_some_and(|taints| !taints.is_empty())
}

fn up<'m>(machine: &'m Machine, name: &str) -> Result<Console<'m>> {
    let console = shell(machine, name)?;
    dsa_up(machine, console)?;
    Ok(console)
}

/// A device that the IOMMU of the machine does not stand in front of.
pub const BYPASSED: Scenario = Scenario {
    name: "iommu-bypassed",
    about: "devices that the IOMMU does not stand in front of: their DMA is switched off, a vdev on one is refused",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, |platform| {
            demonstration::platform(platform).arguments(["-machine", "default_bus_bypass_iommu=on"])
        })?;
        machine.log().expect("8086:11fb .*not behind the IOMMU; its DMA is switched off", BOOT_TIMEOUT)?;
        machine.log().expect("vm alpha: .*parent dsa0: .*0000:00:04.0: no .*; .+$", BOOT_TIMEOUT)?;
        shell(&machine, "beta")?;
        let vdevs = machine.monitor("vdevs")?;
        ensure!(vdevs.as_array().is_some_and(Vec::is_empty), "there is a vdev outside the IOMMU: {vdevs}");
        Ok(())
    },
};

fn refused(lab: &Lab<'_>, host: &str, pattern: &str) -> Result<()> {
    let configuration = [host, &vm("alpha", 1, ""), &vm("beta", 0, "")].concat();
    let machine =
        lab.pasidon(&configuration, |platform| demonstration::platform(platform).without_iommu())?;
    machine.log().expect(pattern, BOOT_TIMEOUT)?;
    // A VM that asks for nothing of the kind runs.
    shell(&machine, "beta")?;
    let vdevs = machine.monitor("vdevs")?;
    ensure!(vdevs.as_array().is_some_and(Vec::is_empty), "there is a vdev without an IOMMU: {vdevs}");
    if host.contains("off") {
        ensure!(machine.log().count("TAINTED")? > 0, "nothing says TAINTED\n{}", machine.transcript());
    }
    Ok(())
}
