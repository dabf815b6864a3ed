// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor that host tests run on: Bochs's, as a shared library, built from Debian's source and the patches of
//! this checkout as `tests/cpu/bochs.toml` says, with the shim of `tests/cpu/shim`.
//!
//! Principle: Bochs and the shim are two cache entries, as Bochs takes minutes and the shim seconds.

use crate::apt;
use crate::cache::{self, Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::upstream::{self, Patches, Source};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Names the library for the tests, and here another one to use.
pub const VARIABLE: &str = "PASIDON_BOCHS";
/// Part of every key here: changes when this file builds differently from the same inputs.
const RECIPE_VERSION: &str = "1";
/// The library.
const LIBRARY: &str = "libpasidon-bochs.so";

/// `tests/cpu/bochs.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    source: Source,
    build: Build,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    configure: Vec<String>,
    targets: Vec<PathBuf>,
    packages: Vec<String>,
}

/// The library, built when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, something it needs cannot be had, a patch does not apply, or the build fails.
pub fn library() -> Result<PathBuf> {
    if let Some(own) = std::env::var_os(VARIABLE).filter(|own| !own.is_empty()) {
        let own = PathBuf::from(own);
        ensure!(own.is_file(), "{VARIABLE}: no such library: {}", own.display());
        return Ok(own);
    }
    let dir = workspace::root().join("tests/cpu");
    let recipe: Recipe = upstream::recipe(&dir.join("bochs.toml"))?;
    let patches = Patches::read(&dir.join("patches"))?;
    let key = patches.add_to(recipe.key());
    let cache = Cache::open()?;
    let shim = workspace::list(&dir.join("shim"))?;
    let shim_key = key.clone().files(&shim)?;
    let entry = cache.entry("bochs-library", &shim_key, |entry| {
        apt::need(&recipe.build.packages)?;
        let bochs = cache.entry("bochs", &key, |entry| recipe.build(&cache, &patches, entry))?;
        recipe.link(&bochs, &shim, &entry.join(LIBRARY))
    })?;
    Ok(entry.join(LIBRARY))
}

impl Recipe {
    /// Everything but the patches.
    fn key(&self) -> Key {
        let targets = self.build.targets.iter().map(|path| path.as_os_str().as_encoded_bytes());
        let words = self.build.configure.iter().map(|word| word.as_bytes());
        words.chain(targets).fold(Key::new().part(RECIPE_VERSION).part(&self.source.sha256), Key::part)
    }

    /// Builds the targets and leaves in `entry` them, in `lib`, and the headers, in `include`.
    fn build(&self, cache: &Cache, patches: &Patches, entry: &Path) -> Result<()> {
        let tarball = self.source.fetch(cache)?;
        let (source, build) = (entry.join("source"), entry.join("build"));
        let step = Step::start("building Bochs (about 3 minutes on 2 cores)");
        for dir in [&source, &build] {
            fs::create_dir(dir)?;
        }
        self.source.unpack(&tarball, patches, &source, &step)?;
        let mut configure = Command::new(source.join("configure"));
        command::run(configure.current_dir(&build).args(&self.build.configure), &step)?;
        let jobs = thread::available_parallelism().map_or(1, |processors| processors.get());
        let mut make = Command::new("make");
        make.current_dir(&build).arg(format!("-j{jobs}")).args(&self.build.targets);
        // Flags of an outer make (`make test`) are not meant for Bochs's.
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
            make.env_remove(variable);
        }
        command::run(&mut make, &step)?;
        for target in &self.build.targets {
            place(&build.join(target), &entry.join("lib").join(target))?;
        }
        // What configure made comes last.
        for dir in [&source, &build] {
            copy_headers(dir, &entry.join("include"))?;
            cache::remove_if_there(dir)?;
        }
        step.done();
        Ok(())
    }

    /// Compiles the sources of the shim, and links all of it.
    fn link(&self, bochs: &Path, shim: &[PathBuf], library: &Path) -> Result<()> {
        let step = Step::start("building the shim around Bochs's processor");
        let include = bochs.join("include");
        let mut compiler = Command::new("g++");
        compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared"]);
        // Bochs's headers are not held to our warnings.
        compiler.arg("-isystem").arg(&include).arg("-isystem").arg(include.join("instrument/stubs"));
        compiler.args(shim.iter().filter(|source| source.extension().is_some_and(|kind| kind == "cc")));
        compiler.args([
            "-Wl,--no-undefined",
            "-Wl,-Bsymbolic",
            "-Wl,--exclude-libs,ALL",
            "-Wl,--start-group",
        ]);
        compiler.args(self.build.targets.iter().map(|target| bochs.join("lib").join(target)));
        command::run(compiler.args(["-Wl,--end-group", "-o"]).arg(library), &step)?;
        step.done();
        Ok(())
    }
}

/// Copies the headers below `from` to the same places below `to`.
fn copy_headers(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_headers(&path, &to)?;
        } else if path.extension().is_some_and(|extension| extension == "h") {
            place(&path, &to)?;
        }
    }
    Ok(())
}

/// Copies a file, and makes the folders that it lies in.
fn place(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}
