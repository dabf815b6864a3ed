// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions that store 64 bytes at once: MOVDIR64B, ENQCMD and ENQCMDS.

use std::cell::Cell;

use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::{BadGuestAddress, GuestMemory};
use pasidon_kernel::vm::exit::Exit;
use x86_64::registers::rflags::RFlags;

use super::walk::{ALL, TABLE, four_levels, page_fault, two_pages};
use super::{CODE, DEVICE, RFLAGS_FIXED, Rig, Vectors, long_state};
use crate::emulate::{CpuState, Exception, Failure, Fault, Known, mmio};

const RCX: usize = 1;
const RBX: usize = 3;
const MOVDIR64B: [u8; 5] = [0x66, 0x0f, 0x38, 0xf8, 0x19];
const ENQCMD: [u8; 5] = [0xf2, 0x0f, 0x38, 0xf8, 0x19];
const ENQCMDS: [u8; 5] = [0xf3, 0x0f, 0x38, 0xf8, 0x19];
const SOURCE: u64 = 0x2000;
const GENERAL_PROTECTION: Failure =
    Failure::Exception(Exception { vector: 13, error_code: Some(0), cr2: None });

fn descriptor() -> [u8; 64] {
    core::array::from_fn(|i| 0x80 + i as u8)
}

/// The instruction with [rcx] as its source, and the device at RBX.
fn machine(state: CpuState, code: &[u8]) -> Rig {
    let mut machine = Rig::new(state, code);
    machine.state.gpr[RCX] = SOURCE;
    machine.state.gpr[RBX] = DEVICE + 0x40;
    machine.ram.put(SOURCE, &descriptor());
    machine
}

/// The same with paging: code at linear 0, the source across linear 0x1000, and the destination at linear 0x2040.
fn paged(code: &[u8], source: [u64; 2]) -> Rig {
    let mut machine = Rig::new(four_levels(), &[]);
    two_pages(&machine, [source[0], source[1]]);
    machine.ram.put_u64(TABLE[3] + 2 * 8, DEVICE | ALL);
    machine.ram.put(source[0], code);
    machine.state.rip = 0;
    machine.state.gpr[RCX] = 0xfe0;
    machine.state.gpr[RBX] = 0x2040;
    machine
}

/// Nothing was stored, and the state is as it was.
fn assert_refused(machine: &mut Rig, failure: &Failure) {
    let before = machine.state.clone();
    assert_eq!(machine.mmio().as_ref(), Err(failure));
    assert_eq!(machine.state, before);
    assert_eq!((machine.stored.len(), machine.seen.len()), (0, 0));
}

#[test]
fn movdir64b_is_one_store() {
    let mut machine = machine(long_state(), &MOVDIR64B);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.stored, [(DEVICE + 0x40, descriptor())]);
    assert_eq!((machine.seen.len(), machine.state.rip), (0, CODE + 5));
}

/// RAM whose first byte another processor changes after each read.
struct Racing<'a> {
    rig: &'a Rig,
    reads: Cell<usize>,
}

impl GuestMemory for Racing<'_> {
    fn read(&self, address: GuestPhys, buffer: &mut [u8]) -> Result<(), BadGuestAddress> {
        self.rig.ram.read(address, buffer)?;
        if (SOURCE..SOURCE + 64).contains(&address.0) {
            self.reads.set(self.reads.get() + 1);
            self.rig.ram.put(SOURCE, &[0xff; 64]);
        }
        Ok(())
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), BadGuestAddress> {
        self.rig.ram.write(address, bytes)
    }

    fn is_ram(&self, address: GuestPhys, len: usize) -> bool {
        self.rig.ram.is_ram(address, len)
    }

    fn ram_size(&self) -> u64 {
        self.rig.ram.ram_size()
    }
}

#[test]
fn the_source_is_read_once() {
    let rig = machine(long_state(), &MOVDIR64B);
    let memory = Racing { rig: &rig, reads: Cell::new(0) };
    let mut stored = Vec::new();
    let done = mmio(
        &mut rig.state.clone(),
        &mut Vectors::zero(),
        &memory,
        &mut Known::new(),
        rig.fault,
        &mut |exit| {
            let Exit::Store64 { bytes, .. } = exit else { panic!("{exit:?}") };
            stored.push(**bytes);
            0
        },
    );
    assert_eq!((done, memory.reads.get()), (Ok(true), 1));
    assert_eq!(stored, [descriptor()]);
}

#[test]
fn a_source_across_two_pages_is_put_together() {
    let mut machine = paged(&MOVDIR64B, [0xa000, 0xc000]);
    machine.ram.put(0xafe0, &descriptor()[..32]);
    machine.ram.put(0xc000, &descriptor()[32..]);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!(machine.stored, [(DEVICE + 0x40, descriptor())]);
}

#[test]
fn a_source_whose_second_page_is_not_there_stores_nothing() {
    let mut machine = paged(&MOVDIR64B, [0xa000, 0]);
    for told in [false, true] {
        machine.fault = Fault { address: DEVICE + 0x40, write: true, translated: told };
        assert_refused(&mut machine, &Failure::Exception(page_fault(0, 0x1000).unwrap_err()));
    }
}

#[test]
fn a_source_that_is_a_device_is_read_in_words() {
    // The device itself, and where its second half is one.
    for (second, reads) in [(DEVICE + 0x1000, 4), (0xc000, 0)] {
        let mut machine = paged(&MOVDIR64B, [0xa000, second]);
        machine.ram.put(0xafe0, &[7; 32]);
        machine.device[0x1000..0x1020].fill(8);
        assert_eq!(machine.mmio(), Ok(()));
        assert_eq!(machine.seen.len(), reads);
        let [(_, stored)] = machine.stored[..] else { panic!("{:?}", machine.stored) };
        assert_eq!((stored[31], stored[32]), (7, if reads == 0 { 0 } else { 8 }));
    }
}

#[test]
fn a_source_that_is_a_device_may_have_ram_as_its_destination() {
    let mut machine = machine(long_state(), &MOVDIR64B);
    machine.state.gpr[RCX] = DEVICE;
    machine.state.gpr[RBX] = 0x3000;
    machine.set_device(8, 0x1234);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.seen.len(), machine.stored.len()), (8, 0));
    assert_eq!(machine.ram.u64(0x3008), 0x1234);
}

#[test]
fn the_destination_is_a_multiple_of_64() {
    for code in [MOVDIR64B, ENQCMD, ENQCMDS] {
        for misaligned in [1, 8, 32, 63] {
            let mut machine = machine(long_state(), &code);
            machine.state.gpr[RBX] += misaligned;
            machine.fault = Fault { address: DEVICE + 0x40 + misaligned, write: true, translated: true };
            assert_refused(&mut machine, &GENERAL_PROTECTION);
        }
    }
}

/// What the processor has translated is not translated again, and leads nowhere else.
#[test]
fn a_destination_at_the_fault_is_spared_its_walk() {
    let mut machine = paged(&MOVDIR64B, [0xa000, 0xc000]);
    // Gone by now.
    machine.ram.put_u64(TABLE[3] + 2 * 8, 0);
    let fault = Fault { address: DEVICE + 0x1040, write: true, translated: true };
    let cases = [
        (fault, true),
        (Fault { write: false, ..fault }, false),
        (Fault { translated: false, ..fault }, false),
        (Fault { address: DEVICE + 0x1080, ..fault }, false),
    ];
    for (fault, done) in cases {
        machine.fault = fault;
        machine.state.rip = 0;
        let expected =
            if done { Ok(()) } else { Err(Failure::Exception(page_fault(2, 0x2040).unwrap_err())) };
        assert_eq!(machine.mmio(), expected, "{fault:?}");
        assert_eq!(core::mem::take(&mut machine.stored).len(), usize::from(done));
    }
}

/// The source is not what was written.
#[test]
fn a_source_at_the_fault_is_walked_to() {
    let mut machine = paged(&MOVDIR64B, [0xa000, 0]);
    machine.state.gpr[RCX] = 0x1040;
    machine.fault = Fault { address: DEVICE + 0x40, write: true, translated: true };
    assert_refused(&mut machine, &Failure::Exception(page_fault(0, 0x1040).unwrap_err()));
}

#[test]
fn code_patched_before_it_was_read_is_what_counts() {
    let fault = Fault { address: DEVICE + 0x40, write: true, translated: true };
    // A nop by now: nothing happens, and the processor tries again.
    let mut machine = machine(long_state(), &MOVDIR64B);
    machine.fault = fault;
    machine.ram.put(CODE, &[0x0f, 0x1f, 0x00]);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.stored.len(), machine.state.rip, machine.done), (0, CODE, false));
    // mov [rbx], eax became MOVDIR64B: it reaches the page of what exited.
    machine.ram.put(CODE, &[0x89, 0x03]);
    assert_eq!(machine.mmio(), Ok(()));
    machine.state.rip = CODE;
    machine.ram.put(CODE, &MOVDIR64B);
    assert_eq!(machine.mmio(), Ok(()));
    assert_eq!((machine.seen.len(), machine.stored.len()), (1, 1));
    // It reads its source elsewhere by now, which is not there.
    machine.state.rip = CODE;
    machine.ram.put(CODE, &[0x66, 0x0f, 0x38, 0xf8, 0x1a]);
    machine.state.gpr[2] = 1 << 63;
    machine.stored.clear();
    machine.seen.clear();
    assert_refused(&mut machine, &GENERAL_PROTECTION);
}

#[test]
fn enqcmd_is_told_to_retry() {
    for code in [ENQCMD, ENQCMDS] {
        let mut machine = machine(long_state(), &code);
        machine.state.rflags |= (RFlags::CARRY_FLAG | RFlags::SIGN_FLAG).bits();
        assert_eq!(machine.mmio(), Ok(()));
        assert_eq!((machine.seen.len(), machine.stored.len()), (0, 0));
        assert_eq!(machine.state.rflags, RFLAGS_FIXED | RFlags::ZERO_FLAG.bits());
        assert_eq!(machine.state.rip, CODE + 5);
    }
}

#[test]
fn supervisor_enqueue_is_refused_to_users() {
    let mut machine = machine(long_state(), &ENQCMDS);
    machine.state.cpl = 3;
    assert_refused(&mut machine, &GENERAL_PROTECTION);
}
