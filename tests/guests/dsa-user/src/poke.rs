// SPDX-License-Identifier: MIT OR Apache-2.0
//! One copy, or another operation, between addresses of the user's choice.
//!
//! **Principle.** Isolation shows where a guest names memory that it does not own, or an address that its neighbour
//! uses too. The device is told exactly what the user says; this program itself only touches what it may: its own
//! memory, and where there is something to fill, addresses that the kernel was told to leave alone.

use crate::descriptor::{Descriptor, Fields, Record, SUCCESS, operation};
use crate::device::{Device, Queue};
use crate::memory::{Memory, Physical, SIZE};
use crate::wait::Wait;
use anyhow::{Result, ensure};
use clap::Args;
use core::fmt;

/// Where things are in the memory: completion record, and what stands in for an address that was not given.
const RECORD_AT: usize = 0;
const SOURCE_AT: usize = 0x1000;
const DESTINATION_AT: usize = SIZE / 2;
/// Most bytes of the copy.
const LARGEST: u32 = (SIZE / 2 - SOURCE_AT) as u32;
/// All flags of a descriptor.
const FLAGS: u32 = 0xff_ffff;
/// What is filled is written in words.
const WORD: usize = 8;
/// Words of a descriptor.
const WORDS: usize = 8;

#[derive(Args)]
pub struct Poke {
    /// Address of the source [default: memory of this program]
    #[arg(long, value_parser = number, value_name = "ADDRESS")]
    src: Option<u64>,
    /// Address of the destination [default: memory of this program]
    #[arg(long, value_parser = number, value_name = "ADDRESS")]
    dst: Option<u64>,
    /// Bytes to copy
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST)))]
    len: u32,
    /// A byte that is written all over the source before, and its complement over the destination
    ///
    /// An address given with --src or --dst must then be one that the kernel was told to leave alone (such as by mem=
    /// or memmap= on its command line), a multiple of 8, as must be the length.
    #[arg(long)]
    fill: Option<u8>,
    /// The operation's code; addresses and length go to where a copy has them
    #[arg(long, value_parser = small, default_value = "0x03", value_name = "CODE")]
    operation: u8,
    /// Flags beside those of the completion, as bits
    #[arg(long, value_parser = flags, default_value = "0", value_name = "BITS")]
    flags: u32,
    /// What a 64-bit word of the descriptor is to be, 0 to 7, after all else; may be given several times
    #[arg(long, value_parser = word, value_name = "WORD=VALUE")]
    set: Vec<(usize, u64)>,
    /// Submit while the queue is disabled
    #[arg(long)]
    closed: bool,
}

/// What came of it.
pub struct Outcome {
    answer: Answer,
    /// Whether the destination holds what was filled.
    matches: Option<bool>,
}

enum Answer {
    Ok,
    /// Status of the completion record, and the address that it names.
    Error(u8, u64),
    /// Code and address of the error that the device recorded instead.
    Recorded(u8, u64),
    Timeout,
}

impl Outcome {
    /// Whether the device answered.
    pub fn answered(&self) -> bool {
        !matches!(self.answer, Answer::Timeout)
    }
}

impl Poke {
    /// Whether it can be done where Linux has the device.
    ///
    /// # Errors
    /// When an option takes the device's registers, or physical memory.
    pub fn need_no_device(&self) -> Result<()> {
        ensure!(
            !self.closed && (self.fill.is_none() || (self.src, self.dst) == (None, None)),
            "with --sva neither --closed, nor --fill together with --src or --dst: registers and physical memory are Linux's"
        );
        Ok(())
    }
}

impl fmt::Display for Poke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [src, dst] = [self.src, self.dst].map(|address| address.unwrap_or(0));
        write!(f, "src={src} dst={dst} len={}", self.len)?;
        if self.operation != operation::MEMORY_MOVE {
            write!(f, " operation={:#04x}", self.operation)?;
        }
        if self.flags != 0 {
            write!(f, " flags={:#x}", self.flags)?;
        }
        for (word, value) in &self.set {
            write!(f, " set={word}={value:#x}")?;
        }
        if self.closed { f.write_str(" closed") } else { Ok(()) }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matches = match self.matches {
            Some(true) => "yes",
            Some(false) => "no",
            None => "none",
        };
        match self.answer {
            Answer::Ok => write!(f, "result=ok match={matches}"),
            Answer::Error(status, address) => {
                write!(f, "result=error match={matches} status={status:#04x} address={address:#x}")
            }
            Answer::Recorded(code, address) => {
                write!(f, "result=recorded match={matches} status={code:#04x} address={address:#x}")
            }
            Answer::Timeout => write!(f, "result=timeout match={matches}"),
        }
    }
}

/// Decimal, or hexadecimal with 0x.
pub fn number(text: &str) -> Result<u64, core::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// The same for what an operation's code may be.
fn small(text: &str) -> Result<u8, String> {
    let value = number(text).map_err(|error| error.to_string())?;
    u8::try_from(value).map_err(|_| "more than 0xff".to_string())
}

/// The same for what flags may be.
fn flags(text: &str) -> Result<u32, String> {
    let value = number(text).map_err(|error| error.to_string())?;
    u32::try_from(value).ok().filter(|flags| *flags <= FLAGS).ok_or_else(|| "more than 24 bits".to_string())
}

/// The same for a word of the descriptor.
fn word(text: &str) -> Result<(usize, u64), String> {
    let (place, value) = text.split_once('=').ok_or("not WORD=VALUE")?;
    let place = place.parse().ok().filter(|place| *place < WORDS).ok_or("no word from 0 to 7")?;
    Ok((place, number(value).map_err(|error| error.to_string())?))
}

/// Does the copy. `device`: where it is this program's, and not Linux's.
///
/// # Errors
/// When the length does not go with what is to be filled, an address cannot be mapped, or the device does not do a command.
pub fn run(
    options: &Poke,
    memory: &mut Memory,
    device: Option<&Device>,
    queue: &Queue,
    wait: &Wait,
) -> Result<Outcome> {
    let len = options.len as usize;
    ensure!(
        options.fill.is_none() || len.is_multiple_of(WORD),
        "a length of {len} bytes; with --fill a multiple of {WORD} is needed"
    );
    let open = |address: Option<u64>| match (address, options.fill) {
        (Some(address), Some(_)) => Physical::map(address, len).map(Some),
        _ => Ok(None),
    };
    let mut source = open(options.src)?;
    let mut destination = open(options.dst)?;
    memory.clear_record(RECORD_AT);
    let bytes = memory.bytes();
    if let Some(fill) = options.fill {
        match &mut source {
            Some(source) => source.fill(fill),
            None => bytes[SOURCE_AT..SOURCE_AT + len].fill(fill),
        }
        match &mut destination {
            Some(destination) => destination.fill(!fill),
            None => bytes[DESTINATION_AT..DESTINATION_AT + len].fill(!fill),
        }
    }
    let mut descriptor = Descriptor::new(&Fields {
        operation: options.operation,
        record: memory.address(RECORD_AT),
        source: options.src.unwrap_or(memory.address(SOURCE_AT)),
        destination: options.dst.unwrap_or(memory.address(DESTINATION_AT)),
        size: options.len,
        seed: 0,
        flags: options.flags,
        interrupt: queue.interrupt,
    });
    options.set.iter().for_each(|(word, value)| descriptor.set(*word, *value));
    let take_error = || device.and_then(Device::take_error);
    // Not one of an earlier descriptor.
    take_error();
    let closed = device.filter(|_| options.closed);
    if let Some(device) = closed {
        device.close_queue()?;
    }
    queue.portal.submit(&descriptor);
    let waited = wait.complete_or(memory, RECORD_AT, take_error);
    if let Some(device) = closed {
        device.enable_queue(wait.by_interrupt())?;
    }
    let record = memory.record(RECORD_AT);
    let record = Record(&record);
    let bytes = memory.bytes();
    let answer = match (record.status(), waited) {
        (0, Ok(Some((code, address)))) => Answer::Recorded(code, address),
        (0, _) => Answer::Timeout,
        // The record is there, but its interrupt did not come.
        (_, Err(error)) => return Err(error),
        (SUCCESS, Ok(_)) => Answer::Ok,
        (status, Ok(_)) => Answer::Error(status, record.fault_address()),
    };
    let matches = options.fill.map(|fill| match &destination {
        Some(destination) => destination.is_all(fill),
        None => bytes[DESTINATION_AT..DESTINATION_AT + len].iter().all(|byte| *byte == fill),
    });
    Ok(Outcome { answer, matches })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_forms() {
        assert_eq!(number("0x123456000").unwrap(), 0x1_2345_6000);
        assert_eq!(number("4096").unwrap(), 4096);
        assert!(number("12k").is_err());
        assert_eq!((small("0x20"), flags("2")), (Ok(0x20), Ok(2)));
        assert_eq!(word("7=0x10"), Ok((7, 16)));
        assert!(["8=1", "1", "=1", "1=", "-1=1"].iter().all(|text| word(text).is_err()));
        assert!(small("256").is_err() && flags("0x1000000").is_err());
    }

    #[test]
    fn the_line_says_what_came_of_it() {
        let plain = Poke {
            src: None,
            dst: Some(0x2000_0000),
            len: 4096,
            fill: None,
            operation: operation::MEMORY_MOVE,
            flags: 0,
            set: Vec::new(),
            closed: false,
        };
        let outcome = Outcome { answer: Answer::Error(3, 0x2000_0000), matches: None };
        assert_eq!(
            format!("{plain} {outcome}"),
            "src=0 dst=536870912 len=4096 result=error match=none status=0x03 address=0x20000000"
        );
        let outcome = Outcome { answer: Answer::Recorded(0x1b, 0), matches: None };
        assert_eq!(outcome.to_string(), "result=recorded match=none status=0x1b address=0x0");
        let other = Poke { operation: 1, flags: 2, dst: None, set: vec![(1, 32)], closed: true, ..plain };
        assert_eq!(other.to_string(), "src=0 dst=0 len=4096 operation=0x01 flags=0x2 set=1=0x20 closed");
    }
}
