// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pasidon.toml`: what the machine is to run.
//!
//! **Principle.** The file is read and checked as a whole before anything is touched. Every error is one
//! line that starts with `pasidon.toml:LINE:COLUMN:` and ends with what helps. An error within one
//! `[[vm]]` keeps that VM from starting, one within a `[parent.NAME]` the VMs that use it; every other
//! error stops everything. A file of `definitions` is checked in the same way, and its errors stop that file only.
//!
//! What the text alone cannot tell (whether there is that much memory, whether the files are there, what
//! the parents offer) is checked by those who know it, later. Each value keeps its [`Position`] for them.
//!
//! Source: TOML 1.0. What each key means is in `docs/src/configuration.md`.

mod error;
mod machine;
mod parse;
pub mod schema;
mod table;
mod types;
mod value;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, Position, Scope, Spanned};
pub use machine::{FindParent, PciDevice, ResolvedParents, check_memory, check_vdevs, resolve_parents};
pub use parse::{MAX_FILE, MAX_VMS, Parsed, parse};
pub use types::{
    Config, ConsoleMode, Definition, HostConfig, Mode, OnReboot, ParentConfig, ParentSelector, VdevConfig,
    VmConfig,
};
pub use value::{MAX_CMDLINE, MAX_MEMORY, MAX_NAME, MIN_MEMORY};

/// Name of the file, in the root of the ESP.
pub const FILE_NAME: &str = "pasidon.toml";
