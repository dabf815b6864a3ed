// SPDX-License-Identifier: MIT OR Apache-2.0
//! Benchmarks: what sharing costs, against the same kernel on the same platform without a hypervisor.
//!
//! Principle: what can be counted is counted (instructions, exits, invalidation commands), since TCG's time says
//! little about hardware; times are given as medians of several runs, and against a reference taken in the same run.

mod counted;
mod timed;

use crate::workshop::Workshop;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

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

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure {
            name: name.into(),
            value,
            unit,
        }
    }
}

/// Runs all benchmarks, with disk images in `folder`, telling `say` what is being done.
///
/// # Errors
/// When a machine does not do what is measured.
pub fn run(workshop: &dyn Workshop, folder: &Path, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    let efi = std::fs::metadata(workshop.application(&[])?.efi)?.len();
    let mut figures = vec![Figure::new(
        "size of the EFI application",
        efi as f64 / 1024.0,
        "KiB",
    )];
    say("the platform without Pasidon");
    let bare = timed::bare(workshop)?;
    say("two guests on Pasidon, one of them copying");
    figures.extend(timed::guests(workshop, folder, bare)?);
    say("instructions per exit, counted");
    figures.extend(counted::exits(workshop, folder)?);
    Ok(figures)
}

/// The figures as an aligned table.
pub fn table(figures: &[Figure]) -> String {
    let value = |figure: &Figure| match figure.value {
        value if value.fract() == 0.0 => format!("{value}"),
        value => format!("{value:.3}"),
    };
    let names = figures
        .iter()
        .map(|figure| figure.name.chars().count())
        .max()
        .unwrap_or_default();
    let values = figures
        .iter()
        .map(|figure| value(figure).len())
        .max()
        .unwrap_or_default();
    let line = |figure: &Figure| {
        format!(
            "{:names$}  {:>values$} {}\n",
            figure.name,
            value(figure),
            figure.unit
        )
    };
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
