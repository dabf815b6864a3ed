// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which numbers differ from which: those of the host, or those of each device.
//!
//! **Principle.** An IOMMU finds a table by requester *and* PASID, so two devices can send the same number and mean two
//! tables. One namespace for the host makes a number say by itself whose it is; one for each device gives each all that it
//! can send, however few others leave.
//!
//! Sources: Intel VT-d 3.4 (a PASID table per context entry), Arm SMMUv3 5.4 (CDs per stream), PCIe 6.20.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;

use super::lease::{PasidLease, PasidQuota};
use super::{NamespaceScope, Pasid, PasidSpace};
use crate::base::addr::Requester;
use crate::base::refusal::Refusal;
use crate::dma::attachment::Quiesced;
use crate::monitor::info::PasidSpaceInfo;

/// All namespaces, from [`PasidNamespaces::FIRST`] to the same last number.
#[derive(Debug)]
pub struct PasidNamespaces {
    scope: NamespaceScope,
    last: Pasid,
    /// By device, or the host's under no device. Made when the first number is asked for.
    spaces: BTreeMap<Option<Requester>, PasidSpace>,
}

impl PasidNamespaces {
    /// The smallest number that is leased; 0 stands for untagged DMA.
    pub const FIRST: Pasid = Pasid(1);

    /// Numbers up to `last` in each.
    ///
    /// # Errors
    /// As [`PasidSpace::new`].
    pub fn new(scope: NamespaceScope, last: Pasid) -> Result<Self, Refusal> {
        PasidSpace::new(Self::FIRST, last)?;
        Ok(Self { scope, last, spaces: BTreeMap::new() })
    }

    fn key(&self, device: Requester) -> Option<Requester> {
        (self.scope == NamespaceScope::Device).then_some(device)
    }

    /// Leases a number for a device that can send so many bits, on a VM's quota, at a time in nanoseconds since boot.
    ///
    /// # Errors
    /// When the quota is used up, or the namespace.
    pub fn lease(
        &mut self,
        device: Requester,
        bits: u8,
        quota: &PasidQuota,
        now_ns: u64,
    ) -> Result<PasidLease, Refusal> {
        let space = match self.spaces.entry(self.key(device)) {
            Entry::Vacant(none) => none.insert(PasidSpace::new(Self::FIRST, self.last)?),
            Entry::Occupied(space) => space.into_mut(),
        };
        space.lease(quota, bits, now_ns).map_err(|refusal| {
            // Others may have what this device can send.
            let narrow = self.last.value().checked_shr(bits.into()).unwrap_or(0) != 0;
            if self.scope == NamespaceScope::Host && narrow && !quota.is_used_up() {
                let remedy = "destroy a vdev, or use pasid_namespace = \"device\" in [host]".into();
                return Refusal { remedy, ..refusal };
            }
            refusal
        })
    }

    /// Takes a number back from an attachment of that device that has ended.
    pub fn give_back(&mut self, device: Requester, ended: Quiesced) {
        // Without its namespace it is retired: dropped.
        if let Some(space) = self.spaces.get_mut(&self.key(device)) {
            space.give_back(ended);
        }
    }

    /// For the monitor: all of them together.
    pub fn info(&self) -> PasidSpaceInfo {
        let sum = |count: fn(&PasidSpace) -> u32| self.spaces.values().map(count).sum();
        PasidSpaceInfo {
            first: Self::FIRST.value(),
            last: self.last.value(),
            leased: sum(PasidSpace::leased),
            retired: sum(PasidSpace::retired),
            per_device: self.scope == NamespaceScope::Device,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::VmId;

    const BITS: u8 = 20;

    fn devices() -> [Requester; 2] {
        [4, 5].map(|device| Requester::new(0, 0, device, 0))
    }

    #[test]
    fn in_the_hosts_namespace_no_two_devices_send_the_same_number() {
        let mut all = PasidNamespaces::new(NamespaceScope::Host, Pasid(2)).unwrap();
        let quota = PasidQuota::new(VmId(0), 9);
        let leases = devices().map(|device| all.lease(device, BITS, &quota, 0).unwrap());
        assert_eq!(leases.each_ref().map(PasidLease::pasid), [Pasid(1), Pasid(2)]);
        let refusal = all.lease(devices()[0], BITS, &quota, 0).unwrap_err();
        assert_eq!(refusal.to_string(), "PASID: all 2 of 1..=2 are in use; destroy a vdev");
    }

    #[test]
    fn a_device_with_a_namespace_of_its_own_has_every_number() {
        let mut all = PasidNamespaces::new(NamespaceScope::Device, Pasid(1)).unwrap();
        let quota = PasidQuota::new(VmId(0), 9);
        let [one, two] = devices();
        let leases = devices().map(|device| all.lease(device, BITS, &quota, 0).unwrap());
        assert_eq!(leases.each_ref().map(PasidLease::pasid), [Pasid(1); 2]);
        // All count on the quota, and together.
        assert_eq!((quota.leased(), all.info().leased), (2, 2));
        let [first, second] = leases;
        assert!(all.lease(one, BITS, &quota, 0).is_err());
        all.give_back(one, Quiesced::for_test(first));
        assert!(all.lease(two, BITS, &quota, 0).is_err());
        assert_eq!(all.lease(one, BITS, &quota, 0).unwrap().record().used_before, 1);
        drop(second);
        assert_eq!((all.info().retired, all.info().per_device), (2, true));
    }

    #[test]
    fn what_a_narrow_device_can_do_depends_on_whose_the_numbers_are() {
        let [one, two] = devices();
        for (scope, remedy) in [
            (NamespaceScope::Host, "destroy a vdev, or use pasid_namespace = \"device\" in [host]"),
            (NamespaceScope::Device, "destroy a vdev"),
        ] {
            let mut all = PasidNamespaces::new(scope, Pasid(9)).unwrap();
            let quota = PasidQuota::new(VmId(0), 3);
            let kept = [one, two].map(|device| all.lease(device, BITS, &quota, 0).unwrap());
            assert_eq!(all.lease(one, 1, &quota, 0).unwrap_err().remedy, remedy, "{scope:?}");
            // A quota that is used up is another matter.
            let last = all.lease(two, BITS, &quota, 0).unwrap();
            assert!(all.lease(one, 1, &quota, 0).unwrap_err().why.contains("quota of 3"));
            drop((kept, last));
        }
    }

    #[test]
    fn a_number_goes_back_to_its_own_device_only() {
        let mut all = PasidNamespaces::new(NamespaceScope::Device, Pasid(1)).unwrap();
        let quota = PasidQuota::new(VmId(0), 9);
        let [one, two] = devices();
        let [lease, other] = devices().map(|device| all.lease(device, BITS, &quota, 0).unwrap());
        all.give_back(two, Quiesced::for_test(lease));
        assert_eq!((all.info().leased, all.info().retired), (1, 1));
        assert!(all.lease(one, BITS, &quota, 0).is_err());
        assert!(all.lease(two, BITS, &quota, 0).is_err());
        drop(other);
    }

    #[test]
    fn there_is_none_without_a_number() {
        assert!(PasidNamespaces::new(NamespaceScope::Host, Pasid(0)).is_err());
    }
}
