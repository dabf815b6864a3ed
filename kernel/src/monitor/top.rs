// SPDX-License-Identifier: MIT OR Apache-2.0
//! `top`: what runs, and how much of what since the last picture.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;

use super::host::MonitorHost;
use super::show::{self, NONE};
use crate::base::table::{Table, bytes, duration};
use crate::monitor::info::{PcpuInfo, SystemInfo, VdevRow, VmInfo};

/// Time between two pictures.
pub(super) const INTERVAL_NS: u64 = 1_000_000_000;

/// Counters at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    pub time_ns: u64,
    pub system: SystemInfo,
    pub pcpus: Vec<PcpuInfo>,
    pub vms: Vec<VmInfo>,
    pub vdevs: Vec<VdevRow>,
}

/// What `top --json` gives: the counters since boot, and the rates since the last time.
#[derive(Debug, Serialize)]
struct Picture<'a> {
    uptime_ns: u64,
    /// The time that the rates are about.
    interval_ns: u64,
    taints: &'a [String],
    pcpus: &'a [PcpuInfo],
    vms: Vec<VmRates<'a>>,
    vdevs: &'a [VdevRow],
}

#[derive(Debug, Serialize)]
struct VmRates<'a> {
    name: &'a str,
    state: &'a str,
    run_ns: u64,
    /// Share of one processor, in thousandths.
    run_permille: u64,
    exits_per_second: Vec<KindRate<'a>>,
    interrupts: u64,
    interrupts_per_second: u64,
    fault_records: u64,
}

#[derive(Debug, Serialize)]
struct KindRate<'a> {
    kind: &'a str,
    rate: u64,
}

impl Sample {
    pub fn take(host: &dyn MonitorHost) -> Self {
        let vms = host.vms();
        Self {
            time_ns: host.now_ns(),
            system: host.system(),
            pcpus: host.pcpus(),
            vdevs: super::vdev_rows(&vms, host),
            vms,
        }
    }

    /// The time since the last sample; since boot where there is none.
    fn interval_ns(&self, last: Option<&Sample>) -> u64 {
        self.time_ns.saturating_sub(last.map_or(0, |last| last.time_ns)).max(1)
    }

    /// The same VM in the last sample.
    fn before<'a>(vm: &VmInfo, last: Option<&'a Sample>) -> Option<&'a VmInfo> {
        last?.vms.iter().find(|other| other.id == vm.id)
    }

    fn rates<'a>(&'a self, last: Option<&Sample>) -> Vec<VmRates<'a>> {
        let interval = u128::from(self.interval_ns(last));
        let scaled = |now: u64, before: u64, unit: u64| {
            let grown = u128::from(now.saturating_sub(before));
            u64::try_from(grown * u128::from(unit) / interval).unwrap_or(u64::MAX)
        };
        let kinds = show::exit_kinds(&self.vms);
        let rates = |vm: &'a VmInfo| {
            let before = Self::before(vm, last);
            let count = |read: &dyn Fn(&VmInfo) -> u64| (read(vm), before.map_or(0, read));
            let per_second = |read: &dyn Fn(&VmInfo) -> u64| {
                let (now, before) = count(read);
                scaled(now, before, 1_000_000_000)
            };
            let kind_rate =
                |kind: &&'a str| KindRate { kind, rate: per_second(&|vm| show::exit_count(vm, kind)) };
            let (run, run_before) = count(&|vm| vm.run_ns);
            VmRates {
                name: &vm.name,
                state: &vm.state,
                run_ns: vm.run_ns,
                run_permille: scaled(run, run_before, 1000),
                exits_per_second: kinds.iter().map(kind_rate).collect(),
                interrupts: vm.interrupts,
                interrupts_per_second: per_second(&|vm| vm.interrupts),
                fault_records: vm.fault_records,
            }
        };
        self.vms.iter().map(rates).collect()
    }

    /// For programs.
    pub fn json(&self, last: Option<&Sample>) -> String {
        super::json(&Picture {
            uptime_ns: self.time_ns,
            interval_ns: self.interval_ns(last),
            taints: &self.system.taints,
            pcpus: &self.pcpus,
            vms: self.rates(last),
            vdevs: &self.vdevs,
        })
    }

    /// For people.
    pub fn text(&self, last: Option<&Sample>) -> String {
        let memory = self.system.memory;
        let mut text = format!(
            "up {}  memory {} free of {}  PASIDs {}  rates {}\n",
            duration(self.time_ns),
            bytes(memory.free),
            bytes(memory.total),
            self.system.pasids.leased,
            match last {
                Some(_) => format!("of the last {} ms", self.interval_ns(last) / 1_000_000),
                None => "since boot".to_string(),
            }
        );
        text += &show::taints(&self.system);
        text += &format!("\n{}", self.pcpu_table());
        text += &format!("\n{}", self.vm_table(last));
        text += &format!("\n{}", self.vdev_table());
        text
    }

    fn pcpu_table(&self) -> String {
        let mut table = Table::new(["#PCPU", "RUNNING", "#WAITING", "#VCPUS"]);
        for pcpu in &self.pcpus {
            table.row([
                pcpu.index.to_string(),
                match pcpu.lost {
                    true => format!("{} (lost)", show::or_none(pcpu.running.as_ref())),
                    false => show::or_none(pcpu.running.as_ref()),
                },
                pcpu.waiting.to_string(),
                pcpu.assigned.to_string(),
            ]);
        }
        table.render_or("no processor is known")
    }

    fn vm_table(&self, last: Option<&Sample>) -> String {
        let kinds = show::exit_kinds(&self.vms);
        let columns: Vec<String> = kinds.iter().map(|kind| format!("#{kind}/s")).collect();
        let headings = ["VM", "STATE", "#RUN TIME", "#CPU%", "#FAULT RECORDS", "#IRQ", "#IRQ/s", "#EXITS/s"];
        let mut table = Table::new(headings.into_iter().chain(columns.iter().map(String::as_str)));
        for vm in self.rates(last) {
            let total: u64 = vm.exits_per_second.iter().map(|kind| kind.rate).fold(0, u64::saturating_add);
            let cells = [
                vm.name.to_string(),
                vm.state.to_string(),
                duration(vm.run_ns),
                format!("{}.{}", vm.run_permille / 10, vm.run_permille % 10),
                vm.fault_records.to_string(),
                vm.interrupts.to_string(),
                vm.interrupts_per_second.to_string(),
                total.to_string(),
            ];
            let kinds = vm.exits_per_second.iter().map(|kind| kind.rate.to_string());
            table.row(cells.into_iter().chain(kinds));
        }
        table.render_or("there is no VM")
    }

    fn vdev_table(&self) -> String {
        let mut table = Table::new([
            "VDEV",
            "VM",
            "#PASID",
            "#SUBMITTED",
            "#SUBMISSION EXITS",
            "#INTERRUPTS",
            "#FAULT RECORDS",
        ]);
        for vdev in &self.vdevs {
            table.row([
                vdev.name.clone(),
                vdev.info.vm.clone(),
                vdev.info.pasid.map_or_else(|| NONE.to_string(), |pasid| pasid.to_string()),
                show::or_none(vdev.detail("submitted")),
                vdev.submission_exits.to_string(),
                vdev.interrupts().to_string(),
                vdev.info.fault_records.to_string(),
            ]);
        }
        table.render_or("there is no vdev")
    }
}
