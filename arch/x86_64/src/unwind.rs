// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a function to who called it, by the image's own tables. Frame pointers would not do: on this target RBP lies
//! somewhere in its frame, and only the tables say where.
//!
//! **Principle.** A PE image says for each function that touches the stack where it begins and ends
//! (`.pdata`), and what its prologue did to the stack, step by step (unwind codes). Undone in reverse, they
//! give the caller's registers. A function without an entry is a leaf: its return address is where RSP points.
//! **Invariant.** Values in, values out: memory is only read through what the caller gives, and nothing in
//! image or stack makes this panic or go on for ever.
//!
//! Source: Microsoft, x64 exception handling (RUNTIME_FUNCTION, UNWIND_INFO, epilogs); PE format, optional
//! header data directories.

use arrayvec::ArrayVec;
use pasidon_arch_common::backtrace::{Frame, Unwind};
use pasidon_arch_common::image::Parts;

pub use pasidon_arch_common::backtrace::{Position, ReadStack, Stop};

/// Index of RSP in [`Registers::gpr`].
pub const RSP: usize = 4;
/// The names of [`Registers::gpr`].
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// The registers of one frame. Those that a call need not keep are only right in the innermost one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Registers {
    /// In the order of their encoding, see [`GPR_NAMES`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
}

impl Frame for Registers {
    fn pc(&self) -> u64 {
        self.rip
    }

    fn sp(&self) -> u64 {
        self.gpr[RSP]
    }
}

/// A loaded image.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    parts: Parts<'a>,
    /// `.pdata`: [`ENTRY_BYTES`] for each function, sorted.
    entries: &'a [u8],
}

/// RUNTIME_FUNCTION: begin, end and unwind information, relative to the image.
const ENTRY_BYTES: usize = 12;
/// UNWIND_INFO up to its codes.
const INFO_BYTES: usize = 4;
/// How many pops an epilogue can have, with room.
const POPS_LIMIT: usize = 16;

/// UNWIND_INFO's version and flags: no handler, and nothing chained to it.
const VERSION_1: u8 = 1;

/// What an unwind code undoes (UNWIND_CODE, unwind operation code). There are more; nothing in this image has them:
/// it saves by pushing only, and no frame is larger than a stack.
mod operation {
    pub const PUSH_NONVOL: u8 = 0;
    pub const ALLOC_LARGE: u8 = 1;
    pub const ALLOC_SMALL: u8 = 2;
    pub const SET_FPREG: u8 = 3;
    pub const PUSH_MACHFRAME: u8 = 10;
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

/// An entry of `.pdata`.
#[derive(Clone, Copy)]
struct Function {
    begin: u32,
    end: u32,
    info: u32,
}

impl Function {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { begin: u32_at(bytes, 0)?, end: u32_at(bytes, 4)?, info: u32_at(bytes, 8)? })
    }
}

impl<'a> From<Parts<'a>> for Image<'a> {
    /// An image without tables is one with leaf functions only.
    fn from(parts: Parts<'a>) -> Self {
        let entries = Self::find_entries(&parts).unwrap_or_default();
        Self { parts, entries }
    }
}

impl<'a> Image<'a> {
    fn find_entries(parts: &Parts<'a>) -> Option<&'a [u8]> {
        /// In the DOS header.
        const E_LFANEW: u32 = 0x3c;
        /// From the PE signature to the data directories of PE32+, and the exception directory among them.
        const EXCEPTION_DIRECTORY: u32 = 24 + 112 + 3 * 8;
        let header = u32_at(parts.bytes(E_LFANEW, 4)?, 0)?;
        let directory = parts.bytes(header.checked_add(EXCEPTION_DIRECTORY)?, 8)?;
        parts.bytes(u32_at(directory, 0)?, u32_at(directory, 4)? as usize)
    }

    /// How many functions have an entry.
    pub fn functions(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// The entry of the function with an instruction there.
    fn function_at(&self, at: u32) -> Option<Function> {
        let (entries, _) = self.entries.as_chunks::<ENTRY_BYTES>();
        let behind = entries.partition_point(|entry| u32_at(entry, 0).is_some_and(|begin| begin <= at));
        Function::read(entries.get(behind.checked_sub(1)?)?).filter(|function| at < function.end)
    }
}

impl Unwind for Image<'_> {
    type Registers = Registers;

    fn parts(&self) -> &Parts<'_> {
        &self.parts
    }

    fn caller(
        &self,
        registers: &Registers,
        position: Position,
        read_stack: ReadStack<'_>,
    ) -> Result<(Registers, Position), Stop> {
        unwind(self, registers, position, read_stack)
    }

    fn is_behind_call(&self, address: u64) -> bool {
        /// E8 and the distance.
        const NEAR_BYTES: u32 = 5;
        let Some(at) = self.offset_of(address) else {
            return false;
        };
        let before = |bytes: u32| at.checked_sub(bytes).and_then(|from| self.parts.bytes(from, 2));
        // FF /2, and as many bytes as its ModRM byte asks for.
        let indirect = |length: u32| {
            before(length).is_some_and(|bytes| {
                let sib = u32::from(bytes[1] & 7 == 4);
                let wanted = match bytes[1] >> 6 {
                    0 if bytes[1] & 7 == 5 => 6,
                    0 => 2 + sib,
                    1 => 3 + sib,
                    2 => 6 + sib,
                    _ => 2,
                };
                bytes[0] == 0xff && bytes[1] & 0x38 == 0x10 && wanted == length
            })
        };
        self.function_at(at.saturating_sub(1)).is_some()
            && (before(NEAR_BYTES).is_some_and(|bytes| bytes[0] == 0xe8) || (2..=7).any(indirect))
    }
}

/// The frame that called the one with `registers`, and what its RIP is.
///
/// # Errors
/// When there is none, or it cannot be found.
pub fn unwind(
    image: &Image<'_>,
    registers: &Registers,
    position: Position,
    read_stack: ReadStack<'_>,
) -> Result<(Registers, Position), Stop> {
    let read = |at: u64| read_stack(at).ok_or(Stop::Stack(at));
    let called = u64::from(position == Position::Called);
    let offset = image.offset_of(registers.rip.wrapping_sub(called));
    let function = offset.and_then(|offset| image.function_at(offset));
    let mut frame = *registers;
    let (Some(offset), Some(function)) = (offset, function) else {
        return match (position, offset) {
            // A leaf, or a call to where no code is.
            (Position::Interrupted, _) => {
                ret(&mut frame, &read)?;
                Ok((frame, Position::Called))
            }
            (Position::Called, None) => Err(Stop::OutOfImage),
            (Position::Called, Some(_)) => Err(Stop::NoEntry),
        };
    };
    if position == Position::Interrupted
        && let Some(epilogue) = Epilogue::at(image, &function, offset)
    {
        epilogue.finish(&mut frame, &read)?;
        return Ok((frame, Position::Called));
    }
    let next = undo(image, &function, offset, &mut frame, &read)?;
    if next == Position::Called {
        ret(&mut frame, &read)?;
        if frame.gpr[RSP] <= registers.gpr[RSP] {
            return Err(Stop::Damaged);
        }
    }
    Ok((frame, next))
}

fn pop(frame: &mut Registers, read: &impl Fn(u64) -> Result<u64, Stop>) -> Result<u64, Stop> {
    let value = read(frame.gpr[RSP])?;
    frame.gpr[RSP] = frame.gpr[RSP].wrapping_add(8);
    Ok(value)
}

fn ret(frame: &mut Registers, read: &impl Fn(u64) -> Result<u64, Stop>) -> Result<(), Stop> {
    frame.rip = pop(frame, read)?;
    Ok(())
}

/// Undoes what of the function's prologue lies before `offset`. The frame is as when the function was called then, or as
/// it was where an exception or interrupt came.
fn undo(
    image: &Image<'_>,
    function: &Function,
    offset: u32,
    frame: &mut Registers,
    read: &impl Fn(u64) -> Result<u64, Stop>,
) -> Result<Position, Stop> {
    let fixed = image.parts.bytes(function.info, INFO_BYTES).ok_or(Stop::Damaged)?;
    let (frame_register, frame_offset) = (usize::from(fixed[3] & 0xf), u64::from(fixed[3] >> 4) * 16);
    if fixed[0] != VERSION_1 {
        return Err(Stop::Damaged);
    }
    let codes_at = function.info.checked_add(INFO_BYTES as u32).ok_or(Stop::Damaged)?;
    let codes = image.parts.bytes(codes_at, usize::from(fixed[2]) * 2).ok_or(Stop::Damaged)?;
    let mut codes = codes.as_chunks::<2>().0.iter();
    while let Some(&[end, code]) = codes.next() {
        let value = usize::from(code >> 4);
        let code = code & 0xf;
        // Its size is the next element of the array.
        let large = match (code, value) {
            (operation::ALLOC_LARGE, 0) => {
                u64::from(u16::from_le_bytes(*codes.next().ok_or(Stop::Damaged)?)) * 8
            }
            _ => 0,
        };
        if function.begin.saturating_add(u32::from(end)) > offset {
            continue;
        }
        let rsp = frame.gpr[RSP];
        match (code, value) {
            (operation::PUSH_NONVOL, _) => frame.gpr[value] = pop(frame, read)?,
            (operation::ALLOC_LARGE, 0) => frame.gpr[RSP] = rsp.wrapping_add(large),
            (operation::ALLOC_SMALL, _) => frame.gpr[RSP] = rsp.wrapping_add(value as u64 * 8 + 8),
            (operation::SET_FPREG, _) => {
                frame.gpr[RSP] = frame.gpr[frame_register].wrapping_sub(frame_offset);
            }
            (operation::PUSH_MACHFRAME, _) => {
                // Error code, if any; RIP, CS, RFLAGS, RSP, SS.
                let pushed = rsp.wrapping_add(if value == 0 { 0 } else { 8 });
                frame.rip = read(pushed)?;
                frame.gpr[RSP] = read(pushed.wrapping_add(3 * 8))?;
                return Ok(Position::Interrupted);
            }
            _ => return Err(Stop::Damaged),
        }
    }
    Ok(Position::Called)
}

/// The rest of an epilogue: what remains to be executed up to the return, in the only forms it may have.
struct Epilogue {
    release: Release,
    pops: ArrayVec<usize, POPS_LIMIT>,
}

enum Release {
    Nothing,
    Add(u64),
    /// RSP becomes this register and a distance.
    From(usize, u64),
}

impl Epilogue {
    /// What is executed from `offset` on, if that is an epilogue.
    fn at(image: &Image<'_>, function: &Function, offset: u32) -> Option<Self> {
        let code = image.parts.bytes(offset, (function.end - offset) as usize)?;
        let near = |byte: u8| i64::from(byte as i8) as u64;
        let far = |bytes: &[u8; 4]| i64::from(i32::from_le_bytes(*bytes)) as u64;
        let (release, mut code) = match code {
            // add rsp, imm
            [0x48, 0x83, 0xc4, imm, rest @ ..] => (Release::Add(near(*imm)), rest),
            [0x48, 0x81, 0xc4, a, b, c, d, rest @ ..] => (Release::Add(far(&[*a, *b, *c, *d])), rest),
            // lea rsp, [register + disp]
            [rex @ (0x48 | 0x49), 0x8d, modrm @ 0x60..=0x67, disp, rest @ ..] if *modrm != 0x64 => {
                (Release::From(register(*rex, *modrm), near(*disp)), rest)
            }
            [rex @ (0x48 | 0x49), 0x8d, modrm @ 0xa0..=0xa7, a, b, c, d, rest @ ..] if *modrm != 0xa4 => {
                (Release::From(register(*rex, *modrm), far(&[*a, *b, *c, *d])), rest)
            }
            rest => (Release::Nothing, rest),
        };
        let mut pops = ArrayVec::new();
        loop {
            let popped;
            (popped, code) = match code {
                [opcode @ 0x58..=0x5f, rest @ ..] => (usize::from(opcode & 7), rest),
                [0x41, opcode @ 0x58..=0x5f, rest @ ..] => (usize::from(opcode & 7) + 8, rest),
                _ => break,
            };
            pops.try_push(popped).ok()?;
        }
        // A jump is only a tail call where it leaves the function.
        let leaves = |distance: u64, rest: &[u8]| {
            let target = u64::from(function.end).wrapping_sub(rest.len() as u64).wrapping_add(distance);
            !(u64::from(function.begin)..u64::from(function.end)).contains(&target)
        };
        let ends = match code {
            [0xc3, ..] | [0xc2, _, _, ..] | [0xf3, 0xc3, ..] => true,
            [0xeb, distance, rest @ ..] => leaves(near(*distance), rest),
            [0xe9, a, b, c, d, rest @ ..] => leaves(far(&[*a, *b, *c, *d]), rest),
            _ => false,
        };
        ends.then_some(Self { release, pops })
    }

    fn finish(&self, frame: &mut Registers, read: &impl Fn(u64) -> Result<u64, Stop>) -> Result<(), Stop> {
        frame.gpr[RSP] = match self.release {
            Release::Nothing => frame.gpr[RSP],
            Release::Add(bytes) => frame.gpr[RSP].wrapping_add(bytes),
            Release::From(register, distance) => frame.gpr[register].wrapping_add(distance),
        };
        for &register in &self.pops {
            frame.gpr[register] = pop(frame, read)?;
        }
        ret(frame, read)
    }
}

/// The register that the r/m field of a ModRM byte means.
fn register(rex: u8, modrm: u8) -> usize {
    usize::from(modrm & 7 | (rex & 1) << 3)
}

#[cfg(test)]
mod tests;
