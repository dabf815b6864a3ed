// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask clean`: nothing is left of what was made.

use crate::cache::Cache;
use crate::command;
use anyhow::{Context, Result};

/// Deletes the target folder and, if `cache`, everything this project keeps in the user's cache folder.
pub fn run(cache: bool) -> Result<()> {
    command::run_visible(command::cargo().arg("clean"))?;
    if cache {
        let root = Cache::open()?.root().to_path_buf();
        std::fs::remove_dir_all(&root).with_context(|| format!("deleting {}", root.display()))?;
        println!("deleted {}", root.display());
    }
    Ok(())
}
