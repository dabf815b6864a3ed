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

use crate::addr::{GuestPhys, HostPhys, LARGE_PAGE_SIZE};
use crate::frames::{GuestFrames, Scrubbed};
use crate::id::VmId;
use crate::refusal::Refusal;

/// A range of guest-physical addresses that is RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    /// First address.
    pub start: GuestPhys,
    /// Length in bytes.
    pub len: u64,
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

/// Frames laid out as one VM's RAM.
#[derive(Debug)]
pub struct GuestRam {
    owner: VmId,
    frames: GuestFrames,
    ranges: Vec<RamRange>,
    /// Ascending by guest address, without holes inside a range.
    segments: Vec<RamSegment>,
}

/// Checks a layout: whole large pages, ascending, without overlap. Returns its size in bytes.
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
        end = range
            .start
            .checked_add(range.len)
            .ok_or_else(|| refuse(range, "beyond the address space"))?
            .0;
        total += range.len;
    }
    Ok(total)
}

impl GuestRam {
    /// Lays `frames` out over `ranges`, in order. The frames come back where the sizes differ or the
    /// layout is not sound.
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
                segments.push(RamSegment {
                    guest: GuestPhys(range.start.0 + done),
                    host,
                    len,
                });
                chunk = Some((HostPhys(host.0 + len), left - len));
                done += len;
            }
        }
        Ok(Self {
            owner,
            frames,
            ranges: ranges.to_vec(),
            segments,
        })
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
    pub fn translate(&self, address: GuestPhys) -> Option<(HostPhys, u64)> {
        let index = self
            .segments
            .partition_point(|s| s.guest.0 <= address.0)
            .checked_sub(1)?;
        let segment = self.segments.get(index)?;
        let offset = address.0 - segment.guest.0;
        (offset < segment.len).then(|| (HostPhys(segment.host.0 + offset), segment.len - offset))
    }

    /// The frames, from the last reference. Gives the others their reference back while there are some.
    pub fn into_frames(self: Arc<Self>) -> Result<GuestFrames, Arc<Self>> {
        Arc::try_unwrap(self).map(|ram| ram.frames)
    }
}
