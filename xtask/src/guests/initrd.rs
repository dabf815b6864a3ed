// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests' root file system as a newc cpio archive (Linux `Documentation/driver-api/early-userspace/buffer-format`).
//!
//! It is not compressed: unpacking under TCG costs more than reading the bytes.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
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
    for dir in [
        "bin",
        "dev",
        "lib",
        "lib/modules",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
    ] {
        archive.add(dir, DIRECTORY, &[])?;
    }
    archive.add("bin/busybox", PROGRAM, &read(busybox)?)?;
    archive.add("bin/sh", LINK, b"busybox")?;
    for module in modules {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        archive.add(&format!("lib/modules/{name}"), FILE, &read(module)?)?;
    }
    for (target, content) in programs {
        archive.add(target, PROGRAM, content)?;
    }
    Ok(trailer(archive.bytes)?)
}

/// `archive` with one more program in it, at `target`, whose folder it has. Linux unpacks archives that follow one
/// another from a multiple of four on as if they were one.
///
/// # Errors
/// When the program is too large for an archive.
pub fn with_program(mut archive: Vec<u8>, target: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut more = Archive::default();
    more.add(target, PROGRAM, program)?;
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    archive.extend(trailer(more.bytes)?);
    Ok(archive)
}

fn read(path: &Path) -> Result<Vec<u8>> {
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
        let mut entry = Builder::new(name)
            .ino(self.files)
            .mode(mode)
            .nlink(1)
            .write(&mut self.bytes, size);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}
