// SPDX-License-Identifier: MIT OR Apache-2.0
//! A work queue that many vdevs share. What their guests submit comes by way of the hypervisor, is checked, and goes to
//! the device when there is room.
//!
//! **Principle.** The device's queue is never filled beyond its size, so it refuses nothing; who waits, waits here, and
//! in turn ([`Turns`]). While nobody waits and there is room, a descriptor goes to the device at once, and nothing of
//! others is touched. A descriptor completes to the driver, in a page that no guest reaches: so what is in flight is
//! known, whatever guests write to their own completion records.
//!
//! **Invariants.** Room (`free`) plus what is in flight of all members is the size of the queue. Of one member no more is
//! in flight than its part ([`SharedQueue::part`]), so that one that comes finds room. Each member's descriptors go to
//! the device in their order. Nothing is sent while the device is reset, nor of a member whose VM is paused; of what it
//! has under way without an IOMMU the remaining pieces are.
//!
//! **Locks.** The line, then one member. Both are held for the time of a few descriptors.
//!
//! Source: Intel DSA Architecture Specification 341204-006, "Shared work queues"; Intel SDM, ENQCMDS.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::turns::Turns;
use spin::Mutex;

use super::descriptor::{Descriptor, Submission};
use crate::memory::DmaMemory;

pub(super) mod guest;
mod member;

use member::Sent;
pub(super) use member::{Completion, Member, Reach};

/// Writes to the portals of a device that it may refuse (PCI Express: Deferrable Memory Write).
pub trait Enqueue: Send + Sync {
    /// Writes 64 bytes at that offset of BAR2. What was written to memory before is there for the device to see.
    /// False where the device has no room. From any processor.
    fn enqueue(&self, offset: u64, descriptor: &Submission) -> bool;
}

/// Stores of 64 bytes to the portals of a device, which it cannot refuse (PCI Express: Memory Write).
pub trait Store: Send + Sync {
    /// Writes 64 bytes at that offset of BAR2, as one transaction. What was written to memory before is there for the
    /// device to see. From any processor.
    fn store(&self, offset: u64, descriptor: &Submission);
}

/// The way to the portals of the queue.
#[derive(Clone)]
pub(super) enum Portals {
    /// A shared queue: each descriptor brings its PASID.
    Deferrable(Arc<dyn Enqueue>),
    /// A dedicated queue without a PASID, on a device that no IOMMU stands in front of.
    Posted(Arc<dyn Store>),
}

/// What the queue needs of the machine.
#[derive(Clone)]
pub(super) struct Trapping {
    /// How descriptors get to the device.
    pub portals: Portals,
    /// For completion records.
    pub memory: Arc<dyn DmaMemory>,
}

/// An interrupt entry of the device that a share can have.
#[derive(Clone, Debug)]
pub(super) struct ShareInterrupt {
    /// Of the MSI-X table or the IMS.
    pub entry: u16,
    /// What descriptors name it with. A reset of the device takes it away, and another is asked for.
    pub handle: Arc<AtomicU16>,
    /// Offset in BAR2 of the portal on which they do.
    pub portal: u64,
}

struct Line {
    turns: Turns,
    /// By number.
    members: Vec<Option<Arc<Member>>>,
}

/// A work queue with its members. To the device it is a dedicated one where there is no IOMMU.
pub(super) struct SharedQueue {
    index: u8,
    size: u16,
    trapping: Trapping,
    /// Descriptors for which the device has room.
    free: AtomicU32,
    /// Whether somebody is in the line.
    asked: AtomicBool,
    line: Mutex<Line>,
}

impl SharedQueue {
    pub fn new(index: u8, size: u16, trapping: Trapping) -> Self {
        Self {
            index,
            size,
            trapping,
            free: AtomicU32::new(size.into()),
            asked: AtomicBool::new(false),
            line: Mutex::new(Line { turns: Turns::new(), members: Vec::new() }),
        }
    }

    /// Its number on the device.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Descriptors that the device takes in.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors of one member that the device has at most: all but a quarter. Where its weight gives it more than that
    /// of what is in flight, which takes others that copy much more at a time, this is what limits it.
    pub fn part(&self) -> u16 {
        (self.size - self.size / 4).clamp(1, Member::MAX_IN_FLIGHT)
    }

    /// Takes a member in, of that weight and with so many entries; `None` where memory is short, or there are too many.
    pub fn join(&self, weight: u8, entries: u16, interrupt: ShareInterrupt) -> Option<Arc<Member>> {
        let page = self.trapping.memory.alloc(1)?;
        let mut line = self.line.lock();
        let Some(id) = line.turns.join(weight) else {
            self.trapping.memory.free(page, 1);
            return None;
        };
        let member = Arc::new(Member::new(id, self.index, self.part(), entries, interrupt, page));
        let place = usize::from(id.0);
        if line.members.len() <= place {
            line.members.resize(place + 1, None);
        }
        line.members[place] = Some(Arc::clone(&member));
        Some(member)
    }

    /// Lets a member go, of which nothing is in flight, and whose page the device cannot be led to any more.
    pub fn leave(&self, member: &Member) {
        let lost = member.state.lock().forget();
        self.return_places(lost);
        let mut line = self.line.lock();
        line.turns.leave(member.id);
        self.note_asked(&line);
        if let Some(place) = line.members.get_mut(usize::from(member.id.0)) {
            *place = None;
        }
        self.serve(&mut line);
        drop(line);
        self.trapping.memory.free(member.page, 1);
    }

    /// Who sends with that tag.
    pub fn member_of(&self, pasid: Pasid) -> Option<Arc<Member>> {
        let line = self.line.lock();
        line.members.iter().flatten().find(|member| member.pasid() == Some(pasid)).cloned()
    }

    /// Calls something with each member.
    pub fn for_each(&self, mut call: impl FnMut(&Member)) {
        self.line.lock().members.iter().flatten().for_each(|member| call(member));
    }

    /// Takes a descriptor from a member whose queue is open; false where it has no room.
    pub fn submit(&self, member: &Member, descriptor: Descriptor) -> bool {
        let mut state = member.state.lock();
        if !state.has_room() {
            return false;
        }
        // Whoever waits comes first, also of this member.
        let at_once = state.may_send() && state.backlog.is_empty() && !self.asked.load(Ordering::SeqCst);
        if at_once && self.take_place() {
            if state.send(&self.trapping, member, &descriptor) == Sent::Accepted {
                return true;
            }
            self.return_places(1);
        }
        state.backlog.push_back(descriptor);
        let asks = state.may_send();
        drop(state);
        if asks {
            self.ask(member);
        }
        true
    }

    /// Sees which descriptors of a member the device has completed, and uses the room.
    pub fn collect(&self, member: &Member) {
        let mut state = member.state.lock();
        let completed = state.collect(&self.trapping, member);
        let asks = state.wants_turn();
        drop(state);
        self.return_places(completed);
        if asks {
            self.ask(member);
        } else if self.asked.load(Ordering::SeqCst) {
            self.serve(&mut self.line.lock());
        }
    }

    /// Takes the oldest completion of a member that [`SharedQueue::collect`] has seen.
    pub fn take(&self, member: &Member) -> Option<Completion> {
        member.state.lock().take(&*self.trapping.memory, member)
    }

    /// The same as [`SharedQueue::collect`] for every member, where somebody waits: an interrupt may be late, or held back
    /// while its owner is away, and others may go on meanwhile. Names whose descriptors were completed; true: there are
    /// some without a name.
    pub fn look(&self, concerned: &mut dyn FnMut(Pasid)) -> bool {
        if !self.asked.load(Ordering::SeqCst) {
            return false;
        }
        let mut nameless = false;
        let mut line = self.line.lock();
        for member in line.members.iter().flatten() {
            let completed = member.state.lock().collect(&self.trapping, member);
            if completed > 0 {
                self.return_places(completed);
                match member.pasid() {
                    Some(pasid) => concerned(pasid),
                    None => nameless = true,
                }
            }
        }
        self.serve(&mut line);
        nameless
    }

    /// Whether somebody waits for room.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Nothing is sent from here on, until [`SharedQueue::resume`].
    pub fn suspend(&self) {
        self.for_each(|member| member.state.lock().suspended = true);
    }

    /// The device was reset: whatever was in flight or waited is lost, and all queues are closed.
    pub fn resume(&self) {
        self.for_each(|member| {
            let mut state = member.state.lock();
            let lost = state.forget();
            state.suspended = false;
            self.return_places(lost);
        });
    }

    /// The device has nothing of a member any more: what it has not been told of is lost, and so is what waits.
    pub fn forget(&self, member: &Member) {
        let lost = member.state.lock().forget();
        self.return_places(lost);
        if self.asked.load(Ordering::SeqCst) {
            self.serve(&mut self.line.lock());
        }
    }

    /// Nothing more of a member is sent from here on, until [`SharedQueue::release`]. What waits keeps its place.
    pub fn hold(&self, member: &Member) {
        member.state.lock().held = true;
    }

    /// The end of that.
    pub fn release(&self, member: &Member) {
        let mut state = member.state.lock();
        state.held = false;
        let asks = state.wants_turn();
        drop(state);
        if asks {
            self.ask(member);
        }
    }

    fn ask(&self, member: &Member) {
        let mut line = self.line.lock();
        line.turns.ask(member.id);
        // Before room is looked for: who returns some afterwards sees it.
        self.asked.store(true, Ordering::SeqCst);
        self.serve(&mut line);
    }

    /// Sends what waits, in turn, for as long as there is room.
    fn serve(&self, line: &mut Line) {
        while line.turns.is_asked() && self.take_place() {
            let sent = self.serve_one(line);
            if sent != Some(Sent::Accepted) {
                self.return_places(1);
            }
            // The device has less room than it said: it is tried again at the next end, or look.
            if sent == Some(Sent::Retry) {
                break;
            }
        }
        self.note_asked(line);
    }

    /// One turn; `None` where whose turn it was wanted none any more.
    fn serve_one(&self, line: &mut Line) -> Option<Sent> {
        let id = line.turns.take()?;
        let member = Arc::clone(line.members.get(usize::from(id.0))?.as_ref()?);
        let mut state = member.state.lock();
        if !state.wants_turn() {
            return None;
        }
        let descriptor = state.backlog.pop_front()?;
        let sent = state.send(&self.trapping, &member, &descriptor);
        match sent {
            Sent::Accepted => line.turns.served(id, descriptor.cost()),
            Sent::Retry => state.backlog.push_front(descriptor),
        }
        if state.wants_turn() {
            line.turns.ask(id);
        }
        Some(sent)
    }

    fn note_asked(&self, line: &Line) {
        self.asked.store(line.turns.is_asked(), Ordering::SeqCst);
    }

    fn take_place(&self) -> bool {
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1)).is_ok()
    }

    fn return_places(&self, places: u32) {
        if places > 0 {
            self.free.fetch_add(places, Ordering::SeqCst);
        }
    }
}
