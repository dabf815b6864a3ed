// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of physical memory as the firmware lists them: a start, and a length in bytes.

use alloc::vec::Vec;

use crate::base::addr::HostPhys;

/// The same memory in as few ranges as there can be, sorted. None may reach beyond the last address.
pub fn merged(ranges: &[(HostPhys, u64)]) -> Vec<(HostPhys, u64)> {
    let mut sorted: Vec<(HostPhys, u64)> = ranges.iter().copied().filter(|(_, length)| *length > 0).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(HostPhys, u64)> = Vec::new();
    for (start, length) in sorted {
        match merged.last_mut() {
            Some((first, known)) if start.0 - first.0 <= *known => {
                *known = (*known).max(start.0 - first.0 + length);
            }
            _ => merged.push((start, length)),
        }
    }
    merged
}

/// Takes `bytes` out of one of these ranges, which do not overlap: from the end of the smallest that has them, so
/// that the large ones stay whole. `None`: none has.
pub fn carve(ranges: &mut Vec<(HostPhys, u64)>, bytes: u64) -> Option<HostPhys> {
    let fits = |(_, length): &&mut (HostPhys, u64)| *length >= bytes;
    let (start, length) = ranges.iter_mut().filter(fits).min_by_key(|(_, length)| *length)?;
    *length -= bytes;
    let carved = HostPhys(start.0 + *length);
    ranges.retain(|(_, length)| *length > 0);
    Some(carved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(of: &[(u64, u64)]) -> Vec<(HostPhys, u64)> {
        of.iter().map(|&(start, length)| (HostPhys(start), length)).collect()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let before =
            ranges(&[(0x9000, 0x1000), (0x1000, 0x2000), (0, 0x1000), (0x2000, 0x2000), (0x5000, 0)]);
        assert_eq!(merged(&before), ranges(&[(0, 0x4000), (0x9000, 0x1000)]));
    }

    #[test]
    fn the_smallest_that_is_large_enough_gives() {
        let mut free = ranges(&[(0x1000, 0x1000), (0x10000, 0x3000), (0x20000, 0x9000)]);
        assert_eq!(carve(&mut free, 0x2000), Some(HostPhys(0x11000)));
        assert_eq!(carve(&mut free, 0x1000), Some(HostPhys(0x1000)));
        assert_eq!(free, ranges(&[(0x10000, 0x1000), (0x20000, 0x9000)]));
        assert_eq!(carve(&mut free, 0x9001), None);
        assert_eq!(free, ranges(&[(0x10000, 0x1000), (0x20000, 0x9000)]));
    }

    proptest! {
        #[test]
        fn every_address_is_where_it_was(
            before in proptest::collection::vec((0u64..100, 0u64..20), 0..12),
            wanted in 1u64..30,
        ) {
            let holds = |ranges: &[(HostPhys, u64)], at: u64| {
                ranges.iter().filter(|(start, length)| start.0 <= at && at - start.0 < *length).count()
            };
            let before = ranges(&before);
            let mut free = merged(&before);
            prop_assert!(free.windows(2).all(|pair| pair[0].0.0 + pair[0].1 < pair[1].0.0), "{:?}", free);
            for at in 0..130 {
                prop_assert_eq!(holds(&free, at), usize::from(holds(&before, at) > 0), "{}", at);
            }
            let whole = free.clone();
            let carved: Vec<(HostPhys, u64)> =
                carve(&mut free, wanted).into_iter().map(|start| (start, wanted)).collect();
            prop_assert_eq!(carved.is_empty(), whole.iter().all(|(_, length)| *length < wanted));
            for at in 0..130 {
                prop_assert_eq!(holds(&free, at) + holds(&carved, at), holds(&whole, at), "{}", at);
            }
        }
    }
}
