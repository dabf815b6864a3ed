// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: the host crates' tests, then the scenarios.

use crate::workshop::Shop;
use crate::{check, command, setup, workspace};
use anyhow::{Result, bail};
use pasidon_harness::scenario::{self, Outcome};
use pasidon_harness::scenarios;
use std::process::Stdio;

/// Runs the scenarios of those names; without names the host tests and all scenarios.
///
/// The last line printed is `N passed, N failed`.
///
/// # Errors
/// When a name is unknown or a test failed.
pub fn run(names: &[String]) -> Result<()> {
    let chosen = scenario::select(scenarios::ALL, names)?;
    // Now, so that no scenario is blamed for the time or the failure of the set-up.
    setup::prepare()?;
    let mut total = Outcome::default();
    if names.is_empty() {
        total.passed += host_tests()?;
    }
    let folder = workspace::target_dir().join("scenarios");
    let outcome = scenario::run(&chosen, &Shop, &folder);
    total.passed += outcome.passed;
    total.failed.extend(outcome.failed);
    for name in &total.failed {
        println!("failed: {name}; again with: cargo xtask test {name}");
    }
    println!("{} passed, {} failed", total.passed, total.failed.len());
    if !total.failed.is_empty() {
        bail!("{} of the tests failed", total.failed.len());
    }
    Ok(())
}

/// Prints what there is to choose from.
pub fn list() {
    let width = scenarios::ALL
        .iter()
        .map(|scenario| scenario.name.len())
        .max()
        .unwrap_or_default();
    for scenario in scenarios::ALL {
        println!("{:width$}  {}", scenario.name, scenario.about);
    }
}

/// Runs the tests of the crates that build on the host, and returns how many there were.
fn host_tests() -> Result<usize> {
    let mut cargo = command::cargo();
    cargo
        .args(["test", "--workspace", "--exclude", check::UEFI_ONLY])
        .stderr(Stdio::inherit());
    let output = command::output_echoed(&mut cargo)?;
    // "test result: ok. 12 passed; 0 failed; …", once for each crate
    let results = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "));
    Ok(results
        .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
        .sum())
}
