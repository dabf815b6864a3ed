// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of a vCPU that only its pCPU touches: the processor's control block, its local APIC, MSRs, clock and
//! floating point.

use alloc::string::String;
use alloc::sync::Arc;

use pasidon_arch_common::view::VmView;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::memory::GuestMemory;

use crate::backend::vcpu::Vcpu;
use crate::backend::{Event, Window};
use crate::emulate::{Exception, Known};
use crate::extended::{Extended, ExtendedFeatures};
use crate::extension::{ControlBlock, Extension};
use crate::guest::chipset::PcChipset;
use crate::guest::control::ControlPolicy;
use crate::guest::cpuid::{CpuidConfig, CpuidPolicy};
use crate::guest::lapic::LocalApic;
use crate::guest::msr::Msrs;
use crate::guest::pvclock::GuestClock;
use crate::posted::Posted;
use crate::time;

/// The VM as a vCPU sees it.
pub type Vm<'a> = VmView<'a, PcChipset>;

/// The part of a vCPU that only its pCPU touches.
pub struct Core {
    /// The processor's part.
    pub hardware: Vcpu<ControlBlock>,
    /// Its local APIC.
    pub lapic: LocalApic,
    /// The processor delivers its interrupts by itself.
    pub delivers: bool,
    /// Where they are posted; `None` where the processor does not take them from there.
    posted: Option<Arc<Posted>>,
    /// Its MSRs.
    pub msrs: Msrs,
    /// What CPUID says.
    pub cpuid: CpuidPolicy,
    /// Its clock.
    pub clock: GuestClock,
    /// Floating point and the like.
    pub extended: Extended,
    /// What it used on devices.
    pub known: Known,
    /// Added to the host's TSC.
    pub tsc_offset: u64,
    /// It waits for an interrupt.
    pub halted: bool,
    /// An exception to deliver next.
    pub exception: Option<Exception>,
    /// An NMI to deliver next.
    nmi: bool,
    /// That an instruction on device memory was refused has been logged.
    pub refused_instruction: bool,
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
    /// `arch_capabilities` is what IA32_ARCH_CAPABILITIES holds, where there is one.
    pub fn new(
        vm: &str,
        extension: Extension,
        stage2: HostPhys,
        physical_bits: u8,
        arch_capabilities: Option<u64>,
    ) -> Self {
        let tsc_offset = time::tsc().wrapping_neg();
        let features = ExtendedFeatures::detect();
        let config = CpuidConfig {
            apic_id: 0,
            physical_bits,
            invariant_tsc: true,
            tsc_hz: time::tsc_hz(),
            xcr0: features.xcr0,
            tsc_aux: features.tsc_aux,
            arch_capabilities: arch_capabilities.is_some(),
        };
        let cpuid =
            CpuidPolicy::new(&config, &|leaf, subleaf| core::arch::x86_64::__cpuid_count(leaf, subleaf));
        let policy = ControlPolicy::new(&cpuid);
        let lapic = LocalApic::new(0);
        let block = extension.control_block(stage2, tsc_offset, &policy, lapic.page());
        Self {
            hardware: Vcpu::new(block, policy),
            lapic,
            delivers: false,
            posted: None,
            msrs: Msrs::new(String::from(vm)).with_arch_capabilities(arch_capabilities),
            cpuid,
            clock: GuestClock::new(time::tsc_hz(), time::unix_ns(), 0),
            extended: Extended::new(features),
            known: Known::new(),
            tsc_offset,
            halted: false,
            exception: None,
            nmi: false,
            refused_instruction: false,
        }
    }

    /// Has interrupts posted there. Before its first turn.
    pub fn post_to(&mut self, posted: Arc<Posted>) {
        self.hardware.post_to(&posted);
        self.posted = Some(posted);
    }

    /// Takes what was posted, and looks at the timer.
    pub fn tick(&mut self) {
        if let Some(posted) = &self.posted {
            posted.take(|vector| self.lapic.accept(vector, false));
        }
        self.lapic.timer_expired(self.guest_tsc());
    }

    /// The TSC as the guest reads it.
    pub fn guest_tsc(&self) -> u64 {
        time::tsc().wrapping_add(self.tsc_offset)
    }

    /// WRMSR to the TSC. What counts by it goes on as before: the local APIC's timer, and the clock, which tells the
    /// guest anew how its TSC relates to time.
    pub fn set_tsc(&mut self, value: u64, memory: &dyn GuestMemory) {
        let delta = value.wrapping_sub(self.guest_tsc());
        self.tsc_offset = self.tsc_offset.wrapping_add(delta);
        self.hardware.set_tsc_offset(self.tsc_offset);
        self.lapic.tsc_moved(delta);
        self.clock.tsc_moved(delta);
        self.msrs.write_system_time(&self.clock, memory);
    }

    /// What the timer is set to, in ticks of the host's TSC: it changes when the guest sets the timer or the TSC.
    pub fn timer(&self) -> Option<u64> {
        let deadline = self.lapic.next_deadline()?;
        Some(deadline.wrapping_sub(self.tsc_offset))
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
        (self.nmi && self.hardware.nmi_open())
            || self.exception.is_some()
            || self.hardware.has_event()
            || (self.lapic.pending().is_some() && self.hardware.interruptible())
    }

    /// The processor stopped before it delivered `exception` to the guest, which is to get it. What was being delivered
    /// when it came is not lost: interrupts come again later, exceptions when their instruction runs again.
    pub fn reflect(&mut self, exception: Exception) {
        match self.hardware.take_event() {
            Some(Event::Interrupt(vector)) => self.lapic.take_back(vector),
            Some(Event::Nmi) => self.nmi = true,
            Some(Event::Exception(_)) | None => {}
        }
        self.exception = Some(exception);
    }

    /// Chooses what is delivered at the next entry: what was cut short, then an exception, an NMI, an
    /// interrupt. Asks for a window where an interrupt must wait.
    pub fn prepare_event(&mut self) {
        let hardware = &mut self.hardware;
        self.delivers = hardware.deliver(self.lapic.suits_processor());
        self.nmi |= self.lapic.take_nmi();
        if !hardware.has_event() {
            if let Some(exception) = self.exception.take() {
                hardware.inject(Event::Exception(exception));
            } else if self.nmi && hardware.nmi_open() {
                self.nmi = false;
                hardware.inject(Event::Nmi);
            } else if self.nmi && hardware.hasten_nmi() {
                // What came now would meet the step.
            } else if !self.delivers
                && hardware.interruptible()
                && let Some(vector) = self.lapic.pending()
            {
                hardware.inject(Event::Interrupt(vector));
                self.lapic.acknowledge(vector);
            }
        }
        if self.delivers {
            if let Some(interrupts) = self.lapic.take_changes() {
                self.hardware.set_interrupts(&interrupts);
            }
            self.hardware.request_window(None);
            return;
        }
        let window = self.lapic.highest_requested().and_then(|vector| {
            let class = vector >> 4;
            match self.lapic.pending() {
                Some(_) => Some(Window::Enabled),
                None => (class <= self.lapic.cr8()).then_some(Window::Class(class)),
            }
        });
        self.hardware.request_window(window);
        self.hardware.set_cr8(self.lapic.cr8());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::boot::{EntryMode, EntryState};
    use crate::guest::lapic::MSR_APIC_BASE;
    use pasidon_arch_common::testing::TestMemory;

    const STAGE2: HostPhys = HostPhys(0x1000);
    const X2APIC: u64 = 0xfee0_0000 | 3 << 10;
    const MSR_SVR: u32 = 0x80f;
    const ENABLED: u64 = 0x1ff;
    const ALIGNMENT_CHECK: Exception = Exception { vector: 17, error_code: Some(0), cr2: None };

    /// One that has interrupt 0x31 and an NMI waiting.
    fn core() -> Core {
        let mut core = Core::new("alpha", Extension::Svm, STAGE2, 48, None);
        core.lapic.write_msr(MSR_APIC_BASE, X2APIC, 0).unwrap();
        core.lapic.write_msr(MSR_SVR, ENABLED, 0).unwrap();
        core.lapic.accept(0x31, false);
        core.nmi = true;
        core.hardware.start_at(&EntryState {
            mode: EntryMode::Protected32,
            rip: 0,
            rbx: 0,
            rsi: 0,
            cr0: 0x11,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: None,
            cs: 8,
            ds: 16,
        });
        core
    }

    #[test]
    fn a_written_tsc_is_read_back_and_time_goes_on() {
        const SYSTEM_TIME: u32 = 0x4b56_4d01;
        let memory = TestMemory::new(0, 0x1000);
        let mut core = core();
        let Core { msrs, lapic, clock, .. } = &mut core;
        msrs.write(SYSTEM_TIME, 0x101, lapic, clock, &memory, 0).unwrap();
        assert_eq!(memory.bytes(0x108, 8), [0; 8]);
        let offset = core.tsc_offset;
        core.set_tsc(1 << 40, &memory);
        assert!(core.guest_tsc().wrapping_sub(1 << 40) < 1 << 36, "it runs on");
        let delta = core.tsc_offset.wrapping_sub(offset);
        assert_eq!(memory.bytes(0x108, 8), delta.to_le_bytes(), "the clock knows");
    }

    #[test]
    fn an_exception_in_the_delivery_of_an_event_costs_neither() {
        let mut core = core();
        core.prepare_event();
        assert_eq!(core.hardware.take_event(), Some(Event::Nmi));
        core.hardware.inject(Event::Nmi);
        // The processor stopped in the middle of it.
        core.reflect(ALIGNMENT_CHECK);
        core.prepare_event();
        assert_eq!(core.hardware.take_event(), Some(Event::Exception(ALIGNMENT_CHECK)));
        core.prepare_event();
        assert_eq!(core.hardware.take_event(), Some(Event::Nmi), "again");

        core.lapic.acknowledge(0x31);
        assert_eq!(core.lapic.pending(), None, "it is in service");
        core.hardware.inject(Event::Interrupt(0x31));
        core.reflect(ALIGNMENT_CHECK);
        assert_eq!(core.lapic.pending(), Some(0x31), "again");
    }
}
