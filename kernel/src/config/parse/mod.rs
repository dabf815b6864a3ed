// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of `pasidon.toml` to a [`Config`], or to errors.

mod parents;
mod vms;

pub use vms::MAX_VMS;

use parents::NamedParent;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::DeTable;

use crate::config::FILE_NAME;
use crate::config::error::{ConfigError, Position, Scope, Spanned, quoted};
use crate::config::schema;
use crate::config::table::{Table, Value, unknown_key_remedy};
use crate::config::types::{Config, ConsoleMode, Definition, HostConfig, Mode, VmConfig};
use crate::config::value::{self, Misfit};
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
    /// The parents, sound or not.
    parents: Vec<NamedParent>,
}

impl Parsed {
    /// Has each file read that [`HostConfig::definitions`] names, by its path on the ESP, and checks it. One that cannot be
    /// read, why in words, is refused as one with errors is.
    pub fn definitions<'f>(&self, read: &mut dyn FnMut(&str) -> Result<&'f [u8], String>) -> Vec<Definition> {
        let one = |(index, path): (usize, &Spanned<String>)| {
            let mut definition =
                Definition { index, path: path.value.clone(), vms: Vec::new(), errors: Vec::new() };
            match read(&path.value) {
                Ok(file) => {
                    let mut errors = Vec::new();
                    definition.vms = definition_of(file, &self.parents, &mut errors);
                    errors.sort_by_key(|error| error.at);
                    definition.refuse(errors);
                }
                Err(why) => definition.errors.push(ConfigError::new(
                    Scope::Definition(index),
                    path.at,
                    format!("definition \"{}\": {why}", path.value),
                    "put a good one there or correct the path",
                )),
            }
            definition
        };
        self.config.host.definitions.iter().enumerate().map(one).collect()
    }
}

/// Reads and checks a whole file.
///
/// # Errors
/// When an error stops everything, or no VM is left: all errors found, in the order of the file. What asks for the
/// inventory is stopped by nothing but a text that is no TOML.
pub fn parse(file: &[u8]) -> Result<Parsed, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let found = document_of(file, &mut errors).map(|(text, document)| check(text, &document, &mut errors));
    errors.sort_by_key(|error| error.at);
    match found {
        Some((config, parents)) if config.host.mode.value == Mode::Inventory => {
            Ok(Parsed { config, errors, parents })
        }
        Some((config, parents))
            if !(config.vms.is_empty() && config.host.definitions.is_empty())
                && errors.iter().all(|error| error.scope != Scope::Whole) =>
        {
            Ok(Parsed { config, errors, parents })
        }
        _ => Err(errors),
    }
}

/// The VMs of a file that holds nothing else. None of them starts with the machine.
fn definition_of(file: &[u8], parents: &[NamedParent], errors: &mut Vec<ConfigError>) -> Vec<VmConfig> {
    let Some((text, document)) = document_of(file, errors) else {
        return Vec::new();
    };
    let top = document.get_ref();
    for key in top.keys().filter(|key| key.get_ref() != "vm") {
        errors.push(whole(
            Position::of(text, key.span().start),
            format!("{} is not for a definition", quoted(key.get_ref())),
            format!("write [[vm]] sections only; all else is in {FILE_NAME}"),
        ));
    }
    let mut vms = vms::vms(text, top, parents, errors);
    vms.iter_mut().for_each(|vm| vm.autostart.value = false);
    vms
}

/// The text of a file, and what it says as TOML.
fn document_of<'f>(
    file: &'f [u8],
    errors: &mut Vec<ConfigError>,
) -> Option<(&'f str, toml::Spanned<DeTable<'f>>)> {
    let text = text_of(file).map_err(|error| errors.push(error)).ok()?;
    match DeTable::parse(text) {
        Ok(document) => Some((text, document)),
        Err(error) => {
            let at = error.span().map_or(Position::START, |span| Position::of(text, span.start));
            let message = error.message().replace('`', "").replace('\n', " ");
            errors.push(whole(at, format!("syntax: {message}"), "correct this line; the file is TOML"));
            None
        }
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

fn check(
    text: &str,
    document: &toml::Spanned<DeTable<'_>>,
    errors: &mut Vec<ConfigError>,
) -> (Config, Vec<NamedParent>) {
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
        None if host.mode.value == Mode::Inventory || !host.definitions.is_empty() => Vec::new(),
        _ => vms::vms(text, top, &parents, errors),
    };
    let sound = parents.iter().filter_map(|named| named.sound.clone()).collect();
    (Config { host, parents: sound, vms }, parents)
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
        definitions: definitions(&table, errors),
        last_pasid: table.integer("last_pasid", 1..=u16::MAX, errors),
        pasid_namespace: table.choice("pasid_namespace", &scopes, NamespaceScope::Host, errors),
    }
}

/// The paths of `definitions`, without those in which an error was found.
fn definitions(table: &Table<'_>, errors: &mut Vec<ConfigError>) -> Vec<Spanned<String>> {
    const NAME: &str = "definitions";
    let mut paths: Vec<Spanned<String>> = Vec::new();
    for text in table.strings(NAME, errors) {
        match value::definition_path(&text) {
            Ok(path) if paths.iter().any(|other| other.value == path) => {
                errors.push(table.error(
                    text.at,
                    format_args!("{NAME} names {} twice", quoted(&path)),
                    "remove one of the two",
                ));
            }
            Ok(path) => paths.push(Spanned::new(path, text.at)),
            Err(misfit) => errors.push(misfitting(table, text.at, NAME, &text, misfit)),
        }
    }
    paths
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
