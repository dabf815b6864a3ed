// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that Pasidon runs for one exit, counted by `tests/platform/plugins/exits.c`.

use super::plugin::{self, Counted};
use super::{Figure, Results, median, timed};
use crate::demonstration;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{HOST, dsa_up, shell, vm};
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
