// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that Pasidon runs for one exit, counted by `tests/platform/plugins/exits.c`.

use super::{Figure, median, timed};
use crate::demonstration;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{HOST, check, shell, vm};
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// Kinds of exits by their place in `tests/guests/linux/modules/exit_cost.c`.
const KINDS: [(u32, &str); 4] = [
    (1, "CPUID"),
    (2, "port read"),
    (3, "null hypercall"),
    (4, "trapped MMIO read"),
];
/// How often a round of that module repeats the exit.
const REPEATS: f64 = 200.0;
/// A round is marked with this, its kind and whether it starts (0) or ends (1).
const MARKER: u32 = 0x5041_0000;

/// Counts.
pub fn exits(workshop: &dyn Workshop, folder: &Path) -> Result<Vec<Figure>> {
    let lab = Lab {
        workshop,
        folder: folder.to_path_buf(),
    };
    let log = folder.join("plugin.log");
    let plugin = workshop.exit_counter()?;
    let arguments: [OsString; 6] = [
        "-plugin".into(),
        plugin.into(),
        "-d".into(),
        "plugin".into(),
        "-D".into(),
        log.clone().into(),
    ];
    let configuration = [HOST, &vm("alpha", 1, "")].concat();
    let machine = lab.pasidon(&configuration, |p| {
        demonstration::platform(p).arguments(arguments)
    })?;
    let alpha = shell(&machine, "alpha")?;
    check(&machine, alpha, "dsa-up", "channel=dma0chan0")?;
    timed::exit_costs(&machine, alpha)?;
    // QEMU writes its log out when it ends.
    drop(machine);
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    figures(&text)
}

fn figures(log: &str) -> Result<Vec<Figure>> {
    let mut rounds: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let mut started = None;
    for line in log.lines() {
        // "marker 50410100 vcpu 0 hypervisor 123 total 456"
        let words: Vec<&str> = line.split(' ').collect();
        let ["marker", number, "vcpu", vcpu, "hypervisor", count, "total", _] = words[..] else {
            continue;
        };
        let number = u32::from_str_radix(number, 16)? - MARKER;
        let (kind, end, count) = (number >> 8, number & 1 == 1, count.parse::<f64>()?);
        match started.take() {
            // A round that was moved to another processor is not counted.
            Some((begun, on, before)) if end && begun == kind && on == vcpu => {
                rounds.entry(kind).or_default().push((count - before) / REPEATS);
            }
            _ if !end => started = Some((kind, vcpu, count)),
            _ => {}
        }
    }
    ensure!(!rounds.is_empty(), "the plugin saw no marker");
    let name = |kind| {
        KINDS
            .iter()
            .find(|(place, _)| *place == kind)
            .map_or("unknown", |(_, name)| name)
    };
    let figure = |(kind, values)| {
        Figure::new(
            format!("instructions per {}", name(kind)),
            median(values),
            "instructions",
        )
    };
    Ok(rounds.into_iter().map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_taken_from_the_plugins_log() {
        let log = "marker 50410100 vcpu 0 hypervisor 1000 total 5000\n\
                   marker 50410101 vcpu 0 hypervisor 201000 total 400000\n\
                   something else\n\
                   marker 50410400 vcpu 0 hypervisor 0 total 0\n\
                   marker 50410401 vcpu 1 hypervisor 7 total 9\n";
        assert_eq!(
            figures(log).unwrap(),
            [Figure::new("instructions per CPUID", 1000.0, "instructions")]
        );
        assert!(figures("").is_err());
    }
}
