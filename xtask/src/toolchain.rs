// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cargo for targets whose standard library may not be installed.
//!
//! Principle: the project's own code is stable Rust. Only where the toolchain has no library for the target, and rustup
//! may not or cannot add it, cargo builds the library from source, and that one cargo invocation is told to accept the
//! unstable `-Zbuild-std` for it.

use crate::{command, rust_src, workspace};
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A cargo `subcommand` for `target`; the caller adds further arguments. Where it has to be built, the standard library
/// is that of the crates `std`, with the arguments `more`.
///
/// # Errors
/// When the target's standard library can be had neither prebuilt nor as source.
pub fn cargo(target: &str, subcommand: &str, std: &str, more: &[&str]) -> Result<Command> {
    let mut cargo = command::cargo();
    cargo.arg(subcommand).args(["--target", target]);
    let sysroot = PathBuf::from(command::output(rustc().args(["--print", "sysroot"]))?);
    if !has_std(&sysroot, target) && !rustup_adds(target, &sysroot) {
        rust_src::provide(&sysroot, &compiler_version()?)?;
        cargo.arg(format!("-Zbuild-std={std}")).args(more);
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
fn has_std(sysroot: &Path, target: &str) -> bool {
    let Ok(files) = fs::read_dir(sysroot.join("lib/rustlib").join(target).join("lib")) else {
        return false;
    };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Asks rustup for the target, where it may be asked; says whether the target is there now.
fn rustup_adds(target: &str, sysroot: &Path) -> bool {
    if std::env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0") || !command::exists("rustup")
    {
        return false;
    }
    let mut rustup = Command::new("rustup");
    rustup.current_dir(workspace::root()).args(["target", "add", target]);
    let added = rustup.stdin(Stdio::null()).status().is_ok_and(|status| status.success());
    if !added {
        eprintln!("  rustup cannot add {target}; building its standard library from source instead");
    }
    added && has_std(sysroot, target)
}

/// The compiler's version, such as `1.95.0`.
fn compiler_version() -> Result<String> {
    let verbose = command::output(rustc().arg("-vV"))?;
    match verbose.lines().find_map(|line| line.strip_prefix("release: ")) {
        Some(release) => Ok(release.to_owned()),
        None => bail!("rustc -vV names no release"),
    }
}
