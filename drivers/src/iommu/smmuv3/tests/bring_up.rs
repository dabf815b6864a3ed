// SPDX-License-Identifier: MIT OR Apache-2.0
//! Take-over, and what a unit must be able to do for it.

use super::super::model::{
    CMDQEN, EVENTQEN, GBPA_ABORT, IDR0_ATS, IDR0_CD2L, IDR0_COHACC, IDR0_HYP, IDR0_MSI, IDR0_ST_LEVEL, SMMUEN,
};
use super::*;

#[test]
fn registers_that_cannot_be_mapped_are_refused() {
    let map = &mut |base, _| Err(Refusal::new(format!("{base}"), "is RAM", ""));
    let host = Box::leak(Box::new(ModelHost::default()));
    let made = Smmu::<ModelRegisters, _>::new(iort(), Arc::new(ModelMemory::new()), host, &[], map);
    assert_eq!(made.err().unwrap().why, "is RAM");
}

#[test]
fn a_taken_over_unit_blocks_everything() {
    let machine = SmmuRig::found(IDR0, IDR1);
    machine.unit.poison_caches(STREAM);
    // Until then everything passes, as the firmware left it.
    assert_eq!(machine.write(1, 0x1234), Ok(0x1234));
    assert_eq!(machine.unit.take_log(), [""; 0], "finding writes nothing");
    machine.smmu.take_over().unwrap();
    assert_eq!(machine.unit.take_log(), ["STE range", "sync", "all", "sync"]);
    for stream in [0, STREAM, 0xffff] {
        for tag in [None, Some(0), Some(1)] {
            assert_eq!(machine.unit.dma(stream, tag, 0, true), Err(0x02));
        }
    }
    assert_eq!(machine.unit.dma(0x1_0000, None, 0, true), Err(0x02));
    let state = machine.unit.state.lock().unwrap();
    assert_eq!(state.cr0, SMMUEN | EVENTQEN | CMDQEN);
    assert_ne!(state.gbpa & GBPA_ABORT, 0, "also when it goes off again");
}

#[test]
fn nothing_passes_while_a_running_unit_is_taken_over() {
    let machine = SmmuRig::found(IDR0 | IDR0_HYP, IDR1);
    {
        let mut state = machine.unit.state.lock().unwrap();
        state.cr0 = SMMUEN | CMDQEN;
        state.gerror = 0b101;
        state.noisy = vec![(STREAM, None), (STREAM, Some(1))];
    }
    machine.smmu.take_over().unwrap();
    assert_eq!(machine.unit.take_log(), ["STE range", "sync", "EL2", "sync", "all", "sync"]);
    machine.smmu.claim(DEVICE).unwrap();
    assert!(machine.unit.state.lock().unwrap().reached.is_empty());
}

#[test]
fn what_is_missing_is_named() {
    for (idr0, idr1, name) in [
        (IDR0 & !(1 << 1), IDR1, "IDR0.S1P"),
        (IDR0 & !(0b11 << 2), IDR1, "IDR0.TTF"),
        (IDR0 & !IDR0_COHACC, IDR1, "IDR0.COHACC"),
        (IDR0 | 0b11 << 21, IDR1, "IDR0.TTENDIAN"),
        (IDR0 & !(0b11 << 24) | 0b10 << 24, IDR1, "IDR0.STALL_MODEL"),
        (IDR0, IDR1 & !(0x1f << 6), "IDR1.SSIDSIZE"),
        (IDR0, IDR1 | 1 << 30, "IDR1.TABLES_PRESET"),
        (IDR0, IDR1 & !(0x1f << 21), "IDR1.CMDQS"),
    ] {
        let refusal = SmmuRig::try_found(idr0, idr1, iort()).err().unwrap();
        assert!(refusal.why.contains(name), "{refusal}");
        assert!(refusal.what.contains("0x9050000"), "{refusal}");
    }
    let none = SmmuRig::try_found(IDR0, IDR1, Iort::default()).err().unwrap();
    assert!(none.why.contains("no SMMUv3"), "{none}");
}

#[test]
fn a_unit_that_does_not_answer_is_refused() {
    let machine = SmmuRig::found(IDR0, IDR1);
    machine.unit.state.lock().unwrap().deaf = true;
    let refusal = machine.smmu.take_over().unwrap_err();
    assert!(refusal.why.contains("CR0ACK"), "{refusal}");
}

#[test]
fn what_the_unit_can_do_is_what_is_offered() {
    let machine = SmmuRig::new();
    let offered = machine.smmu.capabilities();
    assert_eq!((offered.pasid_bits, offered.address_bits, offered.largest_page), (20, 48, GIB));
    assert_eq!(SmmuRig::with(IDR0 & !IDR0_CD2L, IDR1).smmu.capabilities().pasid_bits, 10);
    let narrow = IDR1 & !(0x1f << 6) | 8 << 6;
    assert_eq!(SmmuRig::with(IDR0, narrow).smmu.capabilities().pasid_bits, 8);
    // HTTU: none, access flags only, both.
    for (value, lack) in [(0, Some("IDR0.HTTU is not 2")), (1, Some("IDR0.HTTU is not 2")), (2, None)] {
        let machine = SmmuRig::with(IDR0 & !(3 << 6) | value << 6, IDR1);
        assert_eq!(machine.smmu.capabilities().lacks_dirty_tracking, lack);
    }
    let lines = machine.smmu.describe();
    let claimed = lines.iter().find(|line| line.0 == "claimed").unwrap();
    assert!(claimed.1.contains("0x6a08"), "{}", claimed.1);
}

#[test]
fn a_device_is_claimed_once_and_where_the_firmware_lets_go_of_it() {
    let machine = SmmuRig::new();
    let again = machine.smmu.claim(DEVICE).unwrap_err();
    assert!(again.why.contains("claimed already"), "{again}");
    let elsewhere = Requester { segment: 3, rid: 0 };
    let refusal = machine.smmu.claim(elsewhere).unwrap_err();
    assert!(refusal.why.contains("no SMMU"), "{refusal}");
    let refusal = machine.smmu.claim_with_device_tlb(Requester::new(0, 1, 0, 0), TLB).unwrap_err();
    assert!(refusal.why.contains("IDR0.ATS"), "{refusal}");

    let reserved = iort::tests::machine_with_reserved(STREAM);
    let machine = SmmuRig::try_found(IDR0, IDR1, reserved).unwrap();
    machine.smmu.take_over().unwrap();
    let refusal = machine.smmu.claim(DEVICE).unwrap_err();
    assert!(refusal.why.contains("RMR"), "{refusal}");
    machine.smmu.claim(Requester::new(0, 0x6a, 1, 1)).unwrap();
}

#[test]
fn a_claim_without_memory_leaves_nothing() {
    let machine = SmmuRig::found(IDR0, IDR1);
    machine.smmu.take_over().unwrap();
    let used = machine.memory.used();
    // The stream table's second level needs 4 pages and stays, the descriptors need 32 and 1.
    for pages in [3, 4 + 31, 32] {
        machine.memory.limit(pages);
        assert!(machine.smmu.claim(DEVICE).is_err());
    }
    assert_eq!(machine.memory.used(), used + 4);
    machine.memory.limit(1000);
    machine.smmu.claim(DEVICE).unwrap();
}

#[test]
fn its_own_interrupts_are_wired() {
    let machine = SmmuRig::found(IDR0 | IDR0_MSI | IDR0_ATS, IDR1);
    machine.smmu.take_over().unwrap();
    machine.smmu.claim(DEVICE).unwrap();
    machine.smmu.enable_fault_interrupts().unwrap();
    assert!(machine.write(1, 0).is_err());
    assert_eq!(machine.unit.state.lock().unwrap().interrupts, 1);
}

/// One level where the unit has no other; a stream beyond it is refused.
#[test]
fn a_linear_stream_table_serves_what_it_holds() {
    let machine = SmmuRig::found(IDR0 & !IDR0_ST_LEVEL, IDR1);
    machine.smmu.take_over().unwrap();
    assert_eq!(machine.unit.dma(0x0008, Some(1), 0, true), Err(0x04));
    let near = Requester::new(0, 0, 1, 0);
    machine.smmu.claim(near).unwrap();
    let table = machine.table(4 * GIB, MIB);
    machine.smmu.attach(near, tag(1), table).unwrap();
    assert_eq!(machine.unit.dma(0x0008, Some(1), 8, true), Ok(4 * GIB + 8));
    let refusal = machine.smmu.claim(DEVICE).unwrap_err();
    assert!(refusal.why.contains("stream table"), "{refusal}");
}
