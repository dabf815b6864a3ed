// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hardware that fails, at every step: what must come back does, and what may not is kept.

use super::*;

/// What hardware and drivers hold.
fn held(machine: &TestMachine) -> String {
    let truth = machine.truth.lock();
    let tables = (&truth.tables, &truth.attached, &truth.stage2, &truth.portals);
    let interrupts = (&truth.msix, &truth.vectors, &truth.remapped, &truth.posted);
    format!("{:?} {tables:?} {interrupts:?}", truth.queues)
}

/// Each step of a creation, for a type with a portal, one without, and that one without an IOMMU.
#[test]
fn each_step_of_creation_that_fails_leaves_no_trace() {
    const INTERRUPTS: [Fail; 4] =
        [Fail::AllocateVector, Fail::MapInterrupt, Fail::AllocateVector, Fail::MapInterrupt];
    const TABLE: [Fail; 2] = [Fail::Attach, Fail::AttachHalfway];
    const WINDOW: [Fail; 2] = [Fail::Map, Fail::MapMore];
    let off = Options {
        bypassed: true,
        parent: ParentOptions { iommu: false, unsafe_portals: false },
        ..Options::default()
    };
    let ways: [(Options, VdevSpec, &[&[Fail]]); 3] = [
        (Options::default(), vdev_spec(), &[&TABLE, &INTERRUPTS]),
        (Options::default(), trapped(), &[&TABLE, &INTERRUPTS, &WINDOW]),
        (off, trapped(), &[&INTERRUPTS]),
    ];
    for (options, spec, between) in ways {
        let steps = [&[Fail::CreateSlice], &*between.concat(), &[Fail::Tag, Fail::Plug]].concat();
        for at in 0..=steps.len() {
            let (machine, added) = TestMachine::with(options);
            added.unwrap();
            machine.truth.lock().interrupts_for_all = true;
            let system = &machine.system;
            let alpha = system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
            system.start_vm(machine.truth, &alpha).unwrap();
            let before = held(&machine);
            machine.truth.lock().asked.clear();
            machine.truth.lock().fail_at = Some(at);
            let created = system.create_vdev(machine.truth, &alpha, &spec, None);
            machine.truth.lock().fail_at = None;
            let asked = machine.truth.lock().asked.clone();
            // Neither a step that is not reached nor one that is not known here.
            assert_eq!(
                asked.iter().take(at + 1).collect::<Vec<_>>(),
                steps.iter().take(at + 1).collect::<Vec<_>>()
            );
            machine.assert_sound();
            let Err(refusal) = created else {
                assert_eq!(at, steps.len(), "{steps:?}");
                continue;
            };
            assert!(refusal.what.starts_with("vm alpha: vdev dsa0"), "{refusal}");
            assert_eq!(held(&machine), before, "{:?}", steps[at]);
            assert_eq!(alpha.vdevs().len(), 0);
            assert_eq!((alpha.quota().leased(), alpha.quota().retired()), (0, 0), "{:?}", steps[at]);
            system.create_vdev(machine.truth, &alpha, &spec, None).unwrap();
            system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
            machine.assert_as_at_start();
        }
    }
}

#[test]
fn a_second_interrupt_that_fails_takes_the_first_back() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 4, 0)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    // One more vector than nothing is left.
    let spare: Vec<_> =
        (0..10).filter_map(|_| crate::irq::host::Host::allocate_vector(machine.truth, None)).collect();
    let refusal = machine.system.create_vdev(machine.truth, &alpha, &vdev_spec(), None).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm alpha: vdev dsa0/direct: interrupt 2 of dsa0: no free interrupt vector on any processor; destroy a \
         vdev, or use more processors"
    );
    for vector in spare {
        crate::irq::host::Host::free_vector(machine.truth, vector);
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
        let machine = TestMachine::new();
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
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 2, 2)).unwrap();
    let beta = system.define_vm(vm_spec("beta", 3, 1, 1)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    system.start_vm(machine.truth, &beta).unwrap();
    machine.truth.fail(Fail::Quiesce);
    machine.truth.set_clock(7_000_000_000);
    let report = system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_sound();
    let whats: Vec<_> = report.retired.iter().map(|r| (&*r.what, r.value)).collect();
    // The later vdev ends first.
    assert_eq!(whats, [("pasid", 2), ("ioas", 1), ("memory", 3 * LARGE_PAGE_SIZE)]);
    assert_eq!(report.retired[0].why, "the drain never ends");
    let info = system.info();
    assert_eq!(info.memory.held, 3 * LARGE_PAGE_SIZE);
    assert_eq!((info.pasids.leased, info.pasids.retired), (1, 1));
    assert_eq!(beta.state(), VmState::Running);
    assert_eq!(system.parent_infos()[0].types[0].available, 2);

    // Faults of the retired tag still have a name.
    let owner = system.owner_of(REQUESTER, pasid(2)).unwrap();
    assert_eq!(owner.vm_name, "alpha");
    let retired: Vec<_> = system.pasid_infos().into_iter().filter(|p| p.state == "retired").collect();
    assert_eq!((retired.len(), retired[0].pasid), (1, 2));
    assert_eq!(retired[0].since_ns, 7_000_000_000, "retired since, not leased since");
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
    let whats: Vec<_> = report.reclaimed.iter().map(|r| (&*r.what, r.value)).collect();
    assert_eq!(whats, [("pasid", 2), ("ioas", 1), ("memory", 3 * LARGE_PAGE_SIZE)]);
    assert_eq!(report.left, []);
    assert_eq!(
        machine.truth.lock().steps,
        [
            Step::PortalsUnmapped(others),
            Step::Recovered,
            Step::Announced(others),
            Step::QueueStopped,
            Step::SliceReturned,
            Step::Detached(pasid(2)),
            Step::TableDestroyed,
            Step::Scrubbed,
            Step::PortalsReturned(others)
        ]
    );
    assert!(system.owner_of(REQUESTER, pasid(2)).is_none());
    system.end_vm(machine.truth, &beta, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
    assert!(system.recover_parent(machine.truth, "dsa1").is_err());
}

#[test]
fn what_was_retired_comes_back_by_itself_when_the_device_has_stopped() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 2, 2)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::Quiesce);
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let began = system.info().retired[0].since_ns;
    // Each try that is in vain makes the next one wait longer.
    let mut pauses = Vec::new();
    for tries in 0..5 {
        let retired = system.info().retired;
        assert!(
            retired.iter().all(|r| (r.tries, r.since_ns / 1_000_000_000) == (tries, began / 1_000_000_000))
        );
        let due = system.next_retry().unwrap();
        let now = machine.truth.now_ns();
        assert_eq!(system.retry_retired(machine.truth), ReclaimReport::default(), "not before its time");
        machine.truth.set_clock(due);
        assert_eq!(system.retry_retired(machine.truth).left.len(), 3);
        pauses.push(due - now);
        machine.assert_sound();
    }
    assert!(pauses.is_sorted() && pauses[4] > 8 * pauses[0], "{pauses:?}");
    // The device ends the command after all.
    machine.truth.lock().queues.iter_mut().for_each(|queue| queue.retired = false);
    let due = system.next_retry().unwrap();
    machine.truth.set_clock(due);
    assert_eq!(system.retry_retired(machine.truth).reclaimed.len(), 3);
    assert_eq!((system.next_retry(), system.info().revived), (None, 3));
    machine.assert_as_at_start();
}

#[test]
fn a_slice_that_has_stopped_and_waits_for_the_iommu_is_not_asked_to_stop_again() {
    let machine = TestMachine::new();
    let system = &machine.system;
    let alpha = system.define_vm(vm_spec("alpha", 3, 1, 0)).unwrap();
    system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = system.create_vdev(machine.truth, &alpha, &trapped(), None).unwrap();
    // The driver's page stays mapped for the device, so the slice is kept with it.
    machine.truth.fail(Fail::Unmap);
    system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert_eq!(system.info().retired.len(), 1);
    // A second stop could fail, and the queue would be lost though it is quiet.
    machine.truth.fail(Fail::Quiesce);
    assert_eq!(system.reclaim(machine.truth).reclaimed.len(), 1);
    machine.truth.lock().fail.clear();
    system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_reset_that_fails_is_announced_too() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.lock().steps.clear();
    machine.truth.fail(Fail::Recover);
    assert!(machine.system.recover_parent(machine.truth, "dsa0").is_err());
    let vdev = VdevId(1);
    assert_eq!(
        machine.truth.lock().steps,
        [Step::PortalsUnmapped(vdev), Step::Announced(vdev)],
        "what is in no state that anybody knows is reached by nobody"
    );
    machine.system.recover_parent(machine.truth, "dsa0").unwrap();
    assert_eq!(machine.truth.lock().steps.last(), Some(&Step::PortalsReturned(vdev)));
}

#[test]
fn a_parent_that_guests_may_reach_is_not_reset() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.lock().steps.clear();
    machine.truth.fail(Fail::Unplug);
    let refusal = machine.system.recover_parent(machine.truth, "dsa0").unwrap_err();
    assert!(refusal.why.contains("may still reach"), "{refusal}");
    assert_eq!(machine.truth.lock().steps, [Step::PortalsReturned(VdevId(1))], "they go on as they were");
}

#[test]
fn a_detach_that_fails_retires_the_pasid_and_holds_the_memory() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.fail(Fail::Detach);
    let report = machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert_eq!(report.retired[0].what, "pasid");
    machine.assert_sound();
    // The queue did stop, so it is there for another PASID.
    machine.system.create_vdev(machine.truth, &alpha, &vdev_spec(), None).unwrap();
    assert_eq!(alpha.vdevs()[0].pasid(), Some(pasid(2)));
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let whats: Vec<_> = report.retired.iter().map(|r| &*r.what).collect();
    assert_eq!(whats, ["ioas", "memory"]);
    assert!(report.retired[0].why.contains("PASID 1 of 0000:00:04.0 may still reach it"));
    machine.assert_sound();
}

#[test]
fn an_attach_that_cannot_be_taken_back_retires_the_pasid() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 0)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::AttachHalfway);
    machine.truth.fail(Fail::Detach);
    machine.system.create_vdev(machine.truth, &alpha, &vdev_spec(), None).unwrap_err();
    assert_eq!(alpha.quota().retired(), 1);
    machine.assert_sound();
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_sound();
    assert_eq!(machine.system.info().memory.held, 2 * LARGE_PAGE_SIZE);
}

#[test]
fn an_interrupt_entry_that_stays_costs_its_vector_only() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::UnmapInterrupt);
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    assert_eq!(report.retired.len(), 1);
    assert_eq!(report.retired[0].what, "interrupt");
    machine.assert_sound();
    assert_eq!(machine.system.info().memory.free, machine.system.info().memory.total);
    let vector = *machine.truth.lock().remapped.values().last().unwrap();
    assert_eq!(machine.system.routes().deliver(vector), None, "late interrupts go nowhere");
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
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::DestroyTable);
    let report = machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    let whats: Vec<_> = report.retired.iter().map(|r| &*r.what).collect();
    assert_eq!(whats, ["ioas", "memory"]);
    machine.assert_sound();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.assert_sound();
}

#[test]
fn a_vdev_whose_portals_may_be_mapped_is_not_ended() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 2, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    let vdev = alpha.vdevs()[0].id();
    machine.truth.fail(Fail::Unplug);
    machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap_err();
    // Its queue, tag and interrupts stay as they are, and it is listed.
    assert!(machine.truth.lock().queues[0].tag.is_some());
    assert_eq!(alpha.vdevs()[0].id(), vdev);
    machine.assert_sound();
    machine.system.destroy_vdev(machine.truth, &alpha, vdev).unwrap();
    assert!(alpha.vdevs().is_empty());
    machine.system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap();
    machine.assert_as_at_start();
}

#[test]
fn a_vm_without_proof_of_its_end_is_held_until_there_is_one() {
    for fail in [Fail::Stop, Fail::Unplug, Fail::TearDown] {
        let machine = TestMachine::new();
        let system = &machine.system;
        let alpha = system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
        let beta = system.define_vm(vm_spec("beta", 2, 1, 1)).unwrap();
        for vm in [&alpha, &beta] {
            system.start_vm(machine.truth, vm).unwrap();
        }
        machine.truth.fail(fail);
        let refusal = system.end_vm(machine.truth, &alpha, &POWER_OFF).unwrap_err();
        assert_eq!((alpha.state(), alpha.reason()), (VmState::Held, Some(refusal.to_string())));
        assert!(alpha.ram().is_some(), "{fail:?}: nobody else's");
        machine.assert_sound();
        // Nothing of it is used again, and nobody else is hurt.
        let refusal = system.start_vm(machine.truth, &alpha).unwrap_err();
        assert_eq!(refusal.to_string(), "vm alpha: it is held; stop it first");
        system.pause_vm(machine.truth, &beta).unwrap();
        system.resume_vm(machine.truth, &beta).unwrap();
        // It is tried again: in vain some more times, ever more seldom, then not.
        let mut pauses = Vec::new();
        for tries_left in (0..5).rev() {
            if tries_left > 0 {
                machine.truth.fail(fail);
            }
            let due = system.next_retry().unwrap();
            pauses.push(due - machine.truth.now_ns());
            machine.truth.set_clock(due);
            system.retry_retired(machine.truth);
            let held = alpha.state() == VmState::Held;
            assert_eq!(held, tries_left > 0, "{fail:?}");
            machine.assert_sound();
        }
        assert!(pauses.is_sorted() && pauses[4] > 8 * pauses[0], "{pauses:?}");
        assert_eq!(alpha.state(), VmState::Stopped);
        assert_eq!(alpha.reason(), Some("powered off by the guest".to_string()));
        assert_eq!(system.next_retry(), None);
        system.start_vm(machine.truth, &alpha).unwrap();
        for vm in [&alpha, &beta] {
            system.end_vm(machine.truth, vm, &POWER_OFF).unwrap();
        }
        machine.assert_as_at_start();
    }
}

#[test]
fn a_vm_that_cannot_be_paused_goes_on() {
    let machine = TestMachine::new();
    let alpha = machine.system.define_vm(vm_spec("alpha", 2, 1, 1)).unwrap();
    machine.system.start_vm(machine.truth, &alpha).unwrap();
    machine.truth.fail(Fail::Pause);
    machine.system.pause_vm(machine.truth, &alpha).unwrap_err();
    assert_eq!(alpha.state(), VmState::Running);
    assert!(machine.truth.lock().running.contains(&alpha.id()));
    machine.system.pause_vm(machine.truth, &alpha).unwrap();
}
