// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: everything `run` and `test` would otherwise make on first use.

use crate::uefi::{self, Arch};
use crate::workshop::Shop;
use anyhow::Result;
use pasidon_harness::Workshop;

/// Makes it all.
///
/// # Errors
/// At the first part that cannot be made.
pub fn prepare() -> Result<()> {
    // Asking for a cargo of the target completes the toolchain.
    uefi::cargo(Arch::X86_64, "build")?;
    Shop.qemu()?;
    Shop.linux()?;
    Ok(())
}

/// Makes it all, and prints where it lies.
///
/// # Errors
/// At the first part that cannot be made.
pub fn run() -> Result<()> {
    prepare()?;
    let linux = Shop.linux()?;
    println!("platform: {}", Shop.qemu()?.display());
    println!("guest: {}, {}", linux.vmlinux.display(), linux.initrd.display());
    Ok(())
}
