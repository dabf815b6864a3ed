// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said when Pasidon itself fails: builds that fail on purpose must say what, where and how they got there,
//! and every processor must stand still.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, vm};
use crate::arch::Arch;
use crate::demonstration;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// A panic and two exceptions.
pub const REPORT: Scenario = Scenario {
    name: "panic-report",
    about: "a panic, a null read and a stack overflow: cause, symbolised backtrace, every pCPU stopped",
    arches: &[Arch::X86_64],
    run: |lab| {
        fails(
            lab,
            "fault-panic",
            &[
                r"^Pasidon stops on pCPU 0: panic at boot/src/provoke\.rs:\d+:\d+: provoked .* 0xfd: 42$",
                r"^  rax [0-9a-f]{16} ",
                r"^backtrace, image at 0x[0-9a-f]+:$",
                r"^ +\d+  image\+0x[0-9a-f]+  pasidon::provoke::in_handler\+0x[0-9a-f]+$",
                r"^ +\d+  image\+0x[0-9a-f]+  pasidon_trap\+0x[0-9a-f]+$",
                OUTERMOST,
            ],
        )?;
        fails(
            lab,
            "fault-null-read",
            &[
                r"^Pasidon stops on pCPU 0: #PF page fault: read of 0x18, a null pointer$",
                r"^  rflags .* vector 14  error code 0x0$",
                r"^   0  image\+0x[0-9a-f]+  pasidon::provoke::read\+0x[0-9a-f]+$",
                OUTERMOST,
            ],
        )?;
        fails(
            lab,
            "fault-stack-overflow",
            &[
                r"^Pasidon stops on pCPU 0: #DF double fault: stack overflow: 0x[0-9a-f]+ is in the guard page",
                r"^   0  image\+0x[0-9a-f]+  pasidon::provoke::deeper\+0x[0-9a-f]+$",
                r"^ +… \d+ frames …$",
                OUTERMOST,
            ],
        )
    },
};

/// The function that the first pCPU's stack begins with.
const OUTERMOST: &str = r"^ +\d+  image\+0x[0-9a-f]+  pasidon::machine::take_over\+0x[0-9a-f]+\npCPU 1";
/// How the report goes on after the backtrace.
const END: [&str; 3] = [
    r" stopped at pasidon::provoke::processor\+0x[0-9a-f]+$",
    "^provoked: a line of context$",
    "^Pasidon stands still until the machine is reset$",
];

/// The build with that feature says those lines, in that order, and then no processor runs.
fn fails(lab: &Lab<'_>, feature: &str, patterns: &[&str]) -> Result<()> {
    let configuration = [HOST, &vm("alpha", 0, "")].concat();
    let machine = lab.pasidon_with(&configuration, &[feature], |image| image, demonstration::platform)?;
    let (first, rest) = patterns.split_first().context("nothing to look for")?;
    machine
        .log()
        .expect(first, BOOT_TIMEOUT)
        .context(feature.to_owned())?;
    for pattern in rest.iter().chain(&END) {
        machine
            .log()
            .expect(pattern, COMMAND_TIMEOUT)
            .context(feature.to_owned())?;
    }
    // pCPU 1 was busy, so one that is halted was stopped.
    let command = json!({ "command-line": "info registers -a" });
    let registers = machine.qmp()?.execute("human-monitor-command", command)?;
    let registers = registers.as_str().context("info registers: no text")?;
    let (all, halted) = (
        registers.matches(" HLT=").count(),
        registers.matches(" HLT=1").count(),
    );
    ensure!(
        all == 2 && halted == all,
        "{feature}: of {all} processors {halted} are halted:\n{registers}\n{}",
        machine.transcript()
    );
    Ok(())
}
