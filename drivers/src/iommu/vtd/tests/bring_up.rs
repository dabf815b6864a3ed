// SPDX-License-Identifier: MIT OR Apache-2.0
//! Take-over, faults and interrupts.

use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::dma::fault::FaultAccess;
use pasidon_kernel::irq::msi::MsiController;

use super::super::dmar::{DeviceList, DeviceScope, Rmrr, ScopeKind};
use super::super::model::{
    CAP_CM, CAP_PROTECTED_MEMORY, ECAP_C, FSTS_ICE, FSTS_IQE, FSTS_ITE, FSTS_PRO, GSTS_IRES, GSTS_QIES,
    GSTS_TES, Raised,
};
use super::*;

fn refused(cap: u64, ecap: u64, dmar: &Dmar) -> String {
    let memory = Arc::new(ModelMemory::new());
    let unit = UnitModel::new(&memory, cap, ecap);
    let host = Box::leak(Box::new(ModelHost::default()));
    let result =
        Vtd::new(dmar, memory, host, true, &|_| None, &mut |_, _| Ok(ModelRegisters(Arc::clone(&unit))));
    result.err().expect("a refusal").to_string()
}

#[test]
fn registers_that_cannot_be_mapped_are_refused() {
    let map = &mut |base, _| Err(Refusal::new(format!("{base}"), "is RAM", ""));
    let host = Box::leak(Box::new(ModelHost::default()));
    let made =
        Vtd::<ModelRegisters, _>::new(&dmar(), Arc::new(ModelMemory::new()), host, true, &|_| None, map);
    assert_eq!(made.err().unwrap().why, "is RAM");
}

#[test]
fn each_missing_capability_is_named() {
    for (bit, name) in [
        (43, "ECAP.SMTS"),
        (46, "ECAP.SLTS"),
        (40, "ECAP.PASID"),
        (1, "ECAP.QI"),
        (3, "ECAP.IR"),
        (4, "ECAP.EIM"),
    ] {
        let line = refused(CAP, ECAP & !(1 << bit), &dmar());
        assert!(line.starts_with("vtd 0xfed90000: ") && line.contains(name), "{line}");
        // What older and newer versions of QEMU call it.
        for options in [" scalable-mode=on,pasid-bits=20,", " x-scalable-mode=on,x-pasid-mode=on,"] {
            assert!(line.contains(options), "{line}");
        }
    }
    let line = refused(CAP & !(0x1f << 8), ECAP & !(1 << 43) & !(1 << 1), &dmar());
    for name in ["CAP.SAGAW", "ECAP.SMTS", "ECAP.QI"] {
        assert!(line.contains(name), "{line}");
    }
    let off = Dmar { interrupt_remapping: false, ..dmar() };
    assert!(refused(CAP, ECAP, &off).contains("interrupt remapping is off"));
    let none = Dmar { units: Vec::new(), ..dmar() };
    assert!(refused(CAP, ECAP, &none).contains("no remapping unit"));
}

#[test]
fn a_unit_the_firmware_used_is_taken_over() {
    let machine = VtdRig::found(CAP | CAP_PROTECTED_MEMORY, ECAP, &dmar());
    {
        let mut state = machine.unit.state.lock().unwrap();
        state.gsts = GSTS_TES | GSTS_QIES | GSTS_IRES | 1 << 30 | 1 << 24;
        state.pmen = 1 << 31 | 1;
        state.fsts = 1 << 4;
    }
    machine.unit.poison_caches(DEVICE.rid);
    machine.vtd.take_over().unwrap();
    let state = machine.unit.state.lock().unwrap();
    assert_eq!(state.pmen, 0);
    for bit in [GSTS_TES, GSTS_QIES, GSTS_IRES] {
        assert_ne!(state.gsts & bit, 0);
    }
    drop(state);
    assert_eq!(machine.unit.dma(DEVICE.rid, None, 0, false), Err(0x39));
    assert_eq!(machine.unit.dma(DEVICE.rid, Some(1), 0, false), Err(0x39));
    assert_eq!(machine.unit.message(DEVICE.rid, 0xfee0_0010, 0), Err(0x22));
    assert_eq!(machine.unit.message(DEVICE.rid, 0xfee0_0000, 0x41), Err(0x25));
    // What the firmware left in the caches for the first tag and domain is not used either.
    machine.vtd.claim(DEVICE).unwrap();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    assert_eq!(machine.write(1, 0), Ok(4 * GIB));
}

#[test]
fn a_device_the_firmware_uses_is_not_claimed() {
    let mut dmar = dmar();
    dmar.reserved.push(Rmrr {
        segment: 0,
        base: HostPhys(0x7000_0000),
        limit: HostPhys(0x7000_ffff),
        scopes: vec![DeviceScope {
            kind: ScopeKind::Endpoint,
            enumeration: 0,
            start_bus: 0x6a,
            path: vec![(1, 0)],
        }],
    });
    let machine = VtdRig::found(CAP, ECAP, &dmar);
    machine.vtd.take_over().unwrap();
    let line = machine.vtd.claim(DEVICE).unwrap_err().to_string();
    assert!(line.contains("0000:6a:01.0") && line.contains("0x7000ffff (RMRR)"), "{line}");
    machine.vtd.claim(Requester::new(0, 0x6a, 2, 0)).unwrap();
    assert_eq!(machine.vtd.topology().reserved.len(), 1);
}

#[test]
fn devices_that_want_ats_are_named() {
    let mut dmar = dmar();
    for (device, ats_required) in [(1, true), (2, false)] {
        dmar.ats_devices.push(DeviceList {
            segment: 0,
            all: false,
            ats_required,
            scopes: vec![DeviceScope {
                kind: ScopeKind::Endpoint,
                enumeration: 0,
                start_bus: 0x6a,
                path: vec![(device, 0)],
            }],
        });
    }
    let machine = VtdRig::found(CAP, ECAP, &dmar);
    machine.vtd.take_over().unwrap();
    machine.vtd.claim(DEVICE).unwrap();
    let lines = machine.vtd.describe();
    let wanting: Vec<_> = lines.iter().filter(|line| line.0 == "ATS required").collect();
    assert_eq!(wanting, [&("ATS required", String::from("0000:6a:01.0"))]);
}

#[test]
fn capabilities_are_told() {
    let capabilities = VtdRig::new().vtd.capabilities();
    assert_eq!((capabilities.pasid_bits, capabilities.address_bits), (20, 48));
    assert_eq!(capabilities.largest_page, GIB);
}

#[test]
fn whether_what_devices_write_to_is_marked_is_told() {
    for (ecap, told, why) in [
        (
            ECAP & !(1 << 45),
            "not marked (ECAP.SLADS is 0)",
            "does not mark what devices write to (ECAP.SLADS is 0)",
        ),
        (ECAP | 1 << 45, "marked, not read", "this version does not read the marks"),
    ] {
        let machine = VtdRig::with(CAP, ecap);
        let table = machine.table(4 * GIB, 2 * MIB);
        let mut none = |_, _| panic!("nothing is known to be dirty");
        let refusal = machine.vtd.take_dirty(table, Iova(0), 2 * MIB, &mut none).unwrap_err();
        assert!(refusal.why.contains(why), "{refusal}");
        assert!(machine.vtd.describe().contains(&("dirty pages", told.into())));
    }
}

#[test]
fn it_describes_itself() {
    let machine = VtdRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.attach(2, table);
    machine.unit.state.lock().unwrap().stuck = true;
    machine.vtd.detach(DEVICE, tag(2)).unwrap_err();
    let lines = machine.vtd.describe();
    for line in [
        ("page tables", "1"),
        ("unit", "vtd 0xfed90000"),
        ("widths", "PASID 20, address 48, domain 16 bits"),
        ("features", "x2APIC destinations"),
        ("fault records", "4"),
        ("claimed", "0000:6a:01.0: 2 PASIDs attached, 1 of them ending"),
    ] {
        assert!(lines.contains(&(line.0, line.1.into())), "{line:?} in {lines:?}");
    }
}

#[test]
fn faults_come_in_order_and_in_words() {
    let machine = VtdRig::new();
    machine.vtd.set_fault_interrupt(HostVector { vector: 0x52, cpu: 0x103 });
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(0xabcde, table);
    machine.write(0xabcde, GIB).unwrap_err();
    machine.read(3, 0x5000).unwrap_err();
    machine.unit.dma(DEVICE.rid, None, 0, false).unwrap_err();
    {
        let state = machine.unit.state.lock().unwrap();
        assert_eq!(state.events, [(0x100_fee0_3000, 0x52)], "one event, x2APIC destination");
    }
    let faults = look(&machine.vtd).complete();
    let seen: Vec<_> = faults
        .iter()
        .map(|fault| (fault.pasid.map(Pasid::value), fault.address, fault.access, fault.reason))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(0xabcde), GIB, FaultAccess::Write, "not mapped for writing"),
            (Some(3), 0x5000, FaultAccess::Read, "PASID not attached"),
            (None, 0, FaultAccess::Read, "untagged DMA of a claimed device"),
        ]
    );
    assert!(faults.iter().all(|fault| fault.requester == DEVICE));
    assert!(look(&machine.vtd).complete().is_empty());
    // The records go round, and a new fault raises a new event.
    machine.read(3, 0x6000).unwrap_err();
    machine.read(3, 0x7000).unwrap_err();
    assert_eq!(machine.unit.state.lock().unwrap().events.len(), 2);
    let faults = look(&machine.vtd).complete();
    let addresses: Vec<u64> = faults.iter().map(|fault| fault.address).collect();
    assert_eq!(addresses, [0x6000, 0x7000]);
}

#[test]
fn lost_faults_are_told() {
    let machine = VtdRig::new();
    for at in 0..6 {
        machine.read(3, at * PAGE).unwrap_err();
    }
    let seen = look(&machine.vtd);
    assert!(seen.lost, "two");
    assert_eq!((seen.faults.len(), seen.left), (4, Drained::Empty));
    machine.read(3, 0).unwrap_err();
    assert_eq!(look(&machine.vtd).complete().len(), 1);
}

/// The unit announces nothing while any condition of FSTS is set, whoever set it.
#[test]
fn an_error_that_nobody_takes_does_not_silence_faults() {
    for error in [FSTS_IQE, FSTS_ITE, FSTS_ICE, FSTS_PRO] {
        let machine = VtdRig::new();
        machine.announce();
        machine.unit.state.lock().unwrap().set_error(error);
        assert_eq!(machine.announced(), 1, "FSTS {error:#x}");
        assert!(look(&machine.vtd).complete().is_empty());
        machine.read(3, 0).unwrap_err();
        assert_eq!(machine.announced(), 2, "FSTS {error:#x}");
    }
}

/// An error of the queue is for whoever waits for it; the reader leaves it, and comes again.
#[test]
fn an_error_that_somebody_waits_for_is_left_to_him() {
    for error in [FSTS_IQE, FSTS_ITE] {
        let machine = VtdRig::new();
        machine.announce();
        let waits = machine.vtd.units()[0].inner.lock();
        machine.unit.state.lock().unwrap().set_error(error);
        machine.read(3, 0).unwrap_err();
        let seen = look(&machine.vtd);
        assert_eq!((seen.faults.len(), seen.left), (1, Drained::Again));
        assert_eq!(machine.unit.state.lock().unwrap().fsts, error);
        drop(waits);
        assert_eq!(look(&machine.vtd).left, Drained::Empty);
        assert_eq!(machine.unit.state.lock().unwrap().fsts, 0);
    }
}

#[test]
fn an_interrupt_is_for_its_device_only() {
    for (cap, ecap) in [(CAP, ECAP), (CAP | CAP_CM, ECAP | ECAP_C)] {
        let machine = VtdRig::with(cap, ecap);
        let target = HostVector { vector: 0x41, cpu: 0x1_0002 };
        // What a unit in caching mode may remember.
        assert_eq!(machine.unit.message(DEVICE.rid, 0xfee0_0010, 0), Err(0x22));
        let interrupt = machine.vtd.map_interrupt(DEVICE, target).unwrap();
        let message = interrupt.message;
        assert_eq!(
            machine.unit.message(DEVICE.rid, message.address, message.data),
            Ok(Raised::Vector { destination: 0x1_0002, vector: 0x41 })
        );
        assert_eq!(machine.unit.message(DEVICE.rid + 1, message.address, message.data), Err(0x26));
        let other = machine.vtd.map_interrupt(DEVICE, target).unwrap();
        assert_ne!(other.handle, interrupt.handle);
        machine.vtd.unmap_interrupt(interrupt.handle).unwrap();
        assert_eq!(machine.unit.message(DEVICE.rid, message.address, message.data), Err(0x22));
        assert!(machine.vtd.unmap_interrupt(interrupt.handle).is_err());
        let faults = look(&machine.vtd).faults;
        assert!(faults.iter().all(|fault| fault.access == FaultAccess::Interrupt));
        assert_eq!(faults[0].reason, "interrupt not mapped");
    }
}

#[test]
fn interrupt_entries_run_out_with_a_refusal_and_come_back() {
    let machine = VtdRig::new();
    let target = HostVector { vector: 0x41, cpu: 0 };
    let mut handles = Vec::new();
    let refusal = loop {
        match machine.vtd.map_interrupt(DEVICE, target) {
            Ok(interrupt) => handles.push(interrupt.handle),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(handles.len(), 2048);
    assert!(refusal.why.contains("all 2048 entries"), "{refusal}");
    let beyond = HostVector { vector: 0x141, cpu: 0 };
    machine.vtd.unmap_interrupt(handles[77]).unwrap();
    assert!(machine.vtd.map_interrupt(DEVICE, beyond).is_err(), "not cut off");
    assert_eq!(machine.vtd.map_interrupt(DEVICE, target).unwrap().handle, handles[77]);
}
