// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm SMMUv3, and its wired interrupts.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::{self, MachineHost};
use pasidon_arch::interrupts::Handler;
use pasidon_arch::platform::Platform;
use pasidon_drivers::iommu::smmuv3::{Smmu, iort};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::frames::Frames;
use pasidon_kernel::iommu::Iommu;
use pasidon_kernel::msi::MsiController;
use pasidon_kernel::refusal::Refusal;

use super::{FrameMemory, Windows};
use crate::pci::Pci;
use crate::tables::Tables;

/// The SMMUs, in charge.
#[derive(Clone, Copy)]
pub struct MachineIommu {
    smmu: &'static Smmu<Mmio, FrameMemory>,
}

impl MachineIommu {
    /// Takes all units over: from here on no device reaches memory. In `Ok(Err)` it says why there are none.
    pub(super) fn take(
        tables: &Tables,
        _platform: &Platform,
        _pci: &Pci,
        frames: &'static Frames,
    ) -> Result<Result<Self, &'static str>, Refusal> {
        let Some(table) = tables.get("IORT") else {
            return Ok(Err("the firmware has no IORT table"));
        };
        let iort = iort::parse(table)?;
        if iort.units.is_empty() {
            return Ok(Err("the firmware's IORT describes no SMMUv3"));
        }
        let mut windows = Windows::default();
        let smmu = Smmu::new(
            iort,
            Arc::new(FrameMemory(frames)),
            &MachineHost,
            &[],
            &mut |base, len| windows.map(base, len),
        );
        windows.check()?;
        let smmu: &'static Smmu<_, _> = Box::leak(Box::new(smmu?));
        smmu.take_over()?;
        Ok(Ok(Self { smmu }))
    }

    /// What it is, in words.
    pub(super) fn title(&self) -> String {
        format!("SMMUv3, {} unit(s)", self.smmu.units().len())
    }

    /// What there is to know about it, as names and values.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        self.smmu.describe()
    }

    /// What confines DMA.
    pub fn iommu(&self) -> &'static dyn Iommu {
        self.smmu
    }

    /// What confines interrupt messages.
    pub fn msi(&self) -> Option<&'static dyn MsiController> {
        None
    }

    /// Has `handler` called, as an interrupt handler, when faults were recorded.
    pub fn connect_faults(&self, handler: Handler) -> Result<(), Refusal> {
        for node in &self.smmu.iort().units {
            let name = || format!("smmuv3 {}", node.registers);
            let event = node.interrupts.event;
            if event == 0 {
                return Err(Refusal::new(
                    name(),
                    "the IORT names no wired event interrupt",
                    "update the firmware",
                ));
            }
            host::connect_edge(event, handler).map_err(|refusal| refusal.within(name()))?;
        }
        self.smmu.enable_fault_interrupts()
    }
}

/// Has `note` called, as an interrupt handler on the first pCPU, when bytes came on the serial line.
pub fn connect_keys(_iommu: Option<&MachineIommu>, _platform: &Platform, note: fn()) -> Result<(), Refusal> {
    host::connect_serial(note)
}
