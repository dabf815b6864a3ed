// SPDX-License-Identifier: MIT OR Apache-2.0
//! What leaves a guest, and what does not.

use super::super::event::{ALIGNMENT_CHECK, DEBUG_EXCEPTION};
use super::super::{DR6_BS, DR6_RESET, RFLAGS_FIXED, RFLAGS_TF};
use super::guest::{CODE, CR4, DATA, Guest, RAM, Rig, STACK};
use crate::backend::{Backend, IoExit, Reason};
use crate::emulate::Fault;

const HLT: u8 = 0xf4;

#[test]
fn each_instruction_that_leaves_the_guest_says_which_it_is_and_how_long() {
    let io = |port, size, input, string| Reason::Io(IoExit { port, size, input, string });
    let cr4 = |write| Reason::Cr4 { write, gpr: None };
    let mut machine = Rig::new();
    for (name, code, reason) in [
        ("cpuid", &[0x0f_u8, 0xa2] as &[u8], Reason::Cpuid),
        ("hlt", &[0xf4], Reason::Halt),
        ("in al, 60h", &[0xe4, 0x60], io(0x60, 1, true, false)),
        ("out dx, ax", &[0x66, 0xef], io(0xcf8, 2, false, false)),
        ("out dx, eax", &[0xef], io(0xcf8, 4, false, false)),
        ("rep insb", &[0xf3, 0x6c], io(0xcf8, 1, true, true)),
        ("rep outsd", &[0xf3, 0x6f], io(0xcf8, 4, false, true)),
        ("rdmsr", &[0x0f, 0x32], Reason::ReadMsr),
        ("wrmsr", &[0x0f, 0x30], Reason::WriteMsr),
        ("vmmcall", &[0x0f, 0x01, 0xd9], Reason::Hypercall),
        ("xsetbv", &[0x0f, 0x01, 0xd1], Reason::Xsetbv),
        ("mov rax, cr4", &[0x0f, 0x20, 0xe0], cr4(false)),
        ("mov cr4, rax", &[0x0f, 0x22, 0xe0], cr4(true)),
        ("rdpmc", &[0x0f, 0x33], Reason::Forbidden),
        ("invd", &[0x0f, 0x08], Reason::Ignored),
        ("wbinvd", &[0x0f, 0x09], Reason::Ignored),
        ("monitor", &[0x0f, 0x01, 0xc8], Reason::Undefined),
        ("mwait", &[0x0f, 0x01, 0xc9], Reason::Undefined),
        ("vmrun", &[0x0f, 0x01, 0xd8], Reason::Undefined),
        ("vmload", &[0x0f, 0x01, 0xda], Reason::Undefined),
        ("vmsave", &[0x0f, 0x01, 0xdb], Reason::Undefined),
        ("stgi", &[0x0f, 0x01, 0xdc], Reason::Undefined),
        ("clgi", &[0x0f, 0x01, 0xdd], Reason::Undefined),
        ("skinit", &[0x0f, 0x01, 0xde], Reason::Undefined),
        ("invlpga", &[0x0f, 0x01, 0xdf], Reason::Undefined),
    ] {
        let mut guest = Guest::new(code);
        guest.write(CODE + code.len() as u64, HLT);
        // MONITOR and MWAIT want no extensions, what repeats a count.
        let count = name.starts_with("rep").into();
        for (register, value) in [(0, CR4), (1, count), (2, 0xcf8), (6, DATA), (7, DATA)] {
            guest.vcpu.set_gpr(register, value);
        }
        assert_eq!(machine.enter(&mut guest), reason, "{name}");
        assert_eq!(guest.vcpu.rip(), CODE, "{name} is not carried out");
        let length = guest.vcpu.known_length();
        assert_eq!(length, Some(code.len() as u8), "{name}: length");
        guest.vcpu.skip(code.len() as u8);
        assert_eq!(machine.enter(&mut guest), Reason::Halt, "{name}: what follows");
        assert_eq!(guest.vcpu.rip(), CODE + code.len() as u64);
    }
}

#[test]
fn what_a_guest_does_to_itself_does_not_leave_it() {
    let mut guest = Guest::new(&[
        0x0f, 0x20, 0xd8, // mov rax, cr3
        0x0f, 0x22, 0xd8, // mov cr3, rax
        0x0f, 0x20, 0xc0, // mov rax, cr0
        0x0f, 0x22, 0xc0, // mov cr0, rax
        0x44, 0x0f, 0x20, 0xc0, // mov rax, cr8
        0x0f, 0x23, 0xc0, // mov dr0, rax
        0x0f, 0x01, 0x3e, // invlpg [rsi]
        0xb9, 0x81, 0x00, 0x00, 0xc0, // mov ecx, c0000081h (STAR)
        0x0f, 0x32, // rdmsr
        0x83, 0xc2, 0x01, // add edx, 1
        0x0f, 0x30, // wrmsr
        0x0f, 0x31, // rdtsc
        0xfa, 0xfb, // cli, sti
        HLT,
    ]);
    let mut machine = Rig::new();
    assert_eq!(machine.enter(&mut guest), Reason::Halt, "at {:#x}", guest.vcpu.rip());
    assert_eq!(guest.vcpu.vmcb.save.star, 1 << 32, "its own, not the host's");
    assert_eq!(guest.handling(), None);
}

#[test]
fn all_registers_go_in_and_come_back() {
    let general = (0..16).filter(|register| *register != 4);
    let mut code = alloc::vec::Vec::new();
    for register in general.clone() {
        // inc r64
        code.extend([0x48 | (register >> 3) as u8, 0xff, 0xc0 | (register & 7) as u8]);
    }
    code.push(HLT);
    let mut guest = Guest::new(&code);
    let value = |register: usize| 0x0111_1111_1111_1111 * register as u64;
    general.clone().for_each(|register| guest.vcpu.set_gpr(register, value(register)));
    let mut machine = Rig::new();
    for round in 1..=3 {
        assert_eq!(machine.enter(&mut guest), Reason::Halt);
        for register in general.clone() {
            let found = guest.vcpu.gpr(register);
            assert_eq!(found, value(register) + round, "register {register}");
        }
        assert_eq!(guest.vcpu.gpr(4), STACK);
        guest.jump(CODE);
    }
}

#[test]
fn exceptions_that_could_come_for_ever_are_the_hypervisors() {
    let mut machine = Rig::new();
    let mut guest = Guest::new(&[0x90, HLT]);
    guest.vcpu.vmcb.save.rflags = RFLAGS_FIXED | RFLAGS_TF;
    assert_eq!(machine.enter(&mut guest), Reason::Exception(DEBUG_EXCEPTION), "a step");
    assert_eq!((guest.vcpu.rip(), guest.vcpu.vmcb.save.dr6), (CODE + 1, DR6_RESET | DR6_BS));

    // mov eax, [rsp + 1], by a user, with RFLAGS.AC and CR0.AM set
    let mut guest = Guest::new(&[0x8b, 0x44, 0x24, 0x01, HLT]);
    let save = &mut guest.vcpu.vmcb.save;
    save.rflags = RFLAGS_FIXED | 1 << 18;
    save.cr0 |= 1 << 18;
    save.cpl = 3;
    for segment in [&mut save.cs, &mut save.ss] {
        segment.selector |= 3;
        segment.attributes |= 3 << 5;
    }
    guest.vcpu.set_gpr(4, STACK - 64);
    assert_eq!(machine.enter(&mut guest), Reason::Exception(ALIGNMENT_CHECK));
}

#[test]
fn an_exception_without_a_handler_is_a_shutdown() {
    let mut machine = Rig::new();
    let mut guest = Guest::new(&[0x0f, 0x0b]);
    assert_eq!(machine.delivered(&mut guest), Some(6), "with one it is the guest's own");
    guest.start(CODE);
    guest.vcpu.vmcb.save.idtr.limit = 0;
    assert_eq!(machine.enter(&mut guest), Reason::Shutdown);
}

#[test]
fn what_lies_outside_of_its_memory_is_told_with_what_was_wanted() {
    let mut machine = Rig::new();
    let beyond = RAM + 0x1008;
    for (name, code, write, fetch) in [
        ("mov eax, [rsi]", &[0x8b_u8, 0x06] as &[u8], false, false),
        ("mov [rsi], eax", &[0x89, 0x06], true, false),
        ("add [rsi], eax", &[0x01, 0x06], true, false),
        ("jmp rsi", &[0xff, 0xe6], false, true),
    ] {
        let mut guest = Guest::new(code);
        guest.vcpu.set_gpr(6, beyond);
        let reason = machine.enter(&mut guest);
        let fault = Fault { address: beyond, write, translated: true };
        assert_eq!(reason, Reason::Stage2 { fault, fetch }, "{name}");
    }
    // Its page tables lie there.
    let mut guest = Guest::new(&[HLT]);
    guest.vcpu.vmcb.save.cr3 = 0x4000_0000;
    match machine.enter(&mut guest) {
        Reason::Stage2 { fault, .. } => assert_eq!((fault.address, fault.translated), (0x4000_0000, false)),
        other => panic!("{other:?}"),
    }
}
