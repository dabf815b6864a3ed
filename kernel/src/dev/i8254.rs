// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programmable interval timer, as far as kernels measure other clocks by it.
//!
//! **Principle.** Three counters that run by themselves: what one reads is computed from the time that has passed since
//! it was loaded. No interrupt is wired to them; the second channel's gate and output are at port 61h, as on a PC.
//! **Invariant.** No sequence of accesses panics or takes longer for what was done before.
//!
//! Source: Intel 82C54 data sheet; IBM PC AT Technical Reference, port 61h.

/// Ports: three counters and the control word.
pub const PORTS: u16 = 4;
/// Ticks in a second.
const HZ: u64 = 1_193_182;
/// The counter whose gate software has.
const GATED: usize = 2;
/// Port 61h: gate of counter 2, speaker, refresh (toggles), output of counter 2.
const SYSTEM_GATE: u8 = 1 << 0;
const SYSTEM_WRITABLE: u8 = 0x0f;
const SYSTEM_REFRESH: u8 = 1 << 4;
const SYSTEM_OUTPUT: u8 = 1 << 5;
/// How long the refresh line stays as it is.
const REFRESH_NS: u64 = 15_085;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Ticks of the timer in so many nanoseconds.
const fn ticks(ns: u64) -> u64 {
    // 2^64 ns are 584 years, of which there are fewer ticks than nanoseconds.
    (ns as u128 * HZ as u128 / NS_PER_SECOND as u128) as u64
}

/// Which bytes of a counter an access means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bytes {
    Low,
    High,
    LowThenHigh,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    mode: u8,
    bytes: Bytes,
    /// What it counts down from; 0 means 65,536.
    reload: u16,
    /// When it was loaded or its gate rose; `None` while it waits for its count or its gate is low.
    since_ns: Option<u64>,
    /// What it held when its gate fell.
    held: u16,
    latch: Option<u16>,
    /// The low byte was read, or written: the high one is next.
    read_high: bool,
    written_low: Option<u8>,
    gate: bool,
}

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bytes: Bytes::LowThenHigh,
            reload: 0,
            since_ns: None,
            held: 0,
            latch: None,
            read_high: false,
            written_low: None,
            gate,
        }
    }

    fn period(&self) -> u64 {
        match self.reload {
            0 => 1 << 16,
            reload => reload.into(),
        }
    }

    fn elapsed(&self, now_ns: u64) -> Option<u64> {
        Some(ticks(now_ns.saturating_sub(self.since_ns?)))
    }

    fn count(&self, now_ns: u64) -> u16 {
        let Some(elapsed) = self.elapsed(now_ns) else {
            return self.held;
        };
        let period = self.period();
        match self.mode {
            // Rate generator: from the period down to 1. Square wave: by twos.
            2 => (period - elapsed % period) as u16,
            3 => (period - elapsed * 2 % period) as u16,
            // All others go on below 0.
            _ => period.wrapping_sub(elapsed) as u16,
        }
    }

    fn output(&self, now_ns: u64) -> bool {
        let Some(elapsed) = self.elapsed(now_ns) else {
            return self.mode != 0;
        };
        let period = self.period();
        match self.mode {
            2 => elapsed % period != period - 1,
            3 => elapsed % period < period.div_ceil(2),
            _ => elapsed >= period,
        }
    }

    fn control(&mut self, word: u8, now_ns: u64) {
        let access = (word >> 4) & 3;
        if access == 0 {
            let count = self.count(now_ns);
            self.latch.get_or_insert(count);
            return;
        }
        // Modes 2 and 3 have two codes each.
        let mode = match (word >> 1) & 7 {
            code @ 6..=7 => code & 3,
            code => code,
        };
        *self = Self {
            mode,
            bytes: match access {
                1 => Bytes::Low,
                2 => Bytes::High,
                _ => Bytes::LowThenHigh,
            },
            ..Self::new(self.gate)
        };
    }

    fn load(&mut self, reload: u16, now_ns: u64) {
        self.reload = reload;
        self.held = reload;
        // One-shot modes with a hardware trigger begin when the gate rises.
        let triggered = matches!(self.mode, 1 | 5);
        self.since_ns = (self.gate && !triggered).then_some(now_ns);
    }

    fn write(&mut self, value: u8, now_ns: u64) {
        match (self.bytes, self.written_low.take()) {
            (Bytes::Low, _) => self.load(value.into(), now_ns),
            (Bytes::High, _) => self.load(u16::from(value) << 8, now_ns),
            (Bytes::LowThenHigh, None) => self.written_low = Some(value),
            (Bytes::LowThenHigh, Some(low)) => self.load(u16::from_le_bytes([low, value]), now_ns),
        }
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        let [low, high] = self.latch.unwrap_or_else(|| self.count(now_ns)).to_le_bytes();
        let (value, last) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::LowThenHigh => {
                self.read_high = !self.read_high;
                if self.read_high { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.latch = None;
        }
        value
    }

    fn set_gate(&mut self, gate: bool, now_ns: u64) {
        match (self.gate, gate) {
            (false, true) => self.since_ns = Some(now_ns),
            (true, false) => {
                self.held = self.count(now_ns);
                self.since_ns = None;
            }
            _ => {}
        }
        self.gate = gate;
    }
}

/// The timer, and port 61h.
#[derive(Clone, Debug)]
pub struct I8254 {
    counters: [Counter; 3],
    system: u8,
}

impl Default for I8254 {
    fn default() -> Self {
        Self { counters: [Counter::new(true), Counter::new(true), Counter::new(false)], system: 0 }
    }
}

impl I8254 {
    /// Reads the port at `offset` from the first counter's. The control word cannot be read.
    pub fn read(&mut self, offset: u16, now_ns: u64) -> u8 {
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.read(now_ns),
            None => u8::MAX,
        }
    }

    /// Writes the port at `offset` from the first counter's.
    pub fn write(&mut self, offset: u16, value: u8, now_ns: u64) {
        if let Some(counter) = self.counters.get_mut(usize::from(offset)) {
            counter.write(value, now_ns);
        } else if value >> 6 < 3 {
            if let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) {
                counter.control(value, now_ns);
            }
        } else {
            // Read-back: the counters that are named are latched, where bit 5 is clear.
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if value & (2 << index) != 0 && value & 1 << 5 == 0 {
                    counter.control(0, now_ns);
                }
            }
        }
    }

    /// Reads port 61h.
    pub fn read_system(&self, now_ns: u64) -> u8 {
        let refresh = now_ns / REFRESH_NS % 2 == 1;
        let output = self.counters[GATED].output(now_ns);
        self.system | if refresh { SYSTEM_REFRESH } else { 0 } | if output { SYSTEM_OUTPUT } else { 0 }
    }

    /// Writes port 61h.
    pub fn write_system(&mut self, value: u8, now_ns: u64) {
        self.system = value & SYSTEM_WRITABLE;
        self.counters[GATED].set_gate(value & SYSTEM_GATE != 0, now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    /// The second counter's ports, and the word that sets it to mode 0, low and high byte.
    const COUNTER_2: u16 = 2;
    const CONTROL: u16 = 3;
    const ONE_SHOT: u8 = 0xb0;

    fn loaded(count: u16, now_ns: u64) -> I8254 {
        let mut timer = I8254::default();
        timer.write_system(SYSTEM_GATE, now_ns);
        timer.write(CONTROL, ONE_SHOT, now_ns);
        let [low, high] = count.to_le_bytes();
        timer.write(COUNTER_2, low, now_ns);
        timer.write(COUNTER_2, high, now_ns);
        timer
    }

    fn count(timer: &mut I8254, now_ns: u64) -> u16 {
        let low = timer.read(COUNTER_2, now_ns);
        u16::from_le_bytes([low, timer.read(COUNTER_2, now_ns)])
    }

    #[test]
    fn a_loop_that_measures_by_the_high_byte_finds_the_rate() {
        // Linux counts how long some of the high bytes take, from 0xffff downwards.
        let mut timer = loaded(0xffff, 5 * MS);
        let mut changes = Vec::new();
        let mut last = 0xff;
        for step in 0..40_000 {
            let now = 5 * MS + step * 1000;
            let _ = timer.read(COUNTER_2, now);
            let high = timer.read(COUNTER_2, now);
            if high != last {
                assert_eq!(high, last - 1);
                changes.push(now);
                last = high;
            }
        }
        let took = changes.last().unwrap() - changes[0];
        let ticks = (changes.len() as u64 - 1) * 256;
        let hz = ticks * NS_PER_SECOND / took;
        assert!(hz.abs_diff(HZ) < HZ / 2000, "{hz}");
    }

    #[test]
    fn the_output_rises_when_the_count_is_over_and_the_gate_stops_it() {
        const COUNT: u16 = 11_931;
        let mut timer = loaded(COUNT, 0);
        assert_eq!(timer.read_system(9 * MS) & SYSTEM_OUTPUT, 0);
        assert_ne!(timer.read_system(10 * MS) & SYSTEM_OUTPUT, 0);
        timer.write(CONTROL, ONE_SHOT, 10 * MS);
        assert_eq!(timer.read_system(10 * MS) & SYSTEM_OUTPUT, 0, "low until it is loaded and over");
        let mut timer = loaded(COUNT, 0);
        timer.write_system(0, 5 * MS);
        let held = count(&mut timer, 5 * MS);
        assert_eq!(count(&mut timer, 50 * MS), held, "it stands still without its gate");
    }

    #[test]
    fn a_latched_count_stays_until_it_is_read() {
        let mut timer = loaded(0, 0);
        timer.write(CONTROL, 0x80, MS);
        let latched = count(&mut timer, 7 * MS);
        assert_eq!(latched, 0u16.wrapping_sub(ticks(MS) as u16));
        assert_eq!(count(&mut timer, 7 * MS), 0u16.wrapping_sub(ticks(7 * MS) as u16));
        timer.write(CONTROL, 0xd8, 8 * MS);
        assert_eq!(count(&mut timer, 9 * MS), 0u16.wrapping_sub(ticks(8 * MS) as u16), "read-back");
    }

    #[test]
    fn a_rate_generator_starts_over() {
        let mut timer = I8254::default();
        timer.write(CONTROL, 0x34, 0);
        timer.write(0, 100, 0);
        timer.write(0, 0, 0);
        let at = |timer: &mut I8254, tick: u64| {
            let now = tick * NS_PER_SECOND / HZ + 1;
            u16::from_le_bytes([timer.read(0, now), timer.read(0, now)])
        };
        assert_eq!([0, 1, 99, 100, 101].map(|tick| at(&mut timer, tick)), [100, 99, 1, 100, 99]);
    }

    proptest! {
        #[test]
        fn no_access_panics(ops in proptest::collection::vec((0u16..8, any::<u8>(), any::<u64>()), 0..200)) {
            let mut timer = I8254::default();
            for (port, value, now) in ops {
                match port {
                    0..=3 => timer.write(port, value, now),
                    4 => timer.write_system(value, now),
                    5 => drop(timer.read_system(now)),
                    port => drop(timer.read(port - 5, now)),
                }
            }
        }
    }
}
