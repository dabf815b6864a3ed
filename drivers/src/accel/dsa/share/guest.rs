// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way of one guest's descriptors to the shared queue, and of their ends back into its memory.

use alloc::sync::Arc;
use core::sync::atomic::{Ordering, fence};

use pasidon_kernel::vdev::parent::{Attached, SliceMemory, UntranslatedMemory};

use super::super::capabilities::OPCAP_WORDS;
use super::super::descriptor::{Answer, Descriptor, Refused, Rules};
use super::super::pieces::Work;
use super::{Member, SharedQueue};

/// The guest's memory.
#[derive(Clone)]
enum GuestSide {
    Translated(Arc<dyn SliceMemory>),
    Untranslated(Arc<dyn UntranslatedMemory>),
}

impl GuestSide {
    fn memory(&self) -> &dyn SliceMemory {
        match self {
            Self::Translated(memory) => &**memory,
            Self::Untranslated(memory) => &**memory,
        }
    }
}

/// The way of a guest's descriptors to the device and back.
pub(in super::super) struct Share {
    queue: Arc<SharedQueue>,
    member: Arc<Member>,
    handle: u16,
    memory: Option<GuestSide>,
    /// Log2 of the largest transfer in bytes that the guest gave its queue.
    max_transfer_log2: u8,
}

impl Share {
    /// `handle`: what the guest's descriptors name the interrupt of completions with.
    pub fn new(queue: Arc<SharedQueue>, member: Arc<Member>, handle: u16) -> Self {
        Self { queue, member, handle, memory: None, max_transfer_log2: 0 }
    }

    pub fn queue(&self) -> &SharedQueue {
        &self.queue
    }

    pub fn member(&self) -> &Member {
        &self.member
    }

    pub fn attach(&mut self, attached: &Attached) {
        self.memory = Some(GuestSide::Translated(Arc::clone(&attached.memory)));
    }

    pub fn attach_untranslated(&mut self, memory: Arc<dyn UntranslatedMemory>) {
        self.memory = Some(GuestSide::Untranslated(memory));
    }

    /// The largest transfer from here on.
    pub fn limit(&mut self, max_transfer_log2: u8) {
        self.max_transfer_log2 = max_transfer_log2;
    }

    /// Takes a descriptor that the guest stored. What is refused is answered at once: its record is written.
    pub fn submit(&mut self, descriptor: &Descriptor, operations: &[u64; OPCAP_WORDS]) -> Option<Answer> {
        // A queue that is disabled ignores what is stored to its portal.
        let side = self.memory.as_ref().filter(|_| self.member.is_open())?;
        let rules = Rules {
            operations,
            max_transfer_log2: self.max_transfer_log2,
            handle: self.handle,
            memory: side.memory(),
        };
        let proven = || match side {
            GuestSide::Translated(_) => Ok(()),
            GuestSide::Untranslated(memory) => Work::new(*descriptor, &**memory).map(drop),
        };
        let refused = match descriptor.check(&rules).and_then(|()| proven()) {
            Ok(()) if self.queue.submit(&self.member, *descriptor) => return None,
            Ok(()) => Refused::FULL,
            Err(refused) => refused,
        };
        let answer = refused.answer(&descriptor.wishes());
        self.write_record(&answer);
        Some(answer)
    }

    /// Sees what the device has completed.
    pub fn collect(&mut self) {
        self.queue.collect(&self.member);
    }

    /// The oldest end that [`Share::collect`] has seen: its record is written.
    pub fn next_end(&mut self) -> Option<Answer> {
        let completion = self.queue.take(&self.member)?;
        let answer = completion.wishes.answer(&completion.record);
        self.write_record(&answer);
        Some(answer)
    }

    /// Writes a completion record for the guest; the status comes last.
    fn write_record(&self, answer: &Answer) {
        let (Some(side), Some((place, record))) = (&self.memory, &answer.record) else { return };
        // Where it is memory no more, nobody waits for it.
        for (word, value) in record.iter().enumerate().rev() {
            fence(Ordering::SeqCst);
            if let Some(place) = place.checked_add(word as u64 * 8) {
                side.memory().write_u64(place, *value);
            }
        }
    }
}
