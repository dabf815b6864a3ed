// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cargo for the UEFI targets.

use crate::{command, symbols, toolchain, workspace};
use anyhow::{Context, Result};
use pasidon_harness::{Application, Arch};
use std::fs::{self, File};
use std::process::Command;

/// Package name of the EFI application, which is also its file name.
const APPLICATION: &str = "pasidon";

/// The crate with the code for its processors.
pub fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "pasidon-arch-x86_64",
        Arch::Aarch64 => "pasidon-arch-aarch64",
    }
}

/// Where the firmware looks for an application on a removable disk (UEFI 2.10, 3.5.1.1).
fn removable_path(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "EFI/BOOT/BOOTX64.EFI",
        Arch::Aarch64 => "EFI/BOOT/BOOTAA64.EFI",
    }
}

/// Rust's name of the UEFI target.
pub fn target(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64-unknown-uefi",
        Arch::Aarch64 => "aarch64-unknown-uefi",
    }
}

/// Builds the application, with those cargo features.
///
/// # Errors
/// When the toolchain cannot be completed or the build fails.
pub fn build(arch: Arch, features: &[String]) -> Result<Application> {
    let target = workspace::target_dir().join(target(arch));
    let folder = target.join("applications");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // Cargo puts every feature set's .efi into the same file: no other build, not even another run's, until it is
    // copied. The lock ends with the file.
    let lock = folder.join("lock");
    let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
    lock.lock().context("waiting for another build")?;
    // A map of its own for each feature set: cargo does not link again what is fresh.
    let name = [&[APPLICATION.to_owned()], features].concat().join("-");
    let map = folder.join(format!("{name}.map"));
    let mut cargo = cargo(arch, "rustc")?;
    cargo.args(["--package", APPLICATION, "--release"]);
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    cargo.arg("--").arg(format!("-Clink-arg=/MAP:{}", map.display()));
    command::run_visible(&mut cargo)?;
    let efi = folder.join(format!("{name}.efi"));
    let built = target.join("release").join(format!("{APPLICATION}.efi"));
    fs::copy(&built, &efi).with_context(|| format!("keeping {}", built.display()))?;
    let symbols = folder.join(format!("{name}.sym"));
    let text = fs::read_to_string(&map).with_context(|| format!("reading {}", map.display()))?;
    fs::write(&symbols, symbols::from_map(&text)?)
        .with_context(|| format!("writing {}", symbols.display()))?;
    Ok(Application { efi, symbols, removable_path: removable_path(arch) })
}

/// Runs the cargo command line `words` for the UEFI target of `arch`.
///
/// # Errors
/// When `words` has no subcommand, the toolchain cannot be completed, or cargo fails.
pub fn passthrough(arch: Arch, words: &[String]) -> Result<()> {
    let (subcommand, rest) =
        words.split_first().context("no cargo command given; try `cargo xtask uefi -- build`")?;
    // What follows a second `--` goes to the tool behind cargo (rustc, clippy); the flags for cargo come before it.
    command::run_visible(cargo(arch, subcommand)?.args(rest))
}

/// A cargo `subcommand` for the UEFI target of `arch`; the caller adds further arguments.
///
/// # Errors
/// When the target's standard library can be had neither prebuilt nor as source.
pub fn cargo(arch: Arch, subcommand: &str) -> Result<Command> {
    toolchain::cargo(target(arch), subcommand, "core,alloc", &["-Zbuild-std-features=compiler-builtins-mem"])
}
