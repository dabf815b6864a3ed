// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of `pasidon.toml` to a [`Config`], or to errors.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Position, Scope, Spanned, quoted};
use super::schema;
use super::table::{Table, Value, unknown_key_remedy};
use super::types::{
    Config, ConsoleMode, HostConfig, OnReboot, ParentConfig, ParentSelector, VdevConfig, VmConfig,
};
use super::value::{self, Misfit};
use crate::console::framing::CHANNELS;
use crate::log::LEVELS;
use crate::nearest::nearest;

/// Longest file that is read, in bytes. Far above any sensible configuration, far below what would hurt.
pub const MAX_FILE: usize = 256 << 10;

/// Most VMs: the channels of the framed console without the monitor's.
pub const MAX_VMS: usize = CHANNELS as usize - 1;

/// PASID quota of a VM that does not name one.
const DEFAULT_PASIDS: u16 = 8;

/// What [`parse`] gives for a usable file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The configuration, with at least one VM.
    pub config: Config,
    /// The errors that keep single VMs and parents from being used, in the order of the file.
    pub errors: Vec<ConfigError>,
}

/// Reads and checks a whole file.
///
/// # Errors
/// All errors found, in the order of the file, when one of them stops everything or no VM is left.
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
        whole(
            Position::of(valid, valid.len()),
            "not UTF-8 text",
            "save the file as UTF-8",
        )
    })
}

fn whole(at: Position, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
    ConfigError::new(Scope::Whole, at, what, remedy)
}

fn check(text: &str, errors: &mut Vec<ConfigError>) -> Option<Config> {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error
                .span()
                .map_or(Position::START, |span| Position::of(text, span.start));
            let message = error.message().replace('`', "").replace('\n', " ");
            errors.push(whole(
                at,
                format!("syntax: {message}"),
                "correct this line; the file is TOML",
            ));
            return None;
        }
    };
    let top = document.get_ref();
    for key in top.keys() {
        if !schema::TOP.contains(&key.get_ref().as_ref()) {
            let at = Position::of(text, key.span().start);
            let remedy = unknown_key_remedy(key.get_ref(), schema::TOP.into_iter(), "the file");
            errors.push(whole(
                at,
                format!("unknown key {}", quoted(key.get_ref())),
                remedy,
            ));
        }
    }
    let host = host(text, top, errors);
    let parents = parents(text, top, errors);
    let vms = vms(text, top, &parents, errors);
    Some(Config {
        host,
        parents: parents.into_iter().filter_map(|named| named.sound).collect(),
        vms,
    })
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
    HostConfig {
        log: table.choice("log", &LEVELS, log::LevelFilter::Info, errors),
        console: table.choice("console", &modes, ConsoleMode::Plain, errors),
    }
}

fn wrong_section(at: Position, value: &Value<'_>, name: &str, heading: &str) -> ConfigError {
    let found = value.get_ref().type_str();
    whole(
        at,
        format!("{name} is a section, but this is of type {found}"),
        format!("write it as {heading}"),
    )
}

/// A `[parent.NAME]`, sound or not.
struct NamedParent {
    name: Spanned<String>,
    sound: Option<ParentConfig>,
}

/// Every `[parent.NAME]` in the order of the file.
fn parents(text: &str, top: &DeTable<'_>, errors: &mut Vec<ConfigError>) -> Vec<NamedParent> {
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
    let subject = format!("parent {}", super::error::shortened(name));
    let table = Table::new(
        text,
        entries,
        &schema::PARENT,
        name.at,
        subject,
        Scope::Parent(index),
    );
    if let Err(misfit) = value::name(name) {
        errors.push(misfitting(&table, name.at, "its name", name, misfit));
    }
    table.refuse_unknown_keys(errors);
    let iommu = table.choice("iommu", &[("on", true), ("off", false)], true, errors);
    let allow_unsafe_portals = table.boolean("allow_unsafe_portals", false, errors);
    let selector = match (table.value("pci"), table.value("match")) {
        (Some(_), Some((_, at))) => {
            errors.push(table.error(
                at,
                "pci and match both say which device it is",
                "keep one of them",
            ));
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
        (Some(_), None) => converted(&table, "pci", errors, |text| {
            value::pci_address(text).map(ParentSelector::Pci)
        }),
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
    })
}

fn misfitting(table: &Table<'_>, at: Position, name: &str, value: &str, misfit: Misfit) -> ConfigError {
    table.error(
        at,
        format_args!("{name} {} {}", quoted(value), misfit.why),
        misfit.remedy,
    )
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

fn vms(
    text: &str,
    top: &DeTable<'_>,
    parents: &[NamedParent],
    errors: &mut Vec<ConfigError>,
) -> Vec<VmConfig> {
    let Some(value) = top.get("vm") else {
        errors.push(whole(
            Position::START,
            "there is no VM",
            "add a [[vm]] section with name, memory and kernel",
        ));
        return Vec::new();
    };
    let Some(array) = value.get_ref().as_array() else {
        let at = Position::of(text, value.span().start);
        errors.push(match value.get_ref() {
            DeValue::Table(_) => whole(
                at,
                "vm is a list of sections, but this is a single one",
                "write it as [[vm]], with double brackets",
            ),
            _ => wrong_section(at, value, "vm", schema::VM.heading),
        });
        return Vec::new();
    };
    if array.is_empty() {
        let at = Position::of(text, value.span().start);
        errors.push(whole(
            at,
            "there is no VM",
            "add a [[vm]] section with name, memory and kernel",
        ));
    }
    let mut names: Vec<Spanned<String>> = Vec::new();
    let mut vms = Vec::new();
    for (index, value) in array.iter().enumerate() {
        let at = Position::of(text, value.span().start);
        let Some(entries) = value.get_ref().as_table() else {
            errors.push(ConfigError {
                scope: Scope::Vm(index),
                ..wrong_section(at, value, "vm", schema::VM.heading)
            });
            continue;
        };
        let before = errors.len();
        if index == MAX_VMS {
            errors.push(ConfigError::new(
                Scope::Vm(index),
                at,
                format!(
                    "{} VMs are more than the {MAX_VMS} that the console can tell apart",
                    array.len()
                ),
                "remove some",
            ));
        }
        if index >= MAX_VMS {
            break;
        }
        let vm = vm(text, index, at, entries, &mut names, parents, errors);
        if errors.len() == before {
            vms.extend(vm);
        }
    }
    vms
}

/// One VM. `names` are those of the VMs before it; its own is added.
fn vm(
    text: &str,
    index: usize,
    at: Position,
    entries: &DeTable<'_>,
    names: &mut Vec<Spanned<String>>,
    parents: &[NamedParent],
    errors: &mut Vec<ConfigError>,
) -> Option<VmConfig> {
    let subject = format!("vm number {}", index + 1);
    let mut table = Table::new(text, entries, &schema::VM, at, subject, Scope::Vm(index));
    let name = required(&table, "name", errors, |text| {
        value::name(text).map(|()| text.to_string())
    });
    if let Some(name) = &name {
        table.subject = format!("vm {}", name.value);
        match names.iter().find(|other| other.value == name.value) {
            Some(other) => errors.push(table.error(
                name.at,
                format_args!("the VM on line {} has this name already", other.at.line),
                "give each VM a name of its own",
            )),
            None => names.push(name.clone()),
        }
    }
    table.refuse_unknown_keys(errors);
    let memory = required(&table, "memory", errors, value::memory);
    let kernel = required(&table, "kernel", errors, value::path);
    let initrd = converted(&table, "initrd", errors, value::path);
    let cmdline = converted(&table, "cmdline", errors, cmdline);
    let pasids = table
        .integer("pasids", 0..=u16::MAX, errors)
        .unwrap_or(Spanned::new(DEFAULT_PASIDS, at));
    let vcpus = table
        .integer("vcpus", 1..=u16::MAX, errors)
        .unwrap_or(Spanned::new(1, at));
    if vcpus.value != 1 {
        errors.push(table.error(
            vcpus.at,
            format_args!("vcpus = {}, but this version runs one vCPU per VM", vcpus.value),
            "write vcpus = 1 or leave it out",
        ));
    }
    let autostart = table.boolean("autostart", true, errors);
    let on_reboot = table.choice(
        "on_reboot",
        &[("restart", OnReboot::Restart), ("stop", OnReboot::Stop)],
        OnReboot::Restart,
        errors,
    );
    let vdevs = vdevs(text, index, &table, parents, errors);
    if let Some(excess) = vdevs.get(usize::from(pasids.value)) {
        errors.push(table.error(
            excess.at,
            format_args!(
                "{} vdevs need {} PASIDs, but its quota is {}",
                vdevs.len(),
                vdevs.len(),
                pasids.value
            ),
            format!("write pasids = {} or remove a vdev", vdevs.len()),
        ));
    }
    Some(VmConfig {
        index,
        at,
        name: name?,
        memory: memory?,
        kernel: kernel?,
        initrd,
        cmdline: cmdline.unwrap_or(Spanned::new(String::new(), at)),
        pasids,
        vcpus,
        autostart,
        on_reboot,
        vdevs,
    })
}

fn cmdline(text: &str) -> Result<String, Misfit> {
    let misfit = |why, remedy| Err(Misfit { why, remedy });
    if text.len() > value::MAX_CMDLINE {
        misfit(
            "is longer than 2047 bytes, which is all Linux reads",
            "shorten it",
        )
    } else if text.contains(|c: char| c.is_control()) {
        misfit("holds control characters", "write it in one line of plain text")
    } else {
        Ok(text.to_string())
    }
}

fn vdevs(
    text: &str,
    index: usize,
    vm: &Table<'_>,
    parents: &[NamedParent],
    errors: &mut Vec<ConfigError>,
) -> Vec<VdevConfig> {
    let Some((value, at)) = vm.value("vdev") else {
        return Vec::new();
    };
    let Some(array) = value.get_ref().as_array() else {
        vm.wrong_type("vdev", value.get_ref(), at, errors);
        return Vec::new();
    };
    let mut vdevs = Vec::new();
    for (number, value) in array.iter().enumerate() {
        let at = Position::of(text, value.span().start);
        let DeValue::Table(entries) = value.get_ref() else {
            vm.wrong_type("vdev", value.get_ref(), at, errors);
            continue;
        };
        let subject = format!("{}: vdev number {}", vm.subject, number + 1);
        let table = Table::new(text, entries, &schema::VDEV, at, subject, Scope::Vm(index));
        table.refuse_unknown_keys(errors);
        let parent = table.required_string("parent", errors);
        let type_name = table.required_string("type", errors);
        let entries = table.integer("entries", 1..=u16::MAX, errors);
        if let Some(parent) = &parent {
            known_parent(&table, parent, parents, errors);
        }
        if let (Some(parent), Some(type_name)) = (parent, type_name) {
            vdevs.push(VdevConfig {
                at,
                parent,
                type_name,
                entries,
            });
        }
    }
    vdevs
}

fn known_parent(
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
                format!("correct it first, it is on line {line}"),
            ));
        }
        return;
    }
    let names = parents.iter().map(|known| known.name.value.as_str());
    let remedy = match nearest(parent, names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "add a [parent.NAME] section for it, or name one that is there".to_string(),
    };
    errors.push(table.error(
        parent.at,
        format_args!("unknown parent {}", quoted(parent)),
        remedy,
    ));
}
