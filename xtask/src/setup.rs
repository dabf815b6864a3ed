// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: everything `run` and `test` would otherwise make on first use.

use crate::uefi::{self, Arch};
use crate::workshop::Shop;
use anyhow::Result;
use pasidon_harness::Workshop;

/// Makes it all, and prints where it lies.
///
/// # Errors
/// At the first part that cannot be made.
pub fn run() -> Result<()> {
    uefi::cargo(Arch::X86_64, "build")?;
    println!("toolchain for {}: ready", Arch::X86_64.target());
    println!("platform: {}", Shop.qemu()?.display());
    let linux = Shop.linux()?;
    println!("guest: {}, {}", linux.vmlinux.display(), linux.initrd.display());
    Ok(())
}
