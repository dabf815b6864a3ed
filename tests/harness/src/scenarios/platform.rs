// SPDX-License-Identifier: MIT OR Apache-2.0
//! The platform without Pasidon: what it shows there is what Pasidon may be judged on.

use crate::arch::Arch;
use crate::demonstration::Dmatest;
use crate::machine::PROMPT;
use crate::scenario::Scenario;
use anyhow::{Result, ensure};
use std::time::Duration;

/// What Debian's x86_64 kernel is told to bring VT-d up in scalable mode; on aarch64 it uses the SMMU unasked.
const SCALABLE_MODE: &str = "intel_iommu=on,sm_on pasidon.name=plain";
/// Firmware, kernel and init of a machine without a hypervisor; about 10 s on 2 cores that do nothing else.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// Verified copies that the accelerator model has to do without a failure.
const COPIES: u64 = 10_000;
/// For all of them; about a minute.
const COPIES_TIMEOUT: Duration = Duration::from_secs(600);
/// A command that only reads.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Size of the disk that the kernel writes to.
const DISK_BYTES: u64 = 16 << 20;

/// What the kernel says when the IOMMU and its part in interrupts came up.
fn signs(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &[
            "DMAR: IOMMU enabled",
            "DMAR-IR: Enabled IRQ remapping in x2apic mode",
        ],
        // With two-level stream tables (bit 0) and tables of context descriptors (1), and both stages (9, 10).
        Arch::Aarch64 => &[
            "smmu.*features 0x00088707",
            "PCI/MSI: ITS@.* domain created",
            "VHE mode initialized",
        ],
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
        let expect = |command: &str, wanted: &str| -> Result<()> {
            let said = console.command(command, COMMAND_TIMEOUT)?;
            ensure!(
                said == wanted,
                "{command}: wanted {wanted}, got {said}\n{}",
                machine.transcript()
            );
            Ok(())
        };
        for sign in signs(lab.arch()) {
            expect(&format!("dmesg | grep -c '{sign}'"), "1")?;
        }
        expect(
            "disk-up",
            "PASIDON disk vda bytes=4194304 same=yes iommu=yes msi=yes",
        )?;
        expect(&format!("dmesg | grep -cE '{}'", complaints(lab.arch())), "0")?;
        console.send_line("poweroff -f")?;
        machine.wait_for_end(COMMAND_TIMEOUT)
    },
};

/// The accelerator model works for the stock driver.
pub const DMATEST: Scenario = Scenario {
    name: "platform-dmatest",
    about: "the stock idxd driver binds to the DSA model without Pasidon; dmatest passes 10,000 verified copies",
    arches: &[Arch::X86_64],
    run: |lab| {
        let words = format!("{SCALABLE_MODE} pasidon.run=dmatest pasidon.iterations={COPIES}");
        // Linux 6.1 knows only the first device ID.
        let machine = lab.bare_linux(&words, |platform| platform.dsa("device-id=0x0b25"))?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect("PASIDON dsa dsa0 channel=dma0chan0", COMMAND_TIMEOUT)?;
        let line = console
            .expect("^PASIDON dmatest .*$\n", COPIES_TIMEOUT)?
            .swap_remove(0);
        let result = Dmatest::parse(&line)?;
        let good = result.tests == COPIES && result.failures == 0;
        ensure!(
            good,
            "wanted {COPIES} copies without a failure: {result:?}\n{}",
            machine.transcript()
        );
        Ok(())
    },
};

/// The accelerator model's DMA goes through VT-d, and a denied one is reported.
pub const FAULT: Scenario = Scenario {
    name: "platform-fault",
    about: "without Pasidon: a copy to an address that VT-d does not map ends with an error, the next one works",
    arches: &[Arch::X86_64],
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
        expect("dsa-up", "PASIDON dsa dsa0 channel=dma0chan0")?;
        expect("dsa-poke len=65536 fill=90", "result=ok match=yes")?;
        expect("dsa-poke dst=0x123456000", "result=error match=none")?;
        expect("dmesg | grep -c 'DMAR:.*fault addr 0x123456000'", "1")?;
        expect("dsa-poke len=65536 fill=165", "result=ok match=yes")?;
        expect("dsa-down", "PASIDON dsa dsa0 down")?;
        expect("dsa-up", "PASIDON dsa dsa0 channel=dma0chan0")?;
        expect("dsa-test 100", "tests=100 failures=0")
    },
};

/// What the self-test of the accelerator model asks of the kernel: no driver of the IOMMU's in the way, huge pages.
const SELF_TEST_WORDS: &str = "intel_iommu=off intremap=off iomem=relaxed hugepages=8 pasidon.name=plain";
/// Modes of the self-test, and the properties of the accelerator that they want.
const SELF_TESTS: [(&str, &str); 3] = [
    ("basic pasid fuzz", ""),
    ("latency", ",latency-ns=20000000"),
    ("hang", ",drain-hang=on"),
];
/// For the modes of one machine; about a minute.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The accelerator model does what its specification says.
pub const SELF_TEST: Scenario = Scenario {
    name: "platform-selftest",
    about: "the DSA model's registers, commands, descriptors, interrupts and PASIDs, checked from user space without Pasidon",
    arches: &[Arch::X86_64],
    run: |lab| {
        let initrd = lab.workshop.self_test()?;
        for (modes, properties) in SELF_TESTS {
            let properties = format!("device-id=0x0b25{properties}");
            let machine =
                lab.bare_linux_with(&initrd, SELF_TEST_WORDS, |platform| platform.dsa(&properties))?;
            let console = machine.log();
            console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
            console.expect(PROMPT, COMMAND_TIMEOUT)?;
            let said = console.command(&format!("dsa-selftest {modes}"), SELF_TEST_TIMEOUT)?;
            let good = said.lines().last().and_then(|line| {
                let (checks, failed) = line.strip_prefix("dsa-selftest: ")?.split_once(" checks, ")?;
                Some(checks.parse::<u32>().ok()? > 0 && failed == "0 failed")
            });
            ensure!(good == Some(true), "{modes}: {said}\n{}", machine.transcript());
        }
        Ok(())
    },
};
