// SPDX-License-Identifier: MIT OR Apache-2.0
//! String instructions: on device memory, and between ports and RAM.
//!
//! An iteration is complete or did not happen: its operands are translated before the first access, its
//! registers are written after the last. Repetition stops after [`MAX_ITERATIONS`], and as soon as nothing
//! is a device any more, with RIP still on the instruction: the processor or the next exit goes on from
//! there.
//!
//! Source: Intel SDM volume 2, "REP/REPE/REPZ/REPNE/REPNZ" and the instructions' pages.

use iced_x86::{Code, Instruction, Register};
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::vm::exit::{Access, AccessKind, Exit};
use x86_64::registers::rflags::RFlags;

use super::access::{Bus, Target};
use super::address::string_operand;
use super::alu::{self, Binary};
use super::decode::Stop;
use super::registers::{RAX, RCX, RDI, RDX, RSI, Slot, mask};
use super::{AccessType, CpuState};

/// Iterations in one call; bounds the time away from the guest's other events.
pub(super) const MAX_ITERATIONS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
    Ins,
    Outs,
}

/// A string instruction with the size of its elements in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StringInstruction {
    operation: Operation,
    size: usize,
}

impl StringInstruction {
    pub(super) fn new(instruction: &Instruction) -> Option<Self> {
        let (operation, size) = match instruction.code() {
            Code::Movsb_m8_m8 => (Operation::Movs, 1),
            Code::Movsw_m16_m16 => (Operation::Movs, 2),
            Code::Movsd_m32_m32 => (Operation::Movs, 4),
            Code::Movsq_m64_m64 => (Operation::Movs, 8),
            Code::Cmpsb_m8_m8 => (Operation::Cmps, 1),
            Code::Cmpsw_m16_m16 => (Operation::Cmps, 2),
            Code::Cmpsd_m32_m32 => (Operation::Cmps, 4),
            Code::Cmpsq_m64_m64 => (Operation::Cmps, 8),
            Code::Stosb_m8_AL => (Operation::Stos, 1),
            Code::Stosw_m16_AX => (Operation::Stos, 2),
            Code::Stosd_m32_EAX => (Operation::Stos, 4),
            Code::Stosq_m64_RAX => (Operation::Stos, 8),
            Code::Lodsb_AL_m8 => (Operation::Lods, 1),
            Code::Lodsw_AX_m16 => (Operation::Lods, 2),
            Code::Lodsd_EAX_m32 => (Operation::Lods, 4),
            Code::Lodsq_RAX_m64 => (Operation::Lods, 8),
            Code::Scasb_AL_m8 => (Operation::Scas, 1),
            Code::Scasw_AX_m16 => (Operation::Scas, 2),
            Code::Scasd_EAX_m32 => (Operation::Scas, 4),
            Code::Scasq_RAX_m64 => (Operation::Scas, 8),
            Code::Insb_m8_DX => (Operation::Ins, 1),
            Code::Insw_m16_DX => (Operation::Ins, 2),
            Code::Insd_m32_DX => (Operation::Ins, 4),
            Code::Outsb_DX_m8 => (Operation::Outs, 1),
            Code::Outsw_DX_m16 => (Operation::Outs, 2),
            Code::Outsd_DX_m32 => (Operation::Outs, 4),
            _ => return None,
        };
        Some(Self { operation, size })
    }

    /// INS or OUTS.
    pub(super) fn is_port_io(self) -> bool {
        matches!(self.operation, Operation::Ins | Operation::Outs)
    }

    fn compares(self) -> bool {
        matches!(self.operation, Operation::Cmps | Operation::Scas)
    }
}

/// Runs the instruction, or the next iterations of it.
pub(super) fn run<M: GuestMemory + ?Sized>(
    state: &mut CpuState,
    bus: Bus<'_, M>,
    instruction: &Instruction,
    string: StringInstruction,
) -> Result<(), Stop> {
    let address_size = [instruction.op0_kind(), instruction.op1_kind()]
        .into_iter()
        .find_map(string_operand)
        .map(|(size, _)| size)
        .ok_or(Stop::Unsupported)?;
    let next_rip = state.next_rip(instruction.len());
    let count = Slot::new(RCX, address_size);
    let repeated = instruction.has_repe_prefix() || instruction.has_repne_prefix();
    let mut iteration = Iteration { bus, string, address_size, source_segment: instruction.memory_segment() };
    // A step ends behind one.
    let stepping = state.rflags & RFlags::TRAP_FLAG.bits() != 0;
    for _ in 0..if stepping { 1 } else { MAX_ITERATIONS } {
        if repeated && state.read(count) == 0 {
            state.complete(next_rip);
            return Ok(());
        }
        iteration.run(state)?;
        if !repeated {
            state.complete(next_rip);
            return Ok(());
        }
        let left = state.read(count).wrapping_sub(1);
        state.write(count, left);
        let equal = state.rflags & RFlags::ZERO_FLAG.bits() != 0;
        let ended = string.compares() && equal != instruction.has_repe_prefix();
        if left == 0 || ended {
            state.complete(next_rip);
            return Ok(());
        }
    }
    Ok(())
}

struct Iteration<'a, M: ?Sized> {
    bus: Bus<'a, M>,
    string: StringInstruction,
    address_size: usize,
    source_segment: Register,
}

impl<M: GuestMemory + ?Sized> Iteration<'_, M> {
    fn run(&mut self, state: &mut CpuState) -> Result<(), Stop> {
        let size = self.string.size;
        let accumulator = Slot::new(RAX, size);
        match self.string.operation {
            Operation::Movs => {
                let source = self.source(state)?;
                let destination = self.destination(state, AccessType::Write)?;
                touches_device(source.device || destination.device)?;
                let value = self.bus.read_value(&source);
                self.bus.write_value(&destination, value);
                self.advance(state, RSI);
                self.advance(state, RDI);
            }
            Operation::Cmps => {
                let source = self.source(state)?;
                let destination = self.destination(state, AccessType::Read)?;
                touches_device(source.device || destination.device)?;
                let (a, b) = (self.bus.read_value(&source), self.bus.read_value(&destination));
                (_, state.rflags) = alu::binary(Binary::Sub, a, b, size, state.rflags);
                self.advance(state, RSI);
                self.advance(state, RDI);
            }
            Operation::Stos => {
                let destination = self.destination(state, AccessType::Write)?;
                touches_device(destination.device)?;
                self.bus.write_value(&destination, state.read(accumulator));
                self.advance(state, RDI);
            }
            Operation::Lods => {
                let source = self.source(state)?;
                touches_device(source.device)?;
                let value = self.bus.read_value(&source);
                state.write(accumulator, value);
                self.advance(state, RSI);
            }
            Operation::Scas => {
                let destination = self.destination(state, AccessType::Read)?;
                touches_device(destination.device)?;
                let (a, b) = (state.read(accumulator), self.bus.read_value(&destination));
                (_, state.rflags) = alu::binary(Binary::Sub, a, b, size, state.rflags);
                self.advance(state, RDI);
            }
            Operation::Ins => {
                let destination = self.destination(state, AccessType::Write)?;
                is_ram(&destination)?;
                let value = self.port(state, AccessKind::Read) & mask(size);
                self.bus.write_ram(&destination, value);
                self.advance(state, RDI);
            }
            Operation::Outs => {
                let source = self.source(state)?;
                is_ram(&source)?;
                let value = self.bus.read_ram(&source);
                self.port(state, AccessKind::Write(value));
                self.advance(state, RSI);
            }
        }
        Ok(())
    }

    fn source(&mut self, state: &CpuState) -> Result<Target, Stop> {
        self.resolve(state, self.source_segment, RSI, AccessType::Read)
    }

    fn destination(&mut self, state: &CpuState, access: AccessType) -> Result<Target, Stop> {
        self.resolve(state, Register::ES, RDI, access)
    }

    fn resolve(
        &mut self,
        state: &CpuState,
        segment: Register,
        index: usize,
        access: AccessType,
    ) -> Result<Target, Stop> {
        let offset = state.read(Slot::new(index, self.address_size));
        let linear = state.linear(segment, offset, self.string.size)?;
        Ok(self.bus.resolve(state, linear, self.string.size, access)?)
    }

    fn port(&mut self, state: &CpuState, kind: AccessKind) -> u64 {
        (self.bus.devices)(&Exit::Io(Access {
            address: state.read(Slot::new(RDX, 2)),
            size: self.string.size as u8,
            kind,
        }))
    }

    fn advance(&self, state: &mut CpuState, index: usize) {
        let slot = Slot::new(index, self.address_size);
        let down = state.rflags & RFlags::DIRECTION_FLAG.bits() != 0;
        let size = self.string.size as u64;
        let step = if down { size.wrapping_neg() } else { size };
        let value = state.read(slot).wrapping_add(step);
        state.write(slot, value);
    }
}

fn touches_device(device: bool) -> Result<(), Stop> {
    if device { Ok(()) } else { Err(Stop::Retry) }
}

fn is_ram(target: &Target) -> Result<(), Stop> {
    if target.device { Err(Stop::Unsupported) } else { Ok(()) }
}
