// SPDX-License-Identifier: MIT OR Apache-2.0
//! What shared virtual addressing takes of the platform: a process would hand the accelerator pointers of its own.

use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::line::PROMPT;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Firmware, kernel and init of a machine without a hypervisor; about 10 s on 2 cores that do nothing else.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// A command that only reads, or sets a queue up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Copies of one run, and what they may take.
const COPIES: u64 = 500;
const COPIES_TIMEOUT: Duration = Duration::from_secs(600);

/// What the accelerator model counted, by the name of the counter.
fn counted(machine: &Machine, counter: &str) -> Result<u64> {
    let path = serde_json::json!({ "path": "/machine/peripheral/dsa0", "property": counter });
    machine.qmp()?.execute("qom-get", path)?.as_u64().with_context(|| format!("{counter} is no number"))
}

/// Stock Linux gives the accelerator translations to keep, and turns shared virtual addressing on for it.
///
/// The kernel of the guests does not let a process use it: `iommu_sva_bind_device` of Linux 6.1.176 says EOPNOTSUPP on x86,
/// since page tables of the kernel are freed without the IOMMU's knowledge. Debian's 7.3.4 does; a later scenario runs that.
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
        let run = |command: &str, wanted: &str| -> Result<()> {
            let said = console.command(command, COPIES_TIMEOUT)?;
            ensure!(
                said.contains(wanted),
                "{command}: wanted {wanted}, got {said}\n{}",
                machine.transcript()
            );
            Ok(())
        };
        run("dsa-up", "PASIDON dsa dsa0 up channel=dma0chan0")?;
        run(&format!("dsa-test {COPIES}"), &format!("copies={COPIES} failures=0"))?;
        let after_some = counted(&machine, "stat-translations")?;
        ensure!(after_some > 0, "the device asked for no translation\n{}", machine.transcript());
        // The buffers of the next run are mapped anew, where others were: a translation that was kept would be wrong.
        run(&format!("dsa-test {COPIES}"), &format!("copies={COPIES} failures=0"))?;
        let after_all = counted(&machine, "stat-translations")?;
        ensure!(
            after_all > after_some,
            "{after_some} translations, then {after_all}\n{}",
            machine.transcript()
        );
        run("dsa-down", "PASIDON dsa dsa0 down")?;
        // A queue for programs is enabled only where the kernel has turned shared virtual addressing on.
        run("sva-up", "PASIDON sva /dev/dsa/wq0.0 up")?;
        run("cat /sys/bus/dsa/devices/dsa0/pasid_enabled", "1")?;
        run("dsa-user verify --sva --operations 10", "Operation not supported (os error 95)")?;
        run("dmesg | grep -cE 'DMAR:.*[Ee]rror|DMAR:.*fault|Invalidation'", "0")?;
        console.send_line("poweroff -f")?;
        machine.wait_for_end(COMMAND_TIMEOUT)
    },
};
