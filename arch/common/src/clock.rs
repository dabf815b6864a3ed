// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's time, from a counter of the processors.
//!
//! **Principle.** All pCPUs see one counter that runs at one rate from one start. Nanoseconds come from a
//! multiplication and a shift, no division.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds of a second.
const NS_PER_SECOND: u64 = 1_000_000_000;
/// Fraction bits of the nanoseconds that a tick takes.
const FRACTION: u32 = 32;

/// A counter that never goes back.
pub trait Counter {
    /// What it is at.
    fn count() -> u64;
}

/// Time by a counter. Until its rate is known, all times are 0.
#[derive(Debug)]
pub struct Clock<C> {
    hz: AtomicU64,
    ns_per_tick: AtomicU64,
    /// Count at which time is 0.
    start: AtomicU64,
    /// Wall clock at the start, in nanoseconds since 1970; 0 where unknown.
    unix_start: AtomicU64,
    counter: PhantomData<fn() -> C>,
}

impl<C: Counter> Clock<C> {
    /// Of unknown rate.
    pub const fn unknown() -> Self {
        Self {
            hz: AtomicU64::new(0),
            ns_per_tick: AtomicU64::new(0),
            start: AtomicU64::new(0),
            unix_start: AtomicU64::new(0),
            counter: PhantomData,
        }
    }

    /// Says what the wall clock is now, in nanoseconds since 1970, UTC; 0 where nobody knows. Time starts here. Before
    /// [`Clock::set_rate`].
    pub fn set_wall_clock(&self, unix_ns: u64) {
        self.start.store(C::count(), Ordering::Relaxed);
        self.unix_start.store(unix_ns, Ordering::Relaxed);
    }

    /// Sets the rate, in ticks per second, at least 1. Time starts at the count `start`, unless it has started before.
    pub fn set_rate(&self, hz: u64, start: u64) {
        if self.start.load(Ordering::Relaxed) == 0 {
            self.start.store(start, Ordering::Relaxed);
        }
        self.hz.store(hz, Ordering::Relaxed);
        self.ns_per_tick.store((NS_PER_SECOND << FRACTION) / hz.max(1), Ordering::Relaxed);
    }

    /// Ticks per second; 0 while unknown.
    pub fn hz(&self) -> u64 {
        self.hz.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.ns_at(C::count())
    }

    /// The time at which the counter is, or was, at `count`; 0 for what was before the start.
    pub fn ns_at(&self, count: u64) -> u64 {
        let ticks = count.saturating_sub(self.start.load(Ordering::Relaxed));
        // 2^64 ticks are centuries; the product is cut to what fits all the same.
        let ns = (u128::from(ticks) * u128::from(self.ns_per_tick.load(Ordering::Relaxed))) >> FRACTION;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// The count at a time of [`Clock::now_ns`]; the maximum where that lies beyond it.
    pub fn count_at(&self, ns: u64) -> u64 {
        self.ticks(ns).saturating_add(self.start.load(Ordering::Relaxed))
    }

    /// The whole ticks of so many nanoseconds; the maximum where there are more.
    pub fn ticks(&self, ns: u64) -> u64 {
        let ticks = u128::from(ns) * u128::from(self.hz()) / u128::from(NS_PER_SECOND);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The wall clock in nanoseconds since 1970, UTC: what was said at the start, and the time since. 0 where nobody
    /// knows.
    pub fn unix_ns(&self) -> u64 {
        match self.unix_start.load(Ordering::Relaxed) {
            0 => 0,
            start => start.saturating_add(self.now_ns()),
        }
    }

    /// Waits until `done`, at most so long; says whether it came.
    pub fn spin_until(&self, ns: u64, done: impl Fn() -> bool) -> bool {
        let end = self.now_ns().saturating_add(ns);
        loop {
            if done() {
                return true;
            }
            if self.now_ns() >= end {
                return false;
            }
            core::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter for one test, which the test moves.
    macro_rules! counter {
        ($name:ident) => {
            struct $name;
            static COUNT: AtomicU64 = AtomicU64::new(0);
            impl Counter for $name {
                fn count() -> u64 {
                    COUNT.load(Ordering::Relaxed)
                }
            }
        };
    }

    #[test]
    fn nanoseconds_of_ticks() {
        counter!(Ticks);
        let clock = Clock::<Ticks>::unknown();
        assert_eq!((clock.hz(), clock.ns_at(1000)), (0, 0));
        clock.set_rate(2 * NS_PER_SECOND, 0);
        assert_eq!(clock.ns_at(2 * NS_PER_SECOND), NS_PER_SECOND);
        assert_eq!(clock.ns_at(u64::MAX), u64::MAX / 2);
        clock.set_rate(62_500_000, 0);
        assert_eq!(clock.ns_at(62_500_000), NS_PER_SECOND);
    }

    #[test]
    fn time_starts_when_the_wall_clock_is_told_or_else_with_the_rate() {
        counter!(Ticks);
        COUNT.store(500, Ordering::Relaxed);
        let told = Clock::<Ticks>::unknown();
        told.set_wall_clock(1_000_000);
        let untold = Clock::<Ticks>::unknown();
        COUNT.store(700, Ordering::Relaxed);
        for clock in [&told, &untold] {
            clock.set_rate(NS_PER_SECOND, 700);
        }
        COUNT.store(1000, Ordering::Relaxed);
        assert_eq!((told.now_ns(), told.unix_ns()), (500, 1_000_500));
        assert_eq!((untold.now_ns(), untold.unix_ns()), (300, 0));
        assert_eq!(told.ns_at(400), 0, "before the start");
        assert_eq!((told.count_at(500), told.count_at(u64::MAX)), (1000, u64::MAX));
    }

    #[test]
    fn a_wait_ends_when_it_is_done_or_its_time_is_up() {
        struct Running;
        static COUNT: AtomicU64 = AtomicU64::new(1);
        impl Counter for Running {
            fn count() -> u64 {
                COUNT.fetch_add(1, Ordering::Relaxed)
            }
        }
        let clock = Clock::<Running>::unknown();
        clock.set_rate(NS_PER_SECOND, 1);
        assert!(clock.spin_until(0, || true));
        assert!(clock.spin_until(1000, || COUNT.load(Ordering::Relaxed) > 100));
        let before = COUNT.load(Ordering::Relaxed);
        assert!(!clock.spin_until(1000, || false));
        assert!(COUNT.load(Ordering::Relaxed) - before >= 1000);
    }
}
