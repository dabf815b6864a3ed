// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a scenario gets its files from. `xtask` makes them; the harness only uses them.

use crate::arch::Arch;
use crate::platform::Qemu;
use anyhow::Result;
use std::path::PathBuf;

/// A build of Pasidon.
#[derive(Clone)]
pub struct Application {
    /// The EFI application.
    pub efi: PathBuf,
    /// Its symbol file: lines `RVA SIZE NAME`, sorted, numbers in hexadecimal.
    pub symbols: PathBuf,
    /// Where the firmware looks for it on a removable disk, with `/`.
    pub removable_path: &'static str,
}

/// A Linux guest's files.
#[derive(Clone)]
pub struct Linux {
    /// The kernel without compression: on x86_64 an ELF file with a PVH entry, on aarch64 the same file as `vmlinuz`.
    pub vmlinux: PathBuf,
    /// The kernel as Debian ships it: on x86_64 a bzImage, on aarch64 an Image. Both are EFI applications too.
    pub vmlinuz: PathBuf,
    /// The root file system with the scripts of `tests/guests/linux`.
    pub initrd: PathBuf,
}

/// Makes, or finds already made, what machines are started from. Each call is cheap when nothing changed; scenarios that
/// run at the same time may ask at the same time.
pub trait Workshop: Sync {
    /// The architecture that everything here is for.
    fn arch(&self) -> Arch;

    /// The platform's QEMU, with what runs its processors' instructions.
    ///
    /// # Errors
    /// When one of them cannot be built.
    fn qemu(&self) -> Result<Qemu>;

    /// The plugin of that QEMU of that name (`tests/platform/plugins/NAME.c`).
    ///
    /// # Errors
    /// When it does not build.
    fn plugin(&self, name: &str) -> Result<PathBuf>;

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

    /// The Linux guest's initrd with programs of Debian in it: those that `tests/guests/linux/guest.toml` has under the
    /// name `tool` for this architecture.
    ///
    /// # Errors
    /// When there are none of that name, or it cannot be made.
    fn initrd_with(&self, tool: &str) -> Result<PathBuf>;

    /// The Linux guest's initrd for x86_64 with the accelerator model's self-test (`tests/platform/selftest/dsa`) in it as
    /// `/bin/dsa-selftest`.
    ///
    /// # Errors
    /// When it cannot be made.
    fn self_test(&self) -> Result<PathBuf>;

    /// The self-test of the aarch64 machine's SMMUv3 model (`tests/platform/selftest/smmu`): an ELF file that is started
    /// without firmware.
    ///
    /// # Errors
    /// When it does not build.
    fn iommu_self_test(&self) -> Result<PathBuf>;

    /// The self-test of the x86_64 machine's SVM and interrupt remapping (`tests/platform/selftest/pc`): an ELF file that
    /// the machine starts as a kernel.
    ///
    /// # Errors
    /// When it does not build.
    fn pc_self_test(&self) -> Result<PathBuf>;

    /// The guest for x86_64 that only exits (`tests/guests/exits`): an ELF file with a PVH entry.
    ///
    /// # Errors
    /// When it does not build.
    fn exits(&self) -> Result<PathBuf>;

    /// The guest for x86_64 that has each vdev it finds copy (`tests/guests/shares`): an ELF file with a PVH entry.
    ///
    /// # Errors
    /// When it does not build.
    fn shares(&self) -> Result<PathBuf>;

    /// The Linux guest's initrd for x86_64 with what makes a hypervisor of it: KVM's modules in `/lib/modules`, that guest
    /// as `/lib/exits`, and the monitor that runs it, `/bin/exits-on-kvm`.
    ///
    /// # Errors
    /// When it cannot be made.
    fn kvm(&self) -> Result<PathBuf>;
}
