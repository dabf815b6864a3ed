// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each supported form once, in 64-bit code: what appears on the bus and in the registers.

use x86_64::registers::rflags::RFlags;

use super::{CODE, DEVICE, RFLAGS_FIXED, Rig, Seen, long_state};
use crate::emulate::{Failure, InstructionBytes};

const CF: u64 = RFlags::CARRY_FLAG.bits();
const PF: u64 = RFlags::PARITY_FLAG.bits();
const AF: u64 = RFlags::AUXILIARY_CARRY_FLAG.bits();
const ZF: u64 = RFlags::ZERO_FLAG.bits();
const SF: u64 = RFlags::SIGN_FLAG.bits();

const RAX_BEFORE: u64 = 0xaaaa_bbbb_cccc_dd01;
const RCX_BEFORE: u64 = 0x1111_2222_3333_4404;
const DEVICE_BEFORE: u64 = 0x8877_6655_4433_2281;

const fn read(offset: u64, size: u8) -> Seen {
    (DEVICE + offset, size, None)
}

const fn write(offset: u64, size: u8, value: u64) -> Seen {
    (DEVICE + offset, size, Some(value))
}

struct Form {
    name: &'static str,
    /// RBX is the device's address.
    code: &'static [u8],
    seen: &'static [Seen],
    rax: u64,
    rcx: u64,
    flags: u64,
}

/// A form that changes no register and no flag.
const fn plain(name: &'static str, code: &'static [u8], seen: &'static [Seen]) -> Form {
    Form { name, code, seen, rax: RAX_BEFORE, rcx: RCX_BEFORE, flags: 0 }
}

/// A form that changes RAX only.
const fn loads(name: &'static str, code: &'static [u8], seen: &'static [Seen], rax: u64) -> Form {
    Form { rax, ..plain(name, code, seen) }
}

/// A form that changes flags only.
const fn flags(name: &'static str, code: &'static [u8], seen: &'static [Seen], flags: u64) -> Form {
    Form { flags, ..plain(name, code, seen) }
}

const MOVES: &[Form] = &[
    plain("mov [rbx], al", &[0x88, 0x03], &[write(0, 1, 0x01)]),
    plain("mov [rbx], ah", &[0x88, 0x23], &[write(0, 1, 0xdd)]),
    plain("mov [rbx], ax", &[0x66, 0x89, 0x03], &[write(0, 2, 0xdd01)]),
    plain("mov [rbx], eax", &[0x89, 0x03], &[write(0, 4, 0xcccc_dd01)]),
    plain("mov [rbx+8], rax", &[0x48, 0x89, 0x43, 0x08], &[write(8, 8, RAX_BEFORE)]),
    plain(
        "mov [rbx+1], eax",
        &[0x89, 0x43, 0x01],
        &[write(1, 1, 0x01), write(2, 2, 0xccdd), write(4, 1, 0xcc)],
    ),
    plain("mov byte [rbx], 5", &[0xc6, 0x03, 0x05], &[write(0, 1, 5)]),
    plain("mov dword [rbx], imm", &[0xc7, 0x03, 1, 2, 3, 0x84], &[write(0, 4, 0x8403_0201)]),
    plain("mov qword [rbx], imm", &[0x48, 0xc7, 0x03, 0, 0, 0, 0x80], &[write(0, 8, 0xffff_ffff_8000_0000)]),
    loads("mov al, [rbx]", &[0x8a, 0x03], &[read(0, 1)], 0xaaaa_bbbb_cccc_dd81),
    loads("mov ah, [rbx]", &[0x8a, 0x23], &[read(0, 1)], 0xaaaa_bbbb_cccc_8101),
    loads("mov ax, [rbx]", &[0x66, 0x8b, 0x03], &[read(0, 2)], 0xaaaa_bbbb_cccc_2281),
    loads("mov eax, [rbx]", &[0x8b, 0x03], &[read(0, 4)], 0x4433_2281),
    loads("mov rax, [rbx]", &[0x48, 0x8b, 0x03], &[read(0, 8)], DEVICE_BEFORE),
    loads("mov eax, moffs", &[0xa1, 0, 0, 0x10, 0, 0, 0, 0, 0], &[read(0, 4)], 0x4433_2281),
    plain("mov moffs, al", &[0xa2, 4, 0, 0x10, 0, 0, 0, 0, 0], &[write(4, 1, 1)]),
    loads("mov eax, [disp32]", &[0x8b, 0x04, 0x25, 0, 0, 0x10, 0], &[read(0, 4)], 0x4433_2281),
    loads("mov eax, [rip+x]", &[0x8b, 0x05, 0xfa, 0xef, 0x0f, 0], &[read(0, 4)], 0x4433_2281),
    loads("mov eax, [rbx+rdx*8]", &[0x8b, 0x04, 0xd3], &[read(0x10, 4)], 0),
    loads("movzx eax, byte", &[0x0f, 0xb6, 0x03], &[read(0, 1)], 0x81),
    loads("movzx rax, word", &[0x48, 0x0f, 0xb7, 0x03], &[read(0, 2)], 0x2281),
    loads("movsx eax, byte", &[0x0f, 0xbe, 0x03], &[read(0, 1)], 0xffff_ff81),
    loads("movsx rax, byte", &[0x48, 0x0f, 0xbe, 0x03], &[read(0, 1)], 0xffff_ffff_ffff_ff81),
    loads("movsxd rax, dword", &[0x48, 0x63, 0x43, 0x04], &[read(4, 4)], 0xffff_ffff_8877_6655),
    loads("movbe eax, [rbx]", &[0x0f, 0x38, 0xf0, 0x03], &[read(0, 4)], 0x8122_3344),
    plain("movbe [rbx], ax", &[0x66, 0x0f, 0x38, 0xf1, 0x03], &[write(0, 2, 0x01dd)]),
    plain("movnti [rbx], eax", &[0x0f, 0xc3, 0x03], &[write(0, 4, 0xcccc_dd01)]),
    plain("movdiri [rbx], rax", &[0x48, 0x0f, 0x38, 0xf9, 0x03], &[write(0, 8, RAX_BEFORE)]),
    plain("clflush [rbx]", &[0x0f, 0xae, 0x3b], &[]),
    plain("clwb [rbx]", &[0x66, 0x0f, 0xae, 0x33], &[]),
    plain("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], &[]),
    plain("sete [rbx]", &[0x0f, 0x94, 0x03], &[write(0, 1, 0)]),
    plain("setne [rbx]", &[0x0f, 0x95, 0x03], &[write(0, 1, 1)]),
    loads("cmove eax, [rbx]", &[0x0f, 0x44, 0x03], &[read(0, 4)], 0xcccc_dd01),
    loads("cmovne rax, [rbx]", &[0x48, 0x0f, 0x45, 0x03], &[read(0, 8)], DEVICE_BEFORE),
];

const ARITHMETIC: &[Form] = &[
    flags("add [rbx], al", &[0x00, 0x03], &[read(0, 1), write(0, 1, 0x82)], SF | PF),
    Form {
        rax: 0x4433_2281u64.wrapping_add(0xcccc_dd01) & 0xffff_ffff,
        flags: CF | PF,
        ..plain("add eax, [rbx]", &[0x03, 0x03], &[read(0, 4)])
    },
    flags("lock or dword [rbx], 2", &[0xf0, 0x83, 0x0b, 0x02], &[read(0, 4), write(0, 4, 0x4433_2283)], 0),
    flags("and byte [rbx], 0x7e", &[0x80, 0x23, 0x7e], &[read(0, 1), write(0, 1, 0)], ZF | PF),
    flags("xor byte [rbx], 0x81", &[0x80, 0x33, 0x81], &[read(0, 1), write(0, 1, 0)], ZF | PF),
    flags("sub byte [rbx], 0x82", &[0x80, 0x2b, 0x82], &[read(0, 1), write(0, 1, 0xff)], CF | AF | SF | PF),
    flags("adc byte [rbx], 1", &[0x80, 0x13, 0x01], &[read(0, 1), write(0, 1, 0x82)], SF | PF),
    flags("sbb byte [rbx], 1", &[0x80, 0x1b, 0x01], &[read(0, 1), write(0, 1, 0x80)], SF),
    flags("cmp byte [rbx], 0x81", &[0x80, 0x3b, 0x81], &[read(0, 1)], ZF | PF),
    flags("test byte [rbx], 0x80", &[0xf6, 0x03, 0x80], &[read(0, 1)], SF),
    flags("not byte [rbx]", &[0xf6, 0x13], &[read(0, 1), write(0, 1, 0x7e)], 0),
    flags("neg byte [rbx]", &[0xf6, 0x1b], &[read(0, 1), write(0, 1, 0x7f)], CF | AF),
    flags("inc byte [rbx]", &[0xfe, 0x03], &[read(0, 1), write(0, 1, 0x82)], SF | PF),
    flags("dec byte [rbx]", &[0xfe, 0x0b], &[read(0, 1), write(0, 1, 0x80)], SF),
    flags("bt dword [rbx], 7", &[0x0f, 0xba, 0x23, 0x07], &[read(0, 4)], CF),
    flags("bts dword [rbx], 1", &[0x0f, 0xba, 0x2b, 0x01], &[read(0, 4), write(0, 4, 0x4433_2283)], 0),
    flags("btr dword [rbx], 0", &[0x0f, 0xba, 0x33, 0x00], &[read(0, 4), write(0, 4, 0x4433_2280)], CF),
    flags("btc dword [rbx], 0", &[0x0f, 0xba, 0x3b, 0x00], &[read(0, 4), write(0, 4, 0x4433_2280)], CF),
    // Bit 0x3333_4404 would lie beyond the device; dx is 2, so bit 2 of the first word.
    flags("bts [rbx], dx", &[0x66, 0x0f, 0xab, 0x13], &[read(0, 2), write(0, 2, 0x2285)], 0),
    loads("xchg [rbx], eax", &[0x87, 0x03], &[read(0, 4), write(0, 4, 0xcccc_dd01)], 0x4433_2281),
    Form {
        rax: 0xaaaa_bbbb_cccc_dd81,
        flags: SF | PF,
        ..plain("lock xadd [rbx], al", &[0xf0, 0x0f, 0xc0, 0x03], &[read(0, 1), write(0, 1, 0x82)])
    },
    // al = 1 is not 0x81: al gets the value, the device its own back. 1 - 0x81 = 0x80, with OF.
    Form {
        rax: 0xaaaa_bbbb_cccc_dd81,
        flags: CF | SF | RFlags::OVERFLOW_FLAG.bits(),
        ..plain("lock cmpxchg [rbx], cl", &[0xf0, 0x0f, 0xb0, 0x0b], &[read(0, 1), write(0, 1, 0x81)])
    },
];

fn check(form: &Form) {
    let mut machine = Rig::new(long_state(), form.code);
    machine.state.gpr[0] = RAX_BEFORE;
    machine.state.gpr[1] = RCX_BEFORE;
    machine.state.gpr[2] = 2;
    machine.state.gpr[3] = DEVICE;
    machine.state.rflags |= RFlags::RESUME_FLAG.bits();
    machine.set_device(0, DEVICE_BEFORE);
    assert_eq!(machine.mmio(), Ok(()), "{}", form.name);
    assert_eq!(machine.seen, form.seen, "{}", form.name);
    assert_eq!(machine.state.gpr[0], form.rax, "{}: rax {:#x}", form.name, machine.state.gpr[0]);
    assert_eq!(machine.state.gpr[1], form.rcx, "{}", form.name);
    let expected = RFLAGS_FIXED | form.flags;
    assert_eq!(machine.state.rflags, expected, "{}: flags {:#x}", form.name, machine.state.rflags);
    assert_eq!(machine.state.rip, CODE + form.code.len() as u64, "{}", form.name);
}

#[test]
fn moves() {
    MOVES.iter().for_each(check);
}

#[test]
fn arithmetic() {
    ARITHMETIC.iter().for_each(check);
}

#[test]
fn compare_and_exchange_that_matches_stores() {
    let mut machine = Rig::new(long_state(), &[0x0f, 0xb1, 0x0b]);
    machine.state.gpr[0] = 7;
    machine.state.gpr[1] = 9;
    machine.state.gpr[3] = DEVICE;
    machine.set_device(0, 7);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [read(0, 4), write(0, 4, 9)]);
    assert_eq!(machine.state.rflags & ZF, ZF);
}

#[test]
fn compare_and_exchange_of_eight_bytes() {
    let mut machine = Rig::new(long_state(), &[0xf0, 0x0f, 0xc7, 0x0b]);
    machine.state.gpr[3] = DEVICE;
    machine.set_device(0, 0x1_0000_0002);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[0], machine.state.gpr[2]), (2, 1));
    assert_eq!(machine.state.rflags & ZF, 0);
    machine.state.rip = CODE;
    machine.state.gpr[1] = 5;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.device_u64(0), 5 << 32 | DEVICE);
    assert_eq!(machine.state.rflags & ZF, ZF);
}

#[test]
fn bit_string_reaches_backwards() {
    // bts [rbx], ecx with index -1: the top bit of the dword before.
    let mut machine = Rig::new(long_state(), &[0x0f, 0xab, 0x0b]);
    machine.state.gpr[1] = u64::MAX;
    machine.state.gpr[3] = DEVICE + 8;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [read(4, 4), write(4, 4, 0x8000_0000)]);
}

#[test]
fn stack_transfers_with_a_device() {
    // push [rbx]; pop [rbx+8]; call [rbx]; the stack is RAM.
    let mut machine = Rig::new(long_state(), &[0xff, 0x33, 0x8f, 0x43, 0x08, 0xff, 0x13]);
    machine.state.gpr[3] = DEVICE;
    machine.state.gpr[4] = 0x8000;
    machine.set_device(0, 0x4321);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[4], machine.ram.u64(0x7ff8)), (0x7ff8, 0x4321));
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[4], machine.device_u64(8)), (0x8000, 0x4321));
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[4], machine.ram.u64(0x7ff8)), (0x7ff8, CODE + 7));
    assert_eq!(machine.state.rip, 0x4321);
}

#[test]
fn what_needs_selectors_is_told_with_its_bytes() {
    let cases: [&[u8]; 3] = [
        &[0x8e, 0x1b],       // mov ds, [rbx]
        &[0xff, 0x2b],       // jmp far [rbx]
        &[0x0f, 0x01, 0xfc], // clzero
    ];
    for code in cases {
        let mut machine = Rig::new(long_state(), code);
        machine.state.gpr[3] = DEVICE;
        let before = machine.state.clone();
        let Err(Failure::Unsupported(bytes)) = machine.mmio() else {
            panic!("{code:x?} was carried out");
        };
        assert_eq!(&bytes[..code.len()], code);
        assert_eq!(machine.state, before);
        assert_eq!(machine.seen, []);
    }
}

#[test]
fn a_pop_that_does_not_complete_leaves_the_stack_pointer() {
    // pop [rbx], to RAM by now, and where no address is
    for rbx in [0x3000, 1 << 63] {
        let mut machine = Rig::new(long_state(), &[0x8f, 0x03]);
        machine.state.gpr[3] = rbx;
        machine.state.gpr[4] = 0x8000;
        let before = machine.state.clone();
        let _ = machine.mmio();
        assert_eq!((machine.done, &machine.state), (false, &before), "{rbx:#x}");
    }
}

#[test]
fn code_outside_ram_has_no_bytes() {
    let mut machine = Rig::new(long_state(), &[]);
    machine.state.rip = DEVICE;
    assert_eq!(machine.mmio(), Err(Failure::Unsupported(InstructionBytes::new())));
}

#[test]
fn nothing_happens_when_no_operand_is_a_device_any_more() {
    // mov [rbx], eax with rbx in RAM by now; a patched-in nop; a register move.
    let cases: [&[u8]; 3] = [&[0x89, 0x03], &[0x0f, 0x1f, 0x00], &[0x89, 0xc3]];
    for code in cases {
        let mut machine = Rig::new(long_state(), code);
        machine.state.gpr[0] = 1;
        machine.state.gpr[3] = 0x3000;
        let before = machine.state.clone();
        assert_eq!(machine.mmio(), Ok(()));
        assert_eq!(machine.state, before);
        assert_eq!((machine.seen.as_slice(), machine.ram.u64(0x3000)), (&[][..], 0));
    }
}
