// SPDX-License-Identifier: MIT OR Apache-2.0
//! No IOMMU, in the machine or before a device: nothing is shared there that an IOMMU would have to confine.

use super::pasidon::{BOOT_TIMEOUT, HOST, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::scenario::{Lab, Scenario};
use anyhow::{Result, ensure};

/// Both refusals.
pub const REFUSED: Scenario = Scenario {
    name: "no-iommu",
    about: "without an IOMMU a vdev is refused; with iommu = \"off\" dsa-dwq is refused with the reason, and TAINTED",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // The refusal names the VM, and what would help.
        refused(lab, HOST, "vm alpha: .*IOMMU.*; .+$")?;
        let off = HOST.replace("[parent.dsa0]\n", "[parent.dsa0]\niommu = \"off\"\n");
        refused(lab, &off, "vm alpha: .*dsa-dwq.*; .+$")?;
        Ok(())
    },
};

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
