// SPDX-License-Identifier: MIT OR Apache-2.0
//! The book: the pages of `docs/`, built by mdBook.
//!
//! Principle: mdBook is a program in the cache, because as a library it would be compiled anew in every checkout, and
//! a second time for clippy.
//! Invariant: what mdBook warns of is an error.

use crate::cache::{Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The version of mdBook, which is built with the dependencies that its authors have locked.
const MDBOOK: &str = "mdbook@0.5.4";
/// Part of the key: changes when this file builds mdBook differently.
const RECIPE_VERSION: &str = "1";

/// Builds the book and returns its first page.
///
/// # Errors
/// When mdBook cannot be had, or finds anything to complain of.
pub fn build() -> Result<PathBuf> {
    let source = workspace::root().join("docs");
    let book = workspace::target_dir().join("book");
    let mut mdbook = Command::new(mdbook()?);
    mdbook.arg("build").arg(&source).arg("--dest-dir").arg(&book).env("MDBOOK_LOG", "warn");
    let output = mdbook.stdin(Stdio::null()).output().context("starting mdbook")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !said.is_empty() {
        bail!("mdbook ended with {} and said of docs/:\n{}", output.status, said.trim_end());
    }
    Ok(book.join("index.html"))
}

/// Builds the book, prints where it is, and shows it where there is a desktop.
///
/// # Errors
/// Those of [`build`], and when the browser cannot be started.
pub fn open() -> Result<()> {
    let page = build()?;
    println!("{}", page.display());
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if desktop && std::io::stdout().is_terminal() && command::exists("xdg-open") {
        command::run_visible(Command::new("xdg-open").arg(page))?;
    }
    Ok(())
}

/// The program, built when it is not in the cache.
fn mdbook() -> Result<PathBuf> {
    let entry = Cache::open()?.entry("mdbook", &Key::new().part(RECIPE_VERSION).part(MDBOOK), |entry| {
        let step = Step::start("building mdBook (about a minute)");
        let target = entry.join("target");
        let mut install = command::cargo();
        install.args(["install", "--locked", "--debug", "--no-default-features", "--features=search"]);
        install.arg("--root").arg(entry).arg("--target-dir").arg(&target).arg(MDBOOK);
        // Nobody debugs it, and the linker takes longest over what nobody reads.
        install.env("CARGO_PROFILE_DEV_DEBUG", "0");
        command::run(&mut install, &step)?;
        fs::remove_dir_all(&target).with_context(|| format!("deleting {}", target.display()))?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("bin/mdbook"))
}
