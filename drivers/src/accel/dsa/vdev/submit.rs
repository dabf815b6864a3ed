// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors that the guest submits by way of the hypervisor, and what it hears of their ends.

use super::super::descriptor::{Answer, DESCRIPTOR_BYTES, Descriptor};
use super::super::lease::{Lease, VECTOR_COMPLETION};
use super::super::registers::portal;
use super::super::share::guest::Share;
use super::{DsaVdev, VECTOR_MISC};

/// Bytes of a store that is merged.
const PIECE: usize = size_of::<u64>();

/// Stores to one slot of a portal that are to become one of 64 bytes.
///
/// Where the processor has no such store, as on the Arm machines that there are, what lies before a device merges eight
/// stores of 8 bytes to one slot, from its first byte to its last, and drops what comes otherwise.
pub(super) struct Merge {
    slot: u64,
    bytes: [u8; DESCRIPTOR_BYTES],
    /// How many of them there are; all: what comes next begins a slot, or is dropped.
    len: usize,
}

impl Merge {
    pub const fn new() -> Self {
        Self { slot: 0, bytes: [0; DESCRIPTOR_BYTES], len: DESCRIPTOR_BYTES }
    }

    /// Takes a store of `size` bytes at an offset of the portals; the slot and all its bytes, where that was the last.
    pub fn store(&mut self, offset: u64, size: u8, value: u64) -> Option<(u64, [u8; DESCRIPTOR_BYTES])> {
        let place = offset as usize % DESCRIPTOR_BYTES;
        let slot = offset - place as u64;
        if place == 0 {
            (self.slot, self.len) = (slot, 0);
        }
        if usize::from(size) != PIECE || place != self.len || slot != self.slot {
            self.len = DESCRIPTOR_BYTES;
            return None;
        }
        self.bytes[place..place + PIECE].copy_from_slice(&value.to_le_bytes());
        self.len += PIECE;
        (self.len == DESCRIPTOR_BYTES).then_some((slot, self.bytes))
    }
}

impl<L: Lease> DsaVdev<L> {
    pub(super) fn submit_descriptor(
        &mut self,
        offset: u64,
        descriptor: &[u8; DESCRIPTOR_BYTES],
        raise: &mut dyn FnMut(u16),
    ) {
        // The guest's device has no IMS, so the portals that are for it lead nowhere.
        if offset >= portal::UNLIMITED_IMS || !self.shadow.queue_is_enabled() {
            return;
        }
        let Some(share) = self.lease.share() else { return };
        if let Some(answer) = share.submit(&Descriptor::new(descriptor), self.shadow.operations()) {
            self.tell_error(&answer, raise);
            if answer.interrupt {
                raise(VECTOR_COMPLETION);
            }
        }
    }

    /// What the device has completed reaches the guest, with one interrupt for all of it.
    pub(super) fn complete(&mut self, raise: &mut dyn FnMut(u16)) {
        let Some(share) = self.lease.share() else { return };
        share.collect();
        let mut interrupt = false;
        while let Some(answer) = self.lease.share().and_then(Share::next_end) {
            interrupt |= answer.interrupt;
            self.tell_error(&answer, raise);
        }
        if interrupt {
            raise(VECTOR_COMPLETION);
        }
    }

    fn tell_error(&mut self, answer: &Answer, raise: &mut dyn FnMut(u16)) {
        if let Some(error) = answer.error {
            self.shadow.record_error(error);
            if self.shadow.error_interrupts() {
                raise(VECTOR_MISC);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_stores_to_one_slot_in_their_order_are_one() {
        let mut merge = Merge::new();
        let mut stored = |offset: u64, size: u8| merge.store(offset, size, offset).is_some();
        let in_order = |from: u64| (0..8).map(move |piece| from + piece * 8);
        assert_eq!(in_order(0x1040).filter(|offset| stored(*offset, 8)).count(), 1);
        assert!(!stored(0x1078, 8), "once");
        // A gap, another order, another size, another slot in between.
        for broken in [
            vec![(0, 8), (16, 8)],
            vec![(8, 8), (0, 8)],
            vec![(0, 8), (8, 4), (12, 4)],
            vec![(0, 8), (0x48, 8)],
        ] {
            for (offset, size) in broken {
                assert!(!stored(offset, size));
            }
            assert!((16..64).step_by(8).all(|offset| !stored(offset, 8)), "what follows is dropped, too");
        }
        assert_eq!(in_order(0).filter(|offset| stored(*offset, 8)).count(), 1);
    }

    #[test]
    fn what_is_merged_is_what_was_stored() {
        let mut merge = Merge::new();
        let merged = (0..8u64).filter_map(|piece| merge.store(0x80 + piece * 8, 8, piece + 1)).last();
        let (slot, bytes) = merged.unwrap();
        assert_eq!(slot, 0x80);
        assert!(bytes.chunks(8).zip(1u64..).all(|(bytes, value)| bytes == value.to_le_bytes()));
    }
}
