// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reaches what, and what is left of it afterwards.

use super::super::model::{CAP_CM, CAP_PSI, CAP_RWBF, ECAP_C, ECAP_DT, ECAP_SC, ECAP_SMPWCS};
use super::*;
use crate::iommu::DeviceTlb;
use crate::iommu::suite::isolation_tests;

isolation_tests!(VtdRig);

#[test]
fn what_is_not_claimed_or_not_tagged_is_blocked() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    // Another bus, another function of the same bus, and the claimed device without a tag.
    assert_eq!(machine.unit.dma(0x0020, None, 0, true), Err(0x39));
    assert_eq!(machine.unit.dma(DEVICE.rid + 1, Some(1), 0, true), Err(0x41));
    assert_eq!(machine.unit.dma(DEVICE.rid, None, 0, true), Err(0x59));
}

#[test]
fn a_narrow_unit_refuses_wide_tags() {
    // PSS = 0: one bit.
    let machine = VtdRig::with(CAP, ECAP & !(0x1f << 35));
    assert_eq!(machine.vtd.capabilities().pasid_bits, 1);
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    assert!(machine.vtd.attach(DEVICE, tag(2), table).unwrap_err().refusal.why.contains("ECAP.PSS"));
}

#[test]
fn an_unmapped_range_is_gone_and_its_neighbours_are_not() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * GIB);
    machine.attach(1, table);
    let gone = 3 * MIB + 5 * PAGE;
    for at in [gone - PAGE, gone, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert_eq!(machine.write(1, at), Ok(4 * GIB + at));
    }
    machine.unmap(table, gone, PAGE);
    assert!(machine.write(1, gone).is_err());
    for at in [gone - PAGE, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert_eq!(machine.write(1, at), Ok(4 * GIB + at));
    }
    // A range whose cover starts before it.
    let start = 16 * MIB + 5 * PAGE;
    assert!(machine.write(1, start).is_ok());
    machine.unmap(table, start, 3 * PAGE);
    assert!(machine.write(1, start).is_err());
    machine.unmap(table, 0, 2 * GIB);
    for at in [gone - PAGE, gone + PAGE, 0, 2 * GIB - PAGE] {
        assert!(machine.write(1, at).is_err());
    }
}

#[test]
fn the_order_is_pasid_cache_then_iotlb_then_device_tlb() {
    let machine = VtdRig::found(CAP, ECAP | ECAP_DT, &dmar());
    machine.vtd.take_over().unwrap();
    machine.vtd.claim_with_device_tlb(DEVICE, DeviceTlb { queue_depth: 32 }).unwrap();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.attach(2, table);
    let hold = || {
        let mut state = machine.unit.state.lock().unwrap();
        state.device_tlbs.extend([(DEVICE.rid, 1), (DEVICE.rid, 2)]);
    };
    hold();
    machine.unit.take_log();
    machine.unmap(table, 0, PAGE);
    assert_eq!(machine.unit.take_log(), ["IOTLB", "fence", "device TLB", "device TLB", "fence"]);
    hold();
    machine.detach(1);
    assert_eq!(machine.unit.take_log(), ["PASID cache", "fence", "IOTLB", "fence", "device TLB", "fence"]);
    let state = machine.unit.state.lock().unwrap();
    assert!(state.device_tlbs.iter().eq([&(DEVICE.rid, 2)]), "its own tag only");
}

/// With and without coherency, caching mode, write buffers, page-selective invalidation, snoop control, 3 levels, no
/// large pages, device TLBs.
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
        for extra in [0, ECAP_C, ECAP_C | ECAP_SMPWCS, ECAP_SC, ECAP_DT | ECAP_SC | ECAP_C] {
            let machine = VtdRig::found(cap, ECAP | extra, &dmar());
            machine.vtd.take_over().unwrap();
            // What a unit in caching mode may remember from before the claim.
            assert!(machine.write(3, 0).is_err());
            if extra & ECAP_DT != 0 {
                machine.vtd.claim_with_device_tlb(DEVICE, DeviceTlb { queue_depth: 8 }).unwrap();
            } else {
                machine.vtd.claim(DEVICE).unwrap();
            }
            // The PASID table of the first attachment stays.
            assert_eq!(suite::one_life(&machine, DEVICE), 1);
        }
    }
}

#[test]
fn a_device_that_keeps_sending_sees_whole_entries_only() {
    for cap in [CAP, CAP | CAP_CM, CAP | CAP_RWBF] {
        for extra in [0, ECAP_C | ECAP_SMPWCS] {
            let machine = VtdRig::with(cap, ECAP | extra);
            machine.unit.state.lock().unwrap().noisy = vec![(DEVICE.rid, 1), (DEVICE.rid, 2)];
            suite::a_device_that_keeps_sending_sees_whole_entries_only(&machine, &[(0, 2 * MIB)]);
        }
    }
}

#[test]
fn the_cost_of_an_attachment_does_not_depend_on_the_others() {
    for cap in [CAP, CAP | CAP_CM] {
        let machine = VtdRig::with(cap, ECAP);
        suite::the_cost_of_an_attachment_does_not_depend_on_the_others(&machine);
    }
}
