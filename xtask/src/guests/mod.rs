// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests: Debian's kernel and user space, taken apart on the host without installing anything.
//!
//! Principle: what runs in a guest is what Debian ships. The `vmlinux` inside x86_64's `bzImage` is unpacked here once,
//! since doing that under TCG takes longer than the rest of the boot; both forms are kept.

mod debian;
mod initrd;
mod kernel;
mod programs;
mod tool;

use crate::apt;
use crate::cache::{self, Cache, Key};
use crate::progress::Step;
use crate::{command, workspace};
use anyhow::{Context, Result, ensure};
use debian::Guest;
use pasidon_harness::{Arch, Linux};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Part of the initrd's key: changes when this folder makes something different from the same inputs.
const RECIPE_VERSION: &str = "3";
/// Debian packages that the self-test is compiled with.
const SELF_TEST_PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];
/// The program of this workspace that runs a guest under KVM.
const KVM_MONITOR: &str = "exits-on-kvm";

/// `tests/guests/linux/guest.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// File in this checkout to path in the initrd, on every architecture.
    scripts: BTreeMap<String, String>,
    x86_64: Guest,
    aarch64: Guest,
}

/// A file of the Linux guest's folder in this checkout.
fn read(name: &str) -> Result<Vec<u8>> {
    initrd::read(&workspace::root().join("tests/guests/linux").join(name))
}

/// What `guest.toml` says: the scripts for every architecture, and the guest of this one.
fn recipe(arch: Arch) -> Result<(BTreeMap<String, String>, Guest)> {
    let text = String::from_utf8(read("guest.toml")?).context("guest.toml is not UTF-8")?;
    let recipe: Recipe = toml::from_str(&text).context("in tests/guests/linux/guest.toml")?;
    let guest = match arch {
        Arch::X86_64 => recipe.x86_64,
        Arch::Aarch64 => recipe.aarch64,
    };
    Ok((recipe.scripts, guest))
}

/// The Linux guest, made when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, a package cannot be had, or a module does not build.
pub fn linux(arch: Arch) -> Result<Linux> {
    let (scripts, guest) = recipe(arch)?;
    let cache = Cache::open()?;
    let files = guest.files(&cache, arch)?;
    let mut key = Key::new().part(RECIPE_VERSION).part(files.as_os_str().as_encoded_bytes());
    let mut programs = Vec::new();
    for (name, target) in scripts.iter().chain(&guest.scripts) {
        let text = read(name)?;
        key = key.part(target).part(&text);
        programs.push((target.clone(), text));
    }
    let mut own = Vec::new();
    for name in guest.build.iter().flat_map(|build| &build.from_here) {
        let text = read(name)?;
        key = key.part(name).part(&text);
        own.push((PathBuf::from(name), text));
    }
    for (name, program) in guest.programs.iter().zip(programs::build(&guest.programs, arch)?) {
        let target = format!("bin/{name}");
        let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        key = key.part(&target).part(&bytes);
        programs.push((target, bytes));
    }
    let initrd = cache.entry(&format!("guest-initrd-{arch}"), &key, |entry| {
        let step = Step::start("building the guests' modules and initrd");
        let mut modules = workspace::list(&files.join("modules"))?;
        let work = entry.join("work");
        if let Some(build) = &guest.build {
            apt::need(&build.host_packages)?;
            let built = kernel::build_modules(&files, &build.cross_compile, &own, &work, &step)?;
            modules.extend(built);
        }
        let archive = initrd::build(&files.join("busybox"), &modules, &programs)?;
        fs::write(entry.join("initrd.img"), archive).context("writing the initrd")?;
        cache::remove_if_there(&work)?;
        step.done();
        Ok(())
    })?;
    Ok(Linux {
        vmlinux: files.join("vmlinux"),
        vmlinuz: files.join("vmlinuz"),
        initrd: initrd.join("initrd.img"),
    })
}

/// The initrd of `linux` with the programs of Debian in it that `guest.toml` calls `tool`, made when it is not in the
/// cache.
///
/// # Errors
/// When the recipe has no such tool, or a package cannot be had.
pub fn with_tool(linux: &Linux, arch: Arch, tool: &str) -> Result<PathBuf> {
    let (_, guest) = recipe(arch)?;
    let found = guest.tools.get(tool);
    let found = found.with_context(|| format!("guest.toml has no tool {tool} for {arch}"))?;
    found.initrd(tool, &guest.suite, linux, arch)
}

/// The initrd of `linux`, for x86_64, with KVM in it, made when it is not in the cache: the modules, the monitor
/// `exits-on-kvm`, and the guest `exits`, an ELF file.
///
/// # Errors
/// When the recipe is wrong, a package cannot be had, or the monitor does not build.
pub fn kvm(linux: &Linux, exits: &Path) -> Result<PathBuf> {
    let arch = Arch::X86_64;
    let (_, guest) = recipe(arch)?;
    let cache = Cache::open()?;
    let mut paths = workspace::list(&guest.files(&cache, arch)?.join("kvm"))?;
    ensure!(!paths.is_empty(), "guest.toml has no modules of KVM for {arch}");
    let mut targets: Vec<String> = Vec::new();
    for module in &paths {
        let name = module.file_name().context("a module without a name")?;
        targets.push(format!("lib/modules/{}", name.display()));
    }
    paths.extend(programs::build(&[KVM_MONITOR.to_owned()], arch)?);
    targets.push(format!("bin/{KVM_MONITOR}"));
    paths.push(exits.to_path_buf());
    targets.push("lib/exits".to_owned());
    let contents: Vec<Vec<u8>> = paths.iter().map(|path| initrd::read(path)).collect::<Result<_>>()?;
    let files: Vec<(String, Vec<u8>)> = targets.into_iter().zip(contents).collect();
    let mut key = Key::new().part(RECIPE_VERSION).part(linux.initrd.as_os_str().as_encoded_bytes());
    for (target, content) in &files {
        key = key.part(target).part(content);
    }
    let entry = cache.entry("guest-initrd-kvm-x86_64", &key, |entry| {
        let archive = initrd::joined(initrd::read(&linux.initrd)?, &initrd::of_files(&files)?);
        fs::write(entry.join("initrd.img"), archive).context("writing the initrd")
    })?;
    Ok(entry.join("initrd.img"))
}

/// The initrd of `linux`, a guest for x86_64, with the accelerator model's self-test in it, made when it is not in the
/// cache.
///
/// # Errors
/// When the self-test does not compile.
pub fn self_test(linux: &Linux) -> Result<PathBuf> {
    let initrd = &linux.initrd;
    let dir = workspace::root().join("tests/platform/selftest/dsa");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut sources: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sources.sort();
    let mut key = Key::new().part(RECIPE_VERSION).part(initrd.as_os_str().as_encoded_bytes());
    for source in &sources {
        let text = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        key = key.part(source.file_name().unwrap_or_default().as_encoded_bytes()).part(text);
    }
    sources.retain(|source| source.extension().is_some_and(|extension| extension == "c"));
    let entry = Cache::open()?.entry("guest-selftest-x86_64", &key, |entry| {
        apt::need(&SELF_TEST_PACKAGES)?;
        let step = Step::start("building the accelerator model's self-test");
        let program = entry.join("dsa-selftest");
        // By their names alone: a failed check prints its file's, which must not be another clone's path.
        let names = sources.iter().filter_map(|source| source.file_name());
        let mut gcc = Command::new("gcc");
        gcc.current_dir(&dir);
        gcc.args(["-O2", "-Wall", "-Werror", "-static", "-o"]).arg(&program);
        command::run(gcc.args(names), &step)?;
        let more = initrd::of_files(&[("bin/dsa-selftest".to_owned(), fs::read(&program)?)])?;
        let archive = initrd::joined(fs::read(initrd)?, &more);
        fs::write(entry.join("initrd.img"), archive).context("writing the initrd")?;
        fs::remove_file(&program)?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("initrd.img"))
}
