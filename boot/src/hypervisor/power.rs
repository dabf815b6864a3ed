// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching the machine off, or resetting it, with its VMs ended in order.

use pasidon_arch::power;
use pasidon_kernel::monitor::HostPower;
use pasidon_kernel::system::System;
use pasidon_kernel::vm::{VmEnd, VmHost};

pub use pasidon_arch::power::check;

/// Ends all VMs in order, then does it.
pub fn carry_out(wanted: HostPower, system: &System, vm_host: &dyn VmHost) {
    let end = VmEnd::Stopped("the machine is switched off".into());
    for vm in system.vms() {
        if vm.state().is_alive()
            && let Err(refusal) = system.end_vm(vm_host, &vm, &end)
        {
            log::error!("{refusal}");
        }
    }
    log::info!(
        "the machine is {}",
        match wanted {
            HostPower::Reset => "reset",
            HostPower::Off => "switched off",
        }
    );
    power::carry_out(wanted);
}
