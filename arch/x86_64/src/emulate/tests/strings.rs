// SPDX-License-Identifier: MIT OR Apache-2.0
//! String instructions, on a device and between ports and RAM.

use pasidon_kernel::vm::exit::{Access, AccessKind, Exit};
use x86_64::registers::rflags::RFlags;

use super::{CODE, DEVICE, Rig, long_state};
use crate::emulate::string::MAX_ITERATIONS;
use crate::emulate::{Failure, string_io};

const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

#[test]
fn rep_movs_from_ram_to_a_device() {
    // rep movsd
    let mut machine = Rig::new(long_state(), &[0xf3, 0xa5]);
    machine.ram.put(0x2000, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    machine.state.gpr[RSI] = 0x2000;
    machine.state.gpr[RDI] = DEVICE;
    machine.state.gpr[RCX] = 3;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen, [(DEVICE, 4, Some(1)), (DEVICE + 4, 4, Some(2)), (DEVICE + 8, 4, Some(3))]);
    let state = &machine.state;
    assert_eq!((state.gpr[RSI], state.gpr[RDI], state.gpr[RCX]), (0x200c, DEVICE + 12, 0));
    assert_eq!(state.rip, CODE + 2);
}

#[test]
fn repetition_is_bounded_and_goes_on() {
    // rep stosb
    let mut machine = Rig::new(long_state(), &[0xf3, 0xaa]);
    let total = MAX_ITERATIONS as u64 + 10;
    machine.state.gpr[0] = 0x5a;
    machine.state.gpr[RDI] = DEVICE;
    machine.state.gpr[RCX] = total;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[RCX], machine.state.rip), (10, CODE));
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[RCX], machine.state.rip), (0, CODE + 2));
    assert_eq!(machine.seen.len() as u64, total);
    assert_eq!(machine.device[total as usize - 1], 0x5a);
}

#[test]
fn repetition_ends_where_ram_begins() {
    // rep stosq downwards from the device's first quadword into RAM
    let mut machine = Rig::new(long_state(), &[0xf3, 0x48, 0xab]);
    machine.state.rflags |= RFlags::DIRECTION_FLAG.bits();
    machine.state.gpr[RDI] = DEVICE + 8;
    machine.state.gpr[RCX] = 5;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.seen.len(), 2);
    assert_eq!((machine.state.gpr[RDI], machine.state.gpr[RCX]), (DEVICE - 8, 3));
    assert_eq!(machine.state.rip, CODE);
}

#[test]
fn a_count_of_zero_is_no_access() {
    let mut machine = Rig::new(long_state(), &[0xf3, 0xaa]);
    machine.state.gpr[RDI] = DEVICE;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.seen.len(), machine.state.rip), (0, CODE + 2));
}

#[test]
fn lods_loads() {
    // lodsw
    let mut machine = Rig::new(long_state(), &[0x66, 0xad]);
    machine.set_device(0, 0xbeef);
    machine.state.gpr[RSI] = DEVICE;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[0], machine.state.gpr[RSI]), (0xbeef, DEVICE + 2));
}

#[test]
fn comparisons_stop_at_their_condition() {
    // repne scasb for 0x33; repe cmpsb
    let mut machine = Rig::new(long_state(), &[0xf2, 0xae, 0xf3, 0xa6]);
    machine.set_device(0, 0x4433_2211);
    machine.state.gpr[0] = 0x33;
    machine.state.gpr[RDI] = DEVICE;
    machine.state.gpr[RCX] = 8;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[RDI], machine.state.gpr[RCX]), (DEVICE + 3, 5));
    assert_ne!(machine.state.rflags & RFlags::ZERO_FLAG.bits(), 0);
    machine.ram.put(0x2000, &[0x11, 0x22, 0x34]);
    machine.state.gpr[RSI] = 0x2000;
    machine.state.gpr[RDI] = DEVICE;
    machine.state.gpr[RCX] = 8;
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.state.gpr[RSI], machine.state.gpr[RCX]), (0x2003, 5));
    // 0x34 is above 0x33: neither equal nor below.
    assert_eq!(machine.state.rflags & (RFlags::ZERO_FLAG | RFlags::CARRY_FLAG).bits(), 0);
    assert_eq!(machine.state.rip, CODE + 4);
}

#[test]
fn outs_and_ins() {
    // rep outsb; rep insw
    let mut machine = Rig::new(long_state(), &[0xf3, 0x6e, 0xf3, 0x66, 0x6d]);
    machine.ram.put(0x2000, b"hi");
    machine.state.gpr[RSI] = 0x2000;
    machine.state.gpr[RDI] = 0x3000;
    machine.state.gpr[RCX] = 2;
    machine.state.gpr[RDX] = 0xffff_03f8;
    let mut seen = Vec::new();
    let mut port = |exit: &Exit<'_>| {
        let Exit::Io(access) = exit else { panic!("{exit:?}") };
        seen.push(*access);
        0xabcd_1234
    };
    assert_eq!(string_io(&mut machine.state, &machine.ram, &mut machine.known, &mut port), Ok(true));
    assert_eq!((machine.state.gpr[RSI], machine.state.rip), (0x2002, CODE + 2));
    machine.state.gpr[RCX] = 2;
    assert_eq!(string_io(&mut machine.state, &machine.ram, &mut machine.known, &mut port), Ok(true));
    assert_eq!((machine.state.gpr[RDI], machine.state.rip), (0x3004, CODE + 5));
    assert_eq!(machine.ram.u64(0x3000), 0x1234_1234);
    let access = |size, kind| Access { address: 0x3f8, size, kind };
    let (h, i) = (b'h'.into(), b'i'.into());
    assert_eq!(
        seen,
        [
            access(1, AccessKind::Write(h)),
            access(1, AccessKind::Write(i)),
            access(2, AccessKind::Read),
            access(2, AccessKind::Read)
        ]
    );
}

#[test]
fn ports_and_device_memory_do_not_mix() {
    // outsb with a device as its source; insb to one; and something else altogether
    for code in [&[0x6eu8][..], &[0x6c], &[0x90]] {
        let mut machine = Rig::new(long_state(), code);
        machine.state.gpr[RSI] = DEVICE;
        machine.state.gpr[RDI] = DEVICE;
        let result = string_io(&mut machine.state, &machine.ram, &mut machine.known, &mut |exit| {
            panic!("{exit:?} reached the bus")
        });
        assert!(matches!(result, Err(Failure::Unsupported(_))));
    }
}

#[test]
fn a_step_ends_behind_one_iteration() {
    // rep stosb
    let mut machine = Rig::new(long_state(), &[0xf3, 0xaa]);
    machine.state.rflags |= 1 << 8;
    machine.state.gpr[RDI] = DEVICE;
    machine.state.gpr[RCX] = 2;
    for (left, rip) in [(1, CODE), (0, CODE + 2)] {
        assert_eq!(machine.mmio(), Ok(()));
        assert_eq!((machine.state.gpr[RCX], machine.state.rip), (left, rip));
        assert!(machine.done, "there is something to step over");
    }
}
