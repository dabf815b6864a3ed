// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tags of a device lead to a page table, on one unit of any make.
//!
//! **Invariant.** A tag is taken from before the unit can know of it until the unit has confirmed that it knows
//! nothing of it any more.

use alloc::format;

use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::iommu::AttachFailed;
use pasidon_kernel::dma::pasid::Pasid;

use super::domains::DomainId;
use crate::sparse::Sparse;

/// A tag in use.
struct Attachment {
    domain: DomainId,
    /// Its end was begun and not confirmed by the unit: the tag is not free, and DMA with it may still
    /// reach the table.
    ending: bool,
}

/// The tags of one device.
#[derive(Default)]
pub(super) struct Attachments(Sparse<Attachment>);

impl Attachments {
    /// Refuses a tag that is taken.
    pub(super) fn check_free(&self, tag: Pasid) -> Result<(), Refusal> {
        let (why, remedy) = match self.0.get(tag.value() as usize) {
            None => return Ok(()),
            Some(Attachment { ending: false, .. }) => ("attached already", "detach it first"),
            Some(Attachment { ending: true, .. }) => {
                ("the end of its last attachment was not confirmed by the IOMMU", "detach it again first")
            }
        };
        Err(Refusal::new(format!("PASID {tag}"), why, remedy))
    }

    /// Takes a free tag.
    pub(super) fn begin(&mut self, tag: Pasid, domain: DomainId) {
        let attachment = Attachment { domain, ending: false };
        self.0.insert(tag.value() as usize, attachment);
    }

    /// It went wrong after the entry was written, so the unit may know it: the end of a tag that was begun begins.
    pub(super) fn failed(&mut self, tag: Pasid, refusal: Refusal) -> AttachFailed {
        if let Some(attachment) = self.0.get_mut(tag.value() as usize) {
            attachment.ending = true;
        }
        AttachFailed { refusal, tag_kept: true }
    }

    /// Its end begins: the domain that it led to. May be repeated.
    pub(super) fn end(&mut self, tag: Pasid) -> Result<DomainId, Refusal> {
        let attachment = self
            .0
            .get_mut(tag.value() as usize)
            .ok_or_else(|| Refusal::new(format!("PASID {tag}"), "not attached on this device", ""))?;
        attachment.ending = true;
        Ok(attachment.domain)
    }

    /// The unit has confirmed the end: the tag is free.
    pub(super) fn ended(&mut self, tag: Pasid) {
        self.0.remove(tag.value() as usize);
    }

    /// In words.
    pub(super) fn describe(&self) -> alloc::string::String {
        let ending = self.0.values().filter(|attachment| attachment.ending).count();
        format!("{} PASIDs attached, {ending} of them ending", self.0.len())
    }
}

/// A device that nobody claimed.
pub(super) fn not_claimed() -> Refusal {
    Refusal::new("attachment", "the device is not claimed", "claim it first")
}
