// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory: 2 MiB frames for guests, 4 KiB pages for tables.
//!
//! **Principle.** What a guest wrote is gone before another gets the frame, and the types see to it:
//!
//! ```text
//! allocate_guest → Unscrubbed → scrub → Scrubbed → for_guest → GuestFrames → end → Unscrubbed → …
//!                                          └→ give_back
//! ```
//!
//! Only [`Scrubbed`] frames can be given to a guest or given back. Frames whose handle is dropped are
//! never handed out again. What firmware left behind counts as unscrubbed too.
//!
//! **Invariants.** No frame is in two handles. Guests fill ranges from the bottom, tables and the hypervisor's heap
//! from the top, so that they do not split what could be large. Guests leave some for those ([`FrameCounts::for_guests`]).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use spin::Mutex;

use crate::base::addr::{HostPhys, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::base::refusal::Refusal;

/// Frames that are for tables and the hypervisor's heap only, whatever guests want: 16 MiB, where there is much.
const RESERVE: usize = 8;
/// Of little, one in so many.
const RESERVE_SHARE: usize = 32;
/// Small pages in a frame.
const PAGES: usize = (LARGE_PAGE_SIZE / PAGE_SIZE) as usize;

/// Proof that no vCPU can reach a VM's RAM any more: none runs, and stage 2 is gone.
///
/// Made by architecture code only. Not `Clone`.
#[derive(Debug)]
pub struct GuestGone(());

impl GuestGone {
    /// The architecture's word that stage 2 is gone and no processor remembers it.
    pub fn confirmed_by_arch() -> Self {
        Self(())
    }
}

/// Contiguous frames, and whether they are known to be zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    start: HostPhys,
    len: u64,
    clean: bool,
}

/// Frames whose contents are not for a guest's eyes.
#[derive(Debug)]
#[must_use = "frames that are dropped are lost"]
pub struct Unscrubbed(Vec<Run>);

impl Unscrubbed {
    /// Zeroes what is not known to be zero. `zero` is given an address and a length in bytes.
    pub fn scrub(self, zero: &mut dyn FnMut(HostPhys, u64)) -> Scrubbed {
        for run in self.0.iter().filter(|run| !run.clean) {
            zero(run.start, run.len);
        }
        Scrubbed(self.0)
    }
}

/// Frames that hold nothing but zeroes.
#[derive(Debug)]
#[must_use = "frames that are dropped are lost"]
pub struct Scrubbed(Vec<Run>);

impl Scrubbed {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.len).sum()
    }

    /// Makes them a guest's.
    pub fn for_guest(self) -> GuestFrames {
        let mut chunks: Vec<(HostPhys, u64)> = Vec::new();
        for run in self.0 {
            match chunks.last_mut() {
                Some((start, len)) if start.0 + *len == run.start.0 => *len += run.len,
                _ => chunks.push((run.start, run.len)),
            }
        }
        GuestFrames { chunks }
    }
}

/// Frames that a guest reaches or has reached.
#[derive(Debug)]
#[must_use = "frames that are dropped are lost"]
pub struct GuestFrames {
    /// Address and length of contiguous pieces.
    chunks: Vec<(HostPhys, u64)>,
}

impl GuestFrames {
    /// Address and length of each contiguous piece, all multiples of 2 MiB.
    pub fn chunks(&self) -> &[(HostPhys, u64)] {
        &self.chunks
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|(_, len)| len).sum()
    }

    /// The guest's time with them is over.
    pub fn end(self, gone: GuestGone) -> Unscrubbed {
        let GuestGone(()) = gone;
        Unscrubbed(self.chunks.into_iter().map(|(start, len)| Run { start, len, clean: false }).collect())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Frame {
    Free { clean: bool },
    Guest,
    Tables,
    Heap,
}

#[derive(Debug)]
struct Region {
    start: u64,
    frames: Vec<Frame>,
}

/// Which small pages of a frame are in use.
#[derive(Debug)]
struct PageMap {
    used: [u64; PAGES / 64],
    count: usize,
}

impl PageMap {
    fn is_used(&self, page: usize) -> bool {
        self.used[page / 64] >> (page % 64) & 1 != 0
    }

    fn set(&mut self, first: usize, count: usize, used: bool) {
        for page in first..first + count {
            let bit = 1 << (page % 64);
            if used {
                self.used[page / 64] |= bit;
            } else {
                self.used[page / 64] &= !bit;
            }
        }
        self.count = if used { self.count + count } else { self.count - count };
    }

    /// The first aligned run of free pages.
    fn find(&self, count: usize) -> Option<usize> {
        let align = count.next_power_of_two();
        (0..PAGES)
            .step_by(align)
            .filter(|first| first + count <= PAGES)
            .find(|first| (*first..first + count).all(|page| !self.is_used(page)))
    }
}

#[derive(Debug)]
struct Inner {
    regions: Vec<Region>,
    /// By address of the frame.
    tables: BTreeMap<u64, PageMap>,
    free: usize,
    /// Frames that are never guests'.
    reserve: usize,
    guests: usize,
    table_pages: usize,
}

/// How much there is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameCounts {
    /// Frames there are.
    pub total: u64,
    /// Frames not in use.
    pub free: u64,
    /// What of them guests may have.
    pub for_guests: u64,
    /// Frames handed out for guests, or lost with their handle.
    pub guests: u64,
    /// Small pages handed out for tables.
    pub tables: u64,
}

/// All physical memory that guests and tables come from. May be called from any processor, but not from
/// an interrupt handler.
#[derive(Debug)]
pub struct Frames {
    inner: Mutex<Inner>,
}

impl Frames {
    /// From the usable ranges (start, length in bytes), which must not overlap. What does not fill a
    /// frame at their ends is left unused.
    pub fn new(ranges: impl IntoIterator<Item = (HostPhys, u64)>) -> Self {
        let mut regions: Vec<Region> = ranges
            .into_iter()
            .filter_map(|(start, len)| {
                let first = start.0.checked_next_multiple_of(LARGE_PAGE_SIZE)?;
                let end = start.0.checked_add(len)?;
                let count = usize::try_from(end.checked_sub(first)? / LARGE_PAGE_SIZE).ok()?;
                (count > 0)
                    .then(|| Region { start: first, frames: vec![Frame::Free { clean: false }; count] })
            })
            .collect();
        regions.sort_by_key(|region| region.start);
        let free: usize = regions.iter().map(|region| region.frames.len()).sum();
        let reserve = (free / RESERVE_SHARE).min(RESERVE);
        Self {
            inner: Mutex::new(Inner {
                regions,
                tables: BTreeMap::new(),
                free,
                reserve,
                guests: 0,
                table_pages: 0,
            }),
        }
    }

    /// Takes frames for a guest, as contiguous as there are. `bytes` is a multiple of 2 MiB.
    ///
    /// # Errors
    /// When there is less; the refusal says how much.
    pub fn allocate_guest(&self, bytes: u64) -> Result<Unscrubbed, Refusal> {
        let mut inner = self.inner.lock();
        let free = inner.for_guests();
        if bytes == 0 || !bytes.is_multiple_of(LARGE_PAGE_SIZE) {
            return Err(Refusal::new(
                "guest memory",
                format!("{bytes} bytes are not whole 2 MiB pages"),
                "use a multiple of 2M",
            ));
        }
        if bytes > free {
            return Err(Refusal::new(
                "guest memory",
                format!("{} MiB wanted, {} MiB free", bytes >> 20, free >> 20),
                "give the VM less memory, stop another VM, or give the machine more",
            ));
        }
        let mut wanted = (bytes / LARGE_PAGE_SIZE) as usize;
        let mut runs: Vec<Run> = Vec::new();
        inner.free -= wanted;
        inner.guests += wanted;
        for region in &mut inner.regions {
            for (index, frame) in region.frames.iter_mut().enumerate() {
                if wanted == 0 {
                    return Ok(Unscrubbed(runs));
                }
                let Frame::Free { clean } = *frame else { continue };
                *frame = Frame::Guest;
                wanted -= 1;
                let start = region.start + index as u64 * LARGE_PAGE_SIZE;
                match runs.last_mut() {
                    Some(run) if run.clean == clean && run.start.0 + run.len == start => {
                        run.len += LARGE_PAGE_SIZE;
                    }
                    _ => runs.push(Run { start: HostPhys(start), len: LARGE_PAGE_SIZE, clean }),
                }
            }
        }
        Ok(Unscrubbed(runs))
    }

    /// Takes frames back. They are known to be zero, by their type.
    pub fn give_back(&self, frames: Scrubbed) {
        let mut inner = self.inner.lock();
        for run in frames.0 {
            for start in (run.start.0..run.start.0 + run.len).step_by(LARGE_PAGE_SIZE as usize) {
                if let Some(frame) = inner.frame(start) {
                    *frame = Frame::Free { clean: true };
                    inner.guests -= 1;
                    inner.free += 1;
                }
            }
        }
    }

    /// Takes `count` contiguous 4 KiB pages (at most 512) for a table, aligned to their size rounded up to
    /// a power of two. Their contents are undefined. `None` when memory is short.
    pub fn allocate_pages(&self, count: usize) -> Option<HostPhys> {
        if count == 0 || count > PAGES {
            return None;
        }
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let found = inner.tables.iter().find_map(|(frame, map)| map.find(count).map(|first| (*frame, first)));
        let (frame, first) = match found {
            Some(found) => found,
            None => {
                let frame = inner.take_frames(1, Frame::Tables)?;
                let map = PageMap { used: [0; PAGES / 64], count: 0 };
                inner.tables.insert(frame, map);
                (frame, 0)
            }
        };
        inner.tables.get_mut(&frame)?.set(first, count, true);
        inner.table_pages += count;
        Some(HostPhys(frame + first as u64 * PAGE_SIZE))
    }

    /// Takes pages back. Pages that are not handed out are left alone: false.
    pub fn free_pages(&self, start: HostPhys, count: usize) -> bool {
        let mut inner = self.inner.lock();
        let frame = start.0 & !(LARGE_PAGE_SIZE - 1);
        let first = ((start.0 - frame) / PAGE_SIZE) as usize;
        let Some(map) = inner.tables.get_mut(&frame) else {
            return false;
        };
        let within = start.is_aligned(PAGE_SIZE) && count > 0 && count <= PAGES - first;
        if !within || !(first..first + count).all(|page| map.is_used(page)) {
            return false;
        }
        map.set(first, count, false);
        let empty = map.count == 0;
        inner.table_pages -= count;
        if empty {
            inner.tables.remove(&frame);
            inner.free += 1;
            if let Some(frame) = inner.frame(frame) {
                *frame = Frame::Free { clean: false };
            }
        }
        true
    }

    /// Takes contiguous frames for the hypervisor's heap; `bytes` is a multiple of 2 MiB. Their contents are undefined.
    /// `None` when there are none, or when they cannot be had at once. Neither waits nor allocates.
    pub fn try_take(&self, bytes: u64) -> Option<HostPhys> {
        let count = usize::try_from(bytes / LARGE_PAGE_SIZE).ok().filter(|count| *count > 0)?;
        let mut inner = self.inner.try_lock()?;
        let start = inner.take_frames(count, Frame::Heap)?;
        Some(HostPhys(start))
    }

    /// Takes frames back that came from [`Frames::try_take`]. Others are left alone.
    pub fn give_back_taken(&self, start: HostPhys, bytes: u64) {
        let mut inner = self.inner.lock();
        for start in (start.0..start.0.saturating_add(bytes)).step_by(LARGE_PAGE_SIZE as usize) {
            if let Some(frame @ Frame::Heap) = inner.frame(start) {
                *frame = Frame::Free { clean: false };
                inner.free += 1;
            }
        }
    }

    /// How much there is.
    pub fn counts(&self) -> FrameCounts {
        let inner = self.inner.lock();
        FrameCounts {
            total: inner.total() as u64 * LARGE_PAGE_SIZE,
            free: inner.free as u64 * LARGE_PAGE_SIZE,
            for_guests: inner.for_guests(),
            guests: inner.guests as u64 * LARGE_PAGE_SIZE,
            tables: inner.table_pages as u64 * PAGE_SIZE,
        }
    }
}

impl Inner {
    fn frame(&mut self, start: u64) -> Option<&mut Frame> {
        let region = self.regions.partition_point(|region| region.start <= start).checked_sub(1)?;
        let region = self.regions.get_mut(region)?;
        let index = usize::try_from((start - region.start) / LARGE_PAGE_SIZE).ok()?;
        region.frames.get_mut(index)
    }

    /// The topmost `count` contiguous free frames, which are `use_` from now on.
    fn take_frames(&mut self, count: usize, use_: Frame) -> Option<u64> {
        let is_free = |frame: &Frame| matches!(frame, Frame::Free { .. });
        for region in self.regions.iter_mut().rev() {
            let mut run = 0;
            for index in (0..region.frames.len()).rev() {
                run = if is_free(&region.frames[index]) { run + 1 } else { 0 };
                if run == count {
                    region.frames[index..index + count].fill(use_);
                    self.free -= count;
                    return Some(region.start + index as u64 * LARGE_PAGE_SIZE);
                }
            }
        }
        None
    }

    /// How many frames there are.
    fn total(&self) -> usize {
        self.regions.iter().map(|region| region.frames.len()).sum()
    }

    /// What of the free frames guests may have, in bytes.
    fn for_guests(&self) -> u64 {
        let own = self.total() - self.free - self.guests;
        self.free.saturating_sub(self.reserve.saturating_sub(own)) as u64 * LARGE_PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const FRAME: u64 = LARGE_PAGE_SIZE;

    #[test]
    fn ends_of_ranges_that_fill_no_frame_are_unused() {
        let frames = Frames::new([(HostPhys(0x1000), 3 * FRAME), (HostPhys(1 << 40), FRAME - 1)]);
        assert_eq!(frames.counts().total, 2 * FRAME);
    }

    #[test]
    fn too_little_is_said_with_numbers() {
        let frames = Frames::new([(HostPhys(0), 4 * FRAME)]);
        let table = frames.allocate_pages(1).unwrap();
        assert_eq!(table, HostPhys(3 * FRAME));
        let refusal = frames.allocate_guest(4 * FRAME).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "guest memory: 8 MiB wanted, 6 MiB free; give the VM less memory, stop another VM, or give the \
             machine more"
        );
        assert!(frames.allocate_guest(FRAME + PAGE_SIZE).is_err());
        assert_eq!(frames.counts().guests, 0);
    }

    #[test]
    fn guests_leave_some_for_tables_and_the_heap() {
        let total = 512;
        let frames = Frames::new([(HostPhys(0), total * FRAME)]);
        let most = frames.counts().for_guests;
        assert_eq!(most, (total - 8) * FRAME);
        // What is in use is not kept free on top of it.
        let taken = frames.try_take(3 * FRAME).unwrap();
        assert_eq!((taken, frames.counts().for_guests), (HostPhys((total - 3) * FRAME), most));
        assert!(frames.allocate_guest(most + FRAME).is_err());
        let guest = frames.allocate_guest(most).unwrap();
        assert_eq!(frames.counts().for_guests, 0);
        assert!(frames.allocate_guest(FRAME).is_err());
        for _ in 0..5 * PAGES {
            assert!(frames.allocate_pages(1).is_some());
        }
        assert_eq!(frames.allocate_pages(1), None);
        frames.give_back_taken(taken, 3 * FRAME);
        assert!(frames.allocate_guest(FRAME).is_err(), "that is theirs");
        assert_eq!(frames.try_take(3 * FRAME), Some(taken));
        drop(guest);
    }

    #[test]
    fn whoever_has_it_locked_is_not_waited_for() {
        let frames = Frames::new([(HostPhys(0), 4 * FRAME)]);
        let inner = frames.inner.lock();
        assert_eq!(frames.try_take(FRAME), None);
        drop(inner);
        assert!(frames.try_take(FRAME).is_some());
        assert_eq!(frames.try_take(0), None);
        assert_eq!(frames.try_take(u64::MAX), None);
    }

    #[test]
    fn frames_of_one_guest_are_scrubbed_before_the_next() {
        let frames = Frames::new([(HostPhys(0), 2 * FRAME)]);
        let mut zeroed = Vec::new();
        let first = frames.allocate_guest(2 * FRAME).unwrap();
        let guest = first.scrub(&mut |at, len| zeroed.push((at.0, len))).for_guest();
        assert_eq!(zeroed, [(0, 2 * FRAME)], "what firmware left is not for a guest");
        assert_eq!(guest.chunks(), [(HostPhys(0), 2 * FRAME)]);
        zeroed.clear();
        let back = guest.end(GuestGone::confirmed_by_arch());
        frames.give_back(back.scrub(&mut |at, len| zeroed.push((at.0, len))));
        assert_eq!(zeroed, [(0, 2 * FRAME)]);
        zeroed.clear();
        let again = frames.allocate_guest(2 * FRAME).unwrap();
        let again = again.scrub(&mut |at, len| zeroed.push((at.0, len)));
        assert!(zeroed.is_empty(), "not twice");
        frames.give_back(again);
        assert_eq!(frames.counts().free, 2 * FRAME);
    }

    #[test]
    fn a_frame_that_held_tables_is_scrubbed() {
        let frames = Frames::new([(HostPhys(0), FRAME)]);
        let guest = frames.allocate_guest(FRAME).unwrap();
        frames.give_back(guest.scrub(&mut |_, _| ()));
        let page = frames.allocate_pages(1).unwrap();
        assert!(frames.free_pages(page, 1));
        let mut zeroed = 0;
        let guest = frames.allocate_guest(FRAME).unwrap().scrub(&mut |_, len| zeroed += len);
        assert_eq!(zeroed, FRAME);
        frames.give_back(guest);
    }

    #[test]
    fn pages_are_aligned_and_freed_once() {
        let frames = Frames::new([(HostPhys(0), 2 * FRAME)]);
        let one = frames.allocate_pages(1).unwrap();
        let four = frames.allocate_pages(3).unwrap();
        assert!(four.is_aligned(4 * PAGE_SIZE));
        assert!(frames.allocate_pages(PAGES + 1).is_none() && frames.allocate_pages(0).is_none());
        assert_eq!(frames.counts().tables, 4 * PAGE_SIZE);
        assert!(!frames.free_pages(four, 4), "one of them was never handed out");
        assert!(frames.free_pages(four, 3));
        assert!(!frames.free_pages(four, 3), "twice");
        assert!(frames.free_pages(one, 1));
        assert_eq!(frames.counts().free, 2 * FRAME);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Guest(u64),
        EndGuest(prop::sample::Index),
        LoseGuest(prop::sample::Index),
        Pages(usize),
        FreePages(prop::sample::Index),
        Heap(u64),
        EndHeap(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u64..5).prop_map(Step::Guest),
            any::<prop::sample::Index>().prop_map(Step::EndGuest),
            any::<prop::sample::Index>().prop_map(Step::LoseGuest),
            (1usize..600).prop_map(Step::Pages),
            any::<prop::sample::Index>().prop_map(Step::FreePages),
            (1u64..4).prop_map(Step::Heap),
            any::<prop::sample::Index>().prop_map(Step::EndHeap),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_handed_out_twice_and_no_guest_sees_old_bytes(
            steps in proptest::collection::vec(step(), 0..80)
        ) {
            let frames = Frames::new([(HostPhys(FRAME), 5 * FRAME), (HostPhys(64 * FRAME), 3 * FRAME)]);
            let mut guests: Vec<GuestFrames> = Vec::new();
            let mut pages: Vec<(HostPhys, usize)> = Vec::new();
            let mut heap: Vec<(HostPhys, u64)> = Vec::new();
            let mut lost = 0;
            // Frames in which something was written since they were zeroed.
            let mut dirty: BTreeSet<u64> = (1..6).chain(64..67).map(|n| n * FRAME).collect();
            let zero = |dirty: &mut BTreeSet<u64>, at: HostPhys, len: u64| {
                for frame in (at.0..at.0 + len).step_by(FRAME as usize) {
                    dirty.remove(&frame);
                }
            };
            for step in steps {
                match step {
                    Step::Guest(count) => if let Ok(handle) = frames.allocate_guest(count * FRAME) {
                        let guest = handle.scrub(&mut |at, len| zero(&mut dirty, at, len)).for_guest();
                        prop_assert_eq!(guest.bytes(), count * FRAME);
                        for (start, len) in guest.chunks() {
                            for frame in (start.0..start.0 + len).step_by(FRAME as usize) {
                                prop_assert!(dirty.insert(frame), "{:#x} was not zero", frame);
                            }
                        }
                        guests.push(guest);
                    },
                    Step::EndGuest(index) if !guests.is_empty() => {
                        let guest = guests.swap_remove(index.index(guests.len()));
                        let back = guest.end(GuestGone::confirmed_by_arch());
                        frames.give_back(back.scrub(&mut |at, len| zero(&mut dirty, at, len)));
                    }
                    Step::LoseGuest(index) if !guests.is_empty() => {
                        lost += guests.swap_remove(index.index(guests.len())).bytes();
                    }
                    Step::Pages(count) => if let Some(start) = frames.allocate_pages(count) {
                        prop_assert!(start.is_aligned(count.next_power_of_two() as u64 * PAGE_SIZE));
                        dirty.insert(start.0 & !(FRAME - 1));
                        pages.push((start, count));
                    },
                    Step::FreePages(index) if !pages.is_empty() => {
                        let (start, count) = pages.swap_remove(index.index(pages.len()));
                        prop_assert!(frames.free_pages(start, count));
                    }
                    Step::Heap(count) => if let Some(start) = frames.try_take(count * FRAME) {
                        dirty.extend((0..count).map(|n| start.0 + n * FRAME));
                        heap.push((start, count * FRAME));
                    },
                    Step::EndHeap(index) if !heap.is_empty() => {
                        let (start, bytes) = heap.swap_remove(index.index(heap.len()));
                        frames.give_back_taken(start, bytes);
                    }
                    _ => {}
                }
                let mut taken: Vec<(u64, u64)> = guests.iter().flat_map(|g| g.chunks().iter())
                    .map(|(start, len)| (start.0, *len))
                    .chain(pages.iter().map(|(start, count)| (start.0, *count as u64 * PAGE_SIZE)))
                    .chain(heap.iter().map(|(start, len)| (start.0, *len)))
                    .collect();
                taken.sort_unstable();
                prop_assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{:x?}", taken);
                let counts = frames.counts();
                prop_assert_eq!(counts.guests, lost + guests.iter().map(GuestFrames::bytes).sum::<u64>());
                prop_assert_eq!(counts.tables, pages.iter().map(|(_, n)| *n as u64 * PAGE_SIZE).sum::<u64>());
            }
            for (start, count) in pages {
                prop_assert!(frames.free_pages(start, count));
            }
            for (start, bytes) in heap {
                frames.give_back_taken(start, bytes);
                frames.give_back_taken(start, bytes);
            }
            prop_assert_eq!(frames.counts().free + frames.counts().guests, frames.counts().total);
        }
    }
}
