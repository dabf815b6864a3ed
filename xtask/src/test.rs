// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: the host crates' tests, then the scenarios.

use crate::{check, command, processor, setup, workspace};
use anyhow::{Result, bail};
use pasidon_harness::scenario::{self, Failure, Outcome};
use pasidon_harness::{Arch, Cpu, scenarios};
use std::num::NonZero;
use std::thread;

/// What stands for the host tests among the names of scenarios.
const HOST: &str = "host";

/// How many scenarios run at the same time at most, unless somebody says: the QEMU of one takes up to 1.2 GB of memory.
const MOST_AT_ONCE: NonZero<usize> = NonZero::new(4).unwrap();

/// Runs the scenarios of those names on machines of `arch` with processors `cpu`, that many `at_once`; without names the
/// host tests and all scenarios, or on Bochs's processors those that are for them.
///
/// The last line printed is `N passed, N failed`.
///
/// # Errors
/// When a name is unknown or a test failed.
pub fn run(names: &[String], arch: Arch, cpu: Cpu, at_once: NonZero<usize>) -> Result<()> {
    let for_bochs: Vec<String> = scenarios::ON_BOCHS.iter().map(|name| (*name).to_owned()).collect();
    let names = if names.is_empty() && cpu.bochs_model().is_some() { &for_bochs } else { names };
    let host = names.is_empty() || names.iter().any(|name| name == HOST);
    let wanted: Vec<String> = names.iter().filter(|name| *name != HOST).cloned().collect();
    let mut chosen = match names.is_empty() || !wanted.is_empty() {
        true => scenario::select(scenarios::ALL, &wanted, arch, cpu)?,
        false => Vec::new(),
    };
    let rank = |name| scenarios::LONGEST.iter().position(|longest| *longest == name);
    chosen.sort_by_key(|scenario| rank(scenario.name).unwrap_or(usize::MAX));
    let mut total = Outcome::default();
    let mut failed = 0;
    if host {
        let counted = host_tests()?;
        total.passed += counted.passed;
        failed += counted.failed;
        if counted.failed > 0 {
            total.failed.push(Failure { name: HOST, why: format!("{} of cargo's tests", counted.failed) });
        }
    }
    if !chosen.is_empty() {
        // Now, so that no scenario is blamed for the time or the failure of the set-up.
        let shop = setup::prepare(arch, cpu)?;
        let folder = workspace::target_dir().join("scenarios");
        let outcome = scenario::run(&chosen, &shop, &folder, at_once);
        total.passed += outcome.passed;
        failed += outcome.failed.len();
        total.failed.extend(outcome.failed);
    }
    for Failure { name, why } in &total.failed {
        println!("failed: {name}: {why}");
        println!("  again with: cargo xtask test --arch {arch}{} {name}", chosen_cpu(cpu));
    }
    println!("{} passed, {failed} failed", total.passed);
    if failed > 0 {
        bail!("{failed} of the tests failed");
    }
    Ok(())
}

/// The option that chooses those processors, where they are not the ordinary ones.
fn chosen_cpu(cpu: Cpu) -> String {
    if cpu == Cpu::default() { String::new() } else { format!(" --cpu {cpu}") }
}

/// How many scenarios run at the same time unless somebody says: one for each processor of this computer, since a machine
/// keeps hardly more than one busy while its firmware starts, but no more than [`MOST_AT_ONCE`].
pub fn scenarios_at_once() -> NonZero<usize> {
    thread::available_parallelism().map_or(NonZero::<usize>::MIN, |processors| processors.min(MOST_AT_ONCE))
}

/// Prints what there is to choose from.
pub fn list() {
    let scenarios = scenarios::ALL.iter().map(|scenario| {
        let arches = names(scenario.arches);
        let on =
            if scenario.cpus == Cpu::ALL { arches } else { format!("{arches} ({})", names(scenario.cpus)) };
        (scenario.name, scenario.about, on)
    });
    let host = "the tests of the crates that build on the host";
    let all: Vec<_> = std::iter::once((HOST, host, "any".to_owned())).chain(scenarios).collect();
    let width = all.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
    let machines = all.iter().map(|(.., on)| on.len()).max().unwrap_or_default();
    for (name, about, on) in all {
        println!("{name:width$}  {on:machines$}  {about}");
    }
}

fn names(of: &[impl ToString]) -> String {
    let names: Vec<String> = of.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// How many of the host tests passed and failed.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    passed: usize,
    failed: usize,
}

/// Runs the tests of the crates that build on the host. One that does not compile counts as one that failed.
fn host_tests() -> Result<Counted> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-fail-fast", "--workspace", "--exclude", check::UEFI_ONLY]);
    cargo.env(processor::VARIABLE, processor::library()?);
    let (output, succeeded) = command::output_echoed(&mut cargo)?;
    let mut counted = count(&output);
    if !succeeded && counted.failed == 0 {
        counted.failed = 1;
    }
    Ok(counted)
}

/// Adds up cargo's lines `test result: ok. 12 passed; 0 failed; …`, one for each crate.
fn count(output: &str) -> Counted {
    let mut counted = Counted::default();
    for line in output.lines() {
        let words: Vec<&str> = line.split([' ', ';']).collect();
        if let ["test", "result:", _, passed, "passed", "", failed, "failed", ..] = words[..] {
            counted.passed += passed.parse().unwrap_or(0);
            counted.failed += failed.parse().unwrap_or(0);
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_crates_are_added_up() {
        let output = "running 2 tests\ntest a ... ok\n\
                      test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                      test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(output), Counted { passed: 5, failed: 1 });
    }
}
