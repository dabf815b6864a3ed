// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations against those of the processor that runs the tests.

use core::arch::asm;

use proptest::prelude::*;
use x86_64::registers::rflags::RFlags;

use crate::emulate::alu::{Binary, Bit, binary, bit, step};
use crate::emulate::registers::mask;

const CF: u64 = RFlags::CARRY_FLAG.bits();
const AF: u64 = RFlags::AUXILIARY_CARRY_FLAG.bits();
const STATUS: u64 = 0x8d5;

/// Runs one instruction on `a` (and `b`) with the given carry; the result, and the status flags.
macro_rules! native {
    ($instruction:literal, $a:expr, $b:expr, $carry:expr, $size:expr) => {{
        let (mut a, b, flags): (u64, u64, u64);
        b = $b;
        a = $a;
        // SAFETY: changes the named registers, the flags and one slot of the stack only.
        unsafe {
            match $size {
                1 => asm!("bt {c:e}, 0", concat!($instruction, " {a:l}, {b:l}"), "pushfq", "pop {f}",
                    a = inout(reg) a, b = in(reg) b, c = in(reg) $carry, f = out(reg) flags),
                2 => asm!("bt {c:e}, 0", concat!($instruction, " {a:x}, {b:x}"), "pushfq", "pop {f}",
                    a = inout(reg) a, b = in(reg) b, c = in(reg) $carry, f = out(reg) flags),
                4 => asm!("bt {c:e}, 0", concat!($instruction, " {a:e}, {b:e}"), "pushfq", "pop {f}",
                    a = inout(reg) a, b = in(reg) b, c = in(reg) $carry, f = out(reg) flags),
                _ => asm!("bt {c:e}, 0", concat!($instruction, " {a:r}, {b:r}"), "pushfq", "pop {f}",
                    a = inout(reg) a, b = in(reg) b, c = in(reg) $carry, f = out(reg) flags),
            }
        }
        (a & mask($size), flags & STATUS)
    }};
    ($instruction:literal, $a:expr, $carry:expr, $size:expr) => {{
        let (mut a, flags): (u64, u64);
        a = $a;
        // SAFETY: as above.
        unsafe {
            match $size {
                1 => asm!("bt {c:e}, 0", concat!($instruction, " {a:l}"), "pushfq", "pop {f}",
                    a = inout(reg) a, c = in(reg) $carry, f = out(reg) flags),
                2 => asm!("bt {c:e}, 0", concat!($instruction, " {a:x}"), "pushfq", "pop {f}",
                    a = inout(reg) a, c = in(reg) $carry, f = out(reg) flags),
                4 => asm!("bt {c:e}, 0", concat!($instruction, " {a:e}"), "pushfq", "pop {f}",
                    a = inout(reg) a, c = in(reg) $carry, f = out(reg) flags),
                _ => asm!("bt {c:e}, 0", concat!($instruction, " {a:r}"), "pushfq", "pop {f}",
                    a = inout(reg) a, c = in(reg) $carry, f = out(reg) flags),
            }
        }
        (a & mask($size), flags & STATUS)
    }};
}

/// A bit instruction with its operands' width as the assembler's modifier; the result and the flags.
macro_rules! bits_native {
    ($instruction:literal, $width:literal, $a:expr, $index:expr) => {{
        let (mut a, flags): (u64, u64);
        a = $a;
        // SAFETY: as above.
        unsafe {
            asm!(concat!($instruction, " {a", $width, "}, {b", $width, "}"), "pushfq", "pop {f}",
                a = inout(reg) a, b = in(reg) $index, f = out(reg) flags);
        }
        (a, flags)
    }};
}

/// Values around the corners, and any.
fn value() -> impl Strategy<Value = u64> {
    let corners = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000];
    let more = [0xffff_ffff, i64::MAX as u64, 1 << 63, u64::MAX, 0x0f, 0x10];
    prop_oneof![proptest::sample::select([&corners[..], &more[..]].concat()), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn two_operands(a in value(), b in value(), carry in 0u64..2,
        size in proptest::sample::select(vec![1usize, 2, 4, 8])) {
        for operation in [Binary::Add, Binary::Adc, Binary::Sub, Binary::Sbb, Binary::And, Binary::Or, Binary::Xor] {
            let expected = match operation {
                Binary::Add => native!("add", a, b, carry, size),
                Binary::Adc => native!("adc", a, b, carry, size),
                Binary::Sub => native!("sub", a, b, carry, size),
                Binary::Sbb => native!("sbb", a, b, carry, size),
                Binary::And => native!("and", a, b, carry, size),
                Binary::Or => native!("or", a, b, carry, size),
                Binary::Xor => native!("xor", a, b, carry, size),
            };
            // AF is undefined after the logical operations.
            let defined = match operation {
                Binary::And | Binary::Or | Binary::Xor => STATUS & !AF,
                _ => STATUS,
            };
            let (result, flags) = binary(operation, a, b, size, carry);
            prop_assert_eq!((result, flags & defined), (expected.0, expected.1 & defined), "{:?} {}", operation, size);
        }
    }

    #[test]
    fn one_operand(a in value(), carry in 0u64..2, size in proptest::sample::select(vec![1usize, 2, 4, 8])) {
        prop_assert_eq!(step(false, a & mask(size), size, carry), native!("inc", a, carry, size));
        prop_assert_eq!(step(true, a & mask(size), size, carry), native!("dec", a, carry, size));
        prop_assert_eq!(binary(Binary::Sub, 0, a, size, carry), native!("neg", a, carry, size));
    }

    #[test]
    fn bits(a in value(), index in value(), size in proptest::sample::select(vec![2usize, 4, 8])) {
        let a = a & mask(size);
        for operation in [Bit::Test, Bit::Set, Bit::Reset, Bit::Complement] {
            let (result, flags) = match (operation, size) {
                (Bit::Test, 2) => bits_native!("bt", ":x", a, index),
                (Bit::Test, 4) => bits_native!("bt", ":e", a, index),
                (Bit::Test, _) => bits_native!("bt", ":r", a, index),
                (Bit::Set, 2) => bits_native!("bts", ":x", a, index),
                (Bit::Set, 4) => bits_native!("bts", ":e", a, index),
                (Bit::Set, _) => bits_native!("bts", ":r", a, index),
                (Bit::Reset, 2) => bits_native!("btr", ":x", a, index),
                (Bit::Reset, 4) => bits_native!("btr", ":e", a, index),
                (Bit::Reset, _) => bits_native!("btr", ":r", a, index),
                (Bit::Complement, 2) => bits_native!("btc", ":x", a, index),
                (Bit::Complement, 4) => bits_native!("btc", ":e", a, index),
                (Bit::Complement, _) => bits_native!("btc", ":r", a, index),
            };
            let expected = (result & mask(size), flags & CF);
            prop_assert_eq!(bit(operation, a, index, size, 0), expected);
        }
    }
}
