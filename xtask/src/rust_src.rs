// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Rust library sources, for toolchains without a prebuilt `core` of the UEFI targets.
//!
//! Principle: where rustup may not install anything, cargo builds `core` and `alloc` itself from the sources of
//! exactly the compiler's version, which Debian packages. They live in the cache; the toolchain gets a link to them
//! where cargo looks (`lib/rustlib/src/rust` of the sysroot).

use crate::apt::{self, Suite};
use crate::cache::{Cache, Key};
use crate::command;
use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Debian suite that carries several recent versions of `rust-src`.
const SUITE: &str = "trixie-backports";
/// Names an archive with the `library/` folder, used when the package of the wanted version is gone.
const ARCHIVE_VARIABLE: &str = "PASIDON_RUST_SRC";

/// Makes sure that `sysroot` has the library sources of the compiler `version` (such as `1.95.0`).
///
/// # Errors
/// When they are nowhere to be had, or the sysroot cannot be written to.
pub fn provide(sysroot: &Path, version: &str) -> Result<()> {
    let link = sysroot.join("lib/rustlib/src/rust");
    if is_complete(&link) {
        return Ok(());
    }
    let sources = Cache::open()?.entry(&format!("rust-src-{version}"), &Key::new().part(version), |dir| {
        let step = Step::start(format!("fetching the Rust {version} library sources (a target is not installed)"));
        if let Err(package_error) = from_package(version, dir, &step) {
            let Some(archive) = std::env::var_os(ARCHIVE_VARIABLE) else {
                return Err(package_error.context(format!(
                    "no Rust {version} library sources: run `rustup target add x86_64-unknown-uefi`, or set \
                     {ARCHIVE_VARIABLE} to a tar archive of the library/ folder of that version"
                )));
            };
            step.note("package not available, using the archive");
            from_archive(Path::new(&archive), dir, &step)?;
        }
        if !is_complete(dir) {
            bail!("the Rust {version} library sources are incomplete: no library/core and library/Cargo.lock in them");
        }
        step.done();
        Ok(())
    })?;
    place_link(&sources, &link)
}

/// Whether cargo can build the standard library from there.
fn is_complete(sources: &Path) -> bool {
    sources.join("library/core/src/lib.rs").is_file() && sources.join("library/Cargo.lock").is_file()
}

fn from_package(version: &str, dir: &Path, step: &Step) -> Result<()> {
    let apt_dir = dir.join("apt");
    let suite = Suite::open(SUITE, None, &apt_dir, step)?;
    let wanted = format!("{version}+");
    let Some(package_version) =
        suite.versions("rust-src")?.into_iter().find(|found| found.starts_with(&wanted))
    else {
        bail!("Debian's {SUITE} has no rust-src {version}");
    };
    let deb = suite.download("rust-src", Some(&package_version), &apt_dir, step)?;
    let library = format!("usr/src/rustc-{version}/library");
    apt::unpack(&deb, &library, Some(&format!("{library}/vendor")), &apt_dir, step)?;
    fs::rename(apt_dir.join(&library), dir.join("library")).context("moving the library sources")?;
    fs::remove_dir_all(&apt_dir).context("deleting the package after unpacking it")
}

fn from_archive(archive: &Path, dir: &Path, step: &Step) -> Result<()> {
    // A relative name is meant from where the user stands, and cargo keeps that for `cargo xtask`.
    let archive = std::path::absolute(archive)?;
    let _ = fs::remove_dir_all(dir.join("apt"));
    command::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir), step)
        .with_context(|| format!("unpacking {ARCHIVE_VARIABLE}={}", archive.display()))
}

/// Puts the link in place in one step, over an older or dangling one.
fn place_link(sources: &Path, link: &Path) -> Result<()> {
    let parent = link.parent().expect("a path below the sysroot");
    let say = || format!("linking {} to {}", link.display(), sources.display());
    fs::create_dir_all(parent).with_context(say)?;
    let temporary: PathBuf = parent.join(format!("rust.pasidon-{}", std::process::id()));
    std::os::unix::fs::symlink(sources, &temporary).with_context(say)?;
    let renamed = fs::rename(&temporary, link);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
        // Another run, or rustup, may have put sources there meanwhile.
        if is_complete(link) {
            return Ok(());
        }
    }
    renamed.with_context(say)
}
