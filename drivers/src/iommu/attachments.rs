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
    /// What it led to before, which the unit has not confirmed to have forgotten.
    before: Option<DomainId>,
    /// Its end was begun and not confirmed by the unit: the tag is not free, and DMA with it may still
    /// reach the table.
    ending: bool,
}

/// What a tag led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parted {
    /// Its domain.
    pub domain: DomainId,
    /// The one before, where it was replaced and that was not confirmed.
    pub before: Option<DomainId>,
}

impl Parted {
    /// All of them.
    pub(super) fn domains(self) -> impl Iterator<Item = DomainId> {
        [Some(self.domain), self.before].into_iter().flatten()
    }
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
        let attachment = Attachment { domain, before: None, ending: false };
        self.0.insert(tag.value() as usize, attachment);
    }

    /// It went wrong after the entry was written, so the unit may know it: the end of a tag that was begun begins.
    pub(super) fn failed(&mut self, tag: Pasid, refusal: Refusal) -> AttachFailed {
        if let Some(attachment) = self.0.get_mut(tag.value() as usize) {
            attachment.ending = true;
        }
        AttachFailed { refusal, tag_kept: true }
    }

    /// It is about to lead to another domain: the one that it leads to.
    pub(super) fn replace(&mut self, tag: Pasid, domain: DomainId) -> Result<DomainId, Refusal> {
        let attachment = self.attachment(tag)?;
        let refuse = |why, remedy| Err(Refusal::new(format!("PASID {tag}"), why, remedy));
        if attachment.ending {
            return refuse(
                "the end of its attachment was not confirmed by the IOMMU",
                "detach it again first",
            );
        }
        if attachment.before.is_some() {
            return refuse("its last replacement was not confirmed by the IOMMU", "detach it");
        }
        if attachment.domain == domain {
            return refuse("it is attached to that table already", "name another");
        }
        let before = core::mem::replace(&mut attachment.domain, domain);
        attachment.before = Some(before);
        Ok(before)
    }

    /// The unit has forgotten where it led to before.
    pub(super) fn replaced(&mut self, tag: Pasid) {
        if let Some(attachment) = self.0.get_mut(tag.value() as usize) {
            attachment.before = None;
        }
    }

    fn attachment(&mut self, tag: Pasid) -> Result<&mut Attachment, Refusal> {
        let attachment = self.0.get_mut(tag.value() as usize);
        attachment.ok_or_else(|| Refusal::new(format!("PASID {tag}"), "not attached on this device", ""))
    }

    /// Its end begins: the domain that it led to, and one that it may still lead to. May be repeated.
    pub(super) fn end(&mut self, tag: Pasid) -> Result<Parted, Refusal> {
        let attachment = self.attachment(tag)?;
        attachment.ending = true;
        Ok(Parted { domain: attachment.domain, before: attachment.before })
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
