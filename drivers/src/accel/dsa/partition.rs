// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the device's queue entries are shared out.
//!
//! The size of a work queue can be written only while the whole device is disabled, so the sizes are
//! decided once, at bring-up, from what the configuration asks for; what is left is spread evenly over the
//! queues nobody named, so that later vdevs find something too.

use alloc::vec::Vec;

/// What the configuration wants from a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Partition {
    /// Entries of each queue wanted, in the order of the configuration; `None` where it leaves the size
    /// open. Wishes that cannot be met are passed over here and refused when the vdev is created, where
    /// the VM's name is known.
    pub queues: Vec<Option<u16>>,
}

/// Size of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueSize {
    /// Entries; 0 means the queue cannot be used.
    pub entries: u16,
    /// Whether the configuration asked for just this size.
    pub planned: bool,
}

impl Partition {
    /// Sizes for `queues` queues that together have `total` entries.
    pub(super) fn sizes(&self, queues: usize, total: u16) -> Vec<QueueSize> {
        // Each wish without a size needs at least one entry in the end.
        let open = self.queues.iter().filter(|wish| wish.is_none()).count();
        let mut left = total;
        let mut sizes: Vec<QueueSize> = Vec::new();
        let sized = self.queues.iter().flatten().filter(|&&entries| entries > 0);
        for &entries in sized {
            let reserve = open.min(queues.saturating_sub(sizes.len() + 1)) as u16;
            if sizes.len() < queues && u32::from(entries) + u32::from(reserve) <= u32::from(left) {
                left -= entries;
                sizes.push(QueueSize { entries, planned: true });
            }
        }
        let rest = (queues - sizes.len()) as u16;
        for index in 0..rest {
            let extra = u16::from(index < left % rest);
            sizes.push(QueueSize { entries: left / rest + extra, planned: false });
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(plan: &[Option<u16>], queues: usize, total: u16) -> Vec<u16> {
        let partition = Partition { queues: plan.to_vec() };
        partition.sizes(queues, total).iter().map(|size| size.entries).collect()
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

    proptest! {
        #[test]
        fn never_more_than_there_is(
            plan in proptest::collection::vec(proptest::option::of(any::<u16>()), 0..20),
            queues in 1usize..40,
            total in any::<u16>(),
        ) {
            let sizes = Partition { queues: plan }.sizes(queues, total);
            prop_assert_eq!(sizes.len(), queues);
            let sum: u32 = sizes.iter().map(|size| u32::from(size.entries)).sum();
            prop_assert!(sum <= u32::from(total));
        }
    }
}
