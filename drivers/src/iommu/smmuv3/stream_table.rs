// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stream table: StreamID to stream table entry (STE).
//!
//! **Invariant.** An entry that was not written by a claim is not valid, so its stream is terminated and the
//! event says so. The first level leads to nothing until a stream below it is claimed.
//! Source: SMMUv3 specification, "Stream Table" and "STE".

use alloc::format;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;

use super::context::ContextTable;
use super::registers::{Identification, STRTAB_SPLIT_SHIFT, STRTAB_TWO_LEVEL};
use crate::memory::DmaMemory;
use crate::table_memory::TableMemory;

/// V.
const VALID: u64 = 1 << 0;
/// Config: stage 1, stage 2 bypassed.
const CONFIG_STAGE1: u64 = 0b101 << 1;
/// S1CDMax.
const CD_MAX_SHIFT: u32 = 59;
/// S1DSS: what has no SubstreamID uses context descriptor 0, and SubstreamID 0 is refused.
const DSS_CONTEXT_0: u64 = 0b10;
/// S1CIR, S1COR, S1CSH: context descriptors are write-back and inner shareable.
const CONTEXT_CACHEABLE: u64 = 0b01 << 2 | 0b01 << 4 | 0b11 << 6;
/// EATS: the device may hold translations of its own.
const EATS_FULL: u64 = 0b01 << 28;
/// SHCFG: shareability as the device says.
const SHCFG_INCOMING: u64 = 0b01 << 44;
/// Words of an entry.
const ENTRY_WORDS: usize = 8;
/// Bytes of an entry.
const ENTRY_BYTES: u64 = 64;
/// Bytes of a first-level descriptor.
const DESCRIPTOR_BYTES: u64 = 8;
/// Streams of a second-level table, log2: one of the three splits there are.
const SPLIT: u32 = 8;
/// Pages of a second-level table.
const LEAF_PAGES: usize = ((ENTRY_BYTES << SPLIT) / PAGE_SIZE) as usize;
/// Span of a first-level descriptor: 2^(Span - 1) entries.
const SPAN: u64 = SPLIT as u64 + 1;
/// L2Ptr of a first-level descriptor.
const LEAF_ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;
/// Widest StreamIDs with two levels: a first level of 512 KiB.
const WIDEST: u32 = 24;
/// Widest StreamIDs with one level: 1 MiB.
const WIDEST_LINEAR: u32 = 14;

/// The stream table of a unit.
#[derive(Debug)]
pub struct StreamTable {
    base: HostPhys,
    /// Width of the StreamIDs it has place for.
    bits: u32,
    two_level: bool,
}

impl StreamTable {
    /// An empty table that has place for StreamIDs up to `highest`, as far as the unit and memory allow.
    pub fn new<M: DmaMemory>(
        memory: &TableMemory<M>,
        unit: Identification,
        highest: u32,
    ) -> Result<Self, Refusal> {
        let wanted = (u32::BITS - highest.leading_zeros()).min(unit.stream_bits());
        let two_level = unit.two_level_streams() && wanted > SPLIT;
        let bits = wanted.min(if two_level { WIDEST } else { WIDEST_LINEAR });
        let bytes = if two_level { DESCRIPTOR_BYTES << (bits - SPLIT) } else { ENTRY_BYTES << bits };
        Ok(Self {
            base: memory.alloc(bytes.div_ceil(PAGE_SIZE) as usize, "SMMU stream table")?,
            bits,
            two_level,
        })
    }

    /// The value of STRTAB_BASE.
    pub const fn base_register(&self) -> u64 {
        self.base.0
    }

    /// The value of STRTAB_BASE_CFG.
    pub const fn configuration_register(&self) -> u32 {
        if self.two_level { STRTAB_TWO_LEVEL | SPLIT << STRTAB_SPLIT_SHIFT | self.bits } else { self.bits }
    }

    /// Where the entry of a stream is, its second-level table made where missing.
    pub fn entry<M: DmaMemory>(&self, memory: &TableMemory<M>, stream: u32) -> Result<Entry, Refusal> {
        if u64::from(stream) >= 1 << self.bits {
            return Err(Refusal::new(
                format!("stream {stream:#x}"),
                format!("beyond the {} bits of the stream table", self.bits),
                "share another device",
            ));
        }
        if !self.two_level {
            return Ok(Entry(HostPhys(self.base.0 + u64::from(stream) * ENTRY_BYTES)));
        }
        let slot = (stream >> SPLIT) as usize;
        let descriptor = memory.read(self.base, slot);
        let leaf = if descriptor == 0 {
            let leaf = memory.alloc(LEAF_PAGES, "SMMU stream table")?;
            memory.write(self.base, slot, leaf.0 | SPAN);
            leaf.0
        } else {
            descriptor & LEAF_ADDRESS
        };
        let below = u64::from(stream & ((1 << SPLIT) - 1));
        Ok(Entry(HostPhys(leaf + below * ENTRY_BYTES)))
    }
}

/// A place in the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry(HostPhys);

impl Entry {
    /// Writes everything but the word with V.
    pub fn write_body<M: DmaMemory>(self, memory: &TableMemory<M>, ats: bool) {
        let ats = if ats { EATS_FULL } else { 0 };
        memory.write(self.0, 1, DSS_CONTEXT_0 | CONTEXT_CACHEABLE | ats | SHCFG_INCOMING);
        for word in 2..ENTRY_WORDS {
            memory.write(self.0, word, 0);
        }
    }

    /// Writes the word with V: from now on the stream uses these context descriptors.
    pub fn make_valid<M: DmaMemory>(self, memory: &TableMemory<M>, contexts: &ContextTable) {
        memory.write(
            self.0,
            0,
            VALID
                | CONFIG_STAGE1
                | contexts.pointer_and_format()
                | u64::from(contexts.bits()) << CD_MAX_SHIFT,
        );
    }
}
