// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reaches what, and what is left of it afterwards.

use super::super::model::{CAP_CM, CAP_PSI, CAP_RWBF, ECAP_C, ECAP_DT, ECAP_SC, ECAP_SMPWCS};
use super::*;
use crate::iommu::vtd::DeviceTlb;

#[test]
fn an_attached_table_translates() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 64 * MIB);
    machine.attach(5, table);
    assert_eq!(machine.read(5, 0x1234), Ok(4 * GIB + 0x1234));
    assert_eq!(machine.write(5, 64 * MIB - 1), Ok(4 * GIB + 64 * MIB - 1));
    assert!(machine.read(5, 64 * MIB).is_err());
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
    assert_eq!(machine.write(1, 0), Err(0x59));
    assert_eq!(machine.write(2, 0), Ok(4 * GIB));
    assert!(
        machine
            .vtd
            .destroy_table(table)
            .unwrap_err()
            .why
            .contains("attached 1 times")
    );
    machine.detach(2);
    machine.vtd.destroy_table(table).unwrap();
}

#[test]
fn what_is_not_claimed_or_not_tagged_is_blocked() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    // Another bus, another function of the same bus, and the claimed device without a tag.
    assert_eq!(machine.unit.dma(0x0020, None, 0, true), Err(0x39));
    assert_eq!(machine.unit.dma(DEVICE.rid + 1, Some(1), 0, true), Err(0x41));
    assert_eq!(machine.unit.dma(DEVICE.rid, None, 0, true), Err(0x59));
    // A tag nobody attached, near and far from one that is.
    assert_eq!(machine.write(2, 0), Err(0x59));
    assert_eq!(machine.write(0xf_ffff, 0), Err(0x51));
    // Tag 0 stands for untagged DMA.
    assert!(machine.vtd.attach(DEVICE, tag(0), table).is_err());
}

#[test]
fn a_detached_tag_faults() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(7, table);
    assert!(machine.write(7, 0).is_ok());
    machine.detach(7);
    assert_eq!(machine.write(7, 0), Err(0x59));
    assert!(machine.vtd.detach(DEVICE, tag(7)).is_err());
}

/// The reuse test: fails where the PASID-cache invalidation is left out.
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
    machine.vtd.destroy_table(old).unwrap();
}

#[test]
fn every_large_tag_can_be_attached() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    for pasid in [1, 63, 64, 8191, 8192, 0xf_ffff] {
        machine.attach(pasid, table);
        assert_eq!(machine.write(pasid, 8), Ok(4 * GIB + 8));
    }
    for pasid in [1, 63, 64, 8191, 8192, 0xf_ffff] {
        machine.detach(pasid);
        assert_eq!(machine.write(pasid, 8), Err(0x59));
    }
}

#[test]
fn a_narrow_unit_refuses_wide_tags() {
    // PSS = 0: one bit.
    let machine = Machine::with(CAP, ECAP & !(0x1f << 35));
    assert_eq!(machine.vtd.capabilities().pasid_bits, 1);
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    assert!(
        machine
            .vtd
            .attach(DEVICE, tag(2), table)
            .unwrap_err()
            .why
            .contains("ECAP.PSS")
    );
}

#[test]
fn an_unmapped_range_is_gone_and_its_neighbours_are_not() {
    let machine = Machine::new();
    let table = machine.table(4 * GIB, 2 * GIB);
    machine.attach(1, table);
    let gone = 3 * MIB + 5 * PAGE;
    for at in [gone - PAGE, gone, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert_eq!(machine.write(1, at), Ok(4 * GIB + at));
    }
    machine.vtd.unmap(table, Iova(gone), PAGE).unwrap();
    assert!(machine.write(1, gone).is_err());
    for at in [gone - PAGE, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert_eq!(machine.write(1, at), Ok(4 * GIB + at));
    }
    // A range whose cover starts before it.
    let start = 16 * MIB + 5 * PAGE;
    assert!(machine.write(1, start).is_ok());
    machine.vtd.unmap(table, Iova(start), 3 * PAGE).unwrap();
    assert!(machine.write(1, start).is_err());
    machine.vtd.unmap(table, Iova(0), 2 * GIB).unwrap();
    for at in [gone - PAGE, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert!(machine.write(1, at).is_err());
    }
}

#[test]
fn a_read_only_mapping_takes_no_write() {
    let machine = Machine::new();
    let table = machine.vtd.create_table().unwrap();
    machine
        .vtd
        .map(table, Iova(0), HostPhys(4 * GIB), PAGE, false)
        .unwrap();
    machine.attach(1, table);
    assert_eq!(machine.read(1, 0), Ok(4 * GIB));
    assert_eq!(machine.write(1, 0), Err(0x85));
}

/// The same life on every kind of unit: with and without coherency, caching mode, write buffers,
/// page-selective invalidation, snoop control, 3 levels, no large pages, device TLBs.
#[test]
fn one_life_on_every_kind_of_unit() {
    let no_2m_1g = !(0b11 << 34);
    let no_4_levels = !(1 << 10);
    for cap in [
        CAP,
        CAP | CAP_CM,
        CAP | CAP_RWBF,
        CAP & !CAP_PSI,
        CAP & no_2m_1g,
        CAP & no_4_levels,
        CAP & no_4_levels | CAP_CM | CAP_RWBF,
    ] {
        for extra in [
            0,
            ECAP_C,
            ECAP_C | ECAP_SMPWCS,
            ECAP_SC,
            ECAP_DT | ECAP_SC | ECAP_C,
        ] {
            let machine = Machine::found(cap, ECAP | extra, &dmar());
            machine.vtd.take_over().unwrap();
            // What a unit in caching mode may remember from before the claim.
            assert!(machine.write(3, 0).is_err());
            if extra & ECAP_DT != 0 {
                machine
                    .vtd
                    .claim_with_device_tlb(DEVICE, DeviceTlb { queue_depth: 8 })
                    .unwrap();
            } else {
                machine.vtd.claim(DEVICE).unwrap();
            }
            let used = machine.memory.used();
            for round in 0..3 {
                let host = (4 + 4 * round) * GIB;
                assert!(machine.write(3, 0).is_err());
                let table = machine.table(host, 4 * MIB);
                machine.attach(3, table);
                assert_eq!(machine.write(3, 0), Ok(host));
                assert!(machine.write(3, 4 * MIB).is_err());
                machine
                    .vtd
                    .map(table, Iova(4 * MIB), HostPhys(host + GIB), 2 * PAGE, true)
                    .unwrap();
                assert_eq!(machine.write(3, 4 * MIB), Ok(host + GIB));
                machine.vtd.unmap(table, Iova(4 * MIB), 2 * PAGE).unwrap();
                assert!(machine.write(3, 4 * MIB).is_err());
                machine.detach(3);
                machine.vtd.destroy_table(table).unwrap();
            }
            assert!(machine.write(3, 0).is_err());
            // The PASID table of the first attachment stays.
            assert_eq!(machine.memory.used(), used + 1);
        }
    }
}

/// A device that never stops sending meets the old table, the new table, or a fault: at no moment an entry
/// that is half written, and nothing of the old once its end was confirmed.
#[test]
fn a_device_that_keeps_sending_sees_whole_entries_only() {
    for cap in [CAP, CAP | CAP_CM, CAP | CAP_RWBF] {
        for extra in [0, ECAP_C | ECAP_SMPWCS] {
            let machine = Machine::with(cap, ECAP | extra);
            machine.unit.state.lock().unwrap().noisy = vec![(DEVICE.rid, 1), (DEVICE.rid, 2)];
            let reached = |tag| {
                let mut state = machine.unit.state.lock().unwrap();
                Vec::from_iter(state.reached.remove(&tag).unwrap_or_default())
            };
            let beta = machine.table(64 * GIB, 2 * MIB);
            machine.attach(2, beta);
            for round in 1..4 {
                let host = round * 4 * GIB;
                let table = machine.table(host, 2 * MIB);
                assert_eq!(reached(1), [0; 0]);
                machine.attach(1, table);
                machine.vtd.unmap(table, Iova(MIB), PAGE).unwrap();
                assert_eq!(reached(1), [host]);
                machine.detach(1);
                reached(1);
                machine.vtd.destroy_table(table).unwrap();
                assert_eq!(machine.write(1, 0), Err(0x59));
                assert_eq!(reached(2), [64 * GIB], "the neighbour never noticed");
            }
        }
    }
}

#[test]
fn the_order_is_pasid_cache_then_iotlb_then_device_tlb() {
    let machine = Machine::found(CAP, ECAP | ECAP_DT, &dmar());
    machine.vtd.take_over().unwrap();
    machine
        .vtd
        .claim_with_device_tlb(DEVICE, DeviceTlb { queue_depth: 32 })
        .unwrap();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.attach(2, table);
    machine
        .unit
        .state
        .lock()
        .unwrap()
        .device_tlbs
        .extend([(DEVICE.rid, 1), (DEVICE.rid, 2)]);
    machine.unit.take_log();
    machine.vtd.unmap(table, Iova(0), PAGE).unwrap();
    assert_eq!(
        machine.unit.take_log(),
        ["IOTLB", "fence", "device TLB", "device TLB", "fence"]
    );
    machine
        .unit
        .state
        .lock()
        .unwrap()
        .device_tlbs
        .extend([(DEVICE.rid, 1), (DEVICE.rid, 2)]);
    machine.detach(1);
    assert_eq!(
        machine.unit.take_log(),
        ["PASID cache", "fence", "IOTLB", "fence", "device TLB", "fence"]
    );
    let state = machine.unit.state.lock().unwrap();
    assert!(
        state.device_tlbs.iter().eq([&(DEVICE.rid, 2)]),
        "its own tag only"
    );
}

#[test]
fn the_cost_of_an_attachment_does_not_depend_on_the_others() {
    for cap in [CAP, CAP | CAP_CM] {
        let machine = Machine::with(cap, ECAP);
        let table = machine.table(4 * GIB, 2 * MIB);
        let cost = |pasid| {
            machine.unit.take_executed();
            machine.attach(pasid, table);
            let attach = machine.unit.take_executed();
            machine.detach(pasid);
            (attach, machine.unit.take_executed())
        };
        let alone = cost(1);
        for pasid in 1..=1000 {
            machine.attach(pasid, table);
        }
        assert_eq!(cost(1001), alone);
        let before = machine.vtd.commands_issued();
        machine.detach(500);
        assert_eq!(machine.vtd.commands_issued() - before, alone.1 as u64);
    }
}
