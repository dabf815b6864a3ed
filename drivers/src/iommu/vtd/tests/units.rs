// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several units behind one interface, and several processors at once.

use std::collections::BTreeMap;

use pasidon_kernel::irq::HostVector;
use pasidon_kernel::irq::msi::MsiController;

use super::super::dmar::{DeviceScope, ScopeKind};
use super::super::model::{CAP_CM, CAP_PI, ECAP_C, ECAP_SC, ECAP_SMPWCS, Raised};
use super::*;
use crate::pci::BusRange;

/// A device behind the bridge 00:03.0 that the second unit serves.
const BEHIND_BRIDGE: Requester = Requester::new(0, 5, 0, 0);
const FIRST: u64 = 0xfed9_0000;
const SECOND: u64 = 0xfed9_1000;
/// The type of a descriptor that invalidates an IOTLB.
const IOTLB: u64 = 2;

struct TwoUnits {
    vtd: Vtd<ModelRegisters, ModelMemory>,
    units: BTreeMap<u64, Arc<UnitModel>>,
}

/// The first unit takes what is left, the second the bridge and what is behind it.
fn two_units(first: (u64, u64), second: (u64, u64)) -> TwoUnits {
    let mut dmar = dmar();
    dmar.units.push(Drhd {
        registers: HostPhys(SECOND),
        registers_len: 0x1000,
        segment: 0,
        include_all: false,
        scopes: vec![DeviceScope {
            kind: ScopeKind::Bridge,
            enumeration: 0,
            start_bus: 0,
            path: vec![(3, 0)],
        }],
    });
    let memory = Arc::new(ModelMemory::new());
    let units = BTreeMap::from([
        (FIRST, UnitModel::new(&memory, first.0, first.1)),
        (SECOND, UnitModel::new(&memory, second.0, second.1)),
    ]);
    let host = Box::leak(Box::new(ModelHost::default()));
    let bridges = |bridge: Requester| {
        (bridge == Requester::new(0, 0, 3, 0)).then_some(BusRange { secondary: 5, subordinate: 6 })
    };
    let vtd = Vtd::new(&dmar, memory, host, true, &bridges, &mut |base, _| {
        Ok(ModelRegisters(Arc::clone(&units[&base.0])))
    })
    .unwrap();
    vtd.take_over().unwrap();
    vtd.claim(DEVICE).unwrap();
    vtd.claim(BEHIND_BRIDGE).unwrap();
    TwoUnits { vtd, units }
}

#[test]
fn one_table_serves_devices_of_two_units() {
    let machine = two_units((CAP, ECAP), (CAP, ECAP));
    let [first, second] = [&machine.units[&FIRST], &machine.units[&SECOND]];
    let table = machine.vtd.create_table().unwrap();
    machine.vtd.map(table, Iova(0), HostPhys(4 * GIB), 2 * MIB, true).unwrap();
    machine.vtd.attach(DEVICE, tag(1), table).unwrap();
    machine.vtd.attach(BEHIND_BRIDGE, tag(1), table).unwrap();
    assert_eq!(first.dma(DEVICE.rid, Some(1), 0, true), Ok(4 * GIB));
    assert_eq!(second.dma(BEHIND_BRIDGE.rid, Some(1), 0, true), Ok(4 * GIB));
    // A device is known to its own unit only.
    assert!(second.dma(DEVICE.rid, Some(1), 0, true).is_err());

    machine.vtd.unmap(table, Iova(0), PAGE).unwrap();
    assert!(first.dma(DEVICE.rid, Some(1), 0, true).is_err());
    assert!(second.dma(BEHIND_BRIDGE.rid, Some(1), 0, true).is_err());

    // Unmapping asks only the units that know the table.
    machine.vtd.detach(DEVICE, tag(1)).unwrap();
    first.take_executed();
    machine.vtd.unmap(table, Iova(PAGE), PAGE).unwrap();
    assert_eq!(first.take_executed(), 0);
    machine.vtd.detach(BEHIND_BRIDGE, tag(1)).unwrap();
    machine.vtd.destroy_table(table).unwrap();
}

/// Whichever of them it is.
#[test]
fn a_unit_that_refuses_keeps_the_other_from_nothing() {
    for stuck in [FIRST, SECOND] {
        let machine = two_units((CAP, ECAP), (CAP, ECAP));
        let table = machine.vtd.create_table().unwrap();
        machine.vtd.map(table, Iova(0), HostPhys(4 * GIB), 2 * MIB, true).unwrap();
        let places = [(FIRST, DEVICE), (SECOND, BEHIND_BRIDGE)];
        let send = |(unit, device): (u64, Requester)| machine.units[&unit].dma(device.rid, Some(1), 0, true);
        for place in places {
            machine.vtd.attach(place.1, tag(1), table).unwrap();
            assert_eq!(send(place), Ok(4 * GIB));
        }
        machine.units[&stuck].state.lock().unwrap().refuse = Some((IOTLB, 1));
        assert!(machine.vtd.unmap(table, Iova(0), 2 * MIB).is_err());
        let sent = places.map(|place| send(place).is_err());
        assert_eq!(sent, places.map(|(unit, _)| unit != stuck));
        // What it left undone is made up for, and both let go of the table.
        machine.vtd.unmap(table, Iova(0), 2 * MIB).unwrap();
        assert!(places.iter().all(|&place| send(place).is_err()));
        for (_, device) in places {
            machine.vtd.detach(device, tag(1)).unwrap();
        }
        machine.vtd.destroy_table(table).unwrap();
    }
}

/// A tag leads to one table on one unit and to another on the other, and each replacement is its own unit's.
#[test]
fn a_replacement_concerns_one_unit() {
    let machine = two_units((CAP, ECAP), (CAP, ECAP));
    let [first, second] = [&machine.units[&FIRST], &machine.units[&SECOND]];
    let [old, new] = [4 * GIB, 8 * GIB].map(|host| {
        let table = machine.vtd.create_table().unwrap();
        machine.vtd.map(table, Iova(0), HostPhys(host), 2 * MIB, true).unwrap();
        table
    });
    machine.vtd.attach(DEVICE, tag(1), old).unwrap();
    machine.vtd.attach(BEHIND_BRIDGE, tag(2), old).unwrap();
    let reached =
        || [first.dma(DEVICE.rid, Some(1), 0, true), second.dma(BEHIND_BRIDGE.rid, Some(2), 0, true)];
    assert_eq!(reached(), [Ok(4 * GIB), Ok(4 * GIB)]);
    second.take_executed();
    machine.vtd.replace(DEVICE, tag(1), new).unwrap();
    assert_eq!(second.take_executed(), 0);
    assert_eq!(reached(), [Ok(8 * GIB), Ok(4 * GIB)]);
    assert!(machine.vtd.destroy_table(old).is_err(), "the other unit knows it");
    machine.vtd.replace(BEHIND_BRIDGE, tag(2), new).unwrap();
    assert_eq!(reached(), [Ok(8 * GIB), Ok(8 * GIB)]);
    machine.vtd.destroy_table(old).unwrap();
}

#[test]
fn unequal_units_share_what_both_can_do() {
    let one_gib = 1 << 35;
    let wide = (CAP, ECAP | ECAP_SC | ECAP_C | ECAP_SMPWCS);
    // 3 levels too, no 1 GiB leaves, 16 bits of PASID, caching mode, not coherent, no snoop control.
    let narrow = (CAP & !one_gib | CAP_CM, ECAP & !(0x1f << 35) | 15 << 35);
    let machine = two_units(wide, narrow);
    let capabilities = machine.vtd.capabilities();
    assert_eq!((capabilities.pasid_bits, capabilities.largest_page), (16, 2 * MIB));
    let table = machine.vtd.create_table().unwrap();
    machine.vtd.attach(DEVICE, tag(1), table).unwrap();
    machine.vtd.attach(BEHIND_BRIDGE, tag(1), table).unwrap();
    for (unit, device) in [(FIRST, DEVICE), (SECOND, BEHIND_BRIDGE)] {
        assert!(machine.units[&unit].dma(device.rid, Some(1), 0, true).is_err());
    }
    machine.vtd.map(table, Iova(0), HostPhys(4 * GIB), GIB, true).unwrap();
    for (unit, device) in [(FIRST, DEVICE), (SECOND, BEHIND_BRIDGE)] {
        assert_eq!(machine.units[&unit].dma(device.rid, Some(1), 0, true), Ok(4 * GIB));
    }
}

#[test]
fn handles_and_faults_belong_to_their_unit() {
    let machine = two_units((CAP, ECAP), (CAP, ECAP));
    let [first, second] = [&machine.units[&FIRST], &machine.units[&SECOND]];
    let target = HostVector { vector: 0x41, cpu: 1 };
    let near = machine.vtd.map_interrupt(DEVICE, target).unwrap();
    let far = machine.vtd.map_interrupt(BEHIND_BRIDGE, target).unwrap();
    assert_ne!(near.handle, far.handle);
    machine.vtd.unmap_interrupt(near.handle).unwrap();
    assert!(first.message(DEVICE.rid, near.message.address, 0).is_err());
    assert_eq!(
        second.message(BEHIND_BRIDGE.rid, far.message.address, 0),
        Ok(Raised::Vector { destination: 1, vector: 0x41 })
    );
    second.dma(BEHIND_BRIDGE.rid, Some(9), 0, true).unwrap_err();
    let faults = look(&machine.vtd).complete();
    let requesters: Vec<_> = faults.iter().map(|fault| fault.requester).collect();
    assert_eq!(requesters, [DEVICE, BEHIND_BRIDGE]);
}

#[test]
fn each_unit_says_whether_it_posts() {
    let machine = two_units((CAP, ECAP), (CAP | CAP_PI, ECAP));
    assert_eq!([DEVICE, BEHIND_BRIDGE].map(|device| machine.vtd.can_post(device)), [false, true]);
    assert!(!machine.vtd.can_post(Requester::new(1, 0, 0, 0)), "of no unit");
}

#[test]
fn a_mapping_that_cannot_be_announced_is_taken_back() {
    let machine = VtdRig::with(CAP | CAP_CM, ECAP);
    let table = machine.vtd.create_table().unwrap();
    machine.attach(1, table);
    assert!(machine.write(1, 0).is_err());
    let map = || machine.vtd.map(table, Iova(0), HostPhys(4 * GIB), 2 * MIB, true);
    machine.unit.state.lock().unwrap().refuse = Some((2, 1));
    assert!(map().unwrap_err().why.contains("refused descriptor"));
    assert!(machine.write(1, 0).is_err());
    map().unwrap();
    assert_eq!(machine.write(1, 0), Ok(4 * GIB));
}

#[test]
fn an_attachment_that_cannot_be_announced_keeps_its_tag() {
    let machine = VtdRig::with(CAP | CAP_CM, ECAP);
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.unit.state.lock().unwrap().refuse = Some((7, 1));
    let failed = machine.vtd.attach(DEVICE, tag(1), table).unwrap_err();
    assert!(failed.tag_kept && machine.is_taken(1), "something is left behind");
    let failed = machine.vtd.attach(DEVICE, tag(0), table).unwrap_err();
    assert!(!failed.tag_kept && !machine.is_taken(0), "a clean refusal");
    assert!(machine.write(1, 0).is_err());
    assert!(machine.vtd.destroy_table(table).is_err());
    machine.detach(1);
    assert!(!machine.is_taken(1));
    machine.vtd.destroy_table(table).unwrap();
}

#[test]
fn domain_identifiers_go_round_and_run_out() {
    // CAP.ND = 0: 4 bits.
    let machine = VtdRig::with(CAP & !7, ECAP);
    let tables: Vec<_> = (0..15).map(|_| machine.vtd.create_table().unwrap()).collect();
    assert!(machine.vtd.create_table().unwrap_err().why.contains("all 15 domain"));
    for table in &tables[..2] {
        machine.vtd.destroy_table(*table).unwrap();
    }
    assert_eq!(machine.vtd.create_table().unwrap(), tables[0]);
    machine.vtd.destroy_table(tables[0]).unwrap();
    assert_eq!(machine.vtd.create_table().unwrap(), tables[1], "the longest unused");
}

#[test]
fn processors_work_at_once() {
    let machine = VtdRig::new();
    std::thread::scope(|scope| {
        for pasid in 1..=4 {
            let machine = &machine;
            scope.spawn(move || {
                let host = u64::from(pasid) * 4 * GIB;
                for _ in 0..50 {
                    let table = machine.table(host, 2 * MIB);
                    machine.attach(pasid, table);
                    assert_eq!(machine.write(pasid, PAGE), Ok(host + PAGE));
                    machine.vtd.unmap(table, Iova(0), 2 * MIB).unwrap();
                    assert!(machine.write(pasid, PAGE).is_err());
                    machine.detach(pasid);
                    machine.vtd.destroy_table(table).unwrap();
                }
            });
        }
        for _ in 0..50 {
            let seen = look(&machine.vtd);
            assert!(seen.faults.iter().all(|fault| fault.requester == DEVICE));
        }
    });
}
