// SPDX-License-Identifier: MIT OR Apache-2.0
//! Effective addresses and segmentation.
//!
//! Outside 64-bit mode an access must lie below the segment's limit, which is taken as that of an expand-up
//! segment; type and rights of the segment are not checked again, the processor did so before the exit.
//!
//! Source: Intel SDM volume 1, 3.7.5 "Specifying an Offset"; volume 3A, 3.4 and 6.3 "Limit Checking".

use iced_x86::{Instruction, OpKind, Register};

use super::registers::{Slot, mask};
use super::{CpuState, Exception, SegmentState};

impl CpuState {
    fn segment(&self, register: Register) -> &SegmentState {
        match register {
            Register::CS => &self.cs,
            Register::SS => &self.ss,
            Register::ES => &self.es,
            Register::FS => &self.fs,
            Register::GS => &self.gs,
            _ => &self.ds,
        }
    }

    /// The linear address of `len` bytes at `offset` of a segment.
    pub(super) fn linear(&self, segment: Register, offset: u64, len: usize) -> Result<u64, Exception> {
        let fault = || match segment {
            Register::SS => Exception::stack_fault(self),
            _ => Exception::general_protection(self),
        };
        let beyond = (len as u64).saturating_sub(1);
        if self.is_64bit() {
            let base = match segment {
                Register::FS | Register::GS => self.segment(segment).base,
                _ => 0,
            };
            let linear = base.wrapping_add(offset);
            let canonical = self.is_canonical(linear) && self.is_canonical(linear.wrapping_add(beyond));
            return if canonical { Ok(linear) } else { Err(fault()) };
        }
        let segment = self.segment(segment);
        let offset = offset & 0xffff_ffff;
        if offset + beyond > u64::from(segment.limit) {
            return Err(fault());
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Bytes of the stack pointer that count.
    pub(super) fn stack_pointer_size(&self) -> usize {
        match (self.is_64bit(), self.ss.big) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        }
    }
}

/// A memory operand with base, index and displacement, as the instruction names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryOperand {
    pub(super) segment: Register,
    /// Places in [`CpuState::gpr`].
    base: Option<usize>,
    index: Option<usize>,
    scale: u32,
    displacement: u64,
    /// The bits of an address.
    mask: u64,
}

impl MemoryOperand {
    /// That of `instruction`, or one that it does not use. `None` for an index that is no general-purpose register.
    pub(super) fn new(instruction: &Instruction, is_64bit: bool) -> Option<Self> {
        let place = |register: Register| match register {
            // The decoder gives the target, not the distance.
            Register::None | Register::RIP | Register::EIP => Some(None),
            _ => Slot::of(register).map(|slot| Some(slot.index)),
        };
        Some(Self {
            segment: instruction.memory_segment(),
            base: place(instruction.memory_base())?,
            index: place(instruction.memory_index())?,
            scale: instruction.memory_index_scale(),
            displacement: instruction.memory_displacement64(),
            mask: mask(address_size(instruction, is_64bit)),
        })
    }

    /// Its offset in the segment, `distance` bytes further than the instruction says.
    pub(super) fn offset(&self, state: &CpuState, distance: u64) -> u64 {
        let value = |place: Option<usize>| place.map_or(0, |index| state.gpr[index & 15]);
        let scaled = value(self.index).wrapping_mul(self.scale.into());
        // The bits that addresses do not have, or registers of their size, do not reach those that they have.
        value(self.base).wrapping_add(scaled).wrapping_add(self.displacement).wrapping_add(distance)
            & self.mask
    }
}

/// Bytes of the address of the memory operand: from its registers, or else from its displacement.
fn address_size(instruction: &Instruction, is_64bit: bool) -> usize {
    let of_register = |register: Register| match register {
        Register::RIP => Some(8),
        Register::EIP => Some(4),
        _ => Slot::of(register).map(|slot| slot.size),
    };
    of_register(instruction.memory_base()).or_else(|| of_register(instruction.memory_index())).unwrap_or(
        match instruction.memory_displ_size() {
            size @ (2 | 4 | 8) => size as usize,
            _ if is_64bit => 8,
            _ => 4,
        },
    )
}

/// Bytes of the index register of a string operand, and whether it is the destination's (DI).
pub(super) const fn string_operand(kind: OpKind) -> Option<(usize, bool)> {
    match kind {
        OpKind::MemorySegSI => Some((2, false)),
        OpKind::MemorySegESI => Some((4, false)),
        OpKind::MemorySegRSI => Some((8, false)),
        OpKind::MemoryESDI => Some((2, true)),
        OpKind::MemoryESEDI => Some((4, true)),
        OpKind::MemoryESRDI => Some((8, true)),
        _ => None,
    }
}
