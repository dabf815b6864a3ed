// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine check, most of all one that came while a guest ran.
//!
//! **Principle.** CR4.MCE is set while guests run, so the processor hands it to the hypervisor instead of its own handler,
//! with its registers of before the guest intact. Where no bank says that the processor's context is lost, and it can go on, the
//! VM that ran pays with its life; otherwise nothing that runs here can be trusted any more. One that cannot be
//! delivered is a shutdown of the guest; so the banks are looked at before a guest is blamed for that.
//!
//! Source: APM volume 2, chapter 9 "Machine Check Architecture"; 15.12.16 (#MC intercept).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::cpu;

const IA32_MCG_CAP: u32 = 0x179;
const IA32_MCG_STATUS: u32 = 0x17a;
/// IA32_MC0_STATUS and IA32_MC0_ADDR; each bank's are [`BANK_STRIDE`] further.
const IA32_MC0_STATUS: u32 = 0x401;
const IA32_MC0_ADDR: u32 = 0x402;
const BANK_STRIDE: u32 = 4;
/// IA32_MCG_CAP: number of banks.
const MCG_CAP_COUNT: u64 = 0xff;
/// IA32_MCG_STATUS: what was interrupted can go on.
const MCG_STATUS_RIPV: u64 = 1 << 0;
/// IA32_MCG_STATUS: a machine check is being delivered.
const MCG_STATUS_MCIP: u64 = 1 << 2;
/// IA32_MCi_STATUS: the bank holds an error.
const VAL: u64 = 1 << 63;
/// IA32_MCi_STATUS: the error was not corrected.
const UC: u64 = 1 << 61;
/// IA32_MCi_STATUS: the address register holds where.
const ADDRV: u64 = 1 << 58;
/// IA32_MCi_STATUS: the processor's context is corrupt.
const PCC: u64 = 1 << 57;
/// CPUID 1 EDX: machine-check architecture.
const CPUID_MCA: u32 = 1 << 14;

/// What is left after a machine check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The guest cannot go on; all else can. The errors, in words.
    GuestLost(String),
    /// Nothing can.
    HostLost(String),
}

/// One bank that holds an error: number, status, address.
type Bank = (u32, u64, u64);

/// Whether what was interrupted can go on as if nothing had happened: there is no error here but corrected ones. Processors
/// of Intel's tell all others of one's error.
fn is_anothers(status: u64, mut banks: impl Iterator<Item = Bank>) -> bool {
    status & MCG_STATUS_RIPV != 0 && banks.all(|(_, status, _)| status & (UC | PCC) == 0)
}

fn judge(status: u64, banks: impl Iterator<Item = Bank>) -> Verdict {
    let mut text = format!("machine check (MCG_STATUS {status:#x})");
    let mut lost = status & MCG_STATUS_RIPV == 0;
    for (number, status, address) in banks {
        lost |= status & PCC != 0;
        text += &format!(", bank {number}: status {status:#x}");
        if status & ADDRV != 0 {
            text += &format!(" address {address:#x}");
        }
    }
    match lost {
        true => Verdict::HostLost(text),
        false => Verdict::GuestLost(text),
    }
}

/// What this pCPU recorded: IA32_MCG_STATUS and the banks that hold an error. `None` where it cannot tell.
fn recording() -> Option<(u64, impl Iterator<Item = Bank>)> {
    if core::arch::x86_64::__cpuid(1).edx & CPUID_MCA == 0 {
        return None;
    }
    // SAFETY: the processor has these registers, and as many banks.
    let read = |register| unsafe { cpu::read_msr(register) };
    let banks = (read(IA32_MCG_CAP) & MCG_CAP_COUNT) as u32;
    let found = (0..banks).filter_map(move |number| {
        let status = read(IA32_MC0_STATUS + number * BANK_STRIDE);
        let address = match status & ADDRV {
            0 => 0,
            _ => read(IA32_MC0_ADDR + number * BANK_STRIDE),
        };
        (status & VAL != 0).then_some((number, status, address))
    });
    Some((read(IA32_MCG_STATUS), found))
}

/// The same, kept.
fn recorded() -> Option<(u64, Vec<Bank>)> {
    recording().map(|(status, banks)| (status, banks.collect()))
}

/// Clears the banks; a second machine check before that would reset the machine.
fn clear(banks: &[Bank]) {
    // SAFETY: `recorded` found these registers; clearing them forgets errors only.
    unsafe {
        for (number, ..) in banks {
            cpu::write_msr(IA32_MC0_STATUS + number * BANK_STRIDE, 0);
        }
        cpu::write_msr(IA32_MCG_STATUS, 0);
    }
}

/// Reads and clears what this pCPU recorded. `None` where it was told of another one's error, and goes on.
pub fn take() -> Option<Verdict> {
    let Some((status, banks)) = recorded() else {
        return Some(Verdict::HostLost("machine check, and the processor cannot say why".into()));
    };
    clear(&banks);
    (!is_anothers(status, banks.iter().copied())).then(|| judge(status, banks.into_iter()))
}

/// A machine check came while the hypervisor ran. Whether it was another processor's, and what was interrupted goes on.
/// Takes no memory and no lock: it may have come anywhere.
pub(crate) fn passes_by() -> bool {
    let passes = recording().is_some_and(|(status, banks)| is_anothers(status, banks));
    if passes {
        clear(&[]);
    }
    passes
}

/// The guest shut down: whether that was no fault of its own, but a machine check that could not be delivered.
pub fn undelivered() -> Option<Verdict> {
    let (status, banks) = recorded()?;
    let verdict = judge_shutdown(status, &banks)?;
    clear(&banks);
    Some(verdict)
}

fn judge_shutdown(status: u64, banks: &[Bank]) -> Option<Verdict> {
    // Corrected errors are recorded too, and stop nobody.
    if !banks.iter().any(|(_, status, _)| status & UC != 0) {
        return None;
    }
    // RIPV tells about one that is being delivered.
    let status = match status & MCG_STATUS_MCIP {
        0 => status | MCG_STATUS_RIPV,
        _ => status,
    };
    Some(judge(status, banks.iter().copied()))
}

/// Logs and clears what was recorded before this pCPU ran guests, so that none is blamed for it.
pub fn forget() {
    let Some((status, banks)) = recorded() else { return };
    if banks.is_empty() {
        return;
    }
    clear(&banks);
    let (Verdict::GuestLost(text) | Verdict::HostLost(text)) = judge(status, banks.into_iter());
    log::warn!("before Pasidon started: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_processor_that_can_go_on_does() {
        let error = VAL | ADDRV | 0x135;
        let guest = judge(MCG_STATUS_RIPV, [(1, error, 0x1000)].into_iter());
        let Verdict::GuestLost(text) = guest else { panic!("{guest:?}") };
        assert!(text.ends_with("bank 1: status 0x8400000000000135 address 0x1000"), "{text}");
        for (status, bank) in [(0, error), (MCG_STATUS_RIPV, error | PCC)] {
            let verdict = judge(status, [(0, error, 0), (1, bank, 0)].into_iter());
            assert!(matches!(verdict, Verdict::HostLost(_)), "{verdict:?}");
        }
    }

    #[test]
    fn anothers_error_costs_nothing_here() {
        let corrected = (1, VAL | ADDRV, 0x1000);
        for (status, banks, goes_on) in [
            (MCG_STATUS_RIPV | MCG_STATUS_MCIP, &[] as &[Bank], true),
            (MCG_STATUS_RIPV, &[corrected], true),
            (0, &[], false),
            (MCG_STATUS_RIPV, &[corrected, (2, VAL | UC, 0)], false),
            (MCG_STATUS_RIPV, &[(2, VAL | PCC, 0)], false),
        ] {
            assert_eq!(is_anothers(status, banks.iter().copied()), goes_on, "{status:#x} {banks:x?}");
        }
    }

    #[test]
    fn a_shutdown_is_the_guests_own_unless_an_error_was_recorded_that_was_not_corrected() {
        assert_eq!(judge_shutdown(0, &[]), None);
        assert_eq!(judge_shutdown(0, &[(3, VAL, 0)]), None, "a corrected error");
        let error = (1, VAL | UC, 0);
        let verdict = |status, banks: &[Bank]| judge_shutdown(status, banks).unwrap();
        assert!(matches!(verdict(0, &[error]), Verdict::GuestLost(_)));
        let lost = verdict(0, &[error, (2, VAL | UC | PCC, 0)]);
        assert!(matches!(lost, Verdict::HostLost(_)));
        let second = verdict(MCG_STATUS_MCIP, &[error]);
        assert!(matches!(second, Verdict::HostLost(_)), "it cannot go on");
    }
}
