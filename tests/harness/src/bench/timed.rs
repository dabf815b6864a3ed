// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures that depend on time, and those that Pasidon counts itself.

use super::{Figure, Results, median};
use crate::demonstration;
use crate::line::Console;
use crate::machine::Machine;
use crate::scenario::Lab;
use crate::scenarios::pasidon::{BOOT_TIMEOUT, HOST, check, copies, dsa_up, named, shell, vm};
use crate::workshop::Workshop;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Copies of one run.
const COPIES: u64 = 2000;
/// Runs whose median counts.
const RUNS: usize = 11;

/// The platform without Pasidon.
struct Bare {
    /// Its accelerator is ready to copy.
    machine: Machine,
    /// From the kernel's first line to its init.
    kernel_to_init: Duration,
}

/// Starts the reference.
fn bare(workshop: &dyn Workshop) -> Result<Bare> {
    let lab = Lab { workshop, folder: Default::default() };
    let words = format!("{} pasidon.name=plain", lab.arch().words_for_bare_accelerator());
    let machine = lab.bare_linux(&words, |p| p.dsa("device-id=0x0b25"))?;
    let console = machine.log();
    let kernel_to_init = kernel_to_init(console, "plain")?;
    console.expect(crate::line::PROMPT, BOOT_TIMEOUT)?;
    dsa_up(&machine, console)?;
    Ok(Bare { machine, kernel_to_init })
}

/// Measures Pasidon with two guests, and the reference.
pub fn guests(workshop: &dyn Workshop, folder: &Path) -> Result<Results> {
    let bare = bare(workshop)?;
    let lab = Lab { workshop, folder: folder.to_path_buf() };
    // As many messages as the bare platform's kernel prints.
    let guest = |name| vm(name, 1, "loglevel=7");
    let configuration = [HOST, &guest("alpha"), &guest("beta")].concat();
    let machine = lab.pasidon(&configuration, demonstration::platform)?;
    let log = machine.log();
    log.expect("Pasidon", BOOT_TIMEOUT)?;
    let handed_over = log.time_of_match();
    let efi = fs::metadata(workshop.application(&[])?.efi)?.len();
    let mut figures = vec![
        Figure::new("size of the EFI application", efi as f64 / 1024.0, "KiB"),
        Figure::new("bare platform: kernel's first line to init", bare.kernel_to_init.as_secs_f64(), "s"),
    ];
    for name in ["alpha", "beta"] {
        let console = machine.console(name)?;
        let kernel = kernel_to_init(console, name)?;
        let all = console.time_of_match().saturating_sub(handed_over);
        figures.push(Figure::new(format!("{name}: firmware hand-over to init"), all.as_secs_f64(), "s"));
        figures.push(Figure::new(format!("{name}: kernel's first line to init"), kernel.as_secs_f64(), "s"));
    }
    let alpha = machine.console("alpha")?;
    alpha.expect(crate::line::PROMPT, BOOT_TIMEOUT)?;
    dsa_up(&machine, alpha)?;
    let Compared { here, bare, ratio, exits } = compare(&machine, alpha, &bare.machine)?;
    let descriptors = (COPIES * RUNS as u64) as f64;
    let submission: u64 = demonstration::vdevs(&machine)?.iter().map(|vdev| vdev.submission_exits).sum();
    figures.push(Figure::new("exits per submitted descriptor", submission as f64 / descriptors, "exits"));
    figures.push(Figure::new("all exits per copy, of whatever kind", exits as f64 / descriptors, "exits"));
    figures.push(Figure::new("copies in one guest", here, "copies/s"));
    figures.push(Figure::new("copies on the bare platform", bare, "copies/s"));
    figures.push(Figure::new("one guest against the bare platform", ratio, "ratio"));
    for (kind, ticks) in exit_costs(&machine, alpha)? {
        figures.push(Figure::new(format!("cost of an exit to its guest: {kind}"), ticks, "ticks"));
    }
    figures.extend(end_and_start(&machine)?);
    Ok(figures.into())
}

/// Waits for the guest's init, and says how long the kernel took to get there.
fn kernel_to_init(console: Console<'_>, name: &str) -> Result<Duration> {
    console.expect("Linux version", BOOT_TIMEOUT)?;
    let kernel = console.time_of_match();
    console.expect(&format!("^PASIDON guest {name} up$"), BOOT_TIMEOUT)?;
    Ok(console.time_of_match().saturating_sub(kernel))
}

/// How fast a guest copies, and the bare platform: medians.
struct Compared {
    here: f64,
    bare: f64,
    ratio: f64,
    /// All exits of alpha meanwhile.
    exits: u64,
}

/// Compares a guest with the bare platform: by turns, since the host may be faster at one time than at another. All runs
/// must be without a failure.
fn compare(machine: &Machine, guest: Console<'_>, bare: &Machine) -> Result<Compared> {
    let rate =
        |machine, console| -> Result<f64> { Ok(copies(machine, console, COPIES)?.per_second.parse()?) };
    let (mut there, mut here, mut total) = (Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        there.push(rate(bare, bare.log())?);
        let before = exits(machine)?;
        here.push(rate(machine, guest)?);
        total += exits(machine)? - before;
    }
    let ratios = here.iter().zip(&there).map(|(here, there)| here / there).collect();
    Ok(Compared { ratio: median(ratios), here: median(here), bare: median(there), exits: total })
}

/// What `exit-cost` in the guest prints.
pub fn exit_costs(machine: &Machine, console: Console<'_>) -> Result<Vec<(String, f64)>> {
    let said = check(machine, console, "exit-cost hypercall=1", "PASIDON cost done")?;
    let lines = said.lines().filter_map(|line| line.strip_prefix("PASIDON cost kind="));
    let cost = |line: &str| {
        let (kind, rest) = line.split_once(" ticks=")?;
        Some((kind.to_owned(), rest.split(' ').next()?.parse().ok()?))
    };
    lines.map(|line| cost(line).with_context(|| format!("exit-cost: {line}"))).collect()
}

/// All exits of alpha.
fn exits(machine: &Machine) -> Result<u64> {
    let vm = named(machine, "vms", "alpha")?;
    let counts = vm["exits"].as_array().context("vms: no exits")?;
    Ok(counts.iter().filter_map(|kind| kind["count"].as_u64()).sum())
}

/// What the monitor says about memory, in KiB.
struct Memory {
    image: f64,
    heap: f64,
    heap_used: f64,
    tables: f64,
}

impl Memory {
    fn ask(machine: &Machine) -> Result<Memory> {
        let version = machine.monitor("version")?;
        let memory = &version["memory"];
        let kib = |value: &Value| Some(value.as_f64()? / 1024.0);
        let read = || {
            let hypervisor = &memory["hypervisor"];
            Some(Memory {
                image: kib(&hypervisor["image"])?,
                heap: kib(&hypervisor["heap"])?,
                heap_used: kib(&hypervisor["heap_used"])?,
                tables: kib(&memory["tables"])?,
            })
        };
        read().with_context(|| format!("version: no image, heap or tables in {memory}"))
    }
}

/// With both guests, and what is gone when one of the two is stopped.
fn memory(two: &Memory, one: &Memory) -> Vec<Figure> {
    vec![
        Figure::new("memory: image of the hypervisor", two.image, "KiB"),
        Figure::new("memory: heap of the hypervisor", two.heap, "KiB"),
        Figure::new("memory: of it in use, two guests of 256 MiB", two.heap_used, "KiB"),
        Figure::new("memory: tables, two guests of 256 MiB", two.tables, "KiB"),
        Figure::new("memory: a guest beyond its RAM, heap", two.heap_used - one.heap_used, "KiB"),
        Figure::new("memory: a guest beyond its RAM, tables", two.tables - one.tables, "KiB"),
    ]
}

/// Invalidation commands that the end and the start of a VM with one vdev cost beside another one, and the memory that
/// it has.
fn end_and_start(machine: &Machine) -> Result<Vec<Figure>> {
    let commands = || {
        let iommu = machine.monitor("iommu")?;
        iommu["iommu"]["commands_issued"].as_f64().context("iommu: no commands_issued")
    };
    let start = commands()?;
    let two = Memory::ask(machine)?;
    machine.monitor("vm beta stop")?;
    let ended = commands()?;
    let one = Memory::ask(machine)?;
    machine.monitor("vm beta start")?;
    shell(machine, "beta")?;
    let attached = commands()?;
    let mut figures = memory(&two, &one);
    figures.extend([
        Figure::new("invalidation commands to end a VM with a vdev", ended - start, "commands"),
        Figure::new("invalidation commands to start a VM with a vdev", attached - ended, "commands"),
    ]);
    Ok(figures)
}
