// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to attach a PASID and to end it, beside one other and beside a thousand: a build that measures itself
//! (`boot/src/hypervisor/measure.rs`). It must not cost more where more are attached.

use super::plugin::{self, Counted};
use super::{Figure, Results, median};
use crate::demonstration;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{BOOT_TIMEOUT, HOST, vm};
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;

/// The build that measures.
const FEATURE: &str = "measure-attach";
/// How many others are attached, and the kinds of the markers around an attach and around an end then, as the build
/// has them.
const CASES: [(u32, [u32; 2]); 2] = [(1, [0x11, 0x12]), (1000, [0x13, 0x14])];
/// What is counted.
const WHAT: [&str; 2] = ["attach a PASID", "end a PASID"];
/// How much more instructions may run beside a thousand others than beside one.
const GROWTH: f64 = 1.05;

/// What one attach or one end comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    instructions: f64,
    commands: f64,
}

/// Measures.
pub fn attachments(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    let log = folder.join("attachments.log");
    let arguments = plugin::arguments(workshop, &log)?;
    let configuration = [HOST, &vm("alpha", 1, "")].concat();
    let machine = lab.pasidon_built(&configuration, &[FEATURE], |platform| {
        demonstration::platform(platform).arguments(arguments)
    })?;
    let mut commands = Vec::new();
    for (others, _) in CASES {
        let line = format!(r"measured: others={others} rounds=(\d+) attach=(\d+) detach=(\d+)$\n");
        let said = machine.log().expect(&line, BOOT_TIMEOUT)?;
        let number = |group: usize| said[group].parse::<f64>().context("a number of commands");
        commands.push([number(2)? / number(1)?, number(3)? / number(1)?]);
    }
    machine.log().expect("measured: end", BOOT_TIMEOUT)?;
    // QEMU writes its log out when it ends.
    drop(machine);
    let costs = costs(&commands, &plugin::read(&log)?)?;
    Ok(Results { figures: figures(&costs), broken: broken(&costs) })
}

/// By case, and then attach and end.
fn costs(commands: &[[f64; 2]], rounds: &BTreeMap<u32, Vec<Counted>>) -> Result<Vec<[Cost; 2]>> {
    let cost = |kind: u32, commands: f64| {
        let rounds = rounds.get(&kind).into_iter().flatten();
        let instructions = median(rounds.map(|round| round.total).collect());
        ensure!(instructions.is_finite(), "the plugin saw no marker of kind {kind:#x}");
        Ok(Cost { instructions, commands })
    };
    CASES
        .iter()
        .zip(commands)
        .map(|((_, kinds), commands)| Ok([cost(kinds[0], commands[0])?, cost(kinds[1], commands[1])?]))
        .collect()
}

fn figures(costs: &[[Cost; 2]]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (place, what) in WHAT.iter().enumerate() {
        for ((others, _), cost) in CASES.iter().zip(costs) {
            let Cost { instructions, commands } = cost[place];
            let name = |unit| format!("{unit} to {what}, beside {others}");
            figures.push(Figure::new(name("instructions"), instructions, "instructions"));
            figures.push(Figure::new(name("invalidation commands"), commands, "commands"));
        }
    }
    figures
}

/// What grows with the number of others.
fn broken(costs: &[[Cost; 2]]) -> Vec<String> {
    let [few, many] = costs else { return Vec::new() };
    let mut broken = Vec::new();
    for (place, what) in WHAT.iter().enumerate() {
        let (few, many) = (few[place], many[place]);
        if many.instructions > few.instructions * GROWTH || many.commands > few.commands {
            broken.push(format!(
                "to {what} costs more where more are attached: {} instructions and {} commands beside {}, {} and {} beside {}",
                few.instructions, few.commands, CASES[0].0, many.instructions, many.commands, CASES[1].0
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(instructions: f64, commands: f64) -> Cost {
        Cost { instructions, commands }
    }

    #[test]
    fn costs_come_from_the_plugin_and_from_pasidon() {
        let round = |total| Counted { hypervisor: 0.0, total };
        let mut rounds: BTreeMap<_, _> = (0x11..=0x14u32)
            .map(|kind| (kind, vec![round(9.0), round(f64::from(kind)), round(900.0)]))
            .collect();
        let commands = [[0.0, 3.0], [0.0, 4.0]];
        let expected = [[cost(17.0, 0.0), cost(18.0, 3.0)], [cost(19.0, 0.0), cost(20.0, 4.0)]];
        assert_eq!(costs(&commands, &rounds).unwrap(), expected);
        let names: Vec<_> = figures(&expected).into_iter().map(|figure| figure.name).collect();
        assert_eq!(names[0], "instructions to attach a PASID, beside 1");
        assert_eq!(names[7], "invalidation commands to end a PASID, beside 1000");
        rounds.remove(&0x13);
        assert!(costs(&commands, &rounds).is_err());
    }

    #[test]
    fn growth_is_noticed() {
        let at_one = [cost(1000.0, 0.0), cost(2000.0, 3.0)];
        assert!(broken(&[at_one, [cost(1050.0, 0.0), cost(1990.0, 3.0)]]).is_empty());
        assert_eq!(broken(&[at_one, [cost(1051.0, 0.0), cost(1990.0, 4.0)]]).len(), 2);
    }
}
