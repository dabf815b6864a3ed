// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that share the accelerator: what they may do together, and what they may not do to each other.

use super::pasidon::{
    COMMAND_TIMEOUT, COPIES_TIMEOUT, HOST, check, copies, copies_done, dsa_up, shell, user_interrupts_up, vm,
};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::demonstration;
use crate::line::{Console, PROMPT};
use crate::scenario::Scenario;
use anyhow::{Context, Result, ensure};

/// The configuration that `cargo xtask run` shows.
const DEMONSTRATION: &str = include_str!("../../../../pasidon.toml");
/// Verified copies each guest of the demonstration does.
const COPIES: u64 = 10_000;

/// The demonstration, judged.
pub const BOTH: Scenario = Scenario {
    name: "dmatest-both",
    about: "10,000 verified copies by both guests at once (dmatest; on aarch64 dsa-user), two PASIDs, zero exits on submission",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = demonstration::framed(DEMONSTRATION)?;
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let results = demonstration::follow(&machine, |line| println!("  {line}"))?;
        for (vm, copies) in &results.guests {
            ensure!(
                copies.good() && copies.done == COPIES,
                "{vm}: wanted {COPIES} copies without a failure: {copies:?}\n{}",
                machine.transcript()
            );
        }
        let [alpha, beta] = results.vdevs.as_slice() else {
            anyhow::bail!("wanted two vdevs: {:?}", results.vdevs);
        };
        ensure!(alpha.vm == "alpha" && beta.vm == "beta", "wanted a vdev each: {:?}", results.vdevs);
        ensure!(alpha.pasid != beta.pasid, "one PASID for two guests: {:?}", results.vdevs);
        let exits = alpha.submission_exits + beta.submission_exits;
        ensure!(exits == 0, "{exits} exits on submission: {:?}", results.vdevs);
        Ok(())
    },
};

/// The PASID alone decides which guest's memory an address means.
pub const SAME_ADDRESSES: Scenario = Scenario {
    name: "same-addresses",
    about: "the same guest-physical addresses in both guests, different data: each copies its own",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        // The kernel leaves this piece of memory alone in both guests.
        let words = lab.arch().words_to_set_aside();
        let configuration = [HOST, &vm("alpha", 1, words), &vm("beta", 1, words)].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let [source, destination] = [0, 1 << 20].map(|offset| lab.arch().set_aside() + offset);
        let last = destination + 0xfffc;
        let copy = format!("dsa-poke src={source:#x} dst={destination:#x} len=65536");
        let guests = [(shell(&machine, "alpha")?, 0x11), (shell(&machine, "beta")?, 0x22)];
        for (console, fill) in guests {
            dsa_up(&machine, console)?;
            check(&machine, console, &format!("{copy} fill={fill}"), "result=ok match=yes")?;
        }
        // What the second one did is not seen by the first, neither at the source nor at the destination.
        for (console, fill) in guests {
            for address in [source, destination, last] {
                let word = format!("0x{}", format!("{fill:02X}").repeat(4));
                check(&machine, console, &format!("devmem {address:#x}"), &word)?;
            }
        }
        Ok(())
    },
};

/// A driver of our own in user space, which knows only what the device's specification says.
pub const USER_SPACE: Scenario = Scenario {
    name: "user-driver",
    about: "a user-space driver in each guest at once: copies, fills, compares, CRCs, by polling and by interrupt",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let guests = [shell(&machine, "alpha")?, shell(&machine, "beta")?];
        let before = demonstration::vdevs(&machine)?;
        // Both at once: the second starts while the first is at work.
        for (console, seed) in guests.iter().zip(1..) {
            console.send_line(&format!("dsa-user verify --operations 1000 --seed {seed}"))?;
        }
        for console in guests {
            let [copies, fills, compares, crcs, failures, interrupts] = summary(console)?;
            ensure!(
                failures == 0
                    && interrupts == 0
                    && [copies, fills, compares, crcs].iter().all(|count| *count > 0),
                "a failure, or a kind of operation that was never tried\n{}",
                machine.transcript()
            );
        }
        for console in guests {
            user_interrupts_up(&machine, console)?;
            console.send_line("dsa-user verify --operations 500 --wait interrupt")?;
            let [.., failures, interrupts] = summary(console)?;
            ensure!(
                failures == 0 && interrupts == 500,
                "{failures} failures, {interrupts} interrupts for 500 operations\n{}",
                machine.transcript()
            );
        }
        let after = demonstration::vdevs(&machine)?;
        let exits =
            |vdevs: &[demonstration::Vdev]| -> u64 { vdevs.iter().map(|vdev| vdev.submission_exits).sum() };
        ensure!(exits(&before) == 0 && exits(&after) == 0, "exits on submission: {after:?}");
        Ok(())
    },
};

/// Waits for the last line of `dsa-user`: copies, fills, compares, CRCs, failures, interrupts.
fn summary(console: Console<'_>) -> Result<[u64; 6]> {
    let line = console.expect("PASIDON dsa-user (.*)\n", COPIES_TIMEOUT)?;
    console.expect(PROMPT, COMMAND_TIMEOUT)?;
    let mut numbers = [0; 6];
    let names = ["copies", "fills", "compares", "crcs", "failures", "interrupts"];
    for (number, name) in numbers.iter_mut().zip(names) {
        let value = line[1].split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let value = value.with_context(|| format!("no {name} in: {}", line[0]))?;
        *number = value.parse().with_context(|| line[0].clone())?;
    }
    Ok(numbers)
}

/// From what a guest may not write to what it may not read.
const ANOTHER_PAGE: u64 = 0x1000;

/// A guest names memory it does not own.
pub const DENIED: Scenario = Scenario {
    name: "dma-denied",
    about: "DMA outside the guest: reads fail, writes are lost, a line with VM, vdev, PASID and address; the other guest is unharmed",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let configuration = [HOST, &vm("alpha", 1, ""), &vm("beta", 1, "")].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        for console in [alpha, beta] {
            dsa_up(&machine, console)?;
        }
        let pasid = |name: &str| {
            let vdevs = demonstration::vdevs(&machine)?;
            let found = vdevs.into_iter().find(|vdev| vdev.vm == name);
            Ok::<u64, anyhow::Error>(found.with_context(|| format!("no vdev of {name}"))?.pasid)
        };
        let pasid = pasid("alpha")?;
        beta.send_line("dsa-test 2000")?;
        // Above the guest's 256 MiB: host memory that belongs to somebody else.
        for beyond in [0x1000_0000, 0x2000_0000, 0x1_2345_6000] {
            let write = lab.arch().ram_start() + beyond;
            // Nobody answers a write, so that the device takes it for done: the IOMMU tells of it.
            for (poke, address, result) in [
                ("dsa-poke dst", write, "result=ok match=none"),
                ("dsa-poke src", write + ANOTHER_PAGE, "result=error"),
            ] {
                check(&machine, alpha, &format!("{poke}={address:#x}"), result)?;
                let line = machine.log().expect("^.*: fault: vm .*$\n", COMMAND_TIMEOUT)?.swap_remove(0);
                for wanted in ["alpha", "dsa0", &pasid.to_string(), &format!("{address:#x}")] {
                    ensure!(line.contains(wanted), "the fault line does not name {wanted}: {line}");
                }
            }
        }
        copies_done(&machine, beta, 2000).context("beta was harmed")?;
        copies(&machine, alpha, 100).map(drop)
    },
};

/// Numbers that a message of the shared device may carry; its own are among them.
const MESSAGES: u32 = 16;
/// Hexadecimal digits of an address within a page.
const PAGE_DIGITS: u64 = 3;

/// A guest's DMA does not reach what turns writes of the shared device into interrupts.
pub const DOORBELL: Scenario = Scenario {
    name: "doorbell-denied",
    about: "DMA to where the device's interrupt messages go: a fault in the guest's name, no interrupt for the other guest",
    arches: Arch::ALL,
    cpus: Cpu::ALL,
    run: |lab| {
        let words = lab.arch().words_to_set_aside();
        let configuration = [HOST, &vm("alpha", 1, words), &vm("beta", 1, words)].concat();
        let machine = lab.pasidon(&configuration, demonstration::platform)?;
        let alpha = shell(&machine, "alpha")?;
        let beta = shell(&machine, "beta")?;
        for console in [alpha, beta] {
            dsa_up(&machine, console)?;
        }
        // Now its interrupts have their places among the device's.
        copies(&machine, beta, 50)?;
        let vdev = |name: &str| -> Result<demonstration::Vdev> {
            let vdevs = demonstration::vdevs(&machine)?;
            let found = vdevs.into_iter().find(|vdev| vdev.vm == name);
            found.with_context(|| format!("no vdev of {name}"))
        };
        let before = vdev("beta")?;
        ensure!(before.interrupts >= 50, "50 copies of beta, and these interrupts: {before:?}");
        let [message, doorbell] = [lab.arch().set_aside(), lab.arch().doorbell()];
        let poke = format!("dsa-poke src={message:#x} dst={doorbell:#x} len=4");
        let mut answers = Vec::new();
        for number in 0..MESSAGES {
            alpha.command(&format!("devmem {message:#x} 32 {number}"), COMMAND_TIMEOUT)?;
            answers.push(alpha.command(&poke, COPIES_TIMEOUT)?);
        }
        // What counts first: nobody was rung.
        let after = vdev("beta")?;
        ensure!(
            after.interrupts == before.interrupts,
            "beta had {} interrupts, and has {} after alpha's messages",
            before.interrupts,
            after.interrupts
        );
        // Lost without the device's knowledge, as writes are.
        for answer in answers {
            ensure!(answer.contains("result=ok"), "{poke}: {answer}\n{}", machine.transcript());
        }
        let attacker = vdev("alpha")?;
        // An IOMMU reports the page, or the address within it. Of many faults in a row not each one has a line.
        let page = format!("{:#x}", doorbell >> (PAGE_DIGITS * 4));
        let line = format!("fault: vm alpha .* pasid {}: .*{page}", attacker.pasid);
        machine.log().expect(&line, COMMAND_TIMEOUT)?;
        ensure!(
            attacker.fault_records == u64::from(MESSAGES),
            "{MESSAGES} messages, and these faults: {attacker:?}"
        );
        copies(&machine, beta, 50).map(drop)
    },
};
