// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the ticks of a counter to nanoseconds: by a multiplication and a shift, no division.

use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds of a second.
pub const NS_PER_SECOND: u64 = 1_000_000_000;
/// Fraction bits of the nanoseconds that a tick takes.
const FRACTION: u32 = 32;

/// The rate of a counter.
#[derive(Debug)]
pub struct Rate {
    hz: AtomicU64,
    ns_per_tick: AtomicU64,
}

impl Rate {
    /// Not known yet: all times are 0.
    pub const fn unknown() -> Self {
        Self {
            hz: AtomicU64::new(0),
            ns_per_tick: AtomicU64::new(0),
        }
    }

    /// Sets it, in ticks per second, at least 1.
    pub fn set(&self, hz: u64) {
        self.hz.store(hz, Ordering::Relaxed);
        self.ns_per_tick
            .store((NS_PER_SECOND << FRACTION) / hz.max(1), Ordering::Relaxed);
    }

    /// Ticks per second; 0 while unknown.
    pub fn hz(&self) -> u64 {
        self.hz.load(Ordering::Relaxed)
    }

    /// The nanoseconds that so many ticks take.
    pub fn ns(&self, ticks: u64) -> u64 {
        // 2^64 ticks are centuries; the product is cut to what fits all the same.
        let ns = (u128::from(ticks) * u128::from(self.ns_per_tick.load(Ordering::Relaxed))) >> FRACTION;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_of_ticks() {
        let rate = Rate::unknown();
        assert_eq!((rate.hz(), rate.ns(1000)), (0, 0));
        rate.set(2_000_000_000);
        assert_eq!(rate.ns(2_000_000_000), NS_PER_SECOND);
        assert_eq!(rate.ns(u64::MAX), u64::MAX / 2);
        rate.set(62_500_000);
        assert_eq!(rate.ns(62_500_000), NS_PER_SECOND);
    }
}
