// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching the machine off, or resetting it.

use pasidon_arch_x86_64::firmware_tables::SoftOff;
use pasidon_kernel::monitor::HostPower;
use pasidon_kernel::refusal::Refusal;
use pasidon_kernel::system::System;
use pasidon_kernel::vm::{VmEnd, VmHost};
use spin::Once;
use x86_64::instructions::port::Port;

/// I/O port and value that reset the machine, from the FADT.
static RESET: Once<Option<(u16, u8)>> = Once::new();
/// What switches it off.
static OFF: Once<Option<SoftOff>> = Once::new();

/// Names the ways to reset the machine and to switch it off.
pub fn install(reset: Option<(u16, u8)>, off: Option<SoftOff>) {
    RESET.call_once(|| reset);
    OFF.call_once(|| off);
}

fn reset() -> Option<(u16, u8)> {
    RESET.get().copied().flatten()
}

fn off() -> Option<SoftOff> {
    OFF.get().copied().flatten()
}

/// Whether the machine can.
pub fn check(power: HostPower) -> Result<(), Refusal> {
    match power {
        HostPower::Reset if reset().is_some() => Ok(()),
        HostPower::Off if off().is_some() => Ok(()),
        HostPower::Reset => Err(Refusal::new(
            "reboot",
            "the firmware's FADT names no reset register at an I/O port",
            "use the machine's own reset",
        )),
        HostPower::Off => Err(Refusal::new(
            "shutdown",
            "the firmware names no power-management control register, or no constant _S5_",
            "use the machine's own switch, or `reboot`",
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
    match power {
        HostPower::Reset => {
            log::info!("the machine is reset");
            if let Some((port, value)) = reset() {
                // SAFETY: the firmware says that this, and only this, is what the port does.
                unsafe { Port::<u8>::new(port).write(value) };
            }
        }
        HostPower::Off => {
            log::info!("the machine is switched off");
            let registers = off().into_iter().flat_map(|off| [Some(off.first), off.second]);
            for (port, sleep_type) in registers.flatten() {
                // SAFETY: the firmware says that this is the register that switches the machine off.
                unsafe { Port::<u16>::new(port).write(SoftOff::value(sleep_type)) };
            }
        }
    }
}
