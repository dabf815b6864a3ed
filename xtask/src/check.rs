// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask check`: what must hold for every change without running it.

use crate::{arrows, book, command, comments, docs, uefi, workspace};
use anyhow::Result;
use pasidon_harness::Arch;

/// The crate that only builds for UEFI targets; every other one builds on the host.
pub const UEFI_ONLY: &str = "pasidon";

/// Runs formatting, clippy and rustdoc over the host crates and the UEFI application, and builds the book.
///
/// # Errors
/// When one of them finds something: the first.
pub fn run() -> Result<()> {
    let host = ["--workspace", "--exclude", UEFI_ONLY];
    let lib_or_bin = ["--package", UEFI_ONLY];
    say("formatting");
    command::run_visible(command::cargo().args(["fmt", "--all", "--check"]))?;
    say("arrows between files");
    arrows::check()?;
    say("sections of errors");
    comments::check()?;
    say("what the documentation names");
    docs::check()?;
    say("the book");
    book::build()?;
    say("clippy, host crates");
    let mut clippy = command::cargo();
    command::run_visible(clippy.arg("clippy").args(host).args(["--all-targets", "--", "-D", "warnings"]))?;
    for arch in Arch::ALL {
        say(&format!("clippy, UEFI application for {arch}"));
        // Its test target would need a standard library: what can be tested on the host lies in the other crates.
        command::run_visible(uefi::cargo(*arch, "clippy")?.args(lib_or_bin).args(["--", "-D", "warnings"]))?;
    }
    say("documentation");
    let mut doc = command::cargo();
    doc.env("RUSTDOCFLAGS", "-D warnings").arg("doc").args(host).arg("--no-deps");
    command::run_visible(&mut doc)?;
    for arch in Arch::ALL {
        let mut doc = uefi::cargo(*arch, "doc")?;
        doc.env("RUSTDOCFLAGS", "-D warnings")
            .args(lib_or_bin)
            // The host's documentation leaves out what only builds for that architecture.
            .args(["--package", uefi::package(*arch), "--no-deps"]);
        command::run_visible(&mut doc)?;
    }
    println!("check: everything holds in {}", workspace::root().display());
    Ok(())
}

fn say(what: &str) {
    println!("check: {what}");
}
