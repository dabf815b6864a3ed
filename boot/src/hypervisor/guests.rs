// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the configuration's VMs to what the kernel is asked for.

use alloc::string::ToString;
use alloc::vec::Vec;

use pasidon_arch::vms::Processor;
use pasidon_arch_common::hardware::Hardware;
use pasidon_kernel::config::{ConfigError, OnReboot, Scope, VmConfig};
use pasidon_kernel::monitor::info::VmInfo;
use pasidon_kernel::vdev::VdevSpec;
use pasidon_kernel::vm::VmSpec;

/// The VMs that those errors stop, for the monitor.
pub fn refused(vms: &[VmConfig], errors: &[ConfigError]) -> Vec<VmInfo> {
    let refused = |vm: &VmConfig| {
        let error = errors.iter().find(|error| error.scope == Scope::Vm(vm.index))?;
        Some(VmInfo::refused(vm, error.to_string()))
    };
    vms.iter().filter_map(refused).collect()
}

/// The VM that a section of the configuration asks for.
pub fn spec(vm: &VmConfig) -> VmSpec {
    VmSpec {
        name: vm.name.value.clone(),
        ram: Processor::ram(vm.memory.value),
        vcpus: vm.vcpus.value,
        pasid_quota: vm.pasids.value.into(),
        restart_on_reset: vm.on_reboot.value == OnReboot::Restart,
        vdevs: vm
            .vdevs
            .iter()
            .map(|vdev| VdevSpec {
                parent: vdev.parent.value.clone(),
                type_name: vdev.type_name.value.clone(),
                entries: vdev.entries.as_ref().map(|entries| entries.value),
            })
            .collect(),
    }
}
