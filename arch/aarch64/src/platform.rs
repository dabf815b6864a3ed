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
use crate::firmware_tables::{self, Its, Madt, Timers};
use crate::stack::Stack;
use crate::{gic, pcpu, power, smp, time};

pub use crate::gic::LPI_FRAME_LEN as REDISTRIBUTOR_LEN;

/// What the firmware's tables say.
pub struct Platform {
    madt: Madt,
    timers: Timers,
}

impl Platform {
    /// Reads the tables. Before boot services end.
    ///
    /// # Errors
    /// When something is missing that nothing works without.
    pub fn read(tables: Find<'_>) -> Result<Self, Refusal> {
        let missing = |what: &str, why: &str| {
            Refusal::new(what, why, "use a firmware with ACPI tables or a device tree")
        };
        let madt = tables("MADT").map(firmware_tables::madt);
        let madt = madt.ok_or_else(|| missing("interrupts", "the firmware has no MADT"))?;
        let timers = tables("GTDT").and_then(firmware_tables::gtdt);
        let timers = timers.ok_or_else(|| missing("clock", "the firmware has no GTDT"))?;
        if madt.distributor.is_none() {
            return Err(Refusal::new(
                "interrupts",
                "the MADT describes no GIC distributor",
                "use a machine with a GICv3; with QEMU use -M virt,gic-version=3",
            ));
        }
        power::install(tables);
        Ok(Self { madt, timers })
    }

    /// Makes this processor the first pCPU, sets clock and interrupt controllers up, and starts the other
    /// processors, which go on in `entry`. Once.
    ///
    /// # Errors
    /// When one of these cannot be.
    ///
    /// # Safety
    /// On the hypervisor's page tables and on `stack`, everything masked.
    pub unsafe fn bring_up(
        &self,
        features: &Features,
        stack: Stack,
        trampoline: Option<HostPhys>,
        entry: fn() -> !,
    ) -> Result<Processors, Refusal> {
        time::init(self.timers.physical_el2)?;
        time::set_virtual_timer(self.timers.virtual_el1);
        if self.madt.damaged {
            log::warn!("ACPI: the MADT is cut off; processors may be missing; update the firmware");
        }
        let spis = gic::init_distributor(&self.madt)?;
        // SAFETY: by the caller's promise.
        let count = unsafe {
            smp::init(&self.madt, stack)?;
            smp::start(&self.madt, trampoline, entry)?
        };
        log::info!(
            "interrupts: GICv3, {spis} SPIs, {} ITS, EL2 timer at INTID {}",
            self.madt.its.len(),
            self.timers.physical_el2
        );
        let mpidrs: Vec<u64> = pcpu::all().map(|pcpu| pcpu.mpidr).collect();
        Ok(Processors {
            count,
            found: self.madt.processors.len().max(1),
            ids: format!("MPIDRs {mpidrs:x?}"),
            name: format!("{}, EL2 {} VHE", cpu::name(), if features.vhe { "with" } else { "without" }),
            clocks: format!("counter {} MHz", time::hz() / 1_000_000),
            physical_bits: features.physical_bits,
        })
    }

    /// What the tables say of processors, interrupts and timers, as names and values.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let count = self.madt.processors.len();
        let processors = if count > MAX_PCPUS {
            format!("{count}, of which {MAX_PCPUS} are used")
        } else {
            format!("{count}")
        };
        let distributor =
            self.madt.distributor.map(|(base, version)| format!("version {version} at {base:#x}"));
        let its = self.madt.its.iter().map(|its| format!("{:#x}", its.base)).collect::<Vec<_>>();
        let mut facts = Vec::from([
            ("processors", processors),
            ("GIC", distributor.unwrap_or_default()),
            ("ITS", if its.is_empty() { "none".to_string() } else { its.join(", ") }),
            ("EL2 timer", format!("INTID {}", self.timers.physical_el2)),
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

    /// The interrupt translation services.
    pub fn its(&self) -> &[Its] {
        &self.madt.its
    }

    /// The redistributors of all pCPUs, once these run: where the registers are mapped, [`REDISTRIBUTOR_LEN`] bytes
    /// each.
    pub fn redistributors(&self) -> impl Iterator<Item = HostPhys> {
        pcpu::all().map(|pcpu| HostPhys(pcpu.redistributor))
    }
}
