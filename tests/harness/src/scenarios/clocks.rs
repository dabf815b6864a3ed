// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest makes of time that it did not see.

use super::pasidon::{COMMAND_TIMEOUT, HOST, shell, vm};
use crate::arch::Arch;
use crate::demonstration;
use crate::scenario::Scenario;
use anyhow::ensure;
use std::time::Duration;

/// A pause that is longer than a kernel's patience.
pub const PAUSE: Scenario = Scenario {
    name: "guest-pause",
    about: "a guest that was paused for longer than its kernel's stall detector waits goes on without a report",
    arches: &[Arch::X86_64],
    run: |lab| {
        const PATIENCE: u64 = 15;
        let patience = format!("rcupdate.rcu_cpu_stall_timeout={PATIENCE}");
        let configuration = [HOST, &vm("alpha", 0, &patience), &vm("beta", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        // Something that keeps asking for grace periods.
        alpha.command("mkdir /tmp/m; cd /tmp", COMMAND_TIMEOUT)?;
        alpha.command(
            "while :; do mount -t tmpfs none m; umount m; done &",
            COMMAND_TIMEOUT,
        )?;
        machine.monitor("vm alpha pause")?;
        // The other guest is the clock.
        let long = Duration::from_secs(10 * PATIENCE);
        beta.command(&format!("sleep {}", 2 * PATIENCE), long)?;
        machine.monitor("vm alpha resume")?;
        // Waits for its end too, or the shell would tell of it in the midst of what follows.
        alpha.command("sleep 3; kill %1; wait", long)?;
        let reports = alpha.command(
            "dmesg | grep -cE 'detected stall|kthread starved|soft lockup'",
            COMMAND_TIMEOUT,
        )?;
        ensure!(
            reports.trim() == "0",
            "{reports} reports\n{}",
            machine.transcript()
        );
        Ok(())
    },
};
