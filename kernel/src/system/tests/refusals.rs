// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is refused, and in which words.

use super::*;
use crate::dma::address_space::AddressSpace;

#[test]
fn without_an_iommu_there_is_no_vdev() {
    let (machine, added) = TestMachine::with(Options { iommu: false, ..Options::default() });
    assert!(added.is_err());
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let create = |spec| machine.system.create_vdev(machine.truth, &alpha, &spec, None);
    assert_eq!(
        create(vdev_spec()).unwrap_err().to_string(),
        "vm alpha: vdev dsa0/direct: parent dsa0: no IOMMU confines its DMA; use a machine with an IOMMU and turn \
         it on in the firmware; or accept the risk with iommu = \"off\", for trapped types only"
    );
    create(trapped()).unwrap_err();
    assert!(machine.system.taints().is_empty());
    assert!(machine.system.parent_infos()[0].unusable.is_some());
}

#[test]
fn a_parent_whose_slices_have_requester_ids_of_their_own_is_refused() {
    let (machine, added) = TestMachine::with(Options { tagged_by_requester: true, ..Options::default() });
    assert_eq!(
        added.unwrap_err().to_string(),
        "parent dsa0: its vdevs are told apart by requester ID, and there is no page table per requester yet; share a \
         device whose vdevs are told apart by PASID"
    );
    assert!(machine.truth.lock().claimed.is_empty());
}

#[test]
fn iommu_off_is_for_trapped_types_only_and_tainted() {
    for iommu in [false, true] {
        let mut options = Options { iommu, bypassed: true, ..Options::default() };
        options.parent.iommu = false;
        let (machine, added) = TestMachine::with(options);
        added.unwrap();
        let system = &machine.system;
        let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
        system.start_vm(machine.truth, &alpha).unwrap();
        assert_eq!(
            system.create_vdev(machine.truth, &alpha, &vdev_spec(), None).unwrap_err().to_string(),
            "vm alpha: vdev dsa0/direct: the type maps a page of the device into the guest, which needs an \
             IOMMU, and dsa0 has iommu = \"off\"; remove iommu = \"off\", or use type trapped"
        );
        system.create_vdev(machine.truth, &alpha, &trapped(), None).unwrap();
        assert_eq!(system.vdev_infos()[0].pasid, None);
        assert_eq!(system.taints(), ["dsa0: iommu = \"off\", no IOMMU confines it"]);
        let [vdev] = &system.vdev_infos()[..] else { panic!("one vdev") };
        assert_eq!(vdev.taints, ["iommu = \"off\", no IOMMU confines it"]);
        assert_eq!(vdev.taints, system.parent_infos()[0].taints);
        machine.assert_sound();
        // It may reach any memory: where it does not stop, the VM's is held.
        machine.truth.fail(Fail::Quiesce);
        let report = system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
        let whats: Vec<_> = report.retired.iter().map(|r| &*r.what).collect();
        assert_eq!(whats, ["vdev", "memory"]);
        assert_eq!(system.info().memory.held, 2 * LARGE_PAGE_SIZE);
        assert_eq!(system.reclaim(machine.truth).left.len(), 2);
        system.recover_parent(machine.truth, "dsa0").unwrap();
        machine.assert_as_at_start();
    }
}

#[test]
fn iommu_off_is_not_for_a_device_behind_one() {
    let mut options = Options::default();
    options.parent.iommu = false;
    let (machine, added) = TestMachine::with(options);
    assert_eq!(
        added.unwrap_err().to_string(),
        "parent dsa0: iommu = \"off\", and an IOMMU stands in front of it, which lets through what has a PASID only; \
         remove iommu = \"off\""
    );
    assert!(machine.truth.lock().claimed.is_empty());
}

#[test]
fn refusals_say_what_why_and_what_helps() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    let create = |parent: &str, type_name: &str| {
        let spec = VdevSpec {
            parent: parent.to_string(),
            type_name: type_name.to_string(),
            entries: None,
            weight: None,
            space: AddressSpace::Vm,
        };
        system.create_vdev(machine.truth, &alpha, &spec, None).unwrap_err().to_string()
    };
    assert_eq!(create("dsa0", "direct"), "vm alpha: it is created; start it first");
    system.start_vm(machine.truth, &alpha).unwrap();
    assert_eq!(create("dsa1", "direct"), "vm alpha: vdev dsa1/direct: no parent dsa1; use one of: dsa0");
    assert_eq!(
        create("dsa0", "gpu"),
        "vm alpha: vdev dsa0/gpu: dsa0 has no such type; use one of: direct, trapped"
    );
    assert_eq!(
        system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap_err().to_string(),
        "vm alpha: there is one of that name; remove that one first (`vm alpha remove`), or give this one a name of its own"
    );
    let big = system.define_vm(vm_spec("big", 20, 1, 0)).unwrap();
    assert_eq!(
        system.start_vm(machine.truth, &big).unwrap_err().to_string(),
        "vm big: guest memory: 40 MiB wanted, 28 MiB free; give the VM less memory, stop another VM, or give the \
         machine more"
    );
    assert_eq!(
        system.start_vm(machine.truth, &alpha).unwrap_err().to_string(),
        "vm alpha: it is running; stop it first"
    );
    assert_eq!(
        system.resume_vm(machine.truth, &alpha).unwrap_err().to_string(),
        "vm alpha: it is running; only a paused VM can be resumed"
    );
}

#[test]
fn a_device_is_one_parent_only() {
    let (mut machine, _) = TestMachine::with(Options::default());
    let twin: &'static _ = Box::leak(Box::new(crate::testing::TestParent(machine.truth)));
    let options = ParentOptions { iommu: true, unsafe_portals: true };
    assert!(machine.system.add_parent(twin, options).unwrap_err().why.contains("defined twice"));
    assert_eq!(machine.system.taints().len(), 1);
}
