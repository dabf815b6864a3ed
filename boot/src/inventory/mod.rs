// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mode that lists what a machine has and what Pasidon would refuse there, and goes back to the firmware.
//!
//! **Principle.** It works on any machine with UEFI, so it takes nothing for granted and refuses nothing: each thing is
//! looked at by itself. What would be refused is asked of the functions that refuse it at a start.
//! **Invariant.** Boot services do not end. No register of a device, no configuration space, no control register and no
//! model-specific register is written; what is read does not change by it. All that is said goes through the firmware's
//! console. Registers that the firmware does not map are not read.

mod console;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pasidon_arch::platform::Platform;
use pasidon_arch::vms::Processor;
use pasidon_arch::{cpu, firmware_tables, inventory as processor, portal, serial};
use pasidon_arch_common::firmware_tables::serial_console;
use pasidon_drivers::accel::dsa::{self, Silicon};
use pasidon_drivers::pci::Function;
use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::base::table::Table;
use pasidon_kernel::config::{Config, ParentConfig, Parsed, check_memory, resolve_parents};
use pasidon_kernel::inventory::{Inventory, Stops};
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::system::check_confined;
use uefi::boot::{self, MemoryType};
use uefi::mem::memory_map::MemoryMap;
use uefi::system;

use crate::files::BootDisk;
use crate::hypervisor::devices::{check_driver, function_at, pci_devices};
use crate::hypervisor::iommu::{self, Surveyed};
use crate::registers::{self, Pci};
use crate::tables::Tables;
use crate::{firmware, machine, output};
use console::Console;

/// Looks at everything, shows it, and returns when it was read.
pub fn run(disk: BootDisk, tables: &Tables) {
    firmware::no_watchdog();
    output::firmware_only();
    let mut console = Console::new();
    console.line("");
    console.line(concat!(
        "Pasidon ",
        env!("CARGO_PKG_VERSION"),
        ": inventory of this machine; nothing of it is changed"
    ));
    let mut found = Inventory::new();
    look(&mut found, disk, tables);
    for line in found.render(console.columns) {
        console.line(&line);
    }
    console.line("");
    console.line(&format!("end of the inventory: {}; nothing was changed", found.summary()));
    console::wait("-- any key: back to the firmware --");
}

fn look(found: &mut Inventory, mut disk: BootDisk, tables: &Tables) {
    found.facts("firmware", firmware_facts());
    found.table(format!("tables of the firmware ({})", tables.source()), table_of_tables(tables));
    if let Err(refusal) = cpu::check() {
        found.refuse(Stops::Everything, refusal);
    }
    found.facts("first processor", processor::processor());
    let platform = platform(found, tables);
    let for_guests = memory(found, platform.as_ref());
    serial_line(found, tables);
    let pci = pci(found, tables);
    let iommu = iommus(found, tables, platform.as_ref(), &pci);
    match &disk.parsed {
        Ok(Parsed { config, errors, .. }) => {
            let (config, errors) = (config.clone(), errors.clone());
            found.refuse_configured(&config, &errors);
            accelerators(found, &pci, iommu.as_ref(), &config);
            let files = disk.guests();
            found.refuse_configured(&config, &check_memory(&config, for_guests));
            found.refuse_configured(&config, &files.check::<Processor>(&config));
            for definition in &mut disk.definitions {
                let alone = config.with_vms_of(definition);
                definition.refuse(check_memory(&alone, for_guests));
                definition.refuse(files.check::<Processor>(&alone));
                found.refuse_configured(&config, &definition.errors);
            }
        }
        // Whoever asks for the inventory has a file that can be read.
        Err(errors) => errors.iter().for_each(|error| log::error!("{error}")),
    }
    let messages = output::collected();
    if !messages.is_empty() {
        found.facts("messages", messages.into_iter().map(|line| ("", line)));
    }
}

fn firmware_facts() -> [(&'static str, String); 3] {
    let revision = system::uefi_revision();
    [
        ("vendor", format!("{}, revision {:#x}", system::firmware_vendor(), system::firmware_revision())),
        ("UEFI", format!("{}.{}", revision.major(), revision.minor())),
        (
            "this program",
            match firmware::image() {
                Ok((base, bytes)) => format!("{bytes:#x} bytes at {base:#x}"),
                Err(refusal) => refusal.why,
            },
        ),
    ]
}

fn table_of_tables(tables: &Tables) -> Table {
    let mut table = Table::new(["TABLE", "#BYTES", "#REVISION", "MADE BY", "CHECKSUM", "READ"]);
    for header in Tables::headers() {
        let read = tables.names_signature(&header.signature);
        table.row([
            header.signature,
            header.length.to_string(),
            header.revision.to_string(),
            header.oem,
            if header.sound { "good" } else { "WRONG" }.to_string(),
            if read { "yes" } else { "" }.to_string(),
        ]);
    }
    table
}

fn platform(found: &mut Inventory, tables: &Tables) -> Option<Platform> {
    match Platform::read(&|name| tables.get(name)) {
        Ok(platform) => {
            found.facts("around the processors", platform.describe());
            Some(platform)
        }
        Err(refusal) => {
            found.refuse(Stops::Everything, refusal);
            None
        }
    }
}

/// What guests could have, in bytes.
fn memory(found: &mut Inventory, platform: Option<&Platform>) -> u64 {
    let Ok(map) = boot::memory_map(MemoryType::LOADER_DATA) else {
        found.refuse(
            Stops::Everything,
            Refusal::new("memory", "the firmware gives no memory map", "update the firmware"),
        );
        return 0;
    };
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut memory = firmware::memory(&map);
    let ram = memory.ram.iter().map(|(_, len)| len).sum();
    let end = memory.ram.iter().map(|(start, len)| start.0 + len).max().unwrap_or(0);
    let largest = memory.free.iter().map(|(_, len)| *len).max().unwrap_or(0);
    let ranges = memory.free.len();
    if let Some(bytes) = platform.map(Platform::stack_bytes)
        && let Err(refusal) = machine::memory_for_stacks(&mut memory, bytes)
    {
        found.refuse(Stops::Everything, refusal);
    }
    let free = memory.free.iter().map(|(_, len)| len).sum();
    let for_guests = Frames::new(memory.free.drain(..)).counts().for_guests;
    found.facts(
        "memory",
        [
            ("RAM", format!("{}, the last of it below {end:#x}", mib(ram))),
            ("unused", format!("{} in {ranges} ranges, the largest {}", mib(free), mib(largest))),
            ("for guests", mib(for_guests)),
            ("map", format!("{} entries", map.entries().count())),
        ],
    );
    for_guests
}

fn serial_line(found: &mut Inventory, tables: &Tables) {
    let mut facts = Vec::new();
    match serial::find(&|name| tables.get(name)) {
        Ok(line) => facts.push(("Pasidon would use", line)),
        Err(refusal) => found.refuse(Stops::One("log and monitor".to_string()), refusal),
    }
    facts.push((
        "SPCR",
        match tables.get("SPCR").and_then(serial_console) {
            Some((kind, address, true)) => format!("interface type {kind:#x} at port {address:#x}"),
            Some((kind, address, false)) => format!("interface type {kind:#x} at {address:#x}"),
            None => "none".to_string(),
        },
    ));
    found.facts("serial line", facts);
}

fn pci(found: &mut Inventory, tables: &Tables) -> Pci {
    let ecams = tables.get("MCFG").map(firmware_tables::mcfg).unwrap_or_default();
    let list: Vec<_> = ecams.iter().map(|ecam| (ecam.segment, ecam.base, ecam.start, ecam.end)).collect();
    if ecams.is_empty() {
        found.refuse(Stops::Sharing, machine::no_configuration_space());
    }
    let pci = Pci::new(&list, &mut registers::as_the_firmware_maps);
    let mut segments = Table::new(["SEGMENT", "BUSES", "CONFIGURATION SPACE", "#FUNCTIONS", "#WITH PASID"]);
    for ecam in &ecams {
        let here = pci.functions.iter().map(|function| function.requester);
        let here: Vec<Requester> = here
            .filter(|at| at.segment == ecam.segment && (ecam.start..=ecam.end).contains(&at.bus()))
            .collect();
        let pasid = here.iter().filter(|at| has_pasid(**at, &pci)).count();
        segments.row([
            format!("{:04x}", ecam.segment),
            format!("{:02x}-{:02x}", ecam.start, ecam.end),
            format!("{:#x}", ecam.base),
            here.len().to_string(),
            pasid.to_string(),
        ]);
    }
    found.table("PCI", segments);
    pci
}

fn has_pasid(requester: Requester, pci: &Pci) -> bool {
    let function = pci.config_of(requester).and_then(|config| Function::new(config, requester).ok());
    function.is_some_and(|function| function.pasid().is_some())
}

fn iommus(
    found: &mut Inventory,
    tables: &Tables,
    platform: Option<&Platform>,
    pci: &Pci,
) -> Option<Surveyed> {
    match iommu::survey(tables, platform, pci) {
        Ok(surveyed) => {
            found.facts(format!("{} in the firmware's table", surveyed.make), surveyed.survey.table.clone());
            for unit in &surveyed.survey.units {
                found.facts(format!("{} unit", surveyed.make), unit.clone());
            }
            for refusal in &surveyed.survey.refused {
                found.refuse(Stops::Sharing, refusal.clone());
            }
            Some(surveyed)
        }
        Err(without) => {
            found.refuse(Stops::Sharing, without.refusal());
            None
        }
    }
}

/// Every accelerator, and every device that a parent names.
fn accelerators(found: &mut Inventory, pci: &Pci, iommu: Option<&Surveyed>, config: &Config) {
    let resolved = resolve_parents(config, &pci_devices(pci));
    found.refuse_configured(config, &resolved.errors);
    let mut parents = Vec::new();
    for (index, device) in &resolved.parents {
        let parent = config.parents.iter().find(|parent| parent.index == *index);
        let name = parent.map_or_else(String::new, |parent| format!("parent {}", parent.name.value));
        match check_driver(&name, device) {
            Ok(()) => parents.extend(parent.map(|parent| (device.requester, parent))),
            Err(refusal) => found.refuse(Stops::One(name), refusal),
        }
    }
    let accelerators = pci.functions.iter().filter(|at| Silicon::of(at.vendor, at.device).is_some());
    let mut count = 0;
    for identity in accelerators {
        count += 1;
        let parent = parents.iter().find(|(at, _)| *at == identity.requester).map(|(_, parent)| *parent);
        accelerator(found, pci, iommu, identity.requester, parent);
    }
    if count == 0 {
        found.table("accelerators that there is a driver for", Table::new([]));
    }
}

fn accelerator(
    found: &mut Inventory,
    pci: &Pci,
    iommu: Option<&Surveyed>,
    at: Requester,
    parent: Option<&ParentConfig>,
) {
    let name = parent.map_or_else(|| at.to_string(), |parent| format!("parent {}", parent.name.value));
    let mut refuse = |refusal| found.refuse(Stops::One(name.clone()), refusal);
    let mut facts =
        Vec::from([("parent", parent.map_or("none names it", |parent| &parent.name.value).to_string())]);
    if parent.is_none_or(|parent| parent.iommu.value) {
        // One that cannot be driven confines nothing.
        let iommu = iommu.filter(|iommu| iommu.survey.refused.is_empty());
        let messages = iommu.is_some_and(|iommu| iommu.messages);
        let confined = check_confined(&name, iommu.is_some(), messages);
        match (confined, iommu.map(|iommu| (iommu, iommu.topology.claimable(at, false)))) {
            (Err(refusal), _) | (Ok(()), Some((_, Err(refusal)))) => refuse(refusal),
            (Ok(()), Some((iommu, Ok(place)))) => {
                let unit = iommu.survey.units.get(place.unit).and_then(|unit| unit.first());
                facts.extend(unit.map(|(_, unit)| ("behind", unit.clone())));
            }
            (Ok(()), None) => {}
        }
    }
    match function_at(&name, at, pci) {
        Ok(function) => {
            facts.push(("device", function.identity().to_string()));
            let accepted = parent.is_some_and(|parent| parent.allow_unsafe_portals.value);
            let survey =
                dsa::survey(&function, accepted, portal::can_enqueue(), &mut registers::as_the_firmware_maps);
            facts.extend(survey.facts);
            survey.refused.into_iter().for_each(|refusal| refuse(refusal.within(&name)));
        }
        Err(refusal) => refuse(refusal),
    }
    found.facts(format!("accelerator at {at}"), facts);
}
