// SPDX-License-Identifier: MIT OR Apache-2.0
//! The RAM of one life of a VM: which host memory lies behind which guest-physical address.
//!
//! **Principle.** This is the only way from a guest-physical to a host-physical address. Stage 2 and I/O
//! address spaces are both made from it, so they cannot disagree, and neither can reach beyond it.
//!
//! It is shared as `Arc<GuestRam>`: whoever still maps it holds a reference, and the frames go back only
//! from the last one.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::base::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE};
use crate::base::id::VmId;
use crate::base::refusal::Refusal;
use crate::memory::frames::{GuestFrames, Scrubbed};

/// A range of guest-physical addresses that is RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    /// First address.
    pub start: GuestPhys,
    /// Length in bytes.
    pub len: u64,
}

impl RamRange {
    /// Whether all of another range is in it.
    pub fn contains(&self, other: &Self) -> bool {
        let offset = other.start.0.checked_sub(self.start.0);
        offset.and_then(|offset| offset.checked_add(other.len)).is_some_and(|end| end <= self.len)
    }

    /// Whether there is an address in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.0 < other.start.0.saturating_add(other.len)
            && other.start.0 < self.start.0.saturating_add(self.len)
    }
}

/// A piece of RAM that is contiguous on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamSegment {
    /// Where the guest sees it.
    pub guest: GuestPhys,
    /// Where it is.
    pub host: HostPhys,
    /// Length in bytes.
    pub len: u64,
}

impl RamSegment {
    /// The host address behind a guest-physical one in it, and how many bytes follow.
    #[inline]
    fn translate(&self, address: GuestPhys) -> Option<(HostPhys, u64)> {
        let offset = address.0.checked_sub(self.guest.0)?;
        (offset < self.len).then(|| (HostPhys(self.host.0 + offset), self.len - offset))
    }
}

/// Frames laid out as one VM's RAM.
#[derive(Debug)]
pub struct GuestRam {
    owner: VmId,
    frames: GuestFrames,
    ranges: Vec<RamRange>,
    /// Ascending by guest address, without holes inside a range.
    segments: Vec<RamSegment>,
    /// The one of them in which most addresses are.
    largest: RamSegment,
}

/// Checks a layout: whole large pages, ascending, without overlap. Returns its size in bytes.
///
/// # Errors
/// When it is not that.
pub fn check_layout(ranges: &[RamRange]) -> Result<u64, Refusal> {
    let refuse = |range: &RamRange, why: &str| {
        Refusal::new(
            format!("RAM at {}, {:#x} bytes", range.start, range.len),
            why,
            "lay RAM out in ascending ranges of whole 2 MiB pages",
        )
    };
    let (mut end, mut total) = (0, 0);
    for range in ranges {
        if range.len == 0
            || !range.start.is_aligned(LARGE_PAGE_SIZE)
            || !range.len.is_multiple_of(LARGE_PAGE_SIZE)
        {
            return Err(refuse(range, "not whole 2 MiB pages"));
        }
        if range.start.0 < end {
            return Err(refuse(range, "not above the range before it"));
        }
        end = range.start.checked_add(range.len).ok_or_else(|| refuse(range, "beyond the address space"))?.0;
        total += range.len;
    }
    Ok(total)
}

impl GuestRam {
    /// Lays `frames` out over `ranges`, in order.
    ///
    /// # Errors
    /// When the sizes differ or the layout is not sound; the frames come back.
    pub fn new(owner: VmId, frames: Scrubbed, ranges: &[RamRange]) -> Result<Self, (Scrubbed, Refusal)> {
        match check_layout(ranges) {
            Ok(total) if total == frames.bytes() => {}
            Ok(total) => {
                let have = frames.bytes();
                let refusal = Refusal::new(
                    "RAM",
                    format!("the layout has {total:#x} bytes, the frames {have:#x}"),
                    "allocate what the layout needs",
                );
                return Err((frames, refusal));
            }
            Err(refusal) => return Err((frames, refusal)),
        }
        let frames = frames.for_guest();
        let mut segments = Vec::new();
        let mut chunks = frames.chunks().iter().copied();
        let mut chunk: Option<(HostPhys, u64)> = None;
        for range in ranges {
            let mut done = 0;
            while done < range.len {
                let Some((host, left)) = chunk.filter(|(_, left)| *left > 0).or_else(|| chunks.next()) else {
                    break;
                };
                let len = left.min(range.len - done);
                segments.push(RamSegment { guest: GuestPhys(range.start.0 + done), host, len });
                chunk = Some((HostPhys(host.0 + len), left - len));
                done += len;
            }
        }
        let nowhere = RamSegment { guest: GuestPhys(0), host: HostPhys(0), len: 0 };
        let largest = segments.iter().max_by_key(|segment| segment.len).copied().unwrap_or(nowhere);
        Ok(Self { owner, frames, ranges: ranges.to_vec(), segments, largest })
    }

    /// The VM whose RAM it is.
    pub fn owner(&self) -> VmId {
        self.owner
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.frames.bytes()
    }

    /// The layout.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// All of it, ascending by guest address: what stage 2 maps.
    pub fn segments(&self) -> &[RamSegment] {
        &self.segments
    }

    /// The host ranges behind `len` bytes from `start`; `None` unless all of them are RAM.
    pub fn host_ranges(&self, start: GuestPhys, len: u64) -> Option<Vec<(HostPhys, u64)>> {
        let end = start.checked_add(len)?.0;
        let mut at = start.0;
        let mut ranges: Vec<(HostPhys, u64)> = Vec::new();
        let first = self.segments.partition_point(|s| s.guest.0 + s.len <= start.0);
        for segment in self.segments.get(first..)? {
            if at >= end {
                break;
            }
            if segment.guest.0 > at {
                return None;
            }
            let skip = at - segment.guest.0;
            let piece = (segment.len - skip).min(end - at);
            ranges.push((HostPhys(segment.host.0 + skip), piece));
            at += piece;
        }
        (at >= end).then_some(ranges)
    }

    /// The host address behind a guest-physical one, and how many bytes follow it contiguously.
    #[inline]
    pub fn translate(&self, address: GuestPhys) -> Option<(HostPhys, u64)> {
        self.largest.translate(address).or_else(|| {
            let index = self.segments.partition_point(|s| s.guest.0 <= address.0).checked_sub(1)?;
            self.segments.get(index)?.translate(address)
        })
    }

    /// The frames, from the last reference.
    ///
    /// # Errors
    /// When there are others; the reference comes back.
    pub fn into_frames(self: Arc<Self>) -> Result<GuestFrames, Arc<Self>> {
        Arc::try_unwrap(self).map(|ram| ram.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frames::Frames;
    use proptest::prelude::*;

    const PAGE: u64 = LARGE_PAGE_SIZE;

    fn ranges(pages: &[(u64, u64)]) -> Vec<RamRange> {
        pages
            .iter()
            .map(|(start, len)| RamRange { start: GuestPhys(start * PAGE), len: len * PAGE })
            .collect()
    }

    #[test]
    fn layouts_that_are_not_sound_are_refused() {
        assert_eq!(check_layout(&ranges(&[(0, 1), (2, 3)])).unwrap(), 4 * PAGE);
        for bad in [&[(2, 1), (0, 1)][..], &[(0, 2), (1, 1)], &[(0, 0)], &[(u64::MAX / PAGE, 1)]] {
            assert!(check_layout(&ranges(bad)).is_err(), "{bad:?}");
        }
        let odd = RamRange { start: GuestPhys(0x1000), len: PAGE };
        assert!(check_layout(&[odd]).is_err());
    }

    #[test]
    fn frames_that_do_not_fit_the_layout_come_back() {
        let frames = Frames::new([(HostPhys(0), 2 * PAGE)]);
        let two = frames.allocate_guest(2 * PAGE).unwrap().scrub(&mut |_, _| ());
        let (two, _) = GuestRam::new(VmId(0), two, &ranges(&[(0, 1)])).unwrap_err();
        frames.give_back(two);
        assert_eq!(frames.counts().free, 2 * PAGE);
    }

    proptest! {
        /// Guest layout and host memory are split in different places.
        #[test]
        fn every_byte_of_ram_has_one_place_of_its_own(
            layout in proptest::collection::vec((1u64..4, 1u64..4), 1..5),
            host in proptest::collection::vec(1u64..5, 5..10),
            probe in 0u64..40 * PAGE,
            len in 1u64..6 * PAGE,
        ) {
            let mut at = 0;
            let pages: Vec<(u64, u64)> = layout.iter().map(|(gap, len)| {
                let start = at + gap;
                at = start + len;
                (start, *len)
            }).collect();
            let ranges = ranges(&pages);
            let bytes = check_layout(&ranges).unwrap();
            let mut at = 0;
            let frames = Frames::new(host.iter().map(|len| {
                let start = at;
                at += len + 1;
                (HostPhys(start * PAGE), len * PAGE)
            }).collect::<Vec<_>>());
            prop_assume!(frames.counts().free >= bytes);
            let frames = frames.allocate_guest(bytes).unwrap().scrub(&mut |_, _| ());
            let ram = GuestRam::new(VmId(0), frames, &ranges).unwrap();
            prop_assert_eq!(ram.segments().iter().map(|s| s.len).sum::<u64>(), bytes);
            let mut host: Vec<(u64, u64)> = ram.segments().iter().map(|s| (s.host.0, s.len)).collect();
            host.sort_unstable();
            prop_assert!(host.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            // A range is RAM exactly if each of its bytes is.
            let is_ram = |address: u64| ranges.iter().any(|r| (r.start.0..r.start.0 + r.len).contains(&address));
            prop_assert_eq!(ram.translate(GuestPhys(probe)).is_some(), is_ram(probe));
            let whole = (probe..probe + len).step_by(PAGE as usize).chain([probe + len - 1]).all(is_ram);
            match ram.host_ranges(GuestPhys(probe), len) {
                None => prop_assert!(!whole),
                Some(pieces) => {
                    prop_assert!(whole);
                    prop_assert_eq!(pieces.iter().map(|(_, len)| len).sum::<u64>(), len);
                    let mut at = probe;
                    for (host, len) in pieces {
                        prop_assert_eq!(ram.translate(GuestPhys(at)).map(|(host, _)| host), Some(host));
                        at += len;
                    }
                }
            }
        }
    }
}
