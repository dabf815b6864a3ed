// SPDX-License-Identifier: MIT OR Apache-2.0
//! The joining of tag and table, and the order in which it ends.
//!
//! **Principle.** The order is in the types. An [`Attachment`] is made from a [`PasidLease`] by
//! [`Attachment::attach`] and consumed by [`Attachment::end`], which asks for the device's word that the
//! queue has stopped ([`DeviceQuiesced`]) and makes [`Quiesced`] only after the IOMMU has confirmed the
//! detach. [`crate::dma::pasid::PasidSpace::give_back`] takes nothing but that proof. Forgetting a step does
//! not compile; a step that fails retires the PASID.
//!
//! **Invariant.** An attachment whose end was not confirmed stays listed in its I/O address space, which
//! can therefore not be destroyed, and so its memory is not reused.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::base::addr::{HostPhys, PAGE_SIZE, Requester};
use crate::base::id::VdevId;
use crate::base::refusal::Refusal;
use crate::dma::ioas::IoAddressSpace;
use crate::dma::iommu::AttachFailed;
use crate::dma::pasid::{LeaseRecord, Pasid, PasidLease};
use crate::dma::window::Window;
use crate::vdev::parent::DeviceQuiesced;

/// Proof that nothing can send with a PASID any more: its queue has stopped and the IOMMU has forgotten
/// it. Carries the lease, for return or for another attachment.
#[derive(Debug)]
pub struct Quiesced(PasidLease);

impl Quiesced {
    /// The PASID that is quiet.
    pub fn pasid(&self) -> Pasid {
        self.0.pasid()
    }

    pub(crate) fn into_lease(self) -> PasidLease {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(lease: PasidLease) -> Self {
        Self(lease)
    }
}

/// An attachment was not made, and what became of its lease.
#[derive(Debug)]
pub struct NotAttached {
    /// Why.
    pub refusal: Refusal,
    /// Quiet, where the tag reaches nothing; retired, where the IOMMU kept it.
    pub lease: Result<Quiesced, Box<RetiredAttachment>>,
}

/// An attachment whose end was not confirmed. It keeps what the device may still reach: the PASID is not
/// used again, the I/O address space cannot be destroyed, until [`RetiredAttachment::end`] is confirmed.
#[derive(Debug)]
pub struct RetiredAttachment {
    /// The tag.
    pub pasid: Pasid,
    /// Who may still send with it.
    pub requester: Requester,
    /// Whose queue it was.
    pub vdev: VdevId,
    /// Why.
    pub why: String,
    lease: PasidLease,
    joined: Joined,
    /// The device does not send with the tag; it is the IOMMU that did not confirm.
    stopped: bool,
}

impl RetiredAttachment {
    /// Tries once more to part tag and table: with the device's word, if it has stopped since, or without
    /// where it was only the IOMMU that had failed.
    ///
    /// # Errors
    /// When the device still may send, or the IOMMU does not confirm.
    pub fn end(mut self, stopped: Option<DeviceQuiesced>) -> Result<Quiesced, Self> {
        self.stopped |= stopped.is_some();
        if !self.stopped {
            return Err(self);
        }
        match self.joined.part(self.requester, self.pasid) {
            Ok(()) => Ok(Quiesced(self.lease)),
            Err(refusal) => {
                self.why = refusal.to_string();
                Err(self)
            }
        }
    }

    /// What is told of its PASID.
    pub(crate) fn lease(&self) -> LeaseRecord {
        self.lease.record()
    }

    /// Whether the device is known not to send with the tag any more.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the slice's driver must keep a page that the device may still be led to.
    pub(crate) fn has_window(&self) -> bool {
        self.joined.has_window()
    }

    /// The address space behind it.
    pub fn ioas(&self) -> &Arc<IoAddressSpace> {
        &self.joined.ioas
    }
}

/// What a tag reaches, or may.
#[derive(Debug)]
struct Joined {
    ioas: Arc<IoAddressSpace>,
    /// A page that the driver shares with the slice, in that address space.
    window: Option<Window>,
    /// What an exchange has left, where it was not clean.
    elsewhere: Option<Box<Elsewhere>>,
}

/// What is to be taken back at the end.
#[derive(Debug, Default)]
struct Elsewhere {
    /// An address space that the tag may reach as well, since its replacement was not confirmed.
    before: Option<Arc<IoAddressSpace>>,
    /// Others that still have the page.
    windows: Vec<Arc<IoAddressSpace>>,
}

impl Joined {
    /// Leads the tag to another address space, in which its window has the same place.
    fn replace(
        &mut self,
        to: &Arc<IoAddressSpace>,
        requester: Requester,
        pasid: Pasid,
    ) -> Result<(), Refusal> {
        if self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.before.is_some()) {
            return Err(Refusal::new(
                format!("PASID {pasid}"),
                "its last replacement was not confirmed",
                "end the vdev",
            ));
        }
        if Arc::ptr_eq(to, &self.ioas) {
            return self.ioas.replace(to, requester, pasid).map_err(|failed| failed.refusal);
        }
        // A device that is on its way to the new one finds its window there.
        let window = self.window.map(|window| to.map_window(window.page, Some(window.iova))).transpose()?;
        match self.ioas.replace(to, requester, pasid) {
            Ok(()) => {
                let before = core::mem::replace(&mut self.ioas, to.clone());
                self.drop_window(before, window);
                Ok(())
            }
            Err(AttachFailed { refusal, tag_kept: true }) => {
                let before = core::mem::replace(&mut self.ioas, to.clone());
                let elsewhere = self.elsewhere.get_or_insert_default();
                elsewhere.windows.extend(window.map(|_| before.clone()));
                elsewhere.before = Some(before);
                Err(refusal)
            }
            Err(AttachFailed { refusal, tag_kept: false }) => {
                self.drop_window(to.clone(), window);
                Err(refusal)
            }
        }
    }

    /// The window is needed in an address space no more. Where it cannot be taken out, that is done at the end.
    fn drop_window(&mut self, from: Arc<IoAddressSpace>, window: Option<Window>) {
        let kept = window.is_some_and(|window| from.unmap(window.iova, PAGE_SIZE).is_err());
        if kept {
            self.elsewhere.get_or_insert_default().windows.push(from);
        }
    }

    /// Takes the window away, and parts tag and table. The device has stopped sending with the tag.
    fn part(&mut self, requester: Requester, pasid: Pasid) -> Result<(), Refusal> {
        if let Some(present) = self.window {
            let mut windows = self.elsewhere.as_mut().map(|elsewhere| &mut elsewhere.windows);
            while let Some((space, windows)) = windows.as_mut().and_then(|all| Some((all.pop()?, all))) {
                if !space.is_destroyed()
                    && let Err(refusal) = space.unmap(present.iova, PAGE_SIZE)
                {
                    windows.push(space);
                    return Err(refusal);
                }
            }
            self.ioas.unmap(present.iova, PAGE_SIZE)?;
            self.window = None;
        }
        self.ioas.detach(requester, pasid)?;
        if let Some(before) = self.elsewhere.take().and_then(|elsewhere| elsewhere.before) {
            before.forget(requester, pasid);
        }
        Ok(())
    }

    fn has_window(&self) -> bool {
        self.window.is_some()
    }
}

/// One tag of one device, joined to one table.
#[derive(Debug)]
pub struct Attachment {
    requester: Requester,
    vdev: VdevId,
    lease: PasidLease,
    joined: Joined,
}

impl Attachment {
    /// Joins them in the IOMMU. The queue must not have been given the tag yet.
    ///
    /// # Errors
    /// When lease and address space belong to different VMs, or the IOMMU refuses.
    pub fn attach(
        requester: Requester,
        vdev: VdevId,
        lease: PasidLease,
        ioas: &Arc<IoAddressSpace>,
    ) -> Result<Self, NotAttached> {
        let pasid = lease.pasid();
        let joined = if lease.owner() == ioas.owner() {
            ioas.attach(requester, pasid)
        } else {
            Err(AttachFailed::from(Refusal::new(
                format!("PASID {pasid}"),
                format!("leased to VM {}, the I/O address space is of VM {}", lease.owner(), ioas.owner()),
                "attach a VM's vdevs to its own address spaces",
            )))
        };
        let reached = Joined { ioas: ioas.clone(), window: None, elsewhere: None };
        let attachment = Self { requester, vdev, lease, joined: reached };
        match joined {
            Ok(()) => Ok(attachment),
            Err(AttachFailed { refusal, tag_kept }) => Err(NotAttached {
                lease: if tag_kept {
                    Err(Box::new(attachment.retire(refusal.to_string(), true)))
                } else {
                    Ok(Quiesced(attachment.lease))
                },
                refusal,
            }),
        }
    }

    /// The tag.
    pub fn pasid(&self) -> Pasid {
        self.lease.pasid()
    }

    /// What is told of the tag.
    pub(crate) fn lease(&self) -> LeaseRecord {
        self.lease.record()
    }

    /// The device.
    pub fn requester(&self) -> Requester {
        self.requester
    }

    /// The address space.
    pub fn ioas(&self) -> &Arc<IoAddressSpace> {
        &self.joined.ioas
    }

    /// Lets the slice's device reach a page that its driver keeps until [`Attachment::end`] is confirmed. Once.
    ///
    /// # Errors
    /// When it has one, or the address space has no place for it.
    pub(crate) fn add_window(&mut self, page: HostPhys) -> Result<Window, Refusal> {
        if self.joined.has_window() {
            return Err(Refusal::new(
                format!("PASID {}", self.pasid()),
                "it has a window already",
                "keep it",
            ));
        }
        let window = self.joined.ioas.map_window(page, None)?;
        self.joined.window = Some(window);
        Ok(window)
    }

    /// Parts tag and table, after the device has stopped.
    ///
    /// # Errors
    /// When the IOMMU does not confirm.
    pub fn end(mut self, stopped: DeviceQuiesced) -> Result<Quiesced, RetiredAttachment> {
        let DeviceQuiesced { .. } = stopped;
        match self.joined.part(self.requester, self.lease.pasid()) {
            Ok(()) => Ok(Quiesced(self.lease)),
            Err(refusal) => Err(self.retire(refusal.to_string(), true)),
        }
    }

    /// Puts another address space of the same VM behind the same tag, while the device may be sending: each access meets
    /// one of the two, and from the return on the new one.
    ///
    /// # Errors
    /// When they are not of one VM, or the address space or the IOMMU refuses. Where the IOMMU did not confirm, the tag may
    /// reach both until its end, and is not led elsewhere.
    pub fn replace(&mut self, ioas: &Arc<IoAddressSpace>) -> Result<(), Refusal> {
        if ioas.owner() != self.joined.ioas.owner() {
            return Err(Refusal::new(
                format!("I/O address space {}", ioas.id()),
                format!("it is of VM {}, the vdev of VM {}", ioas.owner(), self.joined.ioas.owner()),
                "attach a VM's vdevs to its own address spaces",
            ));
        }
        self.joined.replace(ioas, self.requester, self.lease.pasid())
    }

    /// Gives up on an attachment that cannot be ended now. `stopped` says whether the device has stopped
    /// sending with the tag.
    pub(crate) fn retire(mut self, why: String, stopped: bool) -> RetiredAttachment {
        self.lease.retire();
        RetiredAttachment {
            pasid: self.lease.pasid(),
            requester: self.requester,
            vdev: self.vdev,
            why,
            lease: self.lease,
            joined: self.joined,
            stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{IoasId, VmId};
    use crate::dma::iommu::Iommu;
    use crate::dma::pasid::{PasidQuota, PasidSpace};
    use crate::testing::{Fail, REQUESTER, SharedTruth};

    struct Fixture {
        truth: &'static SharedTruth,
        pasids: PasidSpace,
        quota: PasidQuota,
    }

    fn fixture() -> Fixture {
        let truth: &'static SharedTruth = Box::leak(Box::new(SharedTruth::new(0)));
        truth.claim(REQUESTER).unwrap();
        let pasid = |value| Pasid::new(value).unwrap();
        Fixture {
            truth,
            pasids: PasidSpace::new(pasid(1), pasid(3)).unwrap(),
            quota: PasidQuota::new(VmId(1), 3),
        }
    }

    impl Fixture {
        fn space(&self, id: u32, owner: u16) -> Arc<IoAddressSpace> {
            Arc::new(IoAddressSpace::create(IoasId(id), VmId(owner), self.truth, false).unwrap())
        }

        fn attach(&mut self, ioas: &Arc<IoAddressSpace>) -> Result<Attachment, NotAttached> {
            let lease = self.pasids.lease(&self.quota, 20, 0).unwrap();
            Attachment::attach(REQUESTER, VdevId(1), lease, ioas)
        }

        /// What is attached: PASID and table.
        fn attached(&self) -> Vec<(u32, u32)> {
            let truth = self.truth.lock();
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
            truth.attached.iter().map(|((_, pasid), table)| (pasid.value(), table.0)).collect()
        }
    }

    fn stopped() -> DeviceQuiesced {
        DeviceQuiesced::confirmed_by_device()
    }

    #[test]
    fn a_pasid_of_one_vm_is_not_attached_to_anothers_space() {
        let mut fixture = fixture();
        let foreign = fixture.space(1, 2);
        let failed = fixture.attach(&foreign).unwrap_err();
        assert!(failed.refusal.why.contains("leased to VM 1"));
        assert_eq!(fixture.attached(), []);
        fixture.pasids.give_back(failed.lease.unwrap());
        assert_eq!((fixture.quota.leased(), fixture.quota.retired()), (0, 0));
    }

    #[test]
    fn replace_moves_the_same_tag_to_another_table() {
        let mut fixture = fixture();
        let (one, two) = (fixture.space(1, 1), fixture.space(2, 1));
        let mut attachment = fixture.attach(&one).unwrap();
        assert_eq!(fixture.attached(), [(1, 1)]);
        attachment.replace(&two).unwrap();
        assert_eq!((fixture.attached(), attachment.ioas().id()), (vec![(1, 2)], IoasId(2)));
        one.destroy().unwrap();
        assert!(two.destroy().is_err());
        assert!(attachment.replace(&one).is_err(), "it is gone");
        assert!(attachment.replace(&two).is_err(), "it is there");
        assert!(attachment.replace(&fixture.space(3, 2)).unwrap_err().why.contains("of VM 2"));
        fixture.pasids.give_back(attachment.end(stopped()).unwrap());
        two.destroy().unwrap();
        assert_eq!(fixture.attached(), []);
        assert_eq!(fixture.pasids.leased(), 0);
    }

    #[test]
    fn a_window_goes_with_a_replacement() {
        let mut fixture = fixture();
        let (one, two) = (fixture.space(1, 1), fixture.space(2, 1));
        let windows = |fixture: &Fixture| -> Vec<u32> {
            let truth = fixture.truth.lock();
            truth.tables.iter().filter(|(_, maps)| !maps.is_empty()).map(|(table, _)| table.0).collect()
        };
        let mut attachment = fixture.attach(&one).unwrap();
        let window = attachment.add_window(HostPhys(0x10_0000)).unwrap();
        // Another's is at its place.
        let taken = two.map_window(HostPhys(0x20_0000), None).unwrap();
        assert_eq!(taken.iova, window.iova);
        assert!(attachment.replace(&two).is_err());
        assert_eq!(fixture.attached(), [(1, 1)]);
        two.unmap(taken.iova, PAGE_SIZE).unwrap();
        // Refused by the IOMMU: nothing is left in the other.
        fixture.truth.fail(Fail::Replace);
        assert!(attachment.replace(&two).is_err());
        assert_eq!((fixture.attached(), windows(&fixture)), (vec![(1, 1)], vec![1]));
        attachment.replace(&two).unwrap();
        assert_eq!((fixture.attached(), windows(&fixture)), (vec![(1, 2)], vec![2]));
        // It cannot be taken out of the one before: the end does that.
        fixture.truth.fail(Fail::Unmap);
        attachment.replace(&one).unwrap();
        assert_eq!(windows(&fixture), [1, 2]);
        fixture.truth.fail(Fail::Unmap);
        let retired = attachment.end(stopped()).unwrap_err();
        assert!(retired.has_window() && one.destroy().is_err());
        fixture.pasids.give_back(retired.end(None).unwrap());
        assert_eq!(windows(&fixture), [0u32; 0]);
        for space in [one, two] {
            space.destroy().unwrap();
        }
    }

    #[test]
    fn a_replacement_that_is_not_confirmed_holds_both_until_the_end() {
        let mut fixture = fixture();
        let (one, two) = (fixture.space(1, 1), fixture.space(2, 1));
        let mut attachment = fixture.attach(&one).unwrap();
        attachment.add_window(HostPhys(0x10_0000)).unwrap();
        fixture.truth.fail(Fail::ReplaceHalfway);
        assert!(attachment.replace(&two).is_err());
        assert!(one.destroy().is_err() && two.destroy().is_err());
        assert!(attachment.replace(&one).unwrap_err().why.contains("not confirmed"));
        fixture.truth.fail(Fail::Detach);
        let retired = attachment.end(stopped()).unwrap_err();
        assert_eq!((retired.pasid.value(), retired.ioas().id()), (1, IoasId(2)));
        assert!(one.destroy().is_err() && two.destroy().is_err());
        assert_eq!((fixture.quota.leased(), fixture.quota.retired()), (0, 1));
        // The device did stop; when the IOMMU answers again, the tag can still be parted.
        fixture.pasids.give_back(retired.end(None).unwrap());
        assert_eq!((fixture.quota.leased(), fixture.quota.retired()), (0, 0));
        one.destroy().unwrap();
        two.destroy().unwrap();
        assert!(fixture.truth.lock().violations.is_empty());
    }

    #[test]
    fn a_tag_that_may_be_sent_with_is_parted_only_with_the_devices_word() {
        let mut fixture = fixture();
        let one = fixture.space(1, 1);
        let retired = fixture.attach(&one).unwrap().retire("stuck".to_string(), false);
        let retired = retired.end(None).unwrap_err();
        assert_eq!((fixture.attached(), fixture.quota.retired()), (vec![(1, 1)], 1));
        fixture.pasids.give_back(retired.end(Some(stopped())).unwrap());
        assert_eq!((fixture.attached(), fixture.quota.retired()), (vec![], 0));
    }

    #[test]
    fn an_attachment_that_is_dropped_is_retired() {
        let mut fixture = fixture();
        let one = fixture.space(1, 1);
        drop(fixture.attach(&one).unwrap());
        assert_eq!(fixture.quota.retired(), 1);
        assert!(one.destroy().is_err());
    }

    #[test]
    fn a_window_that_was_left_in_a_space_goes_with_it() {
        let mut fixture = fixture();
        let (one, two) = (fixture.space(1, 1), fixture.space(2, 1));
        let mut attachment = fixture.attach(&one).unwrap();
        attachment.add_window(HostPhys(0x10_0000)).unwrap();
        fixture.truth.fail(Fail::Unmap);
        attachment.replace(&two).unwrap();
        one.destroy().unwrap();
        fixture.pasids.give_back(attachment.end(stopped()).unwrap());
        two.destroy().unwrap();
        assert!(fixture.truth.lock().violations.is_empty());
    }
}
