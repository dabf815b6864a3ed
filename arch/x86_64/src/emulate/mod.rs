// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries out a guest's instruction where the processor cannot: on memory that is a device.
//!
//! **Principle.** An exit says that an access failed, not what the guest wanted. So the instruction is
//! fetched and decoded as the processor would, its operands are translated by the guest's own page tables
//! with the guest's own rights, and each access goes to RAM where [`GuestMemory`] has it and to the bus
//! where not. These are plain functions of values: nothing here knows which virtualization extension
//! caused the exit.
//!
//! **Invariants.**
//! - Memory is reached through [`GuestMemory`] and the bus only, whatever the bytes, registers and tables
//!   hold. No input panics, and the work of one call is bounded.
//! - Exceptions are precise: every operand is translated, for writing where it is written, before the first
//!   device access. On an error the state is as before the instruction (for a repeated string instruction:
//!   as after the last complete iteration).
//! - The guest may change its code and tables while this runs. The rights are checked on what is read here,
//!   so a race gives the guest nothing that it could not have had by running that other code.
//!
//! **Left to the caller.** What follows a completed instruction: the #DB of a single step (RFLAGS.TF) and the end of
//! an interrupt shadow. **Not looked at:** data breakpoints. A locked access to a device is one read and one write on the bus. Protection
//! keys, shadow stacks and linear-address masking are not offered to guests and not looked at.
//!
//! Source: Intel SDM volume 2 (instructions), volume 3A chapters 3 "Protected-Mode Memory Management" and
//! 5 "Paging"; AMD APM volume 2 chapter 5.

mod access;
mod address;
mod alu;
mod condition;
mod decode;
mod execute;
mod registers;
mod string;
#[cfg(test)]
mod tests;
mod vector;
mod walk;

use arrayvec::ArrayVec;
use pasidon_kernel::base::addr::GuestPhys;
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::vm::exit::Exit;
use x86_64::structures::idt::ExceptionVector;

use access::Bus;
use decode::DecodeCache;
use walk::WalkCache;

pub use decode::{ControlMove, control_move, fetch, instruction_length};
pub use walk::translate;

/// Longest instruction of the architecture, in bytes.
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// What the emulator reads and changes of a vCPU.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// General-purpose registers in the order of their encoding: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8–r15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Code segment.
    pub cs: SegmentState,
    /// Stack segment.
    pub ss: SegmentState,
    /// Data segment.
    pub ds: SegmentState,
    /// Extra segment.
    pub es: SegmentState,
    /// FS; its base counts in 64-bit mode too.
    pub fs: SegmentState,
    /// GS; its base counts in 64-bit mode too.
    pub gs: SegmentState,
}

/// The hidden part of a segment register, as far as addresses depend on it.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct SegmentState {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Last valid offset, in bytes (the granularity bit already applied). Taken as that of an expand-up
    /// segment.
    pub limit: u32,
    /// Bit L of a code segment: 64-bit code, when long mode is active.
    pub long: bool,
    /// Bit D/B: 32-bit operands, addresses and stack pointer by default.
    pub big: bool,
}

/// Bytes of the largest vector register, ZMM.
pub const VECTOR_LEN: usize = 64;

/// A vector register: its low 16 bytes are XMM, its low 32 bytes YMM.
pub type Vector = [u8; VECTOR_LEN];

/// The vector registers of a vCPU. They lie elsewhere than the rest of its state, and few instructions want them.
pub trait VectorRegisters {
    /// XCR0 as the guest set it.
    fn xcr0(&self) -> u64;

    /// Register `index`, 0 to 31. What the processor does not have reads as zero.
    fn read(&mut self, index: usize) -> Vector;

    /// Writes register `index`, 0 to 31. What the processor does not have is lost.
    fn write(&mut self, index: usize, value: &Vector);
}

/// How memory is accessed; user or supervisor follows from the privilege level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessType {
    /// Data read.
    Read,
    /// Data write, or the read of a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// An exception for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the vector has one and the guest is not in real mode.
    pub error_code: Option<u32>,
    /// New value of CR2, with a page fault.
    pub cr2: Option<u64>,
}

impl Exception {
    fn with_zero_code(state: &CpuState, vector: ExceptionVector) -> Self {
        Self { vector: vector as u8, error_code: state.protected_mode().then_some(0), cr2: None }
    }

    /// #GP(0).
    pub(crate) fn general_protection(state: &CpuState) -> Self {
        Self::with_zero_code(state, ExceptionVector::GeneralProtection)
    }

    /// An exception without an error code.
    const fn plain(vector: ExceptionVector) -> Self {
        Self { vector: vector as u8, error_code: None, cr2: None }
    }

    /// #UD.
    pub(crate) const fn undefined() -> Self {
        Self::plain(ExceptionVector::InvalidOpcode)
    }

    /// #NM.
    pub(crate) const fn device_not_available() -> Self {
        Self::plain(ExceptionVector::DeviceNotAvailable)
    }

    /// #SS(0).
    pub(crate) fn stack_fault(state: &CpuState) -> Self {
        Self::with_zero_code(state, ExceptionVector::Stack)
    }
}

/// Where accesses go that no RAM answers: what a read returns, and anything for a write.
pub type Devices<'a> = &'a mut dyn FnMut(&Exit<'_>) -> u64;

/// The bytes of an instruction, for the log.
pub type InstructionBytes = ArrayVec<u8, MAX_INSTRUCTION_LEN>;

/// The access that exited, as the processor tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Guest-physical address.
    pub address: u64,
    /// It wanted to write.
    pub write: bool,
    /// The address is what a linear one was translated to, not that of an entry of the guest's page tables.
    pub translated: bool,
}

/// What a vCPU's accesses to devices have taken before: the same few instructions, and walks of page tables.
#[derive(Debug)]
pub struct Known {
    instructions: DecodeCache,
    walks: WalkCache,
}

impl Known {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { instructions: DecodeCache::new(), walks: WalkCache::new() }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self::new()
    }
}

/// Why an instruction was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The guest gets this exception.
    Exception(Exception),
    /// The instruction is not one that is emulated. Its bytes, as many as could be fetched: none when the
    /// code itself does not lie in RAM.
    Unsupported(InstructionBytes),
}

impl From<Exception> for Failure {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Carries out the instruction at CS:RIP, whose access `fault` exited because no RAM is there.
///
/// Each device access goes to `devices` as an [`Exit::Mmio`], naturally aligned and of 1, 2, 4 or 8 bytes. What straddles
/// a page or is misaligned becomes several accesses with ascending addresses. The 64 bytes of MOVDIR64B, read once,
/// are one [`Exit::Store64`]. The addresses come from the instruction's operands through [`translate`]. Where the only
/// memory operand of a plain move, or the destination of MOVDIR64B, is at `fault`, the processor has translated it
/// already, with its rights; another instruction that stands there by now reaches no further than the one that
/// faulted. `known` is the vCPU's own.
///
/// On `Ok(true)` the state is as after the instruction, with RFLAGS.RF cleared. `Ok(false)` has the processor try
/// again, because by now nothing that the instruction touches is a device (the guest changed its tables or code
/// meanwhile). A repeated string instruction returns after a bounded number of iterations with RIP still on it, and
/// after one where the guest steps.
///
/// # Errors
/// When it ends in an exception for the guest ([`Failure::Exception`]), or is not emulated ([`Failure::Unsupported`]):
/// vector instructions that do more than move, x87, multiplication and division, far transfers, loads of segment
/// registers.
pub fn mmio<M: GuestMemory + ?Sized>(
    state: &mut CpuState,
    vectors: &mut dyn VectorRegisters,
    memory: &M,
    known: &mut Known,
    fault: Fault,
    devices: Devices<'_>,
) -> Result<bool, Failure> {
    // RAM by now: the processor needs no help.
    if memory.is_ram(GuestPhys(fault.address), 1) {
        return Ok(false);
    }
    let Known { instructions, walks } = known;
    let decoded = instructions.decode(state, memory, walks)?;
    let instruction = &decoded.instruction;
    let bus = Bus { memory, walks, devices };
    let result = match string::StringInstruction::new(instruction) {
        Some(string) if !string.is_port_io() => string::run(state, bus, instruction, string),
        _ => match vector::Move::new(instruction) {
            Some(this) => vector::run(state, bus, vectors, decoded, this),
            None => execute::run(state, bus, decoded, fault),
        },
    };
    decode::finish(result, state, memory)
}

/// Carries out the INS or OUTS at CS:RIP, whose access to its port exited.
///
/// Each port access goes to `devices` as an [`Exit::Io`]. With a REP prefix a bounded number of iterations is done, and
/// one where the guest steps; RIP stays on the instruction until the last.
/// The processor has checked the I/O privilege before the exit; it is not checked again.
///
/// # Errors
/// When it ends in an exception for the guest ([`Failure::Exception`]), or the instruction is another one (the guest
/// changed it meanwhile) or its memory operand is not RAM ([`Failure::Unsupported`]).
pub fn string_io<M: GuestMemory + ?Sized>(
    state: &mut CpuState,
    memory: &M,
    known: &mut Known,
    devices: Devices<'_>,
) -> Result<bool, Failure> {
    let Known { instructions, walks } = known;
    let instruction = &instructions.decode(state, memory, walks)?.instruction;
    let bus = Bus { memory, walks, devices };
    let result = match string::StringInstruction::new(instruction) {
        Some(string) if string.is_port_io() => string::run(state, bus, instruction, string),
        _ => Err(decode::Stop::Unsupported),
    };
    decode::finish(result, state, memory)
}

/// Builds the decoder's tables, some 330 KiB on the heap. They are built at the first use otherwise; call this once
/// while starting, where running out of heap is still a refusal to start.
pub fn prepare() {
    decode::prepare();
}
