// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reference in `docs/src/configuration.md` is made from the schema; a test keeps it so.

use super::schema::SECTIONS;
use super::tests::FULL;
use crate::generated::check_page;

#[test]
fn the_configuration_reference_is_up_to_date() {
    let mut page = String::new();
    for section in SECTIONS {
        page += &format!("### `{}`\n\n{}\n\n", section.heading, section.about);
        page += "| Key | Value | Left out | Meaning |\n|---|---|---|---|\n";
        for key in section.keys {
            let default = key.default.unwrap_or("**must be given**");
            page += &format!(
                "| `{}` | {} | {default} | {} |\n",
                key.name,
                key.takes.replace('|', "\\|"),
                key.about
            );
        }
        page.push('\n');
    }
    page += &format!(
        "### Every key once\nIt shows how each is written, and does not start as it stands: its files and devices are \
         made up. One that does is `pasidon.toml` at the top of the checkout.\n\n```toml\n{}\n```\n\n",
        FULL.trim()
    );
    check_page("configuration.md", &page);
}
