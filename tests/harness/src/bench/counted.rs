// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that Pasidon runs for one exit, counted by `tests/platform/plugins/exits.c`.

use super::plugin::{self, Counted};
use super::{Figure, Results, median, timed};
use crate::arch::Arch;
use crate::demonstration;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{HOST, check, dsa_up, shell, vm};
use crate::workshop::Workshop;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Kinds of exits by their numbers in `tests/guests/linux/modules/exit_cost.c`.
const KINDS: [(u32, &str); 5] = [
    (1, "CPUID"),
    (2, "port read"),
    (3, "null hypercall"),
    (4, "trapped MMIO read"),
    (5, "identification register read"),
];
/// How often a round of that module repeats the exit.
const REPEATS: f64 = 200.0;

/// Counts.
pub fn exits(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    let log = folder.join("exits.log");
    let arguments = plugin::arguments(workshop, &log)?;
    let configuration = [HOST, &vm("alpha", 1, "")].concat();
    let machine = lab.pasidon(&configuration, |p| demonstration::platform(p).arguments(arguments))?;
    let alpha = shell(&machine, "alpha")?;
    dsa_up(&machine, alpha)?;
    timed::exit_costs(&machine, alpha)?;
    // QEMU writes its log out when it ends.
    drop(machine);
    Ok(figures(plugin::read(&log)?)?.into())
}

fn figures(rounds: BTreeMap<u32, Vec<Counted>>) -> Result<Vec<Figure>> {
    let figure = |(kind, rounds): (u32, Vec<Counted>)| {
        let (_, name) = KINDS
            .iter()
            .find(|(place, _)| *place == kind)
            .with_context(|| format!("the plugin saw an exit of an unknown kind {kind}"))?;
        let each = rounds.iter().map(|round| round.hypervisor / REPEATS);
        Ok(Figure::new(format!("instructions per {name}"), median(each.collect()), "instructions"))
    };
    rounds.into_iter().map(figure).collect()
}

/// Kinds of rounds of `dsa-user count`: one store to the portal, and copies from store to completion.
const STORE: u32 = 6;
const COPIES: u32 = 7;
/// Copies of a round.
const PER_ROUND: f64 = 20.0;

/// Counts what one descriptor takes on a portal that the guest reaches directly, and on one that is trapped.
pub fn submissions(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let mut figures = Vec::new();
    for kind in ["dsa-dwq", "dsa-swq"] {
        // Behind an SMMU there is no trapped one.
        if kind == "dsa-dwq" || workshop.arch() == Arch::X86_64 {
            figures.extend(submissions_to(workshop, folder, kind)?);
        }
    }
    Ok(figures.into())
}

fn submissions_to(workshop: &dyn Workshop, folder: &Path, kind: &str) -> Result<Vec<Figure>> {
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    let log = folder.join(format!("submissions-{kind}.log"));
    let arguments = plugin::arguments(workshop, &log)?;
    let vdev = format!("  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"{kind}\"\n  entries = 8\n\n");
    let configuration = [HOST, &vm("alpha", 0, ""), &vdev].concat();
    let machine = lab.pasidon(&configuration, |p| demonstration::platform(p).arguments(arguments))?;
    let alpha = shell(&machine, "alpha")?;
    let said = check(&machine, alpha, "dsa-user count", "PASIDON dsa-user count ")?;
    let exits: u64 = demonstration::vdevs(&machine)?.iter().map(|vdev| vdev.submission_exits).sum();
    // QEMU writes its log out when it ends.
    drop(machine);
    let told = |name: &str| -> Result<f64> {
        let word = said.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.and_then(|word| word.parse().ok()).with_context(|| format!("no {name} in {said}"))
    };
    let rounds = plugin::read(&log)?;
    let counted = |kind| -> Result<f64> {
        let rounds = rounds.get(&kind).with_context(|| format!("the plugin saw no round of kind {kind}"))?;
        Ok(median(rounds.iter().map(|round| round.hypervisor).collect()))
    };
    let figure = |what: &str, value, unit| Figure::new(format!("{kind}: {what}"), value, unit);
    Ok(vec![
        figure("exits per descriptor", exits as f64 / told("copies")?, "exits"),
        figure("instructions of Pasidon for a store to the portal", counted(STORE)?, "instructions"),
        figure("the same per copy, with its completion", counted(COPIES)? / PER_ROUND, "instructions"),
        figure("a store to the portal, as its guest sees it", told("store_ticks")?, "ticks"),
        figure("a copy of 4 KiB, likewise", told("copy_ticks")?, "ticks"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_exit_has_its_figure() {
        let round = Counted { hypervisor: 200_000.0, total: 395_000.0 };
        assert_eq!(
            figures(BTreeMap::from([(1, vec![round])])).unwrap(),
            [Figure::new("instructions per CPUID", 1000.0, "instructions")]
        );
        assert!(figures(BTreeMap::from([(9, vec![round])])).is_err());
    }
}
