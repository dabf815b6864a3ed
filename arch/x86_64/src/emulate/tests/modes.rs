// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fetch and segmentation in each mode.

use super::{CODE, DEVICE, Rig, long_state, protected_state, real_state};
use crate::emulate::{
    ControlMove, CpuState, Exception, Failure, MAX_INSTRUCTION_LEN, control_move, fetch, instruction_length,
};

fn general_protection(error_code: Option<u32>) -> Exception {
    Exception { vector: 13, error_code, cr2: None }
}

#[test]
fn real_mode_reaches_a_device_through_a_segment() {
    // mov ax, [es:0x10] with es at 0xffff0: 0x10 further is 1 MiB
    let mut machine = Rig::new(real_state(), &[0x26, 0xa1, 0x10, 0x00]);
    machine.state.es.base = 0xf_fff0;
    machine.set_device(0, 0x1234);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE, 2, None)]);
    assert_eq!((machine.state.gpr[0], machine.state.rip), (0x1234, CODE + 4));
}

#[test]
fn real_mode_addresses_wrap_at_16_bits() {
    // mov [bx+si], al
    let mut machine = Rig::new(real_state(), &[0x88, 0x00]);
    machine.state.ds.base = DEVICE - 0x10;
    machine.state.gpr[3] = 0x8000;
    machine.state.gpr[6] = 0x8010;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE, 1, Some(0))]);
}

#[test]
fn exceptions_of_real_mode_have_no_error_code() {
    // mov [0xffff], ax crosses the limit
    let mut machine = Rig::new(real_state(), &[0xa3, 0xff, 0xff]);
    assert_eq!(machine.mmio(), Err(Failure::Exception(general_protection(None))));
}

#[test]
fn stack_segment_has_its_own_fault() {
    // mov [ebp], eax beyond the limit
    let mut machine = Rig::new(protected_state(), &[0x89, 0x45, 0x00]);
    machine.state.ss.limit = 0xfff;
    machine.state.gpr[5] = DEVICE;
    let expected = Exception { vector: 12, error_code: Some(0), cr2: None };
    assert_eq!(machine.mmio(), Err(Failure::Exception(expected)));
}

#[test]
fn addresses_that_are_not_canonical_fault() {
    for (code, vector) in [([0x48, 0x89, 0x03], 13), ([0x48, 0x89, 0x45], 12)] {
        let mut machine = Rig::new(long_state(), &[code[0], code[1], code[2], 0]);
        machine.state.gpr[3] = 0x0000_7fff_ffff_fffc;
        machine.state.gpr[5] = 0x0000_8000_0000_0000;
        let Err(Failure::Exception(exception)) = machine.mmio() else {
            panic!("no exception");
        };
        assert_eq!((exception.vector, exception.error_code), (vector, Some(0)));
    }
}

#[test]
fn long_mode_uses_the_base_of_fs_and_gs_only() {
    // mov [gs:rbx], eax; mov [ds:rbx], eax
    let mut machine = Rig::new(long_state(), &[0x65, 0x89, 0x03, 0x3e, 0x89, 0x03]);
    machine.state.gs.base = 0x10;
    machine.state.ds.base = 0x20;
    machine.state.gpr[3] = DEVICE;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE + 0x10, 4, Some(0)), (DEVICE, 4, Some(0))]);
}

#[test]
fn an_address_size_prefix_truncates() {
    // mov [ebx], eax in 64-bit code
    let mut machine = Rig::new(long_state(), &[0x67, 0x89, 0x03]);
    machine.state.gpr[3] = 0xdead_0000_0000_0000 | DEVICE;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE, 4, Some(0))]);
}

#[test]
fn lengths_depend_on_the_mode() {
    // mov eax, imm32 or mov ax, imm16
    let code = [0xb8, 1, 2, 3, 4];
    let length = |state: CpuState, code: &[u8]| {
        let machine = Rig::new(state, code);
        instruction_length(&machine.state, &machine.ram)
    };
    assert_eq!(length(real_state(), &code), Ok(3));
    assert_eq!(length(protected_state(), &code), Ok(5));
    assert_eq!(length(long_state(), &code), Ok(5));
    let mut compatibility = long_state();
    compatibility.cs.long = false;
    assert_eq!(length(compatibility, &code), Ok(3));
    for (code, len) in [
        (&[0x0fu8, 0xa2][..], 2), // cpuid
        (&[0xf4], 1),             // hlt
        (&[0x0f, 0x01, 0xd9], 3), // vmmcall
        (&[0x0f, 0x30], 2),       // wrmsr
        (&[0x0f, 0x22, 0xd8], 3), // mov cr3, rax
        (&[0xf3, 0x90], 2),       // pause
        (&[0x0f, 0x01, 0xd1], 3), // xsetbv
        (&[0xe5, 0x60], 2),       // in eax, 0x60
    ] {
        assert_eq!(length(long_state(), code), Ok(len));
    }
    let too_long = [0x66; MAX_INSTRUCTION_LEN];
    assert_eq!(length(long_state(), &too_long), Err(Failure::Unsupported(too_long.into())));
}

#[test]
fn code_that_changed_is_decoded_anew() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    let (rax, rcx) = (0, 1);
    let mut machine = Rig::new(long_state(), &[]);
    machine.set_device(0, VALUE);
    let mut run = |code: &[u8], mut state: CpuState| {
        machine.ram.put(CODE, code);
        state.gpr[3] = DEVICE;
        machine.state = state;
        let result = machine.mmio();
        (result.map(|()| machine.done), machine.state.gpr[rax], machine.state.gpr[rcx], machine.state.rip)
    };
    // mov rax, [rbx]; its last byte changed: mov rcx, [rbx]; its first: mov eax, [rbx]; what follows is not of it
    for _ in 0..2 {
        assert_eq!(run(&[0x48, 0x8b, 0x03], long_state()), (Ok(true), VALUE, 0, CODE + 3));
    }
    assert_eq!(run(&[0x48, 0x8b, 0x0b], long_state()), (Ok(true), 0, VALUE, CODE + 3));
    assert_eq!(run(&[0x40, 0x8b, 0x03], long_state()), (Ok(true), VALUE & 0xffff_ffff, 0, CODE + 3));
    assert_eq!(run(&[0x40, 0x8b, 0x03, 0xcc], long_state()), (Ok(true), VALUE & 0xffff_ffff, 0, CODE + 3));
    // The same bytes in 32-bit code: inc eax, which touches no device.
    assert_eq!(run(&[0x40, 0x8b, 0x03], protected_state()), (Ok(false), 0, 0, CODE));
    // mov eax, [ebx + 0], and again where its last two bytes, which are zeros, lie beyond the segment
    let code = [0x8b, 0x83, 0, 0, 0, 0];
    assert_eq!(run(&code, protected_state()), (Ok(true), VALUE & 0xffff_ffff, 0, CODE + 6));
    let mut short = protected_state();
    short.cs.limit = CODE as u32 + 3;
    let denied = Failure::Exception(general_protection(Some(0)));
    assert_eq!(run(&code, short), (Err(denied), 0, 0, CODE));
}

#[test]
fn fetch_ends_with_the_segment_and_with_ram() {
    let mut machine = Rig::new(protected_state(), &[0x90; 15]);
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(15));
    machine.state.cs.limit = CODE as u32 + 3;
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(4));
    machine.state.cs.limit = CODE as u32 - 1;
    assert_eq!(fetch(&machine.state, &machine.ram), Err(general_protection(Some(0))));
    machine.state.cs.limit = u32::MAX;
    machine.state.rip = DEVICE - 2;
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(2));
    machine.state.rip = DEVICE;
    assert_eq!(fetch(&machine.state, &machine.ram).map(|bytes| bytes.len()), Ok(0));
}

#[test]
fn operands_of_moves_to_control_registers_are_found() {
    let found = |state, code: &[u8]| {
        let machine = Rig::new(state, code);
        control_move(&machine.state, &machine.ram)
    };
    let moved = |control, write, gpr| Ok(Some(ControlMove { control, write, gpr }));
    // mov cr4, r11; mov rdx, cr4; with a prefix in front; mov cr4, eax in 32-bit and 16-bit code
    assert_eq!(found(long_state(), &[0x41, 0x0f, 0x22, 0xe3]), moved(4, true, 11));
    assert_eq!(found(long_state(), &[0x0f, 0x20, 0xe2]), moved(4, false, 2));
    assert_eq!(found(long_state(), &[0x3e, 0x0f, 0x22, 0xe0]), moved(4, true, 0));
    assert_eq!(found(protected_state(), &[0x0f, 0x22, 0xe0]), moved(4, true, 0));
    assert_eq!(found(real_state(), &[0x0f, 0x22, 0xe0]), moved(4, true, 0));
    // mov cr3, rax, and what the guest may have put there meanwhile
    assert_eq!(found(long_state(), &[0x0f, 0x22, 0xd8]), moved(3, true, 0));
    assert_eq!(found(long_state(), &[0x90]), Ok(None));
    assert!(matches!(found(long_state(), &[0x06]), Err(Failure::Unsupported(_))));
}
