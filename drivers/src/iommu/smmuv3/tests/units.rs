// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several SMMUs behind one interface.

use std::collections::BTreeMap;

use super::super::model::{IDR0_ASID16, IDR0_CD2L};
use super::*;

/// A device of the first unit, one of the second, and their units' registers.
const NEAR: Requester = DEVICE;
const FAR: Requester = Requester::new(0, 0x41, 0, 0);
const FIRST: u64 = 0x905_0000;
const SECOND: u64 = 0xc00_0000;
const PLACES: [(u64, Requester); 2] = [(FIRST, NEAR), (SECOND, FAR)];
/// CMD_TLBI_NH_ASID.
const FORGET_TABLE: u64 = 0x11;

struct TwoUnits {
    smmu: Smmu<ModelRegisters, ModelMemory>,
    units: BTreeMap<u64, Arc<UnitModel>>,
}

impl TwoUnits {
    fn new(first: u32, second: u32) -> Self {
        let memory = Arc::new(ModelMemory::new());
        let units = BTreeMap::from([
            (FIRST, UnitModel::new(&memory, first, IDR1)),
            (SECOND, UnitModel::new(&memory, second, IDR1)),
        ]);
        let host = Box::leak(Box::new(ModelHost::default()));
        let iort = iort::tests::machine_with_two_units();
        let smmu = Smmu::new(iort, memory, host, &[HostPhys(DOORBELL)], &mut |base, _| {
            Ok(ModelRegisters(Arc::clone(&units[&base.0])))
        })
        .unwrap();
        smmu.take_over().unwrap();
        for (_, device) in PLACES {
            smmu.claim(device).unwrap();
        }
        Self { smmu, units }
    }

    /// A table with 2 MiB at 0 that lead there.
    fn table(&self, host: u64) -> pasidon_kernel::dma::iommu::TableId {
        let table = self.smmu.create_table().unwrap();
        self.smmu.map(table, Iova(0), HostPhys(host), 2 * MIB, true).unwrap();
        table
    }

    /// A write to 0 by the device with its tag.
    fn send(&self, (unit, device): (u64, Requester), tag: u32) -> Result<u64, Code> {
        self.units[&unit].dma(device.rid.into(), Some(tag), 0, true)
    }
}

#[test]
fn one_table_serves_devices_of_two_units() {
    let machine = TwoUnits::new(IDR0, IDR0);
    let table = machine.table(4 * GIB);
    for place in PLACES {
        machine.smmu.attach(place.1, tag(1), table).unwrap();
        assert_eq!(machine.send(place, 1), Ok(4 * GIB));
    }
    // A device is known to its own unit only.
    assert!(machine.send((SECOND, NEAR), 1).is_err());
    assert!(machine.send((FIRST, FAR), 1).is_err());
    assert_eq!(look(&machine.smmu).strangers.len(), 2, "nobody's streams there");
    machine.smmu.unmap(table, Iova(0), 2 * MIB).unwrap();
    for place in PLACES {
        machine.send(place, 1).unwrap_err();
    }
    let requesters: Vec<_> = look(&machine.smmu).complete().iter().map(|fault| fault.requester).collect();
    assert_eq!(requesters, [NEAR, FAR]);

    // Only the units that know the table are asked.
    machine.smmu.detach(NEAR, tag(1)).unwrap();
    machine.units[&FIRST].take_executed();
    machine.smmu.map(table, Iova(0), HostPhys(4 * GIB), 2 * MIB, true).unwrap();
    machine.smmu.unmap(table, Iova(0), 2 * MIB).unwrap();
    assert_eq!(machine.units[&FIRST].take_executed(), 0);
    machine.smmu.detach(FAR, tag(1)).unwrap();
    machine.smmu.destroy_table(table).unwrap();
}

/// Whichever of them it is.
#[test]
fn a_unit_that_refuses_keeps_the_other_from_nothing() {
    for stuck in [FIRST, SECOND] {
        let machine = TwoUnits::new(IDR0, IDR0);
        let table = machine.table(4 * GIB);
        for place in PLACES {
            machine.smmu.attach(place.1, tag(1), table).unwrap();
            assert_eq!(machine.send(place, 1), Ok(4 * GIB));
        }
        machine.units[&stuck].state.lock().unwrap().refuse = Some((FORGET_TABLE, 1));
        assert!(machine.smmu.unmap(table, Iova(0), 2 * MIB).is_err());
        let sent = PLACES.map(|place| machine.send(place, 1).is_err());
        assert_eq!(sent, PLACES.map(|(unit, _)| unit != stuck));
        machine.smmu.unmap(table, Iova(0), 2 * MIB).unwrap();
        assert!(PLACES.iter().all(|&place| machine.send(place, 1).is_err()));
        for (_, device) in PLACES {
            machine.smmu.detach(device, tag(1)).unwrap();
        }
        machine.smmu.destroy_table(table).unwrap();
    }
}

/// The identifier that a replacement goes by is each unit's own, and no table's on either.
#[test]
fn unequal_units_share_what_both_can_do() {
    let machine = TwoUnits::new(IDR0, IDR0 & !(IDR0_ASID16 | IDR0_CD2L));
    assert_eq!(machine.smmu.capabilities().pasid_bits, 10);
    let [old, new] = [4 * GIB, 8 * GIB].map(|host| machine.table(host));
    let reached = || PLACES.map(|place| machine.send(place, 1));
    for (_, device) in PLACES {
        machine.smmu.attach(device, tag(1), old).unwrap();
    }
    assert_eq!(reached(), [Ok(4 * GIB); 2]);
    machine.smmu.replace(NEAR, tag(1), new).unwrap();
    assert_eq!(reached(), [Ok(8 * GIB), Ok(4 * GIB)]);
    assert!(machine.smmu.destroy_table(old).is_err(), "the other unit knows it");
    machine.smmu.replace(FAR, tag(1), new).unwrap();
    assert_eq!(reached(), [Ok(8 * GIB); 2]);
    machine.smmu.destroy_table(old).unwrap();
    // 8 bits, the last of which is for changes.
    let rest = (1..254).map(|_| machine.smmu.create_table()).filter(Result::is_ok).count();
    assert_eq!(rest, 253);
    assert!(machine.smmu.create_table().is_err());
}
