// SPDX-License-Identifier: MIT OR Apache-2.0
//! The platform without Pasidon: what it shows there is what Pasidon may be judged on.

use super::pasidon::{COMMAND_TIMEOUT, COPIES_TIMEOUT, check, check_exactly};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration::Copies;
use crate::line::PROMPT;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::scenario::{Lab, Scenario};
use anyhow::{Result, ensure};
use std::time::Duration;

/// What Debian's x86_64 kernel is told to bring VT-d up in scalable mode; on aarch64 it uses the SMMU unasked.
const SCALABLE_MODE: &str = "intel_iommu=on,sm_on pasidon.name=plain";
/// Firmware, kernel and init of a machine without a hypervisor; about 10 s on 2 cores that do nothing else.
pub(super) const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// Verified copies that the accelerator model has to do without a failure.
const COPIES: u64 = 10_000;

/// Size of the disk that the kernel writes to.
const DISK_BYTES: u64 = 16 << 20;

/// What the kernel says when the IOMMU and its part in interrupts came up.
fn signs(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &["DMAR: IOMMU enabled", "DMAR-IR: Enabled IRQ remapping in x2apic mode"],
        // With two-level stream tables (bit 0) and tables of context descriptors (1), and both stages (9, 10).
        Arch::Aarch64 => {
            &["smmu.*features 0x00088707", "PCI/MSI: ITS@.* domain created", "VHE mode initialized"]
        }
    }
}

/// How the kernel reports a DMA that the IOMMU refused, and errors of the IOMMU itself.
fn complaints(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "DMAR:.*fault|DMAR:.*[Ee]rror",
        Arch::Aarch64 => "smmu.*(event|EVTQ|CMDQ|GERR|unexp|unhand|timeo)",
    }
}

/// The IOMMU comes up as Pasidon needs it, and a device works behind it.
pub const BOOT: Scenario = Scenario {
    name: "platform-boot",
    about: "Debian's kernel boots on the platform without Pasidon; the IOMMU comes up as needed, a disk behind it works",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = match lab.arch() {
            Arch::X86_64 => SCALABLE_MODE,
            Arch::Aarch64 => "pasidon.name=plain",
        };
        let disk = lab.folder.join("scratch.img");
        std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        let disk = disk.to_string_lossy().replace(',', ",,");
        let drive = format!("if=none,id=scratch,format=raw,file={disk}");
        let machine = lab.bare_linux(words, |platform| {
            // Without iommu_platform virtio devices pass the IOMMU by.
            platform
                .arguments(["-drive".to_owned(), drive])
                .device("virtio-blk-pci,drive=scratch,addr=0x3,iommu_platform=on,disable-legacy=on")
                .dsa("")
        })?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        let expect = |command: &str, wanted: &str| check_exactly(&machine, console, command, wanted);
        for sign in signs(lab.arch()) {
            expect(&format!("dmesg | grep -c '{sign}'"), "1")?;
        }
        expect("disk-up", "PASIDON disk vda bytes=4194304 same=yes iommu=yes msi=yes")?;
        expect(&format!("dmesg | grep -cE '{}'", complaints(lab.arch())), "0")?;
        console.send_line("poweroff -f")?;
        machine.wait_for_end(COMMAND_TIMEOUT)
    },
};

/// The accelerator model works for the driver that the guests have: the stock one where there is one.
pub const DMATEST: Scenario = Scenario {
    name: "platform-dmatest",
    about: "without Pasidon: the stock idxd driver binds to the DSA model, dmatest passes 10,000 verified copies; on aarch64 dsa-user does",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = lab.arch().words_for_bare_accelerator();
        let words = format!("{words} pasidon.name=plain pasidon.run=dsa-test pasidon.iterations={COPIES}");
        // Linux 6.1 knows only the first device ID.
        let machine = lab.bare_linux(&words, |platform| platform.dsa("device-id=0x0b25"))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect("PASIDON dsa .* up", COMMAND_TIMEOUT)?;
        let line = console.expect(Copies::LINE, COPIES_TIMEOUT)?.swap_remove(0);
        let result = Copies::parse(&line)?;
        ensure!(
            result.good() && result.done == COPIES,
            "wanted {COPIES} copies without a failure: {result:?}\n{}",
            machine.transcript()
        );
        Ok(())
    },
};

/// The accelerator model's DMA goes through VT-d, and a denied one is reported.
pub const FAULT: Scenario = Scenario {
    name: "platform-fault",
    about: "without Pasidon: copies from and to an address that VT-d does not map are denied, the next one works",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        let machine = lab.bare_linux(SCALABLE_MODE, |platform| platform.dsa("device-id=0x0b25"))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        let expect = |command: &str, wanted: &str| -> Result<()> {
            let said = console.command(command, COMMAND_TIMEOUT)?;
            ensure!(
                said.contains(wanted),
                "{command}: wanted {wanted}, got {said}\n{}",
                machine.transcript()
            );
            Ok(())
        };
        expect("dsa-up", "PASIDON dsa dsa0 up channel=dma0chan0")?;
        expect("dsa-poke len=65536 fill=90", "result=ok match=yes")?;
        // The device learns what became of a read, and nothing of a write.
        expect("dsa-poke src=0x123457000", "result=error match=none")?;
        expect("dsa-poke dst=0x123456000", "result=ok match=none")?;
        for address in ["0x123457000", "0x123456000"] {
            expect(&format!("dmesg | grep -c 'DMAR:.*fault addr {address}'"), "1")?;
        }
        expect("dsa-poke len=65536 fill=165", "result=ok match=yes")?;
        expect("dsa-down", "PASIDON dsa dsa0 down")?;
        expect("dsa-up", "PASIDON dsa dsa0 up channel=dma0chan0")?;
        expect("dsa-test 100", "copies=100 failures=0")
    },
};

/// Accelerators of the machine with two units: behind the first, and two behind the second.
const BEHIND_UNITS: [&str; 3] = ["0000:00:04.0", "0000:40:01.0", "0000:41:00.0"];

/// The firmware's table says which unit each device is behind, and the unit is what it says.
pub const UNITS: Scenario = Scenario {
    name: "platform-units",
    about: "without Pasidon: Linux finds two IOMMU units and who is behind which; an accelerator behind the second does 200 verified copies, with interrupts",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = format!("{} pasidon.name=plain", lab.arch().words_for_bare_accelerator());
        let model = "device-id=0x0b25";
        let machine = lab.bare_linux(&words, |platform| platform.dsa(model).further_unit(model))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        // Linux asks the table for an Arm device's unit when a driver takes the device.
        let mut units = Vec::new();
        let mut channel = String::new();
        for (number, function) in BEHIND_UNITS.iter().enumerate() {
            let up = console.command(&format!("dsa-up {number}"), COMMAND_TIMEOUT)?;
            ensure!(up.contains(" up"), "{up}\n{}", machine.transcript());
            channel = up.split_once("channel=").map_or(*function, |(_, name)| name.trim()).to_owned();
            let look = format!("readlink -f /sys/bus/pci/devices/{function}/iommu");
            let said = console.command(&look, COMMAND_TIMEOUT)?;
            let unit = said.trim().rsplit('/').next().unwrap_or_default().to_owned();
            let known = unit.contains("dmar") || unit.contains("smmu");
            ensure!(known, "{function}: {said}\n{}", machine.transcript());
            units.push(unit);
        }
        ensure!(units[0] != units[1] && units[1] == units[2], "{BEHIND_UNITS:?}: {units:?}");
        let said = console.command(&format!("dsa-test 200 {channel}"), COPIES_TIMEOUT)?;
        ensure!(said.contains("copies=200 failures=0"), "{said}\n{}", machine.transcript());
        let complained = format!("dmesg | grep -E '{}'", complaints(lab.arch()));
        let said = console.command(&complained, COMMAND_TIMEOUT)?;
        ensure!(said.trim().is_empty(), "{said}\n{}", machine.transcript());
        Ok(())
    },
};

/// Operations that the user-space driver has to do without a failure: looking for their ends, and told by interrupt.
const POLLED: u64 = 1000;
const INTERRUPTED: u64 = 200;

/// The accelerator model works for a driver in user space, by whatever stores the processor has.
pub const USER_DRIVER: Scenario = Scenario {
    name: "platform-user-driver",
    about: "without Pasidon: the user-space driver does 1,000 verified operations on the DSA model, 200 more by interrupt",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // It gives the device physical addresses, so the IOMMU must let them pass.
        let words = match lab.arch() {
            Arch::X86_64 => "intel_iommu=on,sm_on iommu=pt pasidon.name=plain",
            Arch::Aarch64 => "iommu.passthrough=1 pasidon.name=plain",
        };
        let machine = lab.bare_linux(words, |platform| platform.dsa("device-id=0x0b25"))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        let up = "PASIDON uio 0000:00:04.0 up";
        let polled = format!("dsa-user verify --operations {POLLED}");
        let interrupted = format!("dsa-user verify --operations {INTERRUPTED} --wait interrupt");
        let interrupts = format!(" failures=0 interrupts={INTERRUPTED} ");
        for (command, wanted) in [
            ("uio-up 0000:00:04.0", up),
            (&polled, " failures=0 interrupts=0 "),
            ("uio-up 0000:00:04.0 uio_msix", up),
            (&interrupted, &interrupts),
        ] {
            check(&machine, console, command, wanted)?;
        }
        // What the program counted is what the device did.
        let completed = machine.counter("stat-completed")?;
        ensure!(
            completed == POLLED + INTERRUPTED,
            "{POLLED} and {INTERRUPTED} operations, and the device completed {completed}\n{}",
            machine.transcript()
        );
        Ok(())
    },
};

/// What the self-test of the accelerator model asks of the kernel: no driver of the IOMMU's in the way, huge pages.
const SELF_TEST_WORDS: &str = "intel_iommu=off intremap=off iomem=relaxed hugepages=8 pasidon.name=plain";
/// Modes of the self-test, and the properties of the accelerator that they want.
const SELF_TESTS: [(&str, &str); 3] = [
    ("basic pasid ims shared fuzz", ",posted-writes=off"),
    ("posted latency shared-latency", ",latency-ns=100000000"),
    ("hang no-ims", ",drain-hang=on,ims-size=0"),
];
/// For the modes of one machine; about a minute.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The platform's models do what their specifications say.
pub const SELF_TEST: Scenario = Scenario {
    name: "platform-selftest",
    about: "without Pasidon: the DSA model checked from user space, SVM and interrupt remapping; on aarch64 what EL1 is given, and the SMMUv3's substreams, through the DSA",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| match lab.arch() {
        Arch::X86_64 => pc_self_test(lab).and_then(|()| accelerator_self_test(lab)),
        Arch::Aarch64 => iommu_self_test(lab),
    },
};

/// Registers, commands, descriptors, interrupts and PASIDs of the accelerator, from user space of Debian's kernel.
fn accelerator_self_test(lab: &Lab<'_>) -> Result<()> {
    let initrd = lab.workshop.self_test()?;
    for (modes, properties) in SELF_TESTS {
        let properties = format!("device-id=0x0b25{properties}");
        let machine = lab.bare_linux_with(&initrd, SELF_TEST_WORDS, |platform| platform.dsa(&properties))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        // For IA32_PASID, which ENQCMD takes its PASID from.
        console.command("insmod /lib/modules/msr.ko", COMMAND_TIMEOUT)?;
        let said = console.command(&format!("dsa-selftest {modes}"), SELF_TEST_TIMEOUT)?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(passed("dsa-selftest", last), "{modes}: {said}\n{}", machine.transcript());
    }
    Ok(())
}

/// What the processor gives EL1, where requests with and without PASIDs arrive, and what the SMMU remembers, from a
/// program without a kernel.
fn iommu_self_test(lab: &Lab<'_>) -> Result<()> {
    let program = lab.workshop.iommu_self_test()?;
    // It asks the device which of its accesses was denied, and has the doorbell at an address of its own.
    let platform = Platform::program(lab.arch(), &program).dsa("posted-writes=off,ims-window=0x80000000");
    let machine = Machine::start_plain(&lab.workshop.qemu()?, &platform)?;
    let said = machine.log().expect("^smmu-selftest: .*$\n", SELF_TEST_TIMEOUT)?;
    ensure!(passed("smmu-selftest", said[0].trim()), "{}", machine.transcript());
    machine.wait_for_end(COMMAND_TIMEOUT)
}

/// Processors for the self-test of the PC, and IOMMUs: the platform's, and such as there were with the first SVM.
const PCS: [(&str, Option<&str>); 2] = [
    ("max", None),
    ("max,nrip-save=off,decodeassists=off,flushbyasid=off", Some("intel-iommu,intremap=on,eim=off")),
];
/// A machine check of the first processor: bank 1, uncorrected, at no address.
const MACHINE_CHECK: &str = "mce 0 1 0xb000000000000000 1 0 0";

/// Intercepts, VMRUN's checks, the exceptions of control registers, and where interrupt messages go, from a program without
/// a kernel.
fn pc_self_test(lab: &Lab<'_>) -> Result<()> {
    let program = lab.workshop.pc_self_test()?;
    for (processor, iommu) in PCS {
        let mut platform = Platform::program(lab.arch(), &program).arguments(["-cpu", processor]);
        if let Some(iommu) = iommu {
            platform = platform.without_iommu().device(iommu);
        }
        let platform = platform.dsa("");
        let machine = Machine::start_plain(&lab.workshop.qemu()?, &platform)?;
        loop {
            let said = machine.log().expect("^pc-selftest.*$\n", SELF_TEST_TIMEOUT)?;
            let line = said[0].trim();
            if line.contains("wants a machine check") {
                let command = serde_json::json!({ "command-line": MACHINE_CHECK });
                machine.qmp()?.execute("human-monitor-command", command)?;
                continue;
            }
            ensure!(passed("pc-selftest", line), "{processor}: {line}\n{}", machine.transcript());
            break;
        }
        machine.wait_for_end(COMMAND_TIMEOUT)?;
    }
    Ok(())
}

/// Whether that is the last line of a self-test in which something was checked and nothing failed.
fn passed(name: &str, line: &str) -> bool {
    let counts = || {
        let rest = line.strip_prefix(name)?.strip_prefix(": ")?;
        let (checks, failed) = rest.split_once(" checks, ")?;
        Some(checks.parse::<u32>().ok()? > 0 && failed == "0 failed")
    };
    counts() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_test_passes_only_if_it_checked_something() {
        assert!(passed("x", "x: 12 checks, 0 failed"));
        for line in ["x: 12 checks, 1 failed", "x: 0 checks, 0 failed", "y: 12 checks, 0 failed", ""] {
            assert!(!passed("x", line), "{line}");
        }
    }
}
