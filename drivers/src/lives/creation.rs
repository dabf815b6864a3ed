// SPDX-License-Identifier: MIT OR Apache-2.0
//! Creations of a vdev, each step of which fails in turn: queue, memory, interrupts and a place on the guest's bus
//! together, or nothing.

use core::fmt::Debug;

use super::*;
use crate::accel::dsa::{Enqueue, Store, Submission, TYPE_SWQ};

/// How a vdev's DMA gets to the device, and with what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// A queue of its own.
    Dedicated,
    /// A share of one.
    Shared,
    /// The same without an IOMMU.
    Untranslated,
}

/// Nothing is submitted here.
struct Portals;

impl Enqueue for Portals {
    fn enqueue(&self, _offset: u64, _descriptor: &Submission) -> bool {
        unreachable!()
    }
}

impl Store for Portals {
    fn store(&self, _offset: u64, _descriptor: &Submission) {
        unreachable!()
    }
}

impl Way {
    fn rig_on(self, device: Arc<Model>) -> Rig {
        match self {
            Self::Dedicated => Rig::with(device, Sending::Tagged(None), 0),
            Self::Shared => Rig::with(device, Sending::Tagged(Some(Arc::new(Portals))), 8),
            Self::Untranslated => Rig::with(device, Sending::Untranslated(Some(Arc::new(Portals))), 8),
        }
    }

    /// With interrupts for more than one share.
    fn rig(self) -> Rig {
        let device = Model::new(0x11fb);
        device.state.lock().gencap |= 1 << 25;
        self.rig_on(device)
    }

    fn spec(self) -> VdevSpec {
        let type_name = if self == Self::Dedicated { TYPE_DWQ } else { TYPE_SWQ };
        VdevSpec {
            parent: "dsa0".to_string(),
            type_name: type_name.to_string(),
            entries: None,
            weight: None,
            space: AddressSpace::Vm,
        }
    }
}

/// Everything that a creation takes, as the system, the drivers and the hardware have it.
fn books(rig: &Rig, vm: &Vm) -> impl PartialEq + Debug + use<> {
    let reached: Vec<u32> = (0..8)
        .filter(|pasid| rig.unit.dma(DEVICE.rid, (*pasid > 0).then_some(*pasid), 0x5000, true).is_ok())
        .collect();
    let info = rig.system.info();
    let parents = rig.system.parent_infos();
    let state = rig.device.state.lock();
    (
        (info.memory, info.pasids, info.vdevs, info.retired, parents),
        (vm.quota().leased(), vm.quota().retired(), vm.vdevs().len()),
        rig.host.vectors.lock().unwrap().clone(),
        (rig.pages.used(), reached),
        (state.msix, state.msixperm, state.ims, state.wqcfg, state.handles.clone()),
        rig.boards.on(vm, |board| (board.slots.len(), board.portals.clone())),
    )
}

/// Tries to create a vdev in `trouble`. Where that is refused, nothing is left of it; and then one can be created. The
/// refusal, and the pages that tables of the IOMMU have in the end.
fn attempt<T>(
    way: Way,
    trouble: impl FnOnce(&Rig, &Vm) -> T,
    relief: impl FnOnce(&Rig, &Vm, T),
) -> (Option<String>, usize) {
    let rig = way.rig();
    let vm = rig.bare_vm("alpha");
    let create = || rig.system.create_vdev(&rig.boards, &vm, &way.spec(), None);
    let before = books(&rig, &vm);
    let cause = trouble(&rig, &vm);
    let created = create();
    relief(&rig, &vm, cause);
    let refusal = match created {
        Ok(vdev) => {
            rig.destroy(&vm, vdev);
            None
        }
        Err(refusal) => {
            // What the unit did not confirm is asked again.
            assert_eq!(rig.system.reclaim(&rig.boards).left, []);
            Some(refusal.to_string())
        }
    };
    assert_eq!(books(&rig, &vm), before, "{way:?}: {refusal:?}");
    let vdev = create().unwrap();
    assert_eq!(vm.vdevs().len(), 1);
    rig.destroy(&vm, vdev);
    assert_eq!(books(&rig, &vm), before, "{way:?}: {refusal:?}");
    assert_eq!(rig.end(&vm), 0);
    (refusal, rig.tables.used())
}

/// Pages of tables in the end where nothing fails.
fn pages(way: Way) -> usize {
    let (refusal, used) = attempt(way, |_, _| (), |_, _, ()| ());
    assert_eq!(refusal, None);
    used
}

/// How many steps of a kind a creation has: it is made to fail at the first of them, at the second, and so on, until it
/// succeeds.
fn steps(way: Way, trouble: impl Fn(&Rig, usize), relief: impl Fn(&Rig)) -> usize {
    let used = pages(way);
    for step in 0..100 {
        let (refusal, left) = attempt(way, |rig, _| trouble(rig, step), |rig, _, ()| relief(rig));
        assert_eq!(left, used, "{way:?}: step {step} has cost pages of tables: {refusal:?}");
        if refusal.is_none() {
            return step;
        }
    }
    panic!("{way:?} never succeeds");
}

/// One thing that a creation needs is not there, which the refusal says: so that step was reached.
fn without<T>(way: Way, why: &str, trouble: impl FnOnce(&Rig, &Vm) -> T, relief: impl FnOnce(&Rig, &Vm, T)) {
    let (refusal, left) = attempt(way, trouble, relief);
    let refusal = refusal.unwrap_or_default();
    assert!(refusal.contains(why), "{way:?}: not reached: {refusal}");
    assert_eq!(left, pages(way), "{way:?}: {refusal}");
}

const WAYS: [Way; 3] = [Way::Dedicated, Way::Shared, Way::Untranslated];

#[test]
fn without_a_queue_there_is_nothing() {
    for (way, why) in
        [(Way::Dedicated, "9th of 8"), (Way::Shared, "258th of 257"), (Way::Untranslated, "265th of 264")]
    {
        let all = |rig: &Rig, _: &Vm| {
            let VdevSpec { type_name, .. } = way.spec();
            let request = VdevRequest { vm: "other", type_name: &type_name, entries: None, weight: None };
            core::iter::from_fn(|| rig.parent.create(&request).ok()).collect::<Vec<_>>()
        };
        without(way, why, all, |_, _, models| drop(models));
    }
}

#[test]
fn without_a_page_for_completion_records_there_is_nothing() {
    for way in [Way::Shared, Way::Untranslated] {
        let relief = |rig: &Rig, _: &Vm, ()| rig.pages.limit(usize::MAX);
        without(way, "completion records", |rig, _| rig.pages.limit(0), relief);
    }
}

#[test]
fn without_a_pasid_there_is_nothing() {
    for way in [Way::Dedicated, Way::Shared] {
        // The VM has used all that it may have.
        let first = |rig: &Rig, vm: &Vm| rig.system.create_vdev(&rig.boards, vm, &way.spec(), None).unwrap();
        without(way, "quota of 1 used up", first, |rig, vm, vdev| rig.destroy(vm, vdev));
    }
}

#[test]
fn each_page_of_a_table_that_is_not_there() {
    let limited = |way| steps(way, |rig, left| rig.tables.limit(left), |rig| rig.tables.limit(usize::MAX));
    let counts = WAYS.map(limited);
    // A share has a window of its own in the address space.
    assert!(counts[0] > 0 && counts[1] > counts[0] && counts[2] == 0, "{counts:?}");
}

#[test]
fn each_command_that_the_iommu_refuses() {
    let refuse = |rig: &Rig, nth: Option<usize>| rig.unit.state.lock().unwrap().refuse_nth = nth;
    let counts = WAYS.map(|way| steps(way, |rig, nth| refuse(rig, Some(nth)), |rig| refuse(rig, None)));
    assert!(counts[0] > 0 && counts[1] >= counts[0] && counts[2] == 0, "{counts:?}");
}

#[test]
fn without_an_interrupt_there_is_nothing() {
    for way in WAYS {
        let all = |rig: &Rig, _: &Vm| {
            let mut vectors = rig.host.vectors.lock().unwrap();
            core::mem::replace(&mut *vectors, (0x40..0x60).collect())
        };
        let relief = |rig: &Rig, _: &Vm, vectors| *rig.host.vectors.lock().unwrap() = vectors;
        without(way, "no free interrupt vector", all, relief);
    }
    let mute = |rig: &Rig, mute: bool| rig.host.mute.store(mute, Ordering::Relaxed);
    let why = "cannot raise it without interrupt remapping";
    without(Way::Untranslated, why, |rig, _| mute(rig, true), |rig, _, ()| mute(rig, false));
}

#[test]
fn without_a_place_on_the_guests_bus_there_is_nothing() {
    for way in WAYS {
        let exchange = |rig: &Rig, vm: &Vm, bus: PciBus| {
            rig.boards.on(vm, |board| core::mem::replace(&mut board.bus, bus))
        };
        let full = |rig: &Rig, vm: &Vm| exchange(rig, vm, PciBus::new(&[PCI_WINDOW], 0));
        without(way, "all 0 slots are taken", full, |rig, vm, bus| drop(exchange(rig, vm, bus)));
    }
}

/// The device can send one PASID: each vdev in turn has it, and there are never two.
#[test]
fn without_a_pasid_that_the_device_can_send_there_is_nothing() {
    // A device with a shared queue offers no more shares than it has PASIDs.
    let shares = "2nd of 1 shares";
    for (way, why) in
        [(Way::Dedicated, "all that the device can send, 1..=1, are in use"), (Way::Shared, shares)]
    {
        let device = Model::new(0x11fb);
        device.config.set_pasid_bits(1);
        let rig = way.rig_on(device);
        let (alpha, beta) = (rig.bare_vm("alpha"), rig.bare_vm("beta"));
        let create = |vm| rig.system.create_vdev(&rig.boards, vm, &way.spec(), None);
        for vm in [&alpha, &beta] {
            rig.destroy(vm, create(vm).unwrap());
        }
        for (vm, other) in [(&alpha, &beta), (&beta, &alpha), (&alpha, &beta)] {
            let first = create(vm).unwrap();
            let (before, used) = (books(&rig, other), rig.tables.used());
            let refusal = create(other).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
            assert_eq!(books(&rig, other), before, "{way:?}");
            assert_eq!(rig.tables.used(), used, "{way:?}");
            rig.destroy(vm, first);
        }
        assert_eq!((rig.end(&alpha), rig.end(&beta)), (0, 0));
    }
}
