// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that share one work queue: their portals are trapped, and each descriptor is checked.

use super::pasidon::{HOST, check, copies_done, dsa_up, shell};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration::{self, Vdev};
use crate::machine::Machine;
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};

/// Verified copies that each guest does.
const COPIES: u64 = 2_000;
const GUESTS: [(&str, &str); 4] =
    [("alpha", "dsa-swq"), ("beta", "dsa-swq"), ("gamma", "dsa-dwq"), ("delta", "dsa-dwq")];

/// A Linux guest with a vdev of that type.
fn vm(name: &str, kind: &str, more: &str) -> String {
    format!(
        "[[vm]]\nname = \"{name}\"\nmemory = \"256M\"\nkernel = \"guests/vmlinux\"\ninitrd = \"guests/initrd.img\"\n\
         cmdline = \"console=ttyS0 quiet pasidon.name={name}\"\n\n  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \
         \"{kind}\"\n  {more}\n\n"
    )
}

fn of<'v>(vdevs: &'v [Vdev], name: &str) -> Result<&'v Vdev> {
    vdevs.iter().find(|vdev| vdev.vm == name).with_context(|| format!("no vdev of {name}: {vdevs:?}"))
}

/// Both ways of sharing, side by side.
pub const DMATEST: Scenario = Scenario {
    name: "swq-dmatest",
    about: "stock idxd and dmatest in four guests at once: two share one work queue by traps, two have one each",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg],
    run: |lab| {
        let guests = GUESTS.map(|(name, kind)| vm(name, kind, "entries = 16")).concat();
        let machine = lab.pasidon(&[HOST, &guests].concat(), demonstration::platform)?;
        let mut consoles = Vec::new();
        for (name, _) in GUESTS {
            let console = shell(&machine, name)?;
            dsa_up(&machine, console)?;
            consoles.push(console);
        }
        // All at once: the last one starts while the first is at work.
        for console in &consoles {
            console.send_line(&format!("dsa-test {COPIES}"))?;
        }
        for console in &consoles {
            copies_done(&machine, *console, COPIES)?;
        }
        let vdevs = demonstration::vdevs(&machine)?;
        let mut pasids: Vec<u64> = vdevs.iter().map(|vdev| vdev.pasid).collect();
        pasids.sort_unstable();
        pasids.dedup();
        ensure!(pasids.len() == GUESTS.len(), "a PASID for each: {vdevs:?}");
        for (name, kind) in GUESTS {
            let vdev = of(&vdevs, name)?;
            let exits = vdev.submission_exits;
            let right = if kind == "dsa-dwq" { exits == 0 } else { exits == COPIES };
            ensure!(right, "{name}: {exits} exits for {COPIES} copies by {kind}\n{}", machine.transcript());
            ensure!(vdev.fault_records == 0, "{name}: faults: {vdev:?}");
        }
        ends(&machine)
    },
};

/// The share of a guest that goes away under load costs the others nothing.
fn ends(machine: &Machine) -> Result<()> {
    let beta = machine.console("beta")?;
    let alpha = machine.console("alpha")?;
    beta.send_line(&format!("dsa-test {COPIES}"))?;
    alpha.send_line("dsa-test 1000000")?;
    machine.monitor("vm alpha stop")?;
    copies_done(machine, beta, COPIES)?;
    machine.monitor("vm alpha start")?;
    let alpha = shell(machine, "alpha")?;
    dsa_up(machine, alpha)?;
    check(machine, alpha, "dsa-test 200", "copies=200 failures=0").map(drop)
}
