// SPDX-License-Identifier: MIT OR Apache-2.0
//! What leaves a guest, and what does not.

use super::guest::{CODE, CR0, CR4, DATA, Guest, Poke, RAM, Rig, STACK};
use crate::backend::event::{ALIGNMENT_CHECK, DEBUG_EXCEPTION};
use crate::backend::vcpu::{DR6_BS, DR6_RESET, RFLAGS_FIXED, RFLAGS_TF};
use crate::backend::{Backend, ControlRegister, IoExit, Reason};
use crate::emulate::Fault;
use crate::extension::Extension;

super::on_both! {
    each_instruction_that_leaves_the_guest_says_which_it_is_and_how_long,
    what_a_guest_does_to_itself_does_not_leave_it,
    all_registers_go_in_and_come_back,
    what_one_guest_leaves_in_registers_another_does_not_find,
    the_host_is_as_it_was,
    exceptions_that_could_come_for_ever_are_the_hypervisors,
    an_exception_without_a_handler_is_a_shutdown,
    what_lies_outside_of_its_memory_is_told_with_what_was_wanted,
}

const HLT: u8 = 0xf4;

fn each_instruction_that_leaves_the_guest_says_which_it_is_and_how_long(extension: Extension) {
    let io = |port, size, input, string| Reason::Io(IoExit { port, size, input, string });
    let control = |register, write, gpr| Reason::Control { register, write, gpr };
    let mut machine = Rig::new(extension);
    let both: [(&str, &[u8], Reason); 16] = [
        ("cpuid", &[0x0f, 0xa2], Reason::Cpuid),
        ("hlt", &[0xf4], Reason::Halt),
        ("in al, 60h", &[0xe4, 0x60], io(0x60, 1, true, false)),
        ("out dx, ax", &[0x66, 0xef], io(0xcf8, 2, false, false)),
        ("out dx, eax", &[0xef], io(0xcf8, 4, false, false)),
        ("rep insb", &[0xf3, 0x6c], io(0xcf8, 1, true, true)),
        ("rep outsd", &[0xf3, 0x6f], io(0xcf8, 4, false, true)),
        ("rdmsr", &[0x0f, 0x32], Reason::ReadMsr),
        ("wrmsr", &[0x0f, 0x30], Reason::WriteMsr),
        ("xsetbv", &[0x0f, 0x01, 0xd1], Reason::Xsetbv),
        ("rdpmc", &[0x0f, 0x33], Reason::Forbidden),
        ("invd", &[0x0f, 0x08], Reason::Ignored),
        ("wbinvd", &[0x0f, 0x09], Reason::Ignored),
        ("wbnoinvd", &[0xf3, 0x0f, 0x09], Reason::Ignored),
        ("monitor", &[0x0f, 0x01, 0xc8], Reason::Undefined),
        ("mwait", &[0x0f, 0x01, 0xc9], Reason::Undefined),
    ];
    let svm: [(&str, &[u8], Reason); 10] = [
        ("vmmcall", &[0x0f, 0x01, 0xd9], Reason::Hypercall),
        ("mov rax, cr4", &[0x0f, 0x20, 0xe0], control(ControlRegister::Cr4, false, None)),
        ("mov cr4, rax", &[0x0f, 0x22, 0xe0], control(ControlRegister::Cr4, true, None)),
        ("vmrun", &[0x0f, 0x01, 0xd8], Reason::Undefined),
        ("vmload", &[0x0f, 0x01, 0xda], Reason::Undefined),
        ("vmsave", &[0x0f, 0x01, 0xdb], Reason::Undefined),
        ("stgi", &[0x0f, 0x01, 0xdc], Reason::Undefined),
        ("clgi", &[0x0f, 0x01, 0xdd], Reason::Undefined),
        ("skinit", &[0x0f, 0x01, 0xde], Reason::Undefined),
        ("invlpga", &[0x0f, 0x01, 0xdf], Reason::Undefined),
    ];
    let vmx: [(&str, &[u8], Reason); 14] = [
        ("vmcall", &[0x0f, 0x01, 0xc1], Reason::Hypercall),
        ("mov cr4, r9", &[0x41, 0x0f, 0x22, 0xe1], control(ControlRegister::Cr4, true, Some(9))),
        ("mov cr0, r10", &[0x41, 0x0f, 0x22, 0xc2], control(ControlRegister::Cr0, true, Some(10))),
        ("vmclear [rsi]", &[0x66, 0x0f, 0xc7, 0x36], Reason::Undefined),
        ("vmptrld [rsi]", &[0x0f, 0xc7, 0x36], Reason::Undefined),
        ("vmptrst [rsi]", &[0x0f, 0xc7, 0x3e], Reason::Undefined),
        ("vmxon [rsi]", &[0xf3, 0x0f, 0xc7, 0x36], Reason::Undefined),
        ("vmxoff", &[0x0f, 0x01, 0xc4], Reason::Undefined),
        ("vmlaunch", &[0x0f, 0x01, 0xc2], Reason::Undefined),
        ("vmresume", &[0x0f, 0x01, 0xc3], Reason::Undefined),
        ("vmread rax, rax", &[0x0f, 0x78, 0xc0], Reason::Undefined),
        ("vmwrite rax, rax", &[0x0f, 0x79, 0xc0], Reason::Undefined),
        ("invept rax, [rsi]", &[0x66, 0x0f, 0x38, 0x80, 0x06], Reason::Undefined),
        ("invvpid rax, [rsi]", &[0x66, 0x0f, 0x38, 0x81, 0x06], Reason::Undefined),
    ];
    let own: &[_] = match extension {
        Extension::Svm => &svm,
        Extension::Vmx => &vmx,
    };
    for &(name, code, reason) in both.iter().chain(own) {
        let mut guest = Guest::new(extension, code);
        guest.write(CODE + code.len() as u64, HLT);
        // MONITOR and MWAIT want no extensions, what repeats a count.
        let count = name.starts_with("rep").into();
        let (mce, cd) = (1 << 6, 1 << 30);
        for (register, value) in
            [(0, CR4), (1, count), (2, 0xcf8), (6, DATA), (7, DATA), (9, CR4 | mce), (10, CR0 | cd)]
        {
            guest.vcpu.set_gpr(register, value);
        }
        assert_eq!(machine.enter(&mut guest), reason, "{name}");
        assert_eq!(guest.vcpu.rip(), CODE, "{name} is not carried out");
        let length = machine.on(&mut guest, |vcpu, _| vcpu.known_length());
        assert_eq!(length, Some(code.len() as u8), "{name}: length");
        machine.on(&mut guest, |vcpu, _| vcpu.skip(code.len() as u8));
        assert_eq!(machine.enter(&mut guest), Reason::Halt, "{name}: what follows");
        assert_eq!(guest.vcpu.rip(), CODE + code.len() as u64);
    }
}

/// What a guest does to itself. It counts up the upper half of STAR.
const CODE_OF_ITS_OWN: &[u8] = &[
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
    0x89, 0x16, // mov [rsi], edx
    0x0f, 0x31, // rdtsc
    0x0f, 0x01, 0xf9, // rdtscp
    0xfa, 0xfb, // cli, sti
    HLT,
];

/// What it counted to.
fn written_star(guest: &Guest) -> u64 {
    guest.read(DATA)
}

fn what_a_guest_does_to_itself_does_not_leave_it(extension: Extension) {
    let mut guest = Guest::new(extension, CODE_OF_ITS_OWN);
    guest.vcpu.set_gpr(6, DATA);
    let mut machine = Rig::new(extension);
    assert_eq!(machine.enter(&mut guest), Reason::Halt, "at {:#x}", guest.vcpu.rip());
    assert_eq!((guest.handling(), written_star(&guest)), (None, 1));
    let mut other = Guest::new(extension, CODE_OF_ITS_OWN);
    other.vcpu.set_gpr(6, DATA);
    assert_eq!(machine.enter(&mut other), Reason::Halt);
    assert_eq!(written_star(&other), 1, "neither another guest's nor the host's");
    guest.jump(CODE);
    assert_eq!(machine.enter(&mut guest), Reason::Halt);
    assert_eq!(written_star(&guest), 2, "its own is still there");
}

fn all_registers_go_in_and_come_back(extension: Extension) {
    let general = (0..16).filter(|register| *register != 4);
    let mut code = alloc::vec::Vec::new();
    for register in general.clone() {
        // inc r64
        code.extend([0x48 | (register >> 3) as u8, 0xff, 0xc0 | (register & 7) as u8]);
    }
    code.push(HLT);
    let mut guest = Guest::new(extension, &code);
    let value = |register: usize| 0x0111_1111_1111_1111 * register as u64;
    general.clone().for_each(|register| guest.vcpu.set_gpr(register, value(register)));
    let mut machine = Rig::new(extension);
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

fn exceptions_that_could_come_for_ever_are_the_hypervisors(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &[0x90, HLT]);
    guest.set_rflags(RFLAGS_FIXED | RFLAGS_TF);
    assert_eq!(machine.enter(&mut guest), Reason::Exception(DEBUG_EXCEPTION), "a step");
    let dr6 = machine.on(&mut guest, |vcpu, _| vcpu.parts().0.dr6());
    assert_eq!((guest.vcpu.rip(), dr6), (CODE + 1, DR6_RESET | DR6_BS));

    // mov eax, [rsp + 1], by a user, with RFLAGS.AC and CR0.AM set
    let mut guest = Guest::new(extension, &[0x8b, 0x44, 0x24, 0x01, HLT]);
    guest.set_rflags(RFLAGS_FIXED | 1 << 18);
    guest.poke(Poke::User);
    guest.vcpu.set_gpr(4, STACK - 64);
    assert_eq!(machine.enter(&mut guest), Reason::Exception(ALIGNMENT_CHECK));
}

fn an_exception_without_a_handler_is_a_shutdown(extension: Extension) {
    let mut machine = Rig::new(extension);
    let mut guest = Guest::new(extension, &[0x0f, 0x0b]);
    assert_eq!(machine.delivered(&mut guest), Some(6), "with one it is the guest's own");
    guest.start(CODE);
    guest.poke(Poke::Idt(0, 0));
    assert_eq!(machine.enter(&mut guest), Reason::Shutdown);
}

fn what_lies_outside_of_its_memory_is_told_with_what_was_wanted(extension: Extension) {
    let mut machine = Rig::new(extension);
    let beyond = RAM + 0x1008;
    for (name, code, write, fetch) in [
        ("mov eax, [rsi]", &[0x8b_u8, 0x06] as &[u8], false, false),
        ("mov [rsi], eax", &[0x89, 0x06], true, false),
        ("add [rsi], eax", &[0x01, 0x06], true, false),
        ("jmp rsi", &[0xff, 0xe6], false, true),
    ] {
        let mut guest = Guest::new(extension, code);
        guest.vcpu.set_gpr(6, beyond);
        let reason = machine.enter(&mut guest);
        let fault = Fault { address: beyond, write, translated: true };
        assert_eq!(reason, Reason::Stage2 { fault, fetch }, "{name}");
    }
    // Its page tables lie there.
    let mut guest = Guest::new(extension, &[HLT]);
    guest.poke(Poke::Cr3(0x4000_0000));
    match machine.enter(&mut guest) {
        Reason::Stage2 { fault, .. } => assert_eq!((fault.address, fault.translated), (0x4000_0000, false)),
        other => panic!("{other:?}"),
    }
}

fn what_one_guest_leaves_in_registers_another_does_not_find(extension: Extension) {
    let write: &[u8] = &[
        0x0f, 0x22, 0xd6, // mov cr2, rsi
        0x0f, 0x23, 0xf7, // mov dr6, rdi
        0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, c0000102h (KernelGSBase)
        0x0f, 0x30, // wrmsr
    ];
    let read: &[u8] = &[
        0x0f, 0x20, 0xd6, // mov rsi, cr2
        0x0f, 0x21, 0xf7, // mov rdi, dr6
        0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, c0000102h
        0x0f, 0x32, // rdmsr
        HLT,
    ];
    let found = |guest: &Guest| [6, 7, 0, 2].map(|register| guest.vcpu.gpr(register));
    let mut machine = Rig::new(extension);
    let mut first = Guest::new(extension, &[write, &[HLT], read].concat());
    let left = [0x1234, DR6_RESET | DR6_BS, 0x5678, 0x9a];
    for (register, value) in [6, 7, 0, 2].into_iter().zip(left) {
        first.vcpu.set_gpr(register, value);
    }
    assert_eq!(machine.enter(&mut first), Reason::Halt);
    let mut second = Guest::new(extension, read);
    assert_eq!(machine.enter(&mut second), Reason::Halt);
    assert_eq!(found(&second), [0, DR6_RESET, 0, 0]);
    machine.on(&mut first, |vcpu, _| vcpu.skip(1));
    for register in [6, 7, 0, 2] {
        first.vcpu.set_gpr(register, 0);
    }
    assert_eq!(machine.enter(&mut first), Reason::Halt);
    assert_eq!(found(&first), left, "they are still its own");
}

/// Registers that the hypervisor counts on.
fn host_state() -> [u64; 14] {
    let (cr0, cr3, cr4, dr7, tr, flags): (u64, u64, u64, u64, u64, u64);
    // SAFETY: to read these at privilege level 0 changes nothing.
    unsafe {
        core::arch::asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", "mov {}, dr7", "str {:e}",
            out(reg) cr0, out(reg) cr3, out(reg) cr4, out(reg) dr7, out(reg) tr);
        core::arch::asm!("pushfq", "pop {}", out(reg) flags);
    }
    const MSRS: [u32; 6] = [0xc000_0080, 0x277, 0xc000_0100, 0xc000_0101, 0x174, 0x176];
    // SAFETY: every 64-bit processor has them.
    let [efer, pat, fs, gs, cs, eip] = MSRS.map(|msr| unsafe { crate::cpu::read_msr(msr) });
    use x86_64::instructions::tables::{sgdt, sidt};
    const INTERRUPTS_AND_DIRECTION: u64 = 3 << 9;
    let flags = flags & INTERRUPTS_AND_DIRECTION;
    let (gdt, idt) = (sgdt().base.as_u64(), sidt().base.as_u64());
    [cr0, cr3, cr4, dr7, tr, flags, efer, pat, fs, gs, cs, eip, gdt, idt]
}

fn the_host_is_as_it_was(extension: Extension) {
    let mut machine = Rig::new(extension);
    // std; mov dr7, rax; swapgs; hlt
    let mut guest = Guest::new(extension, &[0xfd, 0x0f, 0x23, 0xf8, 0x0f, 0x01, 0xf8, HLT]);
    guest.vcpu.set_gpr(0, 0x401);
    let (before, after) = machine.on(&mut guest, |vcpu, pcpu| {
        vcpu.set_pat(0x0101_0101_0101_0101);
        let before = host_state();
        assert_eq!(vcpu.enter(pcpu, false), Reason::Halt);
        (before, host_state())
    });
    assert_eq!(before, after, "{before:x?}\n{after:x?}");
}
