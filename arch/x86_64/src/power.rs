// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching the machine off, or resetting it, as the FADT says.

use pasidon_arch_common::firmware_tables::Find;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::monitor::HostPower;
use spin::Once;
use x86_64::instructions::port::Port;

use crate::firmware_tables::{self, SoftOff};

/// I/O port and value that reset the machine, and what switches it off.
struct Ways {
    reset: Option<(u16, u8)>,
    off: Option<SoftOff>,
}

static WAYS: Once<Ways> = Once::new();

/// Looks up how it is done. Once.
pub fn install(tables: Find<'_>) {
    let (fadt, dsdt) = (tables("FADT"), tables("DSDT"));
    WAYS.call_once(|| Ways {
        reset: fadt.and_then(firmware_tables::reset_register),
        off: fadt.zip(dsdt).and_then(|(fadt, dsdt)| firmware_tables::soft_off(fadt, dsdt)),
    });
}

fn reset() -> Option<(u16, u8)> {
    WAYS.get()?.reset
}

fn off() -> Option<SoftOff> {
    WAYS.get()?.off
}

/// Whether the machine can.
///
/// # Errors
/// When the firmware does not say how.
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

/// Does it, where [`check`] said that the machine can. Comes back where it does not obey.
pub fn carry_out(power: HostPower) {
    match power {
        HostPower::Reset => {
            if let Some((port, value)) = reset() {
                // SAFETY: the firmware says that this, and only this, is what the port does.
                unsafe { Port::<u8>::new(port).write(value) };
            }
        }
        HostPower::Off => {
            let registers = off().into_iter().flat_map(|off| [Some(off.first), off.second]);
            for (port, sleep_type) in registers.flatten() {
                // SAFETY: the firmware says that this is the register that switches the machine off.
                unsafe { Port::<u16>::new(port).write(SoftOff::value(sleep_type)) };
            }
        }
    }
}
