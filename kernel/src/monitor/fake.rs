// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hypervisor of two VMs that share a device, for tests and for the examples in the documentation.

use super::{HostPower, MonitorHost, NewVdev, VmControl};
use crate::base::addr::Requester;
use crate::base::refusal::Refusal;
use crate::console::{TYPED_MAX, TypedInfo};
use crate::dma::fault::{DmaFault, FaultAccess};
use crate::dma::fault_log::{FaultLog, FaultOwner, FaultsInfo};
use crate::dma::pasid::Pasid;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::{
    AwayInfo, DefinitionInfo, Detail, ExitCount, HypervisorMemory, InterruptInfo, IoasInfo, IommuInfo,
    MemoryInfo, ParentInfo, PasidInfo, PasidSpaceInfo, PcpuInfo, SystemInfo, TypeInfo, VdevInfo, VectorInfo,
    VmInfo,
};
use crate::system::Dismissal;
use log::LevelFilter;

/// What came in turns of others.
const AWAY: AwayInfo = AwayInfo { interrupts: 2310, time_ns: 5_310_000, masked: 3 };

pub(super) struct FakeHost {
    pub now_ns: u64,
    pub system: SystemInfo,
    pub vms: Vec<VmInfo>,
    pub level: LevelFilter,
    /// What was asked of it.
    pub done: Vec<String>,
}

fn vdev(id: u32, vm: &str, pasid: u32) -> VdevInfo {
    VdevInfo {
        id,
        vm: vm.into(),
        parent: "dsa0".into(),
        type_name: "dsa-dwq".into(),
        taints: Vec::new(),
        state: "attached".into(),
        work: "running".into(),
        pasid: Some(pasid),
        ioas: Some(id),
        interrupts: vec![InterruptInfo {
            entry: id as u16,
            virtual_vector: 1,
            host_vector: 0x40 + id,
            cpu: 0,
            posted_as: (id == 2).then_some(0x24),
            came: 10_016,
        }],
        away: AWAY,
        fault_records: u64::from(id == 2),
        details: vec![
            Detail { name: "queue".into(), value: format!("{} (enabled)", id - 1) },
            Detail { name: "entries".into(), value: "16".into() },
        ],
    }
}

fn vm(id: u32, name: &str, pasid: u32) -> VmInfo {
    let exit = |kind: &'static str, count| ExitCount { kind: kind.into(), count };
    VmInfo {
        id,
        name: name.into(),
        state: "running".into(),
        reason: None,
        vcpus: 1,
        memory: 256 << 20,
        memory_in_use: 256 << 20,
        pasid_quota: 4,
        pasids_leased: 1,
        pasids_retired: 0,
        starts: 1,
        run_ns: 41_000_000_000,
        exits: vec![exit("mmio", 1204), exit("io", 0), exit("halt", 5310)],
        interrupts: 10_016,
        away: AWAY,
        fault_records: u64::from(id == 1),
        vdevs: vec![vdev(id + 1, name, pasid)],
    }
}

impl FakeHost {
    pub fn new() -> Self {
        let vms = vec![vm(0, "alpha", 1), vm(1, "beta", 2)];
        let space = |id: u32, vm: &str| IoasInfo {
            id,
            vm: vm.into(),
            table: id - 1,
            mappings: 1,
            mapped_bytes: 256 << 20,
            pasids: vec![id],
        };
        Self {
            now_ns: 83_000_000_000,
            system: SystemInfo {
                uptime_ns: 83_000_000_000,
                iommu: Some(IommuInfo {
                    name: "vtd".into(),
                    pasid_bits: 20,
                    address_bits: 48,
                    largest_page: 2 << 20,
                    interrupt_remapping: true,
                    commands_issued: 64,
                    spaces: vec![space(1, "alpha"), space(2, "beta")],
                }),
                memory: MemoryInfo {
                    total: 1 << 30,
                    free: 504 << 20,
                    guests: 512 << 20,
                    tables: 8 << 20,
                    held: 0,
                    hypervisor: HypervisorMemory { image: 1 << 20, heap: 4 << 20, heap_used: 1 << 20 },
                },
                pasids: PasidSpaceInfo {
                    first: 1,
                    last: (1 << 20) - 1,
                    leased: 2,
                    retired: 0,
                    per_device: false,
                },
                vms: 2,
                vdevs: 2,
                ..SystemInfo::default()
            },
            vms,
            level: LevelFilter::Info,
            done: Vec::new(),
        }
    }
}

impl MonitorHost for FakeHost {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn system(&self) -> SystemInfo {
        self.system.clone()
    }

    fn vms(&self) -> Vec<VmInfo> {
        self.vms.clone()
    }

    fn parents(&self) -> Vec<ParentInfo> {
        vec![ParentInfo {
            name: "dsa0".into(),
            requester: "0000:00:04.0".into(),
            iommu: true,
            taints: Vec::new(),
            unusable: None,
            types: vec![TypeInfo {
                name: "dsa-dwq".into(),
                description: "a dedicated work queue, its portal in the guest".into(),
                direct_portal: true,
                instances: 8,
                available: 6,
            }],
            events: 0,
            details: vec![Detail { name: "state".into(), value: "enabled".into() }],
        }]
    }

    fn pasids(&self) -> Vec<PasidInfo> {
        let pasid = |vdev: &VdevInfo| PasidInfo {
            pasid: vdev.pasid.unwrap(),
            state: "attached".into(),
            since_ns: 41_000_000_000 + u64::from(vdev.id),
            used_before: 0,
            vm: vdev.vm.clone(),
            parent: vdev.parent.clone(),
            vdev: vdev.id,
            ioas: vdev.ioas,
            reason: None,
        };
        self.vms.iter().flat_map(|vm| &vm.vdevs).map(pasid).collect()
    }

    fn pcpus(&self) -> Vec<PcpuInfo> {
        let pcpu = |(index, vm): (usize, &VmInfo)| PcpuInfo {
            index: index as u32,
            running: Some(format!("{}/0", vm.name)),
            waiting: 0,
            assigned: 1,
            lost: false,
        };
        self.vms.iter().enumerate().map(pcpu).collect()
    }

    fn faults(&self) -> FaultsInfo {
        let mut log = FaultLog::new();
        let owner = FaultOwner { vm: "beta", parent: "dsa0", type_name: "dsa-dwq", vdev: 2 };
        let fault = DmaFault {
            requester: Requester::new(0, 0, 4, 0),
            pasid: Pasid::new(2),
            address: 0x4000_0000,
            access: FaultAccess::Read,
            reason: "no mapping",
            code: 0x59,
        };
        log.record(12_345_678_000, Some(owner), &fault);
        log.snapshot()
    }

    fn submission_exits(&self, _vdev: u32) -> u64 {
        0
    }

    fn vectors(&self, vdev: u32) -> Vec<VectorInfo> {
        let vector = |vector: u16| VectorInfo {
            vector,
            guest: "open".into(),
            masked: (vdev, vector) == (2, 1),
            automask: (vdev, vector) == (1, 1),
            pending: (vdev, vector) == (2, 1),
            delivered: 10_016 * u64::from(vector),
            pended: u64::from(vdev == 2),
            triggered: 0,
        };
        Vec::from([0, 1].map(vector))
    }

    fn console_of(&self, vm: &str) -> Option<usize> {
        ["alpha", "beta"].iter().position(|name| *name == vm)
    }

    fn typed(&self, vm: &str) -> Option<TypedInfo> {
        self.console_of(vm).map(|_| TypedInfo { waiting: 0, room: TYPED_MAX, lost: 0 })
    }

    fn log_level(&self) -> LevelFilter {
        self.level
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        self.level = level;
    }

    fn definitions(&self) -> Vec<DefinitionInfo> {
        let definition = |file: &str, vms: &[&str], refused: Option<&str>| DefinitionInfo {
            file: file.into(),
            vms: vms.iter().map(|vm| vm.to_string()).collect(),
            refused: refused.map(String::from),
        };
        let wrong = "vms/old.toml:3:10: vm old: memory \"64\" is no size; write a whole number and K, M or G, like \
                     memory = \"256M\"";
        vec![
            definition("vms/gamma.toml", &["gamma"], None),
            definition("vms/pair.toml", &["left", "right"], None),
            definition("vms/old.toml", &[], Some(wrong)),
        ]
    }

    fn define(&mut self, file: &str) -> Result<Vec<String>, Refusal> {
        self.done.push(format!("define {file}"));
        Ok(self.definitions().into_iter().find(|known| known.file == file).unwrap().vms)
    }

    fn control(&mut self, vm: &str, control: VmControl) -> Result<(), Refusal> {
        if control == VmControl::Start {
            return Err(Refusal::new(format!("vm {vm}"), "it runs already", "stop it first"));
        }
        self.done.push(format!("{control:?} {vm}"));
        Ok(())
    }

    fn create_vdev(&mut self, vdev: NewVdev<'_>) -> Result<u32, Refusal> {
        self.done.push(format!("{vdev:?}"));
        Ok(3)
    }

    fn destroy_vdev(&mut self, vdev: u32, now: bool) -> Result<Dismissal, Refusal> {
        self.done.push(format!("destroy {vdev}{}", if now { " now" } else { "" }));
        Ok(if now { Dismissal::Ended } else { Dismissal::Asked })
    }

    fn move_vdev(&mut self, vdev: u32, to: NewVdev<'_>) -> Result<(u32, Dismissal), Refusal> {
        self.done.push(format!("move {vdev}: {to:?}"));
        Ok((3, Dismissal::Asked))
    }

    fn control_vectors(&mut self, vdev: u32, which: Vectors, control: VectorControl) -> Result<(), Refusal> {
        self.done.push(format!("irq of {vdev}: {which:?} {control:?}"));
        Ok(())
    }

    fn create_space(&mut self, vm: &str) -> Result<u32, Refusal> {
        self.done.push(format!("space of {vm}"));
        Ok(3)
    }

    fn map_space(&mut self, ioas: u32, guest: u64, iova: u64, len: u64) -> Result<(), Refusal> {
        self.done.push(format!("map {ioas}: {guest:#x} at {iova:#x}, {len:#x}"));
        Ok(())
    }

    fn unmap_space(&mut self, ioas: u32, iova: u64, len: u64) -> Result<(), Refusal> {
        self.done.push(format!("unmap {ioas}: {iova:#x}, {len:#x}"));
        Ok(())
    }

    fn attach_space(&mut self, ioas: u32, vdev: u32) -> Result<(), Refusal> {
        self.done.push(format!("attach {ioas} to {vdev}"));
        Ok(())
    }

    fn destroy_space(&mut self, ioas: u32) -> Result<(), Refusal> {
        self.done.push(format!("destroy space {ioas}"));
        Ok(())
    }

    fn reset_parent(&mut self, parent: &str) -> Result<usize, Refusal> {
        self.done.push(format!("reset {parent}"));
        Ok(0)
    }

    fn power(&mut self, power: HostPower) -> Result<(), Refusal> {
        self.done.push(format!("{power:?}"));
        Ok(())
    }
}
