// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `[[vm]]` sections with their vdevs.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::{DeTable, DeValue};

use super::parents::{NamedParent, known_parent};
use super::{converted, misfitting, required, whole, wrong_section};
use crate::base::id::VmId;
use crate::config::error::{ConfigError, Position, Scope, Spanned};
use crate::config::schema;
use crate::config::table::Table;
use crate::config::types::{OnReboot, VdevConfig, VmConfig};
use crate::config::value::{self, Misfit};
use crate::dev::pci::SLOTS_MAX;
use crate::dma::address_space::AddressSpace;
use crate::memory::ram::RamRange;

/// Most VMs.
pub const MAX_VMS: usize = VmId::PLACES;

/// Largest weight of a vdev.
const MAX_WEIGHT: u8 = u8::MAX;

/// Most windows of a vdev.
const MAX_WINDOWS: usize = 16;

/// PASID quota of a VM that does not name one.
const DEFAULT_PASIDS: u16 = 8;

/// Slots of a VM that does not say how many: so many more than it has vdevs, and so many at least.
const SPARE_SLOTS: usize = 4;
const LEAST_SLOTS: usize = 8;

/// Every sound `[[vm]]` in the order of the file.
pub(super) fn vms(
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
        errors.push(whole(at, "there is no VM", "add a [[vm]] section with name, memory and kernel"));
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
                format!("{} VMs are more than the {MAX_VMS} that the console can tell apart", array.len()),
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
    let name = required(&table, "name", errors, value::vm_name);
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
    let pasids = table.integer("pasids", 0..=u16::MAX, errors).unwrap_or(Spanned::new(DEFAULT_PASIDS, at));
    let vcpus = table.integer("vcpus", 1..=u16::MAX, errors).unwrap_or(Spanned::new(1, at));
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
    let slots = slots(&table, &vdevs, errors);
    Some(VmConfig {
        index,
        at,
        name: name?,
        memory: memory?,
        kernel: kernel?,
        initrd,
        cmdline: cmdline.unwrap_or(Spanned::new(String::new(), at)),
        pasids,
        slots,
        vcpus,
        autostart,
        on_reboot,
        vdevs,
    })
}

/// How many slots the VM has: enough for its vdevs.
fn slots(table: &Table<'_>, vdevs: &[VdevConfig], errors: &mut Vec<ConfigError>) -> Spanned<u8> {
    let given = table.integer("slots", 0..=SLOTS_MAX.into(), errors);
    let default = (vdevs.len() + SPARE_SLOTS).clamp(LEAST_SLOTS, SLOTS_MAX.into());
    let slots = given.map_or(default, |given| given.value.into());
    if let Some(excess) = vdevs.get(slots) {
        let (count, at) = (vdevs.len(), given.map_or(excess.at, |given| given.at));
        let remedy = match count <= SLOTS_MAX.into() {
            true => format!("write slots = {count} or remove a vdev"),
            false => "remove vdevs".to_string(),
        };
        errors.push(table.error(at, format_args!("{count} vdevs do not fit {slots} slots"), remedy));
    }
    Spanned::new(slots.min(SLOTS_MAX.into()) as u8, given.map_or(table.at, |given| given.at))
}

fn cmdline(text: &str) -> Result<String, Misfit> {
    let misfit = |why, remedy| Err(Misfit { why, remedy });
    if text.len() > value::MAX_CMDLINE {
        misfit("is longer than 2047 bytes, which is all Linux reads", "shorten it")
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
        let weight = table.integer("weight", 1..=MAX_WEIGHT.into(), errors);
        let weight = weight.map(|weight| Spanned::new(weight.value.min(MAX_WEIGHT.into()) as u8, weight.at));
        let space = address_space(&table, errors);
        if let Some(parent) = &parent {
            known_parent(&table, parent, parents, errors);
        }
        if let (Some(parent), Some(type_name)) = (parent, type_name) {
            vdevs.push(VdevConfig { at, parent, type_name, entries, weight, space });
        }
    }
    vdevs
}

/// What a vdev's DMA reaches.
fn address_space(table: &Table<'_>, errors: &mut Vec<ConfigError>) -> Spanned<AddressSpace> {
    let kinds = [
        ("vm", AddressSpace::Vm),
        ("own", AddressSpace::Own),
        ("dma-only", AddressSpace::DmaOnly(Vec::new())),
    ];
    let mut space = table.choice("address_space", &kinds, AddressSpace::Vm, errors);
    let windows = windows(table, errors);
    match (&mut space.value, table.value("windows")) {
        (AddressSpace::DmaOnly(own), Some(_)) => *own = windows,
        (AddressSpace::DmaOnly(_), None) => errors.push(table.error(
            space.at,
            "address_space is \"dma-only\", but no windows are named",
            "add a line like windows = [\"0x8000000+16M\"]",
        )),
        (_, Some((_, at))) => errors.push(table.error(
            at,
            "windows are for address_space = \"dma-only\"",
            "write that, or leave windows out",
        )),
        (_, None) => {}
    }
    space
}

/// The windows of a vdev, without those that are none.
fn windows(table: &Table<'_>, errors: &mut Vec<ConfigError>) -> Vec<RamRange> {
    const OVERLAPS: Misfit = Misfit { why: "overlaps one before it", remedy: "name each page once" };
    let mut windows: Vec<RamRange> = Vec::new();
    for text in table.strings("windows", errors) {
        let found = value::window(&text).and_then(|window| {
            let known = windows.iter().any(|other| other.overlaps(&window));
            if known { Err(OVERLAPS) } else { Ok(window) }
        });
        match found {
            Ok(window) => windows.push(window),
            Err(misfit) => errors.push(misfitting(table, text.at, "window", &text, misfit)),
        }
    }
    if let Some((_, at)) = table.value("windows").filter(|_| windows.len() > MAX_WINDOWS) {
        let what = format!("{} windows are more than {MAX_WINDOWS}", windows.len());
        errors.push(table.error(at, what, "join some"));
    }
    windows
}
