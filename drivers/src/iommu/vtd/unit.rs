// SPDX-License-Identifier: MIT OR Apache-2.0
//! One remapping unit: its tables, its queue, and what is claimed and attached through it.
//!
//! **Order.** An entry is made invisible, then forgotten (context cache, PASID cache, IOTLB, device TLB,
//! each fenced from the next), and only then reused. Each operation touches its own entries only, so its
//! cost does not depend on how many others there are.
//! Source: Intel VT-d specification, "Guidance to Software for Invalidations".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE, Requester};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::fault::Noted;
use pasidon_kernel::dma::iommu::AttachFailed;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::irq::msi::Delivery;
use pasidon_kernel::memory::page_table::Top;
use spin::Mutex;

use super::capabilities::{self, unit_name};
use super::dmar::Drhd;
use super::fault;
use super::interrupt_remapping::InterruptTable;
use super::invalidation::{self, Invalidation, Queue};
use super::registers::{Capability, ExtendedCapability, Global, command, offset};
use super::scope::Coverage;
use super::second_stage::SecondStageEntries;
use super::tables::{ContextTables, PasidDirectory, PasidEntry, RID_PASID};
use crate::iommu::attachments::{Attachments, Parted, not_claimed};
use crate::iommu::domains::DomainId;
use crate::iommu::unit::{DeviceTlb, IommuUnit};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;

/// One remapping unit.
pub struct Unit<R, M> {
    pub(super) registers: R,
    pub(super) memory: Arc<M>,
    pub(super) tables: TableMemory<M>,
    pub(super) host: &'static dyn Host,
    pub(super) base: HostPhys,
    pub(super) segment: u16,
    pub(super) capability: Capability,
    pub(super) extended: ExtendedCapability,
    pub(super) inner: Mutex<Inner>,
    /// Held while fault records are read; nothing else takes it.
    pub(super) faults: Mutex<()>,
    commands: AtomicU64,
}

/// What changes while the unit runs.
pub(super) struct Inner {
    pub(super) contexts: ContextTables,
    pub(super) queue: Queue,
    pub(super) interrupts: InterruptTable,
    pub(super) devices: BTreeMap<u16, Device>,
}

/// A claimed device.
pub(super) struct Device {
    directory: PasidDirectory,
    device_tlb: Option<DeviceTlb>,
    pub(super) attachments: Attachments,
}

impl<R: Registers, M: DmaMemory> Unit<R, M> {
    /// Reads the capabilities, refuses with the name of each missing one, and makes empty tables. Writes
    /// no register. `x2apic`: interrupt destinations are 32-bit APIC identifiers.
    pub(super) fn new(
        registers: R,
        memory: Arc<M>,
        host: &'static dyn Host,
        description: &Drhd,
        x2apic: bool,
    ) -> Result<Self, Refusal> {
        let base = description.registers;
        let capability = Capability(registers.read64(offset::CAP));
        let extended = ExtendedCapability(registers.read64(offset::ECAP));
        capabilities::check_unit(description, capability, extended, x2apic)?;
        let tables = TableMemory::new(Arc::clone(&memory), extended.coherent());
        let within = |refusal: Refusal| refusal.within(unit_name(base));
        let inner = Inner {
            contexts: ContextTables::new(&tables).map_err(within)?,
            queue: Queue::new(&*memory, capability).map_err(within)?,
            interrupts: InterruptTable::new(&tables, x2apic).map_err(within)?,
            devices: BTreeMap::new(),
        };
        Ok(Self {
            registers,
            memory,
            tables,
            host,
            base,
            segment: description.segment,
            capability,
            extended,
            inner: Mutex::new(inner),
            faults: Mutex::new(()),
            commands: AtomicU64::new(0),
        })
    }

    /// How people call it: by the address of its registers.
    pub fn name(&self) -> String {
        unit_name(self.base)
    }

    /// CAP.
    pub const fn capability(&self) -> Capability {
        self.capability
    }

    /// ECAP.
    pub const fn extended_capability(&self) -> ExtendedCapability {
        self.extended
    }

    /// Refuses a tag that cannot be attached now.
    fn check_tag(&self, device: &Device, pasid: Pasid) -> Result<(), Refusal> {
        let (why, remedy) = if pasid.value() == RID_PASID {
            ("it stands for untagged DMA, which stays blocked", "use another PASID")
        } else if !device.directory.holds(pasid) {
            ("it is wider than the PASIDs of the IOMMU (ECAP.PSS)", "use a smaller PASID")
        } else {
            return device.attachments.check_free(pasid);
        };
        Err(Refusal::new(format!("PASID {pasid}"), why, remedy))
    }

    /// The cheapest command that covers a range: the pages, or the domain where they do not fit one
    /// aligned power of two that the unit takes.
    fn range_command(&self, domain: DomainId, start: u64, len: u64) -> Invalidation {
        let first = start / PAGE_SIZE;
        let last = (start + (len - 1)) / PAGE_SIZE;
        let mask = u64::BITS - (first ^ last).leading_zeros();
        if self.capability.page_selective() && mask <= self.capability.max_address_mask() {
            Invalidation::IotlbPages { domain, address: (first >> mask << mask) * PAGE_SIZE, mask }
        } else {
            Invalidation::IotlbDomain { domain }
        }
    }

    /// Makes a remapping entry for a device. Returns its index.
    pub(super) fn map_interrupt(&self, rid: u16, target: HostVector) -> Result<u16, Refusal> {
        let mut inner = self.inner.lock();
        let Inner { queue, interrupts, .. } = &mut *inner;
        let index = interrupts.set(&self.tables, rid, target)?;
        // On a refusal the index stays taken: what the unit holds for it is not known.
        self.push_out()?;
        self.forget(queue, &[Invalidation::Interrupt { index }])?;
        Ok(index)
    }

    /// Has the messages of a remapping entry raise something else. On a refusal of the hardware's, the unit may go on
    /// with what it remembers, so that stays held.
    pub(super) fn redirect(&self, index: u16, to: Delivery<'_>) -> Result<(), Refusal> {
        if matches!(to, Delivery::Guest(_)) && !self.capability.posted_interrupts() {
            return Err(Refusal::new(
                self.name(),
                "it cannot post interrupts (CAP.PI)",
                "leave them as they are",
            ));
        }
        let mut inner = self.inner.lock();
        let Inner { queue, interrupts, .. } = &mut *inner;
        interrupts.redirect(&self.tables, index, to)?;
        self.push_out()?;
        self.forget(queue, &[Invalidation::Interrupt { index }])?;
        interrupts.settle(index, to);
        Ok(())
    }

    /// Removes a remapping entry.
    pub(super) fn unmap_interrupt(&self, index: u16) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let Inner { queue, interrupts, .. } = &mut *inner;
        interrupts.clear(&self.tables, index)?;
        self.push_out()?;
        self.forget(queue, &[Invalidation::Interrupt { index }])?;
        interrupts.release(index);
        Ok(())
    }

    /// Pushes table writes out of the unit's write buffer, where it has one.
    pub(super) fn push_out(&self) -> Result<(), Refusal> {
        if self.capability.write_buffer_flush()
            && !command(&self.registers, self.host, Global::WRITE_BUFFER, true)
        {
            return Err(Refusal::new(
                self.name(),
                "its write buffer does not empty (GSTS.WBFS stays set)",
                "restart the machine",
            ));
        }
        Ok(())
    }

    pub(super) fn forget(&self, queue: &mut Queue, commands: &[Invalidation]) -> Result<(), Refusal> {
        let before = queue.issued();
        let result = queue.execute(&self.registers, &*self.memory, self.host, commands);
        self.commands.fetch_add(queue.issued() - before, Ordering::Relaxed);
        result.map_err(|refusal| refusal.within(self.name()))
    }

    /// What makes the unit, and the device, forget that a tag led to a domain.
    fn partings(&self, rid: u16, device: &Device, pasid: Pasid, domain: DomainId) -> Vec<Invalidation> {
        let mut commands = Vec::with_capacity(5);
        if cfg!(not(feature = "omit-pasid-cache-invalidation")) {
            commands.extend([Invalidation::PasidCache { domain, pasid }, Invalidation::Fence]);
        }
        commands.push(Invalidation::IotlbDomain { domain });
        if let Some(tlb) = device.device_tlb {
            commands.extend([
                Invalidation::Fence,
                Invalidation::PasidDeviceTlb { rid, pfsid: self.pfsid(rid), pasid, tlb },
            ]);
        }
        commands
    }

    /// The function whose invalidation queue is throttled: named only where the unit wants it.
    const fn pfsid(&self, rid: u16) -> u16 {
        if self.extended.device_tlb_throttle() { rid } else { 0 }
    }
}

impl<R: Registers, M: DmaMemory> IommuUnit for Unit<R, M> {
    const NAME: &'static str = "vtd";
    /// With a PASID, requests to it are faults ("Interrupt Address Range").
    const INTERRUPT_RANGE: Range<u64> = 0xfee0_0000..0xfef0_0000;

    type Memory = M;
    type Entries = SecondStageEntries;
    type Topology = Coverage;

    fn pasid_bits(&self) -> u32 {
        self.extended.pasid_bits().into()
    }

    fn lacks_dirty_tracking(&self) -> Option<&'static str> {
        (!self.extended.dirty_bits()).then_some("ECAP.SLADS is 0")
    }

    fn last_domain(&self) -> DomainId {
        ((1u32 << self.capability.domain_bits().min(DomainId::BITS)) - 1) as DomainId
    }

    fn take_over(&self) -> Result<(), Refusal> {
        self.bring_up()
    }

    fn claim(&self, device: u32, device_tlb: Option<DeviceTlb>) -> Result<(), Refusal> {
        let rid = rid(device);
        let mut inner = self.inner.lock();
        if inner.devices.contains_key(&rid) {
            return Err(Refusal::new(
                "claim",
                "the device is claimed already",
                "name it for one parent only",
            ));
        }
        if device_tlb.is_some() && !self.extended.device_tlb() {
            return Err(Refusal::new(
                "claim with ATS",
                format!("{} has no device-TLB support (ECAP.DT)", self.name()),
                "use the device without ATS",
            ));
        }
        let directory = PasidDirectory::new(&self.tables, self.extended.pasid_bits())?;
        if let Err(refusal) = inner.contexts.set(&self.tables, rid, &directory, device_tlb.is_some()) {
            directory.destroy(&self.tables);
            return Err(refusal);
        }
        // From here on the entry is visible: on a refusal the device stays claimed and stays blocked.
        inner.devices.insert(rid, Device { directory, device_tlb, attachments: Attachments::default() });
        self.push_out()?;
        self.forget(
            &mut inner.queue,
            &[
                Invalidation::ContextDevice { rid },
                Invalidation::Fence,
                Invalidation::IotlbDomain { domain: 0 },
            ],
        )
    }

    fn attach(&self, device: u32, pasid: Pasid, domain: DomainId, table: Top) -> Result<(), AttachFailed> {
        let mut inner = self.inner.lock();
        let Inner { queue, devices, .. } = &mut *inner;
        let device = devices.get_mut(&rid(device)).ok_or_else(not_claimed)?;
        self.check_tag(device, pasid)?;
        let entry = PasidEntry::new(table, domain, self.extended.page_walk_coherent());
        device.directory.set(&self.tables, pasid, entry)?;
        device.attachments.begin(pasid, domain);
        let seen = self.push_out().and_then(|()| {
            if !self.capability.caching_mode() {
                return Ok(());
            }
            // The absence of the entry may be cached.
            self.forget(
                queue,
                &[
                    Invalidation::PasidCache { domain, pasid },
                    Invalidation::Fence,
                    Invalidation::PasidIotlb { domain, pasid },
                ],
            )
        });
        seen.map_err(|refusal| {
            device.directory.clear_present(&self.tables, pasid);
            device.attachments.failed(pasid, refusal)
        })
    }

    fn replace(
        &self,
        device: u32,
        pasid: Pasid,
        domain: DomainId,
        table: Top,
    ) -> Result<DomainId, AttachFailed> {
        let rid = rid(device);
        let mut inner = self.inner.lock();
        let Inner { queue, devices, .. } = &mut *inner;
        let device = devices.get_mut(&rid).ok_or_else(not_claimed)?;
        let before = device.attachments.replace(pasid, domain)?;
        let entry = PasidEntry::new(table, domain, self.extended.page_walk_coherent());
        device.directory.replace(&self.tables, pasid, entry);
        let commands = self.partings(rid, device, pasid, before);
        let forgotten = self.push_out().and_then(|()| self.forget(queue, &commands));
        forgotten.map_err(|refusal| AttachFailed { refusal, tag_kept: true })?;
        device.attachments.replaced(pasid);
        Ok(before)
    }

    fn detach(&self, device: u32, pasid: Pasid) -> Result<Parted, Refusal> {
        let rid = rid(device);
        let mut inner = self.inner.lock();
        let Inner { queue, devices, .. } = &mut *inner;
        let device = devices.get_mut(&rid).ok_or_else(not_claimed)?;
        let parted = device.attachments.end(pasid)?;
        device.directory.clear_present(&self.tables, pasid);
        self.push_out()?;
        for domain in parted.domains() {
            self.forget(queue, &self.partings(rid, device, pasid, domain))?;
        }
        device.directory.zero(&self.tables, pasid);
        device.attachments.ended(pasid);
        Ok(parted)
    }

    fn publish(&self, domain: DomainId, start: u64, len: u64) -> Result<(), Refusal> {
        if self.capability.caching_mode() {
            // The absence of the mapping may be cached.
            self.forget_range(domain, start, len, core::iter::empty())
        } else {
            self.push_out()
        }
    }

    fn forget_range(
        &self,
        domain: DomainId,
        start: u64,
        len: u64,
        device_tlbs: impl Iterator<Item = (u32, Pasid)>,
    ) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let Inner { queue, devices, .. } = &mut *inner;
        self.push_out()?;
        let mut commands = alloc::vec![self.range_command(domain, start, len)];
        for (device, pasid) in device_tlbs {
            let rid = rid(device);
            if let Some(tlb) = devices.get(&rid).and_then(|device| device.device_tlb) {
                if commands.len() == 1 {
                    commands.push(Invalidation::Fence);
                }
                commands.push(Invalidation::PasidDeviceTlb { rid, pfsid: self.pfsid(rid), pasid, tlb });
            }
        }
        self.forget(queue, &commands)
    }

    fn has_device_tlb(&self, device: u32) -> bool {
        let inner = self.inner.lock();
        inner.devices.get(&rid(device)).is_some_and(|device| device.device_tlb.is_some())
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        // Where another processor reads already, the caller comes again.
        let Some(_reading) = self.faults.try_lock() else {
            return Drained::Again;
        };
        let leftover = || {
            // Whoever waits for the queue holds this lock, and clears its errors himself.
            if let Some(_nobody_waits) = self.inner.try_lock() {
                invalidation::clear_errors(&self.registers);
            }
        };
        fault::drain(&self.registers, self.capability, self.segment, &leftover, sink)
    }

    fn commands_issued(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = alloc::vec![("unit", self.name())];
        lines.extend(capabilities::describe(self.capability, self.extended));
        lines.push(("commands", format!("{}", self.commands_issued())));
        for (&rid, device) in &self.inner.lock().devices {
            let requester = Requester { segment: self.segment, rid };
            lines.push(("claimed", format!("{requester}: {}", device.attachments.describe())));
        }
        lines
    }
}

/// A device is called by its requester ID here.
const fn rid(device: u32) -> u16 {
    device as u16
}
