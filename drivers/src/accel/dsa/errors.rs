// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors that the device reports by SWERR, and how one comes from the event handler to the vdev it belongs to.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pasidon_kernel::dma::pasid::Pasid;

use super::registers::{SWERR_WORDS, swerr};

/// A software error record (SWERR), as the device gave it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ErrorRecord(pub [u64; SWERR_WORDS]);

impl ErrorRecord {
    pub fn field(&self, shift: u32, mask: u64) -> u64 {
        self.0[0] >> shift & mask
    }

    /// The queue that it names.
    pub fn queue(&self) -> Option<usize> {
        (self.0[0] & swerr::WQ_VALID != 0).then(|| self.field(swerr::WQ_SHIFT, 0xff) as usize)
    }

    /// The tag that it names.
    pub fn pasid(&self) -> Option<Pasid> {
        Pasid::new(self.field(swerr::PASID_SHIFT, swerr::PASID_MASK) as u32)
            .filter(|pasid| pasid.value() != 0)
    }

    /// Whether it fits a queue with this tag: an error of the queue's earlier owner must not be shown to
    /// the present one. Errors that come before a tag is known have none.
    pub fn may_be_of(&self, pasid: Option<Pasid>) -> bool {
        let tag = self.field(swerr::PASID_SHIFT, swerr::PASID_MASK);
        tag == 0 || pasid.is_some_and(|pasid| u64::from(pasid.value()) == tag)
    }

    /// The same error with the numbers of a vdev: queue 0, no PASID.
    pub fn for_guest(&self) -> [u64; SWERR_WORDS] {
        let host = 0xff << swerr::WQ_SHIFT | swerr::PASID_MASK << swerr::PASID_SHIFT | swerr::OVERFLOW;
        let mut words = self.0;
        words[0] &= !host;
        words
    }
}

/// Hands one error from the event handler to the vdev without a lock. The first one stays until taken; of
/// others it is known that they may have been.
pub(super) struct ErrorMailbox {
    full: AtomicBool,
    lost: AtomicBool,
    words: [AtomicU64; SWERR_WORDS],
}

impl ErrorMailbox {
    pub const fn new() -> Self {
        Self {
            full: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            words: [const { AtomicU64::new(0) }; SWERR_WORDS],
        }
    }

    /// Called by the event handler alone.
    pub fn put(&self, record: ErrorRecord) {
        if self.full.load(Ordering::Acquire) {
            self.note_lost();
            return;
        }
        for (slot, word) in self.words.iter().zip(record.0) {
            slot.store(word, Ordering::Relaxed);
        }
        self.full.store(true, Ordering::Release);
    }

    /// Further errors may have been lost. Called by the event handler alone.
    pub fn note_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// The error waiting, and whether further ones may have been lost.
    pub fn take(&self) -> (Option<ErrorRecord>, bool) {
        let record = self.full.load(Ordering::Acquire).then(|| {
            let words = core::array::from_fn(|word| self.words[word].load(Ordering::Relaxed));
            ErrorRecord(words)
        });
        let lost = self.lost.swap(false, Ordering::AcqRel);
        if record.is_some() {
            self.full.store(false, Ordering::Release);
        }
        (record, lost)
    }

    pub fn clear(&self) {
        self.take();
    }
}

/// An error code of SWERR in words (the codes of completion records, and a few of its own).
pub(super) fn describe(code: u64) -> &'static str {
    match code {
        0x03 | 0x04 => "page fault",
        0x06 => "page fault on a batch's descriptor list",
        0x10 => "operation not supported",
        0x11 => "invalid flags",
        0x12 => "reserved field not zero",
        0x13 => "transfer size out of range",
        0x14 => "descriptor count out of range",
        0x19 => "invalid interrupt handle",
        0x1a => "page fault on a completion record",
        0x1b => "completion record not aligned",
        0x1d => "privileged descriptor in an unprivileged queue",
        0x20 | 0x21 => "hardware error",
        0x22 => "address translation failed",
        swerr::CODE_PCI_CONFIG => "PCI configuration changed while enabled",
        swerr::CODE_COMMAND_BUSY => "command written while another was active",
        0x53 => "descriptor lost, the dedicated queue was full",
        _ => "error",
    }
}
