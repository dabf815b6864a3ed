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
//! | `linux` | takes a queue of Linux's own driver instead: shared virtual addressing |
//! | `portal` | submits a descriptor: 64 bytes at once |
//! | `descriptor` | what the device is asked for, and what it answers |
//! | `wait` | waits for the answer: by looking, or by interrupt |
//! | `work` | an operation to its end, also where pages are missing on the way |
//! | `check` | operations with random data, each compared with what the processor computes |
//! | `load` | copies for a time, so many at once |
//! | `count` | copies one after the other, between markers at which instructions are counted |
//! | `landing` | copies to one address, and at which of two places they land |
//! | `poke` | one copy, or another operation, between addresses of the user's choice |
//!
//! Nothing here knows that there is a hypervisor. The queue carries a PASID of which the guest sees nothing, and
//! addresses are guest-physical ones, since the guest has no IOMMU of its own. Where it has one, `--sva` shows the other way:
//! the queue is Linux's, the PASID leads to the page tables of this process, and addresses are pointers.

mod check;
mod count;
mod descriptor;
mod device;
mod function;
mod landing;
mod linux;
mod load;
mod memory;
mod poke;
mod portal;
#[cfg(test)]
mod simulated;
mod wait;
mod work;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;

/// Drives a DSA work queue from user space.
///
/// Needs root, and a DSA function (8086:0b25) that no kernel driver has, except a UIO driver: the program then drives the device
/// itself, with guest-physical addresses. Or, with --sva, a work queue of Linux's own driver idxd, which takes the program's
/// virtual addresses.
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The PCI function, such as 0000:01:00.0 [default: the first DSA]; with --sva the queue, such as /dev/dsa/wq0.0 [default: the
    /// first in /dev/dsa]
    #[arg(long, global = true)]
    device: Option<String>,
    /// Shared virtual addressing: use a queue of Linux's driver idxd, and ordinary memory at its virtual addresses
    ///
    /// For x86-64 with an IOMMU that Linux has turned shared virtual addressing on for. The queue is one of type user and mode
    /// dedicated, made with accel-config, that no other program has open. Descriptors carry no PASID: the queue does. Where the
    /// device stops at a page that is not there, or not to be written yet, the program brings it in and submits the rest; the
    /// last line counts how often (partial=).
    #[arg(long, global = true)]
    sva: bool,
    /// With --sva, for verify, load and poke: leave memory for the device to find untouched
    ///
    /// Otherwise all memory is touched beforehand. With verify, each operation meets a source or a destination that is not there,
    /// or a destination that has been read but never written. With load, each copy meets a destination that is not there, and
    /// those under way lose theirs. With poke, which never goes on, the answer tells of it: status=0x03, or 0x83 for a write. The
    /// completion record's page is always touched: nobody would learn that the device could not write it.
    #[arg(long, global = true)]
    untouched: bool,
    /// How to wait for an operation's end
    #[arg(long, value_enum, global = true, default_value_t = How::Polling)]
    wait: How,
    /// Guest-physical memory to take the program's own from, where the device reaches no other, such as 0x8000000+64M; boot the
    /// guest with enough hugepages= [default: anywhere]
    #[arg(long, global = true)]
    within: Option<memory::Within>,
}

const EXAMPLES: &str = "\
Examples:
  dsa-user verify
      1,000 operations of all kinds on the first DSA
  dsa-user verify --wait interrupt --only copy --operations 100
      100 copies, each with an interrupt, after: insmod uio.ko; insmod uio_msix.ko
  dsa-user verify --sva --untouched
      1,000 operations by shared virtual addressing on the first user queue, which
      find pages missing, after:
        accel-config config-engine dsa0/engine0.0 --group-id=0
        accel-config config-wq dsa0/wq0.0 --group-id=0 --mode=dedicated --wq-size=16 \\
          --priority=10 --type=user --name=app --driver-name=user
        accel-config enable-device dsa0 && accel-config enable-wq dsa0/wq0.0
  dsa-user poke --sva --dst 0x1000
      a copy to where this program has no memory: result=error status=0x83; or
      result=ok where the device does not ask for translations (ATS): nobody answers
      a write then, and what is refused is lost without a word

The last line begins with PASIDON and says what came of it, or error=\"...\" with what
would help.";

#[derive(Subcommand)]
enum Command {
    /// Copies, fills, compares and CRCs of random data, each one verified
    ///
    /// The last line says how many operations of each kind were done, how many failed, and how many the device does in
    /// a second; preparing and verifying the data is not counted. With --sva it also says how often the device stopped at a page
    /// (partial=). The exit status is 0 only if none failed.
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
    /// Which kinds, separated by commas [default: all but move]
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

/// What a command works with.
struct Setup {
    /// The device, where it is this program's and not Linux's.
    device: Option<device::Device>,
    queue: device::Queue,
    wait: wait::Wait,
    memory: memory::Memory,
}

impl Setup {
    /// Brings up a function, and says so.
    fn of_function(arguments: &Arguments) -> Result<Self> {
        ensure!(!arguments.untouched, "--untouched is for --sva: without, all memory is there and stays");
        let function = function::Function::find(arguments.device.as_deref())?;
        let wait = match arguments.wait {
            How::Polling => wait::Wait::Polling,
            How::Interrupt => wait::Wait::interrupt(&function)?,
        };
        function.enable()?;
        let device = device::Device::bring_up(&function)?;
        let queue = device.enable_queue(wait.by_interrupt())?;
        queue.announce(&function.address, wait.describe());
        let memory = memory::Memory::huge_page(arguments.within)?;
        Ok(Self { device: Some(device), queue, wait, memory })
    }

    /// Opens a queue of Linux's, and says so.
    fn of_linux(arguments: &Arguments) -> Result<Self> {
        ensure!(arguments.wait == How::Polling, "Linux gives user queues no interrupts; leave --wait out");
        ensure!(
            arguments.within.is_none(),
            "--within is about physical memory, which --sva does not deal in"
        );
        ensure!(
            !matches!(arguments.command, Command::Landing(_)),
            "landing is about physical memory, which --sva does not deal in"
        );
        if let Command::Poke(options) = &arguments.command {
            options.need_no_device()?;
        }
        ensure!(
            !arguments.untouched || !matches!(arguments.command, Command::Count(_)),
            "count has no use for --untouched: it measures copies that nothing stops"
        );
        let (node, queue) = linux::open(arguments.device.as_deref())?;
        let wait = wait::Wait::Polling;
        queue.announce(&format!("{node} by shared virtual addressing"), wait.describe());
        Ok(Self { device: None, queue, wait, memory: memory::Memory::ordinary(arguments.untouched)? })
    }
}

/// Returns whether all went well.
fn run(arguments: &Arguments) -> Result<bool> {
    let Setup { device, queue, wait, mut memory } =
        if arguments.sva { Setup::of_linux(arguments)? } else { Setup::of_function(arguments)? };
    let switch_off = || match &device {
        Some(device) => device.disable().context("switching the device off"),
        None => Ok(()),
    };
    match &arguments.command {
        Command::Verify(options) => {
            let summary = verify(options, &mut memory, &queue, &wait)?;
            switch_off()?;
            println!("PASIDON dsa-user {summary}{}", stops(arguments.sva, summary.done.partial));
            Ok(summary.done.failures == 0)
        }
        Command::Load(options) => {
            let outcome = load::run(options, &mut memory, &queue, &wait)?;
            switch_off()?;
            println!("PASIDON dsa-user load {outcome}{}", stops(arguments.sva, outcome.partial));
            Ok(outcome.failures == 0)
        }
        Command::Count(options) => {
            let outcome = count::run(options, &mut memory, &queue, &wait)?;
            switch_off()?;
            println!("PASIDON dsa-user count {outcome}{}", stops(arguments.sva, outcome.partial));
            Ok(true)
        }
        Command::Landing(options) => {
            let outcome = landing::run(options, &mut memory, &queue, &wait)?;
            switch_off()?;
            println!("PASIDON landing {outcome}");
            Ok(outcome.good())
        }
        Command::Poke(options) => {
            let outcome = poke::run(options, &mut memory, device.as_ref(), &queue, &wait)?;
            switch_off()?;
            println!("PASIDON poke {options} {outcome}");
            Ok(outcome.answered())
        }
    }
}

/// What the last line says in its end of how often the device stopped at a page. Where it cannot, nothing.
fn stops(sva: bool, partial: u64) -> String {
    if sva { format!(" partial={partial}") } else { String::new() }
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
        if let Err(error) = operation.run(memory, queue, wait, &mut random, &mut busy, &mut done.partial) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_linuxs_goes_with_what_it_has() {
        let said = |line: &str| {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            run(&arguments).unwrap_err().to_string()
        };
        let never = "/dev/null/wq9.9";
        for (line, wanted) in [
            ("dsa-user verify --untouched", "--untouched is for --sva"),
            ("dsa-user --sva verify --wait interrupt", "no interrupts"),
            ("dsa-user verify --sva --within 0x8000000+64M", "physical memory"),
            ("dsa-user landing --sva --dst 0 --other 4096", "physical memory"),
            ("dsa-user count --sva --untouched", "no use for --untouched"),
            ("dsa-user poke --sva --closed", "are Linux's"),
            ("dsa-user poke --sva --fill 1 --src 0x1000", "are Linux's"),
            ("dsa-user poke --sva --fill 1 --dst 0x1000", "are Linux's"),
        ] {
            assert!(said(line).contains(wanted), "{line}: {}", said(line));
        }
        let wanted =
            if cfg!(target_arch = "x86_64") { "reading /sys/bus/dsa/devices/wq9.9/type" } else { "idxd" };
        let line = format!("dsa-user load --sva --untouched --device {never}");
        assert!(said(&line).contains(wanted), "{}", said(&line));
    }

    #[test]
    fn the_last_line_keeps_the_words_that_others_read() {
        let summary = Summary { done: check::Counts::default(), interrupts: 0, per_second: 1.0 };
        let words = "copies=0 fills=0 compares=0 crcs=0 failures=0 interrupts=0 per_second=1.00";
        let line = |sva| format!("{summary}{}", stops(sva, 7));
        assert_eq!((line(false), line(true)), (words.to_owned(), format!("{words} partial=7")));
    }
}
