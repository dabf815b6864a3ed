// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Pasidon says about the machine, in the same words on every architecture, and whatever the firmware says it in.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, dsa_up, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result};

/// Processors, memory, ACPI, PCI.
pub const INVENTORY: Scenario = Scenario {
    name: "inventory",
    about: "processors, memory, ACPI tables and PCI functions in the same words everywhere, and a guest; on aarch64 with VHE, without, and refused at EL1",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| match lab.arch() {
        Arch::X86_64 => listed(lab, &[], r"APIC IDs \[0, 1\]\), .*, TSC \d+ MHz, local APIC timer \d+ MHz"),
        Arch::Aarch64 => {
            let clock = r"counter \d+ MHz";
            let vhe = format!(r"MPIDRs \[0, 1\]\), Neoverse-N1, EL2 with VHE, {clock}");
            listed(lab, &[], &vhe)?;
            let plain = format!(r"MPIDRs \[0, 1\]\), Cortex-A72, EL2 without VHE, {clock}");
            listed(lab, &["-cpu", "cortex-a72"], &plain)?;
            refused_at_el1(lab)
        }
    },
};

/// Firmware that offers a device tree and no ACPI.
pub const DEVICE_TREE: Scenario = Scenario {
    name: "device-tree",
    about: "firmware with a device tree and without ACPI: the same inventory, and two guests share the accelerator",
    arches: &[Arch::Aarch64],
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let adapt = |platform| demonstration::platform(platform).without_acpi();
        let machine = lab.pasidon(&configuration, adapt)?;
        let processors = r"MPIDRs \[0, 1\]\), Neoverse-N1, EL2 with VHE, counter \d+ MHz";
        said(&machine, processors, "device tree: MADT MCFG FADT GTDT SPCR IORT$")?;
        machine.log().expect("iommu: SMMUv3, 1 unit.s.: every device is blocked", COMMAND_TIMEOUT)?;
        // StreamID and DeviceID are right where copies and their interrupts arrive.
        for name in ["alpha", "beta"] {
            let console = shell(&machine, name)?;
            dsa_up(&machine, console)?;
            copies(&machine, console, 200)?;
        }
        // And the SMMU's own interrupt where a fault is told.
        let beyond = format!("{:#x}", lab.arch().ram_start() + 0x2000_0000);
        let alpha = machine.console("alpha")?;
        check(&machine, alpha, &format!("dsa-poke src={beyond}"), "result=error")?;
        let fault = format!("^.*: fault: vm alpha.*{beyond}.*$");
        machine.log().expect(&fault, COMMAND_TIMEOUT).map(drop)
    },
};

fn configuration() -> String {
    [HOST, &vm("alpha", 0, "")].concat()
}

/// On a machine with those further arguments the inventory comes, and then a guest; `processors` is how its line about
/// them goes on.
fn listed(lab: &Lab<'_>, arguments: &[&str], processors: &str) -> Result<()> {
    let adapt = |platform| demonstration::platform(platform).arguments(arguments);
    let machine = lab.pasidon(&configuration(), adapt)?;
    said(&machine, processors, "ACPI: MADT MCFG FADT")?;
    // What was found is also enough to run a guest on.
    shell(&machine, "alpha")?;
    // Keys come by interrupt.
    machine.monitor("vms")?;
    Ok(())
}

/// The lines of the inventory come, `tables` being what the firmware's tables are.
fn said(machine: &Machine, processors: &str, tables: &str) -> Result<()> {
    let first = format!(r"machine: processors: 2 of 2 \({processors}, \d+ address bits$");
    machine.log().expect(&first, BOOT_TIMEOUT)?;
    let tables = format!("machine: {tables}");
    let lines = [
        r"machine: memory: 20\d\d MiB, \d+ MiB of it for guests; hypervisor: heap [2-6] MiB \(\d+ KiB used\), image \d+ KiB at 0x[0-9a-f]+$",
        &tables,
        r"machine: PCI: segment 0000 buses 00-ff, ECAM at 0x[0-9a-f]+$",
        "hypervisor: pci: 0000:00:04.0 8086:11fb class 088000",
    ];
    for line in lines {
        machine.log().expect(line, COMMAND_TIMEOUT)?;
    }
    Ok(())
}

/// Where the firmware has no EL2 to give, one line says so and what helps.
fn refused_at_el1(lab: &Lab<'_>) -> Result<()> {
    let adapt = |platform| demonstration::platform(platform).arguments(["-M", "virtualization=off"]);
    let machine = lab.pasidon(&configuration(), adapt)?;
    let line = "processor: the firmware started Pasidon at EL1; .* with QEMU use -M virt,virtualization=on$";
    machine.log().expect(line, BOOT_TIMEOUT)?;
    machine.log().expect(r#"mode = "inventory" in pasidon.toml lists what"#, COMMAND_TIMEOUT)?;
    machine
        .log()
        .expect("nothing was started; back to the firmware$", COMMAND_TIMEOUT)
        .map(drop)
        .context("refused at EL1")
}
