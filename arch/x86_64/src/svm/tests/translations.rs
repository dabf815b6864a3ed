// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested tables, and what a processor keeps of them under an ASID.

use pasidon_arch_common::hardware::Stage2;
use pasidon_cpu::{Model, Pages, Processor};
use pasidon_kernel::base::addr::{GuestPhys, HostPhys, PAGE_SIZE};

use super::super::SvmPcpu;
use super::super::pcpu::Asids;
use super::guest::{CODE, DATA, Guest, Rig, frames};
use crate::backend::{Backend, Reason};
use crate::cpu::{self, msr};

/// mov rax, [rsi]; hlt; jmp to it
const LOOK: [u8; 6] = [0x48, 0x8b, 0x06, 0xf4, 0xeb, 0xfa];
const DEVICE: u64 = 0x3000_0000;

/// What the guest reads at `address`.
fn look(machine: &mut Rig, guest: &mut Guest, address: u64, flush: bool) -> u64 {
    guest.vcpu.set_gpr(6, address);
    guest.jump(CODE);
    assert_eq!(machine.enter_flushed(guest, flush), Reason::Halt);
    guest.vcpu.gpr(0)
}

fn page(value: u64) -> Pages {
    let page = Pages::new(1);
    page.write(0, value);
    page
}

#[test]
fn a_translation_is_used_until_it_is_flushed() {
    let mut machine = Rig::new();
    let (old, new) = (page(0xaa), page(0xbb));
    let mut guest = Guest::new(&LOOK);
    let map = |guest: &mut Guest, to: &Pages| {
        guest.table.unmap_portal(GuestPhys(DEVICE), PAGE_SIZE);
        guest.table.map_portal(GuestPhys(DEVICE), HostPhys(to.address()), PAGE_SIZE).unwrap();
    };
    map(&mut guest, &old);
    assert_eq!(look(&mut machine, &mut guest, DEVICE, false), 0xaa);
    map(&mut guest, &new);
    assert_eq!(look(&mut machine, &mut guest, DEVICE, false), 0xaa, "or this test shows nothing");
    assert_eq!(look(&mut machine, &mut guest, DEVICE, true), 0xbb);
}

#[test]
fn no_guest_sees_anothers_memory_through_an_asid_that_was_handed_on() {
    let mut machine = Rig::new();
    // Two for guests: every second one that comes begins a generation.
    machine.pcpu.asids = Asids::new(3);
    let mut guests: [Guest; 4] = core::array::from_fn(|_| Guest::new(&LOOK));
    for (index, guest) in (0u64..).zip(&guests) {
        guest.write(DATA, 0xaa00 + index);
    }
    for round in 0..3 {
        for index in [0, 1, 2, 3, 0, 2, 1, 1, 3] {
            let seen = look(&mut machine, &mut guests[index], DATA, false);
            assert_eq!(seen, 0xaa00 + index as u64, "round {round}");
        }
    }
}

#[test]
fn a_flush_of_one_guest_is_not_lost_when_another_one_comes_between() {
    let mut machine = Rig::new();
    let (old, new) = (page(0xaa), page(0xbb));
    let (mut first, mut second) = (Guest::new(&LOOK), Guest::new(&LOOK));
    first.table.map_portal(GuestPhys(DEVICE), HostPhys(old.address()), PAGE_SIZE).unwrap();
    assert_eq!(look(&mut machine, &mut first, DEVICE, false), 0xaa);
    first.table.unmap_portal(GuestPhys(DEVICE), PAGE_SIZE);
    first.table.map_portal(GuestPhys(DEVICE), HostPhys(new.address()), PAGE_SIZE).unwrap();
    assert_eq!(look(&mut machine, &mut second, DATA, true), 0);
    assert_eq!(look(&mut machine, &mut first, DEVICE, true), 0xbb);
}

#[test]
fn a_portal_is_the_devices_page_and_no_code() {
    let mut machine = Rig::new();
    let device = Pages::new(1);
    machine.processor.device(&device);
    // mov dword [rsi + 16], ecx; movaps [rsi + 32], xmm0; mov rax, [rsi + 8]; jmp rsi
    let code = [0x89, 0x4e, 0x10, 0x0f, 0x29, 0x46, 0x20, 0x48, 0x8b, 0x46, 0x08, 0xff, 0xe6];
    let mut guest = Guest::new(&code);
    guest.table.map_portal(GuestPhys(DEVICE), HostPhys(device.address()), PAGE_SIZE).unwrap();
    guest.vcpu.set_gpr(6, DEVICE);
    match machine.enter(&mut guest) {
        Reason::Stage2 { fault, fetch } => assert_eq!((fault.address, fetch), (DEVICE, true)),
        other => panic!("{other:?}"),
    }
    let seen = machine.processor.accesses();
    let brief: alloc::vec::Vec<_> =
        seen.iter().map(|access| (access.offset, access.size, access.write)).collect();
    assert_eq!(brief, [(16, 4, true), (32, 16, true), (8, 8, false)], "{seen:?}");
}

#[test]
fn a_control_block_that_is_refused_costs_a_flush_and_says_so() {
    let mut machine = Rig::new();
    let mut guest = Guest::new(&LOOK);
    assert_eq!(look(&mut machine, &mut guest, DATA, false), 0);
    guest.vcpu.vmcb.save.dr7 = 1 << 32;
    let (vcpu, pcpu) = (&mut guest.vcpu, &mut machine.pcpu);
    let reason = machine.processor.run(|| vcpu.enter(pcpu, true)).unwrap();
    assert_eq!(reason, Reason::Failed(u64::MAX));
    assert!(machine.processor.refusal().unwrap().contains("DR7"));
    assert_eq!(machine.pcpu.take_tlb_control(false), 1, "everything");
}

#[test]
fn svm_that_the_firmware_has_locked_off_is_refused() {
    let mut processor = Processor::new(Model::Ryzen);
    let refusal = processor.run(|| {
        // SAFETY: VM_CR exists here; SVM is off.
        unsafe { cpu::write_msr(msr::VM_CR, 1 << 4) };
        SvmPcpu::enable(0, frames()).map(drop)
    });
    assert!(refusal.unwrap().unwrap_err().why.contains("locked off"));
}

#[test]
fn svm_is_turned_on_and_nothing_else_changes() {
    let mut processor = Processor::new(Model::Ryzen);
    // SAFETY: EFER exists on every 64-bit processor.
    let efer = || unsafe { cpu::read_msr(msr::EFER) };
    let before = processor.run(efer).unwrap();
    let pcpu = processor.run(|| SvmPcpu::enable(3, frames())).unwrap().unwrap();
    assert_eq!(processor.run(efer).unwrap(), before | 1 << 12);
    assert!(pcpu.assists.next_rip && !pcpu.assists.decode && pcpu.flush_by_asid, "as this model has it");
}
