// SPDX-License-Identifier: MIT OR Apache-2.0
//! Results and flags of integer operations. Operands are zero-extended values of `size` bytes (1, 2, 4, 8).
//!
//! Source: Intel SDM volume 1, 3.4.3.1 "Status Flags"; volume 2 for each operation.

use x86_64::registers::rflags::RFlags;

use super::registers::mask;

/// Operations with two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// Operations on one bit of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// What the arithmetic operations define.
const STATUS: RFlags = RFlags::OVERFLOW_FLAG
    .union(RFlags::SIGN_FLAG)
    .union(RFlags::ZERO_FLAG)
    .union(RFlags::AUXILIARY_CARRY_FLAG)
    .union(RFlags::PARITY_FLAG)
    .union(RFlags::CARRY_FLAG);

pub(super) fn with_flag(rflags: u64, flag: RFlags, value: bool) -> u64 {
    if value { rflags | flag.bits() } else { rflags & !flag.bits() }
}

/// `rflags` with all status flags clear.
pub(super) const fn without_status(rflags: u64) -> u64 {
    rflags & !STATUS.bits()
}

const fn top_bit(value: u64, size: usize) -> bool {
    value >> (size * 8 - 1) & 1 != 0
}

/// SF, ZF and PF of a result; clears the other status flags.
fn result_flags(rflags: u64, result: u64, size: usize) -> u64 {
    let mut flags = without_status(rflags);
    flags = with_flag(flags, RFlags::SIGN_FLAG, top_bit(result, size));
    flags = with_flag(flags, RFlags::ZERO_FLAG, result == 0);
    with_flag(flags, RFlags::PARITY_FLAG, (result as u8).count_ones().is_multiple_of(2))
}

/// The result and the new RFLAGS.
pub(super) fn binary(operation: Binary, a: u64, b: u64, size: usize, rflags: u64) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let carry_in = rflags & RFlags::CARRY_FLAG.bits();
    match operation {
        Binary::Or => logical(a | b, size, rflags),
        Binary::And => logical(a & b, size, rflags),
        Binary::Xor => logical(a ^ b, size, rflags),
        Binary::Add => add(a, b, 0, size, rflags),
        Binary::Adc => add(a, b, carry_in, size, rflags),
        Binary::Sub => subtract(a, b, 0, size, rflags),
        Binary::Sbb => subtract(a, b, carry_in, size, rflags),
    }
}

/// AF is undefined here; it is cleared, as processors do.
fn logical(result: u64, size: usize, rflags: u64) -> (u64, u64) {
    (result, result_flags(rflags, result, size))
}

fn add(a: u64, b: u64, carry: u64, size: usize, rflags: u64) -> (u64, u64) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & mask(size);
    let flags = result_flags(rflags, result, size);
    let flags = with_flag(flags, RFlags::CARRY_FLAG, wide >> (size * 8) != 0);
    let flags = with_flag(flags, RFlags::OVERFLOW_FLAG, top_bit((a ^ result) & (b ^ result), size));
    (result, with_flag(flags, RFlags::AUXILIARY_CARRY_FLAG, (a ^ b ^ result) & 0x10 != 0))
}

fn subtract(a: u64, b: u64, borrow: u64, size: usize, rflags: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let flags = result_flags(rflags, result, size);
    let below = u128::from(a) < u128::from(b) + u128::from(borrow);
    let flags = with_flag(flags, RFlags::CARRY_FLAG, below);
    let flags = with_flag(flags, RFlags::OVERFLOW_FLAG, top_bit((a ^ b) & (a ^ result), size));
    (result, with_flag(flags, RFlags::AUXILIARY_CARRY_FLAG, (a ^ b ^ result) & 0x10 != 0))
}

/// INC, or DEC: as an addition or subtraction of 1 that keeps CF.
pub(super) fn step(down: bool, a: u64, size: usize, rflags: u64) -> (u64, u64) {
    let operation = if down { Binary::Sub } else { Binary::Add };
    let (result, flags) = binary(operation, a, 1, size, rflags);
    let carry = rflags & RFlags::CARRY_FLAG.bits() != 0;
    (result, with_flag(flags, RFlags::CARRY_FLAG, carry))
}

/// BT, BTS, BTR or BTC of bit `index` (taken modulo the operand's width): only CF changes.
pub(super) fn bit(operation: Bit, a: u64, index: u64, size: usize, rflags: u64) -> (u64, u64) {
    let bit = 1u64 << (index & (size as u64 * 8 - 1));
    let result = match operation {
        Bit::Test => a,
        Bit::Set => a | bit,
        Bit::Reset => a & !bit,
        Bit::Complement => a ^ bit,
    };
    (result, with_flag(rflags, RFlags::CARRY_FLAG, a & bit != 0))
}
