// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that a unit walks (an IOMMU, an ITS), with its coherency honoured in one place.
//!
//! A unit that does not snoop the processor's caches (ECAP.C for root, context, PASID and interrupt
//! tables, ECAP.SMPWCS for page tables) sees a write only after the line was flushed. Everything written
//! through [`TableMemory`] is flushed where that is needed, so that no table code has to think of it.

use alloc::format;
use alloc::sync::Arc;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::memory::page_table;

use crate::memory::DmaMemory;

/// Memory for one kind of table.
#[derive(Debug)]
pub struct TableMemory<M> {
    memory: Arc<M>,
    coherent: bool,
}

impl<M> Clone for TableMemory<M> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), coherent: self.coherent }
    }
}

impl<M: DmaMemory> TableMemory<M> {
    /// `coherent`: whether every reader of these tables snoops the processor's caches.
    pub fn new(memory: Arc<M>, coherent: bool) -> Self {
        Self { memory, coherent }
    }

    /// Zeroed pages, aligned to their size, already visible to the unit as zeros. `what` names the table
    /// in the refusal.
    pub fn alloc(&self, pages: usize, what: &str) -> Result<HostPhys, Refusal> {
        let start = self.memory.alloc(pages).ok_or_else(|| {
            Refusal::new(
                what,
                format!("no {pages} contiguous pages of memory left"),
                "give the guests less memory",
            )
        })?;
        if !self.coherent {
            self.memory.flush(start, pages * PAGE_SIZE as usize);
        }
        Ok(start)
    }

    /// Gives pages back. The unit must have forgotten them: invalidation waited for.
    pub fn free(&self, start: HostPhys, pages: usize) {
        self.memory.free(start, pages);
    }

    /// Reads the 64-bit word `index` words after `table`.
    pub fn read(&self, table: HostPhys, index: usize) -> u64 {
        self.memory.read64(word(table, index))
    }

    /// Writes the 64-bit word `index` words after `table`, visible to the unit and ordered after all
    /// earlier writes when it returns.
    #[inline]
    pub fn write(&self, table: HostPhys, index: usize, value: u64) {
        let address = word(table, index);
        self.memory.write64(address, value);
        if !self.coherent {
            self.memory.flush(address, size_of::<u64>());
        }
    }

    /// Writes two words from `index` on, an even one, in one store, as [`TableMemory::write`] does one: for an entry
    /// that the unit may be reading.
    pub fn write_pair(&self, table: HostPhys, index: usize, value: [u64; 2]) {
        let address = word(table, index);
        self.memory.write128(address, value);
        if !self.coherent {
            self.memory.flush(address, size_of_val(&value));
        }
    }
}

impl<M: DmaMemory> page_table::Memory for TableMemory<M> {
    fn alloc_table(&mut self) -> Result<HostPhys, Refusal> {
        self.alloc(1, "I/O page table")
    }

    fn free_table(&mut self, table: HostPhys) {
        self.free(table, 1);
    }

    fn read(&self, table: HostPhys, index: usize) -> u64 {
        Self::read(self, table, index)
    }

    fn write(&mut self, table: HostPhys, index: usize, entry: u64) {
        Self::write(self, table, index, entry);
    }
}

/// Address of a word of a table. Tables lie far below the end of the address space.
fn word(table: HostPhys, index: usize) -> HostPhys {
    HostPhys(table.0.wrapping_add((index * size_of::<u64>()) as u64))
}
