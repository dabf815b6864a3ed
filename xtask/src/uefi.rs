// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cargo for the UEFI targets, with or without a prebuilt standard library.
//!
//! Principle: the project's own code is stable Rust. Only where the toolchain has no `core` for the target, and rustup
//! may not or cannot add it, cargo builds `core` and `alloc` from source, and that one cargo invocation is told to
//! accept the unstable `-Zbuild-std` for it.

use crate::{command, rust_src, symbols, workspace};
use anyhow::{Context, Result, bail};
use pasidon_harness::{Application, Arch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    let folder = workspace::target_dir().join(target(arch)).join("release");
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
    // Cargo keeps one .efi for all feature sets; a copy of each set's own stays beside its map.
    let efi = folder.join(format!(
        "{name}.{}",
        if features.is_empty() { "efi" } else { "copy.efi" }
    ));
    if !features.is_empty() {
        fs::copy(folder.join(format!("{APPLICATION}.efi")), &efi).context("keeping the application")?;
    }
    let symbols = folder.join(format!("{name}.sym"));
    let text = fs::read_to_string(&map).with_context(|| format!("reading {}", map.display()))?;
    fs::write(&symbols, symbols::from_map(&text)?)
        .with_context(|| format!("writing {}", symbols.display()))?;
    Ok(Application {
        efi,
        symbols,
        removable_path: removable_path(arch),
    })
}

/// Runs the cargo command line `words` for the UEFI target of `arch`.
///
/// # Errors
/// When `words` has no subcommand, the toolchain cannot be completed, or cargo fails.
pub fn passthrough(arch: Arch, words: &[String]) -> Result<()> {
    let (subcommand, rest) = words
        .split_first()
        .context("no cargo command given; try `cargo xtask uefi -- build`")?;
    // What follows a second `--` goes to the tool behind cargo (rustc, clippy); the flags for cargo come before it.
    command::run_visible(cargo(arch, subcommand)?.args(rest))
}

/// A cargo `subcommand` for the UEFI target of `arch`; the caller adds further arguments.
///
/// # Errors
/// When the target's standard library can be had neither prebuilt nor as source.
pub fn cargo(arch: Arch, subcommand: &str) -> Result<Command> {
    let mut cargo = command::cargo();
    cargo.arg(subcommand).args(["--target", target(arch)]);
    let sysroot = PathBuf::from(command::output(rustc().args(["--print", "sysroot"]))?);
    if !has_std(&sysroot, arch) && !rustup_adds(arch, &sysroot) {
        rust_src::provide(&sysroot, &compiler_version()?)?;
        cargo.args([
            "-Zbuild-std=core,alloc",
            "-Zbuild-std-features=compiler-builtins-mem",
        ]);
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    Ok(cargo)
}

fn rustc() -> Command {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(workspace::root());
    rustc
}

/// Whether a prebuilt `core` of the target is installed.
fn has_std(sysroot: &Path, arch: Arch) -> bool {
    let Ok(files) = fs::read_dir(sysroot.join("lib/rustlib").join(target(arch)).join("lib")) else {
        return false;
    };
    files
        .flatten()
        .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Asks rustup for the target, where it may be asked; says whether the target is there now.
fn rustup_adds(arch: Arch, sysroot: &Path) -> bool {
    if std::env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0") || !command::exists("rustup")
    {
        return false;
    }
    let mut rustup = Command::new("rustup");
    rustup
        .current_dir(workspace::root())
        .args(["target", "add", target(arch)]);
    let added = rustup
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !added {
        eprintln!(
            "  rustup cannot add {}; building core and alloc from source instead",
            target(arch)
        );
    }
    added && has_std(sysroot, arch)
}

/// The compiler's version, such as `1.95.0`.
fn compiler_version() -> Result<String> {
    let verbose = command::output(rustc().arg("-vV"))?;
    match verbose.lines().find_map(|line| line.strip_prefix("release: ")) {
        Some(release) => Ok(release.to_owned()),
        None => bail!("rustc -vV names no release"),
    }
}
