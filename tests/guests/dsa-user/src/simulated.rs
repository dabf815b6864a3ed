// SPDX-License-Identifier: MIT OR Apache-2.0
//! For tests: a device that meets this process's pages as they are, and stops at the first one that it cannot use.
//!
//! It works page by page, as devices do, and looks up in Linux's pagemap what an IOMMU would find in the page tables.

use crate::descriptor::{RECORD, SUCCESS, operation};
use crate::memory::{Memory, SIZE};
use core::ops::Range;
use crc::{CRC_32_ISCSI, Crc};

const PAGE: usize = 4096;
const FAULT: u8 = 0x03;
const WRITE: u8 = 0x80;

/// Why an operation ended early: status, and the address.
type Stop = (u8, u64);

/// What a descriptor asks for, with offsets in the memory for addresses.
struct Asked {
    source: usize,
    destination: usize,
    size: usize,
    pattern: [u8; 8],
}

/// Does what a descriptor says, and writes its completion record.
pub fn run(words: &[u64; 8], memory: &mut Memory) {
    let offset = |address: u64| address.wrapping_sub(memory.address(0)) as usize;
    let asked = Asked {
        source: offset(words[2]),
        destination: offset(words[3]),
        size: words[4] as u32 as usize,
        pattern: words[2].to_le_bytes(),
    };
    let record = offset(words[1]);
    assert!(record.is_multiple_of(RECORD) && memory.state(record)[1], "nobody would learn of this");
    let mut answer = [0; RECORD];
    let mut done = 0;
    let stopped = match (words[0] >> 56) as u8 {
        operation::MEMORY_MOVE => {
            let stopped = asked.copy(memory, &mut done);
            answer[1] = u8::from(stopped.is_err() && asked.backwards());
            stopped
        }
        operation::FILL => asked.fill(memory, &mut done),
        operation::COMPARE => asked.compare(memory, &mut done).map(|differ| answer[1] = differ.into()),
        operation::CRC_GENERATION => {
            let crc = asked.crc(memory, &mut done, words[5] as u32);
            crc.map(|crc| answer[16..20].copy_from_slice(&crc.to_le_bytes()))
        }
        other => panic!("operation {other:#x}"),
    };
    let (status, address) = stopped.err().unwrap_or((SUCCESS, 0));
    answer[0] = status;
    answer[4..8].copy_from_slice(&(done as u32).to_le_bytes());
    answer[8..16].copy_from_slice(&address.to_le_bytes());
    memory.bytes()[record..record + RECORD].copy_from_slice(&answer);
}

/// Whether an offset may be accessed. The address of a fault is that of its page.
fn may(memory: &Memory, offset: usize, write: bool) -> Result<(), Stop> {
    let status = if write { FAULT | WRITE } else { FAULT };
    let there = offset < SIZE && memory.state(offset)[usize::from(write)];
    if there { Ok(()) } else { Err((status, memory.address(offset / PAGE * PAGE))) }
}

/// How much of `rest` bytes from an offset on is in its page; the same before an offset.
fn in_page(offset: usize, rest: usize) -> usize {
    rest.min(PAGE - offset % PAGE)
}

fn in_page_before(end: usize, rest: usize) -> usize {
    rest.min((end - 1) % PAGE + 1)
}

impl Asked {
    fn backwards(&self) -> bool {
        (self.source + 1..self.source + self.size).contains(&self.destination)
    }

    fn copy(&self, memory: &mut Memory, done: &mut usize) -> Result<(), Stop> {
        while *done < self.size {
            let rest = self.size - *done;
            let (at, len) = if self.backwards() {
                let len = in_page_before(self.destination + rest, in_page_before(self.source + rest, rest));
                (rest - len, len)
            } else {
                (*done, in_page(self.destination + *done, in_page(self.source + *done, rest)))
            };
            may(memory, self.source + at, false)?;
            may(memory, self.destination + at, true)?;
            let from = self.source + at;
            memory.bytes().copy_within(from..from + len, self.destination + at);
            *done += len;
        }
        Ok(())
    }

    fn fill(&self, memory: &mut Memory, done: &mut usize) -> Result<(), Stop> {
        while *done < self.size {
            let at = self.destination + *done;
            may(memory, at, true)?;
            let len = in_page(at, self.size - *done);
            for byte in &mut memory.bytes()[at..at + len] {
                *byte = self.pattern[*done % self.pattern.len()];
                *done += 1;
            }
        }
        Ok(())
    }

    fn compare(&self, memory: &mut Memory, done: &mut usize) -> Result<bool, Stop> {
        while *done < self.size {
            let (one, other) = (self.source + *done, self.destination + *done);
            may(memory, one, false)?;
            may(memory, other, false)?;
            let bytes = memory.bytes();
            for _ in 0..in_page(one, in_page(other, self.size - *done)) {
                if bytes[self.source + *done] != bytes[self.destination + *done] {
                    return Ok(true);
                }
                *done += 1;
            }
        }
        Ok(false)
    }

    /// The CRC is told only in the end.
    fn crc(&self, memory: &mut Memory, done: &mut usize, seed: u32) -> Result<u32, Stop> {
        while *done < self.size {
            let at = self.source + *done;
            may(memory, at, false)?;
            *done += in_page(at, self.size - *done);
        }
        let all: Range<usize> = self.source..self.source + self.size;
        assert_eq!(seed, 0);
        Ok(Crc::<u32>::new(&CRC_32_ISCSI).checksum(&memory.bytes()[all]))
    }
}
