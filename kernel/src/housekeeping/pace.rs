// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often something that is under way is looked at.
//!
//! **Principle.** Soon at first, and ever more seldom: after a quarter of the time that it has taken so far. So the
//! looks cost little, and its end is noticed at most a quarter late, within bounds.

/// The shortest and the longest time between two looks, in nanoseconds.
const PAUSE_NS: (u64, u64) = (1_000_000, 20_000_000);

/// When the next look is due.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Since when something has been under way.
    since_ns: Option<u64>,
    due_ns: u64,
}

impl Pace {
    /// Nothing is under way.
    pub fn rest(&mut self) {
        *self = Self::default();
    }

    /// Something is under way: whether it is to be looked at now. [`Pace::done`] then follows.
    pub fn begin(&mut self, now_ns: u64) -> bool {
        self.since_ns.get_or_insert(now_ns);
        self.due_ns <= now_ns
    }

    /// It was looked at.
    pub fn done(&mut self, now_ns: u64) {
        let taken = self.since_ns.map_or(0, |since| now_ns.saturating_sub(since));
        let pause = (taken / 4).clamp(PAUSE_NS.0, PAUSE_NS.1);
        self.due_ns = now_ns.saturating_add(pause);
    }

    /// When what is under way is to be looked at; at once where it has just begun.
    pub fn due(&self) -> u64 {
        self.due_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// When it was looked at in the first second, in milliseconds, where each look takes `look_ns` and somebody asks
    /// at every tenth of one.
    fn looks(pace: &mut Pace, start: u64, look_ns: u64) -> Vec<u64> {
        let mut looks = Vec::new();
        let mut now = start;
        while now < start + 1000 * MS {
            if pace.begin(now) {
                looks.push((now - start) / MS);
                now += look_ns;
                pace.done(now);
                assert!(pace.due() >= now + PAUSE_NS.0, "no guest has a turn in between");
            }
            now += MS / 10;
        }
        looks
    }

    #[test]
    fn looks_come_soon_at_first_and_then_seldom() {
        let mut pace = Pace::default();
        let first = looks(&mut pace, 5, 0);
        assert_eq!(first[..6], [0, 1, 2, 3, 4, 5]);
        let gaps: Vec<u64> = first.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (1..=20).contains(gap)), "{gaps:?}");
        assert!(gaps.is_sorted_by(|gap, next| *gap <= next + 1), "{gaps:?}");
        assert!((50..100).contains(&first.len()), "{first:?}");
        // The next thing is looked at as soon as the first was.
        pace.rest();
        assert_eq!((pace.due(), looks(&mut pace, 7000 * MS, 0)), (0, first));
        // However long a look takes.
        pace.rest();
        looks(&mut pace, 9000 * MS, 30 * MS);
    }
}
