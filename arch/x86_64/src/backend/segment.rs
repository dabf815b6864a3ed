// SPDX-License-Identifier: MIT OR Apache-2.0
//! Segment registers, and what they hold at a kernel's first instruction.
//!
//! Attributes are those of a descriptor without its base and limit: type, S, DPL, P, AVL, L, D/B, G.

use crate::guest::boot::{EntryMode, EntryState};

/// Long mode code.
pub const L: u16 = 1 << 9;
/// 32-bit.
pub const DB: u16 = 1 << 10;
/// Execute/read, accessed, code, present, 32-bit, 4 KiB units.
const CODE32: u16 = 0xc9b;
/// Execute/read, accessed, code, present, 64-bit, 4 KiB units.
const CODE64: u16 = 0xa9b;
/// Read/write, accessed, data, present, 32-bit, 4 KiB units.
const DATA: u16 = 0xc93;
/// Busy 32/64-bit task state segment.
const TSS: u16 = 0x8b;
/// Local descriptor table.
const LDT: u16 = 0x82;
/// Limit of a task state segment without an I/O map.
const TSS_LIMIT: u32 = 0x67;

/// What a segment register holds, laid out as in the VMCB (APM 2, appendix B).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes: descriptor bits 55:52 and 47:40, packed into 12 bits.
    pub attributes: u16,
    /// Limit, in bytes, already scaled.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// TR.
pub const TASK: Segment = Segment { selector: 0, attributes: TSS, limit: TSS_LIMIT, base: 0 };
/// LDTR: a table without entries.
pub const NO_LDT: Segment = Segment { selector: 0, attributes: LDT, limit: 0, base: 0 };

/// CS.
pub fn code(entry: &EntryState) -> Segment {
    let attributes = match entry.mode {
        EntryMode::Protected32 => CODE32,
        EntryMode::Long64 => CODE64,
    };
    flat(entry.cs, attributes)
}

/// DS, ES, SS, FS and GS.
pub fn data(entry: &EntryState) -> Segment {
    flat(entry.ds, DATA)
}

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, attributes, limit: u32::MAX, base: 0 }
}
