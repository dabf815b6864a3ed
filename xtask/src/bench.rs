// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: the benchmarks, as a table and as JSON.

use crate::{command, processor, setup, workspace};
use anyhow::{Context, Result, bail, ensure};
use pasidon_harness::Arch;
use pasidon_harness::bench::{self, Figure, Results};
use std::fs;

/// The benchmark that needs no machine: exits on the processors that host tests run on.
const PROCESSORS: &str = "processors";

/// Runs the benchmarks of those names on machines of `arch`, or all without names, prints the table, and writes
/// `bench-ARCH.json` into the target folder.
///
/// # Errors
/// When a machine does not do what is measured, or a figure is one that must not be; the table is printed then too.
pub fn run(arch: Arch, names: &[String]) -> Result<()> {
    let (processors, machines): (Vec<String>, Vec<String>) =
        names.iter().cloned().partition(|name| name == PROCESSORS);
    let mut results = Results::default();
    if !machines.is_empty() || names.is_empty() {
        let folder = workspace::target_dir().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        results = bench::run(
            &machines,
            arch,
            |cpu| setup::prepare(arch, cpu),
            &folder,
            |what| eprintln!("bench: {what}"),
        )?;
    }
    if arch == Arch::X86_64 && (names.is_empty() || !processors.is_empty()) {
        eprintln!("bench: {PROCESSORS}: instructions per exit on Bochs's processors, counted");
        results.figures.extend(on_processors()?);
    } else if !processors.is_empty() {
        bail!("the benchmark {PROCESSORS} is for x86_64");
    }
    let Results { figures, broken } = results;
    let path = workspace::target_dir().join(format!("bench-{arch}.json"));
    fs::write(&path, format!("{:#}\n", bench::to_json(&figures)))
        .with_context(|| format!("writing {}", path.display()))?;
    print!("{}", bench::table(&figures));
    eprintln!("bench: also in {}", path.display());
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// Has the host test that counts them print its figures.
fn on_processors() -> Result<Vec<Figure>> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--release", "--package", "pasidon-arch-x86_64", "--lib", "instructions_per_exit"]);
    cargo.args(["--", "--ignored", "--nocapture"]).env(processor::VARIABLE, processor::library()?);
    let figures = figures(&command::output(&mut cargo)?);
    ensure!(!figures.is_empty(), "the test that counts instructions per exit printed no figure");
    Ok(figures)
}

/// What lines like `instructions per CPUID, SVM: 512` tell.
fn figures(output: &str) -> Vec<Figure> {
    let figure = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        let value = value.trim().parse().ok()?;
        name.starts_with("instructions per ").then(|| Figure::new(name, value, "instructions"))
    };
    output.lines().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_what_cargo_prints() {
        let output = "running 1 test\ninstructions per CPUID, SVM: 512\ntest result: ok. 1 passed\n";
        assert_eq!(figures(output), [Figure::new("instructions per CPUID, SVM", 512.0, "instructions")]);
    }
}
