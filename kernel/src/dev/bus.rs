// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which device answers an access: the memory and port windows of one guest.
//!
//! **Invariant.** Windows of one space never overlap, so that at most one device answers. An access that
//! no window holds completely is unclaimed: it is counted, reads as all ones and its write goes nowhere,
//! as on a real bus. Looking up costs O(log n) in the number of windows.

use alloc::format;
use alloc::vec::Vec;

use crate::base::refusal::Refusal;

/// What a read of `size` bytes returns when no device answers.
pub const fn all_ones(size: u8) -> u64 {
    match size {
        0 => 0,
        1..=7 => (1 << (8 * size as u32)) - 1,
        _ => u64::MAX,
    }
}

/// A window that could not be claimed: it is empty, wraps, or overlaps one that stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadWindow {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl From<BadWindow> for Refusal {
    fn from(bad: BadWindow) -> Self {
        Refusal::new(
            "guest memory map",
            format!("the window of {:#x} bytes at {:#x} is empty or overlaps another", bad.len, bad.start),
            "correct guest/layout.rs",
        )
    }
}

/// The window that holds an access, of those that lie one behind the other without overlap. `begins`: it begins at the
/// access or before; `holds`: it holds all of it. `last`: where the access before was found, which is mostly where the
/// next one is, too.
#[inline]
pub(super) fn look_up<'w, W>(
    windows: &'w [W],
    last: &mut usize,
    begins: impl Fn(&W) -> bool,
    holds: impl Fn(&W) -> bool,
) -> Option<&'w W> {
    if let Some(hit) = windows.get(*last).filter(|w| holds(w)) {
        return Some(hit);
    }
    *last = windows.partition_point(begins).saturating_sub(1);
    windows.get(*last).filter(|w| holds(w))
}

#[derive(Clone, Copy, Debug)]
struct Window<T> {
    start: u64,
    /// Last address; inclusive, so that a window may end at the top of the space.
    last: u64,
    target: T,
}

/// Windows of one address space, each leading to a `T`.
#[derive(Clone, Debug)]
struct Space<T> {
    windows: Vec<Window<T>>,
    /// Where the last access was: mostly the next one is there, too.
    last: usize,
    unclaimed: u64,
}

impl<T: Copy> Space<T> {
    const fn new() -> Self {
        Self { windows: Vec::new(), last: 0, unclaimed: 0 }
    }

    fn claim(&mut self, start: u64, len: u64, target: T) -> Result<(), BadWindow> {
        let bad = BadWindow { start, len };
        let last = len.checked_sub(1).and_then(|l| start.checked_add(l)).ok_or(bad)?;
        let at = self.windows.partition_point(|w| w.start < start);
        let before = at.checked_sub(1).and_then(|i| self.windows.get(i));
        if before.is_some_and(|w| w.last >= start) || self.windows.get(at).is_some_and(|w| w.start <= last) {
            return Err(bad);
        }
        self.windows.insert(at, Window { start, last, target });
        Ok(())
    }

    fn find(&mut self, address: u64, size: u8) -> Option<(T, u64)> {
        let last = address.checked_add(u64::from(size.max(1)) - 1);
        let holds = |w: &Window<T>| w.start <= address && last.is_some_and(|last| last <= w.last);
        let hit = look_up(&self.windows, &mut self.last, |w| w.start <= address, holds);
        if hit.is_none() {
            self.unclaimed = self.unclaimed.saturating_add(1);
        }
        hit.map(|w| (w.target, address - w.start))
    }
}

/// The memory and port windows of one guest. `T` names the device a window leads to.
#[derive(Clone, Debug)]
pub struct GuestBus<T> {
    mmio: Space<T>,
    io: Space<T>,
}

impl<T: Copy> GuestBus<T> {
    /// A bus without windows.
    pub const fn new() -> Self {
        Self { mmio: Space::new(), io: Space::new() }
    }

    /// Claims `len` bytes of guest-physical addresses from `start` for `target`.
    ///
    /// # Errors
    /// When the range is empty, goes beyond the address space, or is claimed in part.
    pub fn claim_mmio(&mut self, start: u64, len: u64, target: T) -> Result<(), BadWindow> {
        self.mmio.claim(start, len, target)
    }

    /// Claims `len` ports from `start` for `target`.
    ///
    /// # Errors
    /// When the range is empty, or claimed in part.
    pub fn claim_io(&mut self, start: u16, len: u16, target: T) -> Result<(), BadWindow> {
        self.io.claim(u64::from(start), u64::from(len), target)
    }

    /// The device that answers an access of `size` bytes at `address`, and the offset in its window. `None` is counted.
    pub fn mmio(&mut self, address: u64, size: u8) -> Option<(T, u64)> {
        self.mmio.find(address, size)
    }

    /// The device that answers an access of `size` bytes at `port`, and the offset in its window. `None` is counted.
    pub fn io(&mut self, port: u64, size: u8) -> Option<(T, u64)> {
        self.io.find(port, size)
    }

    /// How many memory and port accesses no device answered.
    pub fn unclaimed(&self) -> (u64, u64) {
        (self.mmio.unclaimed, self.io.unclaimed)
    }
}

impl<T: Copy> Default for GuestBus<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_the_window_and_the_offset() {
        let mut bus = GuestBus::new();
        bus.claim_mmio(0x2000, 0x1000, 'b').unwrap();
        bus.claim_mmio(0x1000, 0x800, 'a').unwrap();
        bus.claim_io(0x3f8, 8, 'u').unwrap();
        assert_eq!(bus.mmio(0x1004, 4), Some(('a', 4)));
        assert_eq!(bus.mmio(0x2fff, 1), Some(('b', 0xfff)));
        assert_eq!(bus.io(0x3ff, 1), Some(('u', 7)));
        assert_eq!(bus.unclaimed(), (0, 0));
    }

    #[test]
    fn an_access_over_the_edge_is_unclaimed_and_counted() {
        let mut bus = GuestBus::new();
        bus.claim_mmio(u64::MAX - 0xfff, 0x1000, ()).unwrap();
        assert_eq!(bus.mmio(u64::MAX - 1, 4), None);
        assert_eq!(bus.mmio(0, 8), None);
        assert_eq!(bus.io(0x80, 1), None);
        assert_eq!(bus.unclaimed(), (2, 1));
    }

    #[test]
    fn overlapping_empty_and_wrapping_windows_are_refused() {
        let mut bus = GuestBus::new();
        bus.claim_mmio(0x1000, 0x1000, ()).unwrap();
        for (start, len) in
            [(0x1fff, 1), (0, 0x1001), (0, u64::MAX), (0x3000, 0), (u64::MAX, 2), (0x1000, 0x1000)]
        {
            assert_eq!(bus.claim_mmio(start, len, ()), Err(BadWindow { start, len }));
        }
        bus.claim_mmio(0x2000, 1, ()).unwrap();
        bus.claim_mmio(0, 0x1000, ()).unwrap();
    }

    #[test]
    fn all_ones_is_as_wide_as_the_access() {
        assert_eq!([1, 2, 4, 8].map(all_ones), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_linear_search(
            claims in proptest::collection::vec((0u64..200, 0u64..40), 0..20),
            probe in 0u64..250,
            size in proptest::sample::select(vec![1u8, 2, 4, 8]),
        ) {
            let mut bus = GuestBus::new();
            let mut model: Vec<(u64, u64, usize)> = Vec::new();
            for (id, (start, len)) in claims.into_iter().enumerate() {
                let free = len > 0 && model.iter().all(|(s, l, _)| start + len <= *s || s + l <= start);
                prop_assert_eq!(bus.claim_mmio(start, len, id).is_ok(), free);
                if free {
                    model.push((start, len, id));
                }
            }
            let expected = model
                .iter()
                .find(|(s, l, _)| *s <= probe && probe + u64::from(size) <= s + l)
                .map(|(s, _, id)| (*id, probe - s));
            prop_assert_eq!(bus.mmio(probe, size), expected);
        }
    }
}
