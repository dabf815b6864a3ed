// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parents (physical devices that can be shared) and the models of their slices.
//!
//! **Order.** A slice is born without a tag: [`Parent::create`] reserves a queue and nothing else. It can
//! do DMA only after [`VdevModel::attach`] has given it a PASID, which the lifecycle code calls when
//! the IOMMU's table for that PASID stands; or, on a parent without an IOMMU, after
//! [`VdevModel::attach_untranslated`]. It ends with [`VdevModel::quiesce`], whose proof
//! ([`DeviceQuiesced`]) is what the IOMMU detach and the PASID's return ask for.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::base::addr::{HostPhys, Iova, Requester};
use crate::base::drained::Drained;
use crate::base::refusal::Refusal;
use crate::dma::pasid::Pasid;
use crate::dma::window::Window;
use crate::irq::msi::Posting;
use crate::vm::exit::MsiMessage;

/// A way to slice a parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VdevType {
    /// Name in the configuration: `dsa-dwq`.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// Whether the guest reaches a page of the physical device without an exit.
    pub direct_portal: bool,
    /// What it does that needs an IOMMU, in words that follow "the type"; `None` where it can do without.
    pub needs_iommu: Option<&'static str>,
    /// How many instances an otherwise unused parent offers.
    pub instances: u16,
}

impl VdevType {
    /// Why a type whose portals are mapped into guests needs an IOMMU, always.
    pub const MAPS_A_PAGE: &'static str = "maps a page of the device into the guest";
}

/// What tells the DMA of a parent's slices apart on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaTag {
    /// All slices share the parent's requester ID. Each sends with a PASID of its own, which has a page table of its
    /// own.
    Pasid {
        /// Width of the PASIDs that the device can send, at most [`Pasid::BITS`].
        bits: u8,
    },
    /// Each slice is a PCI function with a requester ID of its own, and would need a page table per requester: what is
    /// tagged with a PASID then is the guest's own business.
    Requester,
}

impl DmaTag {
    /// Width of the PASIDs that a slice may be told to send: 0 where none is its own.
    pub const fn pasid_bits(self) -> u8 {
        match self {
            Self::Pasid { bits } => bits,
            Self::Requester => 0,
        }
    }
}

/// A request for one slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VdevRequest<'a> {
    /// The VM that will own it (for messages).
    pub vm: &'a str,
    /// Name of the type.
    pub type_name: &'a str,
    /// Queue entries wanted; `None` leaves it to the driver.
    pub entries: Option<u16>,
    /// Its part of what it shares with others, at least 1; `None` leaves it to the driver.
    pub weight: Option<u8>,
}

/// What is wanted of a parent that is not up yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Name of the type.
    pub type_name: String,
    /// Queue entries wanted; `None` leaves it to the driver.
    pub entries: Option<u16>,
    /// It is of a VM that may be defined later, so it takes nothing from those that are there.
    pub later: bool,
}

/// What happened on a parent, as read by its own interrupt handler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParentEvent {
    /// The device reported an error. `pasid` names the attachment it belongs to, if one.
    Error {
        /// The attachment's tag.
        pasid: Option<Pasid>,
        /// In words.
        text: String,
    },
    /// The device stopped and needs a reset; every vdev on it is affected.
    Halted(String),
}

/// Proof that no vCPU can reach a portal of any vdev on a parent, for as long as it lives.
///
/// Made by [`crate::system::System`] only, out of a [`PortalsUnmapped`](crate::vdev::PortalsUnmapped) for each vdev on the parent. Not `Clone`.
#[derive(Debug)]
pub struct ParentUnreached(String);

impl ParentUnreached {
    /// The system's word for the parent of that name.
    pub fn confirmed_by_system(parent: &str) -> Self {
        Self(parent.to_string())
    }

    /// Name of the parent.
    pub fn parent(&self) -> &str {
        &self.0
    }
}

/// A physical device that can be shared, with its driver. Methods may be called from any processor.
pub trait Parent: Send + Sync {
    /// Name in the configuration: `dsa0`.
    fn name(&self) -> &str;

    /// How the device identifies itself on the bus.
    fn requester(&self) -> Requester;

    /// What tells its slices apart, so what the IOMMU must be able to tell apart, too.
    fn dma_tag(&self) -> DmaTag;

    /// The ways it can be sliced.
    fn types(&self) -> &[VdevType];

    /// How many more instances of a type could be created now; 0 for an unknown type.
    fn available(&self, type_name: &str) -> u16;

    /// Reserves one slice. Atomic. Dropping the model without a PASID
    /// attached gives the reservation back.
    ///
    /// # Errors
    /// When there is no such type, or no slice that suits; nothing is kept.
    fn create(&self, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal>;

    /// Programs (and unmasks) or clears (and masks) one MSI-X entry of the physical device.
    fn set_interrupt(&self, entry: u16, message: Option<MsiMessage>);

    /// Holds back, or lets through again, the messages of an MSI-X entry that is programmed: the device keeps one
    /// pending meanwhile. Waits for nothing; false, and nothing changed, where that is not possible now.
    fn hold_interrupt(&self, _entry: u16, _hold: bool) -> bool {
        false
    }

    /// The MSI-X entry that carries the device's own events (errors, halt), handled by
    /// [`Parent::interrupt`]; `None` where it has none.
    fn event_interrupt(&self) -> Option<u16>;

    /// Handles the event interrupt: reads and acknowledges causes, reports them, at most so many that a flood
    /// does not hold the caller for long.
    fn interrupt(&self, sink: &mut dyn FnMut(ParentEvent)) -> Drained;

    /// Whether something is under way on the device that nothing announces the end of: somebody is to call
    /// [`Parent::look`], and [`VdevRegisters::device_event`] of the vdevs that it names, every few milliseconds. Takes no
    /// lock.
    fn is_waiting(&self) -> bool {
        false
    }

    /// Looks how far the device is with what it was given, and gives it what comes next. Waits for nothing. Names the
    /// vdevs that are to be told, by their tags; true: all of them are.
    fn look(&self, _concerned: &mut dyn FnMut(Pasid)) -> bool {
        false
    }

    /// Resets the whole device and sets it up again: the way out after a halt, or after a slice that would
    /// not stop. Nobody else touches the device until it returns: the driver keeps itself from it, and
    /// `unreached` stands for the guests. Every slice has stopped then, also where it refuses; tags, interrupts and
    /// reservations stay as they were. The caller announces it to each vdev with
    /// [`VdevRegisters::device_event`], and may then quiesce those again that failed before. May take a second.
    ///
    /// # Errors
    /// When the device does not come back.
    fn recover(&self, _unreached: &ParentUnreached) -> Result<(), Refusal> {
        Err(Refusal::new(
            alloc::format!("parent {}", self.name()),
            "its driver cannot reset it",
            "restart the machine",
        ))
    }

    /// For the monitor: name and value of what is worth knowing (queues, state, firmware).
    fn describe(&self) -> Vec<(&'static str, String)>;
}

/// One base address register of a vdev's PCI function. All are 64-bit memory BARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Index of the lower half: 0, 2 or 4.
    pub index: u8,
    /// Size in bytes, a power of two, at least a page.
    pub size: u64,
    /// Prefetchable.
    pub prefetchable: bool,
}

/// A page-aligned window of a BAR that the guest reaches directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Portal {
    /// BAR index.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u64,
    /// The page on the physical device.
    pub host: HostPhys,
    /// Length, a multiple of the page size.
    pub len: u64,
}

/// How a vdev presents itself on the guest's PCI bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
    /// Revision.
    pub revision: u8,
    /// Class code, 24 bits (base, sub, interface).
    pub class: u32,
    /// Its BARs.
    pub bars: Vec<Bar>,
    /// Number of MSI-X vectors; the table and the PBA lie in `msix_bar`. The PCI function model serves
    /// these windows itself, the vdev model never sees them.
    pub msix_vectors: u16,
    /// BAR of the MSI-X table and PBA.
    pub msix_bar: u8,
    /// Offset of the MSI-X table.
    pub msix_table: u32,
    /// Offset of the pending-bit array.
    pub msix_pba: u32,
}

/// A physical MSI-X entry of the parent and the virtual vector it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptBinding {
    /// MSI-X entry of the physical device.
    pub physical: u16,
    /// MSI-X vector of the vdev.
    pub virtual_vector: u16,
    /// It is the guest's own, so that it may be posted to it. One that is not always comes to
    /// [`VdevRegisters::interrupt`].
    pub for_guest: bool,
}

/// Proof that a slice's queue has stopped: it is disabled, nothing of it is in flight, and what the
/// guest may still write to its portal is discarded by the device.
///
/// Made by parent drivers only, and only when the device has confirmed. Not `Clone`: it is used up by
/// the detach that follows.
#[derive(Debug)]
pub struct DeviceQuiesced(());

impl DeviceQuiesced {
    /// The driver's word that the device confirmed the stop of this slice's queue.
    pub fn confirmed_by_device() -> Self {
        Self(())
    }
}

/// Why a slice would not stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuiesceFailed {
    /// What the device did or did not do, in words.
    pub why: String,
}

/// What a slice whose VM is paused has under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paused {
    /// The device has some of it, or may have: it goes on, and writes to the guest's memory.
    Draining,
    /// Nothing. What was submitted is completed, and the guest's memory says so.
    Drained,
    /// The device has nothing of it. What waits for its turn waits until the VM goes on.
    Held,
}

impl Paused {
    /// The word for people and for `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Held => "held",
        }
    }

    /// For an atomic.
    pub(crate) const fn number(paused: Option<Self>) -> u8 {
        match paused {
            None => 0,
            Some(Self::Draining) => 1,
            Some(Self::Drained) => 2,
            Some(Self::Held) => 3,
        }
    }

    /// The way back.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Draining),
            2 => Some(Self::Drained),
            3 => Some(Self::Held),
            _ => None,
        }
    }
}

/// The guest's side of a slice: what its PCI function does behind its configuration space. The guest's bus holds no
/// more of a slice than this.
///
/// Called with the vdev's lock held, one call at a time. `raise` marks a virtual MSI-X vector of the
/// vdev pending; the PCI function model delivers it or keeps it pending.
pub trait VdevRegisters: Send {
    /// Constant for the life of the model.
    fn identity(&self) -> PciIdentity;

    /// Windows the guest reaches directly; constant for the life of the model.
    fn portals(&self) -> Vec<Portal>;

    /// A read of the BAR outside of portals and MSI-X structures.
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64;

    /// A write, likewise.
    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16));

    /// A store of 64 bytes at once (MOVDIR64B) to a BAR outside of portals and MSI-X structures; `offset` is a multiple
    /// of 64. Nothing where the device takes none.
    fn submit(&mut self, _bar: u8, _offset: u64, _descriptor: &[u8; 64], _raise: &mut dyn FnMut(u16)) {}

    /// The physical interrupt behind `vector` came and is not posted: what the guest gets of it.
    fn interrupt(&mut self, vector: u16, raise: &mut dyn FnMut(u16)) {
        raise(vector);
    }

    /// The guest changed bus mastering of its function.
    fn set_bus_master(&mut self, enabled: bool, raise: &mut dyn FnMut(u16));

    /// The guest (or a VM reset) resets the function: queue stopped, registers back to their start. The
    /// tag stays.
    ///
    /// # Errors
    /// When the queue does not stop in time.
    fn reset(&mut self) -> Result<(), QuiesceFailed>;

    /// Whether the model waits for the device, so that [`Parent::is_waiting`] is true.
    fn is_waiting(&self) -> bool {
        false
    }

    /// Called after [`Parent::interrupt`] reported an event that names this vdev's PASID, or a halt of the
    /// device, and while [`Parent::is_waiting`]: the model shows the guest its part of it. Waits for nothing. Not
    /// called from the interrupt itself.
    fn device_event(&mut self, _raise: &mut dyn FnMut(u16)) {}

    /// The guest has programmed its MSI-X entry `vector` so that the physical interrupt behind it may be posted to it, or
    /// not. Nothing happens where there is none, or it cannot be posted.
    fn route_interrupt(&mut self, _vector: u16, _to: Option<&Posting>) {}

    /// What the guest finds in the BARs from now on instead of the slice: the vdev is about to end, or did not stop.
    /// A driver that waits for an interrupt of the slice gets it here.
    fn remains(&mut self, raise: &mut dyn FnMut(u16)) -> Box<dyn Remains>;
}

/// Guest memory at the addresses at which a slice's device sees it, for a driver that completes on its behalf. May be
/// called from any processor; allocates nothing.
pub trait SliceMemory: Send + Sync {
    /// Writes a number where the device would, at a multiple of 8, in one store. False, with nothing written, where it
    /// would meet no memory.
    fn write_u64(&self, iova: Iova, value: u64) -> bool;

    /// Whether so many bytes there are memory, in one mapping of the address space.
    fn covers(&self, iova: Iova, len: u64) -> bool;

    /// The first address that the guest may not name to the device ([`crate::dma::window`]).
    fn limit(&self) -> Iova;
}

/// The same, for a device that no IOMMU stands in front of: what it is given are host addresses. The RAM behind an address
/// stays what it is, and its owner's, for as long as this is held.
pub trait UntranslatedMemory: SliceMemory {
    /// Where the device finds what the guest has at that address, and how many bytes follow there in one piece; `None`
    /// where it is no RAM.
    fn run(&self, address: Iova) -> Option<(HostPhys, u64)>;
}

/// What a slice gets with its tag.
#[derive(Clone)]
pub struct Attached {
    /// The tag.
    pub pasid: Pasid,
    /// The memory behind it.
    pub memory: Arc<dyn SliceMemory>,
    /// Where its device finds [`VdevModel::window`].
    pub window: Option<Window>,
}

/// The model of one slice, joined to its queue of the physical device: its owner's side, which begins and ends it.
pub trait VdevModel: VdevRegisters {
    /// The physical interrupts of this slice; constant for the life of the model.
    fn interrupts(&self) -> Vec<InterruptBinding>;

    /// A page of the driver's that this slice's device writes to. The driver keeps it for as long as the model lives,
    /// which is until the device cannot be led to it any more. Constant for the life of the model.
    fn window(&self) -> Option<HostPhys> {
        None
    }

    /// Programs the queue's tag. Called once, after the IOMMU attached the table.
    ///
    /// # Errors
    /// When the device does not take it.
    fn attach(&mut self, attached: Attached) -> Result<(), Refusal>;

    /// The same without an IOMMU: there is no tag, and the driver puts host addresses into what it submits, each of them
    /// proven to be the guest's. Called once, instead of [`VdevModel::attach`], and only for types that need no IOMMU.
    ///
    /// # Errors
    /// When the driver cannot.
    fn attach_untranslated(&mut self, memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal>;

    /// Stops the queue for good within the driver's deadline.
    ///
    /// # Errors
    /// When it does not stop in time.
    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed>;

    /// [`VdevModel::quiesce`] without waiting: what has not stopped by now can be asked again. What was begun
    /// goes on meanwhile.
    ///
    /// # Errors
    /// When it has not stopped by now.
    fn try_quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        self.quiesce()
    }

    /// The VM is paused: its vCPUs stand still, and submit nothing until [`VdevModel::resume`] was granted. From here on
    /// nothing more is sent on its behalf, and the model finds out when the device has nothing of it any more. Waits for
    /// nothing; [`VdevRegisters::device_event`] goes on with it, and is to be called while [`VdevModel::paused`] says
    /// that it is draining. May come again. Nothing happens where the driver can neither drain nor hold: then what was
    /// submitted goes on.
    fn pause(&mut self) {}

    /// What it has under way while it is paused; `None` while it is not, and where the driver can do neither.
    fn paused(&self) -> Option<Paused> {
        None
    }

    /// The VM is about to go on: what was held is sent again, in its order. Waits for nothing.
    ///
    /// # Errors
    /// When the device is at something during which the guest must not submit; nothing has changed, and it can be asked
    /// again.
    fn resume(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// For the monitor: name and value of what is worth knowing (queue, state, submissions).
    fn describe(&self) -> Vec<(&'static str, String)>;
}

/// The registers of a vdev that has no slice any more. They reach no device. A guest's driver must come to an end
/// with them: what it polls for says "failed" or "done", never "not yet", which all ones would say.
pub trait Remains: Send {
    /// As [`VdevRegisters::read`].
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64;

    /// As [`VdevRegisters::write`].
    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16));
}
