// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of addresses in which BARs are.

use crate::vdev::parent::Bar;

/// Into so many parts a window is divided, one for each bus.
const PARTS: u64 = 256;

/// A range of guest-physical addresses that the platform leaves to BARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciWindow {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether prefetchable BARs are put here after reset, or the others.
    pub prefetchable: bool,
}

impl PciWindow {
    /// For BARs that are not prefetchable.
    pub const fn fixed(start: u64, len: u64) -> Self {
        Self { start, len, prefetchable: false }
    }

    /// For prefetchable BARs.
    pub const fn prefetchable(start: u64, len: u64) -> Self {
        Self { start, len, prefetchable: true }
    }

    /// The part of it that firmware gives the bus of that number.
    pub(super) const fn part(&self, bus: u8) -> Self {
        let len = self.len / PARTS;
        Self { start: self.start + bus as u64 * len, len, prefetchable: self.prefetchable }
    }

    /// Whether all of a range is in it.
    pub(super) fn contains(&self, start: u64, len: u64) -> bool {
        start.checked_sub(self.start).and_then(|o| o.checked_add(len)).is_some_and(|end| end <= self.len)
    }
}

/// The lowest aligned address in a fitting window that is clear of `taken` ranges (start, length).
pub(super) fn first_fit(windows: &[PciWindow], taken: &[(u64, u64)], bar: &Bar) -> Option<u64> {
    let fitting = windows.iter().filter(|w| w.prefetchable == bar.prefetchable);
    for window in fitting {
        let mut at = window.start.checked_next_multiple_of(bar.size)?;
        while window.contains(at, bar.size) {
            let conflict = taken.iter().find(|(start, len)| at < start + len && *start < at + bar.size);
            match conflict {
                None => return Some(at),
                Some((start, len)) => at = (start + len).checked_next_multiple_of(bar.size)?,
            }
        }
    }
    None
}
