// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the Linux guest takes from Debian: a kernel with modules, its headers and sources to build more, busybox.
//!
//! Layout of the finished folder: `vmlinuz`, `vmlinux`, `busybox`, `modules/*.ko`, `sources/*.c`, and `kbuild/` with
//! the header packages as they unpack, where `kbuild/flavour` leads to those of this kernel.

use super::kernel;
use crate::apt::{self, Suite};
use crate::cache::{Cache, Key};
use crate::progress::Step;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Part of the key: changes when this file makes something different from the same packages.
const RECIPE_VERSION: &str = "1";

/// Packages of one suite, and what is taken from them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    suite: String,
    kernel: String,
    headers: String,
    kbuild: String,
    source: String,
    busybox: String,
    /// Modules of the kernel package.
    modules: Vec<PathBuf>,
    /// Files of the kernel's source that are built as modules.
    built_from_source: Vec<PathBuf>,
}

impl Packages {
    /// The folder with all of it, made when it is not in the cache.
    ///
    /// # Errors
    /// When a package cannot be had or lacks what is wanted from it.
    pub fn files(&self, cache: &Cache) -> Result<PathBuf> {
        let names = [
            &self.suite,
            &self.kernel,
            &self.headers,
            &self.kbuild,
            &self.source,
            &self.busybox,
        ];
        let paths = self.modules.iter().chain(&self.built_from_source);
        let key = names.into_iter().fold(Key::new().part(RECIPE_VERSION), Key::part);
        let key = paths
            .map(|path| path.as_os_str().as_encoded_bytes())
            .fold(key, Key::part);
        cache.entry("guest-debian-x86_64", &key, |entry| self.fetch(entry))
    }

    fn fetch(&self, entry: &Path) -> Result<()> {
        let work = entry.join("work");
        let kbuild = entry.join("kbuild");
        fs::create_dir_all(&work)?;
        fs::create_dir_all(&kbuild)?;
        let step = Step::start("fetching Debian's kernel for the guests (220 MB)");
        let suite = Suite::open(&self.suite, &work, &step)?;
        let image = suite.dependency(&self.kernel, "linux-image-")?;
        let headers = suite.dependency(&self.headers, "linux-headers-")?;
        let common = suite.dependency(&headers, "linux-headers-")?;
        let unpack = |package: &str, member: &str, to: &Path| {
            apt::unpack(
                &suite.download(package, None, &work, &step)?,
                member,
                None,
                to,
                &step,
            )
        };
        for package in [&image, &self.busybox, &self.source] {
            unpack(package, ".", &work)?;
        }
        for package in [&headers, &common, &self.kbuild] {
            unpack(package, "usr", &kbuild)?;
        }
        step.done();

        let release = image.trim_start_matches("linux-image-");
        let step = Step::start(format!("unpacking Linux {release}"));
        let vmlinuz = entry.join("vmlinuz");
        fs::rename(work.join(format!("boot/vmlinuz-{release}")), &vmlinuz).context("taking the kernel")?;
        kernel::unpack_vmlinux(&vmlinuz, &entry.join("vmlinux"))?;
        fs::rename(work.join("bin/busybox"), entry.join("busybox")).context("taking busybox")?;
        fs::create_dir(entry.join("modules"))?;
        for module in &self.modules {
            let name = module.file_name().context("a module path without a file name")?;
            let path = work.join("lib/modules").join(release).join(module);
            fs::rename(&path, entry.join("modules").join(name))
                .with_context(|| format!("taking {}", path.display()))?;
        }
        fs::create_dir(entry.join("sources"))?;
        let tarball = work.join("usr/src").join(format!("{}.tar.xz", self.source));
        kernel::extract(&tarball, &self.built_from_source, &entry.join("sources"), &step)?;
        let flavour = Path::new("usr/src").join(&headers);
        // The one absolute path in the packages: where the flavour's Makefile finds the common one.
        let include = format!("include $(dir $(lastword $(MAKEFILE_LIST)))../{common}/Makefile\n");
        fs::write(kbuild.join(&flavour).join("Makefile"), include)
            .context("writing the headers' Makefile")?;
        std::os::unix::fs::symlink(&flavour, kbuild.join("flavour"))?;
        fs::remove_dir_all(&work).context("deleting what is no longer needed")?;
        step.done();
        Ok(())
    }
}
