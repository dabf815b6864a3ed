// SPDX-License-Identifier: MIT OR Apache-2.0
//! Units and devices that do not do what they should: a refusal within its time, never a hang, and nothing
//! reused that may still be in use.

use pasidon_kernel::irq::msi::MsiController;

use super::super::model::{ECAP_DT, FSTS_IQE, FSTS_ITE};
use super::*;
use crate::iommu::DeviceTlb;

/// Descriptor type of a PASID-cache invalidation.
const PASID_CACHE: u64 = 7;
/// Of an IOTLB invalidation.
const IOTLB: u64 = 2;

#[test]
fn the_queue_wraps() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    for round in 0..500 {
        machine.attach(1 + round % 3, table);
        assert!(machine.write(1 + round % 3, 0).is_ok());
        machine.detach(1 + round % 3);
        assert!(machine.write(1 + round % 3, 0).is_err());
    }
    assert!(machine.vtd.commands_issued() > 10 * 128);
}

#[test]
fn a_refused_descriptor_ends_in_a_refusal_and_can_be_tried_again() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    assert!(machine.write(1, 0).is_ok());
    machine.unit.state.lock().unwrap().refuse = Some((PASID_CACHE, 1));
    let refusal = machine.vtd.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("refused descriptor"), "{refusal}");
    assert_eq!(machine.unit.state.lock().unwrap().fsts & FSTS_IQE, 0);
    // The tag is taken and the table in use until the end is confirmed.
    assert!(
        machine.vtd.attach(DEVICE, tag(1), table).unwrap_err().refusal.remedy.contains("detach it again")
    );
    assert!(machine.vtd.destroy_table(table).is_err());
    machine.detach(1);
    assert!(machine.write(1, 0).is_err());
    machine.vtd.destroy_table(table).unwrap();
}

#[test]
fn a_silent_device_ends_in_a_refusal_until_it_answers() {
    let machine = VtdRig::found(CAP, ECAP | ECAP_DT, &dmar());
    machine.vtd.take_over().unwrap();
    machine.vtd.claim_with_device_tlb(DEVICE, DeviceTlb { queue_depth: 1 }).unwrap();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.unit.state.lock().unwrap().silent_devices = 1;
    let refusal = machine.vtd.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("did not answer"), "{refusal}");
    assert!(refusal.remedy.contains("reset the device"), "{refusal}");
    assert_eq!(machine.unit.state.lock().unwrap().fsts & FSTS_ITE, 0);
    assert!(machine.vtd.destroy_table(table).is_err());
    machine.detach(1);
    machine.vtd.destroy_table(table).unwrap();
}

#[test]
fn a_stuck_unit_ends_in_a_refusal() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.unit.state.lock().unwrap().stuck = true;
    // More often than the queue has room for.
    for _ in 0..100 {
        let refusal = machine.vtd.detach(DEVICE, tag(1)).unwrap_err();
        assert!(refusal.what.contains("vtd 0xfed90000"), "{refusal}");
    }
    assert!(machine.vtd.destroy_table(table).is_err());
    assert!(machine.vtd.unmap(table, Iova(0), PAGE).is_err());
}

/// Pages whose invalidation failed are freed only by one that worked, even where nothing is left to
/// unmap.
#[test]
fn a_failed_unmap_is_made_up_for() {
    let machine = VtdRig::new();
    let table = machine.vtd.create_table().unwrap();
    machine.vtd.map(table, Iova(0), HostPhys(4 * GIB), PAGE, true).unwrap();
    machine.attach(1, table);
    assert!(machine.write(1, 0).is_ok());
    let used = machine.memory.used();
    machine.unit.state.lock().unwrap().refuse = Some((IOTLB, 1));
    assert!(machine.vtd.unmap(table, Iova(0), PAGE).is_err());
    assert_eq!(machine.memory.used(), used, "nothing freed yet");
    assert!(machine.write(1, 0).is_ok(), "the unit does remember");
    machine.vtd.unmap(table, Iova(0), PAGE).unwrap();
    assert!(machine.write(1, 0).is_err());
    assert_eq!(machine.memory.used(), used - 3, "three levels below the root");
}

#[test]
fn a_mapping_without_memory_leaves_no_trace() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    let used = machine.memory.used();
    for left in 0..4 {
        machine.memory.limit(left);
        // 2 MiB and a page, at a place that needs tables of all levels twice.
        let at = Iova(512 * GIB - 2 * MIB);
        assert!(machine.vtd.map(table, at, HostPhys(8 * GIB), 2 * MIB + PAGE, true).is_err());
        assert_eq!(machine.memory.used(), used);
        assert!(machine.write(1, at.0).is_err());
        assert!(machine.write(1, 0).is_ok());
    }
    machine.memory.limit(0);
    let refusal = machine.vtd.unmap(table, Iova(0), PAGE).unwrap_err();
    assert!(refusal.what.contains("splitting"), "{refusal}");
    assert_eq!(machine.write(1, 0), Ok(4 * GIB), "as before");
    assert!(machine.vtd.create_table().is_err());
    assert!(machine.vtd.claim(Requester::new(0, 1, 0, 0)).is_err());
    assert!(machine.vtd.attach(DEVICE, tag(100), table).is_err());
    machine.memory.limit(100);
    machine.attach(100, table);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    let map = |iova, host, len| {
        machine.vtd.map(table, Iova(iova), HostPhys(host), len, true).map_err(|refusal| refusal.why)
    };
    assert!(map(PAGE, 8 * GIB, PAGE).unwrap_err().contains("mapped already"));
    assert!(map(0xfee0_0000, 8 * GIB, PAGE).unwrap_err().contains("interrupt range"));
    assert!(map(2 * GIB, 8 * GIB, 4 * GIB).unwrap_err().contains("interrupt range"));
    for (iova, host, len) in [
        (4 * GIB, 8 * GIB, 0),
        (4 * GIB, 8 * GIB, 100),
        (4 * GIB + 1, 8 * GIB, PAGE),
        (4 * GIB, 8 * GIB + 1, PAGE),
        (1 << 48, 8 * GIB, PAGE),
        (u64::MAX - PAGE + 1, 8 * GIB, PAGE),
        (4 * GIB, 1 << 46, PAGE),
    ] {
        assert!(map(iova, host, len).is_err(), "{iova:#x} {host:#x} {len:#x}");
    }
    assert!(machine.vtd.claim(DEVICE).unwrap_err().why.contains("claimed already"));
    assert!(machine.vtd.attach(Requester::new(0, 1, 0, 0), tag(1), table).is_err());
    assert!(machine.vtd.attach(DEVICE, tag(1), TableId(99)).is_err());
    assert!(machine.vtd.attach(DEVICE, tag(1), TableId(0x1_0000 + table.0)).is_err());
    machine.attach(1, table);
    assert!(machine.vtd.attach(DEVICE, tag(1), table).unwrap_err().refusal.why.contains("attached already"));
    assert!(machine.vtd.unmap_interrupt(3).is_err());
    assert!(machine.vtd.unmap_interrupt(u32::MAX).is_err());
}
