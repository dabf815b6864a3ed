// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables that every form of output shows.

use crate::watch::history::{Counter, History, Subject};
use crate::watch::reach;
use crate::watch::snapshot::Snapshot;
use pasidon_kernel::base::table::{Table, bytes, duration};
use pasidon_kernel::monitor::info::{VdevRow, VmInfo};

/// Stands where there is no value.
const NONE: &str = "-";
/// Records of faults that are shown: the last ones.
const FAULTS: usize = 20;

/// What a table is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// VMs, and what they cost.
    Vms,
    /// Exits by kind.
    Exits,
    /// Physical processors.
    Processors,
    /// Vdevs, and what passes through them.
    Vdevs,
    /// Shared devices and their queues.
    Parents,
    /// PASIDs.
    Pasids,
    /// I/O address spaces.
    Spaces,
    /// What failed stops have cost.
    Retired,
    /// DMA that was refused.
    Faults,
    /// Who may reach what.
    Reach,
}

/// A table.
#[derive(Debug)]
pub struct Grid {
    /// What it is about.
    pub about: About,
    /// What stands above it.
    pub title: String,
    /// The headings; one that begins with `#` is of a column of numbers.
    pub headings: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What stands in the place of rows.
    pub otherwise: &'static str,
}

/// A row of a table.
#[derive(Debug, Default)]
pub struct Row {
    /// Its cells.
    pub cells: Vec<String>,
    /// Somebody should look at this.
    pub alarm: bool,
}

impl Grid {
    fn new(about: About, title: &str, headings: &[&str], otherwise: &'static str) -> Grid {
        let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
        Grid { about, title: title.to_owned(), headings, rows: Vec::new(), otherwise }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), alarm: false });
    }

    fn marked(&mut self, alarm: bool, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), alarm });
    }

    /// As lines of text, without the title; rows with an alarm behind `!`.
    pub fn text(&self) -> String {
        let marks = self.rows.iter().any(|row| row.alarm);
        let first = marks.then_some("");
        let mut table = Table::new(first.into_iter().chain(self.headings.iter().map(String::as_str)));
        for row in &self.rows {
            let mark = marks.then(|| if row.alarm { "!" } else { "" }.to_owned());
            table.row(mark.into_iter().chain(row.cells.iter().cloned()));
        }
        table.render_or(self.otherwise)
    }
}

/// The machine in a few words: name and value.
pub fn summary(snapshot: &Snapshot, history: &History) -> Vec<(&'static str, String)> {
    let mut lines = vec![("up", snapshot.time_ns.map_or(NONE.to_owned(), duration))];
    if let Some(system) = &snapshot.system {
        let (memory, pasids) = (system.memory, system.pasids);
        lines.extend([
            ("IOMMU", system.iommu.as_ref().map_or("none".to_owned(), |iommu| iommu.name.clone())),
            ("memory", format!("{} free of {}", bytes(memory.free), bytes(memory.total))),
            ("PASIDs", format!("{} leased, {} retired", pasids.leased, pasids.retired)),
        ]);
    }
    let span = history.span().map_or(0.0, |(first, last)| last - first);
    lines.push(("seen", format!("{} snapshots in {span:.1} s", history.len())));
    lines
}

/// What somebody should look at.
pub fn alarms(snapshot: &Snapshot) -> Vec<String> {
    let mut alarms = Vec::new();
    if let Some(system) = &snapshot.system {
        alarms.extend(system.taints.iter().map(|taint| format!("TAINTED: {taint}")));
    }
    let lost = snapshot.pcpus.iter().flatten().filter(|pcpu| pcpu.lost);
    alarms.extend(lost.map(|pcpu| format!("pCPU {} does not come back", pcpu.index)));
    for way in reach::ways(snapshot) {
        alarms.extend(way.alarm.map(|why| format!("{}: {why}", way.vdev)));
    }
    alarms.extend(snapshot.notes.iter().map(|note| format!("missing: {note}")));
    alarms
}

/// All tables that there is anything to say in.
pub fn tables(snapshot: &Snapshot, history: &History) -> Vec<Grid> {
    let all = [
        reach(snapshot),
        vms(snapshot, history),
        exits(snapshot, history),
        processors(snapshot),
        vdevs(snapshot, history),
        parents(snapshot),
        pasids(snapshot),
        spaces(snapshot),
        retired(snapshot),
        faults(snapshot),
    ];
    let told = |grid: &Grid| !grid.rows.is_empty() || !grid.otherwise.is_empty();
    all.into_iter().filter(told).collect()
}

/// What stands in the place of rows: nothing is there, or nothing is known.
fn otherwise<T>(part: &Option<T>, none: &'static str) -> &'static str {
    if part.is_some() { none } else { "not in the answers" }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or(NONE.to_owned(), |value| value.to_string())
}

/// A rate per second for people; `-` where it is not known.
pub fn rate(rate: Option<f64>) -> String {
    match rate {
        None => NONE.to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

fn reach(snapshot: &Snapshot) -> Grid {
    let headings = ["VM", "", "VDEV", "", "TAG OF ITS DMA", "", "I/O ADDRESS SPACE", "", "MEMORY", ""];
    let none = otherwise(&snapshot.vdevs, "there is no vdev: no device reaches any memory");
    let mut grid = Grid::new(About::Reach, "Who may reach what", &headings, none);
    let devices: Vec<String> = reach::devices(snapshot).into_iter().map(|device| device.about).collect();
    if !devices.is_empty() {
        grid.title = format!("{}: {}", grid.title, devices.join("; "));
    }
    const TO: &str = "──▶";
    for way in reach::ways(snapshot) {
        let cells =
            [&way.vm, TO, &way.vdev, TO, &way.pasid, TO, &way.space, TO, &way.memory].map(str::to_owned);
        grid.marked(way.alarm.is_some(), cells.into_iter().chain(way.alarm));
    }
    for vm in reach::without_vdev(snapshot) {
        grid.row([vm, "", "no device"].map(str::to_owned));
    }
    grid
}

fn vms(snapshot: &Snapshot, history: &History) -> Grid {
    let headings = [
        "VM",
        "STATE",
        "#MEMORY",
        "#VCPUS",
        "#VDEVS",
        "#PASIDS",
        "#QUOTA",
        "#CPU%",
        "#EXITS/s",
        "#IRQ/s",
        "#FAULT RECORDS",
        "REASON",
    ];
    let mut grid = Grid::new(About::Vms, "VMs", &headings, otherwise(&snapshot.vms, "there is no VM"));
    for vm in snapshot.vms.iter().flatten() {
        let of = |counter| history.rate(&Subject::Vm(vm.name.clone()), counter);
        let wrong = ["crashed", "held", "refused"].contains(&&*vm.state) || vm.pasids_retired > 0;
        grid.marked(
            wrong,
            [
                vm.name.clone(),
                vm.state.to_string(),
                bytes(vm.memory),
                vm.vcpus.to_string(),
                vm.vdevs.len().to_string(),
                vm.pasids_leased.to_string(),
                vm.pasid_quota.to_string(),
                or_none(of(Counter::RunTime).map(|ns| format!("{:.1}", ns / 1e7))),
                rate(of(Counter::Exits)),
                rate(of(Counter::Interrupts)),
                vm.fault_records.to_string(),
                vm.reason.clone().unwrap_or_default(),
            ],
        );
    }
    grid
}

/// The kinds of exit that occurred at all.
fn kinds(vms: &[VmInfo]) -> Vec<&str> {
    let mut kinds: Vec<&str> = Vec::new();
    for exit in vms.iter().flat_map(|vm| &vm.exits).filter(|exit| exit.count > 0) {
        if !kinds.contains(&&*exit.kind) {
            kinds.push(&exit.kind);
        }
    }
    kinds
}

fn exits(snapshot: &Snapshot, history: &History) -> Grid {
    let kinds = snapshot.vms.as_deref().map(kinds).unwrap_or_default();
    let mut grid = Grid::new(About::Exits, "Exits by kind, per second", &["VM"], "");
    grid.headings.extend(kinds.iter().map(|kind| format!("#{kind}")));
    for vm in snapshot.vms.iter().flatten().filter(|vm| vm.exits.iter().any(|exit| exit.count > 0)) {
        let of = |kind: &&str| {
            rate(history.rate(&Subject::Vm(vm.name.clone()), Counter::Kind((*kind).to_owned())))
        };
        grid.row([vm.name.clone()].into_iter().chain(kinds.iter().map(of)));
    }
    grid
}

fn processors(snapshot: &Snapshot) -> Grid {
    let headings = ["#PCPU", "RUNNING", "#WAITING", "#VCPUS"];
    let none = otherwise(&snapshot.pcpus, "no processor is known");
    let mut grid = Grid::new(About::Processors, "Processors", &headings, none);
    for pcpu in snapshot.pcpus.iter().flatten() {
        let lost = if pcpu.lost { " (lost)" } else { "" };
        let running = format!("{}{lost}", or_none(pcpu.running.as_ref()));
        let cells = [pcpu.index.to_string(), running, pcpu.waiting.to_string(), pcpu.assigned.to_string()];
        grid.marked(pcpu.lost, cells);
    }
    grid
}

fn vdevs(snapshot: &Snapshot, history: &History) -> Grid {
    let headings = [
        "VDEV",
        "VM",
        "#PASID",
        "#SPACE",
        "PORTAL",
        "QUEUE",
        "#ENTRIES",
        "#WEIGHT",
        "#DESCRIPTORS/s",
        "#SUBMISSION EXITS/s",
        "#IRQ/s",
        "#FAULT RECORDS",
    ];
    let none = otherwise(&snapshot.vdevs, "there is no vdev");
    let mut grid = Grid::new(About::Vdevs, "Vdevs", &headings, none);
    for vdev in snapshot.vdevs.iter().flatten() {
        let subject = Subject::Vdev(vdev.info.vm.clone(), vdev.name.clone());
        let of = |counter| rate(history.rate(&subject, counter));
        let portal = match snapshot.is_direct(vdev) {
            Some(true) => "direct",
            Some(false) => "trapped",
            None => "?",
        };
        grid.row([
            vdev.name.clone(),
            vdev.info.vm.clone(),
            or_none(vdev.info.pasid),
            or_none(vdev.info.ioas),
            portal.to_owned(),
            queue(vdev),
            or_none(vdev.detail("entries")),
            or_none(vdev.detail("weight")),
            of(Counter::Descriptors),
            of(Counter::SubmissionExits),
            of(Counter::Interrupts),
            vdev.info.fault_records.to_string(),
        ]);
    }
    grid
}

/// A vdev that is being worked on says nothing for the moment.
fn queue(vdev: &VdevRow) -> String {
    if vdev.info.details.is_empty() { "busy".to_owned() } else { or_none(vdev.detail("queue")) }
}

fn parents(snapshot: &Snapshot) -> Grid {
    let none = otherwise(&snapshot.parents, "there is no parent");
    let mut grid = Grid::new(About::Parents, "Parents and their queues", &["PARENT", "WHAT", "STATE"], none);
    for parent in snapshot.parents.iter().flatten() {
        let mut add = |alarm, what: &str, state: String| {
            grid.marked(alarm, [parent.name.clone(), what.to_owned(), state]);
        };
        add(!parent.iommu, "IOMMU", if parent.iommu { "on" } else { "off" }.to_owned());
        parent.taints.iter().for_each(|why| add(true, "TAINTED", why.clone()));
        parent.unusable.iter().for_each(|why| add(true, "unusable", why.clone()));
        for kind in &parent.types {
            let portal = if kind.direct_portal { "direct" } else { "trapped" };
            let state = format!("{} of {} available, {portal}", kind.available, kind.instances);
            add(false, &kind.name, state);
        }
        for detail in &parent.details {
            add(false, &detail.name, detail.value.clone());
        }
        add(false, "events", parent.events.to_string());
    }
    grid
}

/// Whole seconds from then to the snapshot.
fn seconds_since(snapshot: &Snapshot, since_ns: u64) -> String {
    or_none(snapshot.time_ns.map(|now| now.saturating_sub(since_ns) / 1_000_000_000))
}

fn pasids(snapshot: &Snapshot) -> Grid {
    let headings = ["#PASID", "STATE", "#SECONDS", "#BEFORE", "VM", "PARENT", "#VDEV", "#SPACE", "REASON"];
    let none = otherwise(&snapshot.pasids, "no PASID is in use");
    let mut grid = Grid::new(About::Pasids, "PASIDs", &headings, none);
    for pasid in snapshot.pasids.iter().flatten() {
        grid.marked(
            pasid.state == "retired",
            [
                pasid.pasid.to_string(),
                pasid.state.to_string(),
                seconds_since(snapshot, pasid.since_ns),
                pasid.used_before.to_string(),
                pasid.vm.clone(),
                pasid.parent.clone(),
                pasid.vdev.to_string(),
                or_none(pasid.ioas),
                pasid.reason.clone().unwrap_or_default(),
            ],
        );
    }
    grid
}

fn spaces(snapshot: &Snapshot) -> Grid {
    let headings = ["#SPACE", "VM", "#TABLE", "#MAPPINGS", "#MAPPED", "PASIDS"];
    let none = match &snapshot.system {
        None => "not in the answers",
        Some(system) if system.iommu.is_none() => "there is no IOMMU",
        Some(_) => "there is no I/O address space",
    };
    let mut grid = Grid::new(About::Spaces, "I/O address spaces", &headings, none);
    let iommu = snapshot.system.iter().flat_map(|system| &system.iommu);
    for space in iommu.flat_map(|iommu| &iommu.spaces) {
        let pasids: Vec<String> = space.pasids.iter().map(u32::to_string).collect();
        grid.row([
            space.id.to_string(),
            space.vm.clone(),
            space.table.to_string(),
            space.mappings.to_string(),
            bytes(space.mapped_bytes),
            if pasids.is_empty() { NONE.to_owned() } else { pasids.join(", ") },
        ]);
    }
    grid
}

fn retired(snapshot: &Snapshot) -> Grid {
    let headings = ["RETIRED", "VM", "#VALUE", "#SECONDS", "#TRIES", "WHY"];
    let mut grid = Grid::new(About::Retired, "What failed stops have cost", &headings, "");
    for loss in snapshot.system.iter().flat_map(|system| &system.retired) {
        grid.marked(
            true,
            [
                loss.what.to_string(),
                loss.vm.clone(),
                loss.value.to_string(),
                seconds_since(snapshot, loss.since_ns),
                loss.tries.to_string(),
                loss.why.clone(),
            ],
        );
    }
    grid
}

fn faults(snapshot: &Snapshot) -> Grid {
    let none = otherwise(&snapshot.faults, "no fault was recorded since boot");
    let mut grid = Grid::new(About::Faults, "DMA that was refused", &["#SECONDS", "RECORD"], none);
    let Some(faults) = &snapshot.faults else { return grid };
    if faults.records > 0 {
        let records = if faults.records == 1 { "record" } else { "records" };
        grid.title = format!("{}: {} {records} since boot", grid.title, faults.records);
    }
    if faults.overflows > 0 {
        grid.title += &format!(", {} times the IOMMU had no room for more", faults.overflows);
    }
    for fault in faults.faults.iter().rev().take(FAULTS) {
        grid.row([format!("{:.6}", fault.time_ns as f64 / 1e9), fault.to_string()]);
    }
    grid
}
