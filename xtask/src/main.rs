// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: the only entry to building, testing and running Pasidon; the Makefile has one line per command here.
//!
//! Principle: a command does all the set-up it needs, says in one line what it does when that takes longer than a
//! few seconds, and keeps what it made in the user's cache folder under a key of everything that went into it.
//! Invariant: a cache entry is either complete or not there ([`cache`]).
#![forbid(unsafe_code)]

mod apt;
mod arrows;
mod bench;
mod book;
mod cache;
mod check;
mod clean;
mod command;
mod comments;
mod docs;
mod freestanding;
mod guests;
mod image;
mod platform;
mod processor;
mod progress;
mod run;
mod rust_src;
mod setup;
mod symbols;
mod test;
mod toolchain;
mod uefi;
mod upstream;
mod watch;
mod workshop;
mod workspace;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use pasidon_harness::{Arch, Cpu, Workshop};
use std::num::NonZero;
use std::path::PathBuf;
use workshop::Shop;

/// Builds, tests and runs Pasidon.
///
/// Everything that is needed (system packages, the platform QEMU, the guests' kernels, the disk image) is made on
/// first use and kept in $XDG_CACHE_HOME/pasidon (~/.cache/pasidon).
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots Pasidon with two Linux guests. On a terminal: a live console. Elsewhere: the demonstration to its end, a
    /// summary, and success only if every guest's copies were right.
    Run(Run),
    /// Shows what a running machine does: VMs, vdevs, PASIDs, queues, faults, rates, and who may reach what. Takes the
    /// framed serial line, or what was recorded of it.
    Watch(watch::Watch),
    /// Runs the host tests and the scenarios; with names only those scenarios.
    Test(Test),
    /// Lists the scenarios.
    List,
    /// Formatting, no circles among files, the book, clippy with warnings denied (host crates and the UEFI application), documentation without warnings.
    Check,
    /// Builds the book out of docs/, prints where it is, and shows it in a browser where there is a desktop.
    Book,
    /// Runs the benchmarks, prints a table, and writes it as JSON to bench-ARCH.json in the target folder.
    Bench(Bench),
    /// Makes the boot disk and prints its path.
    Image(MakeImage),
    /// Makes everything that the other commands make on first use: packages, platform, guests.
    Setup(Platform),
    /// Builds the UEFI application and prints the path of the .efi file.
    Build(Build),
    /// Runs a cargo command for the UEFI target, with what that target needs here: `cargo xtask uefi -- clippy -p pasidon`.
    Uefi(UefiCargo),
    /// Makes the platform QEMU, if it is not in the cache, and prints its path; with --cpu also the library of those
    /// processors, and a second line, what QEMU takes as -accel.
    Qemu(Qemu),
    /// Makes the processor that host tests run on (Bochs's), if it is not in the cache, and prints its path.
    Bochs,
    /// Makes the Linux guest's kernel and initrd, if they are not in the cache, and prints their paths.
    Guests(Platform),
    /// Deletes what was built in this checkout; with --cache also the user's cache of this project.
    Clean(Clean),
}

#[derive(Args)]
struct Run {
    /// The processor architecture of the machine.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// What runs the machine's processors: QEMU's translator (tcg), or Bochs's in its place, AMD's (svm) or Intel's (vmx),
    /// which are slower, stricter, and for x86_64 only. Without names `test` then runs the scenarios that are for them.
    #[arg(long, default_value_t)]
    cpu: Cpu,
    /// Another configuration than the demonstration's (pasidon.toml at the top of the checkout).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Puts the serial line, framed, on a socket of this name in the place of the terminal, for `cargo xtask watch FILE`.
    /// Ctrl-C ends the machine.
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
}

#[derive(Args)]
struct MakeImage {
    /// The processor architecture of the machine that it is for.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// Another configuration than the demonstration's (pasidon.toml at the top of the checkout).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the disk is written (default: pasidon-ARCH.img in the target folder).
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Args)]
struct Test {
    /// Names of scenarios, or `host` for the host tests; one that ends in * stands for all that start so. `cargo xtask
    /// list` shows them.
    scenario: Vec<String>,
    /// The processor architecture of the machines that scenarios start.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// What runs the machine's processors: QEMU's translator (tcg), or Bochs's in its place, AMD's (svm) or Intel's (vmx),
    /// which are slower, stricter, and for x86_64 only. Without names `test` then runs the scenarios that are for them.
    #[arg(long, default_value_t)]
    cpu: Cpu,
    /// How many scenarios run at the same time.
    #[arg(long, short, value_name = "N", default_value_t = test::scenarios_at_once())]
    jobs: NonZero<usize>,
}

#[derive(Args)]
struct Bench {
    /// Names of benchmarks: guests, exits, attachments, and for x86_64 kvm and processors.
    names: Vec<String>,
    /// The processor architecture of the machines.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
}

#[derive(Args)]
struct Build {
    /// The processor architecture to build for.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// Cargo features of the application, separated by commas (fault-injection builds for the tests).
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
}

#[derive(Args)]
struct UefiCargo {
    /// The processor architecture to build for.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// The cargo command and its arguments, without --target.
    #[arg(last = true, required = true)]
    cargo: Vec<String>,
}

#[derive(Args)]
struct Platform {
    /// The processor architecture that the machine has.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
}

#[derive(Args)]
struct Qemu {
    /// The processor architecture that the machine has.
    #[arg(long, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// What runs the machine's processors: QEMU's translator (tcg), or Bochs's in its place, AMD's (svm) or Intel's (vmx),
    /// which are slower, stricter, and for x86_64 only. Without names `test` then runs the scenarios that are for them.
    #[arg(long, default_value_t)]
    cpu: Cpu,
}

#[derive(Args)]
struct Clean {
    /// Delete the cache folder too: the platform QEMU, the guests' kernels and the rest are then made anew.
    #[arg(long)]
    cache: bool,
}

fn main() -> std::process::ExitCode {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_closed_pipe(panic.payload_as_str().unwrap_or_default()) {
            report(panic);
        }
    }));
    match dispatch(Cli::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Whether a panic says no more than that nobody reads our output, as behind `| head`: everything is cleaned up on the
/// way out all the same, but there is nothing to report.
fn is_closed_pipe(panic: &str) -> bool {
    panic.starts_with("failed printing to std") && panic.contains("Broken pipe")
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(options) => {
            run::run(options.arch, options.cpu, options.config.as_deref(), options.socket.as_deref())
        }
        Command::Watch(options) => watch::run(&options),
        Command::Image(options) => {
            let configuration = image::configuration(options.arch, options.config.as_deref())?;
            println!("{}", image::make(options.arch, &configuration, options.output.as_deref())?.display());
            Ok(())
        }
        Command::Setup(platform) => setup::run(platform.arch),
        Command::Test(test) => test::run(&test.scenario, test.arch, test.cpu, test.jobs),
        Command::List => {
            test::list();
            Ok(())
        }
        Command::Bench(options) => bench::run(options.arch, &options.names),
        Command::Check => check::run(),
        Command::Book => book::open(),
        Command::Build(build) => {
            println!("{}", uefi::build(build.arch, &build.features)?.efi.display());
            Ok(())
        }
        Command::Uefi(uefi) => uefi::passthrough(uefi.arch, &uefi.cargo),
        Command::Qemu(options) => {
            let qemu = Shop::new(options.arch, options.cpu).qemu()?;
            println!("{}", qemu.program.display());
            if qemu.engine.is_some() {
                println!("{}", qemu.accelerator());
            }
            Ok(())
        }
        Command::Bochs => {
            println!("{}", processor::library()?.display());
            Ok(())
        }
        Command::Guests(platform) => {
            let linux = guests::linux(platform.arch)?;
            for path in [linux.vmlinux, linux.vmlinuz, linux.initrd] {
                println!("{}", path.display());
            }
            Ok(())
        }
        Command::Clean(clean) => clean::run(clean.cache),
    }
}
