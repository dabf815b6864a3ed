// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt remapping: which device may raise which vector.
//!
//! **Invariant.** Every present entry names one requester (SVT = 01, SQ = 00: all 16 bits compared), so
//! that a device can use only the handles made for it. Compatibility-format messages are blocked.
//! Source: Intel VT-d specification, "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts" and
//! "Interrupt Requests in Remappable Format".

use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::vm::exit::MsiMessage;

use super::registers::IRTA_EIME;
use crate::memory::DmaMemory;
use crate::table_memory::TableMemory;

/// Entries in the table: 2^(IRTA.S + 1).
pub const ENTRIES: usize = 1 << (IRTA_SIZE + 1);
/// IRTA.S.
const IRTA_SIZE: u64 = 10;
/// Words per entry.
const ENTRY_WORDS: usize = 2;
/// Pages of the table.
const PAGES: usize = ENTRIES * ENTRY_WORDS * 8 / 4096;

/// P.
const PRESENT: u64 = 1 << 0;
/// V: the vector.
const VECTOR_SHIFT: u32 = 16;
/// Largest vector.
const VECTOR_MAX: u32 = 0xff;
/// DST with 32-bit APIC identifiers.
const X2APIC_DESTINATION_SHIFT: u32 = 32;
/// DST with 8-bit APIC identifiers.
const XAPIC_DESTINATION_SHIFT: u32 = 40;
/// SVT = 01: the requester is checked against SID as SQ says (SQ = 00: all of it).
const VERIFY_REQUESTER: u64 = 0b01 << 18;

/// Base of the interrupt address range.
const MSI_ADDRESS: u64 = 0xfee0_0000;
/// Message address, bit 4: remappable format. SHV (bit 3) is clear: the data is not added to the handle.
const MSI_REMAPPABLE: u64 = 1 << 4;
/// Message address: handle\[14:0\].
const MSI_HANDLE_SHIFT: u32 = 5;
/// Message address, bit 2: handle\[15\].
const MSI_HANDLE_HIGH: u64 = 1 << 2;

/// The table of one unit.
#[derive(Debug)]
pub struct InterruptTable {
    base: HostPhys,
    x2apic: bool,
    taken: Vec<bool>,
    /// Where the search for a free entry starts: entries are handed out round, so that a stale message
    /// meets an absent entry for as long as possible.
    next: usize,
}

impl InterruptTable {
    /// An empty table. `x2apic`: destinations are 32-bit APIC identifiers.
    pub fn new<M: DmaMemory>(memory: &TableMemory<M>, x2apic: bool) -> Result<Self, Refusal> {
        Ok(Self {
            base: memory.alloc(PAGES, "VT-d interrupt remapping table")?,
            x2apic,
            taken: vec![false; ENTRIES],
            next: 0,
        })
    }

    /// The value of IRTA for this table.
    pub const fn address_register(&self) -> u64 {
        self.base.0 | IRTA_SIZE | if self.x2apic { IRTA_EIME } else { 0 }
    }

    /// Fills a free entry and returns its index.
    pub fn set<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        rid: u16,
        target: HostVector,
    ) -> Result<u16, Refusal> {
        if !self.x2apic && target.cpu > 0xff {
            return Err(Refusal::new(
                "VT-d interrupt remapping",
                alloc::format!("APIC identifier {} needs x2APIC destinations", target.cpu),
                "turn x2APIC on in the firmware",
            ));
        }
        if target.vector > VECTOR_MAX {
            return Err(Refusal::new(
                "VT-d interrupt remapping",
                alloc::format!("{:#x} is no vector of a local APIC", target.vector),
                "give vectors up to 0xff",
            ));
        }
        let Some(index) = (0..ENTRIES).map(|at| (self.next + at) % ENTRIES).find(|&index| !self.taken[index])
        else {
            return Err(Refusal::new(
                "VT-d interrupt remapping",
                alloc::format!("all {ENTRIES} entries are in use"),
                "end a vdev first",
            ));
        };
        self.taken[index] = true;
        self.next = (index + 1) % ENTRIES;
        let [low, high] = entry(rid, target, self.x2apic);
        memory.write(self.base, index * ENTRY_WORDS + 1, high);
        memory.write(self.base, index * ENTRY_WORDS, low);
        Ok(index as u16)
    }

    /// Makes an entry absent. False where it was not in use. The index stays taken until
    /// [`InterruptTable::release`], which follows the invalidation.
    pub fn clear<M: DmaMemory>(&self, memory: &TableMemory<M>, index: u16) -> bool {
        let index = usize::from(index);
        if !self.taken.get(index).copied().unwrap_or(false) {
            return false;
        }
        memory.write(self.base, index * ENTRY_WORDS, 0);
        memory.write(self.base, index * ENTRY_WORDS + 1, 0);
        true
    }

    /// Lets an index be used again. The unit must have forgotten the entry.
    pub fn release(&mut self, index: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(index)) {
            *taken = false;
        }
    }
}

/// The entry for an edge-triggered fixed interrupt with physical destination.
fn entry(rid: u16, target: HostVector, x2apic: bool) -> [u64; ENTRY_WORDS] {
    let destination = if x2apic {
        u64::from(target.cpu) << X2APIC_DESTINATION_SHIFT
    } else {
        u64::from(target.cpu) << XAPIC_DESTINATION_SHIFT
    };
    [destination | u64::from(target.vector) << VECTOR_SHIFT | PRESENT, VERIFY_REQUESTER | u64::from(rid)]
}

/// What a device writes to use entry `index`.
pub const fn message(index: u16) -> MsiMessage {
    let high = if index & 0x8000 != 0 { MSI_HANDLE_HIGH } else { 0 };
    MsiMessage {
        address: MSI_ADDRESS | (index as u64 & 0x7fff) << MSI_HANDLE_SHIFT | MSI_REMAPPABLE | high,
        data: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_carry_the_requester_check() {
        let target = HostVector { vector: 0x41, cpu: 5 };
        assert_eq!(entry(0x6a08, target, true), [5 << 32 | 0x41 << 16 | 1, 1 << 18 | 0x6a08]);
        assert_eq!(entry(0x6a08, target, false), [5 << 40 | 0x41 << 16 | 1, 1 << 18 | 0x6a08]);
    }

    #[test]
    fn messages_are_in_remappable_format() {
        assert_eq!(message(3), MsiMessage { address: 0xfee0_0070, data: 0 });
        assert_eq!(message(0x8001).address, 0xfee0_0034);
    }
}
