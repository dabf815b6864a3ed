// SPDX-License-Identifier: MIT OR Apache-2.0
//! Self-tests of the platform that need no operating system: compiled for the machine's processor, started as they are.

use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::{apt, command, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Part of the key: changes when this file builds differently from the same sources.
const RECIPE_VERSION: &str = "1";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// The Debian package of the compiler.
const PACKAGES: [&str; 1] = ["gcc-aarch64-linux-gnu"];
/// No library, no start-up code; without an MMU memory takes aligned accesses only.
const FLAGS: [&str; 13] = [
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-stack-protector",
    "-mgeneral-regs-only",
    "-mstrict-align",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,--no-warn-rwx-segments",
    "-Tlink.ld",
];

/// The self-test of the SMMUv3 model as an ELF file, made when it is not in the cache.
///
/// # Errors
/// When it does not compile.
pub fn smmu() -> Result<PathBuf> {
    let dir = workspace::root().join("tests/platform/selftest/smmu");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut sources: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sources.sort();
    let mut key = Key::new().part(RECIPE_VERSION);
    for source in &sources {
        let text = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        key = key
            .part(source.file_name().unwrap_or_default().as_encoded_bytes())
            .part(text);
    }
    let compiled = |extension: &std::ffi::OsStr| extension == "c" || extension == "S";
    sources.retain(|source| source.extension().is_some_and(compiled));
    let entry = Cache::open()?.entry("selftest-smmu", &key, |entry| {
        apt::need(&PACKAGES)?;
        let step = Step::start("building the SMMU model's self-test");
        // By their names alone: a failed check prints its file's, which must not be another clone's path.
        let names = sources.iter().filter_map(|source| source.file_name());
        let mut gcc = Command::new(COMPILER);
        gcc.current_dir(&dir).args(FLAGS);
        gcc.arg("-o").arg(entry.join("smmu-selftest")).args(names);
        command::run(&mut gcc, &step)?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("smmu-selftest"))
}
