// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many lines a guest may cause to be printed, and how often it may cause something else that costs others.
//!
//! **Principle.** A few at once, then one a second: the serial line is slow, and whoever prints holds it. What is
//! not printed is counted, and the next line says how many there were.

use core::fmt;

/// Lines that may be printed at once after a quiet time.
pub const BURST: u64 = 8;
/// After a burst, one line in this time.
const INTERVAL_NS: u64 = 1_000_000_000;

/// The lines of one origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Lines that may be printed now.
    left: u64,
    /// When `left` last grew.
    refilled_ns: u64,
    /// Lines withheld since the last printed one.
    withheld: u64,
}

/// What the line says at its end about those that were withheld before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Withheld(pub u64);

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, "; {more} more before it"),
        }
    }
}

impl Allowance {
    /// A whole burst, at `now_ns`.
    pub const fn new(now_ns: u64) -> Self {
        Self { left: BURST, refilled_ns: now_ns, withheld: 0 }
    }

    /// Whether a line may be printed now; then, how many were withheld before it.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let earned = now_ns.saturating_sub(self.refilled_ns) / INTERVAL_NS;
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.refilled_ns = now_ns;
        }
        if self.left == 0 {
            self.withheld = self.withheld.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(core::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_a_second() {
        let mut allowance = Allowance::new(5);
        let printed = (0..100).filter(|_| allowance.take(6).is_some()).count() as u64;
        assert_eq!(printed, BURST);
        assert_eq!(allowance.take(5 + INTERVAL_NS), Some(100 - BURST));
        assert_eq!(allowance.take(5 + INTERVAL_NS), None);
        assert_eq!(allowance.take(u64::MAX), Some(1));
        assert_eq!(
            (Withheld(0).to_string(), Withheld(2).to_string()),
            (String::new(), "; 2 more before it".into())
        );
        assert_eq!(allowance.take(0), Some(0), "a clock that goes back earns nothing");
    }
}
