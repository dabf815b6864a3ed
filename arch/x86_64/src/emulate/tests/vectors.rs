// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves between vector registers and a device.

use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::structures::idt::ExceptionVector;

use super::{CODE, DEVICE, Rig, long_state};
use crate::emulate::{CpuState, Exception, Failure, VECTOR_LEN, Vector};

const RBX: usize = 3;

/// 64-bit code whose kernel has turned everything on.
fn state() -> CpuState {
    let mut state = long_state();
    state.cr4 = (Cr4Flags::OSFXSR | Cr4Flags::OSXSAVE).bits();
    state.gpr[RBX] = DEVICE + 0x40;
    state
}

/// Bytes that are all different, from `first` on.
fn pattern(first: u8) -> Vector {
    core::array::from_fn(|i| first.wrapping_add(i as u8))
}

/// A machine about to run `code`; what the device and the registers hold differs everywhere.
fn machine(code: &[u8]) -> Rig {
    let mut machine = Rig::new(state(), code);
    for (i, byte) in machine.device.iter_mut().enumerate() {
        *byte = 0x80 ^ i as u8;
    }
    for (i, register) in machine.vectors.0.iter_mut().enumerate() {
        *register = pattern(i as u8 * 3);
    }
    machine
}

fn exception(vector: ExceptionVector) -> Result<(), Failure> {
    Err(Failure::Exception(Exception {
        vector: vector as u8,
        error_code: (vector == ExceptionVector::GeneralProtection).then_some(0),
        cr2: None,
    }))
}

#[test]
fn loads_fill_the_register_from_the_device() {
    // Code, register, bytes moved.
    let cases: [(&[u8], usize, usize); 17] = [
        (&[0x0f, 0x10, 0x0b], 1, 16),                    // movups xmm1, [rbx]
        (&[0x66, 0x44, 0x0f, 0x6f, 0x0b], 9, 16),        // movdqa xmm9, [rbx]
        (&[0x66, 0x0f, 0x38, 0x2a, 0x0b], 1, 16),        // movntdqa xmm1, [rbx]
        (&[0xf2, 0x0f, 0xf0, 0x0b], 1, 16),              // lddqu xmm1, [rbx]
        (&[0x66, 0x0f, 0x28, 0x0b], 1, 16),              // movapd xmm1, [rbx]
        (&[0x66, 0x0f, 0x6e, 0x0b], 1, 4),               // movd xmm1, [rbx]
        (&[0xf3, 0x0f, 0x7e, 0x0b], 1, 8),               // movq xmm1, [rbx]
        (&[0x66, 0x48, 0x0f, 0x6e, 0x0b], 1, 8),         // movq xmm1, [rbx], the other encoding
        (&[0xf3, 0x0f, 0x10, 0x0b], 1, 4),               // movss xmm1, [rbx]
        (&[0xf2, 0x0f, 0x10, 0x0b], 1, 8),               // movsd xmm1, [rbx]
        (&[0xc5, 0xfa, 0x6f, 0x0b], 1, 16),              // vmovdqu xmm1, [rbx]
        (&[0xc5, 0xfe, 0x6f, 0x0b], 1, 32),              // vmovdqu ymm1, [rbx]
        (&[0xc5, 0xfd, 0x6f, 0x0b], 1, 32),              // vmovdqa ymm1, [rbx]
        (&[0xc5, 0xf9, 0x6e, 0x0b], 1, 4),               // vmovd xmm1, [rbx]
        (&[0xc5, 0xfb, 0x10, 0x0b], 1, 8),               // vmovsd xmm1, [rbx]
        (&[0x62, 0xe1, 0x7f, 0x28, 0x6f, 0x0b], 17, 32), // vmovdqu8 ymm17, [rbx]
        (&[0x62, 0xe1, 0xfe, 0x48, 0x6f, 0x0b], 17, 64), // vmovdqu64 zmm17, [rbx]
    ];
    for (code, register, moved) in cases {
        let mut machine = machine(code);
        // SSE leaves what is above bit 127.
        let legacy = !matches!(code[0], 0xc5 | 0x62);
        let mut expected = [0; VECTOR_LEN];
        expected[..moved].copy_from_slice(&machine.device[0x40..0x40 + moved]);
        if legacy {
            expected[16..].copy_from_slice(&machine.vectors.0[register][16..]);
        }
        let others = machine.vectors.0;
        assert_eq!(machine.mmio(), Ok(()), "{code:x?}");
        assert_eq!(machine.vectors.0[register], expected, "{code:x?}");
        assert_eq!(machine.state.rip, CODE + code.len() as u64);
        let bytes: usize = machine.seen.iter().map(|(_, size, _)| usize::from(*size)).sum();
        assert_eq!(bytes, moved, "each byte is read once: {code:x?}");
        for (i, (now, before)) in machine.vectors.0.iter().zip(&others).enumerate() {
            assert!(i == register || now == before, "register {i} by {code:x?}");
        }
    }
}

#[test]
fn stores_write_the_register_to_the_device() {
    // Code, register, its first byte, bytes moved.
    let cases: [(&[u8], usize, usize, usize); 14] = [
        (&[0xf3, 0x0f, 0x7f, 0x13], 2, 0, 16),              // movdqu [rbx], xmm2
        (&[0x0f, 0x29, 0x13], 2, 0, 16),                    // movaps [rbx], xmm2
        (&[0x66, 0x0f, 0xe7, 0x13], 2, 0, 16),              // movntdq [rbx], xmm2
        (&[0x0f, 0x2b, 0x13], 2, 0, 16),                    // movntps [rbx], xmm2
        (&[0x66, 0x0f, 0x11, 0x13], 2, 0, 16),              // movupd [rbx], xmm2
        (&[0x66, 0x0f, 0x7e, 0x13], 2, 0, 4),               // movd [rbx], xmm2
        (&[0x66, 0x0f, 0xd6, 0x13], 2, 0, 8),               // movq [rbx], xmm2
        (&[0xf2, 0x0f, 0x11, 0x13], 2, 0, 8),               // movsd [rbx], xmm2
        (&[0x0f, 0x17, 0x13], 2, 8, 8),                     // movhps [rbx], xmm2
        (&[0xc5, 0xfe, 0x7f, 0x13], 2, 0, 32),              // vmovdqu [rbx], ymm2
        (&[0xc5, 0xfc, 0x29, 0x13], 2, 0, 32),              // vmovaps [rbx], ymm2
        (&[0xc5, 0xfd, 0xe7, 0x13], 2, 0, 32),              // vmovntdq [rbx], ymm2
        (&[0xc5, 0xf9, 0xd6, 0x13], 2, 0, 8),               // vmovq [rbx], xmm2
        (&[0x62, 0xe1, 0xfd, 0x48, 0x7f, 0x13], 18, 0, 64), // vmovdqa64 [rbx], zmm18
    ];
    for (code, register, at, moved) in cases {
        let mut machine = machine(code);
        let mut expected = machine.device.clone();
        expected[0x40..0x40 + moved].copy_from_slice(&machine.vectors.0[register][at..at + moved]);
        let vectors = machine.vectors.0;
        assert_eq!(machine.mmio(), Ok(()), "{code:x?}");
        assert_eq!(machine.device, expected, "{code:x?}");
        assert_eq!(machine.vectors.0, vectors);
        assert_eq!(machine.state.rip, CODE + code.len() as u64);
    }
}

#[test]
fn halves_keep_what_is_beside_them() {
    for (code, source, at, vex) in [
        (&[0x0f, 0x16, 0x0b][..], 1, 8, false),       // movhps xmm1, [rbx]
        (&[0x66, 0x0f, 0x12, 0x0b][..], 1, 0, false), // movlpd xmm1, [rbx]
        (&[0xc5, 0xe8, 0x16, 0x0b][..], 2, 8, true),  // vmovhps xmm1, xmm2, [rbx]
    ] {
        let mut machine = machine(code);
        let mut expected = machine.vectors.0[source];
        if vex {
            expected[16..].fill(0);
        }
        expected[at..at + 8].copy_from_slice(&machine.device[0x40..0x48]);
        assert_eq!(machine.mmio(), Ok(()), "{code:x?}");
        assert_eq!(machine.vectors.0[1], expected, "{code:x?}");
    }
}

#[test]
fn a_move_over_the_end_of_ram_is_part_memory_part_device() {
    let mut machine = machine(&[0x0f, 0x11, 0x13]); // movups [rbx], xmm2
    machine.state.gpr[RBX] = DEVICE - 6;
    let value = machine.vectors.0[2];
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.ram.bytes(DEVICE - 6, 6), value[..6]);
    assert_eq!(machine.device[..10], value[6..16]);
}

#[test]
fn aligned_moves_fault_where_they_are_not() {
    for (code, aligned) in [
        (&[0x0f, 0x28, 0x4b, 0x08][..], true),        // movaps xmm1, [rbx + 8]
        (&[0xc5, 0xfd, 0x6f, 0x4b, 0x10][..], true),  // vmovdqa ymm1, [rbx + 16]
        (&[0x0f, 0x10, 0x4b, 0x08][..], false),       // movups xmm1, [rbx + 8]
        (&[0xc5, 0xfe, 0x6f, 0x4b, 0x11][..], false), // vmovdqu ymm1, [rbx + 17]
    ] {
        let mut machine = machine(code);
        let before = (machine.state.clone(), machine.vectors.0);
        if aligned {
            assert_eq!(machine.mmio(), exception(ExceptionVector::GeneralProtection), "{code:x?}");
            assert_eq!((machine.state, machine.vectors.0, machine.seen), (before.0, before.1, vec![]));
        } else {
            assert_eq!(machine.mmio(), Ok(()), "{code:x?}");
        }
    }
}

#[test]
fn a_guest_that_has_not_turned_vectors_on_gets_the_processors_exception() {
    const SSE: &[u8] = &[0x0f, 0x10, 0x0b];
    const AVX: &[u8] = &[0xc5, 0xfe, 0x6f, 0x0b];
    let turned_off = [
        (SSE, Cr4Flags::OSFXSR, Cr0Flags::empty(), ExceptionVector::InvalidOpcode),
        (AVX, Cr4Flags::OSXSAVE, Cr0Flags::empty(), ExceptionVector::InvalidOpcode),
        (SSE, Cr4Flags::empty(), Cr0Flags::EMULATE_COPROCESSOR, ExceptionVector::InvalidOpcode),
        (SSE, Cr4Flags::empty(), Cr0Flags::TASK_SWITCHED, ExceptionVector::DeviceNotAvailable),
        (AVX, Cr4Flags::empty(), Cr0Flags::TASK_SWITCHED, ExceptionVector::DeviceNotAvailable),
    ];
    for (code, cleared, set, vector) in turned_off {
        let mut machine = machine(code);
        machine.state.cr4 &= !cleared.bits();
        machine.state.cr0 |= set.bits();
        let before = machine.state.clone();
        assert_eq!(machine.mmio(), exception(vector), "{code:x?} {cleared:?} {set:?}");
        assert_eq!((machine.state, machine.seen), (before, vec![]));
    }
}

#[test]
fn what_does_more_than_move_is_told_with_its_bytes() {
    let cases: [&[u8]; 7] = [
        &[0x62, 0xe1, 0x7f, 0x29, 0x6f, 0x0b], // vmovdqu8 ymm17{k1}, [rbx]
        &[0x66, 0x0f, 0xfc, 0x0b],             // paddb xmm1, [rbx]
        &[0x0f, 0x6f, 0x0b],                   // movq mm1, [rbx]
        &[0xd9, 0x03],                         // fld dword [rbx]
        &[0xf3, 0x48, 0x0f, 0xb8, 0x03],       // popcnt rax, [rbx]
        &[0x48, 0x0f, 0xaf, 0x03],             // imul rax, [rbx]
        &[0x0f, 0xae, 0x03],                   // fxsave [rbx]
    ];
    for code in cases {
        let mut machine = machine(code);
        let before = machine.state.clone();
        let Err(Failure::Unsupported(bytes)) = machine.mmio() else {
            panic!("{code:x?} was carried out");
        };
        assert_eq!(&bytes[..code.len()], code);
        assert_eq!((machine.state, machine.seen), (before, vec![]));
    }
}

#[test]
fn smsw_stores_half_of_cr0_unless_users_may_not_know() {
    const SMSW: &[u8] = &[0x0f, 0x01, 0x23]; // smsw [rbx]
    for (cpl, umip, stored) in [(0, true, true), (3, false, true), (3, true, false)] {
        let mut machine = machine(SMSW);
        machine.state.cr0 = 0x0005_0033;
        machine.state.cpl = cpl;
        if umip {
            machine.state.cr4 |= Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION.bits();
        }
        let result = machine.mmio();
        if stored {
            assert_eq!(result, Ok(()));
            assert_eq!(machine.seen, [(DEVICE + 0x40, 2, Some(0x33))]);
        } else {
            assert_eq!(result, exception(ExceptionVector::GeneralProtection));
            assert_eq!(machine.seen, []);
        }
    }
}

#[test]
fn a_move_that_meets_ram_is_left_to_the_processor() {
    let mut machine = machine(&[0x0f, 0x10, 0x0b]);
    machine.state.gpr[RBX] = 0x8000;
    let before = (machine.state.clone(), machine.vectors.0);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state, machine.vectors.0), before);
}
