// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reaches what, and what is left of it afterwards.

use super::super::model::{IDR0_ATS, IDR0_CD2L, IDR0_ST_LEVEL};
use super::*;
use crate::iommu::suite::isolation_tests;

isolation_tests!(SmmuRig);

#[test]
fn streams_that_nobody_claimed_are_blocked() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    // Near to the claimed one, and far from it.
    assert_eq!(machine.unit.dma(STREAM + 1, Some(1), 0, true), Err(0x04));
    assert_eq!(machine.unit.dma(0x20, Some(1), 0, true), Err(0x02));
}

#[test]
fn untagged_traffic_reaches_the_doorbell_and_nothing_else() {
    let machine = SmmuRig::new();
    let table = machine.table(0, GIB);
    machine.attach(1, table);
    let untagged = |at, write| machine.unit.dma(STREAM, None, at, write);
    assert_eq!(untagged(DOORBELL + 0x40, true), Ok(DOORBELL + 0x40));
    for at in [0, DOORBELL - 1, DOORBELL + PAGE, 4 * GIB] {
        assert_eq!((untagged(at, true), untagged(at, false)), (Err(0x10), Err(0x10)));
    }
    // Tag 0 is not the untagged traffic, and nobody gets it.
    assert_eq!(machine.write(0, DOORBELL), Err(0x06));
    assert!(machine.smmu.attach(DEVICE, tag(0), table).is_err());
    assert!(machine.smmu.detach(DEVICE, tag(0)).is_err());
    // A tag reaches the memory of its VM there, not the doorbell.
    let other = machine.table(8 * GIB, 2 * MIB);
    machine.attach(2, other);
    assert_eq!(machine.write(2, DOORBELL), Err(0x10));
    // Before the claim, not even that.
    assert_eq!(machine.unit.dma(STREAM + 1, None, DOORBELL, true), Err(0x04));
}

/// Fails where the invalidation of translations is left out: an 8-bit ASID comes round soon.
#[test]
fn a_reused_asid_reaches_only_its_new_memory() {
    let machine = SmmuRig::with(IDR0 & !super::super::model::IDR0_ASID16, IDR1);
    for round in 1..=300 {
        let table = machine.table(round * GIB, PAGE);
        machine.attach(3, table);
        assert_eq!(machine.write(3, 0), Ok(round * GIB));
        machine.detach(3);
        machine.smmu.destroy_table(table).unwrap();
    }
}

#[test]
fn a_narrow_unit_refuses_wide_tags() {
    let machine = SmmuRig::with(IDR0, IDR1 & !(0x1f << 6) | 1 << 6);
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    let failed = machine.smmu.attach(DEVICE, tag(2), table).unwrap_err();
    assert!(failed.refusal.why.contains("IDR1.SSIDSIZE"));
    assert_eq!(machine.write(2, 0), Err(0x08));
}

#[test]
fn an_unmapped_range_is_gone_and_its_neighbours_are_not() {
    let machine = SmmuRig::new();
    let table = machine.smmu.create_table().unwrap();
    // Three mappings: one page, five pages, and large leaves.
    let parts = [(0, PAGE), (PAGE, 5 * PAGE), (2 * MIB, 2 * GIB)];
    for (at, len) in parts {
        machine.map(table, at, 8 * GIB + at, len);
    }
    machine.attach(1, table);
    let there = |at: u64| assert_eq!(machine.write(1, at), Ok(8 * GIB + at));
    let gone = |at: u64| assert_eq!(machine.write(1, at), Err(0x10));
    let probes = [0, PAGE, 5 * PAGE, 2 * MIB, 2 * GIB + MIB];
    probes.into_iter().for_each(there);
    // A part of a large leaf is not taken out of it.
    let refusal = machine.smmu.unmap(table, Iova(4 * MIB), PAGE).unwrap_err();
    assert!(refusal.why.contains("inside a leaf"), "{refusal}");
    probes.into_iter().for_each(there);
    machine.unmap(table, PAGE, 5 * PAGE);
    [PAGE, 5 * PAGE].into_iter().for_each(gone);
    [0, 2 * MIB, 2 * GIB + MIB].into_iter().for_each(there);
    machine.unmap(table, 0, PAGE);
    gone(0);
    there(2 * MIB);
    machine.unmap(table, 2 * MIB, 2 * GIB);
    probes.into_iter().for_each(gone);
    // And again, with tables freed on the way.
    let other = 16 * GIB;
    machine.map(table, 0, other, 3 * PAGE);
    assert_eq!(machine.write(1, 2 * PAGE), Ok(other + 2 * PAGE));
}

#[test]
fn the_order_is_descriptor_then_translations_then_device_tlb() {
    let machine = SmmuRig::found(IDR0 | IDR0_ATS, IDR1);
    machine.smmu.take_over().unwrap();
    machine.unit.take_log();
    machine.smmu.claim_with_device_tlb(DEVICE, TLB).unwrap();
    assert_eq!(machine.unit.take_log(), ["STE", "sync", "STE", "sync"]);
    let table = machine.smmu.create_table().unwrap();
    machine.map(table, 0, 4 * GIB, 2 * PAGE);
    machine.attach(1, table);
    assert_eq!(machine.unit.take_log(), ["CD", "sync", "CD", "sync"]);
    machine.attach(2, table);
    let hold = || {
        let mut state = machine.unit.state.lock().unwrap();
        state.device_tlbs.extend([(STREAM, 1), (STREAM, 2)]);
    };
    hold();
    machine.unit.take_log();
    machine.unmap(table, 0, 2 * PAGE);
    assert_eq!(machine.unit.take_log(), ["VA", "VA", "sync", "device TLB", "device TLB", "sync"]);
    assert!(machine.unit.state.lock().unwrap().device_tlbs.is_empty());
    machine.map(table, 0, 4 * GIB, 2 * MIB);
    assert_eq!(machine.unit.take_log(), [""; 0], "a new mapping is seen at once");
    machine.unmap(table, 0, 2 * MIB);
    assert_eq!(machine.unit.take_log()[0], "ASID", "many pages at once");
    hold();
    machine.detach(1);
    assert_eq!(machine.unit.take_log(), ["CD", "sync", "ASID", "sync", "device TLB", "sync"]);
    let state = machine.unit.state.lock().unwrap();
    assert!(state.device_tlbs.iter().eq([&(STREAM, 2)]), "its own tag only");
}

/// One or two levels of streams and of context descriptors, few and many SubstreamIDs, device TLBs.
#[test]
fn one_life_on_every_kind_of_unit() {
    let near = Requester::new(0, 0, 1, 0);
    let write = |machine: &SmmuRig| machine.dma(near, Some(3), 0, true);
    for idr0 in [IDR0, IDR0 & !IDR0_CD2L, IDR0 & !IDR0_ST_LEVEL, IDR0 | IDR0_ATS] {
        for substream_bits in [2, 6, 7, 20] {
            let machine = SmmuRig::found(idr0, IDR1 & !(0x1f << 6) | substream_bits << 6);
            machine.smmu.take_over().unwrap();
            // What the unit may remember from before the claim.
            assert!(write(&machine).is_err());
            if idr0 & IDR0_ATS != 0 {
                machine.smmu.claim_with_device_tlb(near, TLB).unwrap();
            } else {
                machine.smmu.claim(near).unwrap();
            }
            // Descriptor 0 brought the second level that tag 3 is in.
            assert_eq!(suite::one_life(&machine, near), 0);
        }
    }
}

#[test]
fn a_device_that_keeps_sending_sees_whole_entries_only() {
    let machine = SmmuRig::found(IDR0, IDR1);
    machine.smmu.take_over().unwrap();
    machine.unit.state.lock().unwrap().noisy = vec![(STREAM, None), (STREAM, Some(1)), (STREAM, Some(2))];
    machine.smmu.claim(DEVICE).unwrap();
    suite::a_device_that_keeps_sending_sees_whole_entries_only(&machine, &[(0, PAGE), (MIB, PAGE)]);
    let state = machine.unit.state.lock().unwrap();
    assert!(!state.reached.contains_key(&None), "untagged traffic reaches no memory");
}

#[test]
fn the_cost_of_an_attachment_does_not_depend_on_the_others() {
    let cost = suite::the_cost_of_an_attachment_does_not_depend_on_the_others(&SmmuRig::new());
    assert_eq!(cost, (4, 4));
}
