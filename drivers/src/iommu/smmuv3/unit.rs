// SPDX-License-Identifier: MIT OR Apache-2.0
//! One SMMU: its tables, its queues, and what is claimed and attached through it.
//!
//! **Order.** An entry is written body first, the word with V last, and the unit is made to forget what it may
//! have held before and after, because it may cache that an entry is not valid. To end one, V is cleared,
//! then configuration, translations and the device's own are forgotten, each waited for, and only then is
//! the place used again. Each operation touches its own entries only, so its cost does not depend on how many
//! others there are.
//! Source: SMMUv3 specification, "Configuration structures and configuration invalidation completion".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::fault::Noted;
use pasidon_kernel::dma::iommu::AttachFailed;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::memory::page_table::Top;
use spin::Mutex;

use super::capabilities::{self, unit_name};
use super::commands::{Access, Command, Queue, acknowledge, active_errors};
use super::context::{Context, ContextTable};
use super::events::EventQueue;
use super::registers::{GlobalError, Identification};
use super::stage1::Stage1Entries;
use super::stream_table::StreamTable;
use crate::iommu::attachments::{Attachments, Parted, not_claimed};
use crate::iommu::domains::DomainId;
use crate::iommu::unit::{DeviceTlb, IommuUnit};
use crate::iort::{Iort, Stream};
use crate::memory::DmaMemory;
use crate::registers::Registers;
use crate::table_memory::TableMemory;

/// SubstreamID 0: its descriptor stands for untagged traffic.
const UNTAGGED: Pasid = match Pasid::new(0) {
    Some(zero) => zero,
    None => unreachable!(),
};
/// ASID of the doorbells' table. Tables of VMs have others.
pub(super) const DOORBELL_ASID: DomainId = 0;
/// Up to so many pages are forgotten one by one, more as the whole table.
const PAGES_ONE_BY_ONE: u64 = 16;

/// One SMMU.
pub struct Unit<R, M> {
    pub(super) registers: R,
    pub(super) tables: TableMemory<M>,
    pub(super) host: &'static dyn Host,
    /// What the firmware says of all units; this one has that number there.
    iort: Arc<Iort>,
    number: usize,
    base: HostPhys,
    pub(super) identification: Identification,
    pub(super) inner: Mutex<Inner>,
    /// Held while events are read.
    pub(super) events: Mutex<EventQueue>,
    /// Held while GERRORN is changed.
    pub(super) errors: Mutex<()>,
    /// It said that it is out of service.
    failed: AtomicBool,
    substream_bits: u32,
    doorbells: HostPhys,
    commands: AtomicU64,
}

/// What changes while the unit runs.
pub(super) struct Inner {
    pub(super) streams: StreamTable,
    pub(super) queue: Queue,
    pub(super) devices: BTreeMap<u32, Device>,
    /// A descriptor may have the ASID that is for changes of the table.
    in_transit: bool,
}

/// A claimed device.
pub(super) struct Device {
    contexts: ContextTable,
    /// It may hold translations of its own (ATS).
    device_tlb: bool,
    pub(super) attachments: Attachments,
}

impl<R: Registers, M: DmaMemory> Unit<R, M> {
    /// Reads the identification registers, refuses with the name of each missing capability, and makes
    /// empty tables, with place for the streams that lead to it. Writes no register. `number` is its place in
    /// the IORT, `doorbells` the table for untagged traffic.
    pub(super) fn new(
        registers: R,
        memory: Arc<M>,
        host: &'static dyn Host,
        iort: Arc<Iort>,
        number: usize,
        doorbells: HostPhys,
    ) -> Result<Self, Refusal> {
        let identification = Identification::read(&registers);
        let node = &iort.units[number];
        let base = node.registers;
        capabilities::check_unit(node, identification)?;
        let tables = TableMemory::new(memory, capabilities::coherent(node, identification));
        let make = || {
            Ok((
                StreamTable::new(&tables, identification, iort.highest_stream(number))?,
                Queue::new(&tables, identification)?,
                EventQueue::new(&tables, identification)?,
            ))
        };
        let (streams, queue, events) = make().map_err(|refusal: Refusal| refusal.within(unit_name(base)))?;
        Ok(Self {
            registers,
            host,
            identification,
            inner: Mutex::new(Inner { streams, queue, devices: BTreeMap::new(), in_transit: false }),
            events: Mutex::new(events),
            errors: Mutex::new(()),
            failed: AtomicBool::new(false),
            substream_bits: capabilities::substream_bits(identification),
            doorbells,
            commands: AtomicU64::new(0),
            tables,
            iort,
            number,
            base,
        })
    }

    /// How people call it: by the address of its registers.
    pub fn name(&self) -> String {
        unit_name(self.base)
    }

    /// The ASID of a descriptor that changes its table: no table's.
    fn transit_asid(&self) -> DomainId {
        ((1u32 << self.identification.asid_bits().min(DomainId::BITS)) - 1) as DomainId
    }

    /// Takes note of global errors, so that the next one of the kind is announced. Not those of the command
    /// queue, which belong to whoever waits for it.
    fn take_errors(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        let errors = active_errors(&self.registers) - GlobalError::COMMAND_QUEUE;
        if errors.is_empty() {
            return Drained::Empty;
        }
        let Some(_changing) = self.errors.try_lock() else {
            return Drained::Again;
        };
        acknowledge(&self.registers, errors);
        if errors.contains(GlobalError::EVENT_QUEUE_ABORT) {
            sink(Noted::Lost);
        }
        if errors.contains(GlobalError::SERVICE_FAILURE) && !self.failed.swap(true, Ordering::Relaxed) {
            log::error!(
                "{}: out of service (GERROR.SFM_ERR), all DMA behind it ends in faults; restart the machine",
                self.name()
            );
        }
        Drained::Empty
    }

    pub(super) fn execute(&self, queue: &mut Queue, commands: &[Command]) -> Result<(), Refusal> {
        let before = queue.issued();
        let access = Access {
            registers: &self.registers,
            memory: &self.tables,
            host: self.host,
            errors: &self.errors,
        };
        let result = queue.execute(access, commands);
        self.commands.fetch_add(queue.issued() - before, Ordering::Relaxed);
        result.map_err(|refusal| refusal.within(self.name()))
    }
}

impl<R: Registers, M: DmaMemory> IommuUnit for Unit<R, M> {
    const NAME: &'static str = "smmuv3";
    const INTERRUPT_RANGE: Range<u64> = 0..0;

    type Memory = M;
    type Entries = Stage1Entries;
    type Topology = Arc<Iort>;

    fn pasid_bits(&self) -> u32 {
        self.substream_bits
    }

    fn lacks_dirty_tracking(&self) -> Option<&'static str> {
        (!self.identification.dirty_bits()).then_some("IDR0.HTTU is not 2")
    }

    fn last_domain(&self) -> DomainId {
        self.transit_asid() - 1
    }

    fn take_over(&self) -> Result<(), Refusal> {
        self.bring_up()
    }

    fn claim(&self, stream: u32, device_tlb: Option<DeviceTlb>) -> Result<(), Refusal> {
        let device_tlb = device_tlb.is_some();
        let mut inner = self.inner.lock();
        let Inner { streams, queue, devices, .. } = &mut *inner;
        if devices.contains_key(&stream) {
            return Err(Refusal::new(
                "claim",
                format!("its stream {stream:#x} is claimed already"),
                "name one device of a stream, for one parent only",
            ));
        }
        if device_tlb && !self.identification.ats() {
            return Err(Refusal::new(
                "claim with ATS",
                format!("{} has no ATS support (IDR0.ATS)", self.name()),
                "use the device without ATS",
            ));
        }
        let entry = streams.entry(&self.tables, stream)?;
        let mut contexts = ContextTable::new(&self.tables, self.identification, self.substream_bits)?;
        let untagged = Context { asid: DOORBELL_ASID, root: self.doorbells };
        let written = contexts
            .write_body(&self.tables, UNTAGGED, untagged)
            .and_then(|()| contexts.make_valid(&self.tables, UNTAGGED, untagged));
        if let Err(refusal) = written {
            contexts.destroy(&self.tables);
            return Err(refusal);
        }
        // From here on the entry is visible: on a refusal the device stays claimed and stays blocked.
        let device = devices.entry(stream).or_insert(Device {
            contexts,
            device_tlb,
            attachments: Attachments::default(),
        });
        entry.write_body(&self.tables, device_tlb);
        self.execute(queue, &[Command::ForgetStream { stream }])?;
        entry.make_valid(&self.tables, &device.contexts);
        self.execute(queue, &[Command::ForgetStream { stream }])
    }

    fn attach(&self, stream: u32, tag: Pasid, asid: DomainId, table: Top) -> Result<(), AttachFailed> {
        let context = Context { asid, root: table.root };
        let mut inner = self.inner.lock();
        let Inner { queue, devices, .. } = &mut *inner;
        let device = devices.get_mut(&stream).ok_or_else(not_claimed)?;
        check_tag(device, tag)?;
        let contexts = &mut device.contexts;
        contexts.write_body(&self.tables, tag, context)?;
        device.attachments.begin(tag, asid);
        // That the descriptor is not valid may be cached, at every moment until V is set.
        let forget = [Command::ForgetContext { stream, tag }];
        let seen = self
            .execute(queue, &forget)
            .and_then(|()| contexts.make_valid(&self.tables, tag, context))
            .and_then(|()| self.execute(queue, &forget));
        seen.map_err(|refusal| {
            // It was written before, so it has its place.
            let cleared = contexts.make_invalid(&self.tables, tag);
            device.attachments.failed(tag, cleared.err().unwrap_or(refusal))
        })
    }

    /// A descriptor's ASID and its table are in two words, of which only one can change at a time; and what is cached
    /// under an ASID must be of one table. So it goes by an ASID that nobody else has: to that one, to the other table,
    /// to the other table's ASID.
    fn replace(&self, stream: u32, tag: Pasid, asid: DomainId, table: Top) -> Result<DomainId, AttachFailed> {
        let transit = self.transit_asid();
        let mut inner = self.inner.lock();
        let Inner { queue, devices, in_transit, .. } = &mut *inner;
        let device = devices.get_mut(&stream).ok_or_else(not_claimed)?;
        if *in_transit {
            return Err(Refusal::new(
                format!("PASID {tag}"),
                "another replacement was not confirmed by the IOMMU",
                "end the vdev of that one first",
            )
            .into());
        }
        let before = device.attachments.replace(tag, asid)?;
        *in_transit = true;
        let forget = [Command::ForgetContext { stream, tag }];
        let forget_transit =
            [Command::ForgetContext { stream, tag }, Command::Sync, Command::ForgetTable { asid: transit }];
        // Also of the table before: nobody else may be on it, and then it may go.
        let forget_all = [
            Command::ForgetContext { stream, tag },
            Command::Sync,
            Command::ForgetTable { asid: transit },
            Command::ForgetTable { asid: before },
        ];
        let contexts = &mut device.contexts;
        let on_the_way = Context { asid: transit, root: table.root };
        let replaced = contexts
            .make_valid(&self.tables, tag, on_the_way)
            .and_then(|()| self.execute(queue, &forget))
            .and_then(|()| contexts.set_root(&self.tables, tag, table.root))
            .and_then(|()| self.execute(queue, &forget_transit))
            .and_then(|()| contexts.make_valid(&self.tables, tag, Context { asid, root: table.root }))
            .and_then(|()| self.execute(queue, &forget_all))
            .and_then(|()| {
                let in_device = [Command::ForgetInDevice { stream, tag }];
                if device.device_tlb { self.execute(queue, &in_device) } else { Ok(()) }
            });
        replaced.map_err(|refusal| AttachFailed { refusal, tag_kept: true })?;
        *in_transit = false;
        device.attachments.replaced(tag);
        Ok(before)
    }

    fn detach(&self, stream: u32, tag: Pasid) -> Result<Parted, Refusal> {
        let mut inner = self.inner.lock();
        let Inner { queue, devices, in_transit, .. } = &mut *inner;
        let device = devices.get_mut(&stream).ok_or_else(not_claimed)?;
        let parted = device.attachments.end(tag)?;
        device.contexts.make_invalid(&self.tables, tag)?;
        let mut commands = Vec::with_capacity(7);
        commands.extend([Command::ForgetContext { stream, tag }, Command::Sync]);
        commands.extend(parted.domains().map(|asid| Command::ForgetTable { asid }));
        if parted.before.is_some() {
            commands.push(Command::ForgetTable { asid: self.transit_asid() });
        }
        if device.device_tlb {
            commands.extend([Command::Sync, Command::ForgetInDevice { stream, tag }]);
        }
        self.execute(queue, &commands)?;
        if parted.before.is_some() {
            *in_transit = false;
        }
        device.contexts.zero(&self.tables, tag)?;
        device.attachments.ended(tag);
        Ok(parted)
    }

    fn publish(&self, _asid: DomainId, _start: u64, _len: u64) -> Result<(), Refusal> {
        // Translations that fail are never cached, so a new one is seen at once.
        Ok(())
    }

    fn forget_range(
        &self,
        asid: DomainId,
        start: u64,
        len: u64,
        device_tlbs: impl Iterator<Item = (u32, Pasid)>,
    ) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        let pages = len / PAGE_SIZE;
        let mut commands: Vec<Command> = if pages <= PAGES_ONE_BY_ONE {
            (0..pages)
                .map(|page| Command::ForgetAddress { asid, address: start + page * PAGE_SIZE })
                .collect()
        } else {
            alloc::vec![Command::ForgetTable { asid }]
        };
        // A descriptor that was left on the way may lead here under an ASID that is no table's.
        if inner.in_transit {
            commands.push(Command::ForgetTable { asid: self.transit_asid() });
        }
        let mut devices = device_tlbs.map(|(stream, tag)| Command::ForgetInDevice { stream, tag }).peekable();
        if devices.peek().is_some() {
            commands.push(Command::Sync);
            commands.extend(devices);
        }
        self.execute(&mut inner.queue, &commands)
    }

    fn has_device_tlb(&self, stream: u32) -> bool {
        let inner = self.inner.lock();
        inner.devices.get(&stream).is_some_and(|device| device.device_tlb)
    }

    fn drain_faults(&self, sink: &mut dyn FnMut(Noted)) -> Drained {
        let errors = self.take_errors(sink);
        // Where another processor reads already, the caller comes again.
        let Some(mut events) = self.events.try_lock() else {
            return Drained::Again;
        };
        let requester = |id| self.iort.requester(Stream { unit: self.number, id });
        errors.and(events.drain(&self.registers, &self.tables, &requester, sink))
    }

    fn commands_issued(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = alloc::vec![("unit", self.name())];
        lines.extend(capabilities::describe(self.identification));
        lines.push(("commands", format!("{}", self.commands_issued())));
        if self.failed.load(Ordering::Relaxed) {
            lines.push(("state", String::from("out of service (GERROR.SFM_ERR)")));
        }
        for (stream, device) in &self.inner.lock().devices {
            lines.push(("claimed", format!("stream {stream:#x}: {}", device.attachments.describe())));
        }
        lines
    }
}

/// Refuses a tag that cannot be attached now.
fn check_tag(device: &Device, tag: Pasid) -> Result<(), Refusal> {
    let (why, remedy) = if tag == UNTAGGED {
        ("it stands for untagged DMA, which stays blocked", "use another PASID")
    } else if !device.contexts.holds(tag) {
        ("it is wider than the PASIDs of the IOMMU (IDR1.SSIDSIZE)", "use a smaller PASID")
    } else {
        return device.attachments.check_free(tag);
    };
    Err(Refusal::new(format!("PASID {tag}"), why, remedy))
}
