// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pCPU that does not come back from a guest: a build in which one stays away on purpose must name it, hold what it may
//! still use, and go on with the rest.

use super::pasidon::{COMMAND_TIMEOUT, HOST, check, copies, dsa_up, shell, vm, wait_for_state};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};

/// Copies before and after.
const COPIES: u64 = 50;

/// One that comes back late.
pub const PCPU: Scenario = Scenario {
    name: "lost-pcpu",
    about: "a pCPU stays away: named, its VMs ended or held, the rest goes on; all of it back when it is",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // The first two have a pCPU each. The others take the same places, paused; they never get to their shells.
        let idle = |name| vm(name, 0, "").replace("memory =", "autostart = false\nmemory =");
        let configuration =
            [HOST, &vm("lost-pcpu", 0, ""), &vm("beta", 1, ""), &idle("gamma"), &idle("delta")].concat();
        let machine = lab.pasidon_built(&configuration, &["provoke"], demonstration::platform)?;
        let alpha = shell(&machine, "lost-pcpu")?;
        let beta = shell(&machine, "beta")?;
        dsa_up(&machine, beta)?;
        copies(&machine, beta, COPIES)?;
        // One that does nothing is on no pCPU.
        beta.command("while :; do :; done &", COMMAND_TIMEOUT)?;
        for name in ["gamma", "delta"] {
            machine.monitor(&format!("vm {name} start"))?;
            machine.monitor(&format!("vm {name} pause"))?;
        }

        // This interrupts it, and then it stays away.
        refused(&machine, "vm beta pause", "pCPU 1 does not come back")?;
        machine.log().expect("pCPU 1 is lost: .* beta, delta end", COMMAND_TIMEOUT)?;
        wait_for_state(&machine, "beta", "held")?;
        wait_for_state(&machine, "delta", "crashed")?;
        lost(&machine, true)?;
        // What it may still use is nobody else's.
        refused(&machine, "vm beta start", "it is held")?;
        refused(&machine, "vm beta stop", "pCPU 1 does not come back")?;
        let held = machine.monitor("pasids")?;
        ensure!(held.as_array().is_some_and(|pasids| pasids.len() == 1), "beta's PASID: {held}");
        // The rest goes on, and what only waited there has another place.
        check(&machine, alpha, "echo $((6 * 7))", "42")?;
        machine.monitor("vm delta start")?;
        machine.monitor("vm delta stop")?;

        machine.monitor("vm lost-pcpu pause")?;
        wait_for_state(&machine, "beta", "stopped")?;
        machine.log().expect("vm beta: held no more: stopped from the monitor", COMMAND_TIMEOUT)?;
        machine.monitor("vm lost-pcpu resume")?;
        lost(&machine, false)?;
        machine.monitor("vm beta start")?;
        let beta = shell(&machine, "beta")?;
        dsa_up(&machine, beta)?;
        copies(&machine, beta, COPIES)?;
        Ok(())
    },
};

/// The monitor refuses the command for that reason.
fn refused(machine: &Machine, command: &str, why: &str) -> Result<()> {
    let answer = machine.monitor(command);
    let refusal =
        answer.err().with_context(|| format!("{command} was not refused\n{}", machine.transcript()))?;
    ensure!(format!("{refusal:#}").contains(why), "{refusal:#}, not: {why}\n{}", machine.transcript());
    Ok(())
}

/// The monitor knows whether pCPU 1 is lost.
fn lost(machine: &Machine, wanted: bool) -> Result<()> {
    let top = machine.monitor("top")?;
    ensure!(top["pcpus"][1]["lost"] == wanted, "{top}\n{}", machine.transcript());
    Ok(())
}
