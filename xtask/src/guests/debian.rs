// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the Linux guest takes from Debian: a kernel with modules, busybox, and where modules are built for it the
//! kernel's headers and sources.
//!
//! Layout of the finished folder: `vmlinuz`, `vmlinux`, `busybox`, `modules/*.ko`, `kvm/*.ko`, `sources/*.c`, and
//! `kbuild/` with the header packages as they unpack, where `kbuild/flavour` leads to those of this kernel.

use super::kernel;
use super::tool::Tool;
use crate::apt::{self, Suite};
use crate::cache::{Cache, Key};
use crate::progress::Step;
use anyhow::{Context, Result};
use pasidon_harness::Arch;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Part of the key: changes when this file makes something different from the same packages.
const RECIPE_VERSION: &str = "2";

/// Packages of one suite for one architecture, what is taken from them, and what is added.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Debian's name of it.
    pub suite: String,
    kernel: String,
    busybox: String,
    /// Modules of the kernel package.
    modules: Vec<PathBuf>,
    /// Those of KVM.
    #[serde(default)]
    kvm: Vec<PathBuf>,
    /// Programs of this workspace, by the names of their packages.
    #[serde(default)]
    pub programs: Vec<String>,
    /// File in this checkout to path in the initrd.
    #[serde(default)]
    pub scripts: BTreeMap<String, String>,
    pub build: Option<Build>,
    /// Programs of Debian for some scenarios, by name.
    #[serde(default)]
    pub tools: BTreeMap<String, Tool>,
}

/// Modules that are built for the guest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    headers: String,
    kbuild: String,
    /// What the names of the compiler and the binutils start with, where the host's own are for another processor.
    #[serde(default)]
    pub cross_compile: String,
    /// Debian packages that the host needs for it.
    pub host_packages: Vec<String>,
    from_source: Option<Source>,
    /// Files in this checkout.
    pub from_here: Vec<String>,
}

/// Files of the kernel's source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    package: String,
    files: Vec<PathBuf>,
}

impl Guest {
    /// The folder with all that is Debian's, made when it is not in the cache.
    ///
    /// # Errors
    /// When a package cannot be had or lacks what is wanted from it.
    pub fn files(&self, cache: &Cache, arch: Arch) -> Result<PathBuf> {
        let mut names = vec![&self.suite, &self.kernel, &self.busybox];
        let mut paths: Vec<&PathBuf> = self.modules.iter().chain(&self.kvm).collect();
        if let Some(build) = &self.build {
            names.extend([&build.headers, &build.kbuild]);
            if let Some(source) = &build.from_source {
                names.push(&source.package);
                paths.extend(&source.files);
            }
        }
        let key = names.into_iter().fold(Key::new().part(RECIPE_VERSION), Key::part);
        let key = paths.into_iter().map(|path| path.as_os_str().as_encoded_bytes()).fold(key, Key::part);
        cache.entry(&format!("guest-debian-{arch}"), &key, |entry| self.fetch(entry, arch))
    }

    fn fetch(&self, entry: &Path, arch: Arch) -> Result<()> {
        let work = entry.join("work");
        fs::create_dir_all(&work)?;
        let step =
            Step::start(format!("fetching Debian's {} kernel for the guests (60 to 220 MB)", arch.debian()));
        let suite = Suite::open(&self.suite, Some(arch.debian()), &work, &step)?;
        let image = suite.dependency(&self.kernel, "linux-image-")?;
        for package in [&image, &self.busybox] {
            unpack(&suite, package, ".", &work, &work, &step)?;
        }
        if let Some(build) = &self.build {
            build.fetch(&suite, &self.suite, entry, &work, &step)?;
        }
        step.done();

        let release = image.trim_start_matches("linux-image-");
        let step = Step::start(format!("unpacking Linux {release}"));
        let vmlinuz = entry.join("vmlinuz");
        fs::rename(work.join(format!("boot/vmlinuz-{release}")), &vmlinuz).context("taking the kernel")?;
        match arch {
            Arch::X86_64 => kernel::unpack_vmlinux(&vmlinuz, &entry.join("vmlinux"))?,
            Arch::Aarch64 => std::os::unix::fs::symlink("vmlinuz", entry.join("vmlinux"))?,
        }
        fs::rename(work.join("bin/busybox"), entry.join("busybox")).context("taking busybox")?;
        for (folder, modules) in [("modules", &self.modules), ("kvm", &self.kvm)] {
            fs::create_dir(entry.join(folder))?;
            for module in modules {
                let name = module.file_name().context("a module path without a file name")?;
                let path = work.join("lib/modules").join(release).join(module);
                fs::rename(&path, entry.join(folder).join(name))
                    .with_context(|| format!("taking {}", path.display()))?;
            }
        }
        fs::remove_dir_all(&work).context("deleting what is no longer needed")?;
        step.done();
        Ok(())
    }
}

impl Build {
    /// Fetches from `suite`, which is the guest's, and from the suite `name` for this machine.
    fn fetch(&self, suite: &Suite, name: &str, entry: &Path, work: &Path, step: &Step) -> Result<()> {
        let kbuild = entry.join("kbuild");
        fs::create_dir_all(&kbuild)?;
        let headers = suite.dependency(&self.headers, "linux-headers-")?;
        let common = suite.dependency(&headers, "linux-headers-")?;
        for package in [&headers, &common] {
            unpack(suite, package, "usr", work, &kbuild, step)?;
        }
        // The kernel's own tools run here, whatever they build for.
        let tools = work.join("tools");
        let here = Suite::open(name, None, &tools, step)?;
        unpack(&here, &self.kbuild, "usr", &tools, &kbuild, step)?;
        let sources = entry.join("sources");
        fs::create_dir(&sources)?;
        if let Some(Source { package, files }) = &self.from_source {
            unpack(suite, package, ".", work, work, step)?;
            let tarball = work.join("usr/src").join(format!("{package}.tar.xz"));
            kernel::extract(&tarball, files, &sources, step)?;
        }
        let flavour = Path::new("usr/src").join(&headers);
        // The one absolute path in the packages: where the flavour's Makefile finds the common one.
        let include = format!("include $(dir $(lastword $(MAKEFILE_LIST)))../{common}/Makefile\n");
        fs::write(kbuild.join(&flavour).join("Makefile"), include)
            .context("writing the headers' Makefile")?;
        std::os::unix::fs::symlink(&flavour, kbuild.join("flavour"))?;
        Ok(())
    }
}

/// Downloads a package into `work` and unpacks `member` of it into `to`.
fn unpack(suite: &Suite, package: &str, member: &str, work: &Path, to: &Path, step: &Step) -> Result<()> {
    let deb = suite.download(package, None, work, step)?;
    apt::unpack(&deb, member, None, to, step)
}
