// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images made by hand, and images and stacks that make no sense.

use super::*;
use proptest::prelude::*;

const BASE: u64 = 0x7e00_0000;
const TEXT: u32 = 0x1000;
const XDATA: u32 = 0x2000;
const PDATA: u32 = 0x3000;
const SIZE: u64 = 0x4000;
const STACK: u64 = 0x10_0000;
const RBX: usize = 3;
const RBP: usize = 5;
const RSI: usize = 6;

/// An image as it lies in memory, with functions of 0x100 bytes from [`TEXT`] on.
struct Made {
    headers: Vec<u8>,
    text: Vec<u8>,
    xdata: Vec<u8>,
    pdata: Vec<u8>,
}

impl Made {
    /// One function for each UNWIND_INFO.
    fn new(infos: &[&[u8]]) -> Self {
        let (mut xdata, mut pdata) = (Vec::new(), Vec::new());
        for (number, info) in (0u32..).zip(infos) {
            let begin = TEXT + number * 0x100;
            for value in [begin, begin + 0x100, XDATA + xdata.len() as u32] {
                pdata.extend(value.to_le_bytes());
            }
            xdata.extend(*info);
            xdata.resize(xdata.len().next_multiple_of(4), 0);
        }
        let mut headers = vec![0; 0x200];
        headers[0x3c] = 0x80;
        let directory = 0x80 + 24 + 112 + 24;
        headers[directory..directory + 4].copy_from_slice(&PDATA.to_le_bytes());
        headers[directory + 4..directory + 8].copy_from_slice(&(pdata.len() as u32).to_le_bytes());
        let text = vec![0x90; infos.len() * 0x100 + 0x100];
        Self { headers, text, xdata, pdata }
    }

    fn image(&self) -> Image<'_> {
        let parts: [(u32, &[u8]); 4] =
            [(0, &self.headers), (TEXT, &self.text), (XDATA, &self.xdata), (PDATA, &self.pdata)];
        Parts::new(BASE, SIZE, parts).into()
    }
}

/// Registers with RIP in the function with that number.
fn at(number: u64, offset: u64) -> Registers {
    let mut registers =
        Registers { rip: BASE + u64::from(TEXT) + number * 0x100 + offset, ..Registers::default() };
    registers.gpr[RSP] = STACK;
    registers
}

/// A stack of those words.
fn stack(words: &[u64]) -> impl Fn(u64) -> Option<u64> {
    move |at| {
        let offset = at.checked_sub(STACK).filter(|offset| offset.is_multiple_of(8))?;
        words.get(offset as usize / 8).copied()
    }
}

/// push rbp (1 byte); push rsi (1); sub rsp, 0x28 (4).
const PUSHES: &[u8] = &[1, 6, 3, 0, 6, 0x42, 2, 0x60, 1, 0x50];

#[test]
fn a_prologue_is_undone_as_far_as_it_was_executed() {
    let made = Made::new(&[PUSHES]);
    let image = made.image();
    assert_eq!(image.functions(), 1);
    let words = [1, 2, 3, 4, 5, 0x51, 0x52, 0x53];
    let caller = |offset, position, from: usize| {
        let (frame, next) = unwind(&image, &at(0, offset), position, &stack(&words[from..])).unwrap();
        assert_eq!(next, Position::Called);
        (frame.rip, frame.gpr[RSP] - STACK, frame.gpr[RSI], frame.gpr[RBP])
    };
    for position in [Position::Interrupted, Position::Called] {
        assert_eq!(caller(0x40, position, 0), (0x53, 64, 0x51, 0x52));
    }
    assert_eq!(caller(6, Position::Interrupted, 0), (0x53, 64, 0x51, 0x52));
    assert_eq!(caller(2, Position::Interrupted, 5), (0x53, 24, 0x51, 0x52));
    assert_eq!(caller(1, Position::Interrupted, 6), (0x53, 16, 0, 0x52));
    assert_eq!(caller(0, Position::Interrupted, 7), (0x53, 8, 0, 0));
    // The last instruction of a function may be a call that does not return.
    assert_eq!(caller(0x100, Position::Called, 0), (0x53, 64, 0x51, 0x52));
}

#[test]
fn large_allocations() {
    // push rbx; sub rsp, 0x100 (16-bit operand, scaled).
    let made = Made::new(&[&[1, 8, 3, 0, 8, 0x01, 0x20, 0, 1, 0x30]]);
    let words: Vec<u64> = (0..64).collect();
    let (frame, _) = unwind(&made.image(), &at(0, 0x50), Position::Called, &stack(&words)).unwrap();
    assert_eq!((frame.gpr[RBX], frame.rip), (0x100 / 8, 0x100 / 8 + 1));
    assert_eq!(frame.gpr[RSP], STACK + 0x110);
    // Not executed, its operand is no code either.
    let (frame, _) = unwind(&made.image(), &at(0, 1), Position::Interrupted, &stack(&words)).unwrap();
    assert_eq!((frame.gpr[RBX], frame.rip, frame.gpr[RSP]), (0, 1, STACK + 16));
}

#[test]
fn what_no_function_here_has_is_not_guessed() {
    let others: [&[u8]; 6] = [
        // sub rsp (32-bit operand); rbx saved, near and far.
        &[1, 4, 3, 0, 4, 0x11, 0x08, 0x01, 0, 0],
        &[1, 4, 2, 0, 4, 0x34, 2, 0],
        &[1, 4, 3, 0, 4, 0x35, 0x18, 0, 0, 0],
        // The operand is missing; a chained part; version 2.
        &[1, 4, 1, 0, 4, 0x01],
        &[1 | 4 << 3, 4, 1, 0, 4, 0x02, 0, 0],
        &[2, 4, 1, 0, 4, 0x02],
    ];
    let made = Made::new(&others);
    let words: Vec<u64> = (0..64).collect();
    for number in 0..others.len() as u64 {
        let end = unwind(&made.image(), &at(number, 0x50), Position::Called, &stack(&words));
        assert_eq!(end, Err(Stop::Damaged), "{number}");
    }
}

#[test]
fn a_frame_register_leads_back_from_any_depth() {
    // push rbp; sub rsp, 0x20; lea rbp, [rsp + 0x20].
    let made = Made::new(&[&[1, 10, 3, 0x25, 10, 0x03, 5, 0x32, 1, 0x50]]);
    let words: Vec<u64> = (0..64).collect();
    let mut registers = at(0, 0x50);
    // Something was allocated on the stack since.
    registers.gpr[RBP] = STACK + 0x80;
    let (frame, _) = unwind(&made.image(), &registers, Position::Called, &stack(&words)).unwrap();
    assert_eq!(frame.gpr[RSP], STACK + 0x80 + 16);
    assert_eq!((frame.gpr[RBP], frame.rip), (16, 17));
    // Before it was set, RSP is what counts.
    let (frame, _) = unwind(&made.image(), &at(0, 7), Position::Interrupted, &stack(&words)).unwrap();
    assert_eq!((frame.gpr[RBP], frame.rip), (4, 5));
}

#[test]
fn what_an_interrupt_pushed_leads_to_where_it_came() {
    // The machine frame with an error code; the vector; push rax.
    let made = Made::new(&[&[1, 3, 3, 0, 3, 0, 2, 0x02, 0, 0x1a]]);
    let words = [0xa, 0xfe, 0, 0x1234, 8, 2, STACK + 0x800, 0x10];
    let (frame, position) = unwind(&made.image(), &at(0, 0x20), Position::Called, &stack(&words)).unwrap();
    assert_eq!(position, Position::Interrupted);
    assert_eq!((frame.gpr[0], frame.rip, frame.gpr[RSP]), (0xa, 0x1234, STACK + 0x800));
}

#[test]
fn an_epilogue_is_finished_from_where_it_is() {
    let mut made = Made::new(&[PUSHES]);
    // add rsp, 0x28; pop rsi; pop rbp; ret
    let code = [0x48, 0x83, 0xc4, 0x28, 0x5e, 0x5d, 0xc3];
    made.text[0x80..0x87].copy_from_slice(&code);
    // pop rsi; jmp to another function, and jmp to this one.
    made.text[0x90..0x96].copy_from_slice(&[0x5e, 0xe9, 0, 0x10, 0, 0]);
    made.text[0xa0..0xa3].copy_from_slice(&[0x5e, 0xeb, 2]);
    let words = [1, 2, 3, 4, 5, 6, 7, 8];
    let image = made.image();
    let caller = |offset| {
        let (frame, _) = unwind(&image, &at(0, offset), Position::Interrupted, &stack(&words)).unwrap();
        (frame.rip, frame.gpr[RSI], frame.gpr[RBP])
    };
    assert_eq!(caller(0x80), (8, 6, 7));
    assert_eq!(caller(0x84), (3, 1, 2));
    assert_eq!(caller(0x85), (2, 0, 1));
    assert_eq!(caller(0x86), (1, 0, 0));
    assert_eq!(caller(0x90), (2, 1, 0));
    assert_eq!(caller(0xa0), (8, 6, 7));
}

#[test]
fn leaves_and_the_ends_of_the_way() {
    let made = Made::new(&[PUSHES]);
    let image = made.image();
    let (frame, _) = unwind(&image, &at(1, 0), Position::Interrupted, &stack(&[0x77])).unwrap();
    assert_eq!((frame.rip, frame.gpr[RSP]), (0x77, STACK + 8));
    // A call to nowhere left its return address.
    let nowhere = Registers { rip: 0, ..at(0, 0) };
    let (frame, _) = unwind(&image, &nowhere, Position::Interrupted, &stack(&[0x77])).unwrap();
    assert_eq!(frame.rip, 0x77);
    let end =
        |registers, position, words: &[u64]| unwind(&image, &registers, position, &stack(words)).unwrap_err();
    assert_eq!(end(nowhere, Position::Called, &[1]), Stop::OutOfImage);
    assert_eq!(end(at(1, 0x10), Position::Called, &[1]), Stop::NoEntry);
    assert_eq!(end(at(1, 0x10), Position::Interrupted, &[]), Stop::Stack(STACK));
    assert_eq!(end(at(0, 0x10), Position::Called, &[1; 7]), Stop::Stack(STACK + 56));
    let unknown = Made::new(&[&[1, 0, 1, 0, 0, 0x0f]]);
    let end = unwind(&unknown.image(), &at(0, 9), Position::Called, &stack(&[1]));
    assert_eq!(end, Err(Stop::Damaged));
}

#[test]
fn calls_are_recognised_from_behind() {
    let mut made = Made::new(&[PUSHES]);
    made.text[0x10..0x15].copy_from_slice(&[0xe8, 1, 2, 3, 4]);
    made.text[0x20..0x22].copy_from_slice(&[0xff, 0xd0]);
    made.text[0x30..0x36].copy_from_slice(&[0xff, 0x15, 1, 2, 3, 4]);
    let image = made.image();
    let behind: Vec<u64> =
        (0..0x100).filter(|offset| image.is_behind_call(BASE + u64::from(TEXT) + offset)).collect();
    assert_eq!(behind, [0x15, 0x22, 0x36]);
    assert!(!image.is_behind_call(0) && !image.is_behind_call(u64::MAX));
}

proptest! {
    #[test]
    fn nothing_in_an_image_or_on_a_stack_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..0x400),
        infos in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 4..64), 1..8),
        gpr in any::<[u64; 16]>(),
        offset in 0u64..0x900,
        words in proptest::collection::vec(any::<u64>(), 0..64),
        called in any::<bool>(),
    ) {
        let position = if called { Position::Called } else { Position::Interrupted };
        let infos: Vec<&[u8]> = infos.iter().map(Vec::as_slice).collect();
        let made = Made::new(&infos);
        let registers = Registers { gpr, rip: BASE + u64::from(TEXT) + offset };
        let read = |at: u64| words.get(at as usize % 100).copied();
        // Any answer will do.
        let _ = unwind(&made.image(), &registers, position, &read);
        let mut lines: Vec<u8> = bytes.clone();
        lines.resize(0x400, 0xff);
        let parts: [(u32, &[u8]); 2] = [(0, &lines), (TEXT, &bytes)];
        let image = Image::from(Parts::new(BASE, SIZE, parts));
        let _ = unwind(&image, &registers, position, &read);
        let _ = image.is_behind_call(registers.rip);
    }
}
