// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in this checkout.

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
