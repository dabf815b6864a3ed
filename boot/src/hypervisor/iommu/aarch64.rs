// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm SMMUv3 for DMA, the interrupt translation services for messages.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::{self, MachineHost};
use pasidon_arch::interrupts::Handler;
use pasidon_arch::platform::{Platform, REDISTRIBUTOR_LEN};
use pasidon_drivers::iommu::smmuv3::{self, Smmu};
use pasidon_drivers::iort::{self, Iort};
use pasidon_drivers::irq::its::{Its, ItsNode, LPIS, Redistributor};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::Iommu;
use pasidon_kernel::irq::msi::MsiController;
use pasidon_kernel::memory::frames::Frames;

use super::{FrameMemory, Surveyed, Without};
use crate::registers::{self, Pci};
use crate::tables::Tables;

type MachineIts = Its<Mmio, FrameMemory>;
type MachineSmmu = Smmu<Mmio, FrameMemory>;

const _: () = {
    let given = pasidon_arch::vector::DEVICES;
    assert!(LPIS.start <= given.start && given.end <= LPIS.end);
};

/// The SMMUs, in charge, and what comes of messages.
#[derive(Clone, Copy)]
pub struct MachineIommu {
    /// `None` where there is none that can be driven.
    smmu: Option<&'static MachineSmmu>,
    its: Option<&'static MachineIts>,
}

/// What the firmware says of units.
fn iort_of(tables: &Tables) -> Result<Iort, Without> {
    let table = tables.get("IORT").ok_or(Without::Absent("the firmware has no IORT table"))?;
    Ok(iort::parse(table)?)
}

fn check_units(iort: &Iort) -> Result<(), Without> {
    if iort.units.is_empty() {
        return Err(Without::Absent("the firmware's IORT describes no SMMUv3"));
    }
    Ok(())
}

/// Looks at all units and changes none.
///
/// # Errors
/// When there is none that could be driven.
pub fn survey(tables: &Tables, platform: Option<&Platform>, _pci: &Pci) -> Result<Surveyed, Without> {
    let iort = iort_of(tables)?;
    check_units(&iort)?;
    Ok(Surveyed {
        make: "SMMUv3",
        survey: smmuv3::survey(&iort, &mut registers::as_the_firmware_maps),
        topology: Box::new(Arc::new(iort)),
        messages: platform.is_some_and(|platform| !platform.its().is_empty()),
    })
}

/// The interrupt translation services, off. `None` where there are none, or none that can be driven: devices can
/// be confined then, but not be used.
fn find_its(platform: &Platform, iort: &Iort, frames: &'static Frames) -> Option<&'static MachineIts> {
    let nodes: Vec<ItsNode> = platform
        .its()
        .iter()
        .map(|its| ItsNode { identifier: its.id, registers: HostPhys(its.base) })
        .collect();
    if nodes.is_empty() {
        log::warn!("the MADT names no ITS, so interrupts of devices reach nobody");
        return None;
    }
    let redistributors = platform
        .redistributors()
        .map(|base| Redistributor {
            // SAFETY: mapped uncached for good; for LPIs only this driver uses them.
            registers: unsafe { Mmio::new(base.0 as *mut u8, REDISTRIBUTOR_LEN) },
            base,
        })
        .collect();
    let its = Its::new(
        &nodes,
        iort.clone(),
        redistributors,
        Arc::new(FrameMemory(frames)),
        &MachineHost,
        &mut registers::map,
    );
    match its {
        Ok(its) => Some(Box::leak(Box::new(its))),
        Err(refusal) => {
            log::error!("ITS not usable: {refusal}");
            None
        }
    }
}

fn take_smmu(
    iort: Iort,
    its: Option<&'static MachineIts>,
    frames: &'static Frames,
) -> Result<&'static MachineSmmu, Without> {
    check_units(&iort)?;
    let doorbells = its.map_or_else(Vec::new, MachineIts::doorbells);
    let smmu = Smmu::new(iort, Arc::new(FrameMemory(frames)), &MachineHost, &doorbells, &mut registers::map)?;
    let smmu: &'static Smmu<_, _> = Box::leak(Box::new(smmu));
    smmu.take_over()?;
    Ok(smmu)
}

impl MachineIommu {
    /// Takes all units over: from here on no device reaches memory. Where there are none, that is told, and messages may
    /// come all the same.
    pub(super) fn take(
        tables: &Tables,
        platform: &Platform,
        _pci: &Pci,
        frames: &'static Frames,
    ) -> (Option<Self>, Option<Without>) {
        let iort = match iort_of(tables) {
            Ok(iort) => iort,
            Err(without) => return (None, Some(without)),
        };
        let its = find_its(platform, &iort, frames);
        let (smmu, without) = match take_smmu(iort, its, frames) {
            Ok(smmu) => (Some(smmu), None),
            Err(without) => (None, Some(without)),
        };
        // Only now, when no device behind a unit writes a message any more.
        let its = its.filter(|its| {
            its.take_over().inspect_err(|refusal| log::error!("ITS not usable: {refusal}")).is_ok()
        });
        (Some(Self { smmu, its }), without)
    }

    /// What it is, in words.
    pub(super) fn title(&self) -> String {
        format!("SMMUv3, {} unit(s)", self.smmu.map_or(0, |smmu| smmu.units().len()))
    }

    /// What there is to know about it, as names and values.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = self.smmu.map(Iommu::describe).unwrap_or_default();
        lines.extend(self.its.map(MachineIts::describe).unwrap_or_default());
        lines
    }

    /// What confines DMA.
    pub fn iommu(&self) -> Option<&'static dyn Iommu> {
        self.smmu.map(|smmu| smmu as &dyn Iommu)
    }

    /// What confines interrupt messages.
    pub fn msi(&self) -> Option<&'static dyn MsiController> {
        self.its.map(|its| its as &dyn MsiController)
    }

    /// Has `handler` called, as an interrupt handler, when faults were recorded.
    pub fn connect_faults(&self, handler: Handler) -> Result<(), Refusal> {
        let Some(smmu) = self.smmu else { return Ok(()) };
        for node in &smmu.topology().units {
            let name = || format!("smmuv3 {}", node.registers);
            for (interrupt, missing) in [
                (node.interrupts.event, "the IORT names no wired interrupt of its events"),
                (node.interrupts.global_error, "the IORT names no wired interrupt of its global errors"),
            ] {
                if interrupt == 0 {
                    return Err(Refusal::new(name(), missing, "update the firmware"));
                }
                host::connect_edge(interrupt, handler).map_err(|refusal| refusal.within(name()))?;
            }
        }
        smmu.enable_fault_interrupts()
    }
}

/// Has `note` called, as an interrupt handler on the first pCPU, when bytes came on the serial line.
pub fn connect_keys(_iommu: Option<&MachineIommu>, _platform: &Platform, note: fn()) -> Result<(), Refusal> {
    host::connect_serial(note)
}
