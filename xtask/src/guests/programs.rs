// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of this workspace that run in the guests: static, so that the initrd needs no libraries.

use crate::progress::Step;
use crate::{apt, command, toolchain, workspace};
use anyhow::Result;
use pasidon_harness::Arch;
use std::path::PathBuf;

/// What programs of an architecture are built with.
struct Target {
    name: &'static str,
    /// Debian packages of the linker, and of the C library that std stands on.
    packages: &'static [&'static str],
    /// Cargo's variable for the linker where it is not the host's, and the linker.
    linker: Option<(&'static str, &'static str)>,
}

const X86_64: Target =
    Target { name: "x86_64-unknown-linux-gnu", packages: &["gcc", "libc6-dev"], linker: None };

const AARCH64: Target = Target {
    name: "aarch64-unknown-linux-gnu",
    packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    linker: Some(("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")),
};

/// Builds the programs of these packages, which are named like them, and returns the executables in the same order.
///
/// # Errors
/// When one does not build.
pub fn build(programs: &[String], arch: Arch) -> Result<Vec<PathBuf>> {
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    let target = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    apt::need(target.packages)?;
    let step = Step::start("building the guests' programs");
    let mut cargo = toolchain::cargo(target.name, "build", "std,panic_abort", &[])?;
    // A folder of its own: other flags than those of the host's own programs, which would be built again.
    let folder = workspace::target_dir().join("guests");
    cargo.args(["--quiet", "--release", "--target-dir"]).arg(&folder);
    for program in programs {
        cargo.args(["--package", program.as_str()]);
    }
    cargo.args(["--config", "profile.release.strip=true"]);
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    cargo.envs(target.linker);
    command::run(&mut cargo, &step)?;
    step.done();
    Ok(programs.iter().map(|program| folder.join(target.name).join("release").join(program)).collect())
}
