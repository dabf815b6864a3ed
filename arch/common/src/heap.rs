// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's heap: pieces of RAM that come when they are needed and go when they are empty.
//!
//! **Principle.** Who gives RAM changes while the machine starts (the firmware first, then [`Frames`]), so it is a
//! [`Source`]. A source may itself allocate while it holds its lock; it is therefore asked in a way that never waits,
//! and before the last 512 KiB are touched, which are for just that case.
//! **Invariants.** Allocations lie in one piece. A piece that goes back has no allocation in it.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use arrayvec::ArrayVec;
use linked_list_allocator::Heap as Piece;
use pasidon_kernel::base::addr::{HostPhys, LARGE_PAGE_SIZE};
use pasidon_kernel::memory::frames::Frames;
use spin::Mutex;

/// Least size of a piece, and what sizes are multiples of, in bytes.
const PIECE: usize = LARGE_PAGE_SIZE as usize;
/// What is left for those who allocate where no piece can be had, in bytes.
const RESERVE: usize = 512 << 10;
/// Most pieces there are at a time: 512 MiB in small ones.
const MAX_PIECES: usize = 256;

/// Who gives RAM to the heap, and takes it back.
pub trait Source: Sync {
    /// RAM of `bytes` (a multiple of 2 MiB) that is nobody else's and mapped; `None` when there is none, or none
    /// without waiting. Called with the heap locked: it must not allocate.
    fn take(&self, bytes: usize) -> Option<HostPhys>;

    /// Takes RAM back that came from [`Source::take`]. Called with nothing locked.
    fn give_back(&self, start: HostPhys, bytes: usize);
}

struct Pieces {
    pieces: ArrayVec<Piece, MAX_PIECES>,
    source: Option<&'static dyn Source>,
    /// How many pieces the present source did not give; they are the first ones, and stay.
    kept: usize,
}

impl Pieces {
    fn bytes(&self) -> usize {
        self.pieces.iter().map(Piece::size).sum()
    }

    fn free(&self) -> usize {
        self.pieces.iter().map(Piece::free).sum()
    }

    /// One piece more, with room for `bytes`.
    fn grow(&mut self, bytes: usize) -> bool {
        let Some(bytes) = bytes.checked_next_multiple_of(PIECE) else { return false };
        if self.pieces.is_full() {
            return false;
        }
        let Some(start) = self.source.and_then(|source| source.take(bytes)) else {
            return false;
        };
        // SAFETY: a source gives RAM that is nobody else's, and gets it back when nothing is in it.
        self.pieces.push(unsafe { Piece::new(start.0 as *mut u8, bytes) });
        true
    }

    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // Whatever its alignment, it fits a piece of that size, which holds nothing else but its own bookkeeping.
        let room = layout.size().checked_add(layout.align())?.checked_add(size_of::<[usize; 4]>())?;
        let grown = self.free() < room.saturating_add(RESERVE) && self.grow(room);
        let place = |piece: &mut Piece| piece.allocate_first_fit(layout).ok();
        // The first that has room: so those that came last become empty.
        let found = self.pieces.iter_mut().find_map(place);
        match found {
            None if !grown && self.grow(room) => self.pieces.last_mut().and_then(place),
            found => found,
        }
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    unsafe fn deallocate(&mut self, at: NonNull<u8>, layout: Layout) {
        let holds = |piece: &&mut Piece| (piece.bottom()..piece.top()).contains(&at.as_ptr());
        if let Some(piece) = self.pieces.iter_mut().find(holds) {
            // SAFETY: by the caller's promise it was allocated with that layout; it lies in this piece, so from it.
            unsafe { piece.deallocate(at, layout) };
        }
    }

    /// Takes a piece out that is empty and that the rest can do without.
    fn take_empty(&mut self) -> Option<(HostPhys, usize)> {
        let free = self.free();
        let spare = |piece: &Piece| piece.used() == 0 && free - piece.size() >= RESERVE + PIECE / 2;
        let index = (self.kept..self.pieces.len()).rev().find(|index| spare(&self.pieces[*index]))?;
        let piece = self.pieces.remove(index);
        Some((HostPhys(piece.bottom() as u64), piece.size()))
    }
}

/// The heap. May be used from any processor, but not from an interrupt handler.
pub struct Heap {
    pieces: Mutex<Pieces>,
}

impl Heap {
    /// One of nothing.
    pub const fn new() -> Self {
        Self { pieces: Mutex::new(Pieces { pieces: ArrayVec::new_const(), source: None, kept: 0 }) }
    }

    /// From here on RAM comes from `source`; `None`: from nobody. What came before stays.
    pub fn set_source(&self, source: Option<&'static dyn Source>) {
        let mut pieces = self.pieces.lock();
        pieces.source = source;
        pieces.kept = pieces.pieces.len();
    }

    /// Makes sure that `bytes` (in one block at least) can be allocated although no source gives any.
    /// False: the source has not that much.
    pub fn prepare(&self, bytes: usize) -> bool {
        let mut pieces = self.pieces.lock();
        let room = bytes.saturating_add(RESERVE);
        pieces.pieces.iter().any(|piece| piece.used() == 0 && piece.size() >= room) || pieces.grow(room)
    }

    /// Gives pieces back that are empty, and gets one where room is short. With no lock held.
    pub fn tend(&self) {
        loop {
            let (source, piece) = {
                let mut pieces = self.pieces.lock();
                if pieces.free() < RESERVE {
                    pieces.grow(PIECE);
                }
                (pieces.source, pieces.take_empty())
            };
            let (Some(source), Some((start, bytes))) = (source, piece) else { return };
            source.give_back(start, bytes);
        }
    }

    /// Size of all pieces, and what of it is in use, in bytes.
    pub fn counts(&self) -> (usize, usize) {
        let pieces = self.pieces.lock();
        (pieces.bytes(), pieces.bytes() - pieces.free())
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: what is allocated lies in RAM that a source gave to the heap alone; `linked_list_allocator` hands no byte of
// a piece out twice, and a piece with an allocation in it never goes.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.pieces.lock().allocate(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(at) = NonNull::new(at) {
            // SAFETY: by the caller's promise.
            unsafe { self.pieces.lock().deallocate(at, layout) };
        }
    }
}

impl Source for Frames {
    fn take(&self, bytes: usize) -> Option<HostPhys> {
        self.try_take(bytes as u64)
    }

    fn give_back(&self, start: HostPhys, bytes: usize) {
        self.give_back_taken(start, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::alloc::System;
    use std::collections::BTreeMap;
    use std::sync::Mutex as StdMutex;

    /// A source whose RAM is the host's, aligned as frames are.
    #[derive(Default)]
    struct Ram {
        out: StdMutex<BTreeMap<u64, usize>>,
        busy: StdMutex<bool>,
    }

    impl Ram {
        fn layout(bytes: usize) -> Layout {
            Layout::from_size_align(bytes, PIECE).unwrap()
        }

        fn bytes(&self) -> usize {
            self.out.lock().unwrap().values().sum()
        }

        fn leaked() -> &'static Self {
            Box::leak(Box::default())
        }
    }

    impl Source for Ram {
        fn take(&self, bytes: usize) -> Option<HostPhys> {
            assert!(bytes > 0 && bytes.is_multiple_of(PIECE));
            if *self.busy.lock().unwrap() {
                return None;
            }
            // SAFETY: the layout has a size.
            let at = unsafe { System.alloc(Self::layout(bytes)) } as u64;
            assert!(self.out.lock().unwrap().insert(at, bytes).is_none());
            Some(HostPhys(at))
        }

        fn give_back(&self, start: HostPhys, bytes: usize) {
            assert_eq!(self.out.lock().unwrap().remove(&start.0), Some(bytes), "as it came");
            // SAFETY: it came from `take`, with that layout.
            unsafe { System.dealloc(start.0 as *mut u8, Self::layout(bytes)) };
        }
    }

    fn heap_on(ram: &'static Ram) -> Heap {
        let heap = Heap::new();
        heap.set_source(Some(ram));
        heap
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn it_takes_by_need_and_gives_back() {
        let ram = Ram::leaked();
        let heap = heap_on(ram);
        assert_eq!(heap.counts(), (0, 0));
        // SAFETY: the layouts have sizes, and each is given back once.
        unsafe {
            let small = heap.alloc(layout(100));
            assert_eq!(heap.counts(), (PIECE, 104));
            let large = heap.alloc(layout(5 * PIECE));
            assert!(!small.is_null() && !large.is_null());
            assert!(ram.bytes() >= 7 * PIECE);
            heap.dealloc(large, layout(5 * PIECE));
            heap.tend();
            assert_eq!(ram.bytes(), PIECE, "what was large went back at once");
            heap.dealloc(small, layout(100));
            heap.tend();
        }
        assert_eq!(heap.counts(), (PIECE, 0), "one stays");
    }

    #[test]
    fn the_reserve_is_for_those_whom_the_source_cannot_hear() {
        let ram = Ram::leaked();
        let heap = heap_on(ram);
        let block = layout(64 << 10);
        // SAFETY: the layouts have sizes; what is allocated is never given back.
        unsafe {
            while ram.bytes() < 2 * PIECE {
                assert!(!heap.alloc(block).is_null());
            }
            // The piece came before the reserve was touched.
            let (bytes, used) = heap.counts();
            assert!(bytes - used >= PIECE + RESERVE - 2 * block.size());
            while heap.counts().0 - heap.counts().1 >= RESERVE + 2 * block.size() {
                assert!(!heap.alloc(block).is_null());
            }
            *ram.busy.lock().unwrap() = true;
            for _ in 0..RESERVE / block.size() - 1 {
                assert!(!heap.alloc(block).is_null());
            }
            while !heap.alloc(block).is_null() {}
            *ram.busy.lock().unwrap() = false;
            heap.tend();
            assert!(!heap.alloc(block).is_null(), "there is room again");
        }
    }

    #[test]
    fn what_one_source_gave_is_not_given_back_to_the_next() {
        let (firmware, later) = (Ram::leaked(), Ram::leaked());
        let heap = heap_on(firmware);
        assert!(heap.prepare(PIECE) && heap.prepare(PIECE));
        assert_eq!(firmware.bytes(), 2 * PIECE, "what is there is enough");
        assert!(heap.prepare(3 * PIECE));
        assert_eq!(firmware.bytes(), 6 * PIECE);
        heap.set_source(None);
        // SAFETY: the layout has a size.
        unsafe {
            let at = heap.alloc(layout(3 * PIECE));
            assert!(!at.is_null(), "it was prepared for");
            assert!(heap.alloc(layout(2 * PIECE + 1)).is_null());
            heap.set_source(Some(later));
            heap.dealloc(at, layout(3 * PIECE));
        }
        heap.tend();
        assert_eq!((firmware.bytes(), later.bytes()), (6 * PIECE, 0));
    }

    #[test]
    fn frames_are_a_source_even_to_themselves() {
        let bytes = 4 * PIECE;
        // SAFETY: the layout has a size.
        let start = unsafe { System.alloc(Ram::layout(bytes)) } as u64;
        let frames: &'static Frames = Box::leak(Box::new(Frames::new([(HostPhys(start), bytes as u64)])));
        let heap = heap_on_frames(frames);
        // SAFETY: the layout has a size, and it is given back once.
        unsafe {
            let at = heap.alloc(layout(2 * PIECE));
            assert!(!at.is_null());
            assert_eq!(frames.counts().free, PIECE as u64);
            heap.dealloc(at, layout(2 * PIECE));
        }
        let guest = frames.allocate_guest(PIECE as u64).unwrap();
        // SAFETY: the layout has a size.
        assert!(unsafe { heap.alloc(layout(3 * PIECE + 1)) }.is_null(), "there is no more");
        drop(guest);
    }

    fn heap_on_frames(frames: &'static Frames) -> Heap {
        let heap = Heap::new();
        heap.set_source(Some(frames));
        heap
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { size: usize, align: u32 },
        Free(prop::sample::Index),
        Busy(bool),
        Tend,
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = prop_oneof![4 => 1..5000usize, 2 => 5000..300_000usize, 1 => 300_000..5_000_000usize];
        prop_oneof![
            6 => (size, 0..14u32).prop_map(|(size, align)| Step::Allocate { size, align }),
            4 => any::<prop::sample::Index>().prop_map(Step::Free),
            1 => any::<bool>().prop_map(Step::Busy),
            1 => Just(Step::Tend),
        ]
    }

    proptest! {
        #[test]
        fn no_byte_is_two_peoples(steps in proptest::collection::vec(step(), 0..120)) {
            let ram = Ram::leaked();
            let heap = heap_on(ram);
            let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
            // Its first and last bytes say whose it is.
            let check = |&(at, layout, mark): &(*mut u8, Layout, u8)| {
                // SAFETY: it was allocated with that layout.
                let bytes = unsafe { core::slice::from_raw_parts(at, layout.size()) };
                bytes[0] == mark && bytes[bytes.len() - 1] == mark && bytes[bytes.len() / 2] == mark
            };
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Allocate { size, align } => {
                        let layout = Layout::from_size_align(size, 1 << align).unwrap();
                        // SAFETY: the layout has a size.
                        let at = unsafe { heap.alloc(layout) };
                        if at.is_null() {
                            prop_assert!(*ram.busy.lock().unwrap());
                            continue;
                        }
                        prop_assert!((at as usize).is_multiple_of(layout.align()));
                        let inside = ram.out.lock().unwrap().iter().any(|(start, bytes)| {
                            *start <= at as u64 && at as u64 + size as u64 <= start + *bytes as u64
                        });
                        prop_assert!(inside, "in one piece");
                        for index in [0, size / 2, size - 1] {
                            // SAFETY: inside of what was allocated.
                            unsafe { at.add(index).write(number as u8) };
                        }
                        held.push((at, layout, number as u8));
                    }
                    Step::Free(index) if !held.is_empty() => {
                        let one = held.swap_remove(index.index(held.len()));
                        prop_assert!(check(&one));
                        // SAFETY: it was allocated with that layout, and is given back once.
                        unsafe { heap.dealloc(one.0, one.1) };
                    }
                    Step::Busy(busy) => *ram.busy.lock().unwrap() = busy,
                    Step::Tend => heap.tend(),
                    Step::Free(_) => {}
                }
                prop_assert!(held.iter().all(check));
                prop_assert_eq!(heap.counts().0, ram.bytes());
            }
            for (at, layout, _) in held {
                // SAFETY: as above.
                unsafe { heap.dealloc(at, layout) };
            }
            heap.tend();
            prop_assert_eq!(heap.counts().1, 0);
            prop_assert!(ram.bytes() <= 3 * PIECE, "{} MiB stay", ram.bytes() >> 20);
        }
    }
}
