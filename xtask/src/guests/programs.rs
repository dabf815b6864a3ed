// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of this workspace that run in the guests: static, so that the initrd needs no libraries.

use crate::progress::Step;
use crate::{apt, command, workspace};
use anyhow::Result;
use std::path::PathBuf;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The linker, and the C library that std stands on.
const PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];

/// Builds the programs of these packages, which are named like them, and returns the executables in the same order.
///
/// # Errors
/// When one does not build.
pub fn build(programs: &[String]) -> Result<Vec<PathBuf>> {
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    apt::need(&PACKAGES)?;
    let step = Step::start("building the guests' programs");
    let mut cargo = command::cargo();
    // A folder of its own: other flags than those of the host's own programs, which would be built again.
    let folder = workspace::target_dir().join("guests");
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    cargo.arg(&folder);
    for program in programs {
        cargo.args(["--package", program.as_str()]);
    }
    cargo.args(["--config", "profile.release.strip=true"]);
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command::run(&mut cargo, &step)?;
    step.done();
    Ok(programs
        .iter()
        .map(|program| folder.join(TARGET).join("release").join(program))
        .collect())
}
