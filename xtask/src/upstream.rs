// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of others that are built here: Debian's source package, and patches of this checkout, one idea each.
//!
//! Principle: a recipe names the package, its version and the hash of its tarball; nothing else of it is used. What is
//! built of it is a cache entry whose key is everything that went into it.

use crate::apt::Suite;
use crate::cache::{self, Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The source of a program: `[source]` of a recipe.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    package: String,
    version: String,
    suite: String,
    tarball: String,
    /// Of the tarball.
    pub sha256: String,
}

/// The patches of a folder, in the order they are applied.
pub struct Patches(Vec<Patch>);

struct Patch {
    path: PathBuf,
    text: Vec<u8>,
}

/// Reads a recipe.
///
/// # Errors
/// When there is none at `path`, or it is wrong.
pub fn recipe<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

impl Patches {
    /// Reads those in `dir`; without such a folder there are none.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(dir: &Path) -> Result<Patches> {
        if !dir.is_dir() {
            return Ok(Patches(Vec::new()));
        }
        let mut paths = workspace::list(dir)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        let read = |path: PathBuf| {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(Patch { path, text })
        };
        Ok(Patches(paths.into_iter().map(read).collect::<Result<_>>()?))
    }

    /// `key` with all of them.
    pub fn add_to(&self, key: Key) -> Key {
        self.0.iter().fold(key, |key, patch| key.part(&patch.text))
    }
}

impl Source {
    /// Unpacks the source into the empty folder `dir`, and applies `patches`.
    ///
    /// # Errors
    /// When a patch does not apply, or the tarball is none.
    pub fn unpack(&self, tarball: &Path, patches: &Patches, dir: &Path, step: &Step) -> Result<()> {
        let mut tar = Command::new("tar");
        command::run(tar.arg("-xf").arg(tarball).args(["--strip-components=1", "-C"]).arg(dir), step)?;
        for patch in &patches.0 {
            let mut apply = Command::new("patch");
            apply
                .current_dir(dir)
                .args(["-p1", "--forward", "--no-backup-if-mismatch", "-i"])
                .arg(&patch.path);
            command::run(&mut apply, step).with_context(|| format!("applying {}", patch.path.display()))?;
        }
        Ok(())
    }

    /// The tarball, from the cache or from Debian, with its hash checked.
    ///
    /// # Errors
    /// When Debian no longer has it, or it is another one.
    pub fn fetch(&self, cache: &Cache) -> Result<PathBuf> {
        // Names a copy, for the day when Debian no longer carries that version.
        let variable = format!("PASIDON_{}_TARBALL", self.package.to_uppercase());
        let entry =
            cache.entry(&format!("{}-source", self.package), &Key::new().part(&self.sha256), |dir| {
                let step = Step::start(format!("fetching the source of {} {}", self.package, self.version));
                let apt_dir = dir.join("apt");
                let fetched = match std::env::var_os(&variable) {
                    Some(path) => PathBuf::from(path),
                    None => self.download(&apt_dir, &step).with_context(|| {
                        format!("no source {} {}; {variable} may name a copy", self.package, self.version)
                    })?,
                };
                let found = cache::sha256_file(&fetched)?;
                ensure!(
                    found == self.sha256,
                    "{} has SHA-256 {found}, not {}",
                    fetched.display(),
                    self.sha256
                );
                fs::copy(&fetched, dir.join(&self.tarball)).context("keeping the tarball")?;
                if apt_dir.exists() {
                    fs::remove_dir_all(&apt_dir)?;
                }
                step.done();
                Ok(())
            })?;
        Ok(entry.join(&self.tarball))
    }

    fn download(&self, dir: &Path, step: &Step) -> Result<PathBuf> {
        let suite = Suite::open(&self.suite, None, dir, step)?;
        let versions = suite.source_versions(&self.package)?;
        // A new Debian revision of the same upstream version still has this tarball; an epoch is no part of the name.
        let without_epoch = |version: &str| version.rsplit(':').next().unwrap_or_default().to_owned();
        let upstream = |version: &str| version.rsplit_once('-').map(|(upstream, _)| upstream.to_owned());
        let exact = versions.iter().find(|version| without_epoch(version) == self.version);
        let version = exact.or_else(|| {
            versions.iter().find(|version| upstream(&without_epoch(version)) == upstream(&self.version))
        });
        let Some(version) = version else {
            bail!("Debian's {} now has {} {}", self.suite, self.package, versions.join(", "));
        };
        suite.download_tarball(&self.package, version, dir, step)?;
        Ok(dir.join(&self.tarball))
    }
}
