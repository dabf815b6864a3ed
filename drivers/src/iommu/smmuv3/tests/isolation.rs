// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reaches what, and what is left of it afterwards.

use super::super::model::{IDR0_ATS, IDR0_CD2L, IDR0_ST_LEVEL};
use super::*;

#[test]
fn an_attached_table_translates() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 64 * MIB);
    machine.attach(5, table);
    assert_eq!(machine.read(5, 0x1234), Ok(4 * GIB + 0x1234));
    assert_eq!(machine.write(5, 64 * MIB - 1), Ok(4 * GIB + 64 * MIB - 1));
    assert_eq!(machine.read(5, 64 * MIB), Err(0x10));
    assert_eq!(machine.read(5, 1 << 48), Err(0x10));
    let large = machine.table(8 * GIB, 2 * GIB + 2 * MIB + PAGE);
    machine.attach(6, large);
    for at in [0, GIB + 5, 2 * GIB + MIB, 2 * GIB + 2 * MIB + 7] {
        assert_eq!(machine.write(6, at), Ok(8 * GIB + at));
    }
}

#[test]
fn two_tags_on_one_address_reach_their_own_memory() {
    let machine = Machine::new();
    let alpha = machine.table(4 * GIB, 2 * MIB);
    let beta = machine.table(8 * GIB, 2 * MIB);
    machine.attach(1, alpha);
    machine.attach(2, beta);
    for _ in 0..2 {
        assert_eq!(machine.write(1, 0x1000), Ok(4 * GIB + 0x1000));
        assert_eq!(machine.write(2, 0x1000), Ok(8 * GIB + 0x1000));
    }
}

#[test]
fn one_table_serves_several_tags_and_ends_with_each_alone() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.attach(2, table);
    machine.detach(1);
    assert_eq!(machine.write(1, 0), Err(0x0a));
    assert_eq!(machine.write(2, 0), Ok(4 * GIB));
    let refusal = machine.smmu.destroy_table(table).unwrap_err();
    assert!(refusal.why.contains("attached 1 times"));
    machine.detach(2);
    machine.smmu.destroy_table(table).unwrap();
}

#[test]
fn untagged_traffic_reaches_the_doorbell_and_nothing_else() {
    let machine = Machine::new();
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

#[test]
fn a_tag_or_device_that_is_not_attached_is_blocked() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    // Another device near the claimed one, and far from it.
    assert_eq!(machine.unit.dma(STREAM + 1, Some(1), 0, true), Err(0x04));
    assert_eq!(machine.unit.dma(0x20, Some(1), 0, true), Err(0x02));
    // Another tag, near and far from the attached one.
    assert_eq!(machine.write(2, 0), Err(0x0a));
    assert_eq!(machine.write(0xf_ffff, 0), Err(0x08));
}

#[test]
fn a_detached_tag_faults() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(7, table);
    assert!(machine.write(7, 0).is_ok());
    assert!(machine.smmu.may_be_attached(DEVICE, tag(7)));
    machine.detach(7);
    assert_eq!(machine.write(7, 0), Err(0x0a));
    assert!(!machine.smmu.may_be_attached(DEVICE, tag(7)));
    assert!(machine.smmu.detach(DEVICE, tag(7)).is_err());
}

/// The reuse test: fails where the invalidation of context descriptors is left out.
#[test]
fn a_reused_tag_reaches_only_its_new_table() {
    let machine = Machine::new();
    let old = machine.table(4 * GIB, 2 * MIB);
    machine.attach(7, old);
    assert_eq!(machine.write(7, 0), Ok(4 * GIB));
    machine.detach(7);
    let new = machine.table(8 * GIB, 2 * MIB);
    machine.attach(7, new);
    assert_eq!(machine.write(7, 0), Ok(8 * GIB), "the old owner's memory");
    machine.smmu.destroy_table(old).unwrap();
}

/// Fails where the invalidation of translations is left out: an 8-bit ASID comes round soon.
#[test]
fn a_reused_asid_reaches_only_its_new_memory() {
    let machine = Machine::with(IDR0 & !super::super::model::IDR0_ASID16, IDR1);
    for round in 1..=300 {
        let table = machine.table(round * GIB, PAGE);
        machine.attach(3, table);
        assert_eq!(machine.write(3, 0), Ok(round * GIB));
        machine.detach(3);
        machine.smmu.destroy_table(table).unwrap();
    }
}

#[test]
fn every_large_tag_can_be_attached() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    let tags = [1, 63, 64, 8191, 8192, 0xf_ffff];
    for pasid in tags {
        machine.attach(pasid, table);
        assert_eq!(machine.write(pasid, 8), Ok(4 * GIB + 8));
    }
    for pasid in tags {
        machine.detach(pasid);
        assert_eq!(machine.write(pasid, 8), Err(0x0a));
    }
}

#[test]
fn a_narrow_unit_refuses_wide_tags() {
    let machine = Machine::with(IDR0, IDR1 & !(0x1f << 6) | 1 << 6);
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    let refusal = machine.smmu.attach(DEVICE, tag(2), table).unwrap_err();
    assert!(refusal.why.contains("IDR1.SSIDSIZE"));
    assert_eq!(machine.write(2, 0), Err(0x08));
}

#[test]
fn an_unmapped_range_is_gone_and_its_neighbours_are_not() {
    let machine = Machine::new();
    let table = machine.smmu.create_table().unwrap();
    // Three mappings: one page, five pages, and large leaves.
    let parts = [(0, PAGE), (PAGE, 5 * PAGE), (2 * MIB, 2 * GIB)];
    for (at, len) in parts {
        machine
            .smmu
            .map(table, Iova(at), HostPhys(8 * GIB + at), len, true)
            .unwrap();
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
    machine.smmu.unmap(table, Iova(PAGE), 5 * PAGE).unwrap();
    [PAGE, 5 * PAGE].into_iter().for_each(gone);
    [0, 2 * MIB, 2 * GIB + MIB].into_iter().for_each(there);
    machine.smmu.unmap(table, Iova(0), PAGE).unwrap();
    gone(0);
    there(2 * MIB);
    machine.smmu.unmap(table, Iova(2 * MIB), 2 * GIB).unwrap();
    probes.into_iter().for_each(gone);
    // And again, with tables freed on the way.
    let other = 16 * GIB;
    machine
        .smmu
        .map(table, Iova(0), HostPhys(other), 3 * PAGE, true)
        .unwrap();
    assert_eq!(machine.write(1, 2 * PAGE), Ok(other + 2 * PAGE));
}

#[test]
fn a_read_only_mapping_takes_no_write() {
    let machine = Machine::new();
    let table = machine.smmu.create_table().unwrap();
    machine
        .smmu
        .map(table, Iova(0), HostPhys(4 * GIB), PAGE, false)
        .unwrap();
    machine.attach(1, table);
    assert_eq!(machine.read(1, 0), Ok(4 * GIB));
    assert_eq!(machine.write(1, 0), Err(0x13));
}

/// The same life on every kind of unit: one or two levels of streams and of context descriptors, few and
/// many SubstreamIDs, device TLBs.
#[test]
fn one_life_on_every_kind_of_unit() {
    let near = Requester::new(0, 0, 1, 0);
    let write = |machine: &Machine, at| machine.unit.dma(0x0008, Some(3), at, true);
    for idr0 in [IDR0, IDR0 & !IDR0_CD2L, IDR0 & !IDR0_ST_LEVEL, IDR0 | IDR0_ATS] {
        for substream_bits in [2, 6, 7, 20] {
            let machine = Machine::found(idr0, IDR1 & !(0x1f << 6) | substream_bits << 6);
            machine.smmu.take_over().unwrap();
            // What the unit may remember from before the claim.
            assert!(write(&machine, 0).is_err());
            if idr0 & IDR0_ATS != 0 {
                machine.smmu.claim_with_device_tlb(near).unwrap();
            } else {
                machine.smmu.claim(near).unwrap();
            }
            assert!(write(&machine, 0).is_err());
            let mut used = machine.memory.used();
            for round in 0..3 {
                let host = (4 + 4 * round) * GIB;
                assert!(write(&machine, 0).is_err());
                let table = machine.table(host, 4 * MIB);
                machine.smmu.attach(near, tag(3), table).unwrap();
                assert_eq!(write(&machine, 0), Ok(host));
                assert!(write(&machine, 4 * MIB).is_err());
                let more = HostPhys(host + GIB);
                machine
                    .smmu
                    .map(table, Iova(4 * MIB), more, 2 * PAGE, true)
                    .unwrap();
                assert_eq!(write(&machine, 4 * MIB), Ok(host + GIB));
                machine.smmu.unmap(table, Iova(4 * MIB), 2 * PAGE).unwrap();
                assert!(write(&machine, 4 * MIB).is_err());
                machine.smmu.detach(near, tag(3)).unwrap();
                machine.smmu.destroy_table(table).unwrap();
                // Descriptor 0 brought the second level that tag 3 is in.
                assert_eq!(machine.memory.used(), used);
                used = machine.memory.used();
            }
            assert!(write(&machine, 0).is_err());
        }
    }
}

/// A device that never stops sending meets the old table, the new table, or a fault: at no moment an entry
/// that is half written, and nothing of the old once its end was confirmed.
#[test]
fn a_device_that_keeps_sending_sees_whole_entries_only() {
    let machine = Machine::found(IDR0, IDR1);
    machine.smmu.take_over().unwrap();
    machine.unit.state.lock().unwrap().noisy = vec![(STREAM, None), (STREAM, Some(1)), (STREAM, Some(2))];
    machine.smmu.claim(DEVICE).unwrap();
    let reached = |tag| {
        let mut state = machine.unit.state.lock().unwrap();
        Vec::from_iter(state.reached.remove(&tag).unwrap_or_default())
    };
    let beta = machine.table(64 * GIB, 2 * MIB);
    machine.attach(2, beta);
    for round in 1..4 {
        let host = round * 4 * GIB;
        let table = machine.smmu.create_table().unwrap();
        for (at, len) in [(0, PAGE), (MIB, PAGE)] {
            machine
                .smmu
                .map(table, Iova(at), HostPhys(host + at), len, true)
                .unwrap();
        }
        assert_eq!(reached(Some(1)), [0; 0]);
        machine.attach(1, table);
        machine.smmu.unmap(table, Iova(MIB), PAGE).unwrap();
        assert_eq!(reached(Some(1)), [host]);
        machine.detach(1);
        reached(Some(1));
        machine.smmu.destroy_table(table).unwrap();
        assert_eq!(machine.write(1, 0), Err(0x0a));
        assert_eq!(reached(Some(2)), [64 * GIB], "the neighbour never noticed");
    }
    assert_eq!(reached(None), [0; 0], "untagged traffic reaches no memory");
}

#[test]
fn the_order_is_descriptor_then_translations_then_device_tlb() {
    let machine = Machine::found(IDR0 | IDR0_ATS, IDR1);
    machine.smmu.take_over().unwrap();
    machine.unit.take_log();
    machine.smmu.claim_with_device_tlb(DEVICE).unwrap();
    assert_eq!(machine.unit.take_log(), ["STE", "sync", "STE", "sync"]);
    let table = machine.smmu.create_table().unwrap();
    machine
        .smmu
        .map(table, Iova(0), HostPhys(4 * GIB), 2 * PAGE, true)
        .unwrap();
    machine.attach(1, table);
    assert_eq!(machine.unit.take_log(), ["CD", "sync", "CD", "sync"]);
    machine.attach(2, table);
    let hold = || {
        machine
            .unit
            .state
            .lock()
            .unwrap()
            .device_tlbs
            .extend([(STREAM, 1), (STREAM, 2)])
    };
    hold();
    machine.unit.take_log();
    machine.smmu.unmap(table, Iova(0), 2 * PAGE).unwrap();
    assert_eq!(
        machine.unit.take_log(),
        ["VA", "VA", "sync", "device TLB", "device TLB", "sync"]
    );
    assert!(machine.unit.state.lock().unwrap().device_tlbs.is_empty());
    machine
        .smmu
        .map(table, Iova(0), HostPhys(4 * GIB), 2 * MIB, true)
        .unwrap();
    assert_eq!(machine.unit.take_log(), [""; 0], "a new mapping is seen at once");
    machine.smmu.unmap(table, Iova(0), 2 * MIB).unwrap();
    assert_eq!(machine.unit.take_log()[0], "ASID", "many pages at once");
    hold();
    machine.detach(1);
    assert_eq!(
        machine.unit.take_log(),
        ["CD", "sync", "ASID", "sync", "device TLB", "sync"]
    );
    let state = machine.unit.state.lock().unwrap();
    assert!(state.device_tlbs.iter().eq([&(STREAM, 2)]), "its own tag only");
}

#[test]
fn the_cost_of_an_attachment_does_not_depend_on_the_others() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    let cost = |pasid| {
        machine.unit.take_executed();
        machine.attach(pasid, table);
        let attach = machine.unit.take_executed();
        machine.detach(pasid);
        (attach, machine.unit.take_executed())
    };
    let alone = cost(1);
    assert_eq!(alone, (4, 4));
    for pasid in 1..=1000 {
        machine.attach(pasid, table);
    }
    assert_eq!(cost(1001), alone);
    let before = machine.smmu.commands_issued();
    machine.detach(500);
    assert_eq!(machine.smmu.commands_issued() - before, alone.1 as u64);
}
