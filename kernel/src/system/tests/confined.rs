// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that reach less than their VM, or the same on their own.

use super::*;
use crate::dma::address_space::AddressSpace;
use crate::memory::ram::RamRange;
use crate::testing::ram_range;
use crate::vdev::Vdev;

const WINDOW: RamRange = RamRange { start: GuestPhys(0x3000), len: 0x2000 };

fn spec(space: AddressSpace) -> VdevSpec {
    VdevSpec { space, ..vdev_spec() }
}

fn confined() -> VdevSpec {
    spec(AddressSpace::DmaOnly(vec![WINDOW]))
}

/// What the table behind a vdev maps, as addresses of the guest.
fn reach(machine: &TestMachine, vdev: &Vdev) -> Vec<(u64, u64)> {
    let truth = machine.truth.lock();
    let tag = (vdev.requester(), vdev.pasid().unwrap());
    truth.tables[&truth.attached[&tag]].iter().map(|(iova, (_, len))| (*iova, *len)).collect()
}

fn spaces(vm: &Vm) -> usize {
    vm.life.lock().spaces.len()
}

#[test]
fn a_vdev_with_windows_reaches_those_alone_from_its_vms_start_on() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let second = ram_range(0x8000, 0x1000);
    let two = AddressSpace::DmaOnly(vec![WINDOW, second]);
    let vdevs = vec![vdev_spec(), spec(two), spec(AddressSpace::Own)];
    let alpha = system.define_vm(VmSpec { vdevs, ..vm_spec("alpha", 2, 4, 0) }).unwrap();
    for _ in 0..2 {
        system.start_vm(machine.truth, &alpha).unwrap();
        machine.assert_sound();
        let [all, some, own] = alpha.vdevs().try_into().unwrap();
        assert_eq!(reach(&machine, &some), [(0x3000, 0x2000), (0x8000, 0x1000)]);
        assert_eq!(reach(&machine, &own), reach(&machine, &all));
        let ids: BTreeSet<_> = [&all, &some, &own].map(|vdev| vdev.ioas()).into();
        assert_eq!((ids.len(), spaces(&alpha)), (3, 3));
        system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    }
    machine.assert_as_at_start();
}

#[test]
fn the_address_space_of_a_vdev_goes_with_the_last_one_on_it() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    for _ in 0..3 {
        let first = system.create_vdev(machine.truth, &alpha, &confined(), None).unwrap();
        let space = alpha.vdev(first).unwrap().ioas();
        // Another on the same, and none on what another VM has.
        let second = system.create_vdev(machine.truth, &alpha, &vdev_spec(), space).unwrap();
        assert_eq!(reach(&machine, &alpha.vdev(second).unwrap()), [(0x3000, 0x2000)]);
        system.destroy_vdev(machine.truth, &alpha, first).unwrap();
        assert_eq!((spaces(&alpha), alpha.vdev(second).unwrap().ioas()), (2, space));
        system.destroy_vdev(machine.truth, &alpha, second).unwrap();
        assert_eq!(spaces(&alpha), 1);
        machine.assert_sound();
    }
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_vdev_that_moves_stays_confined() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let first = system.create_vdev(machine.truth, &alpha, &confined(), None).unwrap();
    let (next, _) = system.move_vdev(machine.truth, &alpha, first, &vdev_spec(), None).unwrap();
    assert_eq!(reach(&machine, &alpha.vdev(next).unwrap()), [(0x3000, 0x2000)]);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn an_address_space_that_its_vdev_was_led_away_from_goes() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let default = alpha.life.lock().spaces[0].id();
    for _ in 0..3 {
        let vdev = system.create_vdev(machine.truth, &alpha, &confined(), None).unwrap();
        let with_it =
            system.create_vdev(machine.truth, &alpha, &vdev_spec(), alpha.vdev(vdev).unwrap().ioas());
        system.attach_space(default, vdev).unwrap();
        assert_eq!(spaces(&alpha), 2, "another is on it");
        system.attach_space(default, with_it.unwrap()).unwrap();
        assert_eq!(spaces(&alpha), 1);
        for vdev in alpha.vdevs() {
            system.destroy_vdev(machine.truth, &alpha, vdev.id()).unwrap();
        }
    }
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_confined_vdev_that_cannot_be_had_leaves_nothing() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let create = |spec: &VdevSpec| system.create_vdev(machine.truth, &alpha, spec, None);
    for fail in [
        Fail::CreateSlice,
        Fail::CreateTable,
        Fail::Map,
        Fail::Attach,
        Fail::AttachHalfway,
        Fail::AllocateVector,
        Fail::MapInterrupt,
        Fail::Tag,
        Fail::Plug,
    ] {
        machine.truth.fail(fail);
        assert!(create(&confined()).is_err(), "{fail:?}");
        assert_eq!(spaces(&alpha), 1, "{fail:?}");
        machine.assert_sound();
    }
    let outside = spec(AddressSpace::DmaOnly(vec![WINDOW, ram_range(64 * LARGE_PAGE_SIZE, 0x1000)]));
    assert!(create(&outside).unwrap_err().to_string().contains("not all RAM of the VM"));
    assert_eq!(spaces(&alpha), 1);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn an_address_space_whose_vdev_did_not_stop_goes_when_it_has() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = system.create_vdev(machine.truth, &alpha, &confined(), None).unwrap();
    machine.truth.fail(Fail::Detach);
    let report = system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert_eq!((report.retired.len(), spaces(&alpha)), (1, 2));
    machine.assert_sound();
    system.reclaim(machine.truth);
    assert_eq!(spaces(&alpha), 1);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn windows_outside_of_the_vms_memory_are_refused_when_it_is_defined() {
    let machine = TestMachine::new();
    let vdevs = vec![spec(AddressSpace::DmaOnly(vec![WINDOW, ram_range(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE)]))];
    let refusal = machine.system.define_vm(VmSpec { vdevs, ..vm_spec("alpha", 2, 4, 0) }).unwrap_err();
    let refusal = refusal.to_string();
    assert!(
        refusal.contains("its window 0x200000+2M is not all memory of the VM; use ranges in"),
        "{refusal}"
    );
    assert_eq!(machine.system.vms().len(), 0);
}

#[test]
fn without_an_iommu_there_is_no_address_space_to_have() {
    let options = Options {
        bypassed: true,
        parent: ParentOptions { iommu: false, unsafe_portals: false },
        ..Options::default()
    };
    let (machine, added) = TestMachine::with(options);
    added.unwrap();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let trapped = VdevSpec { space: AddressSpace::Own, ..trapped() };
    let refusal = system.create_vdev(machine.truth, &alpha, &trapped, None).unwrap_err();
    assert!(refusal.why.contains("would reach all of the VM's memory"), "{refusal}");
    // Neither one that is named, be it there or not; the VM's own is what it has anyway.
    let other = system.create_space(&alpha).unwrap().id();
    let trapped = VdevSpec { space: AddressSpace::Vm, ..trapped };
    for space in [other, IoasId(999)] {
        assert!(system.create_vdev(machine.truth, &alpha, &trapped, Some(space)).is_err());
    }
    let first = alpha.life.lock().spaces[0].id();
    system.create_vdev(machine.truth, &alpha, &trapped, Some(first)).unwrap();
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}
