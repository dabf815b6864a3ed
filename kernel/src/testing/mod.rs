// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine for tests: parent, IOMMU, processor and memory that keep the truth about the hardware and
//! can be told to fail.
//!
//! **Principle.** The mocks do not believe the code under test. Each checks what the contract of its trait
//! asks of the caller, at the moment of the call, and notes a violation; [`TestMachine::check`] compares the
//! whole with what the system says about itself.

mod device;
mod iommu;
pub mod lines;
mod truth;
mod vm_host;

use std::collections::BTreeSet;

pub use device::{PARENT, REQUESTER, TRAPPED, TestParent};
pub use truth::{Fail, Step};

use crate::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE, Requester};
use crate::dma::address_space::AddressSpace;
use crate::dma::iommu::Iommu;
use crate::dma::pasid::{NamespaceScope, Pasid};
use crate::dma::window;
use crate::irq::msi::MsiController;
use crate::irq::{HostVector, Route};
use crate::memory::frames::Frames;
use crate::memory::ram::RamRange;
use crate::system::{ParentOptions, System, SystemParts};
use crate::vdev::VdevSpec;
use crate::vdev::retired::{Retired, Retirement};
use crate::vm::{BootSpec, VmSpec};
pub use truth::{SharedTruth, Truth};

/// Processors of the machine.
pub const CPUS: [u32; 2] = [0, 8];
/// Vectors that each of them has for devices.
pub const VECTORS: core::ops::Range<u32> = 0x30..0x36;

/// Everything that lives as long as the hypervisor. Leaked, as there.
pub struct TestMachine {
    pub truth: &'static SharedTruth,
    pub system: System,
    /// Host addresses of all frames.
    memory: core::ops::Range<u64>,
}

/// How a machine differs from the ordinary one.
#[derive(Clone, Copy)]
pub struct Options {
    pub iommu: bool,
    pub parent: ParentOptions,
    /// The parent's slices have requester IDs of their own.
    pub tagged_by_requester: bool,
    /// The IOMMU does not stand in front of the parent.
    pub bypassed: bool,
    pub frames: u64,
    pub last_pasid: u32,
    pub queues: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            iommu: true,
            parent: ParentOptions { iommu: true, unsafe_portals: false },
            tagged_by_requester: false,
            bypassed: false,
            frames: 16,
            last_pasid: 6,
            queues: 4,
        }
    }
}

impl TestMachine {
    pub fn new() -> Self {
        let (machine, added) = Self::with(Options::default());
        added.unwrap();
        machine
    }

    pub fn with(options: Options) -> (Self, Result<(), crate::base::refusal::Refusal>) {
        let mut machine = Self::without_parent(options);
        let added = machine.system.add_parent(machine.parent(), options.parent);
        (machine, added)
    }

    /// A machine whose parent is not in use.
    pub fn without_parent(options: Options) -> Self {
        let truth: &'static SharedTruth = Box::leak(Box::new(SharedTruth::new(options.queues)));
        truth.lock().tagged_by_requester = options.tagged_by_requester;
        truth.lock().bypassed = options.bypassed;
        let start = 64 * LARGE_PAGE_SIZE;
        let memory = start..start + options.frames * LARGE_PAGE_SIZE;
        let frames: &'static Frames =
            Box::leak(Box::new(Frames::new([(HostPhys(memory.start), memory.end - memory.start)])));
        let system = System::new(SystemParts {
            host: truth,
            iommu: options.iommu.then_some(truth as &'static dyn Iommu),
            msi: options.iommu.then_some(truth as &'static dyn MsiController),
            frames,
            cpus: CPUS.to_vec(),
            vectors: VECTORS,
            last_pasid: Pasid::new(options.last_pasid),
            pasid_scope: NamespaceScope::Host,
        })
        .unwrap();
        Self { truth, system, memory }
    }

    /// The driver of its parent.
    pub fn parent(&self) -> &'static TestParent {
        Box::leak(Box::new(TestParent(self.truth)))
    }

    /// What was noted against the code under test, and every way in which truth and system differ.
    pub fn check(&self) -> Vec<String> {
        let truth = self.truth.lock();
        let mut wrong = truth.violations.clone();
        let mut expect = |holds: bool, what: &dyn Fn() -> String| {
            if !holds {
                wrong.push(what());
            }
        };
        let vms = self.system.vms();
        let vdevs: Vec<_> = vms.iter().flat_map(|vm| vm.vdevs()).collect();

        // Invariant 1: a tag leads to the RAM of its own VM and nowhere else.
        let mut accounted: BTreeSet<(Requester, Pasid)> = BTreeSet::new();
        for vm in &vms {
            let ram: Vec<(u64, u64)> = vm
                .ram()
                .iter()
                .flat_map(|ram| ram.segments().to_vec())
                .map(|segment| (segment.host.0, segment.len))
                .collect();
            for vdev in vm.vdevs() {
                let Some(pasid) = vdev.pasid() else {
                    let mut queues = truth.queues.iter().filter(|queue| queue.untranslated);
                    expect(queues.any(|queue| queue.owner.as_deref() == Some(vm.name())), &|| {
                        format!("{vdev:?} has no queue without an IOMMU")
                    });
                    continue;
                };
                let tag = (vdev.requester(), pasid);
                expect(accounted.insert(tag), &|| format!("{pasid} is of two vdevs"));
                let table = truth.attached.get(&tag).and_then(|table| truth.tables.get(table));
                expect(table.is_some(), &|| format!("{pasid} of {vdev:?} is not attached"));
                for (iova, (host, len)) in table.into_iter().flatten() {
                    let window =
                        *iova >= window::first(39).0 && truth.owner_of_window(*host) == Some(vm.name());
                    let own = window
                        || ram.iter().any(|(start, bytes)| start <= host && host + len <= start + bytes);
                    expect(own, &|| format!("{pasid} of {vdev:?} maps foreign {host:#x}"));
                }
                let queues = truth.queues.iter().filter(|queue| queue.tag == Some(pasid));
                expect(queues.count() == 1, &|| format!("{pasid} is not in one queue"));
            }
        }
        // Invariants 1 and 4: what is attached besides is retired, and its memory held.
        for retirement in self.system.retired().iter() {
            match &retirement.what {
                Retired::Attachment { attachment, .. } => {
                    let tag = (attachment.requester, attachment.pasid);
                    expect(accounted.insert(tag), &|| format!("retired {tag:?} is in use"));
                }
                Retired::Memory { ram, .. } => {
                    for segment in ram.segments() {
                        let used = vms.iter().filter_map(|vm| vm.ram()).any(|other| {
                            other.segments().iter().any(|s| {
                                s.host.0 < segment.host.0 + segment.len && segment.host.0 < s.host.0 + s.len
                            })
                        });
                        expect(!used, &|| format!("held {segment:?} is used again"));
                    }
                }
                _ => {}
            }
        }
        for tag in truth.attached.keys() {
            expect(accounted.contains(tag), &|| format!("{tag:?} is attached for nobody"));
        }
        // Invariant 2: portals only of queues of the VM itself.
        for ((vm, id), queue) in &truth.portals {
            let own = vdevs.iter().any(|vdev| vdev.id() == *id && vdev.vm() == *vm);
            expect(own, &|| format!("a portal of vdev {id} is mapped in VM {vm}"));
            let reserved = truth.queues[*queue].owner.is_some();
            expect(reserved, &|| format!("queue {queue} has a portal and no owner"));
        }
        // Invariant 3: as many queues as vdevs, each with its interrupts.
        let lost = self
            .system
            .retired()
            .iter()
            .filter(|retirement| matches!(retirement.what, Retired::Vector(_)))
            .count();
        let reserved = truth.queues.iter().filter(|queue| queue.owner.is_some() && !queue.retired);
        let reserved = reserved.count();
        // A slice that has stopped is kept for as long as a device may be led to the page that is shared with it.
        let kept = |retirement: &&Retirement| match &retirement.what {
            Retired::Attachment { slice: Some(slice), .. } => {
                let queue: usize = slice.0.describe()[0].1.parse().unwrap();
                !truth.queues[queue].retired
            }
            _ => false,
        };
        let kept = self.system.retired().iter().filter(kept).count();
        expect(reserved == vdevs.len() + kept, &|| {
            format!("{reserved} queues are reserved for {} vdevs, {kept} kept", vdevs.len())
        });
        let routed =
            truth.vectors.iter().filter(|vector| self.system.routes().peek(**vector).is_some()).count();
        expect(routed + lost == truth.vectors.len(), &|| {
            format!("{} vectors, {routed} routed, {lost} lost", truth.vectors.len())
        });
        let wanted: usize = vdevs.iter().map(|vdev| vdev.model().interrupts().len()).sum();
        let events =
            |vector: &&HostVector| matches!(self.system.routes().peek(**vector), Some(Route::ParentEvent(_)));
        let events = truth.vectors.iter().filter(events).count();
        expect(events <= 1 && (events == 1 || !truth.claimed.contains(&REQUESTER)), &|| {
            format!("{events} event interrupts")
        });
        expect(routed == wanted + events, &|| format!("{routed} routes for {} vdevs", vdevs.len()));
        for vector in &truth.vectors {
            if let Some(Route::Vdev { vm, vdev, .. }) = self.system.routes().peek(*vector) {
                let alive = vdevs.iter().any(|v| v.id() == vdev && v.vm() == vm);
                expect(alive, &|| format!("{vector:?} leads to vdev {vdev}, which is gone"));
            }
        }
        // Invariant 10: nothing but guest frames is mapped anywhere, and pages that drivers share with slices.
        for (host, len) in truth.tables.values().flatten().map(|(_, mapped)| *mapped) {
            let guests = self.memory.contains(&host) && host + len <= self.memory.end;
            expect(guests || truth.owner_of_window(host).is_some(), &|| {
                format!("{host:#x} is mapped for a device")
            });
        }
        // The books agree.
        let info = self.system.info();
        let leased = vdevs.iter().filter(|vdev| vdev.pasid().is_some()).count();
        expect(info.pasids.leased as usize == leased, &|| {
            format!("{} PASIDs leased for {leased} vdevs", info.pasids.leased)
        });
        let in_use: u64 = vms.iter().filter_map(|vm| vm.ram()).map(|ram| ram.bytes()).sum();
        expect(info.memory.guests == in_use, &|| {
            format!("{} bytes of guests, {in_use} known", info.memory.guests)
        });
        wrong
    }

    #[track_caller]
    pub fn assert_sound(&self) {
        let wrong = self.check();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Nothing is in use but what the system itself needs: as after start.
    #[track_caller]
    pub fn assert_as_at_start(&self) {
        self.assert_sound();
        let info = self.system.info();
        assert_eq!(info.retired, []);
        assert_eq!((info.vdevs, info.pasids.leased, info.pasids.retired), (0, 0, 0));
        assert_eq!((info.memory.free, info.memory.held), (info.memory.total, 0));
        let truth = self.truth.lock();
        assert!(truth.tables.is_empty() && truth.attached.is_empty() && truth.portals.is_empty());
        assert!(truth.queues.iter().all(|queue| queue.owner.is_none()));
        // Its own events' interrupt, where there is something that carries it.
        let events = truth.vectors.len().min(1);
        assert!(events >= truth.claimed.len());
        assert_eq!((truth.vectors.len(), truth.remapped.len(), truth.msix.len()), (events, events, events));
    }
}

/// A VM of `frames` times 2 MiB, with these vdevs.
pub fn vm_spec(name: &str, frames: u64, quota: u32, vdevs: usize) -> VmSpec {
    VmSpec {
        name: name.to_string(),
        // In two ranges, as a PC has it.
        ram: vec![
            RamRange { start: GuestPhys(0), len: LARGE_PAGE_SIZE },
            RamRange { start: GuestPhys(1 << 32), len: (frames - 1) * LARGE_PAGE_SIZE },
        ],
        vcpus: 1,
        pasid_quota: quota,
        restart_on_reset: true,
        boots: BootSpec::default(),
        slots: 8,
        vdevs: vec![vdev_spec(); vdevs],
    }
}

/// The direct type of the parent.
/// So many bytes of a VM's memory.
pub fn ram_range(start: u64, len: u64) -> RamRange {
    RamRange { start: GuestPhys(start), len }
}

pub fn vdev_spec() -> VdevSpec {
    VdevSpec {
        parent: PARENT.to_string(),
        type_name: device::DIRECT.to_string(),
        entries: None,
        weight: None,
        space: AddressSpace::Vm,
    }
}

/// The type without a portal.
pub fn trapped() -> VdevSpec {
    VdevSpec { type_name: TRAPPED.to_string(), ..vdev_spec() }
}
