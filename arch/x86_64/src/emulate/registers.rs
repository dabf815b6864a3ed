// SPDX-License-Identifier: MIT OR Apache-2.0
//! General-purpose registers by the decoder's names.

use iced_x86::Register;

use super::CpuState;

/// Where a register lies in [`CpuState::gpr`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) index: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub(super) size: usize,
    /// Lowest bit: 8 for AH, CH, DH and BH.
    shift: u32,
}

/// Accumulator, in the order of the registers' encoding.
pub(super) const RAX: usize = 0;
/// Counter.
pub(super) const RCX: usize = 1;
/// Data; the port of INS and OUTS.
pub(super) const RDX: usize = 2;
/// Base; low half of what CMPXCHG8B stores.
pub(super) const RBX: usize = 3;
/// Stack pointer.
pub(super) const RSP: usize = 4;
/// Source index.
pub(super) const RSI: usize = 6;
/// Destination index.
pub(super) const RDI: usize = 7;

/// Values of `size` bytes.
pub(super) const fn mask(size: usize) -> u64 {
    match size {
        0 => 0,
        1..8 => (1 << (size * 8)) - 1,
        _ => u64::MAX,
    }
}

/// `value`, of `size` bytes, with its sign in all higher bits.
pub(super) const fn sign_extend(value: u64, size: usize) -> u64 {
    match size {
        1..8 => {
            let unused = 64 - size as u32 * 8;
            ((value << unused) as i64 >> unused) as u64
        }
        _ => value,
    }
}

impl Slot {
    pub(super) const fn new(index: usize, size: usize) -> Self {
        Self { index: index & 15, size, shift: 0 }
    }

    /// `None` for anything but a general-purpose register.
    pub(super) fn of(register: Register) -> Option<Self> {
        let offset = |first: Register| (register as usize).wrapping_sub(first as usize);
        if register.is_gpr64() {
            Some(Self::new(offset(Register::RAX), 8))
        } else if register.is_gpr32() {
            Some(Self::new(offset(Register::EAX), 4))
        } else if register.is_gpr16() {
            Some(Self::new(offset(Register::AX), 2))
        } else if register.is_gpr8() {
            // The decoder counts AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8L to R15L.
            Some(match offset(Register::AL) {
                low @ 0..4 => Self::new(low, 1),
                high @ 4..8 => Self { index: high - 4, size: 1, shift: 8 },
                other => Self::new(other.wrapping_sub(4), 1),
            })
        } else {
            None
        }
    }
}

impl CpuState {
    pub(super) fn read(&self, slot: Slot) -> u64 {
        (self.gpr[slot.index] >> slot.shift) & mask(slot.size)
    }

    /// Writes the low bytes of `value`: 4 bytes clear the upper half, 1 and 2 keep the rest.
    pub(super) fn write(&mut self, slot: Slot, value: u64) {
        let register = &mut self.gpr[slot.index];
        let bits = mask(slot.size) << slot.shift;
        let kept = if slot.size >= 4 { 0 } else { *register & !bits };
        *register = kept | (value << slot.shift) & bits;
    }
}
