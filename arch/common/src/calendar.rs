// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dates.

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds from 1970 to a date and time of day, UTC (proleptic Gregorian calendar); `None` for a date
/// before 1970, or one that is none.
pub fn unix_ns_of(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<u64> {
    let (year, month, day) = (u64::from(year), u64::from(month), u64::from(day));
    let sane = (1970..=2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    if !sane {
        return None;
    }
    // Years that start in March put the leap day at their end.
    let (years, months) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days_of_years = years * 365 + years / 4 - years / 100 + years / 400;
    let days_of_months = (months * 153 + 2) / 5;
    /// The same sum for the first of January 1970.
    const UNIX_EPOCH: u64 = 719_468;
    let days = days_of_years + days_of_months + day - 1 - UNIX_EPOCH;
    let seconds = ((days * 24 + u64::from(hour)) * 60 + u64::from(minute)) * 60 + u64::from(second);
    seconds.checked_mul(NS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let seconds = |y, mo, d, h, mi, s| unix_ns_of(y, mo, d, h, mi, s).map(|ns| ns / NS_PER_SECOND);
        assert_eq!(seconds(1970, 1, 1, 0, 0, 0), Some(0));
        assert_eq!(seconds(2000, 2, 29, 12, 0, 1), Some(951_825_601));
        assert_eq!(seconds(2026, 11, 21, 7, 19, 37), Some(1_795_245_577));
        assert_eq!(seconds(1969, 12, 31, 0, 0, 0), None);
        assert_eq!(seconds(2026, 0, 1, 0, 0, 0), None);
    }
}
