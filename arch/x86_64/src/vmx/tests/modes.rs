// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests in other modes than 64-bit, and on their way there.

use pasidon_arch_common::testing::TestMemory;
use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;

use super::{Field, SegmentRegister, block, rig};
use crate::backend::{Backend, ControlRegister, Event, Reason};
use crate::emulate::Exception;
use crate::extension::tests::guest::{CODE, DATA, Guest, Poke, RAM, Rig, STACK};
use crate::guest::boot::{EntryMode, EntryState};

const GDT: u64 = 0x1_5000;
/// Page-directory-pointer table and page directory of three-level paging.
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;

/// Has it begin in 32-bit mode, or in real mode, without paging.
fn start(guest: &mut Guest, cr0: u64) {
    guest.vcpu.start_at(&EntryState {
        mode: EntryMode::Protected32,
        rip: CODE,
        rbx: 0,
        rsi: 0,
        cr0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        gdt: Some((GDT, 23)),
        cs: 8,
        ds: 16,
    });
    guest.vcpu.set_gpr(4, STACK);
}

/// Enters it until it halts, and does for it what it writes to EFER and control registers; how many these were.
fn boot(machine: &mut Rig, guest: &mut Guest, memory: &TestMemory) -> usize {
    for writes in 0..20 {
        match machine.enter(guest) {
            Reason::Halt => return writes,
            Reason::WriteMsr => {
                let value = guest.vcpu.gpr(0);
                assert!(machine.on(guest, |vcpu, _| vcpu.set_efer(value)));
            }
            Reason::Control { register, write: true, gpr: Some(gpr) } => {
                let value = guest.vcpu.gpr(gpr.into());
                let done = machine.on(guest, |vcpu, _| vcpu.set_control(register, value, memory));
                assert!(done.is_ok(), "{register:?} = {value:#x}");
            }
            other => panic!("{other:x?} at {:#x}", guest.vcpu.rip()),
        }
        machine.on(guest, |vcpu, _| {
            let length = vcpu.known_length().unwrap();
            vcpu.skip(length);
        });
    }
    panic!("it does not come to its end");
}

#[test]
fn a_kernel_comes_from_32_bits_to_64_and_sees_what_it_wrote() {
    let code = [
        0xb8, 0x20, 0x00, 0x00, 0x00, // mov eax, PAE
        0x0f, 0x22, 0xe0, // mov cr4, eax
        0xb8, 0x00, 0x00, 0x01, 0x00, // mov eax, page tables
        0x0f, 0x22, 0xd8, // mov cr3, eax
        0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
        0xb8, 0x01, 0x09, 0x00, 0x00, // mov eax, NXE, LME, SCE
        0x31, 0xd2, // xor edx, edx
        0x0f, 0x30, // wrmsr
        0xb8, 0x31, 0x00, 0x00, 0x80, // mov eax, PG, NE, ET, PE
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, 0x2e, 0x10, 0x00, 0x00, 0x08, 0x00, // ljmp to what follows
        0x90, // nop
        0x0f, 0x20, 0xc0, // mov rax, cr0
        0x0f, 0x20, 0xe3, // mov rbx, cr4
        0x48, 0x0f, 0xba, 0xe8, 0x1e, // bts rax, 30 (CD)
        0x0f, 0x22, 0xc0, // mov cr0, rax
        0x0f, 0x20, 0xc6, // mov rsi, cr0
        0x48, 0x89, 0xd8, // mov rax, rbx
        0x48, 0x0f, 0xba, 0xe8, 0x06, // bts rax, 6 (MCE)
        0x0f, 0x22, 0xe0, // mov cr4, rax
        0x0f, 0x20, 0xe7, // mov rdi, cr4
        0xf4, // hlt
    ];
    let (mut machine, mut guest) = rig(&code);
    start(&mut guest, 0x11);
    let writes = boot(&mut machine, &mut guest, &TestMemory::new(0, 0x1000));
    assert_eq!(writes, 4, "EFER, CR0 twice, CR4 for MCE only");
    let found = [3, 6, 7].map(|register| guest.vcpu.gpr(register));
    assert_eq!(found, [0x20, 0xc000_0031, 0x60], "as it wrote them: {found:x?}");
    machine.on(&mut guest, |vcpu, _| {
        let state = vcpu.state();
        assert_eq!((state.cr0, state.cr4, state.efer), (0xc000_0031, 0x60, 0xd01));
        assert!(state.cs.long && block(vcpu).is_64bit());
        let vmcs = &block(vcpu).vmcs;
        assert_eq!(vmcs.read(Field::GuestCr0) & 3 << 29, 0, "caches are on");
        assert_eq!(vmcs.read(Field::GuestCr4) & 0x2040, 0x2040, "VMXE and MCE");
    });
}

#[test]
fn three_level_page_tables_are_loaded_where_the_hypervisor_turns_them_on() {
    let code = [
        0xb8, 0x20, 0x00, 0x00, 0x00, // mov eax, PAE
        0x0f, 0x22, 0xe0, // mov cr4, eax
        0xb8, 0x00, 0x10, 0x01, 0x00, // mov eax, PDPT
        0x0f, 0x22, 0xd8, // mov cr3, eax
        0xb8, 0x31, 0x00, 0x00, 0x80, // mov eax, PG, NE, ET, PE
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xa1, 0x00, 0x60, 0x21, 0x00, // mov eax, [2 MiB + DATA]
        0xf4, // hlt
    ];
    let (mut machine, mut guest) = rig(&code);
    start(&mut guest, 0x11);
    let memory = TestMemory::new(0, RAM as usize);
    for (address, value) in
        [(PDPT, PD | 1), (PDPT + 8, 0), (PDPT + 16, 0), (PDPT + 24, 0), (PD, 0x83), (PD + 8, 0x83)]
    {
        guest.write(address, value);
        memory.write(GuestPhys(address), &value.to_le_bytes()).unwrap();
    }
    guest.write(DATA, 0x1234_u64);
    assert_eq!(boot(&mut machine, &mut guest, &memory), 1);
    assert_eq!(guest.vcpu.gpr(0), 0x1234);

    // Reserved bits, and no memory.
    memory.write(GuestPhys(PDPT), &(PD | 3_u64).to_le_bytes()).unwrap();
    let pge = 0xa0;
    let written = machine.on(&mut guest, |vcpu, _| {
        [&memory, &TestMemory::new(0, 0x1000)]
            .map(|memory| vcpu.set_control(ControlRegister::Cr4, pge, memory).is_ok())
    });
    assert_eq!(written, [false, false]);
    assert_eq!(machine.on(&mut guest, |vcpu, _| vcpu.cr4()), 0x20, "nothing of it is done");
}

#[test]
fn real_mode_takes_exceptions_without_error_codes() {
    let (mut machine, mut guest) = rig(&[0x90, 0x0f, 0xa2]);
    start(&mut guest, 0x10);
    guest.poke(Poke::Idt(DATA, 0x3ff));
    const HANDLER: u64 = 0x7000;
    guest.write(DATA + 4 * 13, HANDLER as u32);
    guest.write(HANDLER, 0xf4_u8);
    let protection = Exception { vector: 13, error_code: Some(0), cr2: None };
    machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Exception(protection)));
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    assert_eq!((guest.vcpu.rip(), guest.vcpu.gpr(4)), (HANDLER, STACK - 6), "flags, CS, IP");
    guest.jump(CODE);
    assert_eq!(machine.enter(&mut guest), Reason::Cpuid);
}

#[test]
fn tasks_that_the_guest_switches_are_named() {
    // int 80h, through a task gate.
    let (mut machine, mut guest) = rig(&[0xcd, 0x80, 0xf4]);
    start(&mut guest, 0x31);
    const IDT: u64 = 0x1_7000;
    guest.poke(Poke::Idt(IDT, 0x7ff));
    // A task gate, to a task state segment behind the other descriptors.
    guest.write(IDT + 8 * 0x80, 0x0000_e500_0018_0000_u64);
    guest.write(GDT + 24, 0x0000_8901_8000_0067_u64);
    block(&mut guest.vcpu).vmcs.write(Field::GuestGdtrLimit, 31);
    assert_eq!(machine.enter(&mut guest), Reason::TaskSwitch);
}

#[test]
fn a_step_in_a_shadow_can_be_delivered() {
    // sti; nop; hlt, and the same behind a move to SS that INT1 follows: mov ss, ecx; int1
    for (code, register) in [(&[0xfb_u8, 0x90, 0xf4] as &[u8], 0), (&[0x8e, 0xd1, 0xf1, 0xf4], 0x10)] {
        let (mut machine, mut guest) = rig(code);
        guest.vcpu.set_gpr(1, register);
        guest.set_rflags(0x102);
        let exception = match machine.enter(&mut guest) {
            Reason::Exception(exception) => exception,
            other => panic!("{other:?}"),
        };
        let (shadow, pending) = machine
            .on(&mut guest, |vcpu, _| (block(vcpu).shadow(), block(vcpu).vmcs.read(Field::PendingDebug)));
        assert_eq!((shadow, pending), (false, 0), "an entry with a shadow and TF wants a pending step");
        machine.on(&mut guest, |vcpu, _| vcpu.inject(Event::Exception(exception)));
        assert_eq!(machine.delivered(&mut guest), Some(1));
    }
}

#[test]
fn long_mode_cannot_be_turned_on_from_a_64_bit_segment() {
    // mov cr0, eax
    let (mut machine, mut guest) = rig(&[0x0f, 0x22, 0xc0, 0xf4]);
    start(&mut guest, 0x31);
    let vmcs = &mut block(&mut guest.vcpu).vmcs;
    vmcs.write(Field::GuestEfer, 0x100);
    vmcs.write(Field::GuestCr4, 0x2060);
    vmcs.write(Field::Cr4Shadow, 0x20);
    vmcs.write_segment(SegmentRegister::Cs, 8, u32::MAX, 0xe09b, 0);
    let value = 0xc000_0031;
    guest.vcpu.set_gpr(0, value);
    let reason = machine.enter(&mut guest);
    assert!(matches!(reason, Reason::Control { register: ControlRegister::Cr0, .. }), "{reason:?}");
    let memory = TestMemory::new(0, 0x1000);
    let written = machine.on(&mut guest, |vcpu, _| vcpu.set_control(ControlRegister::Cr0, value, &memory));
    assert!(written.is_err());
}
