// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs without an operating system, self-tests of the platform and a guest: compiled for the machine's processor,
//! started as they are.

use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::{apt, command, workspace};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// Part of the key: changes when this file builds differently from the same sources.
const RECIPE_VERSION: &str = "2";
/// No library, no start-up code.
const FLAGS: [&str; 12] = [
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-stack-protector",
    "-mgeneral-regs-only",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,--no-warn-rwx-segments",
    "-Tlink.ld",
];

/// What differs between the programs.
struct Program {
    /// What it is called.
    name: &'static str,
    /// Its folder in `tests`.
    folder: &'static str,
    /// The folder beside it with what it shares with others.
    shared: Option<&'static str>,
    compiler: &'static str,
    /// Debian packages with the compiler.
    packages: &'static [&'static str],
    /// Beside [`FLAGS`].
    flags: &'static [&'static str],
}

/// Without an MMU, memory takes aligned accesses only.
const SMMU: Program = Program {
    name: "smmu-selftest",
    folder: "platform/selftest/smmu",
    shared: None,
    compiler: "aarch64-linux-gnu-gcc",
    packages: &["gcc-aarch64-linux-gnu"],
    flags: &["-mstrict-align"],
};

/// Exceptions use the stack that they meet; no notes but the program's own.
const X86_64_FLAGS: &[&str] = &["-mno-red-zone", "-fcf-protection=none"];

const PC: Program = Program {
    name: "pc-selftest",
    folder: "platform/selftest/pc",
    shared: None,
    compiler: "gcc",
    packages: &["gcc"],
    flags: X86_64_FLAGS,
};

const EXITS: Program = Program {
    name: "exits",
    folder: "guests/exits",
    shared: Some("bare"),
    compiler: "gcc",
    packages: &["gcc"],
    flags: X86_64_FLAGS,
};

const SHARES: Program = Program { name: "shares", folder: "guests/shares", ..EXITS };

/// The self-test of the SMMUv3 model as an ELF file, made when it is not in the cache.
///
/// # Errors
/// When it does not compile.
pub fn smmu() -> Result<PathBuf> {
    SMMU.build()
}

/// The self-test of the PC, its SVM and its interrupt remapping, as an ELF file, made when it is not in the cache.
///
/// # Errors
/// When it does not compile.
pub fn pc() -> Result<PathBuf> {
    PC.build()
}

/// The guest `exits` for x86_64 as an ELF file, made when it is not in the cache.
///
/// # Errors
/// When it does not compile.
pub fn exits() -> Result<PathBuf> {
    EXITS.build()
}

/// The guest `shares` for x86_64 as an ELF file, made when it is not in the cache.
///
/// # Errors
/// When it does not compile.
pub fn shares() -> Result<PathBuf> {
    SHARES.build()
}

impl Program {
    fn build(&self) -> Result<PathBuf> {
        let dir = workspace::root().join("tests").join(self.folder);
        let shared = self.shared.map(|shared| format!("../{shared}"));
        let mut sources = workspace::list(&dir)?;
        if let Some(shared) = &shared {
            sources.extend(workspace::list(&dir.join(shared))?);
        }
        let key = Key::new().part(RECIPE_VERSION).files(&sources)?;
        let compiled = |extension: &std::ffi::OsStr| extension == "c" || extension == "S";
        sources.retain(|source| source.extension().is_some_and(compiled));
        let entry = Cache::open()?.entry(self.name, &key, |entry| {
            apt::need(self.packages)?;
            let step = Step::start(format!("building {}", self.name));
            // From here: a failed check prints its file's name, which must not be another clone's path.
            let names = sources.iter().filter_map(|source| source.strip_prefix(&dir).ok());
            let mut gcc = Command::new(self.compiler);
            gcc.current_dir(&dir).args(FLAGS).args(self.flags);
            if let Some(shared) = &shared {
                gcc.arg(format!("-I{shared}")).arg(format!("-L{shared}"));
            }
            gcc.arg("-o").arg(entry.join(self.name)).args(names);
            command::run(&mut gcc, &step)?;
            step.done();
            Ok(())
        })?;
        Ok(entry.join(self.name))
    }
}
