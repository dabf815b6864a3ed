// SPDX-License-Identifier: MIT OR Apache-2.0
//! What time it is while the guest's devices answer.
//!
//! Source: ACPI specification 6.5, 4.8.3.3 (power-management timer).

/// Rate of the power-management timer.
const PM_TIMER_HZ: u64 = 3_579_545;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// A moment, on the clocks that devices go by.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moment {
    /// The TSC of the vCPU that asks.
    pub tsc: u64,
    /// Nanoseconds of the host's clock, which runs on whatever the guest does.
    pub ns: u64,
    /// Nanoseconds since 1970, UTC; 0 where nobody knows.
    pub unix_ns: u64,
}

impl Moment {
    /// What the power-management timer reads: 32 bits that run over every 20 minutes.
    pub const fn pm_timer(&self) -> u32 {
        (self.ns as u128 * PM_TIMER_HZ as u128 / NS_PER_SECOND as u128) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_counts_at_its_rate_and_runs_over() {
        let at = |ns| Moment { ns, ..Moment::default() }.pm_timer();
        assert_eq!((at(0), at(NS_PER_SECOND), at(2 * NS_PER_SECOND)), (0, 3_579_545, 7_159_090));
        let full = (1u128 << 32) * u128::from(NS_PER_SECOND) / u128::from(PM_TIMER_HZ);
        assert_eq!(at(full as u64 + 1_000), 3);
        at(u64::MAX);
    }
}
