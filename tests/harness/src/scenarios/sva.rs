// SPDX-License-Identifier: MIT OR Apache-2.0
//! What shared virtual addressing takes of the platform: a process would hand the accelerator pointers of its own.

use super::pasidon::{COMMAND_TIMEOUT, check, check_exactly};
use super::platform::BOOT_TIMEOUT;
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::line::PROMPT;
use crate::scenario::Scenario;
use anyhow::ensure;

/// Copies of one run.
const COPIES: u64 = 500;

/// Stock Linux gives the accelerator translations to keep, and turns shared virtual addressing on for it.
///
/// The kernel of the guests does not let a process use it: `iommu_sva_bind_device` of Debian's 6.1.176 says EOPNOTSUPP on
/// x86. That of 7.3.4 does not.
pub const DEVICE_TLB: Scenario = Scenario {
    name: "platform-ats",
    about: "without Pasidon: Debian's kernel maps for the accelerator in a first stage, and the accelerator keeps translations; it turns SVA on, accel-config makes a queue for programs, and 6.1 refuses the program",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg],
    run: |lab| {
        let initrd = lab.workshop.initrd_with("accel-config")?;
        let words = "intel_iommu=on,sm_on pasidon.name=plain";
        let machine = lab.bare_linux_with(&initrd, words, |platform| {
            platform.shared_addresses().dsa("device-id=0x0b25")
        })?;
        let console = machine.log();
        console.expect("PASIDON guest plain up", BOOT_TIMEOUT)?;
        console.expect(PROMPT, COMMAND_TIMEOUT)?;
        let run = |command: &str, wanted: &str| check(&machine, console, command, wanted);
        run("dsa-up", "PASIDON dsa dsa0 up channel=dma0chan0")?;
        run(&format!("dsa-test {COPIES}"), &format!("copies={COPIES} failures=0"))?;
        let after_some = machine.counter("stat-translations")?;
        ensure!(after_some > 0, "the device asked for no translation\n{}", machine.transcript());
        // The buffers of the next run are mapped anew, where others were: a translation that was kept would be wrong.
        run(&format!("dsa-test {COPIES}"), &format!("copies={COPIES} failures=0"))?;
        let after_all = machine.counter("stat-translations")?;
        ensure!(
            after_all > after_some,
            "{after_some} translations, then {after_all}\n{}",
            machine.transcript()
        );
        run("dsa-down", "PASIDON dsa dsa0 down")?;
        // A queue for programs is enabled only where the kernel has turned shared virtual addressing on.
        run("sva-up", "PASIDON sva /dev/dsa/wq0.0 up")?;
        let exactly = |command: &str, wanted: &str| check_exactly(&machine, console, command, wanted);
        exactly("cat /sys/bus/dsa/devices/dsa0/pasid_enabled", "1")?;
        run("dsa-user verify --sva --operations 10", "Operation not supported (os error 95)")?;
        exactly("dmesg | grep -cE 'DMAR:.*[Ee]rror|DMAR:.*fault|Invalidation'", "0")?;
        console.send_line("poweroff -f")?;
        machine.wait_for_end(COMMAND_TIMEOUT)
    },
};
