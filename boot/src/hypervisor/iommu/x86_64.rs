// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel VT-d, which isolates interrupt messages as well.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_arch::host::{self, MachineHost};
use pasidon_arch::interrupts::Handler;
use pasidon_arch::platform::Platform;
use pasidon_drivers::iommu::vtd::dmar::{self, Dmar, Drhd, ScopeKind};
use pasidon_drivers::iommu::vtd::scope::Coverage;
use pasidon_drivers::iommu::vtd::{self, Vtd};
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::Iommu;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::msi::MsiController;
use pasidon_kernel::memory::frames::Frames;
use pasidon_kernel::vm::exit::MsiMessage;

use super::{FrameMemory, Surveyed, Without};
use crate::registers::{self, Pci};
use crate::tables::Tables;

/// The remapping units, in charge.
#[derive(Clone, Copy)]
pub struct MachineIommu {
    vtd: &'static Vtd<Mmio, FrameMemory>,
    /// As whom the I/O APIC sends its interrupts.
    io_apic: Option<Requester>,
}

/// Interrupt destinations are 32-bit APIC identifiers.
const X2APIC: bool = true;

/// The firmware's list of units.
fn dmar_of(tables: &Tables) -> Result<Dmar, Without> {
    let table = tables.get("DMAR").ok_or(Without::Absent("the firmware has no DMAR table"))?;
    Ok(dmar::parse(table)?)
}

/// Looks at all units and changes none.
///
/// # Errors
/// When there is none that could be driven.
pub fn survey(tables: &Tables, _platform: Option<&Platform>, pci: &Pci) -> Result<Surveyed, Without> {
    let dmar = dmar_of(tables)?;
    let bridges = |requester| pci.buses_behind(requester);
    Ok(Surveyed {
        make: "VT-d",
        survey: vtd::survey(&dmar, X2APIC, &bridges, &mut registers::as_the_firmware_maps),
        topology: Box::new(Coverage::new(&dmar, &bridges)),
        messages: dmar.interrupt_remapping,
    })
}

/// The I/O APIC in a unit's device scope.
fn io_apic(unit: &Drhd) -> Option<Requester> {
    unit.scopes.iter().find_map(|scope| match scope.path.as_slice() {
        [(device, function)] if scope.kind == ScopeKind::IoApic => {
            Some(Requester::new(unit.segment, scope.start_bus, *device, *function))
        }
        _ => None,
    })
}

impl MachineIommu {
    /// Takes all units over: from here on no device reaches memory. Where there are none, that is told.
    pub(super) fn take(
        tables: &Tables,
        _platform: &Platform,
        pci: &Pci,
        frames: &'static Frames,
    ) -> (Option<Self>, Option<Without>) {
        match Self::take_units(tables, pci, frames) {
            Ok(taken) => (Some(taken), None),
            Err(without) => (None, Some(without)),
        }
    }

    fn take_units(tables: &Tables, pci: &Pci, frames: &'static Frames) -> Result<Self, Without> {
        let dmar = dmar_of(tables)?;
        let vtd = Vtd::new(
            &dmar,
            Arc::new(FrameMemory(frames)),
            &MachineHost,
            X2APIC,
            &|requester| pci.buses_behind(requester),
            &mut registers::map,
        )?;
        let vtd: &'static Vtd<_, _> = Box::leak(Box::new(vtd));
        host::connect_posted();
        vtd.take_over()?;
        Ok(Self { vtd, io_apic: dmar.units.iter().find_map(io_apic) })
    }

    /// What it is, in words.
    pub(super) fn title(&self) -> String {
        format!("VT-d, {} unit(s)", self.vtd.units().len())
    }

    /// What there is to know about it, as names and values.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        self.vtd.describe()
    }

    /// What confines DMA.
    pub fn iommu(&self) -> Option<&'static dyn Iommu> {
        Some(self.vtd)
    }

    /// What confines interrupt messages.
    pub fn msi(&self) -> Option<&'static dyn MsiController> {
        Some(self.vtd)
    }

    /// Has `handler` called, as an interrupt handler, when faults were recorded.
    pub fn connect_faults(&self, handler: Handler) -> Result<(), Refusal> {
        let target = host::fault_interrupt(handler)
            .ok_or_else(|| Refusal::new("VT-d", "the first processor is not known", "update the firmware"))?;
        self.vtd.set_fault_interrupt(target);
        Ok(())
    }

    /// Lets the I/O APIC raise a vector.
    fn remap_line(&self, target: HostVector) -> Result<MsiMessage, Refusal> {
        let io_apic = self.io_apic.ok_or_else(|| {
            Refusal::new(
                "COM1",
                "the DMAR table does not say as whom the I/O APIC sends",
                "update the firmware",
            )
        })?;
        Ok(self.vtd.map_interrupt(io_apic, target)?.message)
    }
}

/// Has `note` called, as an interrupt handler on the first pCPU, when bytes came on the serial line.
pub fn connect_keys(iommu: Option<&MachineIommu>, platform: &Platform, note: fn()) -> Result<(), Refusal> {
    let remap = iommu.map(|iommu| |target| iommu.remap_line(target));
    let remap = remap.as_ref().map(|remap| remap as &dyn Fn(HostVector) -> Result<MsiMessage, Refusal>);
    host::connect_serial(platform.serial_interrupt(), remap, note)
}
