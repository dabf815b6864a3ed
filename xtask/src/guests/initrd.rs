// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests' root file system as a newc cpio archive (Linux `Documentation/driver-api/early-userspace/buffer-format`).
//!
//! It is not compressed: unpacking under TCG costs more than reading the bytes.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// File type and permission bits of `st_mode`.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
/// Of headers and contents.
const ALIGNMENT: usize = 4;

/// The archive with busybox, the modules, and `programs` (path in the archive, content).
///
/// # Errors
/// When a file cannot be read.
pub fn build(busybox: &Path, modules: &[PathBuf], programs: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp"] {
        archive.add(dir, DIRECTORY, &[])?;
    }
    archive.add("bin/busybox", PROGRAM, &read(busybox)?)?;
    archive.add("bin/sh", LINK, b"busybox")?;
    for module in modules {
        let name = module.file_name().context("a module without a name")?.to_string_lossy();
        archive.add(&format!("lib/modules/{name}"), FILE, &read(module)?)?;
    }
    for (target, content) in programs {
        archive.add(target, PROGRAM, content)?;
    }
    Ok(trailer(archive.bytes)?)
}

/// An archive with these files (path in the archive, content) and the folders they lie in.
///
/// # Errors
/// When a file is too large for an archive.
pub fn of_files(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let folders =
        files.iter().flat_map(|(target, _)| target.match_indices('/').map(|(end, _)| &target[..end]));
    for folder in BTreeSet::from_iter(folders) {
        archive.add(folder, DIRECTORY, &[])?;
    }
    for (target, content) in files {
        archive.add(target, PROGRAM, content)?;
    }
    Ok(trailer(archive.bytes)?)
}

/// One archive and then another. Linux unpacks archives that follow one another from a multiple of four on as if they
/// were one, and takes a folder that is there already.
pub fn joined(mut first: Vec<u8>, second: &[u8]) -> Vec<u8> {
    first.resize(first.len().next_multiple_of(ALIGNMENT), 0);
    first.extend(second);
    first
}

/// A file's content, or which one could not be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.files += 1;
        let size = u32::try_from(content.len()).context("a file of more than 4 GiB")?;
        // Distinct inode numbers: the kernel takes equal ones for hard links.
        let mut entry = Builder::new(name).ino(self.files).mode(mode).nlink(1).write(&mut self.bytes, size);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}
