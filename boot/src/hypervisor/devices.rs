// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's devices: PCI functions, remapping units, accelerators.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use pasidon_arch::host::MachineHost;
use pasidon_arch::{cache, memory, paging};
use pasidon_drivers::accel::dsa::{DsaParent, Options, Partition, Setup, Silicon};
use pasidon_drivers::iommu::vtd::dmar::{Drhd, ScopeKind};
use pasidon_drivers::iommu::vtd::scope::BusRange;
use pasidon_drivers::iommu::vtd::{Vtd, dmar};
use pasidon_drivers::memory::DmaMemory;
use pasidon_drivers::pci::Function;
use pasidon_drivers::registers::Mmio;
use pasidon_kernel::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::config::{Config, ParentConfig, PciDevice};
use pasidon_kernel::frames::Frames;
use pasidon_kernel::parent::Parent;
use pasidon_kernel::refusal::Refusal;

use crate::pci::Pci;

/// Memory for tables and queues of devices.
#[derive(Debug)]
pub struct FrameMemory(pub &'static Frames);

impl DmaMemory for FrameMemory {
    fn alloc(&self, pages: usize) -> Option<HostPhys> {
        let start = self.0.allocate_pages(pages)?;
        // SAFETY: just taken, and RAM is mapped at its physical address.
        unsafe { memory::zero(start, pages as u64 * PAGE_SIZE) };
        Some(start)
    }

    fn free(&self, start: HostPhys, pages: usize) {
        self.0.free_pages(start, pages);
    }

    fn read64(&self, address: HostPhys) -> u64 {
        // SAFETY: the drivers pass addresses within what `alloc` gave them.
        unsafe { (address.0 as *const u64).read_volatile() }
    }

    fn write64(&self, address: HostPhys, value: u64) {
        fence(Ordering::Release);
        // SAFETY: as in `read64`.
        unsafe { (address.0 as *mut u64).write_volatile(value) }
    }

    fn flush(&self, address: HostPhys, len: usize) {
        // SAFETY: the drivers pass addresses within what `alloc` gave them.
        unsafe { cache::clean(address.0, len) };
    }
}

/// The VT-d driver of this machine.
pub type MachineVtd = Vtd<Mmio, FrameMemory>;

/// The remapping units, in charge.
#[derive(Clone, Copy)]
pub struct MachineIommu {
    /// The driver.
    pub vtd: &'static MachineVtd,
    /// As whom the I/O APIC sends its interrupts.
    pub io_apic: Option<Requester>,
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

/// Takes all remapping units over: from here on no device reaches memory. `None` where there are none.
pub fn take_iommu(
    table: Option<&[u8]>,
    pci: &Pci,
    frames: &'static Frames,
) -> Result<Option<MachineIommu>, Refusal> {
    let Some(table) = table else { return Ok(None) };
    let dmar = dmar::parse(table)?;
    let mut unmapped = None;
    let vtd = Vtd::new(
        &dmar,
        Arc::new(FrameMemory(frames)),
        &MachineHost,
        true,
        &|requester| {
            let (secondary, subordinate) = pci.bridge(requester)?;
            Some(BusRange {
                secondary,
                subordinate,
            })
        },
        &mut |base, len| match paging::map_device(base, len) {
            // SAFETY: registers of a remapping unit, mapped uncached for good; this driver alone uses them.
            Ok(window) => unsafe { Mmio::new(window, len as usize) },
            Err(refusal) => {
                unmapped.get_or_insert(refusal);
                // SAFETY: of no length, so that no register can be reached through it.
                unsafe { Mmio::new(core::ptr::dangling_mut(), 0) }
            }
        },
    );
    if let Some(refusal) = unmapped {
        return Err(refusal);
    }
    let vtd: &'static MachineVtd = Box::leak(Box::new(vtd?));
    vtd.take_over()?;
    Ok(Some(MachineIommu {
        vtd,
        io_apic: dmar.units.iter().find_map(io_apic),
    }))
}

/// Brings up the accelerator that a parent names. `queues` are the entries that the vdevs on it ask for.
pub fn bring_up_parent(
    parent: &ParentConfig,
    device: &PciDevice,
    pci: &Pci,
    queues: Vec<Option<u16>>,
) -> Result<&'static dyn Parent, Refusal> {
    let what = || alloc::format!("parent {}", parent.name.value);
    if Silicon::of(device.vendor, device.device).is_none() {
        return Err(Refusal::new(
            what(),
            alloc::format!(
                "{:04x}:{:04x} at {} is no accelerator that there is a driver for",
                device.vendor,
                device.device,
                device.requester
            ),
            "name an Intel DSA (8086:0b25 or 8086:11fb)",
        ));
    }
    let config = pci.config_of(device.requester).ok_or_else(|| {
        Refusal::new(
            what(),
            "its configuration space is not mapped",
            "check the MCFG table",
        )
    })?;
    let function = Function::new(config, device.requester)?;
    let bar = function.memory_bar(0)?;
    let window = paging::map_device(bar.address, bar.size)?;
    let setup = Setup {
        name: String::clone(&parent.name.value),
        function,
        // SAFETY: the device's own registers, mapped uncached for good; this driver alone uses them.
        registers: unsafe { Mmio::new(window, bar.size as usize) },
        host: Arc::new(MachineHost),
        partition: Partition { queues },
        options: Options {
            allow_unsafe_portals: parent.allow_unsafe_portals.value,
            ..Options::default()
        },
    };
    let parent = DsaParent::new(setup)?;
    // Parents stay for as long as the machine runs.
    Ok(&**Box::leak(Box::new(parent)))
}

/// The queue entries that the vdevs of a configuration ask of a parent.
pub fn wanted_queues(config: &Config, parent: &str) -> Vec<Option<u16>> {
    config
        .vms
        .iter()
        .flat_map(|vm| &vm.vdevs)
        .filter(|vdev| vdev.parent.value == parent)
        .map(|vdev| vdev.entries.as_ref().map(|entries| entries.value))
        .collect()
}
