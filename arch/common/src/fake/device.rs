// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device with an MSI-X entry per vdev, and the vectors of the machine.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};

use pasidon_kernel::base::addr::Requester;
use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::base::id::VmId;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::host::Host;
use pasidon_kernel::vdev::parent::{
    Attached, Bar, DeviceQuiesced, DmaTag, InterruptBinding, Parent, ParentEvent, PciIdentity, Portal,
    QuiesceFailed, Remains, UntranslatedMemory, VdevModel, VdevRegisters, VdevRequest, VdevType,
};
use pasidon_kernel::vm::exit::MsiMessage;

use super::hardware::Fake;
use super::sim::{PCPUS, Sim};
use crate::run::World;
use crate::vectors::{Vectors, candidates};
use crate::vms;

pub const PARENT: &str = "dev0";
pub const TYPE: &str = "trapped";
const TYPES: [VdevType; 1] = [VdevType {
    name: TYPE,
    description: "behind traps",
    direct_portal: false,
    needs_iommu: None,
    instances: ENTRIES,
}];
/// MSI-X entries, and so vdevs at a time.
const ENTRIES: u16 = 40;
/// Vectors of each pCPU.
pub const VECTORS: Range<u32> = 0x30..0x30 + COUNT as u32;
const COUNT: usize = 24;
/// Where messages go; the pCPU is in the bits above the lowest.
const MESSAGES: u64 = 0xfee0_0000;

/// An MSI-X entry that is some vdev's.
struct Entry {
    /// Number of the vdev; no two ever have the same.
    id: u16,
    vm: String,
    message: Option<MsiMessage>,
    held: bool,
    /// An interrupt came while it was held.
    pending: bool,
}

/// The device.
#[derive(Default)]
pub struct Device {
    entries: BTreeMap<u16, Entry>,
    ids: BTreeMap<u16, String>,
    /// When an interrupt was raised that has not come to its guest; `None` where the guest was paused meanwhile, or the
    /// host may have masked it.
    outstanding: BTreeMap<u16, Option<u64>>,
    /// Vdevs whose interrupts the host may have masked.
    masked: BTreeSet<u16>,
}

fn vector_of(message: MsiMessage) -> HostVector {
    HostVector { vector: message.data, cpu: (message.address - MESSAGES) as u32 }
}

impl Device {
    /// The vdev that has that entry, where it is programmed, and its VM.
    pub fn owner(&self, which: usize) -> Option<(u16, &str)> {
        let entry = self.entries.values().nth(which.checked_rem(self.entries.len())?)?;
        entry.message.map(|_| (entry.id, entry.vm.as_str()))
    }

    /// A vdev's interrupt was raised.
    pub fn note(&mut self, id: u16, now: u64) {
        let due = (!self.masked.contains(&id)).then_some(now);
        self.outstanding.entry(id).or_insert(due);
    }

    /// The host is about to mask interrupts of a vdev: from here on nobody says when they are to come.
    pub fn mask(&mut self, id: u16) {
        self.masked.insert(id);
        self.outstanding.entry(id).and_modify(|due| *due = None);
    }

    /// An entry raises its interrupt: where that is to be taken.
    pub fn raise(&mut self, which: usize, now: u64) -> Option<HostVector> {
        let (id, _) = self.owner(which)?;
        self.note(id, now);
        let entry = self.entries.values_mut().find(|entry| entry.id == id)?;
        let message = entry.message?;
        if entry.held {
            entry.pending = true;
            return None;
        }
        Some(vector_of(message))
    }

    /// A guest took the interrupt of a vdev.
    pub fn delivered(&mut self, vm: &str, id: u32, now: u64, late_ns: u64) -> Result<(), String> {
        let id = id as u16;
        let late = self.outstanding.remove(&id).flatten().filter(|raised| now > raised + late_ns);
        match (self.ids.get(&id), late) {
            (Some(owner), None) if owner == vm => Ok(()),
            (Some(owner), Some(raised)) if owner == vm => {
                Err(format!("an interrupt of {vm}'s vdev {id} came after {} ns", now - raised))
            }
            (owner, _) => Err(format!("{vm} took an interrupt of vdev {id}, which is {owner:?}'s")),
        }
    }

    /// A VM does not take interrupts for a while.
    pub fn pause(&mut self, vm: &str) {
        let own =
            self.outstanding.iter_mut().filter(|(id, _)| self.ids.get(id).is_some_and(|owner| owner == vm));
        own.for_each(|(_, raised)| *raised = None);
    }

    /// Interrupts that a VM has not got, but for those that the host keeps pending.
    pub fn owed_to(&self, vm: &str, pending: &BTreeSet<u16>) -> Vec<String> {
        let own = self.entries.values().filter(|entry| {
            entry.vm == vm && self.outstanding.contains_key(&entry.id) && !pending.contains(&entry.id)
        });
        own.map(|entry| format!("an interrupt of {vm}'s vdev {} never came (held: {})", entry.id, entry.held))
            .collect()
    }
}

/// The device as a parent, without an IOMMU.
pub struct FakeParent(pub Arc<Sim>);

impl Parent for FakeParent {
    fn name(&self) -> &str {
        PARENT
    }

    fn requester(&self) -> Requester {
        Requester::new(0, 0, 1, 0)
    }

    fn dma_tag(&self) -> DmaTag {
        DmaTag::Pasid { bits: 20 }
    }

    fn types(&self) -> &[VdevType] {
        &TYPES
    }

    fn available(&self, _type_name: &str) -> u16 {
        ENTRIES - self.0.lock().device.entries.len() as u16
    }

    fn create(&self, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal> {
        let mut state = self.0.lock();
        let device = &mut state.device;
        let number = (1..=ENTRIES).find(|number| !device.entries.contains_key(number));
        let number = number.ok_or_else(|| Refusal::new(PARENT, "all entries are taken", "end a vdev"))?;
        let (id, vm) = (device.ids.len() as u16, request.vm.to_string());
        device.ids.insert(id, vm.clone());
        device.entries.insert(number, Entry { id, vm, message: None, held: false, pending: false });
        Ok(Box::new(Model { sim: self.0.clone(), number, id }))
    }

    fn set_interrupt(&self, number: u16, message: Option<MsiMessage>) {
        let mut state = self.0.lock();
        let device = &mut state.device;
        if let Some(entry) = device.entries.get_mut(&number) {
            (entry.message, entry.held, entry.pending) = (message, false, false);
            device.outstanding.remove(&entry.id);
        }
    }

    fn hold_interrupt(&self, number: u16, hold: bool) -> bool {
        let mut state = self.0.lock();
        let Some(entry) = state.device.entries.get_mut(&number) else { return false };
        entry.held = hold;
        if !hold && core::mem::take(&mut entry.pending) {
            let message = entry.message.expect("pending where there is one");
            state.raise(vector_of(message));
        }
        true
    }

    fn event_interrupt(&self) -> Option<u16> {
        None
    }

    fn interrupt(&self, _sink: &mut dyn FnMut(ParentEvent)) -> Drained {
        Drained::Empty
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

struct Model {
    sim: Arc<Sim>,
    number: u16,
    id: u16,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.sim.lock().device.entries.remove(&self.number);
    }
}

struct Nothing;

impl Remains for Nothing {
    fn read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _raise: &mut dyn FnMut(u16)) {}
}

impl VdevRegisters for Model {
    fn identity(&self) -> PciIdentity {
        PciIdentity {
            vendor: 0x8086,
            // So the board knows whose interrupt it is.
            device: self.id,
            subsystem: (0, 0),
            revision: 0,
            class: 0x08_8000,
            bars: vec![Bar { index: 0, size: 0x1000, prefetchable: true }],
            msix_vectors: 1,
            msix_bar: 0,
            msix_table: 0x800,
            msix_pba: 0xc00,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        Vec::new()
    }

    fn read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _raise: &mut dyn FnMut(u16)) {}

    fn set_bus_master(&mut self, _enabled: bool, _raise: &mut dyn FnMut(u16)) {}

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        Ok(())
    }

    fn remains(&mut self, _raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        Box::new(Nothing)
    }
}

impl VdevModel for Model {
    fn interrupts(&self) -> Vec<InterruptBinding> {
        vec![InterruptBinding { physical: self.number, virtual_vector: 0, for_guest: true }]
    }

    fn attach(&mut self, _attached: Attached) -> Result<(), Refusal> {
        Ok(())
    }

    fn attach_untranslated(&mut self, _memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        Ok(())
    }

    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        Ok(DeviceQuiesced::confirmed_by_device())
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Clock and vectors.
pub struct FakeHost {
    sim: Arc<Sim>,
    world: OnceLock<&'static World<Fake>>,
    vectors: [Mutex<Vectors<COUNT>>; PCPUS as usize],
    given: AtomicU64,
}

impl FakeHost {
    pub fn new(sim: Arc<Sim>) -> Self {
        Self { sim, world: OnceLock::new(), vectors: Default::default(), given: AtomicU64::new(0) }
    }

    pub fn meet(&self, world: &'static World<Fake>) {
        assert!(self.world.set(world).is_ok(), "once");
    }

    fn of(&self, pcpu: u32) -> std::sync::MutexGuard<'_, Vectors<COUNT>> {
        self.vectors[pcpu as usize].lock().expect("a lock")
    }

    fn rounds(&self) -> impl Fn(u32) -> u64 {
        let world = self.world.get();
        move |pcpu| world.map_or(0, |world| world.notes.rounds(pcpu))
    }

    /// pCPUs of which some vector is given out.
    pub fn taken(&self) -> impl Iterator<Item = u32> {
        (0..PCPUS).filter(|pcpu| self.of(*pcpu).used_by(*pcpu) > 0)
    }
}

impl Host for FakeHost {
    fn now_ns(&self) -> u64 {
        self.sim.lock().now
    }

    fn wake_first(&self) {
        vms::kick::<Fake>(0);
    }

    fn allocate_vector(&self, vm: Option<VmId>) -> Option<HostVector> {
        let used = |pcpu| self.of(pcpu).used_by(pcpu);
        let mut order: Vec<u32> = candidates(self.world.get().copied(), vm, PCPUS, used).collect();
        // Every other one where it would not be by itself, so that interrupts come in the turns of others too.
        if !self.given.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            order.reverse();
        }
        order.into_iter().find_map(|pcpu| {
            let taken = self.of(pcpu).take(pcpu, self.rounds());
            let place = taken.map_err(|none| none.hurry(vms::kick::<Fake>)).ok()?;
            Some(HostVector { vector: VECTORS.start + place as u32, cpu: pcpu })
        })
    }

    fn unremapped_message(&self, vector: HostVector) -> Option<MsiMessage> {
        Some(MsiMessage { address: MESSAGES + u64::from(vector.cpu), data: vector.vector })
    }

    fn free_vector(&self, vector: HostVector) {
        let raised_on =
            self.of(vector.cpu).give_back((vector.vector - VECTORS.start) as usize, self.rounds());
        if let Some(pcpu) = raised_on {
            vms::kick::<Fake>(pcpu);
        }
    }
}
