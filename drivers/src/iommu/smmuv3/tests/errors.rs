// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that are refused, units that stop, devices that do not answer, and faults in words.

use pasidon_kernel::base::drained::Drained;
use pasidon_kernel::dma::fault::FaultAccess;

use super::super::model::IDR0_ATS;
use super::*;

const CFGI_STE: u64 = 0x03;
const CFGI_CD: u64 = 0x05;
const TLBI_ASID: u64 = 0x11;

fn refuse(machine: &SmmuRig, opcode: u64, times: usize) {
    machine.unit.state.lock().unwrap().refuse = Some((opcode, times));
}

#[test]
fn a_refused_command_is_reported_and_the_queue_goes_on() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    assert!(machine.write(1, 0).is_ok());
    for opcode in [CFGI_CD, TLBI_ASID] {
        refuse(&machine, opcode, 1);
        let refusal = machine.smmu.detach(DEVICE, tag(1)).unwrap_err();
        assert!(refusal.why.contains("refused command"), "{refusal}");
        assert!(machine.is_taken(1));
        assert!(machine.smmu.attach(DEVICE, tag(1), table).is_err(), "its end is not confirmed");
        assert!(machine.smmu.destroy_table(table).is_err());
    }
    machine.detach(1);
    assert_eq!(machine.write(1, 0), Err(0x0a));
    machine.smmu.destroy_table(table).unwrap();
}

#[test]
fn an_attachment_that_cannot_be_announced_keeps_its_tag() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    refuse(&machine, CFGI_CD, 1);
    let failed = machine.smmu.attach(DEVICE, tag(1), table).unwrap_err();
    assert!(failed.tag_kept, "something is left behind");
    assert!(machine.is_taken(1));
    assert!(machine.smmu.destroy_table(table).is_err());
    machine.detach(1);
    machine.attach(1, table);
    assert_eq!(machine.write(1, 0), Ok(4 * GIB));
}

#[test]
fn a_claim_that_cannot_be_announced_stays_blocked() {
    let machine = SmmuRig::found(IDR0, IDR1);
    machine.smmu.take_over().unwrap();
    refuse(&machine, CFGI_STE, 1);
    assert!(machine.smmu.claim(DEVICE).is_err());
    assert!(machine.write(1, 0).is_err());
    assert!(machine.unit.dma(STREAM, None, 0, true).is_err());
}

#[test]
fn an_unmap_that_failed_is_made_up_for_by_the_next() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.smmu.map(table, Iova(GIB), HostPhys(8 * GIB), 2 * MIB, true).unwrap();
    machine.attach(1, table);
    assert!(machine.write(1, 0).is_ok());
    refuse(&machine, TLBI_ASID, 1);
    assert!(machine.smmu.unmap(table, Iova(0), 2 * MIB).is_err());
    // The unit may still hold it, as here; no page of the table was freed.
    assert_eq!(machine.write(1, 0), Ok(4 * GIB));
    machine.smmu.unmap(table, Iova(GIB), 2 * MIB).unwrap();
    assert_eq!(machine.write(1, 0), Err(0x10));
}

#[test]
fn a_unit_that_stops_is_given_up_for_good() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    machine.unit.state.lock().unwrap().stuck = true;
    let refusal = machine.smmu.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("CMDQ_CONS"), "{refusal}");
    machine.unit.state.lock().unwrap().stuck = false;
    let refusal = machine.smmu.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("earlier error"), "{refusal}");
    assert!(machine.is_taken(1));
}

#[test]
fn a_unit_that_refuses_everything_is_given_up() {
    let machine = SmmuRig::new();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    refuse(&machine, 0x46, usize::MAX);
    assert!(machine.smmu.detach(DEVICE, tag(1)).is_err());
    machine.unit.state.lock().unwrap().refuse = None;
    let refusal = machine.smmu.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("earlier error"), "{refusal}");
}

#[test]
fn a_device_that_does_not_answer_keeps_its_tag() {
    let machine = SmmuRig::found(IDR0 | IDR0_ATS, IDR1);
    machine.smmu.take_over().unwrap();
    machine.smmu.claim_with_device_tlb(DEVICE, TLB).unwrap();
    let table = machine.table(4 * GIB, 2 * MIB);
    machine.attach(1, table);
    {
        let mut state = machine.unit.state.lock().unwrap();
        state.silent_devices = 1;
        state.device_tlbs.insert((STREAM, 1));
    }
    let refusal = machine.smmu.detach(DEVICE, tag(1)).unwrap_err();
    assert!(refusal.why.contains("did not answer"), "{refusal}");
    assert!(machine.is_taken(1));
    machine.detach(1);
    assert!(machine.unit.state.lock().unwrap().device_tlbs.is_empty());
}

#[test]
fn faults_say_who_tried_what() {
    let machine = SmmuRig::new();
    let table = machine.smmu.create_table().unwrap();
    machine.smmu.map(table, Iova(0), HostPhys(4 * GIB), PAGE, false).unwrap();
    machine.attach(9, table);
    assert!(machine.write(9, 0x10).is_err());
    assert!(machine.read(9, 5 * PAGE + 3).is_err());
    assert!(machine.write(8, 0).is_err());
    assert!(machine.write(0xf_fff0, 0).is_err());
    assert!(machine.unit.dma(STREAM, None, 0x7000, true).is_err());
    assert!(machine.unit.dma(STREAM + 1, Some(9), 0, true).is_err());
    let seen = look(&machine.smmu).complete();
    let words: Vec<_> = seen
        .iter()
        .map(|fault| (fault.pasid.map(Pasid::value), fault.address, fault.access, fault.reason))
        .collect();
    assert_eq!(
        words,
        [
            (Some(9), 0, FaultAccess::Write, "not mapped for writing"),
            (Some(9), 5 * PAGE, FaultAccess::Read, "not mapped for reading"),
            (Some(8), 0, FaultAccess::Write, "PASID not attached"),
            (Some(0xf_fff0), 0, FaultAccess::Write, "PASID not attached"),
            (None, 0x7000, FaultAccess::Write, "untagged DMA of a claimed device"),
            (Some(9), 0, FaultAccess::Write, "device not claimed (no stream table entry)"),
        ]
    );
    assert!(seen[..5].iter().all(|fault| fault.requester == DEVICE));
    assert_eq!(seen[5].requester, Requester::new(0, 0x6a, 1, 1));
    assert!(look(&machine.smmu).complete().is_empty());
}

#[test]
fn lost_faults_are_told_and_the_queue_goes_on() {
    let machine = SmmuRig::new();
    for _ in 0..3 {
        // 128 records fit.
        for round in 0..200u64 {
            assert!(machine.unit.dma(STREAM, None, round * PAGE, true).is_err());
        }
        let first = look(&machine.smmu);
        assert!(first.lost);
        assert_eq!((first.faults.len(), first.left), (64, Drained::Again));
        let seen = look(&machine.smmu).complete();
        assert_eq!(seen.len(), 64);
        assert_eq!(seen[63].address, 127 * PAGE, "the oldest are kept");
        assert!(machine.write(3, 0).is_err());
        assert_eq!(look(&machine.smmu).complete().len(), 1);
    }
    // A stream that no PCI function has.
    assert!(machine.unit.dma(0x1_2345, None, 0, true).is_err());
    let seen = look(&machine.smmu);
    assert_eq!((seen.faults.len(), seen.lost, seen.strangers), (0, false, vec![0x1_2345]));
}

/// A unit that could not write an event says so by its global error, and does so each time.
#[test]
fn global_errors_are_announced_again_and_again() {
    let machine = SmmuRig::new();
    machine.announce();
    for round in 1..4 {
        for error in 2..=8 {
            machine.unit.state.lock().unwrap().raise_error(1 << error);
            let lost = error == 2;
            let seen = look(&machine.smmu);
            assert_eq!((seen.lost, seen.left), (lost, Drained::Empty), "GERROR {error}");
        }
        assert_eq!(machine.announced(), round * 7);
    }
    let described = machine.smmu.describe();
    assert!(described.contains(&("state", "out of service (GERROR.SFM_ERR)".into())));
    // An error of the command queue is for whoever waits for it.
    machine.unit.state.lock().unwrap().raise_error(1);
    assert_eq!(look(&machine.smmu).left, Drained::Empty);
    let state = machine.unit.state.lock().unwrap();
    assert!(state.command_error());
}

/// A descriptor that was left on the way: what is unmapped from either table is forgotten all the same.
#[test]
fn what_is_unmapped_after_a_replacement_that_failed_is_out_of_reach() {
    for nth in 0..4 {
        let machine = SmmuRig::new();
        let (old, new) = (machine.table(4 * GIB, 2 * MIB), machine.table(8 * GIB, 2 * MIB));
        machine.attach(1, old);
        Rig::send(&machine, &[1], true);
        Rig::refuse_nth(&machine, nth);
        assert!(machine.smmu.replace(DEVICE, tag(1), new).is_err());
        Rig::refuse_nth(&machine, usize::MAX);
        Rig::send(&machine, &[], false);
        let _before = machine.write(1, 0);
        for table in [old, new] {
            machine.smmu.unmap(table, Iova(0), 2 * MIB).unwrap();
        }
        assert!(machine.write(1, 0).is_err(), "nth {nth}");
    }
}
