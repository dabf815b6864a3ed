// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in this checkout.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Folders at the top that are made and not written.
pub const MADE: [&str; 2] = ["target", ".git"];

/// The top folder of the checkout this xtask was built from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one folder below the top of the checkout")
}

/// Cargo's target folder of this checkout (`CARGO_TARGET_DIR` when set).
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What lies in a folder, sorted.
///
/// # Errors
/// When it cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = dir.read_dir().with_context(|| format!("reading {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// All that was written in this checkout: files and folders, by their paths from the top.
///
/// # Errors
/// When a folder cannot be read.
pub fn paths() -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let place = root().join(&folder);
        for entry in place.read_dir().with_context(|| format!("reading {}", place.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if MADE.iter().any(|made| path == Path::new(made)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    Ok(paths)
}
