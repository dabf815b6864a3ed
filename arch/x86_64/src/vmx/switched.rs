// SPDX-License-Identifier: MIT OR Apache-2.0
//! State of a guest that no VMCS holds and no exit exchanges: the registers of SYSCALL and SWAPGS, CR2 and DR6.
//!
//! **Principle.** The hypervisor uses none of them, so they stay in the processor across exits, and are exchanged when the
//! vCPU leaves its pCPU or comes back. Loading writes all of them: nothing of the last guest is left for the next.
//!
//! Source: Intel SDM volume 3, 25.4 "Guest-State Area" (what it has), 28.3 (what VM exits save).

use core::arch::asm;

use crate::backend::vcpu::DR6_RESET;
use crate::cpu;

/// The MSRs.
pub const SWITCHED: [u32; 5] = [
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // FMASK
    0xc000_0102, // KernelGSBase
];

/// Values while the vCPU is on no pCPU.
#[derive(Debug)]
pub struct Switched {
    msrs: [u64; SWITCHED.len()],
    cr2: u64,
    dr6: u64,
}

impl Switched {
    /// After reset.
    pub fn new() -> Self {
        Self { msrs: [0; SWITCHED.len()], cr2: 0, dr6: DR6_RESET }
    }

    /// Sets those of SYSCALL.
    #[cfg(test)]
    pub fn set_system_calls(&mut self, star: u64, lstar: u64, fmask: u64) {
        let [.., kernel_gs_base] = self.msrs;
        self.msrs = [star, lstar, 0, fmask, kernel_gs_base];
    }

    /// Puts them into the registers.
    ///
    /// # Safety
    /// At privilege level 0, where nobody else uses these registers; the values were a guest's, or those of a reset.
    pub unsafe fn load(&self) {
        for (msr, value) in SWITCHED.into_iter().zip(self.msrs) {
            // SAFETY: every 64-bit processor has it, and took the value before.
            unsafe { cpu::write_msr(msr, value) };
        }
        set_cr2(self.cr2);
        set_dr6(self.dr6);
    }

    /// Takes them out.
    ///
    /// # Safety
    /// [`Switched::load`] was the last to write them on this pCPU, but for the guest.
    pub unsafe fn save(&mut self) {
        for (msr, value) in SWITCHED.into_iter().zip(&mut self.msrs) {
            // SAFETY: every 64-bit processor has it.
            *value = unsafe { cpu::read_msr(msr) };
        }
        self.cr2 = cr2();
        self.dr6 = dr6();
    }
}

/// CR2 of this pCPU.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: to read it changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets CR2 of this pCPU.
pub fn set_cr2(value: u64) {
    // SAFETY: nothing depends on it outside of page-fault handlers, of which the hypervisor's ends in a report.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR6 of this pCPU.
pub fn dr6() -> u64 {
    let value;
    // SAFETY: to read it changes nothing; the hypervisor does not set DR7.GD.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets DR6 of this pCPU. Bits of the upper half are left out: processors raise #GP for them.
pub fn set_dr6(value: u64) {
    // SAFETY: it only tells what happened.
    unsafe {
        asm!("mov dr6, {}", in(reg) value & u64::from(u32::MAX), options(nomem, nostack, preserves_flags));
    }
}
