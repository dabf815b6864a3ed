// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `[parent.NAME]` sections.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::DeTable;

use super::{converted, misfitting, wrong_section};
use crate::base::nearest::nearest;
use crate::config::FILE_NAME;
use crate::config::error::{ConfigError, Position, Scope, Spanned, quoted, shortened};
use crate::config::schema;
use crate::config::table::Table;
use crate::config::types::{ParentConfig, ParentSelector};
use crate::config::value;

/// A `[parent.NAME]`, sound or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamedParent {
    name: Spanned<String>,
    pub(super) sound: Option<ParentConfig>,
}

/// Every `[parent.NAME]` in the order of the file.
pub(super) fn parents(text: &str, top: &DeTable<'_>, errors: &mut Vec<ConfigError>) -> Vec<NamedParent> {
    let Some(value) = top.get("parent") else {
        return Vec::new();
    };
    let Some(named) = value.get_ref().as_table() else {
        let at = Position::of(text, value.span().start);
        errors.push(wrong_section(at, value, "parent", schema::PARENT.heading));
        return Vec::new();
    };
    let mut sections: Vec<_> = named.iter().collect();
    sections.sort_by_key(|(name, _)| name.span().start);
    let mut parents: Vec<NamedParent> = Vec::new();
    for (index, (name, value)) in sections.into_iter().enumerate() {
        let name = Spanned::new(name.get_ref().to_string(), Position::of(text, name.span().start));
        let before = errors.len();
        let parent = match value.get_ref().as_table() {
            Some(entries) => parent(text, index, &name, entries, errors),
            None => {
                errors.push(ConfigError {
                    scope: Scope::Parent(index),
                    ..wrong_section(name.at, value, "parent", schema::PARENT.heading)
                });
                None
            }
        };
        let sound = parent.filter(|_| errors.len() == before);
        parents.push(NamedParent { name, sound });
    }
    refuse_twins(&mut parents, errors);
    parents
}

/// Two parents on one device: neither is usable, since nobody knows which was meant.
fn refuse_twins(parents: &mut [NamedParent], errors: &mut Vec<ConfigError>) {
    let sound: Vec<ParentConfig> = parents.iter().filter_map(|named| named.sound.clone()).collect();
    for named in parents {
        let Some(parent) = &named.sound else { continue };
        let is_twin = |other: &&ParentConfig| {
            other.index != parent.index && other.selector.value == parent.selector.value
        };
        if let Some(twin) = sound.iter().find(is_twin) {
            errors.push(parent.error_at(
                parent.selector.at,
                format_args!(
                    "{} is the device of parent {} too (line {})",
                    parent.selector.value, twin.name.value, twin.selector.at.line
                ),
                "keep one of the two, or let each name its own device by pci",
            ));
            named.sound = None;
        }
    }
}

fn parent(
    text: &str,
    index: usize,
    name: &Spanned<String>,
    entries: &DeTable<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<ParentConfig> {
    let subject = format!("parent {}", shortened(name));
    let table = Table::new(text, entries, &schema::PARENT, name.at, subject, Scope::Parent(index));
    if let Err(misfit) = value::name(name) {
        errors.push(misfitting(&table, name.at, "its name", name, misfit));
    }
    table.refuse_unknown_keys(errors);
    let iommu = table.choice("iommu", &[("on", true), ("off", false)], true, errors);
    let allow_unsafe_portals = table.boolean("allow_unsafe_portals", false, errors);
    let shared_entries = table.integer("shared_entries", 0..=u16::MAX, errors);
    let selector = match (table.value("pci"), table.value("match")) {
        (Some(_), Some((_, at))) => {
            errors.push(table.error(at, "pci and match both say which device it is", "keep one of them"));
            None
        }
        (None, None) => {
            errors.push(table.error(
                name.at,
                "neither pci nor match says which device it is",
                "add a line like pci = \"0000:00:04.0\" or match = \"8086:11fb\"",
            ));
            None
        }
        (Some(_), None) => {
            converted(&table, "pci", errors, |text| value::pci_address(text).map(ParentSelector::Pci))
        }
        (None, Some(_)) => converted(&table, "match", errors, |text| {
            value::pci_ids(text).map(|(vendor, device)| ParentSelector::Match { vendor, device })
        }),
    };
    Some(ParentConfig {
        index,
        name: name.clone(),
        selector: selector?,
        iommu,
        allow_unsafe_portals,
        shared_entries,
    })
}

/// Reports a parent that is not among the sound ones.
pub(super) fn known_parent(
    table: &Table<'_>,
    parent: &Spanned<String>,
    parents: &[NamedParent],
    errors: &mut Vec<ConfigError>,
) {
    let known = parents.iter().find(|known| known.name.value == parent.value);
    if let Some(known) = known {
        if known.sound.is_none() {
            let line = known.name.at.line;
            errors.push(table.error(
                parent.at,
                format_args!("parent {} was refused", parent.value),
                format!("correct it first, it is on line {line} of {FILE_NAME}"),
            ));
        }
        return;
    }
    let names = parents.iter().map(|known| known.name.value.as_str());
    let remedy = match nearest(parent, names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "add a [parent.NAME] section for it, or name one that is there".to_string(),
    };
    errors.push(table.error(parent.at, format_args!("unknown parent {}", quoted(parent)), remedy));
}
