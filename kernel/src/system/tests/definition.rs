// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are defined and removed while others run.

use super::*;
use crate::base::id::VmId;

fn names(system: &System) -> Vec<String> {
    system.vms().iter().map(|vm| vm.name().to_string()).collect()
}

#[test]
fn a_vm_is_defined_and_removed_as_often_as_one_likes() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let beta = system.define_vm(vm_spec("beta", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    let mut numbers = BTreeSet::new();
    for _ in 0..100 {
        let [alpha] = system.define_vms(&[vm_spec("alpha", 3, 1, 1)]).unwrap().try_into().unwrap();
        assert_eq!((alpha.state(), alpha.id().place()), (VmState::Created, 1));
        assert!(numbers.insert(alpha.id()), "another VM of that name is another VM");
        system.start_vm(machine.truth, &alpha).unwrap();
        assert_eq!(alpha.stats().starts(), 1);
        machine.assert_sound();
        system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
        system.remove_vm(&alpha).unwrap();
        machine.assert_sound();
        assert_eq!(names(system), ["beta"]);
        assert!(system.vm(alpha.id()).is_none() && system.vm_at(1).is_none());
        assert_eq!(beta.state(), VmState::Running);
    }
    system.end_vm(machine.truth, &beta, &POWER_OFF).unwrap();
    // One that never ran, as well, and one of the first ones.
    let gamma = system.define_vm(vm_spec("gamma", 2, 1, 0)).unwrap();
    system.remove_vm(&beta).unwrap();
    system.remove_vm(&gamma).unwrap();
    assert_eq!(names(system), [""; 0]);
    machine.assert_as_at_start();
}

#[test]
fn who_still_holds_a_removed_vm_can_do_nothing_with_it() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    system.remove_vm(&alpha).unwrap();
    let again = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    let gone = "vm alpha: it is removed; define it again";
    assert_eq!(system.start_vm(machine.truth, &alpha).unwrap_err().to_string(), gone);
    assert_eq!(system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap_err().to_string(), gone);
    assert_eq!(system.remove_vm(&alpha).unwrap_err().to_string(), gone);
    alpha.request(VmEnd::PowerOff);
    assert!(system.serve_requests(machine.truth).is_empty());
    assert_eq!(system.vm_named("alpha").unwrap().id(), again.id(), "the other one of that name stays");
    system.start_vm(machine.truth, &again).unwrap();
    system.end_vm(machine.truth, &again, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn what_cannot_be_removed_says_what_would_help() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    let refused = || system.remove_vm(&alpha).unwrap_err().to_string();
    let operation = alpha.begin().unwrap();
    assert_eq!(refused(), "vm alpha: another operation on it is under way; try again");
    drop(operation);
    system.start_vm(machine.truth, &alpha).unwrap();
    assert_eq!(refused(), "vm alpha: it is running; stop it first");
    system.pause_vm(machine.truth, &alpha).unwrap();
    assert_eq!(refused(), "vm alpha: it is paused; stop it first");
    system.resume_vm(machine.truth, &alpha).unwrap();
    // A pCPU does not come back: nothing of it is free.
    machine.truth.fail(Fail::Stop);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap_err();
    assert_eq!(
        refused(),
        "vm alpha: it is held: its end is not proven; `vms` shows why, and when it has ended"
    );
    // The queue does not stop.
    machine.truth.fail(Fail::Quiesce);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert!(alpha.quota().retired() > 0);
    let why = refused();
    assert!(why.starts_with("vm alpha: pasid 1 of it is kept back: "), "{why}");
    assert!(
        why.ends_with("; wait until it has stopped, or reset its parent; `iommu` shows what is kept"),
        "{why}"
    );
    // A fault with its tag has a name still.
    let fault = DmaFault {
        requester: REQUESTER,
        pasid: Some(pasid(1)),
        address: 0,
        access: FaultAccess::Read,
        reason: "no mapping",
        code: 0x79,
    };
    assert_eq!(system.record_fault(&fault).unwrap().vm_name, "alpha");
    system.recover_parent(machine.truth, "dsa0").unwrap();
    system.remove_vm(&alpha).unwrap();
    assert!(system.record_fault(&fault).is_none(), "nobody's");
    machine.assert_as_at_start();
}

#[test]
fn what_of_a_file_cannot_be_defined_leaves_nothing() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    let define = |specs: &[VmSpec]| system.define_vms(specs).unwrap_err().to_string();
    let good = || vm_spec("good", 2, 1, 1);
    assert_eq!(
        define(&[good(), vm_spec("alpha", 2, 1, 0)]),
        "vm alpha: there is one of that name; remove that one first (`vm alpha remove`), or give this one a name of its own"
    );
    let mut bad = good();
    bad.name = "bad".to_string();
    bad.vdevs[0].parent = "dsa9".to_string();
    assert_eq!(define(&[good(), bad]), "vm bad: vdev dsa9/direct: no parent dsa9; use one of: dsa0");
    let mut odd = vm_spec("odd", 2, 1, 0);
    odd.ram[0].len += 1;
    assert!(define(&[good(), odd]).starts_with("vm odd: "));
    assert_eq!(names(system), ["alpha"]);
    assert_eq!(system.define_vms(&[good()]).unwrap()[0].id().place(), 1, "no place is lost");
    let many: Vec<VmSpec> = (0..VmId::PLACES - 1).map(|n| vm_spec(&format!("vm{n}"), 2, 1, 0)).collect();
    assert_eq!(
        define(&many),
        "vm vm29: there are 31 VMs, and no room for more; remove one first (`vm NAME remove`)"
    );
    assert_eq!(names(system), ["alpha", "good"]);
    system.define_vms(&many[1..]).unwrap();
    assert_eq!(system.vms().len(), VmId::PLACES);
    assert!(system.define_vm(vm_spec("more", 2, 1, 0)).is_err());
    system.remove_vm(&alpha).unwrap();
    assert_eq!(system.define_vm(vm_spec("more", 2, 1, 0)).unwrap().id().place(), 0);
}

#[test]
fn a_late_interrupt_of_a_removed_vm_reaches_nobody() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let info = system.vdev_infos().remove(0);
    let vector =
        crate::irq::HostVector { vector: info.interrupts[0].host_vector, cpu: info.interrupts[0].cpu };
    let Some(Route::Vdev { vm: late, vdev, .. }) = system.routes().deliver(vector) else {
        panic!("no route")
    };
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    system.remove_vm(&alpha).unwrap();
    let again = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &again).unwrap();
    assert_eq!(again.id().place(), late.place(), "it has its place");
    assert!(system.vm(late).is_none(), "but not its number");
    assert!(again.vdev(vdev).is_none(), "nor is the vdev there");
    system.end_vm(machine.truth, &again, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}
