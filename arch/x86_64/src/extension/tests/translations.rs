// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stage-2 tables, and what a processor keeps of them.

use pasidon_arch_common::hardware::Stage2;
use pasidon_cpu::Pages;
use pasidon_kernel::base::addr::{GuestPhys, HostPhys, PAGE_SIZE};

use super::guest::{CODE, DATA, Guest, Rig};
use crate::backend::Reason;
use crate::extension::{Extension, Pcpu};

super::on_both! {
    a_translation_is_used_until_it_is_flushed,
    no_guest_sees_anothers_memory_however_many_there_are,
    a_flush_of_one_guest_is_not_lost_when_another_one_comes_between,
    a_portal_is_the_devices_page_and_no_code,
}

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

fn a_translation_is_used_until_it_is_flushed(extension: Extension) {
    let mut machine = Rig::new(extension);
    let (old, new) = (page(0xaa), page(0xbb));
    let mut guest = Guest::new(extension, &LOOK);
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

fn no_guest_sees_anothers_memory_however_many_there_are(extension: Extension) {
    let mut machine = Rig::new(extension);
    if let Pcpu::Svm(pcpu) = &mut machine.pcpu {
        // Every second one that comes begins a generation of ASIDs.
        pcpu.have_guest_asids(2);
    }
    let mut guests: [Guest; 4] = core::array::from_fn(|_| Guest::new(extension, &LOOK));
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

fn a_flush_of_one_guest_is_not_lost_when_another_one_comes_between(extension: Extension) {
    let mut machine = Rig::new(extension);
    let (old, new) = (page(0xaa), page(0xbb));
    let (mut first, mut second) = (Guest::new(extension, &LOOK), Guest::new(extension, &LOOK));
    first.table.map_portal(GuestPhys(DEVICE), HostPhys(old.address()), PAGE_SIZE).unwrap();
    assert_eq!(look(&mut machine, &mut first, DEVICE, false), 0xaa);
    first.table.unmap_portal(GuestPhys(DEVICE), PAGE_SIZE);
    first.table.map_portal(GuestPhys(DEVICE), HostPhys(new.address()), PAGE_SIZE).unwrap();
    assert_eq!(look(&mut machine, &mut second, DATA, true), 0);
    assert_eq!(look(&mut machine, &mut first, DEVICE, true), 0xbb);
}

fn a_portal_is_the_devices_page_and_no_code(extension: Extension) {
    let mut machine = Rig::new(extension);
    let device = Pages::new(1);
    machine.processor.device(&device);
    // mov dword [rsi + 16], ecx; movaps [rsi + 32], xmm0; mov rax, [rsi + 8]; jmp rsi
    let code = [0x89, 0x4e, 0x10, 0x0f, 0x29, 0x46, 0x20, 0x48, 0x8b, 0x46, 0x08, 0xff, 0xe6];
    let mut guest = Guest::new(extension, &code);
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
