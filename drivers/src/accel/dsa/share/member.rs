// SPDX-License-Identifier: MIT OR Apache-2.0
//! One who has a share of a queue: what waits, what the device has, and what it has completed.

use alloc::collections::VecDeque;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pasidon_kernel::base::addr::{HostPhys, Iova, PAGE_SIZE};
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::vdev::turns::MemberId;
use spin::Mutex;

use super::super::descriptor::{Descriptor, RECORD_BYTES, RECORD_WORDS, Record, Wishes, status};
use super::super::errors::ErrorMailbox;
use super::{ShareInterrupt, Trapping};
use crate::memory::DmaMemory;

/// Stands for no tag.
const NO_PASID: u32 = u32::MAX;

/// With what a member sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct Tag {
    pub pasid: Pasid,
    /// Where the device finds the page with the completion records.
    pub records: Iova,
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
    /// As in the tag.
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
    tag: Option<Tag>,
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
                tag: None,
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

    /// Its tag while it has one.
    pub fn pasid(&self) -> Option<Pasid> {
        Pasid::new(self.pasid.load(Ordering::Acquire))
    }

    /// Its tag from here on.
    pub fn set_tag(&self, tag: Option<Tag>) {
        self.state.lock().tag = tag;
        self.pasid.store(tag.map_or(NO_PASID, |tag| tag.pasid.value()), Ordering::Release);
    }

    /// The guest's queue takes that many descriptors from here on. Not without a tag, and while the device is reset.
    pub fn open(&self, entries: u16) -> bool {
        let mut state = self.state.lock();
        let may = state.tag.is_some() && !state.suspended;
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
        self.tag.is_some() && !self.suspended && self.in_flight < self.part && self.records != 0
    }

    /// Whether it has something to send, and may.
    pub fn wants_turn(&self) -> bool {
        !self.backlog.is_empty() && self.may_send()
    }

    /// Gives the device a descriptor, for which it has room. To be asked first: [`State::may_send`].
    pub fn send(&mut self, trapping: &Trapping, member: &Member, descriptor: &Descriptor) -> Sent {
        let (Some(tag), record @ 0..128) = (self.tag, self.records.trailing_zeros()) else {
            return Sent::Retry;
        };
        let record = record as u8;
        let place = member.record(record);
        for half in 0..RECORD_WORDS as u64 / 2 {
            trapping.memory.write128(HostPhys(place.0 + half * 16), [0; 2]);
        }
        let iova = Iova(tag.records.0 + u64::from(record) * RECORD_BYTES);
        let ShareInterrupt { handle, portal, .. } = &member.interrupt;
        let handle = handle.load(Ordering::Acquire);
        let submission = descriptor.submission(tag.pasid.value(), iova, handle);
        if !trapping.enqueue.enqueue(*portal, &submission) {
            member.deferred.fetch_add(1, Ordering::Relaxed);
            return Sent::Retry;
        }
        self.records &= !(1 << record);
        self.in_flight += 1;
        self.flights.push_back(Flight { record, wishes: Some(descriptor.wishes()), completed: false });
        member.submitted.fetch_add(1, Ordering::Relaxed);
        Sent::Accepted
    }

    /// Sees what the device has completed; how many there were. The newest is looked at first: what a drain waited for
    /// is then seen as completed where the drain is.
    pub fn collect(&mut self, memory: &dyn DmaMemory, member: &Member) -> u32 {
        let mut completed = 0;
        for flight in self.flights.iter_mut().rev().filter(|flight| !flight.completed) {
            if memory.read64(member.record(flight.record)) & status::CODE != 0 {
                flight.completed = true;
                completed += 1;
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
            let Flight { record, wishes, .. } = self.flights.remove(place)?;
            self.records |= 1 << record;
            let Some(wishes) = wishes else { continue };
            let from = member.record(record);
            let record = core::array::from_fn(|word| memory.read64(HostPhys(from.0 + word as u64 * 8)));
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
