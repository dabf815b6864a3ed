// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: everything `run` and `test` would otherwise make on first use.

use crate::workshop::Shop;
use crate::{processor, uefi};
use anyhow::Result;
use pasidon_harness::{Arch, Cpu, Workshop};

/// Makes it all for machines of `arch` with processors `cpu`, and returns the workshop that has it.
///
/// # Errors
/// When a part cannot be made: the first.
pub fn prepare(arch: Arch, cpu: Cpu) -> Result<Shop> {
    let shop = Shop::new(arch, cpu);
    // Asking for a cargo of the target completes the toolchain.
    uefi::cargo(arch, "build")?;
    shop.qemu()?;
    shop.linux()?;
    Ok(shop)
}

/// Makes it all, and prints where it lies.
///
/// # Errors
/// When a part cannot be made: the first.
pub fn run(arch: Arch) -> Result<()> {
    let shop = prepare(arch, Cpu::Tcg)?;
    let linux = shop.linux()?;
    println!("platform: {}", shop.qemu()?.program.display());
    println!("guest: {}, {}", linux.vmlinux.display(), linux.initrd.display());
    println!("processor of host tests: {}", processor::library()?.display());
    Ok(())
}
