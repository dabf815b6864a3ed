// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the documentation names is there.
//!
//! - A path that begins with a folder of the checkout (`kernel/src/{vm,ram}.rs`) leads to a file or folder. One that
//!   does not, and ends in `.rs` or in `/` (`vtd/unit.rs`), is the end of some path. Looked at are spans in backquotes
//!   and all words of code blocks.
//! - A link that is no address on the web leads to a file, and to a heading of it where it names one.
//! - Each page of the book is in its summary, and links to pages of the book only.

use crate::workspace::{self, MADE};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Where the pages lie.
const PLACES: [&str; 4] = ["", "docs", "docs/src", "docs/decisions"];
/// The folder that the book is made of, and its table of contents.
const BOOK: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";

/// Looks at every Markdown file of the checkout.
///
/// # Errors
/// When a path or a link leads nowhere: names each, with the file that has it.
pub fn check() -> Result<()> {
    let checkout = Checkout::read()?;
    let wrong = checkout.wrong();
    if !wrong.is_empty() {
        bail!("the documentation names what is not there:\n{}", Vec::from_iter(wrong).join("\n"));
    }
    Ok(())
}

/// What is there, by paths from the top.
#[derive(Default)]
struct Checkout {
    /// Files and folders.
    paths: BTreeSet<PathBuf>,
    /// Each path, and what is left of it when folders are taken off its front.
    ends: BTreeSet<PathBuf>,
    /// Markdown files.
    pages: BTreeMap<PathBuf, String>,
}

impl Checkout {
    fn read() -> Result<Self> {
        let mut checkout = Checkout::default();
        for path in workspace::paths()? {
            let folder = path.parent().unwrap_or(Path::new(""));
            let is_page = path.extension().is_some_and(|end| end == "md");
            if is_page && PLACES.iter().any(|place| folder == Path::new(place)) {
                let text = std::fs::read_to_string(workspace::root().join(&path));
                let text = text.with_context(|| format!("reading {}", path.display()))?;
                checkout.pages.insert(path.clone(), text);
            }
            checkout.add(path);
        }
        Ok(checkout)
    }

    fn add(&mut self, path: PathBuf) {
        let mut end = path.components();
        while !end.as_path().as_os_str().is_empty() {
            self.ends.insert(end.as_path().to_owned());
            end.next();
        }
        self.paths.insert(path);
    }

    /// One line for each thing that is wrong.
    fn wrong(&self) -> BTreeSet<String> {
        let mut wrong = BTreeSet::new();
        for (file, text) in &self.pages {
            let mut say = |what: String| wrong.insert(format!("  {}: {what}", file.display()));
            for name in lines(text).flat_map(|(line, code)| names(line, code)).flat_map(expand) {
                if !self.has(&name) {
                    say(name);
                }
            }
            for link in lines(text).filter(|(_, code)| !code).flat_map(|(line, _)| links(line)) {
                if let Err(why) = self.follow(file, link) {
                    say(format!("{link}: {why}"));
                }
            }
        }
        wrong.extend(self.not_in_summary());
        wrong
    }

    /// Whether a name is no path, or one that is there.
    fn has(&self, name: &str) -> bool {
        let path = Path::new(name);
        let top = path.iter().next().map(Path::new);
        if name.contains('/') && top.is_some_and(|top| self.paths.contains(top)) {
            self.paths.contains(path)
        } else {
            let is_path = name.ends_with(".rs") || name.ends_with('/');
            let made = top.is_some_and(|top| MADE.iter().any(|made| top == Path::new(made)));
            !is_path || made || path.is_absolute() || self.ends.contains(path)
        }
    }

    fn follow(&self, file: &Path, link: &str) -> std::result::Result<(), &'static str> {
        let (to, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if to.is_empty() { file.to_owned() } else { joined(file.parent(), to) };
        if !self.paths.contains(&target) {
            return Err("no such file");
        }
        if file.starts_with(BOOK) && !(self.pages.contains_key(&target) && target.starts_with(BOOK)) {
            return Err("not a page of the book");
        }
        let has =
            |text: &String| lines(text).any(|(line, code)| !code && slug(line).is_some_and(|s| s == heading));
        if !heading.is_empty() && !self.pages.get(&target).is_some_and(has) {
            return Err("no such heading");
        }
        Ok(())
    }

    fn not_in_summary(&self) -> BTreeSet<String> {
        let Some(summary) = self.pages.get(Path::new(SUMMARY)) else { return BTreeSet::new() };
        let listed: BTreeSet<PathBuf> = lines(summary)
            .flat_map(|(line, _)| links(line))
            .map(|link| joined(Path::new(SUMMARY).parent(), link))
            .collect();
        let pages = self.pages.keys().filter(|page| page.starts_with(BOOK) && **page != Path::new(SUMMARY));
        pages
            .filter(|page| !listed.contains(*page))
            .map(|page| format!("  {}: not in {SUMMARY}", page.display()))
            .collect()
    }
}

/// The lines of a page, each with whether it is in a code block.
fn lines(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut code = false;
    text.lines().filter_map(move |line| {
        if line.starts_with("```") {
            code = !code;
            return None;
        }
        Some((line, code))
    })
}

/// What may be a path: spans in backquotes; in code, all words.
fn names(line: &str, code: bool) -> Vec<&str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_./{},-".contains(c);
    let found: Vec<&str> = if code {
        line.split(|c: char| c.is_whitespace() || "\"'`()[]<>;".contains(c)).collect()
    } else {
        line.split('`').skip(1).step_by(2).collect()
    };
    found
        .into_iter()
        // A backtrace has `path:line:column`.
        .map(|name| name.split_once(".rs:").map_or(name, |(path, _)| &name[..path.len() + ".rs".len()]))
        .map(|name| if code { name.trim_end_matches(['.', ',', ':']) } else { name })
        .filter(|name| !name.is_empty() && name.chars().all(allowed))
        .collect()
}

/// Where the links of a line lead, but for addresses on the web.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|link| !link.is_empty() && !link.contains("://"))
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`.
fn expand(span: &str) -> Vec<String> {
    let parts = span.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        Some((before, (choices, after))) => {
            choices.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
        }
        None => vec![span.to_owned()],
    }
}

/// `to` as seen from a folder, without `..`.
fn joined(folder: Option<&Path>, to: &str) -> PathBuf {
    let mut path = folder.unwrap_or(Path::new("")).to_owned();
    for part in Path::new(to).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// What a link to a heading says, if the line is one.
fn slug(line: &str) -> Option<String> {
    let heading = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))?;
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-'));
    Some(kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(pages: &[(&str, &str)]) -> Vec<String> {
        let mut checkout = Checkout::default();
        for path in ["a", "a/b", "a/b/here.rs", "a/b/there.rs", "LICENSE", "docs"] {
            checkout.add(path.into());
        }
        for (path, text) in pages {
            checkout.add(path.into());
            checkout.pages.insert(path.into(), (*text).to_owned());
        }
        checkout.wrong().into_iter().map(|line| line.trim_start().to_owned()).collect()
    }

    #[test]
    fn a_path_that_leads_nowhere_is_named() {
        let text = "`a/b/{here,there,gone}.rs`, `b/here.rs`, `b/lost.rs`, `b/`, `c/`, `target/`, `/dev/`, `x/y` `cargo a/c`";
        assert_eq!(wrong(&[("any.md", text)]), ["any.md: a/b/gone.rs", "any.md: b/lost.rs", "any.md: c/"]);
    }

    #[test]
    fn code_blocks_are_looked_at_word_by_word() {
        let text = "```text\nx  a/b/{here,gone}.rs → (b/there.rs), at a/b/lost.rs:12:5.\n```\na/b/prose.rs";
        assert_eq!(wrong(&[("any.md", text)]), ["any.md: a/b/gone.rs", "any.md: a/b/lost.rs"]);
    }

    #[test]
    fn a_link_leads_to_a_file_and_a_heading() {
        let pages = [
            (
                "any.md",
                "[1](docs/one.md#the-x-of-y) [2](docs/one.md#z) [3](two.md) [4](LICENSE) [5](https://a.example/b)",
            ),
            ("docs/one.md", "## The `x` of *Y*\n```text\n# Z\n```\n[6](#the-x-of-y) [7](#y)"),
            ("docs/SUMMARY.md", "- [One](one.md)"),
        ];
        let expected = [
            "any.md: docs/one.md#z: no such heading",
            "any.md: two.md: no such file",
            "docs/one.md: #y: no such heading",
        ];
        assert_eq!(wrong(&pages), expected);
    }

    #[test]
    fn the_book_is_whole() {
        let pages = [
            ("docs/SUMMARY.md", "- [One](one.md)"),
            ("docs/one.md", "[1](../a/b/here.rs) [2](src/two.md) [3](../README.md)"),
            ("docs/src/two.md", "[1](../one.md)"),
            ("README.md", "[1](docs/one.md) [2](a/b/here.rs)"),
        ];
        let expected = [
            "docs/one.md: ../README.md: not a page of the book",
            "docs/one.md: ../a/b/here.rs: not a page of the book",
            "docs/src/two.md: not in docs/SUMMARY.md",
        ];
        assert_eq!(wrong(&pages), expected);
    }
}
