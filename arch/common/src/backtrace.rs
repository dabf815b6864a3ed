// SPDX-License-Identifier: MIT OR Apache-2.0
//! Printing the frames of a stack, innermost first. How a frame is left is said by an [`Unwind`].

use core::fmt::{self, Write};

use arrayvec::ArrayVec;

use crate::image::Parts;
use crate::stack::{STACK_BYTES, Stack};
use crate::symbols::Place;

/// Frames printed from the innermost on.
const FIRST: usize = 24;
/// Frames printed up to the outermost one; those in between are counted only.
const LAST: usize = 8;
/// Frames looked at: more than a stack can hold.
const LIMIT: usize = STACK_BYTES as usize / 8;
/// Return addresses printed where the frames are lost.
const GUESSES: usize = 16;
/// A pCPU's stack and those of its exceptions, at most.
const STACKS: usize = 4;
const WORD: u64 = 8;

/// What the address in a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// The next instruction: an exception or interrupt came there.
    Interrupted,
    /// The one behind a call; it may even belong to the next function.
    Called,
}

/// Why there is no further frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It is the first one: what started the processor says so.
    Outermost,
    /// The caller is not in the image.
    OutOfImage,
    /// It is, but the image has no entry for it (assembly).
    NoEntry,
    /// The stack cannot be read at this address.
    Stack(u64),
    /// What is on the stack makes no sense, or the stack would grow.
    Damaged,
}

/// Reads the 8 bytes of the stack at an address, if they can be read.
pub type ReadStack<'a> = &'a dyn Fn(u64) -> Option<u64>;

/// The registers of one frame.
pub trait Frame: Copy {
    /// The address in the code.
    fn pc(&self) -> u64;

    /// The stack pointer.
    fn sp(&self) -> u64;
}

/// How frames are left in an image.
pub trait Unwind {
    /// The registers of a frame.
    type Registers: Frame;

    /// What of the image may be read.
    fn parts(&self) -> &Parts<'_>;

    /// An address relative to the image, if it is in there.
    fn offset_of(&self, address: u64) -> Option<u32> {
        self.parts().offset_of(address)
    }

    /// The frame that called the one with `registers`, and what its address is.
    ///
    /// # Errors
    /// When there is none, or it cannot be found.
    fn caller(
        &self,
        registers: &Self::Registers,
        position: Position,
        read_stack: ReadStack<'_>,
    ) -> Result<(Self::Registers, Position), Stop>;

    /// Whether a call instruction ends at `address`, as far as its bytes tell.
    fn is_behind_call(&self, address: u64) -> bool;
}

/// What may be read as a stack.
pub struct StackRanges(ArrayVec<(u64, u64), STACKS>);

impl StackRanges {
    /// Those of a pCPU.
    pub fn of(stacks: impl Iterator<Item = Stack>) -> Self {
        Self(stacks.take(STACKS).map(|stack| (stack.bottom, stack.top)).collect())
    }

    /// Before there are pCPUs: what is mapped from `sp` on.
    pub fn from(sp: u64, is_mapped: impl Fn(u64) -> bool) -> Self {
        const PAGE_MASK: u64 = pasidon_kernel::base::addr::PAGE_SIZE - 1;
        let end = sp.saturating_add(STACK_BYTES);
        let mut top = sp;
        while top < end && is_mapped(top) {
            top = (top | PAGE_MASK).saturating_add(1);
        }
        Self([(sp, top.min(end))].into_iter().collect())
    }

    fn top_above(&self, sp: u64) -> Option<u64> {
        let Self(ranges) = self;
        let range = ranges.iter().find(|(bottom, top)| (*bottom..=*top).contains(&sp));
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
/// When `out` cannot be written to.
pub fn print<U: Unwind>(
    out: &mut dyn Write,
    image: &U,
    registers: &U::Registers,
    stack: &StackRanges,
) -> fmt::Result {
    print_from(out, image, registers, &|at| stack.read(at), &|sp| stack.top_above(sp))
}

/// Number, address, what that is.
type Printed = (usize, u64, Position);

fn print_from<U: Unwind>(
    out: &mut dyn Write,
    image: &U,
    registers: &U::Registers,
    read: ReadStack<'_>,
    top_above: &dyn Fn(u64) -> Option<u64>,
) -> fmt::Result {
    let mut frame = *registers;
    let mut position = Position::Interrupted;
    // The outermost frames so far, in a ring.
    let mut last: [Option<Printed>; LAST] = [None; LAST];
    let mut count = 0;
    let end = loop {
        if count < FIRST {
            print_frame(out, image, (count, frame.pc(), position))?;
        } else {
            last[count % LAST] = Some((count, frame.pc(), position));
        }
        count += 1;
        if count == LIMIT {
            break None;
        }
        match image.caller(&frame, position, read) {
            Ok((caller, next)) if next == Position::Interrupted || image.offset_of(caller.pc()).is_some() => {
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
    let sp = frame.sp();
    let top = top_above(sp);
    // The outermost function was called with nothing, or with one word, above its return address.
    if stop == Stop::Outermost
        || top.is_some_and(|top| top - sp <= 2 * WORD)
        || (stop == Stop::OutOfImage && top.is_none())
    {
        return Ok(());
    }
    match stop {
        Stop::Outermost => {}
        Stop::OutOfImage => writeln!(out, "  outside of the image from here on: {:#x}", frame.pc())?,
        Stop::NoEntry => writeln!(out, "  no unwind information for this one")?,
        Stop::Stack(at) => writeln!(out, "  {at:#x} is on no stack of this pCPU")?,
        Stop::Damaged => writeln!(out, "  the unwind information does not fit the stack")?,
    }
    guess(out, image, (sp, top.unwrap_or(sp)), read)
}

/// Prints what may be return addresses.
fn guess(
    out: &mut dyn Write,
    image: &impl Unwind,
    (from, to): (u64, u64),
    read: ReadStack<'_>,
) -> fmt::Result {
    let start = from.next_multiple_of(WORD);
    let addresses =
        (start..to).step_by(WORD as usize).filter_map(read).filter(|address| image.is_behind_call(*address));
    for address in addresses.take(GUESSES) {
        let place = Place { address, behind_call: true };
        writeln!(out, "   ?  {address:#x} {place}")?;
    }
    Ok(())
}

fn print_frame(
    out: &mut dyn Write,
    image: &impl Unwind,
    (number, address, position): Printed,
) -> fmt::Result {
    let place = Place { address, behind_call: position == Position::Called };
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
    const SIZE: u64 = 0x3000;
    const STACK: u64 = 0x10_0000;

    #[derive(Clone, Copy)]
    struct Two {
        pc: u64,
        sp: u64,
    }

    impl Frame for Two {
        fn pc(&self) -> u64 {
            self.pc
        }

        fn sp(&self) -> u64 {
            self.sp
        }
    }

    /// An image whose functions all push one word, and are called from anywhere.
    struct OneWord(Parts<'static>);

    impl Unwind for OneWord {
        type Registers = Two;

        fn parts(&self) -> &Parts<'_> {
            &self.0
        }

        fn caller(&self, of: &Two, _: Position, read: ReadStack<'_>) -> Result<(Two, Position), Stop> {
            let pushed = if self.offset_of(of.pc).is_some() { WORD } else { 0 };
            let at = of.sp + pushed;
            let pc = read(at).ok_or(Stop::Stack(at))?;
            Ok((Two { pc, sp: at + WORD }, Position::Called))
        }

        fn is_behind_call(&self, address: u64) -> bool {
            self.offset_of(address).is_some()
        }
    }

    /// The text printed for a stack of `words`.
    fn text(pc: u64, words: &[u64]) -> String {
        let top = STACK + words.len() as u64 * WORD;
        let read = |at: u64| words.get((at.checked_sub(STACK)? / WORD) as usize).copied();
        let mut out = String::new();
        let image = OneWord(Parts::new(BASE, SIZE, []));
        print_from(&mut out, &image, &Two { pc, sp: STACK }, &read, &|sp| {
            (STACK..=top).contains(&sp).then_some(top)
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
        assert!(said.contains("outside of the image from here on: 0xbad\n   ?  0x7e001020 "), "{said}");
        // A call to nowhere: the caller is on the stack.
        let said = text(0, &[BASE + 0x1020, 5, 0]);
        assert!(said.starts_with("   0  0x0, outside of the image\n   1  image+0x01020"), "{said}");
    }
}
