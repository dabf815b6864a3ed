// SPDX-License-Identifier: MIT OR Apache-2.0
//! Context descriptors (CD): SubstreamID to stage-1 table, for one stream.
//!
//! **Principle.** The hypervisor owns the table; a VM sees nothing of it. Descriptor 0 stands for traffic
//! without SubstreamID and leads to the doorbells of interrupt messages only.
//! Source: SMMUv3 specification, "Context Descriptor" and "Context Descriptor table".

use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;

use super::registers::Identification;
use super::stage1::{ADDRESS_BITS, MAIR};
use crate::iommu::domains::DomainId;
use crate::memory::DmaMemory;
use crate::table_memory::TableMemory;

/// IR0, OR0, SH0: table walks are write-back and inner shareable.
const WALK_CACHEABLE: u64 = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
/// EPD1: no walks of TTB1.
const EPD1: u64 = 1 << 30;
/// V.
const VALID: u64 = 1 << 31;
/// IPS.
const IPS_SHIFT: u32 = 32;
/// AA64: tables in the AArch64 format.
const AA64: u64 = 1 << 41;
/// R: faults are recorded.
const RECORD: u64 = 1 << 45;
/// A: faults abort, not read as zero.
const ABORT: u64 = 1 << 46;
/// ASET: the ASID is not one of the processors'.
const ASET: u64 = 1 << 47;
/// ASID.
const ASID_SHIFT: u32 = 48;
/// Words of a descriptor.
const WORDS: usize = 8;
/// Bytes of a descriptor.
const BYTES: u64 = 64;
/// Descriptors of a second-level table, log2.
const LEAF_BITS: u32 = 6;
/// V of a first-level descriptor.
const FIRST_LEVEL_VALID: u64 = 1 << 0;
/// S1Fmt: two levels with second-level tables of 4 KiB.
const FORMAT_TWO_LEVEL_4K: u64 = 0b01 << 4;

/// What a descriptor says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// Tag of the cached translations.
    pub asid: DomainId,
    /// Top-level table.
    pub root: HostPhys,
}

/// The context descriptors of a stream.
#[derive(Debug)]
pub struct ContextTable {
    base: HostPhys,
    /// S1CDMax: log2 of the number of descriptors.
    bits: u32,
    output_size: u32,
    /// Second-level tables, by slot.
    leaves: Vec<Option<HostPhys>>,
}

impl ContextTable {
    /// A table with place for SubstreamIDs of `bits` bits, none valid.
    pub fn new<M: DmaMemory>(
        memory: &TableMemory<M>,
        unit: Identification,
        bits: u32,
    ) -> Result<Self, Refusal> {
        let two_level = unit.two_level_contexts() && bits > LEAF_BITS;
        let slots = if two_level { 1usize << (bits - LEAF_BITS) } else { 0 };
        let bytes = if two_level { slots as u64 * 8 } else { BYTES << bits };
        Ok(Self {
            base: memory.alloc(bytes.div_ceil(PAGE_SIZE) as usize, "SMMU context descriptors")?,
            bits,
            output_size: unit.output_size(),
            leaves: alloc::vec![None; slots],
        })
    }

    /// Frees it. No unit may know it.
    pub fn destroy<M: DmaMemory>(self, memory: &TableMemory<M>) {
        let bytes = if self.leaves.is_empty() { BYTES << self.bits } else { self.leaves.len() as u64 * 8 };
        for leaf in self.leaves.into_iter().flatten() {
            memory.free(leaf, 1);
        }
        memory.free(self.base, bytes.div_ceil(PAGE_SIZE) as usize);
    }

    /// S1ContextPtr and S1Fmt of the stream table entry.
    pub const fn pointer_and_format(&self) -> u64 {
        if self.leaves.is_empty() { self.base.0 } else { self.base.0 | FORMAT_TWO_LEVEL_4K }
    }

    /// Width of the SubstreamIDs, in bits.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether a tag has a place.
    pub const fn holds(&self, tag: Pasid) -> bool {
        tag.value() < 1 << self.bits
    }

    /// Where the descriptor of a tag is, its second-level table made where missing. The tag must have a
    /// place ([`ContextTable::holds`]).
    fn place<M: DmaMemory>(&mut self, memory: &TableMemory<M>, tag: Pasid) -> Result<HostPhys, Refusal> {
        let tag = tag.value();
        let Some(leaf) = self.leaves.get_mut((tag >> LEAF_BITS) as usize) else {
            return Ok(HostPhys(self.base.0 + u64::from(tag) * BYTES));
        };
        let leaf = match *leaf {
            Some(leaf) => leaf,
            None => {
                let fresh = memory.alloc(1, "SMMU context descriptors")?;
                memory.write(self.base, (tag >> LEAF_BITS) as usize, fresh.0 | FIRST_LEVEL_VALID);
                *leaf.insert(fresh)
            }
        };
        Ok(HostPhys(leaf.0 + u64::from(tag & ((1 << LEAF_BITS) - 1)) * BYTES))
    }

    /// Writes everything but the word with V, which is clear.
    pub fn write_body<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        tag: Pasid,
        context: Context,
    ) -> Result<(), Refusal> {
        let place = self.place(memory, tag)?;
        memory.write(place, 1, context.root.0);
        memory.write(place, 2, 0);
        memory.write(place, 3, MAIR);
        for word in 4..WORDS {
            memory.write(place, word, 0);
        }
        Ok(())
    }

    /// Writes the word with V. Of a descriptor that is valid that changes the ASID, in one store.
    pub fn make_valid<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        tag: Pasid,
        context: Context,
    ) -> Result<(), Refusal> {
        let place = self.place(memory, tag)?;
        // T0SZ: what 64 has more than the table's width. TG0 = 0 is the 4 KiB granule.
        let size = 64 - u64::from(ADDRESS_BITS);
        let low = size | WALK_CACHEABLE | EPD1 | VALID | u64::from(self.output_size) << IPS_SHIFT;
        let high = AA64 | RECORD | ABORT | ASET | u64::from(context.asid) << ASID_SHIFT;
        memory.write(place, 0, low | high);
        Ok(())
    }

    /// Leads a valid descriptor to another table, in one store: nothing else of it changes.
    pub fn set_root<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        tag: Pasid,
        root: HostPhys,
    ) -> Result<(), Refusal> {
        let place = self.place(memory, tag)?;
        memory.write(place, 1, root.0);
        Ok(())
    }

    /// Clears V, in one store, and everything else with it in that word.
    pub fn make_invalid<M: DmaMemory>(&mut self, memory: &TableMemory<M>, tag: Pasid) -> Result<(), Refusal> {
        let place = self.place(memory, tag)?;
        memory.write(place, 0, 0);
        Ok(())
    }

    /// Forgets where it led to. After the unit has.
    pub fn zero<M: DmaMemory>(&mut self, memory: &TableMemory<M>, tag: Pasid) -> Result<(), Refusal> {
        let place = self.place(memory, tag)?;
        for word in 0..WORDS {
            memory.write(place, word, 0);
        }
        Ok(())
    }
}
