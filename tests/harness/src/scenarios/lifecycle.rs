// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ordered end: what a VM held is taken back completely, and nothing of it reaches the next owner.

use super::pasidon::{
    BOOT_TIMEOUT, COMMAND_TIMEOUT, HOST, check, copies, dsa_up, named, shell, vm, wait_for_state,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::machine::Machine;
use crate::scenario::{Lab, Scenario};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How often the guest is killed and started again.
const ROUNDS: u32 = 20;
/// What the hypervisor's allocator takes at least for anything, in bytes.
pub(super) const SMALLEST_BLOCK: u64 = 16;
/// A build, and the same one without an invalidation of what an IOMMU remembers of a PASID: their features.
struct Pair {
    sound: &'static [&'static str],
    faulty: &'static [&'static str],
}

fn pairs(arch: Arch) -> &'static [Pair] {
    match arch {
        Arch::X86_64 => &[Pair { sound: &[], faulty: &["fault-no-pasid-cache-invalidation"] }],
        Arch::Aarch64 => &[
            Pair { sound: &[], faulty: &["fault-no-cd-invalidation"] },
            // What is stale in a TLB is used when an ASID is, which otherwise comes round again after thousands of VMs.
            Pair { sound: &["few-domains"], faulty: &["few-domains", "fault-no-tlb-invalidation"] },
        ],
    }
}

/// A guest killed in the middle of DMA.
pub const KILLED: Scenario = Scenario {
    name: "killed-in-dma",
    about: "a guest killed in the middle of DMA 20 times: PASID, queue and memory come back, the other goes on",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let beta = shell(&machine, "beta")?;
        dsa_up(&machine, beta)?;
        shell(&machine, "alpha")?;
        machine.monitor("vm alpha stop")?;
        wait_for_state(&machine, "alpha", "stopped")?;
        let start = counters(&machine, &["dsa0"])?;
        let mut heap = Vec::new();
        for round in 1..=ROUNDS {
            machine.monitor("vm alpha start")?;
            let alpha = shell(&machine, "alpha")?;
            dsa_up(&machine, alpha)?;
            alpha.send_line("dsa-test 100000000")?;
            alpha.expect("^PASIDON dsa-test started$", BOOT_TIMEOUT)?;
            machine.monitor("vm alpha stop")?;
            wait_for_state(&machine, "alpha", "stopped")?;
            let now = counters(&machine, &["dsa0"])?;
            ensure!(
                now == start,
                "round {round}: at the start {start:?}, now {now:?}\n{}",
                machine.transcript()
            );
            heap.push(heap_used(&machine)?);
            copies(&machine, beta, 50)?;
        }
        // By now every buffer has its size. What one round leaves behind, each round does.
        let half = ROUNDS as usize / 2;
        let (before, after) = (heap[half - 1], heap[heap.len() - 1]);
        ensure!(
            after < before + SMALLEST_BLOCK * half as u64,
            "the hypervisor's heap grew from {before} to {after} bytes in {half} rounds: {heap:?}"
        );
        Ok(())
    },
};

/// What a neighbour may be held up by the end of a vdev whose device does not end its command, in hundredths of a second:
/// the second that its turn may take, the second that the device has, and what the platform is slow by.
const LONGEST_STALL: u32 = 300;

/// A device that does not carry out what ends a queue.
pub const HANGS: Scenario = Scenario {
    name: "device-hangs",
    about: "a device that never ends a command: the queue is retired, the neighbour on the same pCPU waits 3 s at most, a reset brings back what was retired",
    arches: &[Arch::X86_64],
    cpus: Cpu::ALL,
    run: |lab| {
        // Both on the pCPU that does the hypervisor's own work.
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, |platform| platform.cpus(1).dsa("drain-hang=on"))?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        for console in [alpha, beta] {
            dsa_up(&machine, console)?;
        }
        copies(&machine, beta, 10)?;
        alpha.send_line("dsa-test 100000000")?;
        alpha.expect("^PASIDON dsa-test started$", BOOT_TIMEOUT)?;
        // The longest time between two looks at the clock, until a file is there.
        for line in [
            "g() { read a b </proc/uptime; t=${a%.*}${a#*.}; d=$((t-p)); p=$t; }",
            "f() { g; m=0; >/r; until [ -e /s ]; do g; [ $d -gt $m ] && m=$d; done; }",
            "{ f; echo stall=$m.; } &",
            "until [ -e /r ]; do :; done",
        ] {
            beta.command(line, COMMAND_TIMEOUT)?;
        }
        machine.monitor("vm alpha stop")?;
        wait_for_state(&machine, "alpha", "stopped")?;
        ensure!(named(&machine, "vms", "alpha")?["pasids_retired"] == 1, "{}", machine.transcript());
        let said = beta.command("touch /s; wait", COMMAND_TIMEOUT)?;
        let stall = said.split("stall=").nth(1).and_then(|rest| rest.split('.').next());
        let stall: u32 = stall.with_context(|| format!("no stall in: {said}"))?.parse()?;
        ensure!(stall < LONGEST_STALL, "beta stood still for {stall}/100 s\n{}", machine.transcript());
        copies(&machine, beta, 50)?;
        // That ends everything on the device.
        machine.monitor("parent dsa0 reset")?;
        let back = named(&machine, "vms", "alpha")?;
        ensure!(back["pasids_retired"] == 0, "{back}\n{}", machine.transcript());
        check(&machine, beta, "echo $((6 * 7))", "42").map(drop)
    },
};

/// The reuse test must be able to fail.
pub const STALE_PASID_CACHE: Scenario = Scenario {
    name: "stale-pasid-cache",
    about: "reuse of a PASID by another guest is sound; builds without an invalidation (PASID cache; CFGI_CD, TLBI) are caught at it",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        for Pair { sound, faulty } in pairs(lab.arch()) {
            reuse(lab, sound)?;
            let features = faulty.join(",");
            match reuse(lab, faulty) {
                Err(error) if error.to_string().contains("reused PASID") => {}
                Err(error) => return Err(error.context(format!("{features} failed for another reason"))),
                Ok(()) => bail!("{features} was not caught"),
            }
        }
        Ok(())
    },
};

/// Ends alpha and gives its PASID to beta, whose copies must then reach beta's memory and no other.
fn reuse(lab: &Lab<'_>, features: &[&str]) -> Result<()> {
    let words = lab.arch().words_to_set_aside();
    let later = |name, vdevs| vm(name, vdevs, words).replace("cmdline", "autostart = false\ncmdline");
    // There is one PASID only, so that beta gets alpha's.
    let host = HOST.replacen("[host]", "[host]\nlast_pasid = 1", 1);
    let configuration =
        [host.as_str(), &vm("alpha", 1, words), &later("gamma", 0), &later("beta", 1)].concat();
    let machine = lab.pasidon_built(&configuration, features, demonstration::platform)?;
    let [source, destination] = [0, 1 << 20].map(|offset| lab.arch().set_aside() + offset);
    let copy = format!("dsa-poke src={source:#x} dst={destination:#x} len=65536");
    let alpha = shell(&machine, "alpha")?;
    dsa_up(&machine, alpha)?;
    check(&machine, alpha, &format!("{copy} fill=17"), "result=ok match=yes")?;
    let old = named_vdev(&machine, "alpha")?;
    machine.monitor("vm alpha stop")?;
    wait_for_state(&machine, "alpha", "stopped")?;
    // Takes alpha's memory and the pages of its tables; what is stale leads there.
    machine.monitor("vm gamma start")?;
    machine.monitor("vm beta start")?;
    let beta = shell(&machine, "beta")?;
    let new = named_vdev(&machine, "beta")?;
    ensure!(old == new, "beta has PASID {new}, not alpha's {old}: this shows nothing about reuse");
    dsa_up(&machine, beta)?;
    let said = beta.command(&format!("{copy} fill=34"), BOOT_TIMEOUT)?;
    ensure!(said.contains("result=ok match=yes"), "reused PASID: {said}\n{}", machine.transcript());
    Ok(())
}

fn named_vdev(machine: &Machine, vm: &str) -> Result<u64> {
    let vdevs = demonstration::vdevs(machine)?;
    match vdevs.iter().find(|vdev| vdev.vm == vm) {
        Some(vdev) => Ok(vdev.pasid),
        None => bail!("no vdev of {vm}: {vdevs:?}"),
    }
}

/// What must be the same again when a VM has ended.
#[derive(Debug, PartialEq)]
pub(super) struct Counters {
    pasids: Value,
    memory: Value,
    available: Vec<Value>,
    spaces: Option<usize>,
    retired: Value,
    in_use: Value,
}

/// Bytes of the hypervisor's heap in use. Not a counter: buffers grow to their size in the first rounds.
pub(super) fn heap_used(machine: &Machine) -> Result<u64> {
    let used = &machine.monitor("version")?["memory"]["hypervisor"]["heap_used"];
    used.as_u64().with_context(|| format!("heap_used is {used}"))
}

/// Takes count, with the queues of those parents; in a machine with the VM alpha.
///
/// # Errors
/// When the monitor does not answer as documented.
pub(super) fn counters(machine: &Machine, parents: &[&str]) -> Result<Counters> {
    let iommu = machine.monitor("iommu")?;
    let mut memory = machine.monitor("version")?["memory"].clone();
    memory["hypervisor"] = Value::Null;
    Ok(Counters {
        pasids: machine.monitor("pasids")?,
        memory,
        available: parents
            .iter()
            .map(|parent| Ok(named(machine, "parents", parent)?["types"].clone()))
            .collect::<Result<_>>()?,
        spaces: iommu["iommu"]["spaces"].as_array().map(Vec::len),
        retired: iommu["retired"].clone(),
        in_use: named(machine, "vms", "alpha")?["memory_in_use"].clone(),
    })
}
