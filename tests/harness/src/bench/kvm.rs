// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pasidon beside KVM: the same guest (`tests/guests/exits`) on the same processor, Intel's of Bochs, under Pasidon and
//! under the Linux guest's own kernel with its KVM.
//!
//! Principle: both are counted by the processor (`tests/cpu/engine/exits.cc`), at the one instruction of the guest that
//! exits, from the exit to the entry that follows it. Medians: a hypervisor that is interrupted on the way runs more.
//! What KVM can do in the kernel it does there (`tests/guests/exits-on-kvm`).

use super::{Figure, Results};
use crate::line::{Console, PROMPT};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{BOOT_TIMEOUT, COMMAND_TIMEOUT};
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// The guest on Pasidon.
const CONFIGURATION: &str = "[host]\nconsole = \"framed\"\n\n\
    [[vm]]\nname = \"exits\"\nmemory = \"16M\"\nkernel = \"guests/exits\"\n";
/// Names the file that the processor counts exits into.
const VARIABLE: &str = "PASIDON_ENGINE_EXITS";
/// Kinds of exits: the guest's names of them, and ours.
const KINDS: [(&str, &str); 4] = [
    ("cpuid", "CPUID"),
    ("hypercall", "null hypercall"),
    ("port", "port read"),
    ("mmio", "trapped MMIO read"),
];
/// Of so many the code may be another one: KVM answers the first access to a page of device memory by an entry with
/// which all others are misconfigurations.
const OTHER: u64 = 1;
/// Words for KVM's kernel, around what Bochs 3.0 lacks: XFD, without which Linux sets up half of AMX, and exits from guests
/// with four levels of tables to a host with five.
const WORDS: &str = "clearcpuid=600 no5lvl pasidon.name=kvm";
const MODULES: [&str; 3] = ["irqbypass.ko", "kvm.ko", "kvm-intel.ko"];

/// What an exit comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Of the hypervisor, from the exit to the next entry.
    instructions: f64,
    /// Of the time-stamp counter, for the guest.
    ticks: f64,
}

/// Counts.
pub fn kvm(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    let here = on_pasidon(&lab, &folder.join("exits-pasidon.log"))?;
    let there = on_kvm(&lab, &folder.join("exits-kvm.log"))?;
    Ok(figures(&here, &there).into())
}

fn on_pasidon(lab: &Lab<'_>, log: &Path) -> Result<Vec<Cost>> {
    let exits = lab.workshop.exits()?;
    let machine = lab.pasidon_with(
        CONFIGURATION,
        &[],
        |image| image.file("guests/exits", &exits),
        |platform| counted(platform, log),
    )?;
    let said = said(machine.console("exits")?)?;
    costs(machine, &said, log)
}

fn on_kvm(lab: &Lab<'_>, log: &Path) -> Result<Vec<Cost>> {
    let initrd = lab.workshop.kvm()?;
    let machine = lab.bare_linux_with(&initrd, WORDS, |platform| counted(platform, log))?;
    let console = machine.log();
    console.expect("^PASIDON guest kvm up$", BOOT_TIMEOUT)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    for module in MODULES {
        let command = format!("insmod /lib/modules/{module} && echo loaded");
        let said = console.command(&command, COMMAND_TIMEOUT)?;
        ensure!(said.contains("loaded"), "{command}: {said}\n{}", machine.transcript());
    }
    console.send_line("exits-on-kvm /lib/exits")?;
    let said = said(console)?;
    costs(machine, &said, log)
}

fn counted(platform: Platform, log: &Path) -> Platform {
    platform.variable(VARIABLE, log)
}

/// A line of the guest: `PASIDON exit kind=KIND at=RIP ticks=T rounds=R repeats=N`.
#[derive(Debug, PartialEq)]
struct Said {
    at: u64,
    ticks: f64,
    /// Rounds times repeats.
    times: u64,
}

/// What the guest says, in the order of the kinds.
fn said(console: Console<'_>) -> Result<Vec<Said>> {
    let line = |(kind, _): &(&str, &str)| {
        let pattern =
            format!(r"^PASIDON exit kind={kind} at=([0-9a-f]+) ticks=(\d+) rounds=(\d+) repeats=(\d+)$");
        let groups = console.expect(&pattern, BOOT_TIMEOUT)?;
        Ok(Said {
            at: u64::from_str_radix(&groups[1], 16)?,
            ticks: groups[2].parse()?,
            times: groups[3].parse::<u64>()? * groups[4].parse::<u64>()?,
        })
    };
    KINDS.iter().map(line).collect()
}

/// Ends the machine, so that its processor writes down what it has counted, and looks up what the guest has done.
fn costs(machine: Machine, said: &[Said], log: &Path) -> Result<Vec<Cost>> {
    machine.quit()?;
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let exits = exits(&text)?;
    let cost = |(said, (_, name)): (&Said, &(&str, &str))| {
        cost(said, &exits).with_context(|| format!("{name}, see {}", log.display()))
    };
    said.iter().zip(&KINDS).map(cost).collect()
}

/// What the guest's instruction costs by the exit code that it nearly always has. Others are interrupts on the way.
fn cost(said: &Said, exits: &[Exit]) -> Result<Cost> {
    let here = exits.iter().filter(|exit| exit.at == said.at);
    let most = here.max_by_key(|exit| exit.times).context("the instruction never exited")?;
    let right = said.times - OTHER..=said.times;
    ensure!(right.contains(&most.times), "wanted {} exits, the processor counted {}", said.times, most.times);
    Ok(Cost { instructions: most.median, ticks: said.ticks })
}

/// A line that the processor has written: `exit CODE at RIP times N minimum A median B maximum C`.
#[derive(Debug, PartialEq)]
struct Exit {
    at: u64,
    times: u64,
    median: f64,
}

fn exits(log: &str) -> Result<Vec<Exit>> {
    let exit = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let ["exit", _, "at", at, "times", times, "minimum", _, "median", median, "maximum", _] = words[..]
        else {
            return None;
        };
        let at = u64::from_str_radix(at, 16).ok()?;
        Some(Exit { at, times: times.parse().ok()?, median: median.parse().ok()? })
    };
    log.lines().map(|line| exit(line).with_context(|| format!("the processor wrote: {line}"))).collect()
}

fn figures(pasidon: &[Cost], kvm: &[Cost]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ((_, name), (here, there)) in KINDS.iter().zip(pasidon.iter().zip(kvm)) {
        let mut add =
            |what: &str, value, unit| figures.push(Figure::new(format!("{name}: {what}"), value, unit));
        add("Pasidon", here.instructions, "instructions");
        add("KVM", there.instructions, "instructions");
        add("Pasidon against KVM", here.instructions / there.instructions, "ratio");
        add("its guest on Pasidon", here.ticks, "ticks");
        add("its guest on KVM", there.ticks, "ticks");
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_wrote_is_read_whole_or_refused() {
        let line = "exit 1e at 200085 times 3000 minimum 600 median 612 maximum 9000\n";
        assert_eq!(exits(line).unwrap(), [Exit { at: 0x20_0085, times: 3000, median: 612.0 }]);
        assert!(exits(&line[..40]).is_err());
        assert!(exits(&line.replace("612", "?")).is_err());
    }

    #[test]
    fn a_cost_is_that_of_the_instruction_and_all_its_exits_are_there() {
        let exit = |at, times, median| Exit { at, times, median };
        let said = Said { at: 0x20_0095, ticks: 9.0, times: 3000 };
        let interrupted = exit(said.at, 16, 3404.0);
        let exits = [interrupted, exit(said.at, 2999, 3576.0), exit(0x20_0085, 9000, 1378.0)];
        assert_eq!(cost(&said, &exits).unwrap(), Cost { instructions: 3576.0, ticks: 9.0 });
        for lost in [exit(said.at, 2998, 1.0), exit(said.at, 3001, 1.0), exit(0x20_0085, 3000, 1.0)] {
            assert!(cost(&said, &[lost]).is_err());
        }
    }

    #[test]
    fn each_kind_stands_beside_kvms() {
        let cost = |instructions| Cost { instructions, ticks: 1.0 };
        let figures = figures(&[cost(1.0); 4], &[cost(4.0); 4]);
        assert_eq!(figures.len(), 5 * KINDS.len());
        assert_eq!(figures[2], Figure::new("CPUID: Pasidon against KVM", 0.25, "ratio"));
    }
}
