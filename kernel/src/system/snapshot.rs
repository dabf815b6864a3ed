// SPDX-License-Identifier: MIT OR Apache-2.0
//! Snapshots for the monitor. None waits for a device or for an operation on a VM.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::base::refusal::Refusal;
use crate::monitor::info::{
    HypervisorMemory, IommuInfo, MemoryInfo, ParentInfo, PasidInfo, RetiredInfo, SystemInfo, TypeInfo,
    VdevInfo, VmInfo,
};
use crate::vdev::details;
use crate::vdev::parent::Parent;
use crate::vdev::retired::{Retired, Retirement};
use crate::vm::Vm;

use super::System;

impl System {
    /// A snapshot of the whole.
    pub fn info(&self) -> SystemInfo {
        let counts = self.frames.counts();
        let (retired, held) = {
            let retired = self.retired.lock();
            let infos: Vec<RetiredInfo> = retired.iter().map(Retirement::info).collect();
            let held = retired.iter().map(|r| match &r.what {
                Retired::Memory { ram, .. } => ram.bytes(),
                _ => 0,
            });
            (infos, held.sum())
        };
        let vms = self.vms();
        SystemInfo {
            uptime_ns: self.services.host.now_ns(),
            taints: self.taints(),
            iommu: self.iommu_info(),
            memory: MemoryInfo {
                total: counts.total,
                free: counts.free,
                guests: counts.guests.saturating_sub(held),
                tables: counts.tables,
                held,
                hypervisor: HypervisorMemory::default(),
            },
            pasids: self.services.pasids.lock().info(),
            vms: vms.len(),
            vdevs: vms.iter().map(|vm| vm.life.lock().vdevs.len()).sum(),
            stray_interrupts: self.services.routes.stray(),
            retired,
            revived: self.revived.load(Ordering::Relaxed),
        }
    }

    /// A snapshot of the IOMMU and its address spaces.
    pub fn iommu_info(&self) -> Option<IommuInfo> {
        let iommu = self.services.iommu?;
        let capabilities = iommu.capabilities();
        let mut spaces = Vec::new();
        for vm in self.vms() {
            let own = vm.life.lock().spaces.clone();
            spaces.extend(own.iter().map(|space| space.info(vm.name())));
        }
        for retirement in self.retired.lock().iter() {
            if let Retired::Space(space) = &retirement.what {
                spaces.push(space.info(&retirement.vm));
            }
        }
        Some(IommuInfo {
            name: iommu.name().to_string(),
            pasid_bits: capabilities.pasid_bits,
            address_bits: capabilities.address_bits,
            largest_page: capabilities.largest_page,
            interrupt_remapping: self.services.msi.is_some(),
            commands_issued: iommu.commands_issued(),
            spaces,
        })
    }

    /// Snapshots of all VMs.
    pub fn vm_infos(&self) -> Vec<VmInfo> {
        self.vms().iter().map(|vm| self.vm_info(vm)).collect()
    }

    /// A snapshot of one VM.
    pub fn vm_info(&self, vm: &Vm) -> VmInfo {
        vm.info(&self.services.routes, self.services.host.now_ns())
    }

    /// Snapshots of all vdevs.
    pub fn vdev_infos(&self) -> Vec<VdevInfo> {
        let vdevs = self.vms().into_iter().flat_map(|vm| vm.vdevs());
        vdevs.map(|vdev| vdev.info(&self.services.routes)).collect()
    }

    /// Snapshots of all PASIDs in use, then of the retired ones.
    pub fn pasid_infos(&self) -> Vec<PasidInfo> {
        let vdevs = self.vms().into_iter().flat_map(|vm| vm.vdevs());
        let mut infos: Vec<PasidInfo> = vdevs.filter_map(|vdev| vdev.pasid_info()).collect();
        infos.sort_by_key(|info| info.pasid);
        let retired = self.retired.lock();
        infos.extend(retired.iter().filter_map(|retirement| match &retirement.what {
            Retired::Attachment { parent, attachment, .. } => Some(PasidInfo {
                pasid: attachment.pasid.value(),
                state: "retired".into(),
                since_ns: retirement.since_ns,
                used_before: attachment.lease().used_before,
                vm: retirement.vm.clone(),
                parent: parent.clone(),
                vdev: attachment.vdev.0,
                ioas: Some(attachment.ioas().id().0),
                reason: Some(retirement.why.clone()),
            }),
            _ => None,
        }));
        infos
    }

    /// Snapshots of all parents.
    pub fn parent_infos(&self) -> Vec<ParentInfo> {
        let type_info = |parent: &dyn Parent| {
            let types = parent.types().iter();
            types
                .map(|t| TypeInfo {
                    name: t.name.to_string(),
                    description: t.description.to_string(),
                    direct_portal: t.direct_portal,
                    instances: t.instances,
                    available: parent.available(t.name),
                })
                .collect()
        };
        self.parents
            .iter()
            .map(|entry| ParentInfo {
                name: entry.parent.name().to_string(),
                requester: entry.parent.requester().to_string(),
                iommu: entry.options.iommu,
                taints: entry.options.taints().map(str::to_string).collect(),
                unusable: entry.unusable.as_ref().map(Refusal::to_string),
                types: type_info(entry.parent),
                events: entry.events.load(Ordering::Relaxed),
                details: details(entry.parent.describe()),
            })
            .collect()
    }
}
