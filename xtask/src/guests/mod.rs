// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests: Debian's kernel and user space, taken apart on the host without installing anything.
//!
//! Principle: what runs in a guest is what Debian ships. The `vmlinux` inside the `bzImage` is unpacked here once,
//! since doing that under TCG takes longer than the rest of the boot; both forms are kept.

mod debian;
mod initrd;
mod kernel;

use crate::apt;
use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::workspace;
use anyhow::{Context, Result};
use debian::Packages;
use pasidon_harness::Linux;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Part of the initrd's key: changes when this folder makes something different from the same inputs.
const RECIPE_VERSION: &str = "2";

/// `tests/guests/linux/guest.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    packages: Packages,
    /// Sources of modules in this checkout.
    built_from_here: Vec<String>,
    /// Debian packages that building modules needs on the host.
    host_packages: Vec<String>,
    /// File in this checkout to path in the initrd.
    scripts: BTreeMap<String, String>,
}

/// The Linux guest for x86_64, made when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, a package cannot be had, or a module does not build.
pub fn linux() -> Result<Linux> {
    let dir = workspace::root().join("tests/guests/linux");
    let read = |name: &str| {
        fs::read(dir.join(name)).with_context(|| format!("reading {}", dir.join(name).display()))
    };
    let text = String::from_utf8(read("guest.toml")?).context("guest.toml is not UTF-8")?;
    let recipe: Recipe = toml::from_str(&text).context("in tests/guests/linux/guest.toml")?;
    let cache = Cache::open()?;
    let files = recipe.packages.files(&cache)?;
    let mut key = Key::new()
        .part(RECIPE_VERSION)
        .part(files.as_os_str().as_encoded_bytes());
    let mut scripts = Vec::new();
    for (name, target) in &recipe.scripts {
        let text = read(name)?;
        key = key.part(target).part(&text);
        scripts.push((target.clone(), text));
    }
    let mut own = Vec::new();
    for name in &recipe.built_from_here {
        let text = read(name)?;
        key = key.part(name).part(&text);
        own.push((PathBuf::from(name), text));
    }
    let initrd = cache.entry("guest-initrd-x86_64", &key, |entry| {
        apt::need(&recipe.host_packages)?;
        let step = Step::start("building the guests' modules and initrd");
        let work = entry.join("work");
        let modules = kernel::build_modules(&files, &own, &work, &step)?;
        let archive = initrd::build(&files.join("busybox"), &modules, &scripts)?;
        fs::write(entry.join("initrd.img"), archive).context("writing the initrd")?;
        fs::remove_dir_all(&work)?;
        step.done();
        Ok(())
    })?;
    Ok(Linux {
        vmlinux: files.join("vmlinux"),
        vmlinuz: files.join("vmlinuz"),
        initrd: initrd.join("initrd.img"),
    })
}
