// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real-time clock of a PC: the date, and battery-backed memory.
//!
//! **Principle.** The date is the host's, with what the guest has set it forward or back by, in this life. While the
//! guest sets it (register B, SET) its registers are memory; what they hold when it is done is the date. No interrupt
//! is wired to it, so the bits that enable interrupts cannot be set.
//! **Invariant.** No sequence of accesses panics; what a guest writes as a date is a date, whatever it is.
//!
//! Source: Motorola MC146818A data sheet; Intel ICH10 datasheet, "Real Time Clock Registers".

use crate::base::calendar::{date_of, days_of};

/// Ports: index and data.
pub const PORTS: u16 = 2;
/// Bytes of registers and memory.
const LEN: usize = 128;
/// Registers.
mod register {
    pub const SECONDS: usize = 0;
    pub const MINUTES: usize = 2;
    pub const HOURS: usize = 4;
    pub const WEEKDAY: usize = 6;
    pub const DAY: usize = 7;
    pub const MONTH: usize = 8;
    pub const YEAR: usize = 9;
    pub const A: usize = 10;
    pub const B: usize = 11;
    pub const C: usize = 12;
    pub const D: usize = 13;
    /// Where PCs keep the century, and the FADT says so.
    pub const CENTURY: usize = 0x32;
}
/// The register of the century, for the FADT.
pub const CENTURY: u8 = register::CENTURY as u8;

/// Register A: update in progress; after reset, a 32,768 Hz base and 1,024 Hz.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const A_RESET: u8 = 0x26;
/// Register B: the guest sets the date, the numbers are binary, hours go to 24; what can be written.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const B_WRITABLE: u8 = SET | BINARY | HOURS_24 | 1;
/// Register C: the date changed since it was read.
const UPDATED: u8 = 1 << 4;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// Hours: afternoon, where they go to 12.
const PM: u8 = 1 << 7;
/// How long before a second ends the registers must not be read.
const UPDATE_NS: u64 = 244_000;
const NS_PER_SECOND: u64 = 1_000_000_000;
const DAY_SECONDS: i64 = 86_400;

/// The clock.
#[derive(Clone, Debug)]
pub struct Mc146818 {
    index: usize,
    memory: [u8; LEN],
    /// Seconds that its date is ahead of the host's.
    ahead: i64,
    /// The second that register C told last.
    told: i64,
}

impl Mc146818 {
    /// A clock that is right, at this time since 1970.
    pub fn new(unix_ns: u64) -> Self {
        let mut memory = [0; LEN];
        memory[register::A] = A_RESET;
        memory[register::B] = HOURS_24;
        Self { index: 0, memory, ahead: 0, told: seconds(unix_ns) }
    }

    /// Reads the port at `offset`.
    pub fn read(&mut self, offset: u16, unix_ns: u64) -> u8 {
        if offset == 0 {
            // The index can only be written.
            return u8::MAX;
        }
        let now = seconds(unix_ns).saturating_add(self.ahead);
        match self.index {
            register::A => {
                let left = NS_PER_SECOND - unix_ns % NS_PER_SECOND;
                let busy = left <= UPDATE_NS && !self.is_set();
                self.memory[register::A] | if busy { UPDATE_IN_PROGRESS } else { 0 }
            }
            register::C => {
                let changed = core::mem::replace(&mut self.told, now) != now;
                if changed { UPDATED } else { 0 }
            }
            register::D => VALID,
            index => {
                if !self.is_set() {
                    self.show(now);
                }
                self.memory[index]
            }
        }
    }

    /// Writes the port at `offset`.
    pub fn write(&mut self, offset: u16, value: u8, unix_ns: u64) {
        if offset == 0 {
            // The highest bit masks non-maskable interrupts, of which there are none.
            self.index = usize::from(value) % LEN;
            return;
        }
        let now = seconds(unix_ns).saturating_add(self.ahead);
        if !self.is_set() {
            self.show(now);
        }
        match self.index {
            register::A => self.memory[register::A] = value & !UPDATE_IN_PROGRESS,
            register::B => {
                let was_set = self.is_set();
                if was_set && value & SET == 0 {
                    // In the form in which they were written.
                    self.take(unix_ns);
                }
                self.memory[register::B] = value & B_WRITABLE;
            }
            register::C | register::D => {}
            index => {
                self.memory[index] = value;
                if !self.is_set() {
                    self.take(unix_ns);
                }
            }
        }
    }

    /// The guest sets the date.
    fn is_set(&self) -> bool {
        self.memory[register::B] & SET != 0
    }

    /// Puts a date into the registers.
    fn show(&mut self, now: i64) {
        let (days, rest) = (now.div_euclid(DAY_SECONDS), now.rem_euclid(DAY_SECONDS));
        let (year, month, day) = date_of(days);
        let hours = (rest / 3600) as u8;
        let shown_hours = if self.memory[register::B] & HOURS_24 != 0 {
            self.encode(hours)
        } else {
            let half = if hours >= 12 { PM } else { 0 };
            self.encode((hours + 11) % 12 + 1) | half
        };
        // 1970-01-01 was a Thursday, the fifth day of the week.
        let weekday = (days + 4).rem_euclid(7) as u8 + 1;
        let year = year.rem_euclid(10_000);
        for (index, value) in [
            (register::SECONDS, self.encode((rest % 60) as u8)),
            (register::MINUTES, self.encode((rest / 60 % 60) as u8)),
            (register::HOURS, shown_hours),
            (register::WEEKDAY, self.encode(weekday)),
            (register::DAY, self.encode(day)),
            (register::MONTH, self.encode(month)),
            (register::YEAR, self.encode((year % 100) as u8)),
            (register::CENTURY, self.encode((year / 100) as u8)),
        ] {
            self.memory[index] = value;
        }
    }

    /// Takes the date in the registers for what it is now.
    fn take(&mut self, unix_ns: u64) {
        let field = |index: usize| i64::from(self.decode(self.memory[index]));
        let hours = self.memory[register::HOURS];
        let hours = if self.memory[register::B] & HOURS_24 != 0 {
            i64::from(self.decode(hours))
        } else {
            i64::from(self.decode(hours & !PM)) % 12 + if hours & PM != 0 { 12 } else { 0 }
        };
        let year = field(register::CENTURY) * 100 + field(register::YEAR);
        let days = days_of(year, field(register::MONTH), field(register::DAY));
        let then =
            days * DAY_SECONDS + hours * 3600 + field(register::MINUTES) * 60 + field(register::SECONDS);
        self.ahead = then - seconds(unix_ns);
    }

    fn encode(&self, value: u8) -> u8 {
        if self.memory[register::B] & BINARY != 0 { value } else { (value / 10 * 16) + value % 10 }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.memory[register::B] & BINARY != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10).saturating_add(value & 0xf)
        }
    }
}

fn seconds(unix_ns: u64) -> i64 {
    (unix_ns / NS_PER_SECOND).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2024-02-29 13:45:59.5 UTC, a Thursday.
    const LEAP: u64 = 1_709_214_359_500_000_000;

    fn read(clock: &mut Mc146818, index: usize, now: u64) -> u8 {
        clock.write(0, index as u8, now);
        clock.read(1, now)
    }

    fn write(clock: &mut Mc146818, index: usize, value: u8, now: u64) {
        clock.write(0, index as u8, now);
        clock.write(1, value, now);
    }

    fn date(clock: &mut Mc146818, now: u64) -> [u8; 7] {
        [
            register::CENTURY,
            register::YEAR,
            register::MONTH,
            register::DAY,
            register::HOURS,
            register::MINUTES,
            register::SECONDS,
        ]
        .map(|index| read(clock, index, now))
    }

    #[test]
    fn the_date_is_the_hosts_in_each_form() {
        let mut clock = Mc146818::new(LEAP);
        assert_eq!(date(&mut clock, LEAP), [0x20, 0x24, 0x02, 0x29, 0x13, 0x45, 0x59]);
        assert_eq!(read(&mut clock, register::WEEKDAY, LEAP), 5);
        assert_eq!(date(&mut clock, LEAP + NS_PER_SECOND), [0x20, 0x24, 0x02, 0x29, 0x13, 0x46, 0x00]);
        write(&mut clock, register::B, BINARY, LEAP);
        assert_eq!(date(&mut clock, LEAP), [20, 24, 2, 29, 1 | PM, 45, 59]);
        assert_eq!(read(&mut clock, register::D, LEAP), VALID);
    }

    #[test]
    fn what_the_guest_sets_counts_from_then_on() {
        let mut clock = Mc146818::new(LEAP);
        write(&mut clock, register::B, SET | HOURS_24, LEAP);
        for (index, value) in [
            (register::CENTURY, 0x19),
            (register::YEAR, 0x99),
            (register::MONTH, 0x12),
            (register::DAY, 0x31),
            (register::HOURS, 0x23),
            (register::MINUTES, 0x59),
            (register::SECONDS, 0x58),
        ] {
            write(&mut clock, index, value, LEAP);
        }
        let later = LEAP + NS_PER_SECOND;
        assert_eq!(date(&mut clock, later)[6], 0x58, "it waits");
        write(&mut clock, register::B, HOURS_24, LEAP);
        assert_eq!(date(&mut clock, later + NS_PER_SECOND), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn an_update_is_announced_and_told_once() {
        let mut clock = Mc146818::new(LEAP);
        let end = LEAP / NS_PER_SECOND * NS_PER_SECOND + NS_PER_SECOND;
        assert_eq!(read(&mut clock, register::A, LEAP) & UPDATE_IN_PROGRESS, 0);
        assert_ne!(read(&mut clock, register::A, end - 100_000) & UPDATE_IN_PROGRESS, 0);
        assert_eq!(read(&mut clock, register::A, end) & UPDATE_IN_PROGRESS, 0);
        assert_eq!(read(&mut clock, register::C, LEAP), 0);
        assert_eq!(read(&mut clock, register::C, end), UPDATED);
        assert_eq!(read(&mut clock, register::C, end), 0);
        write(&mut clock, register::B, 0x70 | HOURS_24, end);
        assert_eq!(read(&mut clock, register::B, end), HOURS_24, "no interrupt to enable");
    }

    #[test]
    fn memory_keeps_what_is_written() {
        let mut clock = Mc146818::new(LEAP);
        write(&mut clock, 0x70, 0xab, LEAP);
        assert_eq!(read(&mut clock, 0x70, LEAP + NS_PER_SECOND), 0xab);
        assert_eq!(clock.read(0, LEAP), 0xff);
    }

    proptest! {
        #[test]
        fn no_access_panics(ops in proptest::collection::vec((any::<bool>(), 0u16..2, any::<u8>(), any::<u64>()), 0..200)) {
            let mut clock = Mc146818::new(0);
            for (writes, port, value, now) in ops {
                if writes {
                    clock.write(port, value, now);
                } else {
                    clock.read(port, now);
                }
            }
        }
    }
}
