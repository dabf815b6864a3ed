// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt remapping: which device may raise which vector, the hypervisor's or a guest's.
//!
//! **Invariant.** Every present entry names one requester (SVT = 01, SQ = 00: all 16 bits compared), so
//! that a device can use only the handles made for it. Compatibility-format messages are blocked. A posted-interrupt
//! descriptor is held for as long as the unit may write to it.
//! Source: Intel VT-d specification, "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts", the same for
//! Posted Interrupts, and "Interrupt Requests in Remappable Format".

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::msi::{Delivery, PostedInterrupts, Posting};
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
/// IM: the interrupt is posted.
const POSTED: u64 = 1 << 15;
/// V: the vector.
const VECTOR_SHIFT: u32 = 16;
/// Largest vector.
const VECTOR_MAX: u32 = 0xff;
/// Smallest vector that is a guest's to take.
const GUEST_VECTOR_MIN: u8 = 16;
/// Bytes of a posted-interrupt descriptor, and its alignment.
const DESCRIPTOR_BYTES: u64 = 64;
/// PDAL: bits 31:6 of the descriptor's address.
const DESCRIPTOR_LOW_SHIFT: u32 = 38;
/// PDAH: bits 63:32 of it, at the same place in the upper word.
const DESCRIPTOR_HIGH_MASK: u64 = 0xffff_ffff_0000_0000;
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

/// What is known of an entry in use.
#[derive(Debug)]
struct Taken {
    rid: u16,
    /// Where the unit may be writing to: as the entry says, and as it said while the unit may remember that.
    descriptors: Vec<Arc<dyn PostedInterrupts>>,
}

/// The table of one unit.
#[derive(Debug)]
pub struct InterruptTable {
    base: HostPhys,
    x2apic: bool,
    taken: Vec<Option<Taken>>,
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
            taken: (0..ENTRIES).map(|_| None).collect(),
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
        let [low, high] = remapped(rid, target, self.x2apic)?;
        let free = |&index: &usize| self.taken[index].is_none();
        let Some(index) = (0..ENTRIES).map(|at| (self.next + at) % ENTRIES).find(free) else {
            return Err(refused(format!("all {ENTRIES} entries are in use"), "end a vdev first"));
        };
        self.taken[index] = Some(Taken { rid, descriptors: Vec::new() });
        self.next = (index + 1) % ENTRIES;
        memory.write(self.base, index * ENTRY_WORDS + 1, high);
        memory.write(self.base, index * ENTRY_WORDS, low);
        Ok(index as u16)
    }

    /// Has an entry in use raise something else, for the same requester, from one moment to the next: the unit may be
    /// reading it. What it raised before stays held until [`InterruptTable::settle`], which follows the invalidation.
    pub fn redirect<M: DmaMemory>(
        &mut self,
        memory: &TableMemory<M>,
        index: u16,
        to: Delivery<'_>,
    ) -> Result<(), Refusal> {
        let at = usize::from(index);
        let taken = self.taken.get_mut(at).and_then(Option::as_mut).ok_or_else(|| not_in_use(index))?;
        let words = match to {
            Delivery::Host(target) => remapped(taken.rid, target, self.x2apic)?,
            Delivery::Guest(posting) => {
                let words = posted(taken.rid, posting)?;
                if !taken.descriptors.iter().any(|held| Arc::ptr_eq(held, &posting.descriptor)) {
                    taken.descriptors.push(Arc::clone(&posting.descriptor));
                }
                words
            }
        };
        memory.write_pair(self.base, at * ENTRY_WORDS, words);
        Ok(())
    }

    /// Lets go of all that an entry raised before `to`. The unit must have forgotten that.
    pub fn settle(&mut self, index: u16, to: Delivery<'_>) {
        if let Some(taken) = self.taken.get_mut(usize::from(index)).and_then(Option::as_mut) {
            taken.descriptors.retain(
                |held| matches!(to, Delivery::Guest(posting) if Arc::ptr_eq(held, &posting.descriptor)),
            );
        }
    }

    /// Makes an entry absent. The index stays taken until [`InterruptTable::release`], which follows the
    /// invalidation.
    pub fn clear<M: DmaMemory>(&self, memory: &TableMemory<M>, index: u16) -> Result<(), Refusal> {
        let at = usize::from(index);
        if self.taken.get(at).is_none_or(Option::is_none) {
            return Err(not_in_use(index));
        }
        memory.write(self.base, at * ENTRY_WORDS, 0);
        memory.write(self.base, at * ENTRY_WORDS + 1, 0);
        Ok(())
    }

    /// Lets an index be used again. The unit must have forgotten the entry.
    pub fn release(&mut self, index: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(index)) {
            *taken = None;
        }
    }
}

fn refused(why: impl Into<String>, remedy: &'static str) -> Refusal {
    Refusal::new("VT-d interrupt remapping", why, remedy)
}

fn not_in_use(index: u16) -> Refusal {
    Refusal::new(format!("interrupt handle {index}"), "not in use", "")
}

/// An entry.
type Words = [u64; ENTRY_WORDS];

/// The entry for an edge-triggered fixed interrupt with physical destination.
fn remapped(rid: u16, target: HostVector, x2apic: bool) -> Result<Words, Refusal> {
    if !x2apic && target.cpu > 0xff {
        return Err(refused(
            format!("APIC identifier {} needs x2APIC destinations", target.cpu),
            "turn x2APIC on in the firmware",
        ));
    }
    if target.vector > VECTOR_MAX {
        return Err(refused(
            format!("{:#x} is no vector of a local APIC", target.vector),
            "give vectors up to 0xff",
        ));
    }
    let shift = if x2apic { X2APIC_DESTINATION_SHIFT } else { XAPIC_DESTINATION_SHIFT };
    let destination = u64::from(target.cpu) << shift;
    Ok([destination | u64::from(target.vector) << VECTOR_SHIFT | PRESENT, VERIFY_REQUESTER | u64::from(rid)])
}

/// The entry for an interrupt of a guest. URG is clear: whether the processor is told is a matter of the descriptor.
fn posted(rid: u16, posting: &Posting) -> Result<Words, Refusal> {
    let address = posting.descriptor.address();
    if !address.is_aligned(DESCRIPTOR_BYTES) {
        return Err(refused(
            format!("a posted-interrupt descriptor at {address} is not aligned to {DESCRIPTOR_BYTES} bytes"),
            "align it",
        ));
    }
    if posting.vector < GUEST_VECTOR_MIN {
        return Err(refused(
            format!("vector {:#x} is an exception's", posting.vector),
            "give guests' vectors from 0x10",
        ));
    }
    let vector = u64::from(posting.vector) << VECTOR_SHIFT;
    let low =
        (address.0 & !DESCRIPTOR_HIGH_MASK) >> DESCRIPTOR_BYTES.trailing_zeros() << DESCRIPTOR_LOW_SHIFT;
    let high = address.0 & DESCRIPTOR_HIGH_MASK;
    Ok([low | vector | POSTED | PRESENT, high | VERIFY_REQUESTER | u64::from(rid)])
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
        assert_eq!(remapped(0x6a08, target, true).unwrap(), [5 << 32 | 0x41 << 16 | 1, 1 << 18 | 0x6a08]);
        assert_eq!(remapped(0x6a08, target, false).unwrap(), [5 << 40 | 0x41 << 16 | 1, 1 << 18 | 0x6a08]);
    }

    #[derive(Debug)]
    struct At(u64);

    impl PostedInterrupts for At {
        fn address(&self) -> HostPhys {
            HostPhys(self.0)
        }
    }

    fn posting(address: u64, vector: u8) -> Posting {
        Posting { descriptor: Arc::new(At(address)), vector }
    }

    /// Each bit of the address and the vector has one place in the entry, and the others are as they are for all.
    #[test]
    fn entries_lead_to_the_descriptor() {
        let frame = [1 << 15 | 1, 1 << 18 | 0x6a08];
        for bit in 6..64 {
            let [low, high] = posted(0x6a08, &posting(1 << bit, 0xff)).unwrap();
            let place = if bit < 32 { [1 << (bit - 6 + 38), 0] } else { [0, 1 << (bit - 32 + 96 - 64)] };
            assert_eq!([low ^ 0xff << 16 ^ frame[0], high ^ frame[1]], place, "address bit {bit}");
        }
        for vector in 16..=u8::MAX {
            let [low, high] = posted(0x6a08, &posting(0, vector)).unwrap();
            assert_eq!([low ^ frame[0], high], [u64::from(vector) << 16, frame[1]]);
        }
    }

    #[test]
    fn what_cannot_be_posted_is_refused() {
        for (address, vector, why) in
            [(0x1020, 0x41, "not aligned"), (0x1001, 0x41, "not aligned"), (0x1000, 15, "exception")]
        {
            let refusal = posted(0, &posting(address, vector)).unwrap_err();
            assert!(refusal.why.contains(why), "{refusal}");
        }
    }

    #[test]
    fn messages_are_in_remappable_format() {
        assert_eq!(message(3), MsiMessage { address: 0xfee0_0070, data: 0 });
        assert_eq!(message(0x8001).address, 0xfee0_0034);
    }
}
