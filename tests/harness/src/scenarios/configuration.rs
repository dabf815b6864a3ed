// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors of the configuration: each one line with file, line, column and remedy, and the other VMs still started
//! where that is safe.

use super::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, shell, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};

/// Errors within one VM.
pub const OF_ONE_VM: Scenario = Scenario {
    name: "config-one-vm",
    about: "every configuration error within one VM is one line with place and remedy; the sound VM starts",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: one_vm,
};

/// Errors that concern everything.
pub const OF_ALL: Scenario = Scenario {
    name: "config-whole",
    about: "a configuration error that concerns everything is one line with place and remedy; no VM starts",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: whole,
};

/// One device under two names.
pub const TWINS: Scenario = Scenario {
    name: "config-twins",
    about: "two parents matching one device: a line for each, VMs that use them are refused, the others start",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let twin = "[parent.twin]\nmatch = \"8086:11fb\"\n\n";
        let configuration = [HOST, twin, &vm("uses", 1, ""), &vm("good", 0, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        shell(&machine, "good")?;
        for pattern in [
            r"pasidon\.toml:5:7: parent dsa0: .*which is parent twin too \(line 8\); .+$",
            r"pasidon\.toml:8:9: parent twin: .*which is parent dsa0 too \(line 5\); .+$",
            r"pasidon\.toml:\d+:\d+: vm uses: .*parent dsa0 was refused; .+$",
        ] {
            said_once(&machine, pattern)?;
        }
        only_runs(&machine, "good")
    },
};

/// A piece of a configuration that must be refused.
struct Mistake {
    /// The piece.
    text: String,
    /// Where in it the error line must point: the last occurrence of these characters.
    at: &'static str,
    /// What the line must say, as a regular expression.
    says: &'static str,
}

fn one_vm(lab: &Lab<'_>) -> Result<()> {
    let with = |name: &str, key: &str| vm(name, 0, "").replace("cmdline", &format!("{key}\ncmdline"));
    let replaced = |name: &str, from: &str, to: &str| vm(name, 0, "").replace(from, to);
    let vdev = |name: &str, from: &str, to: &str| vm(name, 1, "").replace(from, to);
    let mistake = |text: String, at, says| Mistake { text, at, says };
    let mistakes = [
        mistake(with("key", "memroy = \"1G\""), "memroy", r#"vm key: unknown key "memroy"; .*memory"#),
        mistake(replaced("kind", "\"256M\"", "256"), "256", "vm kind: memory takes .*; write memory"),
        mistake(vm("good", 0, ""), "\"good\"", "vm good: the VM on line .* has this name already; "),
        mistake(replaced("large", "256M", "512G"), "\"512G\"", "vm large: .*memory.*; "),
        mistake(
            replaced("gone", "guests/vmlinux", "guests/none"),
            "\"guests/none\"",
            "vm gone: .*guests/none.*; ",
        ),
        mistake(
            replaced("torn", "guests/vmlinux", "guests/torn"),
            "\"guests/torn\"",
            "vm torn: .*guests/torn.*; ",
        ),
        mistake(
            replaced("noinit", "initrd.img", "no.img"),
            "\"guests/no.img\"",
            "vm noinit: .*guests/no.img.*; ",
        ),
        mistake(
            vdev("parent", "\"dsa0\"", "\"dsa1\""),
            "\"dsa1\"",
            "vm parent: .*unknown parent \"dsa1\"; .*dsa0",
        ),
        mistake(vdev("slice", "dsa-dwq", "dsa-dqw"), "\"dsa-dqw\"", "vm slice: .*dsa-dqw.*; .*dsa-dwq"),
        mistake(vdev("deep", "entries = 8", "entries = 9999"), "9999", "vm deep: .*entries.*; "),
        mistake(
            vm("quota", 2, "").replace("cmdline", "pasids = 1\ncmdline"),
            "[[vm.vdev]]",
            "vm quota: 2 vdevs need 2 PASIDs, but its quota is 1; ",
        ),
        mistake(vm("ninth", 2, ""), "\"dsa-dwq\"", "vm ninth: .*work queue.*; "),
    ];
    // The sound VM has seven of the eight work queues there are; the second of `ninth` is one too many.
    let mut configuration = [HOST, &vm("good", 7, "")].concat();
    let mut wanted = Vec::new();
    for mistake in &mistakes {
        // Of two equal vdevs the second one is to blame.
        let place = mistake.text.rfind(mistake.at).context("a mistake that is not in its text")?;
        let (line, column) = position(&[configuration.as_str(), &mistake.text[..place]].concat());
        wanted.push(format!("pasidon\\.toml:{line}:{column}: {}.*$", mistake.says));
        configuration += &mistake.text;
    }
    let machine = lab.pasidon_with(
        &configuration,
        &[],
        |image| image.text("guests/torn", "no kernel at all"),
        demonstration::platform,
    )?;
    shell(&machine, "good")?;
    for pattern in &wanted {
        said_once(&machine, pattern)?;
    }
    only_runs(&machine, "good")?;
    // The monitor knows the refused one, too, and why.
    let torn = machine.monitor("vm torn")?;
    let why = torn["reason"].as_str().unwrap_or_default();
    ensure!(torn["state"] == "refused" && why.contains("guests/torn"), "vm torn: {torn}");
    refuses_a_long_line(&machine)
}

/// A line that is too long is refused whole, although what fits of it is a command; in JSON, as it asks for at its
/// end.
fn refuses_a_long_line(machine: &Machine) -> Result<()> {
    let refused = machine.monitor(&format!("vm good pause{:250}", "")).err();
    let refused = refused.context("a line of more than 256 characters was taken")?;
    ensure!(refused.to_string().contains("more than 256"), "{refused}");
    only_runs(machine, "good")
}

/// The log has exactly one line that fits.
fn said_once(machine: &Machine, pattern: &str) -> Result<()> {
    let found = machine.log().count(pattern)?;
    ensure!(found == 1, "wanted one line /{pattern}/, found {found}\n{}", machine.transcript());
    Ok(())
}

/// No other VM than that one runs.
fn only_runs(machine: &Machine, name: &str) -> Result<()> {
    let vms = machine.monitor("vms")?;
    let running = |vm: &&serde_json::Value| vm["state"] == "running";
    let running: Vec<_> = vms.as_array().context("vms: not a list")?.iter().filter(running).collect();
    ensure!(running.len() == 1 && running[0]["name"] == name, "only {name} may run: {vms}");
    Ok(())
}

fn whole(lab: &Lab<'_>) -> Result<()> {
    let sound = vm("good", 1, "");
    let cases: [(String, &str); 3] = [
        (format!("{HOST}[[vm]]\nname = \"open\nmemory = \"1G\"\n"), r"pasidon\.toml:8:\d+: syntax: .*$"),
        (HOST.to_owned(), r"pasidon\.toml:1:1: there is no VM; .*$"),
        (
            format!("{HOST}[hots]\nlog = \"info\"\n{sound}"),
            r#"pasidon\.toml:7:2: unknown key "hots"; .*host.*$"#,
        ),
    ];
    for (configuration, pattern) in cases {
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        machine.log().expect(pattern, BOOT_TIMEOUT)?;
        nothing_started(&machine)?;
    }
    Ok(())
}

/// After its error line Pasidon says that it stops, and no guest has said anything.
fn nothing_started(machine: &Machine) -> Result<()> {
    machine.log().expect("[Nn]othing .*started", COMMAND_TIMEOUT)?;
    for vm in machine.vms() {
        let said = machine.console(vm)?.count("(?s).")?;
        ensure!(said == 0, "VM {vm} runs in spite of the error\n{}", machine.transcript());
    }
    Ok(())
}

/// Line and column, from 1, of the character behind `text`.
fn position(text: &str) -> (usize, usize) {
    let line = text.matches('\n').count() + 1;
    let column = text.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one() {
        assert_eq!(position(""), (1, 1));
        assert_eq!(position("a = 1\nb = "), (2, 5));
    }
}
