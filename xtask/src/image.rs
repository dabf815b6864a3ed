// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask image`: the boot disk with a configuration of the user's choice.

use crate::workshop::Shop;
use crate::workspace;
use anyhow::{Context, Result};
use pasidon_harness::image::Image;
use pasidon_harness::{Arch, Cpu, Workshop};
use std::fs;
use std::path::{Path, PathBuf};

/// The configuration of that path as it is, or the demonstration's for machines of `arch`.
///
/// # Errors
/// When the file cannot be read.
pub fn configuration(arch: Arch, path: Option<&Path>) -> Result<String> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    match path {
        Some(path) => read(path),
        None => Ok(arch.configuration(&read(&workspace::root().join("pasidon.toml"))?)),
    }
}

/// Makes the boot disk for machines of `arch` with `configuration` and the Linux guest, and returns where it lies: `output`, or a place in
/// the target folder.
///
/// # Errors
/// When a part of it cannot be made, or the disk cannot be written.
pub fn make(arch: Arch, configuration: &str, output: Option<&Path>) -> Result<PathBuf> {
    let name = format!("pasidon-{arch}.img");
    let path = output.map_or(workspace::target_dir().join(name), Path::to_path_buf);
    let shop = Shop::new(arch, Cpu::Tcg);
    Image::new(&shop.application(&[])?, configuration).linux(&shop.linux()?).write(&path)?;
    Ok(path)
}
