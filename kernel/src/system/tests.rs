// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lives of VMs and vdevs, one situation at a time. Random ones are in `properties`.

use super::*;
use crate::addr::{GuestPhys, Iova, LARGE_PAGE_SIZE};
use crate::fault::DmaFault;
use crate::fault::FaultAccess;
use crate::id::VdevId;
use crate::irq::Route;
use crate::testing::{Fail, Machine, Options, REQUESTER, Step, TRAPPED, vdev_spec, vm_spec};
use crate::vdev::VdevSpec;
use crate::vm::{VmEnd, VmState};

const POWER_OFF: VmEnd = VmEnd::PowerOff;

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

fn trapped() -> VdevSpec {
    VdevSpec {
        type_name: TRAPPED.to_string(),
        ..vdev_spec()
    }
}

#[test]
fn two_vms_have_their_own_pasid_and_everything_comes_back() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 1, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 4, 1, 1)).unwrap();
    for _ in 0..20 {
        system.start_vm(machine.truth, &alpha).unwrap();
        system.start_vm(machine.truth, &beta).unwrap();
        machine.assert_sound();
        let infos = system.pasid_infos();
        assert_eq!(infos.len(), 2);
        assert_ne!(infos[0].pasid, infos[1].pasid);
        assert_eq!(system.info().memory.guests, 7 * LARGE_PAGE_SIZE);
        system
            .end_vm(machine.truth, &alpha, &VmEnd::Crashed("triple fault".to_string()))
            .unwrap();
        machine.assert_sound();
        assert_eq!(
            (alpha.state(), beta.state()),
            (VmState::Crashed, VmState::Running)
        );
        assert_eq!(alpha.reason().as_deref(), Some("triple fault"));
        system.end_vm(machine.truth, &beta, &POWER_OFF).unwrap();
        machine.assert_as_at_start();
    }
    assert_eq!(alpha.stats().starts(), 20);
}

#[test]
fn the_end_goes_in_the_order_of_the_design() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.lock().steps.clear();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let interrupt = |entry| {
        [
            Step::InterruptMasked(entry),
            Step::InterruptUnmapped,
            Step::VectorSettled,
            Step::VectorFreed,
        ]
    };
    let mut expected = vec![
        Step::VcpusStopped,
        Step::PortalsUnmapped(vdev),
        Step::QueueStopped,
    ];
    expected.extend(interrupt(2));
    expected.extend(interrupt(1));
    expected.extend([
        Step::Detached(pasid(1)),
        Step::SliceReturned,
        Step::TableDestroyed,
        Step::TornDown,
        Step::Scrubbed,
    ]);
    assert_eq!(machine.truth.lock().steps, expected);
}

#[test]
fn each_step_of_creation_that_fails_leaves_no_trace() {
    for fail in [
        Fail::CreateSlice,
        Fail::Attach,
        Fail::AttachHalfway,
        Fail::AllocateVector,
        Fail::MapInterrupt,
        Fail::Tag,
        Fail::Plug,
    ] {
        let machine = Machine::new();
        let system = &machine.system;
        let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
        system.start_vm(machine.truth, &alpha).unwrap();
        machine.truth.fail(fail);
        let refusal = system
            .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
            .unwrap_err();
        assert!(refusal.what.starts_with("vm alpha: vdev dsa0"), "{refusal}");
        assert_eq!(machine.truth.lock().failed, 1, "{fail:?} was not reached");
        machine.assert_sound();
        assert_eq!(alpha.vdevs().len(), 0);
        assert_eq!(
            (alpha.quota().leased(), alpha.quota().retired()),
            (0, 0),
            "{fail:?}"
        );
        system
            .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
            .unwrap();
        system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
        machine.assert_as_at_start();
    }
}

#[test]
fn a_second_interrupt_that_fails_takes_the_first_back() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    // One more vector than nothing is left.
    let spare: Vec<_> = (0..10)
        .filter_map(|_| crate::host::Host::allocate_vector(machine.truth))
        .collect();
    let refusal = machine
        .system
        .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm alpha: vdev dsa0/direct: interrupt 2 of dsa0: no free interrupt vector on any processor; destroy a \
         vdev, or use more processors"
    );
    for vector in spare {
        crate::host::Host::free_vector(machine.truth, vector);
    }
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn each_step_of_a_start_that_fails_leaves_no_trace() {
    for fail in [
        Fail::CreateTable,
        Fail::Map,
        Fail::MapMore,
        Fail::Build,
        Fail::CreateSlice,
        Fail::Attach,
        Fail::Tag,
        Fail::Plug,
        Fail::Run,
    ] {
        let machine = Machine::new();
        let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
        machine.truth.fail(fail);
        let refusal = machine.system.start_vm(machine.truth, &alpha).unwrap_err();
        assert_eq!(alpha.state(), VmState::Stopped);
        assert_eq!(alpha.reason(), Some(refusal.to_string()));
        machine.assert_as_at_start();
        machine.system.start_vm(machine.truth, &alpha).unwrap();
        machine.assert_sound();
    }
}

#[test]
fn a_queue_that_does_not_stop_costs_itself_and_the_memory_behind_it() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 2, 2)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 3, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    machine.truth.fail(Fail::Quiesce);
    let report = system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_sound();
    let whats: Vec<_> = report.retired.iter().map(|r| (r.what, r.value)).collect();
    // The later vdev ends first.
    assert_eq!(
        whats,
        [("pasid", 2), ("ioas", 1), ("memory", 3 * LARGE_PAGE_SIZE)]
    );
    assert_eq!(report.retired[0].why, "the drain never ends");
    let info = system.info();
    assert_eq!(info.memory.held, 3 * LARGE_PAGE_SIZE);
    assert_eq!((info.pasids.leased, info.pasids.retired), (1, 1));
    assert_eq!(beta.state(), VmState::Running);
    assert_eq!(system.parent_infos()[0].types[0].available, 2);

    // Faults of the retired tag still have a name.
    let owner = system.owner_of(REQUESTER, pasid(2)).unwrap();
    assert_eq!(owner.vm_name, "alpha");
    let retired: Vec<_> = system
        .pasid_infos()
        .into_iter()
        .filter(|p| p.state == "retired")
        .collect();
    assert_eq!((retired.len(), retired[0].pasid), (1, 2));
    assert_eq!(system.iommu_info().unwrap().spaces.len(), 2);

    // Its quota has shrunk for good; nobody else's has.
    let refusal = system.start_vm(machine.truth, &alpha).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm alpha: vdev dsa0/direct: PASID: quota of 2 used up (1 retired after a failed stop); raise pasids of \
         this VM, destroy one of its vdevs, or reset the parent"
    );
    machine.assert_sound();

    // Asking again changes nothing, until somebody resets the device; then all of it comes back.
    let report = system.reclaim(machine.truth);
    assert_eq!((report.reclaimed.len(), report.left.len()), (0, 3));
    machine.assert_sound();
    let others = beta.vdevs()[0].id();
    machine.truth.lock().steps.clear();
    let report = system.recover_parent(machine.truth, "dsa0").unwrap();
    let whats: Vec<_> = report.reclaimed.iter().map(|r| (r.what, r.value)).collect();
    assert_eq!(
        whats,
        [("pasid", 2), ("ioas", 1), ("memory", 3 * LARGE_PAGE_SIZE)]
    );
    assert_eq!(report.left, []);
    assert_eq!(
        machine.truth.lock().steps,
        [
            Step::Recovered,
            Step::Announced(others),
            Step::QueueStopped,
            Step::SliceReturned,
            Step::Detached(pasid(2)),
            Step::TableDestroyed,
            Step::Scrubbed
        ]
    );
    assert!(system.owner_of(REQUESTER, pasid(2)).is_none());
    system.end_vm(machine.truth, &beta, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
    assert!(system.recover_parent(machine.truth, "dsa1").is_err());
}

#[test]
fn a_reset_that_fails_is_announced_too() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.lock().steps.clear();
    machine.truth.fail(Fail::Recover);
    assert!(machine.system.recover_parent(machine.truth, "dsa0").is_err());
    assert_eq!(machine.truth.lock().steps, [Step::Announced(VdevId(1))]);
}

#[test]
fn a_detach_that_fails_retires_the_pasid_and_holds_the_memory() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.fail(Fail::Detach);
    let report = machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert_eq!(report.retired[0].what, "pasid");
    machine.assert_sound();
    // The queue did stop, so it is there for another PASID.
    machine
        .system
        .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
        .unwrap();
    assert_eq!(alpha.vdevs()[0].pasid(), Some(pasid(2)));
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let whats: Vec<_> = report.retired.iter().map(|r| r.what).collect();
    assert_eq!(whats, ["ioas", "memory"]);
    assert!(
        report.retired[0]
            .why
            .contains("PASID 1 of 0000:00:04.0 may still reach it")
    );
    machine.assert_sound();
}

#[test]
fn an_attach_that_cannot_be_taken_back_retires_the_pasid() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 0)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::AttachHalfway);
    machine.truth.fail(Fail::Detach);
    machine
        .system
        .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
        .unwrap_err();
    assert_eq!(alpha.quota().retired(), 1);
    machine.assert_sound();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_sound();
    assert_eq!(machine.system.info().memory.held, 2 * LARGE_PAGE_SIZE);
}

#[test]
fn an_interrupt_entry_that_stays_costs_its_vector_only() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::UnmapInterrupt);
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert_eq!(report.retired.len(), 1);
    assert_eq!(report.retired[0].what, "interrupt");
    machine.assert_sound();
    assert_eq!(
        machine.system.info().memory.free,
        machine.system.info().memory.total
    );
    let vector = *machine.truth.lock().remapped.values().last().unwrap();
    assert_eq!(
        machine.system.routes().deliver(vector),
        None,
        "late interrupts go nowhere"
    );
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.assert_sound();
    machine.truth.fail(Fail::UnmapInterrupt);
    assert_eq!(machine.system.reclaim(machine.truth).left.len(), 1);
    assert_eq!(machine.system.reclaim(machine.truth).reclaimed.len(), 1);
    machine.assert_sound();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_table_that_stays_holds_the_memory() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::DestroyTable);
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let whats: Vec<_> = report.retired.iter().map(|r| r.what).collect();
    assert_eq!(whats, ["ioas", "memory"]);
    machine.assert_sound();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.assert_sound();
}

#[test]
fn a_vdev_whose_portals_may_be_mapped_is_not_ended() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.fail(Fail::Unplug);
    let report = machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert_eq!((report.retired[0].what, report.retired[0].value), ("vdev", 1));
    // Its queue, tag and interrupts stay as they are, and so does the memory.
    assert!(machine.truth.lock().queues[0].tag.is_some());
    machine.truth.lock().portals.clear();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let info = machine.system.info();
    assert_eq!((info.memory.held, info.pasids.leased), (2 * LARGE_PAGE_SIZE, 1));
    assert!(machine.truth.lock().violations.is_empty());
}

#[test]
fn a_late_interrupt_does_not_reach_the_next_owner() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let info = system.vdev_infos().remove(0);
    let vector = crate::iommu::HostVector {
        vector: info.interrupts[1].host_vector,
        cpu: info.interrupts[1].cpu,
    };
    let late = system.routes().deliver(vector);
    let id = alpha.vdevs()[0].id();
    assert_eq!(
        late,
        Some(Route::Vdev {
            vm: alpha.id(),
            vdev: id,
            vector: 1
        })
    );
    assert_eq!(system.vm_info(&alpha).interrupts, 1);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert_eq!(system.routes().deliver(vector), None);
    assert_eq!(system.info().stray_interrupts, 1);
    // The same vector, another life: what was looked up before names a vdev that is gone.
    system.start_vm(machine.truth, &beta).unwrap();
    assert!(matches!(system.routes().peek(vector), Some(Route::Vdev { vm, .. }) if vm == beta.id()));
    assert!(alpha.vdev(id).is_none() && beta.vdev(id).is_none());
}

#[test]
fn without_an_iommu_there_is_no_vdev() {
    let (machine, added) = Machine::with(Options {
        iommu: false,
        ..Options::default()
    });
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
fn iommu_off_is_for_trapped_types_only_and_tainted() {
    for iommu in [false, true] {
        let mut options = Options {
            iommu,
            ..Options::default()
        };
        options.parent.iommu = false;
        let (machine, added) = Machine::with(options);
        added.unwrap();
        let system = &machine.system;
        let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
        system.start_vm(machine.truth, &alpha).unwrap();
        assert_eq!(
            system
                .create_vdev(machine.truth, &alpha, &vdev_spec(), None)
                .unwrap_err()
                .to_string(),
            "vm alpha: vdev dsa0/direct: the type maps a page of the device into the guest, which needs an \
             IOMMU, and dsa0 has iommu = \"off\"; remove iommu = \"off\", or use type trapped"
        );
        system
            .create_vdev(machine.truth, &alpha, &trapped(), None)
            .unwrap();
        assert_eq!(system.vdev_infos()[0].pasid, None);
        assert_eq!(system.taints(), ["dsa0: iommu = \"off\", no IOMMU confines it"]);
        machine.assert_sound();
        // It may reach any memory: where it does not stop, the VM's is held.
        machine.truth.fail(Fail::Quiesce);
        let report = system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
        let whats: Vec<_> = report.retired.iter().map(|r| r.what).collect();
        assert_eq!(whats, ["vdev", "memory"]);
        assert_eq!(system.info().memory.held, 2 * LARGE_PAGE_SIZE);
        assert_eq!(system.reclaim(machine.truth).left.len(), 2);
        system.recover_parent(machine.truth, "dsa0").unwrap();
        machine.assert_as_at_start();
    }
}

#[test]
fn refusals_say_what_why_and_what_helps() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 0)).unwrap();
    let create = |parent: &str, type_name: &str| {
        let spec = VdevSpec {
            parent: parent.to_string(),
            type_name: type_name.to_string(),
            entries: None,
        };
        system
            .create_vdev(machine.truth, &alpha, &spec, None)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        create("dsa0", "direct"),
        "vm alpha: it is created; start it first"
    );
    system.start_vm(machine.truth, &alpha).unwrap();
    assert_eq!(
        create("dsa1", "direct"),
        "vm alpha: vdev dsa1/direct: no parent dsa1; use one of: dsa0"
    );
    assert_eq!(
        create("dsa0", "gpu"),
        "vm alpha: vdev dsa0/gpu: dsa0 has no such type; use one of: direct, trapped"
    );
    assert_eq!(
        system
            .define_vm(vm_spec("alpha", 2, 1, 0))
            .unwrap_err()
            .to_string(),
        "vm alpha: defined twice; give each VM its own name"
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
fn what_guests_ask_for_is_served_later() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    let mut spec = vm_spec("beta", 2, 1, 1);
    spec.restart_on_reset = false;
    let beta = system.define_vm(spec).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    alpha.request(VmEnd::Reset);
    beta.request(VmEnd::Reset);
    assert_eq!(system.serve_requests(machine.truth).len(), 2);
    assert_eq!(
        (alpha.state(), beta.state()),
        (VmState::Running, VmState::Stopped)
    );
    assert_eq!(alpha.stats().starts(), 2);
    assert!(system.serve_requests(machine.truth).is_empty());
    alpha.request(VmEnd::PowerOff);
    // Not while something else is done with it, and not lost either.
    let operation = alpha.begin().unwrap();
    assert!(system.serve_requests(machine.truth).is_empty());
    drop(operation);
    let served = system.serve_requests(machine.truth);
    assert_eq!((served[0].vm, served[0].restart), (alpha.id(), false));
    machine.assert_as_at_start();
}

#[test]
fn pause_keeps_everything_and_resume_goes_on() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    assert!(!machine.truth.lock().running.contains(&alpha.id()));
    assert_eq!(alpha.vdevs().len(), 1);
    machine.system.resume_vm(machine.truth, &alpha).unwrap();
    assert!(machine.truth.lock().running.contains(&alpha.id()));
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::Run);
    machine.system.resume_vm(machine.truth, &alpha).unwrap_err();
    assert_eq!(alpha.state(), VmState::Paused);
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_vm_can_have_several_address_spaces() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 4, 1)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 2, 4, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    let space = system.create_space(&alpha).unwrap();
    let ram = alpha.ram().unwrap();
    let map = |guest, iova, len| space.map(&ram, GuestPhys(guest), Iova(iova), len, true);
    map(0x1000, 0x10_0000, 0x2000).unwrap();
    assert!(
        map(0x3000, 0x10_1000, 0x1000)
            .unwrap_err()
            .why
            .contains("part of it is mapped")
    );
    assert!(
        map(LARGE_PAGE_SIZE, 0, 0x1000)
            .unwrap_err()
            .why
            .contains("not all RAM")
    );
    assert!(map(0x1000, 0, 0x10).unwrap_err().why.contains("not whole pages"));
    assert!(map(0x1000, 1 << 39, 0x1000).unwrap_err().why.contains("39 bits"));
    let foreign = beta.ram().unwrap();
    assert!(
        space
            .map(&foreign, GuestPhys(0), Iova(0), 0x1000, true)
            .unwrap_err()
            .why
            .contains("the RAM is of VM 1")
    );
    drop((ram, foreign));
    let vdev = system
        .create_vdev(machine.truth, &alpha, &vdev_spec(), Some(space.id()))
        .unwrap();
    machine.assert_sound();
    assert!(
        system
            .destroy_space(&alpha, space.id())
            .unwrap_err()
            .why
            .contains("may still reach it")
    );
    assert!(
        system
            .create_vdev(machine.truth, &beta, &vdev_spec(), Some(space.id()))
            .is_err()
    );
    system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    space.unmap(Iova(0x10_0000), 0x2000).unwrap();
    assert!(space.unmap(Iova(0x10_0000), 0x2000).is_err());
    system.destroy_space(&alpha, space.id()).unwrap();
    for vm in [&alpha, &beta] {
        system.end_vm(machine.truth, vm, &POWER_OFF).unwrap();
    }
    machine.assert_as_at_start();
}

#[test]
fn faults_and_events_are_named() {
    let machine = Machine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let fault = |number| DmaFault {
        requester: REQUESTER,
        pasid: Pasid::new(number),
        address: 0xdead_0000,
        access: FaultAccess::Write,
        reason: "no mapping",
        code: 0x7a,
    };
    let name = system.record_fault(&fault(1)).unwrap();
    assert_eq!((name.vm_name.as_str(), name.parent.as_str()), ("alpha", "dsa0"));
    assert!(system.record_fault(&fault(2)).is_none());
    assert!(system.record_fault(&fault(1 << 20)).is_none(), "untagged");
    assert_eq!((alpha.stats().faults(), system.vdev_infos()[0].faults), (1, 1));

    let mut reports = Vec::new();
    machine.truth.lock().steps.clear();
    system.parent_event(machine.truth, 0, &mut |report| reports.push(report));
    system.parent_event(machine.truth, 1, &mut |report| reports.push(report));
    let names: Vec<_> = reports.iter().map(|report| report.vdev.clone()).collect();
    assert_eq!(names, [Some(name.clone()), Some(name), None, None]);
    assert_eq!(system.parent_infos()[0].events, 4);
    let vdev = alpha.vdevs()[0].id();
    assert_eq!(machine.truth.lock().steps, [Step::Announced(vdev)]);
}

#[test]
fn a_halt_concerns_every_vdev_of_the_parent() {
    let machine = Machine::new();
    let system = &machine.system;
    for name in ["alpha", "beta"] {
        let vm = system.define_vm(vm_spec(name, 2, 1, 1)).unwrap();
        system.start_vm(machine.truth, &vm).unwrap();
    }
    machine.truth.lock().steps.clear();
    machine.truth.lock().halted = true;
    system.parent_event(machine.truth, 0, &mut |_| ());
    let steps = [1, 2].map(|vdev| Step::Announced(VdevId(vdev)));
    assert_eq!(machine.truth.lock().steps, steps);
}

#[test]
fn the_guests_side_of_an_ended_vdev_is_an_empty_slot() {
    let machine = Machine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs().remove(0);
    let mut side = vdev.guest_side();
    assert_eq!(side.read(0, 0x123, 4), 0x123);
    assert!(side.attach(pasid(5)).is_err() && side.quiesce().is_err());
    machine
        .system
        .destroy_vdev(machine.truth, &alpha, vdev.id())
        .unwrap();
    assert_eq!(side.read(0, 0x123, 4), 0xffff_ffff);
    side.write(0, 0, 4, 1, &mut |_| panic!("raised after the end"));
    assert!(side.reset().is_err());
    machine.assert_sound();
}

#[test]
fn a_device_is_one_parent_only() {
    let (mut machine, _) = Machine::with(Options::default());
    let twin: &'static _ = Box::leak(Box::new(crate::testing::TestParent(machine.truth)));
    let options = ParentOptions {
        iommu: true,
        unsafe_portals: true,
    };
    assert!(
        machine
            .system
            .add_parent(twin, options)
            .unwrap_err()
            .why
            .contains("defined twice")
    );
    assert_eq!(machine.system.taints().len(), 1);
}
