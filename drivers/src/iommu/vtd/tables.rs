// SPDX-License-Identifier: MIT OR Apache-2.0
//! Root, context and PASID tables of one unit: who may do DMA, and through which page table.
//!
//! **Invariants.** What is absent blocks: a requester without a context entry, an untagged request of a
//! claimed device (its RID_PASID, 0, never has an entry) and a PASID without an entry all fault. An entry
//! is filled from its far end and made present by the last store, and loses `P` first when it goes. One that is present
//! changes in one store of 128 bits.
//! Source: Intel VT-d specification, "Scalable-Mode Root/Context/PASID Entry".

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;
use pasidon_kernel::memory::page_table::Top;

use crate::iommu::domains::DomainId;
use crate::memory::DmaMemory;
use crate::sparse::Sparse;
use crate::table_memory::TableMemory;

/// P: the entry counts.
const PRESENT: u64 = 1 << 0;
/// 64-bit words in a page.
const WORDS_PER_PAGE: usize = PAGE_SIZE as usize / 8;

/// Root entry: 2 words per bus, the lower for devfn 0x00-0x7f, the upper for 0x80-0xff.
const ROOT_ENTRY_WORDS: usize = 2;
/// Context entry: 4 words.
const CONTEXT_ENTRY_WORDS: usize = 4;
/// Context entries per table.
const CONTEXT_ENTRIES: usize = 128;

/// Context entry word 0, DTE: translation requests (ATS) are answered.
const CONTEXT_DTE: u64 = 1 << 2;
/// Context entry word 0, PASIDE: requests with PASID are processed.
const CONTEXT_PASIDE: u64 = 1 << 3;
/// Context entry word 0, PDTS: the PASID directory has 2^(PDTS + 7) entries.
const CONTEXT_PDTS_SHIFT: u32 = 9;
/// Smallest PASID directory: 2^7 entries.
const PDTS_BASE_BITS: u32 = 7;

/// PASIDs that share one directory entry: 2^6, one page of PASID entries.
const PASID_TABLE_BITS: u32 = 6;
/// PASID entry: 8 words.
const PASID_ENTRY_WORDS: usize = 8;
/// PASID entry word 0, AW: levels of the second-stage table, less 2.
const PASID_AW_SHIFT: u32 = 2;
/// PASID entry word 0, PGTT = second-stage translation only.
const PASID_PGTT_SECOND_STAGE: u64 = 0b010 << 6;
/// PASID entry word 1, PWSNP: the page walk snoops the processor's caches.
const PASID_PWSNP: u64 = 1 << 23;

/// The tag of untagged requests: RID_PASID of every context entry.
pub const RID_PASID: u32 = 0;

/// Root table and the context tables below it.
#[derive(Debug)]
pub struct ContextTables {
    root: HostPhys,
}

impl ContextTables {
    /// An empty root table: everything is blocked.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>) -> Result<Self, Refusal> {
        Ok(Self { root: memory.alloc(1, "VT-d root table")? })
    }

    /// Address of the root table (RTADDR).
    pub const fn root(&self) -> HostPhys {
        self.root
    }

    /// Makes the context entry of a requester present. Nothing is kept on a refusal but perhaps an empty
    /// context table, which is used again.
    pub fn set<M: DmaMemory>(
        &self,
        memory: &TableMemory<M>,
        rid: u16,
        directory: &PasidDirectory,
        device_tlb: bool,
    ) -> Result<(), Refusal> {
        let root_word = rid as usize / CONTEXT_ENTRIES;
        debug_assert!(root_word < WORDS_PER_PAGE / ROOT_ENTRY_WORDS * ROOT_ENTRY_WORDS);
        let root_entry = memory.read(self.root, root_word);
        let table = if root_entry & PRESENT != 0 {
            HostPhys(root_entry & !(PAGE_SIZE - 1))
        } else {
            let fresh = memory.alloc(1, "VT-d context table")?;
            memory.write(self.root, root_word, fresh.0 | PRESENT);
            fresh
        };
        let first = rid as usize % CONTEXT_ENTRIES * CONTEXT_ENTRY_WORDS;
        memory.write(table, first + 3, 0);
        memory.write(table, first + 2, 0);
        memory.write(table, first + 1, RID_PASID.into());
        let dte = if device_tlb { CONTEXT_DTE } else { 0 };
        memory.write(
            table,
            first,
            directory.base.0
                | u64::from(directory.bits - PDTS_BASE_BITS) << CONTEXT_PDTS_SHIFT
                | CONTEXT_PASIDE
                | dte
                | PRESENT,
        );
        Ok(())
    }
}

/// PASID directory of one device and the PASID tables below it. The directory covers all PASIDs the unit
/// knows from the start (128 KiB for 20 bits), so that an attachment never has to move it under the
/// others; the tables, 64 PASIDs each, come with their first PASID and stay.
#[derive(Debug)]
pub struct PasidDirectory {
    base: HostPhys,
    /// Width of the directory index.
    bits: u32,
    /// Width of the PASIDs the unit knows.
    pasid_bits: u32,
    tables: Sparse<HostPhys>,
}

impl PasidDirectory {
    /// An empty directory for PASIDs of `pasid_bits` bits.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, pasid_bits: u8) -> Result<Self, Refusal> {
        let pasid_bits = u32::from(pasid_bits).min(Pasid::BITS);
        let bits = pasid_bits.saturating_sub(PASID_TABLE_BITS).max(PDTS_BASE_BITS);
        let pages = (1usize << bits).div_ceil(WORDS_PER_PAGE);
        Ok(Self {
            base: memory.alloc(pages, "VT-d PASID directory")?,
            bits,
            pasid_bits,
            tables: Sparse::default(),
        })
    }

    /// Whether the unit knows PASIDs this large.
    pub const fn holds(&self, pasid: Pasid) -> bool {
        pasid.value() >> self.pasid_bits == 0
    }

    /// Gives the pages back. No context entry may lead here any more.
    pub fn destroy<M: DmaMemory>(self, memory: &TableMemory<M>) {
        for table in self.tables.values() {
            memory.free(*table, 1);
        }
        memory.free(self.base, (1usize << self.bits).div_ceil(WORDS_PER_PAGE));
    }

    /// Joins a PASID to a second-stage table. The entry must be all zero.
    pub fn set<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        pasid: Pasid,
        stage: PasidEntry,
    ) -> Result<(), Refusal> {
        let slot = (pasid.value() >> PASID_TABLE_BITS) as usize;
        let table = match self.tables.get(slot) {
            Some(&table) => table,
            None => {
                let fresh = memory.alloc(1, "VT-d PASID table")?;
                memory.write(self.base, slot, fresh.0 | PRESENT);
                self.tables.insert(slot, fresh);
                fresh
            }
        };
        let first = entry_word(pasid);
        let words = stage.words();
        for (at, word) in words.into_iter().enumerate().rev() {
            memory.write(table, first + at, word);
        }
        Ok(())
    }

    /// Leads a PASID whose entry is present to another second-stage table: in one store, since the unit reads two words at
    /// once, and the others do not differ.
    pub fn replace<M: DmaMemory>(&self, memory: &TableMemory<M>, pasid: Pasid, stage: PasidEntry) {
        if let Some(&table) = self.tables.get((pasid.value() >> PASID_TABLE_BITS) as usize) {
            let [first, second, ..] = stage.words();
            memory.write_pair(table, entry_word(pasid), [first, second]);
        }
    }

    /// Makes the entry absent, leaving the rest: the unit may be in the middle of reading it.
    pub fn clear_present<M: DmaMemory>(&self, memory: &TableMemory<M>, pasid: Pasid) {
        if let Some(&table) = self.tables.get((pasid.value() >> PASID_TABLE_BITS) as usize) {
            let first = entry_word(pasid);
            let word = memory.read(table, first);
            memory.write(table, first, word & !PRESENT);
        }
    }

    /// Zeroes an absent entry that the unit has forgotten.
    pub fn zero<M: DmaMemory>(&self, memory: &TableMemory<M>, pasid: Pasid) {
        if let Some(&table) = self.tables.get((pasid.value() >> PASID_TABLE_BITS) as usize) {
            for at in 0..PASID_ENTRY_WORDS {
                memory.write(table, entry_word(pasid) + at, 0);
            }
        }
    }
}

/// First word of a PASID's entry in its table.
const fn entry_word(pasid: Pasid) -> usize {
    (pasid.value() as usize & ((1 << PASID_TABLE_BITS) - 1)) * PASID_ENTRY_WORDS
}

/// What a PASID entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidEntry {
    /// Top-level second-stage table.
    pub root: HostPhys,
    /// Its number of levels.
    pub levels: u8,
    /// Tag of its translations.
    pub domain: DomainId,
    /// Whether the walk snoops.
    pub walk_snoops: bool,
}

impl PasidEntry {
    /// An entry for a page table.
    pub fn new(Top { root, levels }: Top, domain: DomainId, walk_snoops: bool) -> Self {
        Self { root, levels, domain, walk_snoops }
    }

    fn words(self) -> [u64; PASID_ENTRY_WORDS] {
        let mut words = [0; PASID_ENTRY_WORDS];
        words[0] =
            self.root.0 | u64::from(self.levels - 2) << PASID_AW_SHIFT | PASID_PGTT_SECOND_STAGE | PRESENT;
        words[1] = u64::from(self.domain) | if self.walk_snoops { PASID_PWSNP } else { 0 };
        words
    }
}
