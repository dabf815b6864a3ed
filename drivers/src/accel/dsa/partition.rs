// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the device's queue entries are shared out.
//!
//! The size of a work queue can be written only while the whole device is disabled, so the sizes are
//! decided once, at bring-up, from what the configuration asks for; what is left is spread evenly over the
//! queues nobody named, so that later vdevs find something too.

use alloc::vec::Vec;

use pasidon_kernel::vdev::parent::Planned;

use super::{TYPE_DWQ, TYPE_SWQ};

/// Entries of a shared queue whose size is left open: what keeps the engines of a group busy, and not so many that who
/// comes waits long for what others have in them.
const SHARED_ENTRIES: u16 = 16;

/// What the configuration wants from a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Partition {
    /// Entries of each queue wanted, in the order of the configuration; `None` where it leaves the size
    /// open. Wishes that cannot be met are passed over here and refused when the vdev is created, where
    /// the VM's name is known.
    pub queues: Vec<Option<u16>>,
    /// Entries of the queue that is shared; 0: none is.
    pub shared: u16,
}

impl Partition {
    /// From what is planned; of what may come later only queues of a size, which get what the others leave. `shared` is
    /// what the configuration says of the shared queue; `portals`: whether vdevs with queues of their own can be had.
    pub fn new(planned: &[Planned], shared: Option<u16>, portals: bool) -> Self {
        let own = planned.iter().filter(|vdev| vdev.type_name == TYPE_DWQ);
        let own = own.filter(|vdev| !vdev.later || vdev.entries.is_some());
        let shares = planned.iter().any(|vdev| vdev.type_name == TYPE_SWQ && !vdev.later);
        let default = if shares || !portals { SHARED_ENTRIES } else { 0 };
        Self { queues: own.map(|vdev| vdev.entries).collect(), shared: shared.unwrap_or(default) }
    }
}

/// Size of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueSize {
    /// Entries; 0 means the queue cannot be used.
    pub entries: u16,
    /// Whether the configuration asked for just this size.
    pub planned: bool,
    /// Whether it is the one that is shared.
    pub shared: bool,
}

impl Partition {
    /// Sizes for `queues` queues that together have `total` entries. The last one is the shared one, where there is one.
    pub(super) fn sizes(&self, queues: usize, total: u16) -> Vec<QueueSize> {
        let shared = self.shared.min(total);
        if shared == 0 || queues == 0 {
            return self.own_sizes(queues, total);
        }
        let mut sizes = self.own_sizes(queues - 1, total - shared);
        sizes.push(QueueSize { entries: shared, planned: true, shared: true });
        sizes
    }

    fn own_sizes(&self, queues: usize, total: u16) -> Vec<QueueSize> {
        // Each wish without a size needs at least one entry in the end.
        let open = self.queues.iter().filter(|wish| wish.is_none()).count();
        let mut left = total;
        let mut sizes: Vec<QueueSize> = Vec::new();
        let sized = self.queues.iter().flatten().filter(|&&entries| entries > 0);
        for &entries in sized {
            let reserve = open.min(queues.saturating_sub(sizes.len() + 1)) as u16;
            if sizes.len() < queues && u32::from(entries) + u32::from(reserve) <= u32::from(left) {
                left -= entries;
                sizes.push(QueueSize { entries, planned: true, shared: false });
            }
        }
        let rest = (queues - sizes.len()) as u16;
        for index in 0..rest {
            let extra = u16::from(index < left % rest);
            sizes.push(QueueSize { entries: left / rest + extra, planned: false, shared: false });
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(plan: &[Option<u16>], queues: usize, total: u16) -> Vec<u16> {
        let partition = Partition { queues: plan.to_vec(), shared: 0 };
        partition.sizes(queues, total).iter().map(|size| size.entries).collect()
    }

    #[test]
    fn what_may_come_later_takes_nothing_from_what_is_there() {
        let vdev = |type_name: &str, entries, later| Planned { type_name: type_name.into(), entries, later };
        let own =
            [vdev(TYPE_DWQ, Some(64), false), vdev(TYPE_DWQ, Some(62), false), vdev(TYPE_DWQ, None, false)];
        for later in [
            None,
            Some(vdev(TYPE_DWQ, None, true)),
            Some(vdev(TYPE_SWQ, Some(8), true)),
            Some(vdev(TYPE_DWQ, Some(64), true)),
            Some(vdev(TYPE_DWQ, Some(1), true)),
        ] {
            let all: Vec<Planned> = own.iter().cloned().chain(later.clone()).collect();
            let sizes = Partition::new(&all, None, true).sizes(4, 128);
            let entries: Vec<u16> = sizes.iter().map(|size| size.entries).collect();
            assert_eq!(entries, [64, 62, 1, 1], "{later:?}");
            assert!(sizes.iter().all(|size| !size.shared), "{later:?}");
            assert!(sizes.iter().filter(|size| size.planned).count() >= 2, "{later:?}");
        }
    }

    #[test]
    fn without_a_plan_all_queues_are_equal() {
        assert_eq!(entries(&[], 8, 128), [16; 8]);
    }

    #[test]
    fn wishes_first_then_the_rest_evenly() {
        assert_eq!(entries(&[Some(32), None, Some(32)], 8, 128), [32, 32, 11, 11, 11, 11, 10, 10]);
    }

    #[test]
    fn a_wish_that_does_not_fit_takes_nothing_from_others() {
        assert_eq!(entries(&[Some(200), Some(100)], 4, 128), [100, 10, 9, 9]);
        assert_eq!(entries(&[Some(128), None], 2, 128), [64, 64]);
        assert_eq!(entries(&[Some(1); 9], 8, 8), [1; 8]);
    }

    #[test]
    fn the_shared_queue_is_the_last_and_takes_from_the_others() {
        let partition = Partition { queues: vec![Some(32)], shared: 16 };
        let sizes: Vec<(u16, bool)> =
            partition.sizes(4, 128).iter().map(|size| (size.entries, size.shared)).collect();
        assert_eq!(sizes, [(32, false), (40, false), (40, false), (16, true)]);
        assert_eq!(partition.sizes(1, 128).len(), 1);
        let all = Partition { queues: vec![], shared: 500 }.sizes(3, 128);
        assert_eq!(all.iter().map(|size| size.entries).collect::<Vec<_>>(), [0, 0, 128]);
    }

    #[test]
    fn a_shared_queue_is_made_where_somebody_wants_it_or_nothing_else_is_to_be_had() {
        let planned =
            |type_name: &str, entries| Planned { type_name: type_name.into(), entries, later: false };
        let dwq = planned("dsa-dwq", Some(8));
        let both = [dwq.clone(), planned("dsa-swq", Some(64))];
        let shared = |planned: &[Planned], shared, portals| Partition::new(planned, shared, portals).shared;
        assert_eq!(Partition::new(&both, None, true), Partition { queues: vec![Some(8)], shared: 16 });
        assert_eq!(shared(core::slice::from_ref(&dwq), None, true), 0);
        assert_eq!(shared(core::slice::from_ref(&dwq), None, false), 16);
        assert_eq!(shared(&[dwq], Some(48), true), 48);
        assert_eq!(shared(&both, Some(0), true), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(
            plan in proptest::collection::vec(proptest::option::of(any::<u16>()), 0..20),
            queues in 1usize..40,
            total in any::<u16>(),
            shared in any::<u16>(),
        ) {
            let sizes = Partition { queues: plan, shared }.sizes(queues, total);
            prop_assert_eq!(sizes.len(), queues);
            let sum: u32 = sizes.iter().map(|size| u32::from(size.entries)).sum();
            prop_assert!(sum <= u32::from(total));
        }
    }
}
