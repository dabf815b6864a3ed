// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in this checkout.

use crate::cache::Cache;
use crate::command;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

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

/// Deletes the target folder and, if `cache`, everything this project keeps in the user's cache folder.
pub fn clean(cache: bool) -> Result<()> {
    command::run_visible(command::cargo().arg("clean"))?;
    if cache {
        let root = Cache::open()?.root().to_path_buf();
        std::fs::remove_dir_all(&root).with_context(|| format!("deleting {}", root.display()))?;
        println!("deleted {}", root.display());
    }
    Ok(())
}
