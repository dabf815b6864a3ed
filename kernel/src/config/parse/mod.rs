// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of `pasidon.toml` to a [`Config`], or to errors.

mod parents;
mod vms;

pub use vms::MAX_VMS;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::DeTable;

use crate::config::error::{ConfigError, Position, Scope, Spanned, quoted};
use crate::config::schema;
use crate::config::table::{Table, Value, unknown_key_remedy};
use crate::config::types::{Config, ConsoleMode, HostConfig, Mode};
use crate::config::value::Misfit;
use crate::console::log::LEVELS;
use crate::dma::pasid::NamespaceScope;

/// Longest file that is read, in bytes. Far above any sensible configuration, far below what would hurt.
pub const MAX_FILE: usize = 256 << 10;

/// What [`parse`] gives for a usable file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The configuration, with at least one VM unless it asks for the inventory.
    pub config: Config,
    /// The errors that keep single VMs and parents from being used, in the order of the file; for the inventory, all.
    pub errors: Vec<ConfigError>,
}

/// Reads and checks a whole file.
///
/// # Errors
/// When an error stops everything, or no VM is left: all errors found, in the order of the file. What asks for the
/// inventory is stopped by nothing but a text that is no TOML.
pub fn parse(file: &[u8]) -> Result<Parsed, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let config = match text_of(file) {
        Ok(text) => check(text, &mut errors),
        Err(error) => {
            errors.push(error);
            None
        }
    };
    errors.sort_by_key(|error| error.at);
    match config {
        Some(config) if config.host.mode.value == Mode::Inventory => Ok(Parsed { config, errors }),
        Some(config) if !config.vms.is_empty() && errors.iter().all(|error| error.scope != Scope::Whole) => {
            Ok(Parsed { config, errors })
        }
        _ => Err(errors),
    }
}

fn text_of(file: &[u8]) -> Result<&str, ConfigError> {
    if file.len() > MAX_FILE {
        return Err(whole(
            Position::START,
            format!("the file has {} bytes, more than {MAX_FILE}", file.len()),
            "shorten it",
        ));
    }
    core::str::from_utf8(file).map_err(|error| {
        let valid = core::str::from_utf8(&file[..error.valid_up_to()]).unwrap_or_default();
        whole(Position::of(valid, valid.len()), "not UTF-8 text", "save the file as UTF-8")
    })
}

fn whole(at: Position, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
    ConfigError::new(Scope::Whole, at, what, remedy)
}

fn check(text: &str, errors: &mut Vec<ConfigError>) -> Option<Config> {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error.span().map_or(Position::START, |span| Position::of(text, span.start));
            let message = error.message().replace('`', "").replace('\n', " ");
            errors.push(whole(at, format!("syntax: {message}"), "correct this line; the file is TOML"));
            return None;
        }
    };
    let top = document.get_ref();
    for key in top.keys() {
        if !schema::TOP.contains(&key.get_ref().as_ref()) {
            let at = Position::of(text, key.span().start);
            let remedy = unknown_key_remedy(key.get_ref(), schema::TOP.into_iter(), "the file");
            errors.push(whole(at, format!("unknown key {}", quoted(key.get_ref())), remedy));
        }
    }
    let host = host(text, top, errors);
    let parents = parents::parents(text, top, errors);
    let vms = match top.get("vm") {
        None if host.mode.value == Mode::Inventory => Vec::new(),
        _ => vms::vms(text, top, &parents, errors),
    };
    Some(Config { host, parents: parents.into_iter().filter_map(|named| named.sound).collect(), vms })
}

fn host(text: &str, top: &DeTable<'_>, errors: &mut Vec<ConfigError>) -> HostConfig {
    let empty = DeTable::default();
    let (entries, at) = match top.get("host") {
        None => (&empty, Position::START),
        Some(value) => {
            let at = Position::of(text, value.span().start);
            let entries = value.get_ref().as_table().unwrap_or_else(|| {
                errors.push(wrong_section(at, value, "host", schema::HOST.heading));
                &empty
            });
            (entries, at)
        }
    };
    let table = Table::new(text, entries, &schema::HOST, at, "host".to_string(), Scope::Whole);
    table.refuse_unknown_keys(errors);
    let modes = [("plain", ConsoleMode::Plain), ("framed", ConsoleMode::Framed)];
    let what = [("run", Mode::Run), ("inventory", Mode::Inventory)];
    let scopes = [("host", NamespaceScope::Host), ("device", NamespaceScope::Device)];
    HostConfig {
        mode: table.choice("mode", &what, Mode::Run, errors),
        log: table.choice("log", &LEVELS, log::LevelFilter::Info, errors),
        console: table.choice("console", &modes, ConsoleMode::Plain, errors),
        last_pasid: table.integer("last_pasid", 1..=u16::MAX, errors),
        pasid_namespace: table.choice("pasid_namespace", &scopes, NamespaceScope::Host, errors),
    }
}

fn wrong_section(at: Position, value: &Value<'_>, name: &str, heading: &str) -> ConfigError {
    let found = value.get_ref().type_str();
    whole(at, format!("{name} is a section, but this is of type {found}"), format!("write it as {heading}"))
}

fn misfitting(table: &Table<'_>, at: Position, name: &str, value: &str, misfit: Misfit) -> ConfigError {
    table.error(at, format_args!("{name} {} {}", quoted(value), misfit.why), misfit.remedy)
}

/// A string put into another form, where it is present and fits.
fn converted<T>(
    table: &Table<'_>,
    name: &str,
    errors: &mut Vec<ConfigError>,
    convert: impl FnOnce(&str) -> Result<T, Misfit>,
) -> Option<Spanned<T>> {
    let text = table.string(name, errors)?;
    match convert(&text) {
        Ok(value) => Some(Spanned::new(value, text.at)),
        Err(misfit) => {
            errors.push(misfitting(table, text.at, name, &text, misfit));
            None
        }
    }
}

fn required<T>(
    table: &Table<'_>,
    name: &str,
    errors: &mut Vec<ConfigError>,
    convert: impl FnOnce(&str) -> Result<T, Misfit>,
) -> Option<Spanned<T>> {
    match table.value(name) {
        None => {
            table.required_string(name, errors);
            None
        }
        Some(_) => converted(table, name, errors, convert),
    }
}
