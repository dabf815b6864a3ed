// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reference platform: a QEMU with the accelerator model, built from Debian's source and the patches of this
//! checkout as `tests/platform/qemu.toml` says.
//!
//! Principle: beside the finished binary a build tree is kept, into which only changed files are carried, so that a
//! changed patch recompiles what it touches; the tree is a help, never a result: it has a key of its own for all that
//! would ask for a new configuration.

use crate::apt;
use crate::cache::{self, Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::upstream::{self, Patches, Source};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use pasidon_harness::Arch;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names another QEMU: the program, or the folder it lies in.
const QEMU_VARIABLE: &str = "PASIDON_QEMU";
/// Part of every key here: changes when this file builds differently from the same inputs.
const RECIPE_VERSION: &str = "1";
/// How many build trees of one architecture are kept; each takes half a gigabyte.
const KEPT_TREES: usize = 2;
/// bzip2's encoding of an empty file.
const EMPTY_BZIP2: [u8; 14] = *b"BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00";

/// `tests/platform/qemu.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    source: Source,
    build: Build,
    /// Architecture name to the file with its devices.
    targets: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    configure: Vec<String>,
    packages: Vec<String>,
    pip: Vec<String>,
    empty_blobs: Vec<PathBuf>,
}

/// The platform's QEMU for `arch`, built when it is not in the cache.
///
/// # Errors
/// When the recipe is wrong, something it needs cannot be had, a patch does not apply, or the build fails.
pub fn qemu(arch: Arch) -> Result<PathBuf> {
    let program = format!("qemu-system-{arch}");
    if let Some(own) = std::env::var_os(QEMU_VARIABLE) {
        let own = PathBuf::from(own);
        let own = if own.is_dir() { own.join(&program) } else { own };
        ensure!(own.is_file(), "{QEMU_VARIABLE}: no such program: {}", own.display());
        return Ok(own);
    }
    let dir = workspace::root().join("tests/platform");
    let recipe_path = dir.join("qemu.toml");
    let recipe: Recipe = upstream::recipe(&recipe_path)?;
    let devices = recipe.targets.get(&arch.to_string());
    let devices = devices.with_context(|| format!("{}: [targets] has no {arch}", recipe_path.display()))?;
    let devices =
        fs::read(dir.join(devices)).with_context(|| format!("reading {}", dir.join(devices).display()))?;
    let patches = Patches::read(&dir.join("patches"))?;
    let tree_key = recipe.tree_key(arch, &devices);
    let key = patches.add_to(tree_key.clone());
    let cache = Cache::open()?;
    let entry = cache.entry(&format!("qemu-{arch}"), &key, |entry| {
        apt::need(&recipe.build.packages)?;
        let tarball = recipe.source.fetch(&cache)?;
        let tree = Tree::open(&cache, arch, &tree_key)?;
        tree.update(&recipe, &devices, &patches, &tarball)?;
        let built = tree.build(&recipe, &program)?;
        fs::create_dir(entry.join("bin"))?;
        fs::copy(built, entry.join("bin").join(&program)).context("copying the finished QEMU")?;
        fs::create_dir(entry.join("include"))?;
        fs::copy(tree.source().join("include/qemu/qemu-plugin.h"), entry.join("include/qemu-plugin.h"))
            .context("copying the header for plugins")?;
        Ok(())
    })?;
    Ok(entry.join("bin").join(program))
}

/// The plugin `name` of `tests/platform/plugins`, built for the platform's QEMU when it is not in the cache.
///
/// # Errors
/// When the QEMU that is used has no header for plugins beside it, or the plugin does not compile.
pub fn plugin(arch: Arch, name: &str) -> Result<PathBuf> {
    let include =
        qemu(arch)?.parent().map(|bin| bin.join("../include")).context("a QEMU without a folder")?;
    let header = include.join("qemu-plugin.h");
    let header = fs::read(&header).with_context(|| format!("no header for plugins: {}", header.display()))?;
    let source = workspace::root().join(format!("tests/platform/plugins/{name}.c"));
    let text = fs::read(&source).with_context(|| format!("reading {}", source.display()))?;
    let key = Key::new().part(RECIPE_VERSION).part(header).part(text);
    let entry = Cache::open()?.entry(&format!("plugin-{name}"), &key, |entry| {
        let step = Step::start(format!("building the plugin {name}"));
        let flags = command::output(Command::new("pkg-config").args(["--cflags", "glib-2.0"]))?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]).args(flags.split_whitespace());
        gcc.arg("-I").arg(&include).arg(&source).arg("-o").arg(entry.join("plugin.so"));
        command::run(&mut gcc, &step)?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("plugin.so"))
}

impl Recipe {
    /// Everything but the patches.
    fn tree_key(&self, arch: Arch, devices: &[u8]) -> Key {
        let blobs = self.build.empty_blobs.iter().map(|path| path.as_os_str().as_encoded_bytes());
        let words = self.build.configure.iter().chain(&self.build.pip).map(|word| word.as_bytes());
        let key =
            Key::new().part(RECIPE_VERSION).part(&self.source.sha256).part(arch.to_string()).part(devices);
        words.chain(blobs).fold(key, Key::part)
    }
}

/// The kept build tree of one architecture and configuration; its lock is held as long as it is open.
struct Tree {
    dir: PathBuf,
    _lock: fs::File,
}

impl Tree {
    fn open(cache: &Cache, arch: Arch, key: &Key) -> Result<Tree> {
        let kind = format!("qemu-tree-{arch}");
        let name = format!("{kind}-{}", key.digits());
        let lock = cache.lock(&name)?;
        let trees = cache.root().join("trees");
        let dir = trees.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        cache::is_there(&dir);
        cache.prune(&trees, &kind, KEPT_TREES)?;
        Ok(Tree { dir, _lock: lock })
    }

    fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    /// Makes the source in the tree equal to the patched tarball, touching only files that differ.
    fn update(&self, recipe: &Recipe, devices: &[u8], patches: &Patches, tarball: &Path) -> Result<()> {
        let step = Step::start("unpacking QEMU and applying the patches");
        let fresh = self.dir.join("fresh");
        cache::remove_if_there(&fresh)?;
        fs::create_dir(&fresh)?;
        recipe.source.unpack(tarball, patches, &fresh, &step)?;
        for blob in &recipe.build.empty_blobs {
            fs::write(fresh.join(blob), EMPTY_BZIP2).with_context(|| format!("making {}", blob.display()))?;
        }
        for arch in recipe.targets.keys() {
            fs::write(fresh.join(format!("configs/devices/{arch}-softmmu/pasidon.mak")), devices)?;
        }
        step.note("carrying over what changed");
        if self.source().exists() {
            mirror(&fresh, &self.source())?;
            fs::remove_dir_all(&fresh)?;
        } else {
            fs::rename(&fresh, self.source())?;
        }
        step.done();
        Ok(())
    }

    /// Configures when that has not been done, builds, and returns the program.
    fn build(&self, recipe: &Recipe, program: &str) -> Result<PathBuf> {
        let arch = program.rsplit('-').next().unwrap_or(program);
        let build = self.dir.join("build");
        // Written last, so that an interrupted configuration is done again from the start.
        let configured = self.dir.join("configured");
        if !configured.exists() {
            let step = Step::start("configuring QEMU (half a minute)");
            cache::remove_if_there(&build)?;
            fs::create_dir(&build)?;
            let venv = self.dir.join("venv");
            cache::remove_if_there(&venv)?;
            command::run(Command::new("python3").args(["-m", "venv"]).arg(&venv), &step)?;
            let mut pip = Command::new(venv.join("bin/pip"));
            command::run(
                pip.args(["install", "--disable-pip-version-check"]).args(&recipe.build.pip),
                &step,
            )?;
            let mut configure = Command::new(self.source().join("configure"));
            configure.current_dir(&build).args(&recipe.build.configure);
            configure.arg(format!("--python={}", venv.join("bin/python3").display()));
            configure
                .args([format!("--target-list={arch}-softmmu"), format!("--with-devices-{arch}=pasidon")]);
            command::run(&mut configure, &step)?;
            fs::write(&configured, "")?;
            step.done();
        }
        let step = Step::start("building the platform QEMU (about 4 minutes from nothing on 2 cores)");
        let mut ninja = Command::new("ninja");
        command::run(ninja.arg("-C").arg(&build).arg(program), &step)?;
        step.done();
        Ok(build.join(program))
    }
}

/// Makes `to` equal to `from`; files that are already equal keep their time stamps.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<std::ffi::OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let wanted = names(from)?;
    for stale in names(to)?.into_iter().filter(|name| !wanted.contains(name)) {
        remove(&to.join(stale))?;
    }
    for name in wanted {
        let (source, target) = (from.join(&name), to.join(&name));
        let kind = fs::symlink_metadata(&source)?.file_type();
        let same_kind = fs::symlink_metadata(&target).is_ok_and(|found| found.file_type() == kind);
        if !same_kind {
            remove(&target)?;
            fs::rename(&source, &target)?;
        } else if kind.is_dir() {
            mirror(&source, &target)?;
        } else if kind.is_symlink() {
            if fs::read_link(&source)? != fs::read_link(&target)? {
                fs::rename(&source, &target)?;
            }
        } else if fs::read(&source)? != fs::read(&target)? {
            fs::rename(&source, &target)?;
            // The tarball's or patch's time may be older than the object made from the previous content.
            fs::File::open(&target)?.set_modified(std::time::SystemTime::now())?;
        }
    }
    Ok(())
}

/// Deletes a file, link or folder that may not exist.
fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_what_differs_is_carried_over() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (root, files) in [
            (&from, [("same", "1"), ("changed", "new"), ("sub/added", "3")]),
            (&to, [("same", "1"), ("changed", "old"), ("stale/gone", "4")]),
        ] {
            for (name, text) in files {
                let path = root.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text).unwrap();
                fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        }
        mirror(&from, &to).unwrap();
        let modified = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        assert_eq!(modified("same"), SystemTime::UNIX_EPOCH);
        assert!(modified("changed") > SystemTime::UNIX_EPOCH);
        assert_eq!(fs::read_to_string(to.join("changed")).unwrap(), "new");
        assert_eq!(fs::read_to_string(to.join("sub/added")).unwrap(), "3");
        assert!(!to.join("stale").exists());
    }
}
