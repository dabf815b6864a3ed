// SPDX-License-Identifier: MIT OR Apache-2.0
//! Circles among the arrows of a crate.

use super::names::Arrows;
use super::source::Crate;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Each circle in words: its files, and which names tie them.
pub fn circles(tree: &Crate, arrows: &Arrows) -> Vec<String> {
    let counted = || arrows.iter().filter(|((from, to), _)| !is_parent(tree, *to, *from));
    let graph = DiGraphMap::<usize, ()>::from_edges(counted().map(|(arrow, _)| *arrow));
    let mut found: Vec<BTreeSet<usize>> =
        tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1).map(BTreeSet::from_iter).collect();
    found.sort();
    found
        .into_iter()
        .map(|files| {
            let mut text = format!("a circle of {} files\n", files.len());
            for ((from, to), names) in counted() {
                if files.contains(from) && files.contains(to) {
                    let names = Vec::from_iter(names.iter().map(String::as_str)).join(", ");
                    _ = writeln!(text, "  {} → {}: {names}", name(tree, *from), name(tree, *to));
                }
            }
            text
        })
        .collect()
}

/// Whether `child` is a file of the folder that belongs to `parent`.
fn is_parent(tree: &Crate, parent: usize, child: usize) -> bool {
    let above = tree.modules[tree.files[child].1].parent;
    parent != child && tree.file_of(above) == parent
}

fn name(tree: &Crate, file: usize) -> String {
    let path: &Path = &tree.files[file].0;
    let root = tree.files[0].0.parent().and_then(Path::parent).and_then(Path::parent);
    let short = root.and_then(|root| path.strip_prefix(root).ok()).unwrap_or(path);
    short.display().to_string()
}
