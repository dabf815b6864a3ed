// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said when Pasidon itself fails: builds that fail on purpose must say what, where and how they got there,
//! and every processor must stand still.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, until, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result};
use serde_json::json;

/// A panic and two exceptions.
pub const REPORT: Scenario = Scenario {
    name: "panic-report",
    about: "a panic, a null read and a stack overflow: cause, symbolised backtrace, every pCPU stopped",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = Words::of(lab.arch());
        fails(
            lab,
            "panic",
            &[
                &format!(
                    r"^Pasidon stops on pCPU 0: panic at boot/src/provoke\.rs:\d+:\d+: provoked .* {}: 42$",
                    words.kick
                ),
                words.registers,
                r"^backtrace, image at 0x[0-9a-f]+:$",
                r"^ +\d+  image\+0x[0-9a-f]+  pasidon::provoke::in_handler\+0x[0-9a-f]+$",
                r"^ +\d+  image\+0x[0-9a-f]+  pasidon_trap\+0x[0-9a-f]+$",
                OUTERMOST,
            ],
        )?;
        fails(
            lab,
            "null-read",
            &[
                &format!("^Pasidon stops on pCPU 0: {}: read of 0x18, a null pointer$", words.null_read),
                words.syndrome,
                r"^   0  image\+0x[0-9a-f]+  pasidon::provoke::read\+0x[0-9a-f]+$",
                OUTERMOST,
            ],
        )?;
        fails(
            lab,
            "stack-overflow",
            &[
                &format!(
                    "^Pasidon stops on pCPU 0: {}: stack overflow: 0x[0-9a-f]+ is in the guard page",
                    words.overflow
                ),
                r"^   0  image\+0x[0-9a-f]+  pasidon::provoke::deeper\+0x[0-9a-f]+$",
                r"^ +… \d+ frames …$",
                OUTERMOST,
            ],
        )
    },
};

/// What the report says by the names of the processor's own specification.
struct Words {
    /// The vector of a kick.
    kick: &'static str,
    /// The first line of registers.
    registers: &'static str,
    /// An access that is not mapped.
    null_read: &'static str,
    /// The same where the stack is used up.
    overflow: &'static str,
    /// What the processor said about the first of these.
    syndrome: &'static str,
}

impl Words {
    fn of(arch: Arch) -> Words {
        match arch {
            Arch::X86_64 => Words {
                kick: "0xfd",
                registers: r"^  rax [0-9a-f]{16} ",
                null_read: "#PF page fault",
                overflow: "#DF double fault",
                syndrome: r"^  rflags .* vector 14  error code 0x0$",
            },
            Arch::Aarch64 => Words {
                kick: "0x0",
                registers: r"^  x0  [0-9a-f]{16} ",
                null_read: "data abort",
                overflow: "data abort",
                syndrome: r"^  esr 0x96000006  far 0x18  spsr 0x",
            },
        }
    }
}

/// The function that the first pCPU's stack begins with.
const OUTERMOST: &str = r"^ +\d+  image\+0x[0-9a-f]+  pasidon::machine::take_over\+0x[0-9a-f]+\npCPU 1";
/// How the report goes on after the backtrace.
const END: [&str; 3] = [
    r" stopped at pasidon::provoke::busy\+0x[0-9a-f]+$",
    "^provoked: a line of context$",
    "^Pasidon stands still until the machine is reset$",
];

/// The build that fails in the way of that name says those lines, in that order, and then no processor runs.
fn fails(lab: &Lab<'_>, failure: &str, patterns: &[&str]) -> Result<()> {
    let configuration = [HOST, &vm(failure, 0, "")].concat();
    let machine = lab.pasidon_built(&configuration, &["provoke"], demonstration::platform)?;
    let (first, rest) = patterns.split_first().context("nothing to look for")?;
    machine.log().expect(first, BOOT_TIMEOUT).context(failure.to_owned())?;
    for pattern in rest.iter().chain(&END) {
        machine.log().expect(pattern, COMMAND_TIMEOUT).context(failure.to_owned())?;
    }
    stand_still(&machine, lab.arch()).with_context(|| failure.to_owned())
}

/// No processor runs any more, soon after the last line. pCPU 1 was busy, so one that stands still was stopped.
fn stand_still(machine: &Machine, arch: Arch) -> Result<()> {
    let mut qmp = machine.qmp()?;
    until(machine, COMMAND_TIMEOUT, || {
        let command = json!({ "command-line": "info registers -a" });
        let registers = qmp.execute("human-monitor-command", command)?;
        let registers = registers.as_str().context("info registers: no text")?;
        let still = match arch {
            Arch::X86_64 => registers.matches(" HLT=1").count(),
            // Nothing says so there, but all wait at the same instruction, which is not where pCPU 1 was busy.
            Arch::Aarch64 => {
                let places: Vec<&str> = registers
                    .lines()
                    .filter_map(|line| line.trim_start().strip_prefix("PC="))
                    .filter_map(|line| line.split_whitespace().next())
                    .collect();
                places.iter().filter(|place| **place == places[0]).count()
            }
        };
        Ok((still != 2).then(|| format!("of 2 processors {still} stand still:\n{registers}")))
    })
}
