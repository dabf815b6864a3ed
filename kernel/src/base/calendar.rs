// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dates of the Gregorian calendar, taken to have been in use always, and how clocks that tell them are read.

use core::fmt;

const NS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// Days from March 1st of the year 0 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

/// Days from 1970-01-01 to a date. Months and days that do not exist run over into the next ones. The year may be
/// anything within a million of 0.
pub const fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years that start in March put the leap day at their end.
    let months = year * 12 + month - 3;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - DAYS_TO_1970
}

/// Year, month and day so many days after 1970-01-01.
pub fn date_of(days: i64) -> (i64, u8, u8) {
    // Right, or too late by what years differ in length.
    let mut year = 1970 + days.div_euclid(if days < 0 { 366 } else { 365 });
    while days_of(year, 1, 1) > days {
        year -= 1 + (days_of(year, 1, 1) - days - 1) / 366;
    }
    let mut month = 12;
    while days_of(year, month, 1) > days {
        month -= 1;
    }
    (year, month as u8, (days - days_of(year, month, 1) + 1) as u8)
}

/// Nanoseconds from 1970 to a date and time of day, UTC; `None` for a date before 1970, or one that is none.
pub fn unix_ns_of(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<u64> {
    let sane = (1970..=2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    if !sane {
        return None;
    }
    let days = u64::try_from(days_of(year.into(), month.into(), day.into())).ok()?;
    let seconds = ((days * 24 + u64::from(hour)) * 60 + u64::from(minute)) * 60 + u64::from(second);
    seconds.checked_mul(NS_PER_SECOND)
}

/// A moment in nanoseconds since 1970; displayed as date and time of day, to the millisecond, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Utc(pub u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / NS_PER_SECOND;
        let (year, month, day) = date_of(i64::try_from(seconds / SECONDS_PER_DAY).unwrap_or(i64::MAX));
        let of_day = seconds % SECONDS_PER_DAY;
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03} UTC",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            self.0 % NS_PER_SECOND / 1_000_000
        )
    }
}

/// Reads a clock that may tell whole seconds only: where it does, waits for the next one to begin. `read` returns
/// nanoseconds since 1970; `wait` passes a little time, and is called `most` times at most. What is returned is the
/// time at the last call of `read`; where the clock stands still, what it stands at.
pub fn read_to_the_edge(
    mut read: impl FnMut() -> Option<u64>,
    mut wait: impl FnMut(),
    most: u32,
) -> Option<u64> {
    let first = read()?;
    if !first.is_multiple_of(NS_PER_SECOND) {
        return Some(first);
    }
    for _ in 0..most {
        wait();
        let now = read()?;
        if now != first {
            return Some(now);
        }
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use proptest::prelude::*;

    #[test]
    fn dates() {
        let seconds = |y, mo, d, h, mi, s| unix_ns_of(y, mo, d, h, mi, s).map(|ns| ns / NS_PER_SECOND);
        assert_eq!(seconds(1970, 1, 1, 0, 0, 0), Some(0));
        assert_eq!(seconds(2000, 2, 29, 12, 0, 1), Some(951_825_601));
        assert_eq!(seconds(2026, 11, 21, 7, 19, 37), Some(1_795_245_577));
        assert_eq!(seconds(1969, 12, 31, 0, 0, 0), None);
        assert_eq!(seconds(2026, 0, 1, 0, 0, 0), None);
        assert_eq!(date_of(0), (1970, 1, 1));
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(date_of(-1), (1969, 12, 31));
    }

    #[test]
    fn moments_are_told_as_people_do() {
        assert_eq!(Utc(1_795_245_577_042_999_999).to_string(), "2026-11-21 07:19:37.042 UTC");
        assert_eq!(Utc(0).to_string(), "1970-01-01 00:00:00.000 UTC");
        assert!(Utc(u64::MAX).to_string().starts_with("2554-07-21 "));
    }

    /// What comes of reading a clock that shows multiples of `step`, and the true time then.
    fn read(start: u64, step: u64, most: u32) -> (Option<u64>, u64) {
        let time = Cell::new(start);
        let shown =
            read_to_the_edge(|| Some(time.get() / step * step), || time.set(time.get() + 1_000_000), most);
        (shown, time.get())
    }

    #[test]
    fn a_clock_of_whole_seconds_is_read_as_one_begins() {
        const START: u64 = 1_700_000_000_700_000_000;
        let (shown, time) = read(START, NS_PER_SECOND, 1_500);
        let late = time - shown.unwrap();
        assert!(late < 2_000_000, "{late} ns late");
        assert_eq!(read(START, 1000, 1_500), (Some(START), START), "a finer one tells at once");
        // One that stands still ends the wait.
        let (shown, time) = read(START, u64::MAX, 20);
        assert_eq!((shown, time), (Some(0), START + 20_000_000));
        assert_eq!(read_to_the_edge(|| None, || {}, 3), None);
    }

    proptest! {
        #[test]
        fn days_and_dates_are_each_others_inverse(days in -800_000i64..3_000_000) {
            let (year, month, day) = date_of(days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
            prop_assert_eq!(days_of(year, month.into(), day.into()), days);
        }
    }
}
