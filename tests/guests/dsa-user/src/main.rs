// SPDX-License-Identifier: MIT OR Apache-2.0
//! A driver in user space for one DSA work queue, as Pasidon gives it to a Linux guest on any architecture.
//!
//! It is a test, and an example for those who write such a driver. What it does, in the order of the files:
//!
//! | file | duty |
//! |---|---|
//! | `function` | finds the PCI function in sysfs, enables it, maps its BARs |
//! | `memory` | takes memory whose guest-physical address it knows: that is what the device is told |
//! | `device` | brings the device and its queue up |
//! | `portal` | submits a descriptor: 64 bytes at once |
//! | `descriptor` | what the device is asked for, and what it answers |
//! | `wait` | waits for the answer: by looking, or by interrupt |
//! | `check` | operations with random data, each compared with what the processor computes |
//! | `load` | copies for a time, so many at once |
//! | `count` | copies one after the other, between markers at which instructions are counted |
//! | `landing` | copies to one address, and at which of two places they land |
//! | `poke` | one copy, or another operation, between addresses of the user's choice |
//!
//! Nothing here knows that there is a hypervisor. The queue carries a PASID of which the guest sees nothing, and
//! addresses are guest-physical ones, since the guest has no IOMMU of its own.

mod check;
mod count;
mod descriptor;
mod device;
mod function;
mod landing;
mod load;
mod memory;
mod poke;
mod portal;
mod wait;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;

/// Drives a DSA work queue from user space.
///
/// Needs root and a DSA function (8086:0b25) that no kernel driver has, except a UIO driver.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The PCI function, such as 0000:01:00.0 [default: the first DSA]
    #[arg(long, global = true)]
    device: Option<String>,
    /// How to wait for an operation's end
    #[arg(long, value_enum, global = true, default_value_t = How::Polling)]
    wait: How,
    /// Guest-physical memory to take the program's own from, where the device reaches no other, such as 0x8000000+64M; boot the
    /// guest with enough hugepages= [default: anywhere]
    #[arg(long, global = true)]
    within: Option<memory::Within>,
}

#[derive(Subcommand)]
enum Command {
    /// Copies, fills, compares and CRCs of random data, each one verified
    ///
    /// The last line says how many operations of each kind were done, how many failed, and how many the device does in
    /// a second; preparing and verifying the data is not counted. The exit status is 0 only if none failed.
    Verify(Verify),
    /// Copies for a time, so many at once: how many the queue does, and how long each takes
    ///
    /// The last line says how many copies there were, how many of them failed, how many in a second, and the time from
    /// submission to completion as this program saw it: the median, and what 99 of 100 did not exceed.
    Load(load::Load),
    /// Copies one after the other: what a store to the portal takes, and a copy from there to its completion
    ///
    /// The last line says how many copies there were, and the medians in ticks of the processor's counter.
    Count(count::Count),
    /// Copies to one address for a time, and at which of two places they land
    ///
    /// For a hypervisor that puts other memory behind an address while the device works. The last line says how many copies
    /// were found wholly at each place, and how many partly at both, and how many lines of 64 bytes at neither (lost) or at
    /// both (doubled). The exit status is 0 only if none of these, and no copy failed.
    Landing(landing::Landing),
    /// One copy, or another operation, between addresses of your choice, also ones that are not yours
    ///
    /// The last line says what came of it: result=ok, error (with the status and the address that the device reports),
    /// recorded (with those in the device's error register, where there is no record) or timeout, and with --fill whether the destination holds the filled bytes. The exit status is 0 if the device
    /// answered at all.
    Poke(poke::Poke),
}

#[derive(Args)]
struct Verify {
    /// How many operations
    #[arg(long, default_value_t = 1000)]
    operations: u64,
    /// Which kinds, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', hide_default_value = true, default_values_t = [check::Choice::Copy, check::Choice::Fill, check::Choice::Compare, check::Choice::Crc])]
    only: Vec<check::Choice>,
    /// Most bytes of one operation
    #[arg(long, default_value_t = check::LARGEST)]
    largest: usize,
    /// Where the random numbers start; the same seed gives the same operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How to wait.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// Look at the completion record
    Polling,
    /// Sleep until the queue's MSI-X vector is raised (needs the UIO driver uio_msix)
    Interrupt,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("PASIDON dsa-user error=\"{error:#}\"");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all went well.
fn run(arguments: &Arguments) -> Result<bool> {
    let function = function::Function::find(arguments.device.as_deref())?;
    let wait = match arguments.wait {
        How::Polling => wait::Wait::Polling,
        How::Interrupt => wait::Wait::interrupt(&function)?,
    };
    function.enable()?;
    let device = device::Device::bring_up(&function)?;
    let queue = device.enable_queue(wait.by_interrupt())?;
    println!(
        "dsa-user: {} with {} entries, transfers up to {} KiB, {}",
        function.address,
        queue.entries,
        queue.largest_transfer >> 10,
        wait.describe()
    );
    let mut memory = memory::Memory::new(arguments.within)?;
    match &arguments.command {
        Command::Verify(options) => {
            let summary = verify(options, &mut memory, &queue, &wait)?;
            device.disable().context("switching the device off")?;
            println!("PASIDON dsa-user {summary}");
            Ok(summary.done.failures == 0)
        }
        Command::Load(options) => {
            let outcome = load::run(options, &mut memory, &queue, &wait)?;
            device.disable().context("switching the device off")?;
            println!("PASIDON dsa-user load {outcome}");
            Ok(outcome.failures == 0)
        }
        Command::Count(options) => {
            let outcome = count::run(options, &mut memory, &queue, &wait)?;
            device.disable().context("switching the device off")?;
            println!("PASIDON dsa-user count {outcome}");
            Ok(true)
        }
        Command::Landing(options) => {
            let outcome = landing::run(options, &mut memory, &queue, &wait)?;
            device.disable().context("switching the device off")?;
            println!("PASIDON landing {outcome}");
            Ok(outcome.good())
        }
        Command::Poke(options) => {
            let outcome = poke::run(options, &mut memory, &device, &queue, &wait)?;
            device.disable().context("switching the device off")?;
            println!("PASIDON poke {options} {outcome}");
            Ok(outcome.answered())
        }
    }
}

/// What came of many operations.
struct Summary {
    done: check::Counts,
    interrupts: u64,
    per_second: f64,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { done, interrupts, per_second } = self;
        write!(f, "{done} interrupts={interrupts} per_second={per_second:.2}")
    }
}

fn verify(
    options: &Verify,
    memory: &mut memory::Memory,
    queue: &device::Queue,
    wait: &wait::Wait,
) -> Result<Summary> {
    let mix = check::Mix::new(&options.only, options.largest, queue)?;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut done = check::Counts::default();
    let mut busy = Duration::ZERO;
    for number in 0..options.operations {
        let operation = mix.random(&mut random);
        if let Err(error) = operation.run(memory, queue, wait, &mut random, &mut busy) {
            done.failures += 1;
            println!("dsa-user: operation {number}, {operation}: {error:#}");
            if done.failures == GIVE_UP_AFTER {
                bail!("{GIVE_UP_AFTER} operations failed; the rest was not tried");
            }
        }
        done.count(&operation);
    }
    Ok(Summary {
        done,
        interrupts: wait.interrupts(),
        per_second: options.operations as f64 / busy.as_secs_f64(),
    })
}

/// Failures after which nothing more is to be learnt.
const GIVE_UP_AFTER: u64 = 10;
