// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's programs that only some scenarios need: each lies, with its libraries, in an initrd of its own, so that the
//! ordinary one stays small.

use super::initrd;
use crate::apt::{self, Suite};
use crate::cache::{Cache, Key};
use crate::progress::Step;
use anyhow::{Context, Result};
use pasidon_harness::{Arch, Linux};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Part of the keys: changes when this file makes something different from the same packages.
const RECIPE_VERSION: &str = "1";

/// What is taken from which packages of the guest's suite.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    packages: Vec<String>,
    /// File in the packages to path in the initrd; of a folder, all files in it.
    files: BTreeMap<String, String>,
    /// Where the guest's own kernel lies in the initrd, as Debian ships it; nowhere when not given.
    kernel: Option<String>,
}

impl Tool {
    /// The initrd of `linux` with this tool, called `name`, in it; made when it is not in the cache.
    ///
    /// # Errors
    /// When a package cannot be had or lacks a file.
    pub fn initrd(&self, name: &str, suite: &str, linux: &Linux, arch: Arch) -> Result<PathBuf> {
        let cache = Cache::open()?;
        let mut key = Key::new().part(RECIPE_VERSION).part(suite);
        for package in &self.packages {
            key = key.part(package);
        }
        for (from, to) in &self.files {
            key = key.part(from).part(to);
        }
        let mut all = key.clone().part(linux.initrd.as_os_str().as_encoded_bytes());
        if let Some(target) = &self.kernel {
            all = all.part(target).part(linux.vmlinuz.as_os_str().as_encoded_bytes());
        }
        let debian = cache.entry(&format!("guest-tool-{name}-{arch}"), &key, |entry| {
            let step = Step::start(format!("fetching Debian's {name} for the guests"));
            let work = entry.join("work");
            self.unpack(suite, arch, &work, &step)?;
            fs::write(entry.join("files.img"), self.archive(&work)?).context("writing the archive")?;
            fs::remove_dir_all(&work).context("deleting what is no longer needed")?;
            step.done();
            Ok(())
        })?;
        let entry = cache.entry(&format!("guest-initrd-{name}-{arch}"), &all, |entry| {
            let more = initrd::read(&debian.join("files.img"))?;
            let mut archive = initrd::joined(initrd::read(&linux.initrd)?, &more);
            if let Some(target) = &self.kernel {
                let kernel = initrd::of_files(&[(target.clone(), initrd::read(&linux.vmlinuz)?)])?;
                archive = initrd::joined(archive, &kernel);
            }
            fs::write(entry.join("initrd.img"), archive).context("writing the initrd")
        })?;
        Ok(entry.join("initrd.img"))
    }

    fn unpack(&self, suite: &str, arch: Arch, work: &Path, step: &Step) -> Result<()> {
        let suite = Suite::open(suite, Some(arch.debian()), work, step)?;
        for package in &self.packages {
            let deb = suite.download(package, None, work, step)?;
            apt::unpack(&deb, ".", None, work, step)?;
        }
        Ok(())
    }

    /// The archive of the files, which are unpacked in `work`.
    fn archive(&self, work: &Path) -> Result<Vec<u8>> {
        let mut files = Vec::new();
        for (from, to) in &self.files {
            let from = work.join(from);
            if !from.is_dir() {
                files.push((to.clone(), from));
                continue;
            }
            let entries = fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))?;
            for entry in entries {
                let entry = entry?;
                files.push((format!("{to}/{}", entry.file_name().display()), entry.path()));
            }
        }
        files.sort();
        let read = |(target, path): (String, PathBuf)| Ok((target, initrd::read(&path)?));
        initrd::of_files(&files.into_iter().map(read).collect::<Result<Vec<_>>>()?)
    }
}
