// SPDX-License-Identifier: MIT OR Apache-2.0
//! Power: switching the machine off, resetting it, starting its processors, all by PSCI.
//!
//! **Invariant.** PSCI is called by SMC only: the hypervisor runs at EL2, from where an HVC leads to itself.
//!
//! Source: Arm Power State Coordination Interface (DEN 0022), 5.1; SMC Calling Convention (DEN 0028).

use pasidon_arch_common::firmware_tables::Find;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::monitor::HostPower;
use smccc::{Smc, psci};
use spin::Once;

use crate::cpu;
use crate::firmware_tables::{self, Conduit};

/// Whether there is PSCI that can be called.
static USABLE: Once<bool> = Once::new();

/// Looks up how it is done. Once.
pub fn install(tables: Find<'_>) {
    let conduit = tables("FADT").and_then(firmware_tables::psci);
    USABLE.call_once(|| conduit == Some(Conduit::Smc));
}

/// Whether PSCI can be called.
///
/// # Errors
/// When it cannot.
pub fn check_psci(what: &str) -> Result<(), Refusal> {
    if USABLE.get().copied().unwrap_or(false) {
        return Ok(());
    }
    Err(Refusal::new(
        what,
        "the firmware's FADT states no PSCI by SMC",
        "use a firmware with PSCI that serves EL2",
    ))
}

/// Whether the machine can.
///
/// # Errors
/// When the firmware does not say how.
pub fn check(power: HostPower) -> Result<(), Refusal> {
    check_psci(match power {
        HostPower::Reset => "reboot",
        HostPower::Off => "shutdown",
    })
}

/// Does it, where [`check`] said that the machine can. Comes back where it does not obey.
pub fn carry_out(power: HostPower) {
    let refused = match power {
        HostPower::Reset => psci::system_reset::<Smc>(),
        HostPower::Off => psci::system_off::<Smc>(),
    };
    if let Err(error) = refused {
        log::error!("PSCI: {error}; use the machine's own switch");
    }
}

/// Calls a workaround of the firmware's for a mistake of the processor (SMCCC_ARCH_WORKAROUND_1 and its like).
pub(crate) fn call_workaround(function: u32, argument: u32) {
    use smccc::Call;
    let mut arguments = [0; 7];
    arguments[0] = argument;
    let _ = Smc::call32(function, arguments);
}

/// Starts a processor at `entry`, a physical address, at EL2 with the MMU off and `context` in X0.
///
/// # Errors
/// When PSCI refuses.
///
/// # Safety
/// What is at `entry` must be made for that.
pub(crate) unsafe fn start_processor(mpidr: u64, entry: u64, context: u64) -> Result<(), psci::error::Error> {
    psci::cpu_on::<Smc>(mpidr, entry, context)
}

/// Switches this processor off, or stops it where that is refused.
pub(crate) fn leave() -> ! {
    let _ = psci::cpu_off::<Smc>();
    cpu::halt()
}
