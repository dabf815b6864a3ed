// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which file uses which, and that the arrows between files run one way.
//!
//! **Rule.** Inside a crate no file is reached again from what it uses. A module's file and the files of its folder are
//! one subject, so a child may use what its own parent defines; everything else counts, whatever name it is reached by:
//! a re-export is followed to the file that defines the thing. Between crates Cargo sees to it.
//!
//! Test code is left out: it may know whatever it tests.

mod circles;
mod names;
mod source;

use self::circles::circles;
use self::names::Names;
use self::source::Crate;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::Path;

/// The crates that are looked at, by the folder of their sources.
const CRATES: &[&str] = &[
    "kernel/src",
    "drivers/src",
    "arch/common/src",
    "arch/x86_64/src",
    "arch/aarch64/src",
    "boot/src",
    "tests/harness/src",
    "xtask/src",
];

/// Looks at all crates.
///
/// # Errors
/// When there are circles of files: names each, with the arrows that close it.
pub fn check() -> Result<()> {
    let mut found = Vec::new();
    for folder in CRATES {
        found.extend(circles_in(&workspace::root().join(folder))?);
    }
    if !found.is_empty() {
        bail!(
            "files that use each other in a circle:\n\n{}\nMove what both need into a file of its own, or hand it in.",
            found.join("\n")
        );
    }
    Ok(())
}

/// Each circle of a crate in words; paths are as `folder` is given.
fn circles_in(folder: &Path) -> Result<Vec<String>> {
    let tree = Crate::read(folder)?;
    let names = Names::of(&tree);
    let arrows = names.arrows();
    Ok(circles(&tree, &arrows))
}

#[cfg(test)]
mod tests;
