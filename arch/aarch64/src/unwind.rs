// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a function to who called it, by frame records.
//!
//! **Principle.** All code is built with frame pointers (`.cargo/config.toml`): X29 points to a record of the
//! caller's X29 and the return address. Only between a function's first instruction and the one that sets X29,
//! and at its return, the return address is still in X30; that is told by looking at the instructions.
//! **Invariant.** Values in, values out: memory is only read through what the caller gives, and nothing in image
//! or stack makes this panic or go on for ever: each record lies above the one before.
//!
//! Source: Procedure Call Standard for the Arm 64-bit Architecture, 6.4.6 (frame pointer); Arm Architecture
//! Reference Manual (DDI 0487), C6.2 (ADD, BL, BLR, RET).

use pasidon_arch_common::backtrace::{Frame, Unwind};
use pasidon_arch_common::image::Parts;

pub use pasidon_arch_common::backtrace::{Position, ReadStack, Stop};

/// Index of the frame pointer in [`Registers::x`].
pub const FP: usize = 29;
/// Index of the link register in [`Registers::x`].
pub const LR: usize = 30;
/// The names of [`Registers::x`].
pub const X_NAMES: [&str; 31] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
    "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30",
];

/// The registers of one frame. But for X29, those of the innermost frame only are right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Registers {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Stack pointer.
    pub sp: u64,
    /// Program counter.
    pub pc: u64,
}

impl Frame for Registers {
    fn pc(&self) -> u64 {
        self.pc
    }

    fn sp(&self) -> u64 {
        self.sp
    }
}

/// Instructions that a prologue has before X29 is set, at most: a store for each pair of registers, and the stack.
const PROLOGUE: u32 = 16;
/// Bytes of an instruction.
const INSTRUCTION: u32 = 4;
const WORD: u64 = 8;

/// A loaded image.
#[derive(Clone, Debug)]
pub struct Image<'a>(Parts<'a>);

impl<'a> From<Parts<'a>> for Image<'a> {
    fn from(parts: Parts<'a>) -> Self {
        Self(parts)
    }
}

impl Image<'_> {
    /// The instruction at an address relative to the image.
    fn instruction(&self, at: u32) -> Option<u32> {
        let Self(parts) = self;
        let word = parts.bytes(at, INSTRUCTION as usize)?;
        Some(u32::from_le_bytes(*word.first_chunk()?))
    }

    /// Whether the frame that X29 points to is not yet, or no longer, the one of the function at `at`.
    fn is_without_record(&self, at: u32) -> bool {
        for ahead in 0..PROLOGUE {
            let Some(next) = at.checked_add(ahead * INSTRUCTION).and_then(|at| self.instruction(at)) else {
                return false;
            };
            if instruction::sets_frame_pointer(next) {
                return true;
            }
            if instruction::is_return(next) {
                // With the record already taken off the stack, if this is the very next one.
                return ahead == 0;
            }
            if instruction::is_branch(next) {
                return false;
            }
        }
        false
    }
}

/// Instructions by what they do here.
mod instruction {
    /// `add x29, sp, #imm`, of which `mov x29, sp` is one.
    pub fn sets_frame_pointer(word: u32) -> bool {
        const IMMEDIATE: u32 = 0xfff << 10;
        word & !IMMEDIATE == 0x9100_03fd
    }

    /// `ret`, by X30.
    pub fn is_return(word: u32) -> bool {
        word == 0xd65f_03c0
    }

    /// Any other branch: by an immediate, a register or a condition, or a call.
    pub fn is_branch(word: u32) -> bool {
        word >> 26 & 0x1f == 0b00101
            || word >> 25 == 0b110_1011
            || word >> 24 == 0b0101_0100
            || word >> 25 & 0x3f == 0b01_1010
            || word >> 25 & 0x3f == 0b01_1011
    }

    /// `bl` or `blr`.
    pub fn is_call(word: u32) -> bool {
        word >> 26 == 0b10_0101 || word & 0xffff_fc1f == 0xd63f_0000
    }
}

impl Unwind for Image<'_> {
    type Registers = Registers;

    fn parts(&self) -> &Parts<'_> {
        let Self(parts) = self;
        parts
    }

    fn caller(
        &self,
        registers: &Registers,
        position: Position,
        read_stack: ReadStack<'_>,
    ) -> Result<(Registers, Position), Stop> {
        let mut frame = *registers;
        if position == Position::Interrupted
            && self.offset_of(registers.pc).is_none_or(|at| self.is_without_record(at))
        {
            // A call to where no code is ends here as well: who called is in X30.
            frame.pc = registers.x[LR];
            // Its own call changes X30; with this, nothing is found twice.
            frame.x[LR] = 0;
            return Ok((frame, Position::Called));
        }
        let record = registers.x[FP];
        if record == 0 {
            return Err(Stop::Outermost);
        }
        let read = |at: u64| read_stack(at).ok_or(Stop::Stack(at));
        frame.x[FP] = read(record)?;
        frame.pc = read(record.wrapping_add(WORD))?;
        frame.sp = record.wrapping_add(2 * WORD);
        match (frame.pc, frame.x[FP]) {
            (0, _) => Err(Stop::Outermost),
            (_, next) if next != 0 && next <= record => Err(Stop::Damaged),
            _ => Ok((frame, Position::Called)),
        }
    }

    fn is_behind_call(&self, address: u64) -> bool {
        let before = self.offset_of(address).and_then(|at| at.checked_sub(INSTRUCTION));
        before.and_then(|at| self.instruction(at)).is_some_and(instruction::is_call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0x7c00_0000;
    const CODE: u32 = 0x1000;
    const STACK: u64 = 0x10_0000;

    // stp x29, x30, [sp, #-32]!; mov x29, sp; bl; ldr x0, [x0]; ldp x29, x30, [sp], #32; ret
    const FUNCTION: [u32; 6] = [0xa9be_7bfd, 0x9100_03fd, 0x9400_0010, 0xf940_0000, 0xa8c2_7bfd, 0xd65f_03c0];

    fn code() -> Vec<u8> {
        FUNCTION.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn at(index: u64) -> u64 {
        BASE + u64::from(CODE) + index * 4
    }

    /// A function called by another, which is the outermost one; each has a record.
    fn caller_of(pc: u64, position: Position) -> Result<(Registers, Position), Stop> {
        let code = code();
        let image = Image::from(Parts::new(BASE, 0x2000, [(CODE, code.as_slice())]));
        let words = [STACK + 32, at(3), 0, 0, 0, 0];
        let mut registers = Registers { pc, sp: STACK, ..Registers::default() };
        registers.x[FP] = STACK;
        registers.x[LR] = at(4);
        image.caller(&registers, position, &|at| words.get((at.checked_sub(STACK)? / 8) as usize).copied())
    }

    #[test]
    fn the_record_counts_once_it_is_there() {
        let (frame, position) = caller_of(at(3), Position::Interrupted).unwrap();
        assert_eq!((frame.pc, frame.x[FP], position), (at(3), STACK + 32, Position::Called));
        // Before and after it, the link register does.
        for index in [0, 1, 5] {
            let (frame, _) = caller_of(at(index), Position::Interrupted).unwrap();
            assert_eq!((frame.pc, frame.x[FP]), (at(4), STACK), "{index}");
        }
        let (frame, _) = caller_of(0, Position::Interrupted).unwrap();
        assert_eq!(frame.pc, at(4), "a call to nowhere");
    }

    #[test]
    fn the_outermost_record_ends_it() {
        let code = code();
        let image = Image::from(Parts::new(BASE, 0x2000, [(CODE, code.as_slice())]));
        let mut registers = Registers::default();
        assert_eq!(image.caller(&registers, Position::Called, &|_| Some(0)), Err(Stop::Outermost));
        registers.x[FP] = STACK;
        assert_eq!(image.caller(&registers, Position::Called, &|_| Some(0)), Err(Stop::Outermost));
        assert_eq!(image.caller(&registers, Position::Called, &|_| None), Err(Stop::Stack(STACK)));
        assert_eq!(image.caller(&registers, Position::Called, &|_| Some(STACK)), Err(Stop::Damaged));
    }

    #[test]
    fn calls_are_recognised() {
        let words = [0x97ff_fff0u32, 0xd63f_0100, 0xd65f_03c0, 0xd61f_0100];
        let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let image = Image::from(Parts::new(BASE, 0x2000, [(CODE, code.as_slice())]));
        let behind = [1, 2, 3, 4].map(|index| image.is_behind_call(at(index)));
        assert_eq!(behind, [true, true, false, false]);
        assert!(!image.is_behind_call(0));
        // b, cbz, tbnz, b.eq, br
        for word in [0x1400_0001u32, 0xb400_0040, 0x3700_0040, 0x5400_0040, 0xd61f_0100] {
            assert!(instruction::is_branch(word), "{word:#x}");
        }
        for word in FUNCTION.into_iter().take(2) {
            assert!(!instruction::is_branch(word), "{word:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_stack_of_anything_comes_to_an_end(
            code in prop::collection::vec(any::<u32>(), 1..40),
            words in prop::collection::vec(prop_oneof![Just(0), STACK..STACK + 400, at(0)..at(40)], 50),
            start in 0u64..40,
        ) {
            let code: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
            let image = Image::from(Parts::new(BASE, 0x2000, [(CODE, code.as_slice())]));
            let mut frame = Registers { pc: at(start), sp: STACK, ..Registers::default() };
            frame.x[FP] = STACK;
            let mut position = Position::Interrupted;
            let mut count = 0;
            while let Ok((next, called)) = image.caller(&frame, position, &|at| {
                words.get((at.checked_sub(STACK)? / 8) as usize).copied()
            }) {
                (frame, position) = (next, called);
                count += 1;
                prop_assert!(count < 500);
            }
        }
    }
}
