// SPDX-License-Identifier: MIT OR Apache-2.0
//! Printing the frames of a stack, innermost first.

use core::fmt::{self, Write};

use arrayvec::ArrayVec;
use pasidon_kernel::addr::PAGE_SIZE;

use crate::descriptors::ist;
use crate::paging;
use crate::pcpu::Pcpu;
use crate::stack::STACK_BYTES;
use crate::symbols::Place;
use crate::unwind::{self, Image, Position, RSP, Registers, Stop};

/// Frames printed from the innermost on.
const FIRST: usize = 24;
/// Frames printed up to the outermost one; those in between are counted only.
const LAST: usize = 8;
/// Frames looked at: more than a stack can hold.
const LIMIT: usize = STACK_BYTES as usize / 8;
/// Return addresses printed where the frames are lost.
const GUESSES: usize = 16;
/// A pCPU's stack and those of its exceptions.
const STACKS: usize = 1 + ist::ALL.len();
const WORD: u64 = 8;

/// What may be read as a stack.
pub struct StackRanges(ArrayVec<(u64, u64), STACKS>);

impl StackRanges {
    /// Those of this pCPU; before there are pCPUs, what is mapped from `rsp` on.
    pub fn of(me: Option<&Pcpu>, rsp: u64) -> Self {
        if let Some(me) = me {
            return Self(me.stacks().map(|stack| (stack.bottom, stack.top)).collect());
        }
        let end = rsp.saturating_add(STACK_BYTES);
        // On the firmware's tables all RAM is mapped, and its stack ends far below the end of that.
        let own_tables = paging::root() != 0;
        let mut top = rsp;
        while top < end && (!own_tables || paging::is_mapped(top)) {
            top = (top | (PAGE_SIZE - 1)).saturating_add(1);
        }
        Self([(rsp, top.min(end))].into_iter().collect())
    }

    fn top_above(&self, rsp: u64) -> Option<u64> {
        let Self(ranges) = self;
        let range = ranges
            .iter()
            .find(|(bottom, top)| (*bottom..=*top).contains(&rsp));
        range.map(|(_, top)| *top)
    }

    /// The word there, if it is on one of the stacks.
    fn read(&self, at: u64) -> Option<u64> {
        let Self(ranges) = self;
        let readable = |(bottom, top): &(u64, u64)| at >= *bottom && at < *top && *top - at >= WORD;
        if !at.is_multiple_of(WORD) || !ranges.iter().any(readable) {
            return None;
        }
        // SAFETY: the word lies on a stack, which is mapped and never freed. Nobody writes there: it is this
        // processor's.
        Some(unsafe { (at as *const u64).read_volatile() })
    }
}

/// Prints the frames from `registers` on.
///
/// # Errors
/// Those of `out`.
pub fn print(
    out: &mut dyn Write,
    image: &Image<'_>,
    registers: &Registers,
    stack: &StackRanges,
) -> fmt::Result {
    print_from(out, image, registers, &|at| stack.read(at), &|rsp| {
        stack.top_above(rsp)
    })
}

type Frame = (usize, u64, Position);

fn print_from(
    out: &mut dyn Write,
    image: &Image<'_>,
    registers: &Registers,
    read: unwind::ReadStack<'_>,
    top_above: &dyn Fn(u64) -> Option<u64>,
) -> fmt::Result {
    let mut frame = *registers;
    let mut position = Position::Interrupted;
    // The outermost frames so far, in a ring.
    let mut last: [Option<Frame>; LAST] = [None; LAST];
    let mut count = 0;
    let end = loop {
        if count < FIRST {
            print_frame(out, image, (count, frame.rip, position))?;
        } else {
            last[count % LAST] = Some((count, frame.rip, position));
        }
        count += 1;
        if count == LIMIT {
            break None;
        }
        match unwind::unwind(image, &frame, position, read) {
            Ok((caller, next)) if next == Position::Interrupted || image.offset_of(caller.rip).is_some() => {
                (frame, position) = (caller, next);
            }
            // What started the processor, or what is not there.
            Ok((caller, _)) => {
                frame = caller;
                break Some(Stop::OutOfImage);
            }
            Err(stop) => break Some(stop),
        }
    };
    if count > FIRST + LAST {
        writeln!(out, "   … {} frames …", count - FIRST - LAST)?;
    }
    for place in 0..LAST {
        if let Some(frame) = last[(count + place) % LAST] {
            print_frame(out, image, frame)?;
        }
    }
    let Some(stop) = end else {
        return writeln!(out, "   … and so on");
    };
    let rsp = frame.gpr[RSP];
    let top = top_above(rsp);
    // The outermost function was called with nothing, or with one word, above its return address.
    if top.is_some_and(|top| top - rsp <= 2 * WORD) || (stop == Stop::OutOfImage && top.is_none()) {
        return Ok(());
    }
    match stop {
        Stop::OutOfImage => writeln!(out, "  outside of the image from here on: {:#x}", frame.rip)?,
        Stop::NoEntry => writeln!(out, "  no unwind information for this one")?,
        Stop::Stack(at) => writeln!(out, "  {at:#x} is on no stack of this pCPU")?,
        Stop::Damaged => writeln!(out, "  the unwind information does not fit the stack")?,
    }
    guess(out, image, (rsp, top.unwrap_or(rsp)), read)
}

/// Prints what may be return addresses.
fn guess(
    out: &mut dyn Write,
    image: &Image<'_>,
    (from, to): (u64, u64),
    read: unwind::ReadStack<'_>,
) -> fmt::Result {
    let start = from.next_multiple_of(WORD);
    let addresses = (start..to)
        .step_by(WORD as usize)
        .filter_map(read)
        .filter(|address| image.is_behind_call(*address));
    for address in addresses.take(GUESSES) {
        let place = Place {
            address,
            behind_call: true,
        };
        writeln!(out, "   ?  {address:#x} {place}")?;
    }
    Ok(())
}

fn print_frame(out: &mut dyn Write, image: &Image<'_>, (number, address, position): Frame) -> fmt::Result {
    let place = Place {
        address,
        behind_call: position == Position::Called,
    };
    match image.offset_of(address) {
        Some(offset) => writeln!(out, "  {number:2}  image+{offset:#07x}  {place}"),
        None => writeln!(out, "  {number:2}  {address:#x}, outside of the image"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    const BASE: u64 = 0x7e00_0000;
    const STACK: u64 = 0x10_0000;

    /// An image with one function at 0x1000 that pushes rbp, and the text printed for a stack of `words`.
    fn text(rip: u64, words: &[u64]) -> String {
        let mut headers = std::vec![0u8; 0x200];
        headers[0x3c] = 0x80;
        headers[0x80 + 160..0x80 + 168].copy_from_slice(&[0, 0x20, 0, 0, 12, 0, 0, 0]);
        let code = [0xe8u8; 0x100];
        let tables = [
            0, 0x10, 0, 0, 0, 0x11, 0, 0, 12, 0x20, 0, 0, 1, 1, 1, 0, 1, 0x50, 0, 0u8,
        ];
        let parts: [(u32, &[u8]); 3] = [(0, &headers), (0x1000, &code), (0x2000, &tables)];
        let image = Image::new(BASE, 0x3000, parts);
        let mut registers = Registers {
            rip,
            ..Registers::default()
        };
        registers.gpr[RSP] = STACK;
        let top = STACK + words.len() as u64 * WORD;
        let read = |at: u64| words.get((at.checked_sub(STACK)? / WORD) as usize).copied();
        let mut out = String::new();
        print_from(&mut out, &image, &registers, &read, &|rsp| {
            (STACK..=top).contains(&rsp).then_some(top)
        })
        .unwrap();
        out
    }

    #[test]
    fn frames_up_to_the_top_of_the_stack() {
        let said = text(BASE + 0x1010, &[5, BASE + 0x1020, 6, BASE + 0x1030]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines,
            [
                "   0  image+0x01010  0x7e001010",
                "   1  image+0x01020  0x7e001020",
                "   2  image+0x01030  0x7e001030"
            ]
        );
    }

    #[test]
    fn of_a_deep_stack_both_ends_are_shown() {
        let words: Vec<u64> = (0..200).map(|word| BASE + 0x1010 + word / 2).collect();
        let said = text(BASE + 0x1008, &words);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), FIRST + 1 + LAST);
        assert_eq!(lines[FIRST], "   … 69 frames …");
        assert!(lines[FIRST + LAST].starts_with("  100  image+0x01073"), "{said}");
    }

    #[test]
    fn where_the_frames_are_lost_return_addresses_are_guessed() {
        let said = text(BASE + 0x1010, &[5, 0xbad, 7, 8, BASE + 0x1020, 9, 10]);
        assert!(
            said.contains("outside of the image from here on: 0xbad\n   ?  0x7e001020 "),
            "{said}"
        );
        // A call to nowhere: the caller is on the stack.
        let said = text(0, &[BASE + 0x1020, 5, 0]);
        assert!(
            said.starts_with("   0  0x0, outside of the image\n   1  image+0x01020"),
            "{said}"
        );
    }
}
