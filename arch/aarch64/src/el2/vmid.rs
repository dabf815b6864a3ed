// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMIDs: what tells the translations of one VM from another's in a processor's TLB.
//!
//! **Invariant.** No two VMs have one VMID at a time, and one comes back only with the proof that no processor
//! holds a translation of it any more. VMID 0 is nobody's: it is in VTTBR_EL2 while no guest runs.
//!
//! Unlike ASIDs under SVM, VMIDs name translations on all processors at once, so a VM keeps its VMID as long as
//! it lives.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.16 (VMIDs, TLBI VMALLS12E1IS).

use alloc::vec;
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;

/// Says that every processor has dropped the translations of a VMID: TLBI VMALLS12E1IS and DSB are done.
#[derive(Debug)]
pub struct Forgotten(u16);

impl Forgotten {
    /// To be made where that was done, and nowhere else.
    pub fn confirmed(vmid: &Vmid) -> Self {
        Self(vmid.0)
    }
}

/// A VMID that a VM has.
#[derive(PartialEq, Eq, Debug)]
pub struct Vmid(u16);

impl Vmid {
    /// Its number, for VTTBR_EL2.
    pub fn number(&self) -> u16 {
        self.0
    }
}

/// Which ones are taken.
#[derive(Debug)]
pub struct Vmids {
    /// A bit each.
    taken: Vec<u64>,
    count: u32,
}

const WORD: u32 = u64::BITS;

impl Vmids {
    /// For processors with VMIDs of `bits` bits, 8 or 16.
    pub fn new(bits: u8) -> Self {
        let count = 1 << u32::from(bits.min(16));
        let mut taken = vec![0; (count / WORD) as usize];
        if let Some(first) = taken.first_mut() {
            *first = 1;
        }
        Self { taken, count }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When all are taken.
    pub fn take(&mut self) -> Result<Vmid, Refusal> {
        let free = self.taken.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX);
        let Some((index, word)) = free else {
            return Err(Refusal::new(
                "VMID",
                alloc::format!("all {} of this processor's are taken", self.count - 1),
                "stop a VM first",
            ));
        };
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Ok(Vmid((index as u32 * WORD + bit) as u16))
    }

    /// Gives one back.
    pub fn give_back(&mut self, vmid: Vmid, forgotten: &Forgotten) {
        assert_eq!(vmid.0, forgotten.0, "the proof is about another VMID");
        if let Some(word) = self.taken.get_mut(usize::from(vmid.0) / WORD as usize) {
            *word &= !(1 << (u32::from(vmid.0) % WORD));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    #[test]
    fn all_but_zero_can_be_had_and_then_no_more() {
        let mut vmids = Vmids::new(8);
        let taken: Vec<Vmid> = (0..255).map(|_| vmids.take().unwrap()).collect();
        assert!(taken.iter().all(|vmid| vmid.number() != 0));
        assert!(vmids.take().unwrap_err().why.contains("255"));
    }

    proptest! {
        #[test]
        fn nobody_shares_one(steps in proptest::collection::vec(any::<Option<u8>>(), 1..600)) {
            let mut vmids = Vmids::new(8);
            let mut taken = BTreeMap::new();
            for step in steps {
                match step {
                    None => {
                        if let Ok(vmid) = vmids.take() {
                            prop_assert!(taken.insert(vmid.number(), vmid).is_none());
                        } else {
                            prop_assert_eq!(taken.len(), 255);
                        }
                    }
                    Some(number) => {
                        if let Some(vmid) = taken.remove(&u16::from(number)) {
                            let forgotten = Forgotten::confirmed(&vmid);
                            vmids.give_back(vmid, &forgotten);
                        }
                    }
                }
            }
        }
    }
}
