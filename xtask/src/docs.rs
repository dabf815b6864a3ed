// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the documentation names is there.
//!
//! A path in backquotes that begins with a folder of the checkout (`kernel/src/{vm,ram}.rs`), and a link that is no
//! address on the web, must lead to a file or folder.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Looks at every Markdown file of the checkout.
///
/// # Errors
/// Names each path and link that leads nowhere, with the file that has it.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let mut files = Vec::new();
    for place in ["", "docs", "docs/src", "docs/decisions"] {
        let folder = root.join(place);
        for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut missing = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display();
        missing.extend(missing_in(&text, root, file).into_iter().map(|path| format!("  {name}: {path}")));
    }
    if !missing.is_empty() {
        bail!("the documentation names what is not there:\n{}", missing.join("\n"));
    }
    Ok(())
}

/// Paths and links of a text that lead nowhere.
fn missing_in(text: &str, root: &Path, file: &Path) -> BTreeSet<String> {
    let folder = file.parent().unwrap_or(root);
    let paths = text.split('`').skip(1).step_by(2).filter(|span| is_path(span, root)).flat_map(expand);
    let paths = paths.map(|path| (root.join(&path), path));
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.map(|link| link.split('#').next().unwrap_or_default());
    let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
    let links = links.map(|link| (folder.join(link), link.to_owned()));
    paths
        .chain(links)
        .filter(|(place, _): &(PathBuf, String)| !place.exists())
        .map(|(_, name)| name)
        .collect()
}

fn is_path(span: &str, root: &Path) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_./{},-".contains(c);
    match span.split_once('/') {
        Some((first, _)) => !first.is_empty() && span.chars().all(allowed) && root.join(first).is_dir(),
        None => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_nowhere_is_named() {
        let root = workspace::root();
        let text = "`xtask/src/{main,docs,gone}.rs` and `xtask/` [here](README.md#x) [there](lost.md) \
                    [web](https://example.org/none.md) [in it](#part) `a/b` `cargo xtask docs/gone`";
        let missing = missing_in(text, root, &root.join("any.md"));
        assert_eq!(Vec::from_iter(missing), ["lost.md", "xtask/src/gone.rs"]);
    }
}
