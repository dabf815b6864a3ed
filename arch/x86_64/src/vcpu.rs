// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of a vCPU that only its pCPU touches: the processor's control block, its local APIC, MSRs, clock and
//! floating point.

use alloc::string::String;

use pasidon_kernel::addr::HostPhys;

use crate::backend::{Backend, Event, Window};
use crate::emulate::Exception;
use crate::extended::{Extended, ExtendedFeatures};
use crate::guest::cpuid::{CpuidConfig, CpuidPolicy};
use crate::guest::lapic::LocalApic;
use crate::guest::msr::Msrs;
use crate::guest::pvclock::GuestClock;
use crate::svm::SvmVcpu;
use crate::time;

/// The part of a vCPU that only its pCPU touches.
pub struct Core {
    /// The processor's part.
    pub hardware: SvmVcpu,
    /// Its local APIC.
    pub lapic: LocalApic,
    /// Its MSRs.
    pub msrs: Msrs,
    /// What CPUID says.
    pub cpuid: CpuidPolicy,
    /// Its clock.
    pub clock: GuestClock,
    /// Floating point and the like.
    pub extended: Extended,
    /// Added to the host's TSC.
    pub tsc_offset: u64,
    /// It waits for an interrupt.
    pub halted: bool,
    /// An exception to deliver next.
    pub exception: Option<Exception>,
    /// An NMI to deliver next.
    nmi: bool,
}

impl core::fmt::Debug for Core {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Core")
            .field("hardware", &self.hardware)
            .field("halted", &self.halted)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// A vCPU after reset. `stage2` is the root of its VM's stage 2.
    pub fn new(vm: &str, stage2: HostPhys, physical_bits: u8) -> Self {
        let tsc_offset = time::tsc().wrapping_neg();
        let features = ExtendedFeatures::detect();
        let config = CpuidConfig {
            apic_id: 0,
            physical_bits,
            invariant_tsc: true,
            xcr0: features.xcr0,
            tsc_aux: features.tsc_aux,
        };
        Self {
            hardware: SvmVcpu::new(stage2, tsc_offset),
            lapic: LocalApic::new(0),
            msrs: Msrs::new(String::from(vm)),
            cpuid: CpuidPolicy::new(&config, &|leaf, subleaf| {
                core::arch::x86_64::__cpuid_count(leaf, subleaf)
            }),
            clock: GuestClock::new(time::tsc_hz(), time::unix_ns(), 0),
            extended: Extended::new(features),
            tsc_offset,
            halted: false,
            exception: None,
            nmi: false,
        }
    }

    /// The TSC as the guest reads it.
    pub fn guest_tsc(&self) -> u64 {
        time::tsc().wrapping_add(self.tsc_offset)
    }

    /// When the guest's timer wants to be looked at, in nanoseconds of the host's clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        let deadline = self.lapic.next_deadline()?;
        let ticks = deadline.saturating_sub(self.guest_tsc());
        Some(time::now_ns().saturating_add(self.clock.nanoseconds(ticks)))
    }

    /// Whether something ends HLT now.
    pub fn wakes(&mut self) -> bool {
        self.nmi |= self.lapic.take_nmi();
        self.nmi
            || self.exception.is_some()
            || (self.lapic.pending().is_some() && self.hardware.interruptible())
    }

    /// Chooses what is delivered at the next entry: what was cut short, then an exception, an NMI, an
    /// interrupt. Asks for a window where an interrupt must wait.
    pub fn prepare_event(&mut self) {
        let hardware = &mut self.hardware;
        self.nmi |= self.lapic.take_nmi();
        if !hardware.has_event() {
            if let Some(exception) = self.exception.take() {
                hardware.inject(Event::Exception(exception));
            } else if core::mem::take(&mut self.nmi) {
                hardware.inject(Event::Nmi);
            } else if hardware.interruptible()
                && let Some(vector) = self.lapic.pending()
            {
                hardware.inject(Event::Interrupt(vector));
                self.lapic.acknowledge(vector);
            }
        }
        let window = if self.lapic.pending().is_some() {
            Some(Window::Enabled)
        } else {
            let class = self.lapic.highest_requested().map(|vector| vector >> 4);
            class
                .filter(|class| *class <= self.lapic.cr8())
                .map(Window::Class)
        };
        self.hardware.request_window(window);
        self.hardware.set_cr8(self.lapic.cr8());
    }
}
