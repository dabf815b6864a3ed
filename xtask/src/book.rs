// SPDX-License-Identifier: MIT OR Apache-2.0
//! The book: the pages of `docs/`, built by mdBook.
//!
//! Principle: mdBook is a program in the cache, because as a library it would be compiled anew in every checkout, and
//! a second time for clippy. Drawings are text in the pages; mdBook is given copies in which they are pictures.
//! Invariant: what mdBook warns of is an error.

use crate::cache::{Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::workspace;
use aasvg::{RenderOptions, render_with_options};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version of mdBook, which is built with the dependencies that its authors have locked.
const MDBOOK: &str = "mdbook@0.5.4";
/// Part of the key: changes when this file builds mdBook differently.
const RECIPE_VERSION: &str = "1";
/// Folders below `docs/` whose files the book is made of.
const PLACES: [&str; 3] = ["", "src", "decisions"];
/// The line that begins a drawing in a page, and the one that ends it.
const DRAWING: (&str, &str) = ("```aasvg", "```");

/// Builds the book and returns its first page.
///
/// # Errors
/// When mdBook cannot be had, or finds anything to complain of.
pub fn build() -> Result<PathBuf> {
    let source = workspace::target_dir().join("book-source");
    let book = workspace::target_dir().join("book");
    copy_with_pictures(&workspace::root().join("docs"), &source)?;
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
/// As [`build`], and when the browser cannot be started.
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

fn copy_with_pictures(docs: &Path, source: &Path) -> Result<()> {
    if source.exists() {
        fs::remove_dir_all(source).with_context(|| format!("deleting {}", source.display()))?;
    }
    for place in PLACES {
        fs::create_dir_all(source.join(place))?;
        for entry in docs.join(place).read_dir()? {
            let path = entry?.path();
            let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let text =
                if path.extension().is_some_and(|end| end == "md") { with_pictures(&text) } else { text };
            fs::write(source.join(place).join(name), text)?;
        }
    }
    Ok(())
}

/// The page with a picture in place of each drawing.
fn with_pictures(page: &str) -> String {
    let mut made = String::new();
    let mut drawing: Option<String> = None;
    // Each character keeps its place, whatever font there is.
    let options = RenderOptions::new().with_stretch(true);
    for line in page.lines() {
        match &mut drawing {
            None if line == DRAWING.0 => drawing = Some(String::new()),
            Some(text) if line == DRAWING.1 => {
                made.extend([
                    "<div class=\"drawing\">\n",
                    &render_with_options(text, &options),
                    "\n</div>\n",
                ]);
                drawing = None;
            }
            _ => drawing.as_mut().unwrap_or(&mut made).extend([line, "\n"]),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_becomes_a_picture_and_code_stays() {
        let page = "# A\n```aasvg\n+---+\n| a |\n+---+\n```\nb\n```text\n+---+\n```\n";
        let made = with_pictures(page);
        let (picture, rest) = made.split_once("\n</div>\n").unwrap();
        let picture = picture.strip_prefix("# A\n<div class=\"drawing\">\n<svg ").unwrap();
        assert!(picture.contains("<path") && picture.contains(">a</text>"));
        assert!(!picture.contains("\n\n"), "Markdown ends a block of HTML at an empty line");
        assert_eq!(rest, "b\n```text\n+---+\n```\n");
    }
}
