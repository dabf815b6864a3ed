// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of the book with a part that is made from the code (tests only).

use std::path::Path;

const BEGIN: &str = "<!-- made from the code: begin -->\n";
const END: &str = "<!-- made from the code: end -->\n";

/// Checks that the part between the marks of `docs/src/PAGE` is `part`; with `PASIDON_BLESS` set, writes it.
pub(crate) fn check_page(page: &str, part: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (before, rest) = text.split_once(BEGIN).expect("the page has its begin mark");
    let (present, after) = rest.split_once(END).expect("the page has its end mark");
    if present == part {
        return;
    }
    if std::env::var_os("PASIDON_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{part}{END}{after}")).unwrap();
        return;
    }
    let line = present.lines().zip(part.lines()).find(|(present, part)| present != part);
    panic!(
        "docs/src/{page} does not say what the code says (first difference: {line:?}); \
         PASIDON_BLESS=1 cargo test -p pasidon-kernel rewrites it"
    );
}
