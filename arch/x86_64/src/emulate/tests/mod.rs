// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU with a little RAM and a device above it, for the tests of each subject.

mod alu;
mod descriptors;
mod forms;
mod hostile;
mod modes;
mod strings;
mod vectors;
mod walk;

use pasidon_arch_common::testing::TestMemory;
use pasidon_kernel::vm::exit::{AccessKind, Exit};
use x86_64::registers::control::{Cr0Flags, EferFlags};

use super::{CpuState, Failure, Fault, Known, SegmentState, VECTOR_LEN, Vector, VectorRegisters};

/// Where the tests put code.
const CODE: u64 = 0x1000;
/// First guest-physical address that is not RAM.
const DEVICE: u64 = 0x10_0000;
const DEVICE_SIZE: u64 = 0x2000;
const RFLAGS_FIXED: u64 = 2;

/// RAM from 0 to [`DEVICE`].
fn memory() -> TestMemory {
    TestMemory::new(0, DEVICE as usize)
}

const FLAT: SegmentState = SegmentState { base: 0, limit: u32::MAX, long: false, big: true };

/// 64-bit code without paging: not a state a processor has, but one where addresses speak for themselves.
fn long_state() -> CpuState {
    let mut state = protected_state();
    state.efer = EferFlags::LONG_MODE_ACTIVE.bits();
    state.cs.long = true;
    state.cs.big = false;
    state
}

/// 32-bit code, flat segments, no paging.
fn protected_state() -> CpuState {
    CpuState {
        rip: CODE,
        rflags: RFLAGS_FIXED,
        cr0: Cr0Flags::PROTECTED_MODE_ENABLE.bits(),
        cs: FLAT,
        ss: FLAT,
        ds: FLAT,
        es: FLAT,
        fs: FLAT,
        gs: FLAT,
        ..CpuState::default()
    }
}

/// 16-bit code in real mode, all segments at 0.
fn real_state() -> CpuState {
    let segment = SegmentState { limit: 0xffff, ..SegmentState::default() };
    CpuState {
        rip: CODE,
        rflags: RFLAGS_FIXED,
        cs: segment,
        ss: segment,
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ..CpuState::default()
    }
}

/// Vector registers that are just there, all of them enabled.
struct Vectors([Vector; 32]);

impl Vectors {
    const fn zero() -> Self {
        Self([[0; VECTOR_LEN]; 32])
    }
}

impl VectorRegisters for Vectors {
    fn xcr0(&self) -> u64 {
        0xe7
    }

    fn read(&mut self, index: usize) -> Vector {
        self.0[index]
    }

    fn write(&mut self, index: usize, value: &Vector) {
        self.0[index] = *value;
    }
}

/// What an access on the bus was: address, size, value written.
type Seen = (u64, u8, Option<u64>);

struct Rig {
    state: CpuState,
    vectors: Vectors,
    ram: TestMemory,
    known: Known,
    /// As the processor tells it; here it says nothing that would spare a translation.
    fault: Fault,
    /// Contents of the device, from `DEVICE`.
    device: Vec<u8>,
    seen: Vec<Seen>,
    /// Stores of 64 bytes: address and what was stored.
    stored: Vec<(u64, [u8; 64])>,
    /// Whether the last instruction, or an iteration of it, was carried out.
    done: bool,
}

impl Rig {
    fn new(state: CpuState, code: &[u8]) -> Self {
        let ram = memory();
        ram.put(CODE, code);
        Self {
            state,
            vectors: Vectors::zero(),
            ram,
            known: Known::new(),
            fault: Fault { address: DEVICE, write: false, translated: false },
            device: vec![0; DEVICE_SIZE as usize],
            seen: Vec::new(),
            stored: Vec::new(),
            done: false,
        }
    }

    fn set_device(&mut self, offset: u64, value: u64) {
        self.device[offset as usize..offset as usize + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn device_u64(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.device[offset as usize..offset as usize + 8].try_into().unwrap())
    }

    fn mmio(&mut self) -> Result<(), Failure> {
        let Self { state, vectors, ram, known, fault, device, seen, stored, .. } = self;
        let done = super::mmio(state, vectors, ram, known, *fault, &mut |exit| {
            let access = match exit {
                Exit::Mmio(access) => access,
                Exit::Store64 { address, bytes } => {
                    assert!(address.is_multiple_of(64));
                    stored.push((*address, **bytes));
                    return 0;
                }
                _ => panic!("{exit:?}"),
            };
            assert!(access.address.is_multiple_of(access.size.into()));
            let start = (access.address - DEVICE) as usize;
            let bytes = &mut device[start..start + usize::from(access.size)];
            match access.kind {
                AccessKind::Read => {
                    seen.push((access.address, access.size, None));
                    let mut value = [0; 8];
                    value[..bytes.len()].copy_from_slice(bytes);
                    u64::from_le_bytes(value)
                }
                AccessKind::Write(value) => {
                    seen.push((access.address, access.size, Some(value)));
                    bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
                    0
                }
            }
        })?;
        self.done = done;
        Ok(())
    }
}
