// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state in tables for people. Programs get the snapshots themselves.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use crate::base::table::{Table, bytes, duration, pairs};
use crate::console::TypedInfo;
use crate::dma::fault_log::FaultsInfo;
use crate::monitor::info::{
    AwayInfo, DefinitionInfo, IommuInfo, ParentInfo, PasidInfo, RetiredInfo, SystemInfo, VdevInfo, VdevRow,
    VectorInfo, VmInfo, vdev_name,
};

/// Stands where there is no value.
pub(super) const NONE: &str = "-";

pub(super) fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_string(), |value| value.to_string())
}

/// One line for each reason not to trust the isolation.
pub(super) fn taints(system: &SystemInfo) -> String {
    let line = |taint: &String| format!("TAINTED: {taint}\n");
    system.taints.iter().map(line).collect()
}

pub(super) fn vms(vms: &[VmInfo]) -> String {
    let mut table = Table::new([
        "VM",
        "STATE",
        "#MEMORY",
        "#VCPUS",
        "#VDEVS",
        "#PASIDS",
        "#QUOTA",
        "#STARTS",
        "#RUN TIME",
        "#FAULT RECORDS",
        "REASON",
    ]);
    for vm in vms {
        table.row([
            vm.name.clone(),
            vm.state.to_string(),
            bytes(vm.memory),
            vm.vcpus.to_string(),
            vm.vdevs.len().to_string(),
            vm.pasids_leased.to_string(),
            vm.pasid_quota.to_string(),
            vm.starts.to_string(),
            duration(vm.run_ns),
            vm.fault_records.to_string(),
            vm.reason.clone().unwrap_or_default(),
        ]);
    }
    table.render_or("there is no VM")
}

/// The files whose VMs can be defined.
pub(super) fn definitions(definitions: &[DefinitionInfo]) -> String {
    let mut table = Table::new(["FILE", "VMS", "REFUSED"]);
    for DefinitionInfo { file, vms, refused } in definitions {
        table.row([file.clone(), vms.join(" "), refused.clone().unwrap_or_default()]);
    }
    table.render_or("pasidon.toml names no definitions")
}

/// A VM with what only its own view shows.
#[derive(Serialize)]
pub(super) struct VmView {
    /// The VM.
    #[serde(flatten)]
    pub info: VmInfo,
    /// What was typed for it.
    pub typed: Option<TypedInfo>,
}

pub(super) fn vm(view: &VmView) -> String {
    let vm = &view.info;
    let exits = vm.exits.iter().filter(|exit| exit.count > 0);
    let lines = [
        ("name", vm.name.clone()),
        ("state", vm.state.to_string()),
        ("reason", or_none(vm.reason.as_ref())),
        ("memory", format!("{}, in use {}", bytes(vm.memory), bytes(vm.memory_in_use))),
        ("vcpus", vm.vcpus.to_string()),
        ("run time", duration(vm.run_ns)),
        ("starts", vm.starts.to_string()),
        ("pasids", format!("{} of {}, {} retired", vm.pasids_leased, vm.pasid_quota, vm.pasids_retired)),
        ("interrupts", vm.interrupts.to_string()),
        ("away", away(&vm.away)),
        ("fault records", vm.fault_records.to_string()),
        ("exits", list(exits.map(|exit| format!("{} {}", exit.kind, exit.count)))),
        ("vdevs", vdev_states(vm)),
        (
            "typed",
            or_none(view.typed.map(|typed| {
                let TypedInfo { waiting, room, lost } = typed;
                format!("{waiting} waiting, room for {room}, {lost} lost")
            })),
        ),
    ];
    pairs(lines)
}

/// The vdevs of a VM; while it is paused, what they have under way.
pub(super) fn vdev_states(vm: &VmInfo) -> String {
    let vdev = |vdev: &VdevInfo| {
        let name = vdev_name(&vdev.parent, &vdev.type_name, vdev.id);
        if vm.state == "paused" { format!("{name} {}", vdev.work) } else { name }
    };
    list(vm.vdevs.iter().map(vdev))
}

/// Interrupts that came in turns of other VMs.
fn away(away: &AwayInfo) -> String {
    format!("{} interrupts in {} us, masked {} times", away.interrupts, away.time_ns / 1000, away.masked)
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { NONE.to_string() } else { items.join(", ") }
}

pub(super) fn vdevs(vdevs: &[VdevRow]) -> String {
    let mut table = Table::new([
        "VDEV",
        "VM",
        "STATE",
        "WORK",
        "#PASID",
        "#SPACE",
        "QUEUE",
        "#ENTRIES",
        "#SUBMISSION EXITS",
        "#INTERRUPTS",
        "#FAULT RECORDS",
    ]);
    for vdev in vdevs {
        table.row([
            vdev.name.clone(),
            vdev.info.vm.clone(),
            vdev.info.state.to_string(),
            vdev.info.work.to_string(),
            or_none(vdev.info.pasid),
            or_none(vdev.info.ioas),
            or_none(vdev.detail("queue")),
            or_none(vdev.detail("entries")),
            vdev.submission_exits.to_string(),
            vdev.interrupts().to_string(),
            vdev.info.fault_records.to_string(),
        ]);
    }
    table.render_or("there is no vdev")
}

pub(super) fn vdev(vdev: &VdevRow) -> String {
    let own = [
        ("name", vdev.name.clone()),
        ("vm", vdev.info.vm.clone()),
        ("state", vdev.info.state.to_string()),
        ("work", vdev.info.work.to_string()),
        ("pasid", or_none(vdev.info.pasid)),
        ("space", or_none(vdev.info.ioas)),
        ("submission exits", vdev.submission_exits.to_string()),
        ("interrupts", vdev.interrupts().to_string()),
        ("away", away(&vdev.info.away)),
        ("fault records", vdev.info.fault_records.to_string()),
    ];
    let details = vdev.info.details.iter();
    let details = details.map(|detail| (detail.name.as_str(), detail.value.clone()));
    pairs(own.into_iter().chain(details.filter(|(name, _)| *name != "pasid")))
}

pub(super) fn parents(parents: &[ParentInfo]) -> String {
    let mut table =
        Table::new(["PARENT", "AT", "IOMMU", "TYPE", "#AVAILABLE", "#OF", "PORTAL", "DESCRIPTION"]);
    for parent in parents {
        let iommu = if parent.iommu { "on" } else { "off" };
        let head = [parent.name.clone(), parent.requester.clone(), iommu.to_string()];
        if parent.types.is_empty() {
            table.row(head);
            continue;
        }
        for kind in &parent.types {
            let portal = if kind.direct_portal { "direct" } else { "trapped" };
            table.row(head.iter().cloned().chain([
                kind.name.clone(),
                kind.available.to_string(),
                kind.instances.to_string(),
                portal.to_string(),
                kind.description.clone(),
            ]));
        }
    }
    let mut text = table.render_or("there is no parent");
    for parent in parents {
        let unusable = parent.unusable.iter().map(|why| ("unusable", why.clone()));
        let details = parent.details.iter();
        let details = details.map(|detail| (detail.name.as_str(), detail.value.clone()));
        text += &format!("\n{}\n", parent.name);
        text += &pairs(unusable.chain(details).chain([("events", parent.events.to_string())]));
    }
    text
}

/// How long ago that was, in whole seconds.
fn seconds_since(since_ns: u64, uptime_ns: u64) -> String {
    (uptime_ns.saturating_sub(since_ns) / 1_000_000_000).to_string()
}

pub(super) fn pasids(pasids: &[PasidInfo], uptime_ns: u64) -> String {
    let mut table =
        Table::new(["#PASID", "STATE", "#SECONDS", "#BEFORE", "VM", "PARENT", "#VDEV", "#SPACE", "REASON"]);
    for pasid in pasids {
        table.row([
            pasid.pasid.to_string(),
            pasid.state.to_string(),
            seconds_since(pasid.since_ns, uptime_ns),
            pasid.used_before.to_string(),
            pasid.vm.clone(),
            pasid.parent.clone(),
            pasid.vdev.to_string(),
            or_none(pasid.ioas),
            pasid.reason.clone().unwrap_or_default(),
        ]);
    }
    table.render_or("no PASID is in use")
}

/// What `iommu` gives to programs.
#[derive(Debug, Serialize)]
pub(super) struct IommuState<'a> {
    pub taints: &'a [String],
    pub iommu: &'a Option<IommuInfo>,
    pub retired: &'a [RetiredInfo],
    pub revived: u64,
    pub uptime_ns: u64,
    pub stray_interrupts: u64,
}

pub(super) fn iommu(state: &IommuState<'_>) -> String {
    let Some(iommu) = state.iommu else {
        return String::from("there is no IOMMU: vdevs only of parents with iommu = \"off\"\n");
    };
    let remapping = if iommu.interrupt_remapping { "yes" } else { "NO" };
    let mut text = pairs([
        ("kind", iommu.name.clone()),
        ("PASID width", format!("{} bits", iommu.pasid_bits)),
        ("address width", format!("{} bits", iommu.address_bits)),
        ("largest page", bytes(iommu.largest_page)),
        ("interrupts remapped", remapping.to_string()),
        ("invalidation commands", iommu.commands_issued.to_string()),
        ("stray interrupts", state.stray_interrupts.to_string()),
    ]);
    let mut spaces = Table::new(["#SPACE", "VM", "#TABLE", "#MAPPINGS", "#MAPPED", "PASIDS"]);
    for space in &iommu.spaces {
        spaces.row([
            space.id.to_string(),
            space.vm.clone(),
            space.table.to_string(),
            space.mappings.to_string(),
            bytes(space.mapped_bytes),
            list(space.pasids.iter().map(u32::to_string)),
        ]);
    }
    text += &format!("\n{}", spaces.render_or("there is no I/O address space"));
    let mut retired = Table::new(["RETIRED", "VM", "#VALUE", "#SECONDS", "#TRIES", "WHY"]);
    for loss in state.retired {
        retired.row([
            loss.what.to_string(),
            loss.vm.clone(),
            loss.value.to_string(),
            seconds_since(loss.since_ns, state.uptime_ns),
            loss.tries.to_string(),
            loss.why.clone(),
        ]);
    }
    text += &format!("\n{}", retired.render_or("nothing is retired"));
    if state.revived > 0 {
        text += &format!("{} that were retired have come back\n", state.revived);
    }
    text
}

pub(super) fn faults(faults: &FaultsInfo) -> String {
    let mut text = String::new();
    for fault in &faults.faults {
        let (seconds, micros) = (fault.time_ns / 1_000_000_000, fault.time_ns / 1000 % 1_000_000);
        text += &format!("{seconds:5}.{micros:06} {fault}\n");
    }
    let mut table = Table::new(["VDEV", "#RECORDS"]);
    for vdev in &faults.vdevs {
        table.row([or_none(vdev.vdev.as_ref()), vdev.records.to_string()]);
    }
    if !table.is_empty() {
        text += &format!("\n{}\n", table.render());
    }
    text += &match faults.records {
        0 => String::from("no fault was recorded since boot\n"),
        1 => String::from("1 record since boot, of one fault or several\n"),
        records => format!("{records} records since boot, each of one fault or several\n"),
    };
    if faults.overflows > 0 {
        text += &format!("{} times, the IOMMU had no room for one or more\n", faults.overflows);
    }
    if faults.strangers > 0 {
        text += &format!("{} records of requests from no PCI function\n", faults.strangers);
    }
    text
}

/// A vector of a vdev as programs get it, with the physical interrupt that leads to it.
#[derive(Debug, Serialize)]
pub(super) struct InterruptRow {
    pub vdev: String,
    pub vm: String,
    pub parent: String,
    pub entry: Option<u16>,
    pub host_vector: Option<u32>,
    pub cpu: Option<u32>,
    pub posted_as: Option<u8>,
    pub came: Option<u64>,
    #[serde(flatten)]
    pub info: VectorInfo,
}

/// `vectors` has those of a vdev.
pub(super) fn interrupt_rows(
    vdevs: &[VdevRow],
    vectors: impl Fn(u32) -> Vec<VectorInfo>,
) -> Vec<InterruptRow> {
    let row = |vdev: &VdevRow, info: VectorInfo| {
        let line = vdev.info.interrupts.iter().find(|line| line.virtual_vector == info.vector);
        InterruptRow {
            vdev: vdev.name.clone(),
            vm: vdev.info.vm.clone(),
            parent: vdev.info.parent.clone(),
            entry: line.map(|line| line.entry),
            host_vector: line.map(|line| line.host_vector),
            cpu: line.map(|line| line.cpu),
            posted_as: line.and_then(|line| line.posted_as),
            came: line.map(|line| line.came),
            info,
        }
    };
    vdevs.iter().flat_map(|vdev| vectors(vdev.info.id).into_iter().map(move |info| row(vdev, info))).collect()
}

pub(super) fn interrupts(rows: &[InterruptRow]) -> String {
    let mut table = Table::new([
        "VDEV",
        "VM",
        "#VECTOR",
        "#ENTRY",
        "#CPU",
        "#HOST VECTOR",
        "#POSTED AS",
        "GUEST",
        "HOST",
        "#CAME",
        "#DELIVERED",
        "#PENDED",
        "#TRIGGERED",
    ]);
    let hexadecimal = |number: Option<u32>| or_none(number.map(|number| format!("{number:#x}")));
    for row in rows {
        let host = [
            (true, if row.info.masked { "masked" } else { "open" }),
            (row.info.automask, "automask"),
            (row.info.pending, "pending"),
        ];
        table.row([
            row.vdev.clone(),
            row.vm.clone(),
            row.info.vector.to_string(),
            or_none(row.entry),
            or_none(row.cpu),
            hexadecimal(row.host_vector),
            hexadecimal(row.posted_as.map(u32::from)),
            row.info.guest.to_string(),
            list(host.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word.to_string())),
            or_none(row.came),
            row.info.delivered.to_string(),
            row.info.pended.to_string(),
            row.info.triggered.to_string(),
        ]);
    }
    table.render_or("there is no vdev")
}

/// Exits as programs get them.
#[derive(Debug, Serialize)]
pub(super) struct ExitsRow<'a> {
    pub vm: &'a str,
    pub run_ns: u64,
    pub total: u64,
    pub exits: &'a [crate::monitor::info::ExitCount],
}

pub(super) fn exits_rows(vms: &[VmInfo]) -> Vec<ExitsRow<'_>> {
    fn row(vm: &VmInfo) -> ExitsRow<'_> {
        ExitsRow {
            vm: &vm.name,
            run_ns: vm.run_ns,
            total: vm.exits.iter().map(|exit| exit.count).sum(),
            exits: &vm.exits,
        }
    }
    vms.iter().map(row).collect()
}

/// The kinds of exit that occurred at all, in the order in which the VMs give them.
pub(super) fn exit_kinds(vms: &[VmInfo]) -> Vec<&str> {
    let mut kinds = Vec::new();
    for exit in vms.iter().flat_map(|vm| &vm.exits) {
        if exit.count > 0 && !kinds.contains(&&*exit.kind) {
            kinds.push(&*exit.kind);
        }
    }
    kinds
}

pub(super) fn exit_count(vm: &VmInfo, kind: &str) -> u64 {
    let exits = vm.exits.iter().filter(|exit| exit.kind == kind);
    exits.map(|exit| exit.count).sum()
}

pub(super) fn exits(vms: &[VmInfo]) -> String {
    let kinds = exit_kinds(vms);
    let columns: Vec<String> = kinds.iter().map(|kind| format!("#{kind}")).collect();
    let headings = ["VM", "#TOTAL"].into_iter();
    let mut table = Table::new(headings.chain(columns.iter().map(String::as_str)));
    for (vm, row) in vms.iter().zip(exits_rows(vms)) {
        let counts = kinds.iter().map(|kind| exit_count(vm, kind).to_string());
        table.row([vm.name.clone(), row.total.to_string()].into_iter().chain(counts));
    }
    table.render_or("there is no VM")
}

/// What `version` gives to programs.
#[derive(Debug, Serialize)]
pub(super) struct Version<'a> {
    pub name: &'static str,
    pub version: &'static str,
    #[serde(flatten)]
    pub system: &'a SystemInfo,
}

pub(super) fn version(version: &Version<'_>) -> String {
    let system = version.system;
    let memory = system.memory;
    let pasids = system.pasids;
    pairs([
        ("version", format!("{} {}", version.name, version.version)),
        ("up", duration(system.uptime_ns)),
        ("iommu", or_none(system.iommu.as_ref().map(|iommu| &iommu.name))),
        (
            "memory",
            format!(
                "{} free of {}, guests {}, tables {}, held {}",
                bytes(memory.free),
                bytes(memory.total),
                bytes(memory.guests),
                bytes(memory.tables),
                bytes(memory.held)
            ),
        ),
        (
            "hypervisor",
            format!(
                "image {}, heap {} used of {}",
                bytes(memory.hypervisor.image),
                bytes(memory.hypervisor.heap_used),
                bytes(memory.hypervisor.heap)
            ),
        ),
        (
            "pasids",
            format!(
                "{} leased, {} retired, from {} to {}{}",
                pasids.leased,
                pasids.retired,
                pasids.first,
                pasids.last,
                if pasids.per_device { " on each device" } else { "" }
            ),
        ),
        ("vms", system.vms.to_string()),
        ("vdevs", system.vdevs.to_string()),
    ])
}
