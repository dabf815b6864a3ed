// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: the benchmarks, as a table and as JSON.

use crate::{setup, workspace};
use anyhow::{Context, Result, ensure};
use pasidon_harness::Arch;
use pasidon_harness::bench::{self, Results};
use std::fs;

/// Runs the benchmarks of those names on machines of `arch`, or all without names, prints the table, and writes
/// `bench-ARCH.json` into the target folder.
///
/// # Errors
/// When a machine does not do what is measured, or a figure is one that must not be; the table is printed then too.
pub fn run(arch: Arch, names: &[String]) -> Result<()> {
    let shop = setup::prepare(arch)?;
    let folder = workspace::target_dir().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let Results { figures, broken } = bench::run(names, &shop, &folder, |what| eprintln!("bench: {what}"))?;
    let path = workspace::target_dir().join(format!("bench-{arch}.json"));
    fs::write(&path, format!("{:#}\n", bench::to_json(&figures)))
        .with_context(|| format!("writing {}", path.display()))?;
    print!("{}", bench::table(&figures));
    eprintln!("bench: also in {}", path.display());
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}
