// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching the machine off, or resetting it.

use pasidon_kernel::monitor::HostPower;
use pasidon_kernel::refusal::Refusal;
use pasidon_kernel::system::System;
use pasidon_kernel::vm::{VmEnd, VmHost};
use spin::Once;
use x86_64::instructions::port::Port;

/// I/O port and value that reset the machine, from the FADT.
static RESET: Once<(u16, u8)> = Once::new();

/// Names the way to reset the machine.
pub fn set_reset(reset: Option<(u16, u8)>) {
    if let Some(reset) = reset {
        RESET.call_once(|| reset);
    }
}

/// Whether the machine can.
pub fn check(power: HostPower) -> Result<(), Refusal> {
    match power {
        HostPower::Reset if RESET.get().is_some() => Ok(()),
        HostPower::Reset => Err(Refusal::new(
            "reset",
            "the firmware's FADT names no reset register at an I/O port",
            "use the machine's own reset",
        )),
        HostPower::Off => Err(Refusal::new(
            "power off",
            "the sleep type of S5 is in the firmware's AML, which is not interpreted",
            "stop the VMs and use the machine's own switch, or `power reset`",
        )),
    }
}

/// Ends all VMs in order, then does it.
pub fn carry_out(power: HostPower, system: &System, vm_host: &dyn VmHost) {
    let end = VmEnd::Stopped("the machine is switched off".into());
    for vm in system.vms() {
        if vm.state().is_alive()
            && let Err(refusal) = system.end_vm(vm_host, &vm, &end)
        {
            log::error!("{refusal}");
        }
    }
    if let (HostPower::Reset, Some((port, value))) = (power, RESET.get()) {
        log::info!("reset");
        // SAFETY: the firmware says that this, and only this, is what the port does.
        unsafe { Port::<u8>::new(*port).write(*value) };
    }
}
