// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counting instructions with `tests/platform/plugins/exits.c`: code under test runs markers, the plugin notes its
//! counts at each.

use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// A round is marked with this, its kind and whether it starts (0) or ends (1).
const MARKER: u32 = 0x5041_0000;

/// Instructions of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Those that ran while no guest did.
    pub hypervisor: f64,
    /// All.
    pub total: f64,
}

/// The arguments of QEMU that make it count into the file `log`.
pub fn arguments(workshop: &dyn Workshop, log: &Path) -> Result<Vec<OsString>> {
    let plugin = workshop.plugin("exits")?;
    Ok(vec!["-plugin".into(), plugin.into(), "-d".into(), "plugin".into(), "-D".into(), log.into()])
}

/// What was counted into the file `log`, by kind. The machine must have ended.
pub fn read(log: &Path) -> Result<BTreeMap<u32, Vec<Counted>>> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    rounds(&text)
}

/// Every round, by its kind.
pub(super) fn rounds(log: &str) -> Result<BTreeMap<u32, Vec<Counted>>> {
    let mut rounds: BTreeMap<u32, Vec<Counted>> = BTreeMap::new();
    let mut started: Option<(u32, &str, Counted)> = None;
    for line in log.lines() {
        // "marker 50410100 vcpu 0 hypervisor 123 total 456"
        let words: Vec<&str> = line.split(' ').collect();
        let ["marker", number, "vcpu", vcpu, "hypervisor", hypervisor, "total", total] = words[..] else {
            continue;
        };
        let number = u32::from_str_radix(number, 16)? - MARKER;
        let (kind, end) = (number >> 8, number & 1 == 1);
        let now = Counted { hypervisor: hypervisor.parse()?, total: total.parse()? };
        match started.take() {
            // A round that was moved to another processor is not counted.
            Some((begun, on, before)) if end && begun == kind && on == vcpu => {
                rounds.entry(kind).or_default().push(Counted {
                    hypervisor: now.hypervisor - before.hypervisor,
                    total: now.total - before.total,
                });
            }
            _ if !end => started = Some((kind, vcpu, now)),
            _ => {}
        }
    }
    ensure!(!rounds.is_empty(), "the plugin saw no marker");
    Ok(rounds)
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
        let round = Counted { hypervisor: 200_000.0, total: 395_000.0 };
        assert_eq!(rounds(log).unwrap(), BTreeMap::from([(1, vec![round])]));
        assert!(rounds("").is_err());
    }
}
