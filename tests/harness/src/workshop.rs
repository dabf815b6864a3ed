// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a scenario gets its files from. `xtask` makes them; the harness only uses them.

use anyhow::Result;
use std::path::PathBuf;

/// A build of Pasidon.
#[derive(Clone)]
pub struct Application {
    /// The EFI application.
    pub efi: PathBuf,
    /// Its symbol file: lines `RVA SIZE NAME`, sorted, numbers in hexadecimal.
    pub symbols: PathBuf,
}

/// A Linux guest's files.
#[derive(Clone)]
pub struct Linux {
    /// The kernel as an ELF file with a PVH entry.
    pub vmlinux: PathBuf,
    /// The same kernel as Debian ships it (a bzImage).
    pub vmlinuz: PathBuf,
    /// The root file system with the scripts of `tests/guests/linux`.
    pub initrd: PathBuf,
}

/// Makes, or finds already made, what machines are started from. Each call is cheap when nothing changed.
pub trait Workshop {
    /// The platform's QEMU.
    ///
    /// # Errors
    /// When it cannot be built.
    fn qemu(&self) -> Result<PathBuf>;

    /// The plugin of that QEMU that counts a hypervisor's instructions (`tests/platform/plugins/exits.c`).
    ///
    /// # Errors
    /// When it does not build.
    fn exit_counter(&self) -> Result<PathBuf>;

    /// Pasidon, built with those cargo features.
    ///
    /// # Errors
    /// When it does not build.
    fn application(&self, features: &[&str]) -> Result<Application>;

    /// The Linux guest.
    ///
    /// # Errors
    /// When it cannot be made.
    fn linux(&self) -> Result<Linux>;

    /// The Linux guest's initrd with the accelerator model's self-test (`tests/platform/selftest/dsa`) in it as
    /// `/bin/dsa-selftest`.
    ///
    /// # Errors
    /// When it cannot be made.
    fn self_test(&self) -> Result<PathBuf>;
}
