// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that are paused while the accelerator works for them: what the monitor says is held against what the device
//! counts.

use super::pasidon::{COMMAND_TIMEOUT, COPIES_TIMEOUT, HOST, shell, until, user_interrupts_up, vm};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::line::{Console, PROMPT};
use crate::machine::{ACCELERATOR, Machine};
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

/// What each descriptor takes an engine, in milliseconds, so that a pause comes in the midst of some.
const LATENCY_MS: u64 = 5;
/// How long the guests copy, by their own clocks, in seconds. More than the rounds take: the last one has its own end.
const LOAD_S: u64 = 60;
/// How often each guest is paused.
const ROUNDS: usize = 5;
/// Descriptors that the device does between two pauses, at least.
const BETWEEN: u64 = 30;
/// For how long the device must be still: many times what it takes for all that there is.
const STILL: Duration = Duration::from_millis(1000);
/// Copies that are verified by the guest, each of another piece of data, and how often it is paused in their midst.
const VERIFIED: u64 = 600;
const PAUSES: usize = 4;

/// One guest, and how much it has under way.
struct Worker {
    name: &'static str,
    depth: u64,
    /// Its vdev shares a queue.
    shares: bool,
}

/// The last one is never paused alone.
const WORKERS: [Worker; 3] = [
    Worker { name: "alpha", depth: 8, shares: false },
    // More than the device has of one guest at a time, so that some wait.
    Worker { name: "gamma", depth: 24, shares: true },
    Worker { name: "beta", depth: 4, shares: false },
];

/// Pauses with DMA running.
pub const DMA: Scenario = Scenario {
    name: "pause-dma",
    about: "guests are paused again and again in the middle of DMA: drained and held are true, the neighbour goes on, no copy is lost or done twice; one that does not drain in time",
    arches: Arch::ALL,
    cpus: &[Cpu::Tcg],
    run: |lab| {
        // On Arm a queue is shared without an IOMMU only.
        let workers: Vec<&Worker> =
            WORKERS.iter().filter(|worker| !worker.shares || lab.arch() == Arch::X86_64).collect();
        let share = "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"dsa-swq\"\n  entries = 32\n\n";
        let guests = workers.iter().map(|worker| match worker.shares {
            true => vm(worker.name, 0, "") + share,
            false => vm(worker.name, 1, ""),
        });
        let configuration = [HOST.to_string(), guests.collect()].concat();
        let machine = lab.pasidon(&configuration, |platform| {
            platform.dsa(&format!("latency-ns={}", LATENCY_MS * 1_000_000))
        })?;
        let mut consoles = Vec::new();
        for worker in &workers {
            let console = shell(&machine, worker.name)?;
            user_interrupts_up(&machine, console)?;
            consoles.push(console);
        }
        let before = completed(&machine)?;
        for (worker, console) in workers.iter().zip(&consoles) {
            let depth = worker.depth;
            console.send_line(&format!(
                "dsa-user load --wait interrupt --seconds {LOAD_S} --depth {depth} --size 16384"
            ))?;
        }
        let mut held = 0;
        let names: Vec<&str> = workers.iter().map(|worker| worker.name).collect();
        let (neighbour, paused) = names.split_last().context("no guest")?;
        for _ in 0..ROUNDS {
            // One at a time: the neighbour goes on.
            for name in paused {
                work(&machine, BETWEEN)?;
                held += usize::from(pause(&machine, name)? == "held");
                let own = submitted(&machine, name)?;
                work(&machine, BETWEEN)?;
                ensure!(state(&machine, neighbour)? == "running", "{neighbour} is not running");
                ensure!(
                    own == submitted(&machine, name)?,
                    "{name} went on: {own:?}\n{}",
                    machine.transcript()
                );
                machine.monitor(&format!("vm {name} resume"))?;
            }
            // All: the device has nothing to do, and does nothing.
            work(&machine, BETWEEN)?;
            for name in &names {
                held += usize::from(pause(&machine, name)? == "held");
            }
            let still = completed(&machine)?;
            thread::sleep(STILL);
            let now = completed(&machine)?;
            ensure!(
                still == now,
                "the device completed {} when all was said to be drained or held\n{}",
                now - still,
                machine.transcript()
            );
            for name in &names {
                machine.monitor(&format!("vm {name} resume"))?;
            }
        }
        let shares = workers.iter().any(|worker| worker.shares);
        ensure!(
            shares == (held > 0),
            "{held} times a guest's descriptors were held\n{}",
            machine.transcript()
        );
        // What the guests were told of is what the device did.
        let mut copies = 0;
        for console in &consoles {
            let [done, failures] = summary(*console)?;
            ensure!(
                done > 0 && failures == 0,
                "{done} copies, {failures} failures\n{}",
                machine.transcript()
            );
            copies += done;
        }
        let did = completed(&machine)? - before;
        println!("  {copies} copies by {} guests, {did} by the device; held {held} times", workers.len());
        ensure!(copies == did, "{copies} copies, and the device did {did}\n{}", machine.transcript());

        // The data, too.
        for console in &consoles {
            console
                .send_line(&format!("dsa-user verify --operations {VERIFIED} --only copy,fill,compare"))?;
        }
        for round in 0..PAUSES * paused.len() {
            let name = paused[round % paused.len()];
            work(&machine, BETWEEN)?;
            pause(&machine, name)?;
            work(&machine, BETWEEN / 2)?;
            machine.monitor(&format!("vm {name} resume"))?;
        }
        for console in &consoles {
            let [_, failures] = summary(*console)?;
            ensure!(failures == 0, "{failures} failures\n{}", machine.transcript());
        }
        hangs(&machine, consoles[0], names[0])
    },
};

/// A device that does not drain in time: that is said, and the guest, which must not submit meanwhile, goes on after it has.
fn hangs(machine: &Machine, console: Console<'_>, name: &str) -> Result<()> {
    console.send_line("dsa-user load --wait interrupt --seconds 8 --depth 4 --size 4096")?;
    work(machine, BETWEEN)?;
    let hang = |hangs: bool| {
        let set = json!({ "path": ACCELERATOR, "property": "drain-hang", "value": hangs });
        machine.qmp()?.execute("qom-set", set).map(drop)
    };
    hang(true)?;
    machine.monitor(&format!("vm {name} pause"))?;
    let state_now = state(machine, name)?;
    ensure!(state_now == "draining", "{state_now}, and the device drains for ever\n{}", machine.transcript());
    let refused = machine.monitor(&format!("vm {name} resume")).err();
    let refused = refused.with_context(|| format!("{name} goes on during a drain"))?;
    ensure!(refused.to_string().contains("Drain WQ"), "{refused}");
    hang(false)?;
    until(machine, COMMAND_TIMEOUT, || {
        let state = state(machine, name)?;
        Ok((state != "drained").then(|| format!("{name} is {state}, and the drain has ended")))
    })?;
    machine.monitor(&format!("vm {name} resume"))?;
    let [copies, failures] = summary(console)?;
    ensure!(copies > 0 && failures == 0, "{failures} failures\n{}", machine.transcript());
    Ok(())
}

/// Pauses a guest; the state of its vdev then. The answer says the same.
fn pause(machine: &Machine, name: &str) -> Result<String> {
    let answer = machine.monitor(&format!("vm {name} pause"))?;
    let state = state(machine, name)?;
    let said = answer["done"].as_str().is_some_and(|text| text.ends_with(&state));
    ensure!(
        said && ["drained", "held"].contains(&&*state),
        "{state}, and: {answer}\n{}",
        machine.transcript()
    );
    Ok(state)
}

fn vdev(machine: &Machine, name: &str) -> Result<Value> {
    let vdevs = machine.monitor("vdevs")?;
    let found = vdevs.as_array().and_then(|list| list.iter().find(|vdev| vdev["vm"] == name));
    found.cloned().with_context(|| format!("no vdev of {name}: {vdevs}"))
}

fn state(machine: &Machine, name: &str) -> Result<String> {
    let vdev = vdev(machine, name)?;
    vdev["work"].as_str().map(str::to_owned).with_context(|| format!("no work: {vdev}"))
}

/// What a paused guest's vdev says of its submissions; nothing where they do not come by the hypervisor.
fn submitted(machine: &Machine, name: &str) -> Result<Option<Value>> {
    let vdev = vdev(machine, name)?;
    let mut details = vdev["details"].as_array().into_iter().flatten();
    Ok(details.find(|detail| detail["name"] == "submitted").cloned())
}

/// Descriptors that the device has completed.
fn completed(machine: &Machine) -> Result<u64> {
    machine.counter("stat-completed")
}

/// Waits until the device has completed so many more.
fn work(machine: &Machine, more: u64) -> Result<()> {
    let wanted = completed(machine)? + more;
    until(machine, COMMAND_TIMEOUT, || {
        let now = completed(machine)?;
        Ok((now < wanted).then(|| format!("the device has completed {now}, not {wanted}")))
    })
}

/// Copies and failures, from the last line of `dsa-user`.
fn summary(console: Console<'_>) -> Result<[u64; 2]> {
    let line = console.expect("PASIDON dsa-user (.*)\n", COPIES_TIMEOUT)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    let value = |name: &str| -> Result<u64> {
        let word = line[1].split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Ok(word.with_context(|| format!("no {name} in: {}", line[0]))?.parse()?)
    };
    Ok([value("copies")?, value("failures")?])
}
