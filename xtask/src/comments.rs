// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one form in which documentation says when something fails.
//!
//! **Rule.** `# Errors` is followed at once by a sentence that begins with "When", or with "As" where it is that of
//! another function. That there is such a section is clippy's to see (`missing_errors_doc`).

use crate::workspace;
use anyhow::{Context, Result, bail};

const HEADING: &str = "/// # Errors";
const BEGINNINGS: [&str; 2] = ["/// When ", "/// As "];

/// Looks at all Rust files of the checkout.
///
/// # Errors
/// When a section has another form: names the place.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for path in workspace::paths()?.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let text = std::fs::read_to_string(workspace::root().join(path));
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        wrong.extend(wrong_lines(&text).map(|line| format!("  {}:{line}", path.display())));
    }
    if !wrong.is_empty() {
        bail!("sections of errors that do not begin with When or As:\n{}", wrong.join("\n"));
    }
    Ok(())
}

/// The numbers of the lines after a heading that are of another form.
fn wrong_lines(text: &str) -> impl Iterator<Item = usize> {
    let lines = text.lines().zip(text.lines().skip(1)).zip(2..);
    lines
        .filter(|((heading, first), _)| {
            let first = first.trim_start();
            heading.trim() == HEADING && !BEGINNINGS.iter().any(|beginning| first.starts_with(beginning))
        })
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_form_is_named() {
        let text = "/// # Errors\n/// When it is late.\nfn a();\n    /// # Errors\n    ///\n    /// When it is late.\n\
                    /// # Errors\n/// As [`a`].\n/// # Errors\n/// Whenever.\n";
        assert_eq!(Vec::from_iter(wrong_lines(text)), [5, 10]);
    }
}
