// SPDX-License-Identifier: MIT OR Apache-2.0
//! One namespace that leases come from.
//!
//! **Invariant.** Numbers not yet used are preferred, then the one that has been back for longest.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::Pasid;
use super::lease::{Counters, LeaseRecord, PasidLease, PasidQuota};
use crate::base::refusal::Refusal;
use crate::dma::attachment::Quiesced;

/// One namespace that leases come from. Leasing and returning take constant time; only for a device that cannot send all
/// of its numbers, leasing looks for one among those that came back.
#[derive(Debug)]
pub struct PasidSpace {
    first: u32,
    last: u32,
    /// The smallest number that was never leased.
    fresh: u32,
    /// Returned numbers with how often each was leased, the oldest first.
    returned: VecDeque<(Pasid, u32)>,
    counters: Arc<Counters>,
}

impl PasidSpace {
    /// All PASIDs from `first` to `last`, both included. `first` is at least 1.
    ///
    /// # Errors
    /// When there is none among them, or PASID 0, which stands for untagged DMA.
    pub fn new(first: Pasid, last: Pasid) -> Result<Self, Refusal> {
        if first.value() == 0 || first > last {
            return Err(Refusal::new(
                "PASID namespace",
                format!("{first}..={last} is empty or holds PASID 0, which stands for untagged DMA"),
                "use an IOMMU with at least one PASID bit, and a first PASID of at least 1",
            ));
        }
        Ok(Self {
            first: first.value(),
            last: last.value(),
            fresh: first.value(),
            returned: VecDeque::new(),
            counters: Arc::default(),
        })
    }

    /// Leases one number of at most `bits` bits on a VM's quota, at a time in nanoseconds since boot.
    ///
    /// # Errors
    /// When the quota or the namespace is used up.
    pub fn lease(&mut self, quota: &PasidQuota, bits: u8, now_ns: u64) -> Result<PasidLease, Refusal> {
        if quota.is_used_up() {
            return Err(Refusal::new(
                "PASID",
                format!("quota of {} used up{}", quota.limit(), of_which_retired(quota.retired())),
                if quota.retired() == 0 {
                    "raise pasids of this VM or destroy one of its vdevs"
                } else {
                    "raise pasids of this VM, destroy one of its vdevs, or reset the parent"
                },
            ));
        }
        let last = self.last.min(largest(bits));
        let (pasid, used_before) = if self.fresh <= last {
            self.fresh += 1;
            (Pasid(self.fresh - 1), 0)
        } else {
            let fits = self.returned.iter().position(|(pasid, _)| pasid.value() <= last);
            fits.and_then(|at| self.returned.remove(at)).ok_or_else(|| self.used_up(last))?
        };
        let record = LeaseRecord { pasid, since_ns: now_ns, used_before };
        Ok(PasidLease::new(record, quota, &self.counters))
    }

    /// Takes a number back from an attachment that has ended; it can be leased again. The proof carries
    /// the lease, so that the two cannot be mixed up.
    pub fn give_back(&mut self, ended: Quiesced) {
        let record = ended.into_lease().end(&self.counters);
        self.returned.extend(record.map(|record| (record.pasid, record.used_before.saturating_add(1))));
    }

    /// How many are leased now.
    pub fn leased(&self) -> u32 {
        self.counters.leased.load(Ordering::Relaxed)
    }

    /// How many are not used again, because their end was not confirmed.
    pub fn retired(&self) -> u32 {
        self.counters.retired.load(Ordering::Relaxed)
    }

    /// There is none up to `last`.
    fn used_up(&self, last: u32) -> Refusal {
        let retired = of_which_retired(self.retired());
        let (first, all) = (self.first, self.last);
        if last < all {
            let why = format!("all that the device can send, {first}..={last}, are in use{retired}");
            return Refusal::new("PASID", why, "destroy a vdev");
        }
        let count = all - first + 1;
        let why = format!("all {count} of {first}..={all} are in use{retired}");
        Refusal::new("PASID", why, "destroy a vdev")
    }
}

/// The largest number of so many bits.
const fn largest(bits: u8) -> u32 {
    if bits as u32 >= Pasid::BITS { (1 << Pasid::BITS) - 1 } else { (1 << bits) - 1 }
}

fn of_which_retired(retired: u32) -> alloc::string::String {
    if retired == 0 {
        alloc::string::String::new()
    } else {
        format!(" ({retired} retired after a failed stop)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::VmId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn space(first: u32, last: u32) -> PasidSpace {
        PasidSpace::new(Pasid(first), Pasid(last)).unwrap()
    }

    /// A device that can send every number.
    const WIDE: u8 = Pasid::BITS as u8;

    #[test]
    fn zero_is_never_leased() {
        assert!(PasidSpace::new(Pasid(0), Pasid(7)).is_err());
        assert!(PasidSpace::new(Pasid(8), Pasid(7)).is_err());
    }

    #[test]
    fn a_number_that_came_back_is_used_last() {
        let mut space = space(1, 3);
        let quota = PasidQuota::new(VmId(0), 3);
        let first = space.lease(&quota, WIDE, 0).unwrap();
        assert_eq!(first.pasid(), Pasid(1));
        space.give_back(Quiesced::for_test(first));
        let next: Vec<u32> = (0..3)
            .map(|_| {
                let lease = space.lease(&quota, WIDE, 0).unwrap();
                let number = lease.pasid().value();
                core::mem::forget(lease);
                number
            })
            .collect();
        assert_eq!(next, [2, 3, 1]);
    }

    #[test]
    fn a_lease_tells_since_when_it_is_and_how_often_the_number_was_leased() {
        let mut space = space(1, 2);
        let quota = PasidQuota::new(VmId(0), 2);
        let other = space.lease(&quota, WIDE, 5).unwrap();
        assert_eq!(other.record(), LeaseRecord { pasid: Pasid(1), since_ns: 5, used_before: 0 });
        for round in 0..3 {
            let lease = space.lease(&quota, WIDE, 10 + u64::from(round)).unwrap();
            let expected =
                LeaseRecord { pasid: Pasid(2), since_ns: 10 + u64::from(round), used_before: round };
            assert_eq!(lease.record(), expected);
            space.give_back(Quiesced::for_test(lease));
        }
    }

    #[test]
    fn quota_and_namespace_refuse_with_a_remedy() {
        let mut space = space(1, 2);
        let small = PasidQuota::new(VmId(0), 1);
        let kept = space.lease(&small, WIDE, 0).unwrap();
        assert_eq!(
            space.lease(&small, WIDE, 0).unwrap_err().to_string(),
            "PASID: quota of 1 used up; raise pasids of this VM or destroy one of its vdevs"
        );
        let large = PasidQuota::new(VmId(1), 9);
        let other = space.lease(&large, WIDE, 0).unwrap();
        assert_eq!(
            space.lease(&large, WIDE, 0).unwrap_err().to_string(),
            "PASID: all 2 of 1..=2 are in use; destroy a vdev"
        );
        assert_eq!((space.leased(), small.leased(), large.leased()), (2, 1, 1));
        space.give_back(Quiesced::for_test(kept));
        space.give_back(Quiesced::for_test(other));
        assert_eq!((space.leased(), space.retired()), (0, 0));
    }

    #[test]
    fn a_narrow_device_gets_what_it_can_send_or_hears_why_not() {
        let mut space = space(1, 9);
        let quota = PasidQuota::new(VmId(0), 9);
        let low = space.lease(&quota, 1, 0).unwrap();
        assert_eq!(low.pasid(), Pasid(1));
        assert_eq!(
            space.lease(&quota, 1, 0).unwrap_err().to_string(),
            "PASID: all that the device can send, 1..=1, are in use; \
             destroy a vdev"
        );
        let others: Vec<PasidLease> = (2..=9).map(|_| space.lease(&quota, WIDE, 0).unwrap()).collect();
        for lease in others.into_iter().rev().chain([low]) {
            space.give_back(Quiesced::for_test(lease));
        }
        // Its only number came back as the last one.
        assert_eq!(space.lease(&quota, 1, 0).unwrap().pasid(), Pasid(1));
        assert_eq!(space.lease(&quota, WIDE, 0).unwrap().pasid(), Pasid(9));
        assert!(space.lease(&quota, 0, 0).is_err());
    }

    #[test]
    fn a_dropped_lease_is_retired_and_stays_on_the_quota() {
        let mut space = space(1, 1);
        let quota = PasidQuota::new(VmId(0), 1);
        drop(space.lease(&quota, WIDE, 0).unwrap());
        assert_eq!((quota.leased(), quota.retired()), (0, 1));
        assert_eq!((space.leased(), space.retired()), (0, 1));
        assert!(space.lease(&quota, WIDE, 0).unwrap_err().why.contains("1 retired"));
        let other = PasidQuota::new(VmId(1), 1);
        assert!(space.lease(&other, WIDE, 0).unwrap_err().why.contains("1 retired"));
    }

    #[test]
    fn a_lease_of_another_namespace_is_not_taken() {
        let (mut one, mut two) = (space(1, 1), space(1, 1));
        let quota = PasidQuota::new(VmId(0), 1);
        let lease = one.lease(&quota, WIDE, 0).unwrap();
        two.give_back(Quiesced::for_test(lease));
        assert_eq!(one.retired(), 1);
        assert!(two.returned.is_empty());
    }

    proptest! {
        /// Steps: 0 leases, 1 gives back, 2 drops; on one of three VMs.
        #[test]
        fn no_number_is_leased_twice_and_the_counters_agree(
            steps in proptest::collection::vec((0u8..3, 0u16..3, any::<prop::sample::Index>()), 0..200)
        ) {
            let mut space = space(3, 12);
            let quotas: Vec<PasidQuota> = (0..3).map(|vm| PasidQuota::new(VmId(vm), 5)).collect();
            let mut live: Vec<PasidLease> = Vec::new();
            let mut retired = BTreeSet::new();
            for (step, vm, index) in steps {
                match step {
                    0 => if let Ok(lease) = space.lease(&quotas[usize::from(vm)], WIDE, 0) {
                        prop_assert!((3..=12).contains(&lease.pasid().value()));
                        prop_assert!(live.iter().all(|other| other.pasid() != lease.pasid()));
                        prop_assert!(!retired.contains(&lease.pasid()));
                        live.push(lease);
                    },
                    _ if live.is_empty() => {}
                    1 => {
                        let lease = live.swap_remove(index.index(live.len()));
                        space.give_back(Quiesced::for_test(lease));
                    }
                    _ => {
                        let lease = live.swap_remove(index.index(live.len()));
                        retired.insert(lease.pasid());
                    }
                }
                prop_assert_eq!(space.leased() as usize, live.len());
                prop_assert_eq!(space.retired() as usize, retired.len());
                for quota in &quotas {
                    let held = live.iter().filter(|lease| lease.owner() == quota.owner()).count();
                    prop_assert_eq!(quota.leased() as usize, held);
                    prop_assert!(quota.leased() + quota.retired() <= quota.limit());
                }
            }
        }
    }
}
