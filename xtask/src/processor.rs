// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bochs's processors, as shared libraries, built from Debian's source and the patches of this checkout as
//! `tests/cpu/bochs.toml` says: the one that host tests run on, with the shim of `tests/cpu/shim`, and those of the
//! platform's machines, with `tests/cpu/engine`.
//!
//! Principle: Bochs and what is linked with it are two cache entries, as Bochs takes minutes and the rest seconds.

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
/// Of the compiler.
const FLAGS: &str = "-O2 -fPIC";
/// `tests/cpu/bochs.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    source: Source,
    build: Build,
    library: Variant,
    engine: Variant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    configure: Vec<String>,
    targets: Vec<PathBuf>,
    packages: Vec<String>,
}

/// What is made in another way for hosts' tests than for machines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    /// Of the compiler, for Bochs and for what is linked with it.
    flags: Vec<String>,
    configure: Vec<String>,
    targets: Vec<PathBuf>,
    /// Folders.
    sources: Vec<PathBuf>,
}

/// The library for host tests, built when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, something it needs cannot be had, a patch does not apply, or the build fails.
pub fn library() -> Result<PathBuf> {
    if let Some(own) = std::env::var_os(VARIABLE).filter(|own| !own.is_empty()) {
        let own = PathBuf::from(own);
        ensure!(own.is_file(), "{VARIABLE}: no such library: {}", own.display());
        return Ok(own);
    }
    let recipe = Recipe::read()?;
    recipe.made("library", &recipe.library)
}

/// The processors of a machine, a library for QEMU (`tests/cpu/engine/engine.h`), built when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, something it needs cannot be had, a patch does not apply, or the build fails.
pub fn engine() -> Result<PathBuf> {
    let recipe = Recipe::read()?;
    recipe.made("engine", &recipe.engine)
}

/// Where the recipe lies, and what it names.
fn dir() -> PathBuf {
    workspace::root().join("tests/cpu")
}

impl Recipe {
    fn read() -> Result<Recipe> {
        upstream::recipe(&dir().join("bochs.toml"))
    }

    fn made(&self, name: &str, variant: &Variant) -> Result<PathBuf> {
        let patches = Patches::read(&dir().join("patches"))?;
        let key = patches.add_to(self.key(variant));
        let cache = Cache::open()?;
        let mut sources = Vec::new();
        for folder in &variant.sources {
            sources.extend(workspace::list(&dir().join(folder))?);
        }
        let linked_key = key.clone().files(&sources)?;
        let file = format!("libpasidon-{name}.so");
        let entry = cache.entry(&format!("bochs-{name}"), &linked_key, |entry| {
            apt::need(&self.build.packages)?;
            let bochs = cache.entry(&format!("bochs-for-{name}"), &key, |entry| {
                self.build(variant, &cache, &patches, entry)
            })?;
            self.link(variant, &bochs, &sources, &entry.join(&file))
        })?;
        Ok(entry.join(file))
    }

    /// Everything but the patches.
    fn key(&self, variant: &Variant) -> Key {
        let targets = self.targets(variant).map(|path| path.as_os_str().as_encoded_bytes());
        let words = self.configure(variant).chain(&variant.flags).map(|word| word.as_bytes());
        words.chain(targets).fold(Key::new().part(RECIPE_VERSION).part(&self.source.sha256), Key::part)
    }

    fn configure<'a>(&'a self, variant: &'a Variant) -> impl Iterator<Item = &'a String> {
        self.build.configure.iter().chain(&variant.configure)
    }

    fn targets<'a>(&'a self, variant: &'a Variant) -> impl Iterator<Item = &'a PathBuf> {
        self.build.targets.iter().chain(&variant.targets)
    }

    /// Builds the targets and leaves in `entry` them, in `lib`, and the headers, in `include`.
    fn build(&self, variant: &Variant, cache: &Cache, patches: &Patches, entry: &Path) -> Result<()> {
        let tarball = self.source.fetch(cache)?;
        let (source, build) = (entry.join("source"), entry.join("build"));
        let step = Step::start("building Bochs (about 3 minutes on 2 cores)");
        for dir in [&source, &build] {
            fs::create_dir(dir)?;
        }
        self.source.unpack(&tarball, patches, &source, &step)?;
        let mut configure = Command::new(source.join("configure"));
        configure.current_dir(&build).args(self.configure(variant));
        let flags = variant.flags.iter().fold(FLAGS.to_owned(), |flags, flag| flags + " " + flag);
        configure.args([format!("CFLAGS={flags}"), format!("CXXFLAGS={flags}")]);
        command::run(&mut configure, &step)?;
        let jobs = thread::available_parallelism().map_or(1, |processors| processors.get());
        let mut make = Command::new("make");
        make.current_dir(&build).arg(format!("-j{jobs}")).args(self.targets(variant));
        // Flags of an outer make (`make test`) are not meant for Bochs's.
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
            make.env_remove(variable);
        }
        command::run(&mut make, &step)?;
        for target in self.targets(variant) {
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

    /// Compiles the sources, and links all of it.
    fn link(&self, variant: &Variant, bochs: &Path, sources: &[PathBuf], library: &Path) -> Result<()> {
        let step = Step::start("building what is around Bochs's processor");
        let include = bochs.join("include");
        let mut compiler = Command::new("g++");
        compiler.args(FLAGS.split(' ')).args(&variant.flags);
        compiler.args(["-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-shared"]);
        // Bochs's headers are not held to our warnings.
        compiler.arg("-isystem").arg(&include).arg("-isystem").arg(include.join("instrument/stubs"));
        compiler.args(sources.iter().filter(|source| source.extension().is_some_and(|kind| kind == "cc")));
        compiler.args([
            "-Wl,--no-undefined",
            "-Wl,-Bsymbolic",
            "-Wl,--exclude-libs,ALL",
            "-Wl,--start-group",
        ]);
        compiler.args(self.targets(variant).map(|target| bochs.join("lib").join(target)));
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
