// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hardware really holds, and which of its steps fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

use crate::base::addr::{HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE, Requester};
use crate::base::id::{VdevId, VmId};
use crate::dev::Received;
use crate::dma::fault::Noted;
use crate::dma::iommu::TableId;
use crate::dma::pasid::Pasid;
use crate::irq::HostVector;
use crate::irq::host::Host;
use crate::vm::exit::MsiMessage;

/// Pages that the driver shares with slices, one for each queue.
pub const WINDOWS: u64 = 0xe000_0000;

/// A step that can be told to fail, once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fail {
    CreateSlice,
    CreateTable,
    Map,
    /// A piece of a range of which another piece is mapped already.
    MapMore,
    Unmap,
    DestroyTable,
    /// Refused before anything is written.
    Attach,
    /// Refused after the entry is written, so that the tag is attached.
    AttachHalfway,
    /// Refused before anything is written.
    Replace,
    /// Refused after the entry is written, so that the tag may reach both tables.
    ReplaceHalfway,
    Detach,
    AllocateVector,
    MapInterrupt,
    UnmapInterrupt,
    Redirect,
    /// The VM's devices do not take what the host does to their vectors.
    Vectors,
    /// The model refuses the tag.
    Tag,
    /// The queue does not stop.
    Quiesce,
    /// The queue does not drain when its VM is paused.
    Drain,
    /// The device is at something when its VM is to go on.
    Resume,
    Build,
    /// A pCPU does not come back from the guest: portals may still be reached.
    Unplug,
    Plug,
    Run,
    /// A pCPU does not come back from the guest.
    Pause,
    /// The same.
    Stop,
    /// A pCPU keeps a reference to the machine.
    TearDown,
    /// The VM's devices are in use.
    Announce,
    Recover,
}

/// What happened, for tests of order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Asked(VdevId),
    PortalsUnmapped(VdevId),
    PortalsReturned(VdevId),
    Announced(VdevId),
    Recovered,
    QueueStopped,
    InterruptMasked(u16),
    InterruptUnmapped,
    VectorSettled,
    VectorFreed,
    Detached(Pasid),
    SliceReturned,
    TableDestroyed,
    VcpusStopped,
    TornDown,
    Scrubbed,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub owner: Option<String>,
    /// The tag; from then on the guest may have the device send with it.
    pub tag: Option<Pasid>,
    /// The same without an IOMMU.
    pub untranslated: bool,
    /// It would not stop.
    pub retired: bool,
    /// Looks that it takes until what is under way is completed.
    pub under_way: u32,
    /// Nothing is sent on its guest's behalf.
    pub paused: bool,
    /// Its guest must not submit.
    pub closed: bool,
}

#[derive(Debug, Default)]
pub struct Truth {
    /// Host range by IOVA.
    pub tables: BTreeMap<TableId, BTreeMap<u64, (u64, u64)>>,
    pub next_table: u32,
    pub claimed: BTreeSet<Requester>,
    pub attached: BTreeMap<(Requester, Pasid), TableId>,
    /// What it may reach as well, since a replacement was not confirmed.
    pub also_attached: BTreeMap<(Requester, Pasid), TableId>,
    pub remapped: BTreeMap<u32, HostVector>,
    /// Handles whose messages are posted to guests: where, and as what. How often one was redirected.
    pub posted: BTreeMap<u32, (HostPhys, u8)>,
    pub redirects: usize,
    pub next_handle: u32,
    /// The next event is a halt.
    pub halted: bool,
    /// The parent's slices have requester IDs of their own.
    pub tagged_by_requester: bool,
    /// The IOMMU does not stand in front of the parent.
    pub bypassed: bool,
    pub queues: Vec<Queue>,
    pub msix: BTreeMap<u16, MsiMessage>,
    /// MSI-X entries that are held back, how often one was held or let through, and whether that cannot be now.
    pub held: BTreeSet<u16>,
    pub holds: usize,
    pub cannot_hold: bool,
    /// Interrupts of slices are not their guests' own.
    pub keeps_interrupts: bool,
    /// Vectors that the host masks, and those that each interrupt masks.
    pub masked: BTreeSet<(VdevId, u16)>,
    pub automask: BTreeSet<(VdevId, u16)>,
    pub vectors: BTreeSet<HostVector>,
    /// Vectors that a message could raise since they were allocated, and that have not settled since.
    pub unsettled: BTreeSet<HostVector>,
    /// Portal pages mapped in guests: the queue.
    pub portals: BTreeMap<(VmId, VdevId), usize>,
    /// Those that are kept from their guests for a while.
    pub withheld: BTreeMap<(VmId, VdevId), usize>,
    /// Guests hear what their slots say, and of which vdevs they have let go.
    pub listens: bool,
    pub let_go: BTreeSet<VdevId>,
    /// What stage 2 maps.
    pub stage2: BTreeMap<VmId, Vec<(u64, u64)>>,
    pub running: BTreeSet<VmId>,
    /// What each VM got on its console, and how much of it goes in before its port is full.
    pub typed: BTreeMap<VmId, Vec<Received>>,
    pub room: usize,
    /// What the IOMMU recorded, and how much of that it gives at once.
    pub faults: VecDeque<Noted>,
    pub at_once: usize,
    /// How often faults, and events of the parent, were looked at.
    pub fault_looks: usize,
    pub event_looks: usize,
    /// Events that the parent still has behind those that it gives at once.
    pub more_events: usize,
    /// Something is under way on the parent, and how often that was looked at.
    pub waiting: bool,
    pub looks: usize,
    /// How often the first processor was woken.
    pub wakes: usize,
    /// Whose bytes a frame holds; absent where it is zero.
    pub bytes: BTreeMap<u64, VmId>,
    pub fail: BTreeSet<Fail>,
    pub failed: usize,
    /// Steps that could have failed, in their order; and the place in it of one that does.
    pub asked: Vec<Fail>,
    pub fail_at: Option<usize>,
    /// Trapped slices have interrupts, too.
    pub interrupts_for_all: bool,
    pub steps: Vec<Step>,
    pub violations: Vec<String>,
}

impl Truth {
    /// Whether a step fails now.
    pub fn fails(&mut self, what: Fail) -> bool {
        let fails = self.fail.remove(&what) || self.fail_at == Some(self.asked.len());
        self.asked.push(what);
        self.failed += usize::from(fails);
        fails
    }

    pub fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// Whose slice a page belongs to that the driver shares with it.
    pub fn owner_of_window(&self, page: u64) -> Option<&str> {
        let queue = page.checked_sub(WINDOWS)? / PAGE_SIZE;
        self.queues.get(usize::try_from(queue).ok()?)?.owner.as_deref()
    }

    /// Whether a processor or a device can reach a range.
    pub fn reachable(&self, start: u64, len: u64) -> bool {
        let overlaps = |(other, bytes): (u64, u64)| other < start + len && start < other + bytes;
        let live = self.attached.values().filter_map(|table| self.tables.get(table));
        self.stage2.values().flatten().any(|range| overlaps(*range))
            || live.flat_map(|table| table.values()).any(|range| overlaps(*range))
    }

    pub fn frames(start: HostPhys, len: u64) -> impl Iterator<Item = u64> {
        (start.0..start.0 + len).step_by(LARGE_PAGE_SIZE as usize)
    }
}

/// Shared by all mocks of one machine.
#[derive(Debug)]
pub struct SharedTruth {
    truth: Mutex<Truth>,
    /// The clock, which stands still by itself.
    now: AtomicU64,
}

impl SharedTruth {
    pub fn new(queues: usize) -> Self {
        Self {
            truth: Mutex::new(Truth {
                queues: (0..queues).map(|_| Queue::default()).collect(),
                room: 16,
                at_once: 8,
                ..Truth::default()
            }),
            now: AtomicU64::new(7),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock()
    }

    pub fn set_clock(&self, now_ns: u64) {
        self.now.store(now_ns, Ordering::Relaxed);
    }

    pub fn pass(&self, time_ns: u64) {
        self.now.fetch_add(time_ns, Ordering::Relaxed);
    }

    pub fn fail(&self, what: Fail) {
        self.lock().fail.insert(what);
    }
}

impl Host for SharedTruth {
    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn wake_first(&self) {
        self.lock().wakes += 1;
    }

    /// The lowest free one, so that a vector is used again as soon as possible.
    fn allocate_vector(&self, _vm: Option<VmId>) -> Option<HostVector> {
        let mut truth = self.lock();
        if truth.fails(Fail::AllocateVector) {
            return None;
        }
        let free = super::CPUS
            .iter()
            .flat_map(|cpu| super::VECTORS.map(|vector| HostVector { vector, cpu: *cpu }))
            .find(|vector| !truth.vectors.contains(vector))?;
        truth.vectors.insert(free);
        Some(free)
    }

    fn settle_vector(&self, vector: HostVector) {
        let mut truth = self.lock();
        let gone = !truth.remapped.values().any(|target| *target == vector);
        truth.demand(gone, || format!("{vector:?} settled while a message can still raise it"));
        truth.unsettled.remove(&vector);
        truth.steps.push(Step::VectorSettled);
    }

    fn free_vector(&self, vector: HostVector) {
        let mut truth = self.lock();
        let taken = truth.vectors.remove(&vector);
        truth.demand(taken, || format!("{vector:?} freed twice"));
        let raised = truth.remapped.values().any(|target| *target == vector);
        truth.demand(!raised, || format!("{vector:?} freed while a message can still raise it"));
        let late = truth.unsettled.contains(&vector);
        truth.demand(!late, || format!("{vector:?} freed while an interrupt may be under way"));
        truth.steps.push(Step::VectorFreed);
    }
}
