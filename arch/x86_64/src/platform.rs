// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine around the processors: what the firmware's tables say about it, and bringing it up.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pasidon_arch_common::firmware_tables::Find;
use pasidon_arch_common::pcpus::{MAX_PCPUS, Processors};
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;

use crate::cpu::{self, Features};
use crate::firmware_tables::{self, Madt, ReferenceClock};
use crate::stack::Stack;
use crate::{apic, ioapic, pcpu, power, smp, time};

/// ISA interrupt of COM1.
const COM1_IRQ: u8 = 4;

/// What the firmware's tables say.
pub struct Platform {
    /// The clock to measure the TSC by.
    clock: ReferenceClock,
    madt: Madt,
    /// There is a MADT.
    described: bool,
}

impl Platform {
    /// Reads the tables. Before boot services end.
    ///
    /// # Errors
    /// When something is missing that nothing works without.
    pub fn read(tables: Find<'_>) -> Result<Self, Refusal> {
        let pm_timer = tables("FADT").and_then(firmware_tables::pm_timer);
        let clock = pm_timer.or_else(|| tables("HPET").and_then(firmware_tables::hpet));
        let clock = clock.ok_or_else(|| {
            Refusal::new(
                "clock",
                "the firmware describes neither a PM timer (FADT) nor an HPET",
                "use a firmware with ACPI tables",
            )
        })?;
        power::install(tables);
        let madt = tables("MADT");
        Ok(Self {
            clock,
            described: madt.is_some(),
            madt: madt.map(firmware_tables::madt).unwrap_or_default(),
        })
    }

    /// Makes this processor the first pCPU, sets clock and interrupt controllers up, and starts the other
    /// processors, which go on in `entry`. Once.
    ///
    /// # Errors
    /// When one of these cannot be.
    ///
    /// # Safety
    /// On the hypervisor's page tables and on `stack`, interrupts off, and what [`smp::start`] asks for.
    pub unsafe fn bring_up(
        &self,
        features: &Features,
        stack: Stack,
        trampoline: Option<HostPhys>,
        entry: fn() -> !,
    ) -> Result<Processors, Refusal> {
        // SAFETY: by the caller's promise.
        unsafe { smp::init(features, stack)? };
        let timer_hz = time::init(self.clock, &apic::free_run())?;
        apic::set_timer_rate(timer_hz);
        if !self.described {
            log::warn!("ACPI: there is no MADT, so only one processor is known; update the firmware");
        } else if self.madt.damaged {
            log::warn!("ACPI: the MADT is cut off; processors may be missing; update the firmware");
        }
        ioapic::init(&self.madt.io_apics);
        // SAFETY: by the caller's promise.
        let count = unsafe { smp::start(&self.madt.processors, trampoline, entry)? };
        let apic_ids: Vec<u32> = (0..).map_while(pcpu::apic_id_of).collect();
        Ok(Processors {
            count,
            found: self.madt.processors.len().max(1),
            ids: format!("APIC IDs {apic_ids:?}"),
            name: cpu::brand(),
            clocks: format!(
                "TSC {} MHz, local APIC timer {} MHz",
                time::tsc_hz() / 1_000_000,
                timer_hz / 1_000_000
            ),
            physical_bits: features.physical_bits,
        })
    }

    /// What the tables say of processors, interrupts and clock, as names and values.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let processors = &self.madt.processors;
        let io_apics = self.madt.io_apics.iter().map(|io_apic| format!("{:#x}", io_apic.address));
        let processors = match processors.iter().max() {
            Some(highest) if processors.len() > MAX_PCPUS => {
                format!("{}, of which {MAX_PCPUS} are used, highest APIC ID {highest}", processors.len())
            }
            Some(highest) => format!("{}, highest APIC ID {highest}", processors.len()),
            None => "the MADT lists none".to_string(),
        };
        let mut facts = Vec::from([
            ("processors", processors),
            ("I/O APICs", io_apics.collect::<Vec<_>>().join(", ")),
            (
                "reference clock",
                match self.clock {
                    ReferenceClock::PmTimer { port, .. } => format!("PM timer at port {port:#x}"),
                    ReferenceClock::Hpet { base } => format!("HPET at {base:#x}"),
                },
            ),
        ]);
        if self.madt.damaged {
            facts.push(("MADT", "it is cut off; processors may be missing".to_string()));
        }
        facts
    }

    /// What the stacks of all processors take, in bytes.
    pub fn stack_bytes(&self) -> u64 {
        // The first one may be missing in the table.
        (self.madt.processors.len() as u64 + 1) * smp::STACKS_BYTES
    }

    /// Global system interrupt of the serial line, for `ioapic::route`. All inputs are masked.
    pub fn serial_interrupt(&self) -> u32 {
        self.madt.gsi_of_isa(COM1_IRQ)
    }
}
