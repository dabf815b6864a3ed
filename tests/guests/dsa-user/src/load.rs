// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies for a time, so many at once: how many the queue does, and how long each takes.

use crate::descriptor::{Fields, RECORD, SUCCESS, operation};
use crate::device::Queue;
use crate::memory::{Memory, SIZE};
use crate::wait::Wait;
use crate::work::Work;
use anyhow::{Result, ensure};
use clap::Args;
use core::fmt;
use std::time::{Duration, Instant};

/// Completion records lie below this offset, the source from there on, the destination in the other half.
const SOURCE_AT: usize = 0x1000;
const DESTINATION_AT: usize = SIZE / 2;
const MOST: usize = SOURCE_AT / RECORD;
const LARGEST: u32 = (DESTINATION_AT - SOURCE_AT) as u32;

#[derive(Args)]
pub struct Load {
    /// How long, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many copies are under way at once
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Bytes of each
    #[arg(long, default_value_t = 4096)]
    size: u32,
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    copies: usize,
    pub failures: usize,
    seconds: f64,
    median: Duration,
    /// Of a hundred copies, 99 take no longer.
    percentile_99: Duration,
    /// How often the device stopped at a page that was not there.
    pub partial: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "copies={} failures={} per_second={:.2} median_us={} p99_us={}",
            self.copies,
            self.failures,
            self.copies as f64 / self.seconds,
            self.median.as_micros(),
            self.percentile_99.as_micros()
        )
    }
}

/// Keeps the queue at work.
///
/// # Errors
/// When the queue does not hold as much, or nothing completes any more.
pub fn run(options: &Load, memory: &mut Memory, queue: &Queue, wait: &Wait) -> Result<Outcome> {
    let most = MOST.min(queue.entries.into());
    ensure!((1..=most).contains(&options.depth), "depth {}; this queue takes 1 to {most}", options.depth);
    ensure!((1..=LARGEST).contains(&options.size), "size {}; 1 to {LARGEST} bytes", options.size);
    memory.bytes()[..MOST * RECORD].fill(0);
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let mut under_way: Vec<Option<(Instant, Work)>> = vec![None; options.depth];
    let mut times = Vec::new();
    let (mut failures, mut partial) = (0, 0);
    loop {
        let go_on = Instant::now() < end;
        let mut changed = false;
        for (place, slot) in under_way.iter_mut().enumerate() {
            let record = place * RECORD;
            if let Some((began, work)) = slot {
                if memory.status(record) == 0 {
                    continue;
                }
                changed = true;
                if !work.ended(memory, queue, *began)? {
                    continue;
                }
                times.push(began.elapsed());
                failures += usize::from(memory.status(record) != SUCCESS);
                partial += work.partial();
                *slot = None;
            }
            if go_on {
                memory.clear_record(record);
                if memory.untouched() {
                    memory.forget(DESTINATION_AT..DESTINATION_AT + options.size as usize)?;
                }
                let fields = Fields {
                    operation: operation::MEMORY_MOVE,
                    source: memory.address(SOURCE_AT),
                    destination: memory.address(DESTINATION_AT),
                    size: options.size,
                    interrupt: queue.interrupt,
                    ..Fields::default()
                };
                let (_, work) = slot.insert((Instant::now(), Work::new(fields, memory, record)));
                work.submit(queue);
            }
        }
        if under_way.iter().all(Option::is_none) {
            break;
        }
        if !changed {
            let oldest = under_way.iter().flatten().map(|(began, _)| *began).min();
            wait.any(oldest.map_or(Duration::ZERO, |began| began.elapsed()))?;
        }
    }
    Ok(outcome(times, failures, partial, start.elapsed()))
}

fn outcome(mut times: Vec<Duration>, failures: usize, partial: u64, took: Duration) -> Outcome {
    times.sort_unstable();
    let at = |part: f64| {
        let place = (times.len() as f64 * part).ceil() as usize;
        times.get(place.saturating_sub(1)).copied().unwrap_or_default()
    };
    Outcome {
        copies: times.len(),
        failures,
        seconds: took.as_secs_f64(),
        median: at(0.5),
        percentile_99: at(0.99),
        partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_their_ranks() {
        let times = (1..=200).rev().map(Duration::from_micros).collect();
        let told = outcome(times, 2, 0, Duration::from_secs(2)).to_string();
        assert_eq!(told, "copies=200 failures=2 per_second=100.00 median_us=100 p99_us=198");
        let none = outcome(Vec::new(), 0, 0, Duration::from_secs(1)).to_string();
        assert_eq!(none, "copies=0 failures=0 per_second=0.00 median_us=0 p99_us=0");
    }
}
