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
//!
//! Nothing here knows that there is a hypervisor. The queue carries a PASID of which the guest sees nothing, and
//! addresses are guest-physical ones, since the guest has no IOMMU of its own.

mod check;
mod descriptor;
mod device;
mod function;
mod memory;
mod portal;
mod wait;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::time::Instant;

/// Drives a DSA work queue from user space: copies, fills, compares and CRCs of random data, each one verified.
///
/// Needs root and a DSA function (8086:0b25) that no kernel driver has. The last line says how many operations of
/// each kind were done and how many failed; the exit status is 0 only if none did.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The PCI function, such as 0000:00:01.0 [default: the first DSA]
    #[arg(long)]
    device: Option<String>,
    /// How many operations
    #[arg(long, default_value_t = 1000)]
    operations: u64,
    /// How to wait for an operation's end
    #[arg(long, value_enum, default_value_t = How::Polling)]
    wait: How,
    /// Where the random numbers start; the same seed gives the same operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How to wait.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// Look at the completion record
    Polling,
    /// Sleep until the queue's MSI-X vector is raised (needs a UIO driver, see `wait`)
    Interrupt,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("PASIDON dsa-user error=\"{error:#}\"");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many operations failed.
fn run(arguments: &Arguments) -> Result<u64> {
    let function = function::Function::find(arguments.device.as_deref())?;
    let wait = match arguments.wait {
        How::Polling => wait::Wait::Polling,
        How::Interrupt => wait::Wait::interrupt(&function)?,
    };
    function.enable()?;
    let device = device::Device::bring_up(&function)?;
    let queue = device.enable_queue(matches!(wait, wait::Wait::Interrupt(_)))?;
    println!(
        "dsa-user: {} with {} entries, transfers up to {} KiB, {}",
        function.address,
        queue.entries,
        queue.largest_transfer >> 10,
        wait.describe()
    );
    let mut memory = memory::Memory::new()?;
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let mut done = check::Counts::default();
    let start = Instant::now();
    for number in 0..arguments.operations {
        let operation = check::Operation::random(&mut random, &queue);
        if let Err(error) = operation.run(&mut memory, &queue, &wait, &mut random) {
            done.failures += 1;
            println!("dsa-user: operation {number}, {operation}: {error:#}");
            if done.failures == GIVE_UP_AFTER {
                bail!("{GIVE_UP_AFTER} operations failed; the rest was not tried");
            }
        }
        done.count(&operation);
    }
    let seconds = start.elapsed().as_secs_f64();
    device.disable().context("switching the device off")?;
    println!(
        "PASIDON dsa-user {done} interrupts={} per_second={:.0}",
        wait.interrupts(),
        arguments.operations as f64 / seconds
    );
    Ok(done.failures)
}

/// Failures after which nothing more is to be learnt.
const GIVE_UP_AFTER: u64 = 10;
