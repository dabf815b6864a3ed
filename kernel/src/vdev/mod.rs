// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual devices: one slice of a parent, owned by one VM.
//!
//! **Principle.** Creation joins four things that belong to different owners: a slice of the parent, a
//! PASID with its table, interrupts, and the tag in the device. It gives all or leaves no trace. The end
//! is the same way back, in this order: portals unmapped → queue stopped → interrupts masked
//! and gone → tag detached → PASID returned → slice returned. What does not confirm is retired.
//!
//! **Invariants.** The device is given a tag only when the table behind it stands. A type that maps a page
//! of the device into the guest never exists without an IOMMU.

pub(crate) mod gate;
pub mod interrupt;
mod memory;
pub mod model;
pub mod parent;
pub mod retired;
pub mod turns;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::base::addr::Requester;
use crate::base::id::{IoasId, VdevId, VmId};
use crate::base::refusal::Refusal;
use crate::dma::address_space::AddressSpace;
use crate::dma::attachment::{Attachment, Quiesced, RetiredAttachment};
use crate::dma::ioas::IoAddressSpace;
use crate::dma::iommu::Iommu;
use crate::dma::pasid::{LeaseRecord, Pasid, PasidNamespaces, PasidQuota};
use crate::irq::host::Host;
use crate::irq::msi::MsiController;
use crate::irq::{Route, RouteTable};
use crate::memory::ram::GuestRam;
use crate::monitor::info::{Detail, InterruptInfo, PasidInfo, VdevInfo};
use crate::vdev::memory::{PresentSpace, SpaceMemory, WholeMemory};
use crate::vdev::parent::{
    Attached, DeviceQuiesced, Parent, Paused, QuiesceFailed, VdevModel, VdevRegisters, VdevRequest, VdevType,
};
use crate::vdev::retired::{Retired, Retirement, StuckSlice};
use gate::{Came, Gate};
use interrupt::{Interrupt, Interrupts};
use model::SharedModel;

/// A vdev as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdevSpec {
    /// Name of the parent.
    pub parent: String,
    /// Name of the type.
    pub type_name: String,
    /// Queue entries; `None` leaves it to the driver.
    pub entries: Option<u16>,
    /// Its part of what it shares with others; `None` leaves it to the driver.
    pub weight: Option<u8>,
    /// The I/O address space it is created on, unless another is named.
    pub space: AddressSpace,
}

/// Proof that no vCPU can reach any portal of a vdev.
///
/// Made by architecture code only, which has removed the pages from stage 2 and made every processor
/// forget them. Not `Clone`.
#[derive(Debug)]
pub struct PortalsUnmapped(VdevId);

impl PortalsUnmapped {
    /// The architecture's word for one vdev. A vdev whose portals were never mapped counts.
    pub fn confirmed_by_arch(vdev: VdevId) -> Self {
        Self(vdev)
    }

    /// The vdev.
    pub fn vdev(&self) -> VdevId {
        self.0
    }
}

/// What creating and ending vdevs works with.
pub(crate) struct Services {
    pub(crate) host: &'static dyn Host,
    pub(crate) iommu: Option<&'static dyn Iommu>,
    pub(crate) msi: Option<&'static dyn MsiController>,
    pub(crate) pasids: Mutex<PasidNamespaces>,
    pub(crate) routes: RouteTable,
}

/// What a slice can reach.
#[derive(Debug)]
enum Reach {
    /// What the address space maps.
    Translated(Attachment),
    /// Whatever its driver lets it, without an IOMMU behind it.
    Untranslated(Arc<GuestRam>),
}

/// The address space a vdev is created on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Space<'a> {
    Translated(&'a Arc<IoAddressSpace>),
    Untranslated,
}

/// The VM a vdev is created for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) vm: VmId,
    pub(crate) name: &'a str,
    pub(crate) quota: &'a PasidQuota,
    pub(crate) ram: &'a Arc<GuestRam>,
}

/// A vdev was not created.
#[derive(Debug)]
pub(crate) struct CreateFailed {
    pub(crate) refusal: Refusal,
    /// What the attempt cost, where the way back failed too.
    pub(crate) retired: Vec<Retirement>,
}

impl From<Refusal> for CreateFailed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, retired: Vec::new() }
    }
}

/// One vdev. What the guest's bus needs of it is [`Vdev::guest_side`].
pub struct Vdev {
    id: VdevId,
    vm: VmId,
    vm_name: String,
    parent: &'static dyn Parent,
    type_name: String,
    /// Why its isolation is weaker than it should be, for the monitor.
    taints: Vec<String>,
    model: Arc<SharedModel>,
    /// Kept after the end, for messages.
    lease: Option<LeaseRecord>,
    /// Likewise.
    space: Option<PresentSpace>,
    faults: AtomicU64,
    gate: Gate,
    interrupts: Arc<Interrupts>,
    /// Its guest was asked to let go of it.
    leaving: AtomicBool,
    /// `None` after the end.
    live: Mutex<Option<Reach>>,
}

/// `vm beta: vdev dsa0/dsa-dwq`.
pub(crate) fn title(vm: &str, parent: &str, type_name: &str) -> String {
    format!("vm {vm}: vdev {parent}/{type_name}")
}

/// Whether a type may be used on a parent, with or without an IOMMU (promise 8 of `docs/src/security.md`).
pub(crate) fn check_type<'a>(
    parent: &'a dyn Parent,
    type_name: &str,
    translated: bool,
) -> Result<&'a VdevType, Refusal> {
    let types = parent.types();
    let names = |wanted: &dyn Fn(&VdevType) -> bool| -> Vec<&str> {
        types.iter().filter(|t| wanted(t)).map(|t| t.name).collect()
    };
    let Some(found) = types.iter().find(|t| t.name == type_name) else {
        return Err(Refusal::new(
            "",
            format!("{} has no such type", parent.name()),
            format!("use one of: {}", names(&|_| true).join(", ")),
        ));
    };
    if let (Some(why), false) = (found.needs_iommu, translated) {
        let others = names(&|t| t.needs_iommu.is_none());
        return Err(Refusal::new(
            "",
            format!("the type {why}, which needs an IOMMU, and {} has iommu = \"off\"", parent.name()),
            if others.is_empty() {
                "remove iommu = \"off\"; no type of the parent can do without".to_string()
            } else {
                format!("remove iommu = \"off\", or use type {}", others.join(" or "))
            },
        ));
    }
    Ok(found)
}

impl Vdev {
    /// Creates a vdev: slice, PASID and table, interrupts, tag; or nothing.
    pub(crate) fn create(
        services: &Services,
        id: VdevId,
        owner: Owner<'_>,
        parent: &'static dyn Parent,
        spec: &VdevSpec,
        space: Space<'_>,
        taints: Vec<String>,
    ) -> Result<Self, CreateFailed> {
        let what = title(owner.name, parent.name(), &spec.type_name);
        let within = |refusal: Refusal| refusal.within(&what);
        let translated = matches!(space, Space::Translated(_));
        check_type(parent, &spec.type_name, translated).map_err(within)?;
        let model = parent.create(&VdevRequest {
            vm: owner.name,
            type_name: &spec.type_name,
            entries: spec.entries,
            weight: spec.weight,
        })?;

        let reach = match space {
            Space::Untranslated => Reach::Untranslated(owner.ram.clone()),
            Space::Translated(ioas) => {
                // Without a tag, dropping the model gives the slice back.
                let (device, bits) = (parent.requester(), parent.dma_tag().pasid_bits());
                let now = services.host.now_ns();
                let lease = services.pasids.lock().lease(device, bits, owner.quota, now).map_err(within)?;
                match Attachment::attach(parent.requester(), id, lease, ioas) {
                    Ok(attachment) => Reach::Translated(attachment),
                    Err(failed) => {
                        let ended = failed.lease.map_err(|attachment| *attachment);
                        return Err(CreateFailed {
                            refusal: within(failed.refusal),
                            retired: settle(services, owner.name, parent, ended, None).into_iter().collect(),
                        });
                    }
                }
            }
        };
        let (lease, space) = match &reach {
            Reach::Translated(attachment) => {
                (Some(attachment.lease()), Some(Arc::new(Mutex::new(attachment.ioas().clone()))))
            }
            Reach::Untranslated(_) => (None, None),
        };
        let vdev = Self {
            id,
            vm: owner.vm,
            vm_name: owner.name.to_string(),
            parent,
            type_name: spec.type_name.clone(),
            taints,
            gate: Gate::new(model.interrupts().iter().map(|binding| binding.physical).collect()),
            model: SharedModel::new(model),
            lease,
            space,
            faults: AtomicU64::new(0),
            interrupts: Arc::new(Interrupts::new(services, parent)),
            leaving: AtomicBool::new(false),
            live: Mutex::new(None),
        };
        let mut reach = reach;
        match vdev.connect(services, &mut reach, owner.ram) {
            Ok(()) => {
                *vdev.live.lock() = Some(reach);
                Ok(vdev)
            }
            Err(refusal) => {
                Err(CreateFailed { refusal: within(refusal), retired: vdev.dismantle(services, reach) })
            }
        }
    }

    /// The last steps of creation: interrupts, the page that the driver shares with the slice, then the tag.
    fn connect(&self, services: &Services, reach: &mut Reach, ram: &Arc<GuestRam>) -> Result<(), Refusal> {
        for binding in self.model.interrupts() {
            let route = Route::Vdev { vm: self.vm, vdev: self.id, vector: binding.virtual_vector };
            let interrupt =
                Interrupt::connect(services, self.parent, self.lease.is_some(), binding.physical, route)?;
            self.interrupts.add(interrupt, binding.for_guest);
        }
        let ram_view = services.host.guest_memory(ram);
        let (Reach::Translated(attachment), Some(space)) = (reach, &self.space) else {
            let memory = Arc::new(WholeMemory { layout: ram.clone(), ram: ram_view });
            return self.model.with(|model| model.attach_untranslated(memory)).unwrap_or(Ok(()));
        };
        let page = self.model.with(|model| model.window()).flatten();
        let window = page.map(|page| attachment.add_window(page)).transpose()?;
        let memory = SpaceMemory { space: space.clone(), ram: ram_view };
        let attached = Attached { pasid: attachment.pasid(), memory: Arc::new(memory), window };
        self.model.with(|model| model.attach(attached)).unwrap_or(Ok(()))
    }

    /// Ends the vdev. Returns what it cost: empty where everything was confirmed and given back.
    ///
    /// Refused, with nothing changed, where the proof is for another vdev or the vdev has ended.
    pub(crate) fn end(
        &self,
        services: &Services,
        unmapped: PortalsUnmapped,
    ) -> Result<Vec<Retirement>, Refusal> {
        let refuse = |why: &str| {
            Refusal::new(
                title(&self.vm_name, self.parent.name(), &self.type_name),
                why,
                "end each vdev once, after its own portals are unmapped",
            )
        };
        if unmapped.0 != self.id {
            return Err(refuse("its portals may still be mapped"));
        }
        let reach = self.live.lock().take().ok_or_else(|| refuse("it has ended already"))?;
        Ok(self.dismantle(services, reach))
    }

    /// From a stopped queue to a returned slice.
    fn dismantle(&self, services: &Services, reach: Reach) -> Vec<Retirement> {
        let mut retired = Vec::new();
        let mut keep = |why: String, what: Retired| {
            let now = services.host.now_ns();
            retired.push(Retirement::new(self.vm_name.clone(), why, what, now));
        };
        let parent = || self.parent.name().to_string();
        let (stopped, model) = stop(self.model.take());
        self.gate.end(self.parent);
        for interrupt in self.interrupts.take().into_iter().rev() {
            if let Err((lost, refusal)) = interrupt.disconnect(services, self.parent) {
                keep(refusal.to_string(), Retired::Vector(lost));
            }
        }
        match (reach, stopped) {
            (Reach::Translated(attachment), Ok(proof)) => {
                let ended = attachment.end(proof);
                retired.extend(settle(services, &self.vm_name, self.parent, ended, model));
            }
            (Reach::Translated(attachment), Err(failed)) => keep(
                failed.why.clone(),
                Retired::Attachment {
                    parent: parent(),
                    attachment: attachment.retire(failed.why, false),
                    slice: model.map(StuckSlice),
                },
            ),
            (Reach::Untranslated(_), Ok(_)) => {}
            (Reach::Untranslated(ram), Err(failed)) => keep(
                failed.why,
                Retired::Untranslated { parent: parent(), vdev: self.id, slice: model.map(StuckSlice), ram },
            ),
        }
        // A slice that stopped has gone back to its parent by now.
        retired
    }

    /// Its number.
    pub fn id(&self) -> VdevId {
        self.id
    }

    /// The VM that owns it.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// That VM's name.
    pub fn vm_name(&self) -> &str {
        &self.vm_name
    }

    /// Name of its parent.
    pub fn parent(&self) -> &str {
        self.parent.name()
    }

    /// The physical device.
    pub fn requester(&self) -> Requester {
        self.parent.requester()
    }

    /// Name of its type.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// Its tag; `None` where the parent is used without an IOMMU.
    pub fn pasid(&self) -> Option<Pasid> {
        self.lease.map(|lease| lease.pasid)
    }

    /// The I/O address space behind it; `None` where the parent is used without an IOMMU.
    pub fn ioas(&self) -> Option<IoasId> {
        Some(self.space()?.id())
    }

    /// Likewise, itself.
    pub(crate) fn space(&self) -> Option<Arc<IoAddressSpace>> {
        Some(self.space.as_ref()?.lock().clone())
    }

    /// Puts another I/O address space of its VM behind it ([`Attachment::replace`]), while it runs.
    ///
    /// # Errors
    /// As there; when it has ended, or is used without an IOMMU.
    pub(crate) fn replace_space(&self, to: &Arc<IoAddressSpace>) -> Result<(), Refusal> {
        let within =
            |refusal: Refusal| refusal.within(title(&self.vm_name, self.parent.name(), &self.type_name));
        let refuse = |why: &str, remedy: &str| Err(within(Refusal::new("", why, remedy)));
        let mut live = self.live.lock();
        let Some(reach) = live.as_mut() else {
            return refuse("it has ended already", "create another");
        };
        let (Reach::Translated(attachment), Some(space)) = (reach, &self.space) else {
            return refuse("there is no IOMMU in front of it", "use a parent with an IOMMU");
        };
        let replaced = attachment.replace(to);
        // Also where that was not confirmed: it is the one that it is led to.
        *space.lock() = attachment.ioas().clone();
        replaced.map_err(within)
    }

    /// Its model.
    pub fn model(&self) -> &Arc<SharedModel> {
        &self.model
    }

    /// What to put on the guest's bus.
    pub fn guest_side(&self) -> Box<dyn VdevRegisters> {
        self.model.guest_side_of(&self.interrupts)
    }

    /// Its VM is paused ([`VdevModel::pause`]).
    pub(crate) fn pause(&self) {
        self.model.with(|model| model.pause());
    }

    /// Whether the device may have something of it although its VM is paused, and nobody is to say so yet.
    pub(crate) fn is_draining(&self) -> bool {
        self.model.paused() == Some(Paused::Draining)
    }

    /// Its VM is about to go on ([`VdevModel::resume`]).
    pub(crate) fn resume(&self) -> Result<(), String> {
        self.model.with(|model| model.resume()).unwrap_or(Ok(()))
    }

    /// An interrupt came in another VM's turn of that number, and took that time.
    pub(crate) fn came_away(&self, turn: u64, time_ns: u64) -> Came {
        self.gate.came(self.parent, turn, time_ns)
    }

    /// Lets interrupts come that are held back. Whether all do.
    pub(crate) fn open_interrupts(&self) -> bool {
        self.gate.open(self.parent)
    }

    /// Keeps an interrupt of its own from being posted to its guest, or no longer ([`Interrupts::keep`]).
    pub(crate) fn keep_interrupt(&self, vector: u16, keep: bool) -> Result<(), Refusal> {
        self.interrupts.keep(vector, keep)
    }

    /// Its guest was asked to let go of it.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Its PASID, for the monitor; `None` where the parent is used without an IOMMU.
    pub(crate) fn pasid_info(&self) -> Option<PasidInfo> {
        let lease = self.lease?;
        Some(PasidInfo {
            pasid: lease.pasid.value(),
            state: "attached".into(),
            since_ns: lease.since_ns,
            used_before: lease.used_before,
            vm: self.vm_name.clone(),
            parent: self.parent.name().to_string(),
            vdev: self.id.0,
            ioas: self.ioas().map(|id| id.0),
            reason: None,
        })
    }

    /// For the monitor. Waits for no device.
    pub(crate) fn info(&self, routes: &RouteTable) -> VdevInfo {
        let interrupt = |interrupt: &Interrupt| {
            let vector = interrupt.route.vector();
            InterruptInfo {
                entry: interrupt.entry,
                virtual_vector: interrupt.virtual_vector().unwrap_or(0),
                host_vector: vector.vector,
                cpu: vector.cpu,
                posted_as: interrupt.posted_as,
                came: routes.delivered(&interrupt.route),
            }
        };
        VdevInfo {
            id: self.id.0,
            vm: self.vm_name.clone(),
            parent: self.parent.name().to_string(),
            type_name: self.type_name.clone(),
            taints: self.taints.clone(),
            state: if self.is_leaving() { "leaving" } else { "attached" }.into(),
            work: self.model.paused().map_or("running", Paused::name).into(),
            pasid: self.pasid().map(Pasid::value),
            ioas: self.ioas().map(|id| id.0),
            interrupts: self.interrupts.describe(interrupt),
            away: self.gate.away.info(),
            fault_records: self.faults(),
            details: details(self.model.describe()),
        }
    }
}

impl fmt::Debug for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vdev")
            .field("id", &self.id)
            .field("vm", &self.vm)
            .field("parent", &self.parent.name())
            .field("type_name", &self.type_name)
            .field("pasid", &self.pasid())
            .finish_non_exhaustive()
    }
}

/// An attachment has ended: its PASID goes back, or it is retired. A slice whose driver shares a page with it goes back
/// to its parent only when the device cannot be led there any more.
fn settle(
    services: &Services,
    vm: &str,
    parent: &dyn Parent,
    ended: Result<Quiesced, RetiredAttachment>,
    model: Option<Box<dyn VdevModel>>,
) -> Option<Retirement> {
    match ended {
        Ok(quiet) => {
            services.pasids.lock().give_back(parent.requester(), quiet);
            None
        }
        Err(attachment) => {
            let slice = model.filter(|_| attachment.has_window()).map(StuckSlice);
            Some(Retirement::new(
                vm.to_string(),
                attachment.why.clone(),
                Retired::Attachment { parent: parent.name().to_string(), attachment, slice },
                services.host.now_ns(),
            ))
        }
    }
}

/// Stops a model for good. One that is not there cannot have been stopped.
fn stop(
    model: Option<Box<dyn VdevModel>>,
) -> (Result<DeviceQuiesced, QuiesceFailed>, Option<Box<dyn VdevModel>>) {
    match model {
        Some(mut model) => (model.quiesce(), Some(model)),
        None => (Err(QuiesceFailed { why: "its model is gone".to_string() }), None),
    }
}

pub(crate) fn details(lines: Vec<(&'static str, String)>) -> Vec<Detail> {
    lines.into_iter().map(|(name, value)| Detail { name: name.to_string(), value }).collect()
}
