// SPDX-License-Identifier: MIT OR Apache-2.0
//! One who has a share of a queue: what waits, what the device has, and what it has completed.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pasidon_kernel::base::addr::{HostPhys, Iova, PAGE_SIZE};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::parent::UntranslatedMemory;
use pasidon_kernel::vdev::turns::MemberId;
use spin::Mutex;

use super::super::descriptor::{Descriptor, RECORD_BYTES, RECORD_WORDS, Record, Submission, Wishes, status};
use super::super::errors::ErrorMailbox;
use super::super::pieces::Work;
use super::{Portals, ShareInterrupt, Trapping};
use crate::memory::DmaMemory;

/// Stands for no tag.
const NO_PASID: u32 = u32::MAX;

/// What a member's descriptors reach.
#[derive(Clone)]
pub(in super::super) enum Reach {
    /// What the I/O address space behind a PASID maps.
    Tagged {
        pasid: Pasid,
        /// Where the device finds the page with the completion records.
        records: Iova,
    },
    /// What is put into them, without an IOMMU.
    Untranslated(Arc<dyn UntranslatedMemory>),
}

/// Who has a share of a queue.
pub(in super::super) struct Member {
    pub(super) id: MemberId,
    queue: u8,
    pub interrupt: ShareInterrupt,
    /// Completion records, where the device writes them and no guest can.
    pub(super) page: HostPhys,
    /// Errors that the device reported for it.
    pub errors: ErrorMailbox,
    pub(super) state: Mutex<State>,
    /// As in its reach.
    pasid: AtomicU32,
    submitted: AtomicU64,
    completed: AtomicU64,
    deferred: AtomicU64,
}

/// A descriptor that the device has, or has completed.
struct Flight {
    /// Its completion record.
    record: u8,
    /// `None`: the guest is not told of it any more.
    wishes: Option<Wishes>,
    /// What there is to do of it, where it is done in pieces.
    work: Option<Work>,
    completed: bool,
}

/// A descriptor that the device has completed.
pub(in super::super) struct Completion {
    pub record: Record,
    pub wishes: Wishes,
}

/// Whether the device took a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    Accepted,
    Retry,
}

pub(super) struct State {
    /// The guest's queue takes descriptors; as many as it has entries.
    open: Option<u16>,
    /// The device is being reset.
    pub(super) suspended: bool,
    /// Its VM is paused.
    pub(super) held: bool,
    reach: Option<Reach>,
    /// What waits, the oldest first.
    pub(super) backlog: VecDeque<Descriptor>,
    /// What was sent, the oldest first.
    flights: VecDeque<Flight>,
    /// Completion records that are free, by bit.
    records: u128,
    in_flight: u16,
    /// Most of it that the device has at a time.
    part: u16,
}

impl Member {
    /// One for each completion record of a page.
    pub const MAX_IN_FLIGHT: u16 = 96;
    /// Most entries of a guest's queue: what was sent keeps its record until the guest has been told of it.
    pub const MAX_ENTRIES: u16 = Self::RECORDS as u16;
    const RECORDS: u32 = (PAGE_SIZE / RECORD_BYTES) as u32;

    pub(super) fn new(
        id: MemberId,
        queue: u8,
        part: u16,
        entries: u16,
        interrupt: ShareInterrupt,
        page: HostPhys,
    ) -> Self {
        const { assert!(Self::RECORDS == u128::BITS) };
        // What was sent keeps its place until the guest has been told of it.
        let most = usize::from(entries);
        Self {
            id,
            queue,
            interrupt,
            page,
            errors: ErrorMailbox::new(),
            state: Mutex::new(State {
                open: None,
                suspended: false,
                held: false,
                reach: None,
                backlog: VecDeque::with_capacity(most),
                flights: VecDeque::with_capacity(most),
                records: u128::MAX,
                in_flight: 0,
                part,
            }),
            pasid: AtomicU32::new(NO_PASID),
            submitted: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
        }
    }

    /// Its number among those who share.
    pub fn number(&self) -> u16 {
        self.id.0
    }

    /// The page with its completion records.
    pub fn page(&self) -> HostPhys {
        self.page
    }

    /// Its tag while it has one; without an IOMMU it has none.
    pub fn pasid(&self) -> Option<Pasid> {
        Pasid::new(self.pasid.load(Ordering::Acquire))
    }

    /// What it reaches from here on.
    pub fn set_reach(&self, reach: Option<Reach>) {
        let pasid = match &reach {
            Some(Reach::Tagged { pasid, .. }) => pasid.value(),
            _ => NO_PASID,
        };
        self.state.lock().reach = reach;
        self.pasid.store(pasid, Ordering::Release);
    }

    /// Whether it reaches something.
    pub fn is_attached(&self) -> bool {
        self.state.lock().reach.is_some()
    }

    /// The guest's queue takes that many descriptors from here on. Not while it reaches nothing, and while the device is reset.
    pub fn open(&self, entries: u16) -> bool {
        let mut state = self.state.lock();
        let may = state.reach.is_some() && !state.suspended;
        if may {
            state.open = Some(entries);
        }
        may
    }

    /// It takes none any more; what waits goes on waiting.
    pub fn close(&self) {
        self.state.lock().open = None;
    }

    /// What waits is dropped, and the guest is told of nothing that it has submitted so far.
    pub fn silence(&self) {
        let mut state = self.state.lock();
        state.backlog.clear();
        state.flights.iter_mut().for_each(|flight| flight.wishes = None);
    }

    /// Whether the guest's queue takes descriptors.
    pub fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    /// Whether the device is being reset.
    pub fn is_suspended(&self) -> bool {
        self.state.lock().suspended
    }

    /// Whether nothing waits, and the device has nothing.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.backlog.is_empty() && state.in_flight == 0
    }

    /// Whether nothing waits, the device has nothing, and the guest has been told of all that it had.
    pub fn is_done(&self) -> bool {
        let state = self.state.lock();
        state.backlog.is_empty() && state.flights.is_empty()
    }

    /// Whether its VM is paused.
    pub fn is_held(&self) -> bool {
        self.state.lock().held
    }

    /// Whether the device has something, or the guest has not been told of all that it had.
    pub fn has_flights(&self) -> bool {
        !self.state.lock().flights.is_empty()
    }

    /// Whether something waits.
    pub fn waits(&self) -> bool {
        !self.state.lock().backlog.is_empty()
    }

    /// Descriptors that were sent, that were completed, and that had to wait; how many wait, and how many the device
    /// has now.
    pub fn counts(&self) -> [u64; 5] {
        let state = self.state.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            count(&self.submitted),
            count(&self.completed),
            count(&self.deferred),
            state.backlog.len() as u64,
            state.in_flight.into(),
        ]
    }

    fn record(&self, record: u8) -> HostPhys {
        HostPhys(self.page.0 + u64::from(record) * RECORD_BYTES)
    }

    fn clear_record(&self, record: u8, memory: &dyn DmaMemory) {
        let place = self.record(record);
        for half in 0..RECORD_WORDS as u64 / 2 {
            memory.write128(HostPhys(place.0 + half * 16), [0; 2]);
        }
    }

    fn read_record(&self, record: u8, memory: &dyn DmaMemory) -> Record {
        let place = self.record(record);
        core::array::from_fn(|word| memory.read64(HostPhys(place.0 + word as u64 * 8)))
    }
}

impl Flight {
    /// The device has completed what it had of it: what it gets next, where there is more, and somebody waits for it.
    fn next_piece(
        &mut self,
        trapping: &Trapping,
        member: &Member,
        reached: &dyn UntranslatedMemory,
    ) -> Option<Submission> {
        let work = self.work.as_mut().filter(|_| self.wishes.is_some())?;
        let record = member.read_record(self.record, &*trapping.memory);
        if !work.advance(&record) {
            return None;
        }
        member.clear_record(self.record, &*trapping.memory);
        let handle = member.interrupt.handle.load(Ordering::Acquire);
        work.next(reached, member.record(self.record), handle)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "share {} of WQ {}", self.id.0, self.queue)
    }
}

impl State {
    /// Whether the guest's queue takes one more.
    pub fn has_room(&self) -> bool {
        self.open.is_some_and(|entries| self.backlog.len() + self.flights.len() < usize::from(entries))
    }

    /// Whether one more may be sent, as far as this member goes.
    pub fn may_send(&self) -> bool {
        self.reach.is_some()
            && !self.suspended
            && !self.held
            && self.in_flight < self.part
            && self.records != 0
    }

    /// Whether it has something to send, and may.
    pub fn wants_turn(&self) -> bool {
        !self.backlog.is_empty() && self.may_send()
    }

    /// Gives the device a descriptor, for which it has room. To be asked first: [`State::may_send`].
    pub fn send(&mut self, trapping: &Trapping, member: &Member, descriptor: &Descriptor) -> Sent {
        let record @ 0..128 = self.records.trailing_zeros() else { return Sent::Retry };
        let record = record as u8;
        let handle = member.interrupt.handle.load(Ordering::Acquire);
        let portal = member.interrupt.portal;
        member.clear_record(record, &*trapping.memory);
        let (accepted, work) = match (&self.reach, &trapping.portals) {
            (Some(Reach::Tagged { pasid, records }), Portals::Deferrable(portals)) => {
                let iova = Iova(records.0 + u64::from(record) * RECORD_BYTES);
                (portals.enqueue(portal, &descriptor.submission(pasid.value(), iova, handle)), None)
            }
            (Some(Reach::Untranslated(memory)), Portals::Posted(portals)) => {
                let mut work = Work::new(*descriptor, &**memory).ok();
                let piece =
                    work.as_mut().and_then(|work| work.next(&**memory, member.record(record), handle));
                piece.iter().for_each(|piece| portals.store(portal, piece));
                (piece.is_some(), work)
            }
            _ => (false, None),
        };
        if !accepted {
            member.deferred.fetch_add(1, Ordering::Relaxed);
            return Sent::Retry;
        }
        self.records &= !(1 << record);
        self.in_flight += 1;
        self.flights.push_back(Flight { record, wishes: Some(descriptor.wishes()), work, completed: false });
        member.submitted.fetch_add(1, Ordering::Relaxed);
        Sent::Accepted
    }

    /// Sees what the device has completed; how many there were. The newest is looked at first: what a drain waited for
    /// is then seen as completed where the drain is.
    pub fn collect(&mut self, trapping: &Trapping, member: &Member) -> u32 {
        let mut completed = 0;
        let goes_on = !self.suspended;
        for flight in self.flights.iter_mut().rev().filter(|flight| !flight.completed) {
            let place = member.record(flight.record);
            // While the device is reset one that is done in part goes no further, and is lost with it.
            let in_part =
                !goes_on && flight.wishes.is_some() && flight.work.is_some_and(|work| work.has_more());
            if in_part || trapping.memory.read64(place) & status::CODE == 0 {
                continue;
            }
            let next = match (&self.reach, &trapping.portals) {
                (Some(Reach::Untranslated(memory)), Portals::Posted(portals)) if goes_on => {
                    flight.next_piece(trapping, member, &**memory).map(|piece| (portals, piece))
                }
                _ => None,
            };
            match next {
                Some((portals, piece)) => portals.store(member.interrupt.portal, &piece),
                None => {
                    flight.completed = true;
                    completed += 1;
                }
            }
        }
        self.in_flight -= completed as u16;
        member.completed.fetch_add(completed.into(), Ordering::Relaxed);
        completed
    }

    /// The oldest that was completed, and that the guest is told of.
    pub fn take(&mut self, memory: &dyn DmaMemory, member: &Member) -> Option<Completion> {
        loop {
            let place = self.flights.iter().position(|flight| flight.completed)?;
            let Flight { record, wishes, work, .. } = self.flights.remove(place)?;
            self.records |= 1 << record;
            let Some(wishes) = wishes else { continue };
            let record = member.read_record(record, memory);
            let record = match (work, &self.reach) {
                (Some(work), Some(Reach::Untranslated(reached))) => work.finish(&record, &**reached),
                _ => record,
            };
            return Some(Completion { record, wishes });
        }
    }

    /// Nothing waits any more, and nothing is told of what the device had; of how many it had.
    pub fn forget(&mut self) -> u32 {
        self.open = None;
        self.backlog.clear();
        self.flights.clear();
        self.records = u128::MAX;
        u32::from(core::mem::take(&mut self.in_flight))
    }
}
