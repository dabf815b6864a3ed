// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that share one work queue: their portals are trapped, and each descriptor is checked.

use super::hostile::{self, Attempt};
use super::pasidon::{
    self, BOOT_TIMEOUT, COMMAND_TIMEOUT, COPIES_TIMEOUT, HOST, check, copies_done, dsa_up, shell, until,
    user_interrupts_up,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration::{self, Vdev};
use crate::line::{Console, PROMPT};
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::thread;
use std::time::Duration;

/// Verified copies that each guest does.
const COPIES: u64 = 2_000;
const GUESTS: [(&str, &str); 4] =
    [("alpha", "dsa-swq"), ("beta", "dsa-swq"), ("gamma", "dsa-dwq"), ("delta", "dsa-dwq")];

/// A Linux guest with a vdev of that type.
fn vm(name: &str, kind: &str, more: &str) -> String {
    let vdev = format!("  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"{kind}\"\n  {more}\n\n");
    pasidon::vm(name, 0, "") + &vdev
}

fn of<'v>(vdevs: &'v [Vdev], name: &str) -> Result<&'v Vdev> {
    vdevs.iter().find(|vdev| vdev.vm == name).with_context(|| format!("no vdev of {name}: {vdevs:?}"))
}

/// Both ways of sharing, side by side.
pub const DMATEST: Scenario = Scenario {
    name: "swq-dmatest",
    about: "stock idxd and dmatest in four guests at once: two share one work queue by traps, two have one each",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg, Cpu::Vmx],
    run: |lab| {
        let guests = GUESTS.map(|(name, kind)| vm(name, kind, "entries = 16")).concat();
        let machine = lab.pasidon(&[HOST, &guests].concat(), demonstration::platform)?;
        let mut consoles = Vec::new();
        for (name, _) in GUESTS {
            let console = shell(&machine, name)?;
            dsa_up(&machine, console)?;
            consoles.push(console);
        }
        // All at once: the last one starts while the first is at work.
        for console in &consoles {
            console.send_line(&format!("dsa-test {COPIES}"))?;
        }
        for console in &consoles {
            copies_done(&machine, *console, COPIES)?;
        }
        let vdevs = demonstration::vdevs(&machine)?;
        let mut pasids: Vec<u64> = vdevs.iter().map(|vdev| vdev.pasid).collect();
        pasids.sort_unstable();
        pasids.dedup();
        ensure!(pasids.len() == GUESTS.len(), "a PASID for each: {vdevs:?}");
        for (name, kind) in GUESTS {
            let vdev = of(&vdevs, name)?;
            let exits = vdev.submission_exits;
            let right = if kind == "dsa-dwq" { exits == 0 } else { exits == COPIES };
            ensure!(right, "{name}: {exits} exits for {COPIES} copies by {kind}\n{}", machine.transcript());
            ensure!(vdev.fault_records == 0, "{name}: faults: {vdev:?}");
        }
        ends(&machine)
    },
};

/// The share of a guest that goes away under load costs the others nothing.
fn ends(machine: &Machine) -> Result<()> {
    let beta = machine.console("beta")?;
    let alpha = machine.console("alpha")?;
    beta.send_line(&format!("dsa-test {COPIES}"))?;
    alpha.send_line("dsa-test 1000000")?;
    machine.monitor("vm alpha stop")?;
    copies_done(machine, beta, COPIES)?;
    machine.monitor("vm alpha start")?;
    let alpha = shell(machine, "alpha")?;
    dsa_up(machine, alpha)?;
    check(machine, alpha, "dsa-test 200", "copies=200 failures=0").map(drop)
}

/// What Pasidon or the device answers of a descriptor of each kind, where the guest hears of it.
const HOSTILE: [Attempt<'_>; 11] = [
    // A completion record that is not aligned, that would lie beyond the guest's memory or wrap around, and none where one
    // is asked for.
    ("--set=1=0x1008", "result=recorded match=none status=0x1b"),
    ("--set=1=0x20000000", "status=0x1a address=0x20000000"),
    ("--set=1=0xffffffffffffffe0", "status=0x1a"),
    ("--set=0=0x0300000800000000", "result=recorded match=none status=0x11"),
    // The interrupt of somebody else: the queue's own events, a neighbour's.
    ("--flags=0x10 --set=4=0x000001000", "status=0x19"),
    ("--flags=0x10 --set=4=0x700001000", "status=0x19"),
    // Reserved bytes.
    ("--set=6=0x1", "status=0x12"),
    // Memory beyond its own, as itself and with a PASID and privilege of its own choice.
    ("--src=0x20000000", "status=0x03 address=0x20000000"),
    ("--src=0x20000000 --set=0=0x0300000c80000001", "status=0x03 address=0x20000000"),
    ("--src=0x20000000 --set=0=0x0300000c000fffff", "status=0x03 address=0x20000000"),
    // A drain that reads where it is told to.
    ("--operation=0x02 --flags=0x10000 --len=1 --src=0x20000000", "result=error"),
];

/// Writes that go nowhere: the device takes them for done, and the IOMMU records who it was.
const LOST: [&str; 3] = [
    "--dst=0x20000000",
    // Messages of interrupts.
    "--dst=0xfee00000",
    "--dst=0x20000000 --set=0=0x0300000c80000001",
];

/// A guest whose descriptors are hostile, beside one on the same queue.
pub const HOSTILE_GUEST: Scenario = Scenario {
    name: "swq-hostile",
    about: "a guest with a share of a queue submits hostile descriptors of each kind: each meets its denial, a neighbour on the same queue copies on",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg],
    run: |lab| {
        let guests = ["alpha", "mallory"].map(|name| vm(name, "dsa-swq", "entries = 16")).concat();
        let machine = lab.pasidon(&[HOST, &guests].concat(), demonstration::platform)?;
        let [alpha, mallory] = [shell(&machine, "alpha")?, shell(&machine, "mallory")?];
        dsa_up(&machine, alpha)?;
        alpha.send_line(&format!("dsa-test {BESIDE}"))?;
        hostile::submit_all(&machine, mallory, &hostile::NEVER)?;
        hostile::submit_all(&machine, mallory, &HOSTILE)?;
        for options in LOST {
            let before = fault_records(&machine, "mallory")?;
            hostile::submit(&machine, mallory, options, "result=ok")?;
            until(&machine, COMMAND_TIMEOUT, || {
                let now = fault_records(&machine, "mallory")?;
                Ok((now == before).then(|| format!("no fault was recorded of {options}")))
            })?;
        }
        // What it says of PASID and privilege is nothing: the copy is its own, in its own memory.
        hostile::submit(&machine, mallory, "--fill=90 --set=0=0x0300000c80000001", "result=ok match=yes")?;
        // Nothing comes of what is submitted to a queue that is off.
        hostile::submit(&machine, mallory, "--closed", "result=timeout")?;
        let verify = "dsa-user verify --only copy,fill,compare --operations 200";
        check(&machine, mallory, verify, "failures=0")?;
        copies_done(&machine, alpha, BESIDE).context("alpha was harmed")?;
        ensure!(fault_records(&machine, "alpha")? == 0, "faults of mallory's are taken for alpha's");
        Ok(())
    },
};

/// Verified copies of the neighbour.
const BESIDE: u64 = 20_000;

fn fault_records(machine: &Machine, name: &str) -> Result<u64> {
    Ok(of(&demonstration::vdevs(machine)?, name)?.fault_records)
}

/// What each descriptor takes an engine, in microseconds, so that the accelerator is what there is too little of.
const LATENCY_US: u64 = 5_000;
/// A guest of the second scenario.
struct Sharer {
    name: &'static str,
    weight: u64,
    depth: u64,
    size: u64,
}

const fn sharer(name: &'static str, weight: u64, depth: u64, size: u64) -> Sharer {
    Sharer { name, weight, depth, size }
}

/// One that asks for all it can get, in large pieces, and three that do not.
const SHARERS: [Sharer; 4] = [
    sharer("greedy", 1, 32, 64 << 10),
    sharer("one", 1, 16, 16 << 10),
    sharer("two", 2, 16, 16 << 10),
    sharer("four", 4, 16, 16 << 10),
];
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(15);
/// By how much of its part a guest's share may differ from that.
const TOLERANCE: f64 = 0.1;

/// Everybody's part of the queue, and what the greedy one costs the others.
pub const FAIR: Scenario = Scenario {
    name: "swq-fair",
    about: "a greedy guest and three modest ones on one work queue: each has its part by weight, whatever it copies",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg],
    run: |lab| {
        let guests: String = SHARERS
            .iter()
            .map(|sharer| vm(sharer.name, "dsa-swq", &format!("entries = 32\n  weight = {}", sharer.weight)))
            .collect();
        let machine = lab.pasidon(&[HOST, &guests].concat(), |platform| {
            platform.dsa(&format!("latency-ns={}", LATENCY_US * 1000))
        })?;
        let mut consoles = Vec::new();
        for sharer in &SHARERS {
            let console = shell(&machine, sharer.name)?;
            user_interrupts_up(&machine, console)?;
            consoles.push(console);
        }
        // All ask for more than there is.
        for (sharer, console) in SHARERS.iter().zip(&consoles) {
            start(*console, 35, sharer.depth, sharer.size)?;
        }
        let before = wait_for_all(&machine)?;
        // Nothing to wait for: what they do in that time is what is measured.
        thread::sleep(WATCHED);
        let after = submitted(&machine)?;
        for console in &consoles {
            load_done(&machine, *console)?;
        }
        let bytes: Vec<u64> = SHARERS
            .iter()
            .zip(before.iter().zip(&after))
            .map(|(sharer, (before, after))| (after - before) * sharer.size)
            .collect();
        let (total, weights): (u64, u64) =
            (bytes.iter().sum(), SHARERS.iter().map(|sharer| sharer.weight).sum());
        let part =
            |sharer: &Sharer, bytes: u64| bytes as f64 / total as f64 * weights as f64 / sharer.weight as f64;
        for (sharer, bytes) in SHARERS.iter().zip(&bytes) {
            let part = part(sharer, *bytes);
            println!(
                "  {}: weight {}, {} MiB, {part:.3} of its part",
                sharer.name,
                sharer.weight,
                bytes >> 20
            );
        }
        for (sharer, bytes) in SHARERS.iter().zip(&bytes) {
            let part = part(sharer, *bytes);
            ensure!(
                (part - 1.0).abs() <= TOLERANCE,
                "{} has {part:.3} of its part: {bytes} of {total} bytes by weight {} of {weights}",
                sharer.name,
                sharer.weight
            );
        }

        // How long a single copy takes, beside the others and beside the greedy one.
        let modest = &consoles[1..];
        let alone = single_copies(&machine, modest)?;
        start(consoles[0], 25, SHARERS[0].depth, SHARERS[0].size)?;
        let beside = single_copies(&machine, modest)?;
        load_done(&machine, consoles[0])?;
        for ((sharer, alone), beside) in SHARERS[1..].iter().zip(&alone).zip(&beside) {
            println!(
                "  {}: a copy takes {} us (99 of 100: {}), beside the greedy one {} us ({})",
                sharer.name, alone[0], alone[1], beside[0], beside[1]
            );
            // Before a copy of one who has nothing else under way there is what the device has of the greedy one, three
            // quarters of the queue, and a turn of each other. All that it has waiting would be almost three times that.
            let most = alone[0] + (12 + 3) * LATENCY_US;
            ensure!(beside[0] <= most, "{}: {} us is more than {most} us", sharer.name, beside[0]);
        }
        Ok(())
    },
};

fn start(console: Console<'_>, seconds: u64, depth: u64, size: u64) -> Result<()> {
    console.send_line(&format!(
        "dsa-user load --wait interrupt --seconds {seconds} --depth {depth} --size {size}"
    ))
}

/// Median and 99th percentile of copies of the guests, one at a time in each, in microseconds.
fn single_copies(machine: &Machine, consoles: &[Console<'_>]) -> Result<Vec<[u64; 2]>> {
    for console in consoles {
        start(*console, 8, 1, 16 << 10)?;
    }
    consoles.iter().map(|console| load_done(machine, *console)).collect()
}

/// Waits for the last line of `dsa-user load`: median and 99th percentile, in microseconds.
fn load_done(machine: &Machine, console: Console<'_>) -> Result<[u64; 2]> {
    let line = console.expect("PASIDON dsa-user (.*)\n", COPIES_TIMEOUT)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    let value = |name: &str| -> Result<u64> {
        let word = line[1].split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Ok(word.with_context(|| format!("no {name} in: {}", line[0]))?.parse()?)
    };
    let (copies, failures) = (value("copies")?, value("failures")?);
    ensure!(copies > 0 && failures == 0, "{}\n{}", line[0], machine.transcript());
    Ok([value("median_us")?, value("p99_us")?])
}

/// Descriptors that each sharer has submitted to the device. While a vdev is at work nothing is told of it.
fn submitted(machine: &Machine) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    super::pasidon::until(machine, COMMAND_TIMEOUT, || {
        let answer = machine.monitor("vdevs")?;
        let list = answer.as_array().with_context(|| format!("vdevs: not a list: {answer}"))?;
        let of = |sharer: &Sharer| -> Option<u64> {
            let vdev = list.iter().find(|entry| entry["vm"] == sharer.name)?;
            let details = vdev["details"].as_array()?;
            let line = details.iter().find(|detail| detail["name"] == "submitted")?;
            line["value"].as_str()?.split(' ').next()?.parse().ok()
        };
        counts = SHARERS.iter().filter_map(of).collect();
        Ok((counts.len() < SHARERS.len()).then(|| format!("submitted is missing in {answer}")))
    })?;
    Ok(counts)
}

/// Looks until each has submitted a good many more than at the first look; the looking takes the time.
fn wait_for_all(machine: &Machine) -> Result<Vec<u64>> {
    let first = submitted(machine)?;
    let mut now = first.clone();
    super::pasidon::until(machine, COMMAND_TIMEOUT, || {
        now = submitted(machine)?;
        let waits = SHARERS.iter().zip(first.iter().zip(&now)).find(|(_, (first, now))| **now < **first + 40);
        Ok(waits.map(|(sharer, _)| format!("{} does not submit", sharer.name)))
    })?;
    Ok(now)
}

/// Guests of the third scenario, as many as the console can tell apart, and vdevs of each: more than 31 are functions of
/// devices that have one already.
pub const CROWD: u64 = 31;
/// Vdevs of each of them.
pub const EACH: u64 = 33;
/// Copies that each vdev does.
const ROUNDS: u64 = 4;

/// As many vdevs as PASIDs, not as queues.
pub const THOUSAND: Scenario = Scenario {
    name: "swq-thousand",
    about: "1,023 vdevs of one accelerator in 31 small guests, each at work",
    arches: &[Arch::X86_64],
    cpus: &[Cpu::Tcg],
    run: |lab| {
        let cost = crowd(lab, CROWD, EACH)?;
        println!(
            "  {} KiB of heap, {} KiB in tables and pages of drivers",
            cost.heap >> 10,
            cost.tables >> 10
        );
        Ok(())
    },
};

/// What a crowd of vdevs takes of Pasidon.
pub struct Crowd {
    /// Heap, in bytes.
    pub heap: u64,
    /// Tables and pages of drivers, in bytes.
    pub tables: u64,
    /// From the start of one VM to that of the next, with its vdevs, in seconds of the machine's clock.
    pub per_vm: f64,
}

/// Guests with so many vdevs each, all of which copy and complete by interrupt.
///
/// # Errors
/// When a copy fails, or a vdev has no PASID of its own, an exit too many or a fault.
pub fn crowd(lab: &Lab<'_>, guests: u64, each: u64) -> Result<Crowd> {
    let vdev = "  [[vm.vdev]]\n  parent = \"dsa0\"\n  type = \"dsa-swq\"\n  entries = 4\n\n";
    let vm = |number: u64| {
        format!(
            "[[vm]]\nname = \"vm{number}\"\nmemory = \"16M\"\nkernel = \"guests/shares\"\npasids = {each}\n\n{}",
            vdev.repeat(each as usize)
        )
    };
    let configuration = [HOST.to_owned(), (1..=guests).map(vm).collect()].concat();
    // Each vdev has an interrupt of its own, and a processor some 190 vectors.
    let guest = lab.workshop.shares()?;
    let machine = lab.pasidon_with(
        &configuration,
        &[],
        |image| image.file("guests/shares", &guest),
        |platform| platform.cpus(8).dsa(""),
    )?;
    let started = |number: u64| -> Result<f64> {
        let line = format!(r"(\d+\.\d+) startup: vm vm{number}: started");
        Ok(machine.log().expect(&line, BOOT_TIMEOUT)?[1].parse()?)
    };
    let (first, last) = (started(1)?, started(guests)?);
    let wanted = format!("vdevs={each} copies={} failures=0", each * ROUNDS);
    for number in 1..=guests {
        let console = machine.console(&format!("vm{number}"))?;
        let line = console.expect("PASIDON shares (vdevs.*)\n", COPIES_TIMEOUT)?;
        ensure!(line[1] == wanted, "vm{number}: {}, wanted {wanted}", line[1]);
    }
    let vdevs = demonstration::vdevs(&machine)?;
    let count = guests * each;
    let mut pasids: Vec<u64> = vdevs.iter().map(|vdev| vdev.pasid).collect();
    pasids.sort_unstable();
    pasids.dedup();
    ensure!(pasids.len() as u64 == count, "{} PASIDs for {count} vdevs", pasids.len());
    let wrong = vdevs.iter().find(|vdev| vdev.submission_exits != ROUNDS || vdev.fault_records != 0);
    ensure!(wrong.is_none(), "{wrong:?}");
    let memory = machine.monitor("version")?["memory"].take();
    let bytes = |value: &Value| value.as_u64().with_context(|| format!("not as documented: {memory}"));
    Ok(Crowd {
        heap: bytes(&memory["hypervisor"]["heap_used"])?,
        tables: bytes(&memory["tables"])?,
        per_vm: (last - first) / (guests - 1) as f64,
    })
}
