// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random lives: VMs, vdevs, address spaces, faults, and hardware that fails in between. After every step
//! the truth about the hardware is compared with the promises of `docs/src/security.md`, and at the end everything
//! is back where it was, but for what a failed stop has cost.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::base::addr::{GuestPhys, Iova, LARGE_PAGE_SIZE};
use crate::base::drained::Drained;
use crate::dma::address_space::AddressSpace;
use crate::dma::fault::DmaFault;
use crate::dma::fault::FaultAccess;
use crate::irq::HostVector;
use crate::irq::Route;
use crate::testing::{
    CPUS, Fail, PARENT, REQUESTER, TestMachine, VECTORS, ram_range, trapped, vdev_spec, vm_spec,
};
use crate::vdev::VdevSpec;
use crate::vm::{VmEnd, VmSpec, VmState};

#[derive(Clone, Debug)]
enum Event {
    /// One of those that there may be.
    Define(Index),
    Remove(Index),
    Start(Index),
    End(Index, VmEnd),
    Restart(Index),
    Pause(Index),
    Resume(Index),
    Request(Index, VmEnd),
    Serve,
    CreateVdev(Index, bool),
    /// On an address space of its own, with one page mapped.
    CreateOnOwnSpace(Index, u64),
    /// On one that is made with it, of all memory or with two pages.
    CreateConfined(Index, Option<u64>),
    DestroyVdev(Index),
    /// Asked of its guest, which hears it or not.
    Dismiss(Index, bool),
    /// Those that were asked let go, or their time is over.
    Depart(bool),
    Move(Index, bool, bool),
    AttachSpace(Index, Index),
    DestroySpace(Index),
    Fault(u32),
    Interrupt(Index, Index),
    ParentReports,
    Reclaim,
    /// Time passes until what has failed is tried again.
    Retry,
    Recover,
    /// The next such step fails.
    Fail(Fail),
}

fn end() -> impl Strategy<Value = VmEnd> {
    prop_oneof![
        Just(VmEnd::PowerOff),
        Just(VmEnd::Reset),
        Just(VmEnd::FaultReset("triple fault".to_string())),
        Just(VmEnd::Stopped("monitor".to_string())),
        Just(VmEnd::Crashed("triple fault".to_string())),
    ]
}

fn fail() -> impl Strategy<Value = Fail> {
    prop::sample::select(vec![
        Fail::CreateSlice,
        Fail::CreateTable,
        Fail::Map,
        Fail::MapMore,
        Fail::Unmap,
        Fail::DestroyTable,
        Fail::Attach,
        Fail::AttachHalfway,
        Fail::Replace,
        Fail::ReplaceHalfway,
        Fail::Detach,
        Fail::AllocateVector,
        Fail::MapInterrupt,
        Fail::UnmapInterrupt,
        Fail::Tag,
        Fail::Quiesce,
        Fail::Drain,
        Fail::Resume,
        Fail::Build,
        Fail::Plug,
        Fail::Run,
        Fail::Unplug,
        Fail::Pause,
        Fail::Stop,
        Fail::TearDown,
        Fail::Recover,
    ])
}

/// Failures after which nothing is uncertain: all of it must come back.
fn clean_fail() -> impl Strategy<Value = Fail> {
    prop::sample::select(vec![
        Fail::CreateSlice,
        Fail::CreateTable,
        Fail::Map,
        Fail::MapMore,
        Fail::Attach,
        Fail::AttachHalfway,
        Fail::Replace,
        Fail::ReplaceHalfway,
        Fail::AllocateVector,
        Fail::MapInterrupt,
        Fail::Tag,
        Fail::Drain,
        Fail::Resume,
        Fail::Build,
        Fail::Plug,
        Fail::Run,
    ])
}

fn event(fail: impl Strategy<Value = Fail> + 'static) -> impl Strategy<Value = Event> {
    let index = any::<Index>;
    prop_oneof![
        2 => index().prop_map(Event::Define),
        2 => index().prop_map(Event::Remove),
        4 => index().prop_map(Event::Start),
        2 => (index(), end()).prop_map(|(vm, end)| Event::End(vm, end)),
        1 => index().prop_map(Event::Restart),
        1 => index().prop_map(Event::Pause),
        1 => index().prop_map(Event::Resume),
        1 => (index(), end()).prop_map(|(vm, end)| Event::Request(vm, end)),
        1 => Just(Event::Serve),
        5 => (index(), any::<bool>()).prop_map(|(vm, direct)| Event::CreateVdev(vm, direct)),
        2 => (index(), 0u64..1024).prop_map(|(vm, page)| Event::CreateOnOwnSpace(vm, page)),
        3 => (index(), prop::option::of(0u64..1024)).prop_map(|(vm, page)| Event::CreateConfined(vm, page)),
        4 => index().prop_map(Event::DestroyVdev),
        2 => (index(), any::<bool>()).prop_map(|(vdev, listens)| Event::Dismiss(vdev, listens)),
        2 => any::<bool>().prop_map(Event::Depart),
        2 => (index(), any::<bool>(), any::<bool>()).prop_map(|(vdev, direct, listens)| Event::Move(vdev, direct, listens)),
        3 => (index(), index()).prop_map(|(space, vdev)| Event::AttachSpace(space, vdev)),
        1 => index().prop_map(Event::DestroySpace),
        1 => (0u32..9).prop_map(Event::Fault),
        1 => (index(), index()).prop_map(|(cpu, vector)| Event::Interrupt(cpu, vector)),
        1 => Just(Event::ParentReports),
        1 => Just(Event::Reclaim),
        1 => Just(Event::Retry),
        1 => Just(Event::Recover),
        4 => fail.prop_map(Event::Fail),
    ]
}

/// Does one thing, where there is a VM for it. Refusals are answers, too.
fn happen(machine: &TestMachine, event: &Event) {
    let system = &machine.system;
    let vms = system.vms();
    let host = machine.truth;
    if let Event::Define(index) = event {
        let spec = &specs()[index.index(KNOWN.len())];
        let known = system.vm_named(&spec.name).is_some();
        assert_eq!(system.define_vms(core::slice::from_ref(spec)).is_err(), known);
        return;
    }
    if vms.is_empty() {
        return;
    }
    let pick = |index: &Index| vms[index.index(vms.len())].clone();
    let pick_vdev = |index: &Index| {
        let mut all = vms.iter().flat_map(|vm| vm.vdevs().into_iter().map(move |vdev| (vm, vdev)));
        let count = all.clone().count();
        if count == 0 { None } else { all.nth(index.index(count)) }
    };
    match event {
        Event::Define(_) => {}
        Event::Remove(vm) => {
            let vm = pick(vm);
            let kept = system.retired().iter().any(|retirement| retirement.info().vm == vm.name());
            let (state, retired) = (vm.state(), vm.quota().retired());
            let removed = system.remove_vm(&vm);
            assert_eq!(removed.is_ok(), state.may_become(VmState::Removed) && !kept, "{removed:?}");
            assert!(removed.is_err() || (vm.quota().leased(), retired) == (0, 0));
            assert_eq!(system.vm(vm.id()).is_none(), removed.is_ok());
            assert!(removed.is_err() || system.start_vm(host, &vm).is_err());
        }
        Event::Start(vm) => drop(system.start_vm(host, &pick(vm))),
        Event::End(vm, end) => drop(system.end_vm(host, &pick(vm), end)),
        Event::Restart(vm) => drop(system.restart_vm(host, &pick(vm), &VmEnd::Reset)),
        Event::Pause(vm) => drop(system.pause_vm(host, &pick(vm))),
        Event::Resume(vm) => drop(system.resume_vm(host, &pick(vm))),
        Event::Request(vm, end) => pick(vm).request(end.clone()),
        Event::Serve => drop(system.serve_requests(host)),
        Event::CreateVdev(vm, direct) => {
            let spec = if *direct { vdev_spec() } else { trapped() };
            drop(system.create_vdev(host, &pick(vm), &spec, None));
        }
        Event::CreateOnOwnSpace(vm, page) => {
            let vm = pick(vm);
            if let (Ok(space), Some(ram)) = (system.create_space(&vm), vm.ram()) {
                // The page may be RAM or not.
                drop(space.map(&ram, GuestPhys(page * 0x1000), Iova(0x5000), 0x1000, true));
                drop(system.create_vdev(host, &vm, &vdev_spec(), Some(space.id())));
                drop(space.unmap(Iova(0x5000), 0x1000));
            }
        }
        Event::CreateConfined(vm, page) => {
            let space = match page {
                None => AddressSpace::Own,
                // RAM or not.
                Some(page) => AddressSpace::DmaOnly(vec![ram_range(page * 0x1000, 0x2000)]),
            };
            drop(system.create_vdev(host, &pick(vm), &VdevSpec { space, ..vdev_spec() }, None));
        }
        Event::DestroyVdev(index) => {
            if let Some((vm, vdev)) = pick_vdev(index) {
                drop(system.destroy_vdev(host, vm, vdev.id()));
            }
        }
        Event::Dismiss(index, listens) => {
            host.lock().listens = *listens;
            if let Some((vm, vdev)) = pick_vdev(index) {
                drop(system.dismiss_vdev(host, vm, vdev.id()));
            }
        }
        Event::Depart(let_go) => {
            if *let_go {
                let all = vms.iter().flat_map(|vm| vm.vdevs()).map(|vdev| vdev.id()).collect();
                host.lock().let_go = all;
            } else if let Some(due) = system.next_departure() {
                host.set_clock(due.max(host.now_ns()));
            }
            drop(system.serve_departures(host));
        }
        Event::Move(index, direct, listens) => {
            host.lock().listens = *listens;
            if let Some((vm, vdev)) = pick_vdev(index) {
                let spec = if *direct { vdev_spec() } else { trapped() };
                let before = vm.vdevs().len();
                let moved = system.move_vdev(host, vm, vdev.id(), &spec, None);
                assert!(moved.is_ok() || vm.vdevs().len() >= before, "one that cannot move stays");
            }
        }
        Event::AttachSpace(space, vdev) => {
            let spaces: Vec<_> = vms
                .iter()
                .flat_map(|vm| vm.life.lock().spaces.iter().map(|space| space.id()).collect::<Vec<_>>())
                .collect();
            let vdevs: Vec<_> = vms.iter().flat_map(|vm| vm.vdevs()).collect();
            if !spaces.is_empty() && !vdevs.is_empty() {
                let (space, vdev) = (spaces[space.index(spaces.len())], &vdevs[vdev.index(vdevs.len())]);
                let before = vdev.ioas();
                let attached = system.attach_space(space, vdev.id());
                assert!(attached.is_err() || vdev.ioas() == Some(space));
                assert!(attached.is_ok() || [before, Some(space)].contains(&vdev.ioas()));
            }
        }
        Event::DestroySpace(vm) => {
            let vm = pick(vm);
            let last = vm.life.lock().spaces.iter().skip(1).last().map(|space| space.id());
            if let Some(last) = last {
                drop(system.destroy_space(&vm, last));
            }
        }
        Event::Fault(number) => {
            let pasid = Pasid::new(*number);
            let known =
                pasid.is_some_and(|pasid| machine.truth.lock().attached.contains_key(&(REQUESTER, pasid)));
            let owner = system.record_fault(&DmaFault {
                requester: REQUESTER,
                pasid,
                address: 0,
                access: FaultAccess::Read,
                reason: "no mapping",
                code: 0x79,
            });
            // A tag that is retired after a failed creation has no vdev; every other one has a name.
            let live = vms.iter().flat_map(|vm| vm.vdevs()).any(|vdev| vdev.pasid() == pasid);
            assert!(!live || owner.is_some());
            assert!(known || owner.is_none());
        }
        Event::Interrupt(cpu, vector) => {
            let vectors: Vec<u32> = VECTORS.collect();
            let vector =
                HostVector { vector: vectors[vector.index(vectors.len())], cpu: CPUS[cpu.index(CPUS.len())] };
            if let Some(Route::Vdev { vm, vdev, .. }) = system.routes().deliver(vector) {
                assert!(system.vm(vm).is_some_and(|vm| vm.vdev(vdev).is_some()));
            }
        }
        Event::ParentReports => {
            assert_eq!(system.parent_event(host, 0, &mut |_| ()), Drained::Empty);
        }
        Event::Reclaim => drop(system.reclaim(host)),
        Event::Retry => {
            if let Some(due) = system.next_retry() {
                host.set_clock(due.max(host.now_ns()));
                drop(system.retry_retired(host));
            }
        }
        Event::Recover => drop(system.recover_parent(host, PARENT)),
        Event::Fail(fail) => host.fail(*fail),
    }
}

/// The VMs that there may be: name, frames, quota, vdevs.
const KNOWN: [(&str, u64, u32, usize); 4] =
    [("alpha", 2, 2, 1), ("beta", 3, 3, 2), ("gamma", 4, 1, 0), ("delta", 2, 1, 1)];

fn specs() -> [VmSpec; KNOWN.len()] {
    KNOWN.map(|(name, frames, quota, vdevs)| vm_spec(name, frames, quota, vdevs))
}

/// With the first three of them.
fn machine_with_vms() -> TestMachine {
    let machine = TestMachine::new();
    machine.system.define_vms(&specs()[..3]).unwrap();
    machine
}

/// Nothing of any VM is left, so each can go.
fn remove_all(machine: &TestMachine) {
    for vm in machine.system.vms() {
        machine.system.remove_vm(&vm).unwrap();
    }
    machine.assert_as_at_start();
}

fn end_all(machine: &TestMachine) {
    machine.truth.lock().fail.clear();
    for vm in machine.system.vms() {
        drop(machine.system.end_vm(machine.truth, &vm, &VmEnd::PowerOff));
        assert!(!vm.state().is_alive());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_invariants_hold_whatever_fails(events in proptest::collection::vec(event(fail()), 1..60)) {
        let machine = machine_with_vms();
        for event in &events {
            happen(&machine, event);
            let wrong = machine.check();
            prop_assert!(wrong.is_empty(), "after {:?}: {:#?}", event, wrong);
        }
        end_all(&machine);
        machine.assert_sound();
        let info = machine.system.info();
        prop_assert_eq!((info.vdevs, info.pasids.leased), (0, 0));
        prop_assert_eq!(info.memory.free + info.memory.held, info.memory.total);
        // What is kept is what was retired, no more.
        let count = |what| info.retired.iter().filter(|r| r.what == what).count();
        prop_assert_eq!(info.pasids.retired as usize, count("pasid"));
        prop_assert_eq!(machine.truth.lock().attached.len(), count("pasid"));
        prop_assert_eq!(machine.truth.lock().vectors.len(), 1 + count("interrupt"));
        let held: u64 = info.retired.iter().filter(|r| r.what == "memory").map(|r| r.value).sum();
        prop_assert_eq!(info.memory.held, held);
        prop_assert_eq!(held % LARGE_PAGE_SIZE, 0);
        prop_assert_eq!(machine.system.pasid_infos().len(), count("pasid"));
        // And all of that comes back when the hardware works again and the device was reset.
        let report = machine.system.recover_parent(machine.truth, PARENT).unwrap();
        prop_assert_eq!((report.reclaimed.len(), report.left.len()), (info.retired.len(), 0));
        remove_all(&machine);
    }

    #[test]
    fn all_counters_return_to_their_start(events in proptest::collection::vec(event(clean_fail()), 1..60)) {
        let machine = machine_with_vms();
        for event in &events {
            happen(&machine, event);
        }
        end_all(&machine);
        remove_all(&machine);
    }
}
