// SPDX-License-Identifier: MIT OR Apache-2.0
//! Benchmarks: what sharing costs, against the same kernel on the same platform without a hypervisor.
//!
//! Principle: what can be counted is counted (instructions, exits, invalidation commands), since TCG's time says
//! little about hardware; times are given as medians of several runs, and against a reference taken in the same run.

mod attached;
mod counted;
mod crowds;
mod kvm;
mod plugin;
mod timed;

use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::workshop::Workshop;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// What some benchmarks came to.
#[derive(Debug, Default)]
pub struct Results {
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What must not be so, a line for each.
    pub broken: Vec<String>,
}

impl From<Vec<Figure>> for Results {
    fn from(figures: Vec<Figure>) -> Results {
        Results { figures, broken: Vec::new() }
    }
}

impl Figure {
    /// So much of `name`, in `unit`.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { name: name.into(), value, unit }
    }
}

/// One benchmark, runnable by itself.
struct Benchmark {
    name: &'static str,
    /// What it does.
    about: &'static str,
    /// The architectures that have what it measures.
    arches: &'static [Arch],
    /// The processors of its machines.
    cpu: Cpu,
    run: fn(&dyn Workshop, &Path) -> Result<Results>,
}

/// All of them, in the order they run.
const ALL: &[Benchmark] = &[
    Benchmark {
        name: "guests",
        about: "the platform without Pasidon, then two guests on it, one of them copying",
        arches: Arch::ALL,
        cpu: Cpu::Tcg,
        run: timed::guests,
    },
    Benchmark {
        name: "exits",
        about: "instructions per exit, counted",
        arches: Arch::ALL,
        cpu: Cpu::Tcg,
        run: counted::exits,
    },
    Benchmark {
        name: "submissions",
        about: "a descriptor on a portal that is the guest's, and on one that is trapped, counted",
        arches: Arch::ALL,
        cpu: Cpu::Tcg,
        run: counted::submissions,
    },
    Benchmark {
        name: "crowds",
        about: "8, 64 and 1,023 vdevs that share a queue: what they take of Pasidon",
        arches: &[Arch::X86_64],
        cpu: Cpu::Tcg,
        run: crowds::crowds,
    },
    Benchmark {
        name: "attachments",
        about: "attaching and ending a PASID beside 1 and beside 1,000 others, counted",
        arches: Arch::ALL,
        cpu: Cpu::Tcg,
        run: attached::attachments,
    },
    Benchmark {
        name: "kvm",
        about: "instructions per exit beside those of Linux's KVM, on VMX",
        arches: &[Arch::X86_64],
        cpu: Cpu::Vmx,
        run: kvm::kvm,
    },
];

/// Runs the benchmarks of those names that are for `arch`, or all without names, with machines from the workshop that
/// there is for their processors and disk images in `folder`, telling `say` what is being done.
///
/// # Errors
/// When there is none of a name on `arch`, or a machine does not do what is measured.
pub fn run<W: Workshop>(
    names: &[String],
    arch: Arch,
    workshop: impl Fn(Cpu) -> Result<W>,
    folder: &Path,
    say: impl Fn(&str),
) -> Result<Results> {
    let here: Vec<_> = ALL.iter().filter(|one| one.arches.contains(&arch)).collect();
    if let Some(name) = names.iter().find(|name| here.iter().all(|one| one.name != **name)) {
        let all: Vec<_> = here.iter().map(|one| one.name).collect();
        bail!("no benchmark {name} on {arch}; there are: {}", all.join(", "));
    }
    let chosen: Vec<_> = here
        .into_iter()
        .filter(|one| names.is_empty() || names.iter().any(|name| name == one.name))
        .collect();
    let mut workshops: Vec<(Cpu, W)> = Vec::new();
    let mut results = Results::default();
    for (place, one) in chosen.iter().enumerate() {
        let found = match workshops.iter().position(|(cpu, _)| *cpu == one.cpu) {
            Some(found) => found,
            None => {
                workshops.push((one.cpu, workshop(one.cpu)?));
                workshops.len() - 1
            }
        };
        let (_, workshop) = &workshops[found];
        say(&format!("{} ({} of {}): {}", one.name, place + 1, chosen.len(), one.about));
        let started = Instant::now();
        let more = (one.run)(workshop, folder)?;
        say(&format!("{}: {:.0} s", one.name, started.elapsed().as_secs_f32()));
        results.figures.extend(more.figures);
        results.broken.extend(more.broken);
    }
    Ok(results)
}

/// The figures as an aligned table.
pub fn table(figures: &[Figure]) -> String {
    let value = |figure: &Figure| match figure.value {
        value if value.fract() == 0.0 => format!("{value}"),
        value => format!("{value:.3}"),
    };
    let names = figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or_default();
    let values = figures.iter().map(|figure| value(figure).len()).max().unwrap_or_default();
    let line =
        |figure: &Figure| format!("{:names$}  {:>values$} {}\n", figure.name, value(figure), figure.unit);
    figures.iter().map(line).collect()
}

/// The figures for programs.
pub fn to_json(figures: &[Figure]) -> Value {
    let entry = |figure: &Figure| json!({ "name": figure.name, "value": figure.value, "unit": figure.unit });
    figures.iter().map(entry).collect()
}

/// The middle one of some values; of an even number of them the upper of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_the_median_is_the_middle_one() {
        let figures = [Figure::new("a", 1.0, "s"), Figure::new("longer", 10.25, "exits")];
        assert_eq!(table(&figures), "a            1 s\nlonger  10.250 exits\n");
        assert_eq!(to_json(&figures)[1]["value"], 10.25);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
