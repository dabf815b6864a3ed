// SPDX-License-Identifier: MIT OR Apache-2.0
//! From CS:RIP to a decoded instruction.
//!
//! More than 15 bytes, which the processor answers with #GP(0), are told as unsupported here.
//!
//! Source: Intel SDM volume 3A, 3.4 (segments).

use arrayvec::ArrayVec;
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use pasidon_kernel::base::addr::PAGE_SIZE;
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::rflags::RFlags;

use super::walk::translate;
use super::{AccessType, CpuState, Exception, Failure, InstructionBytes, MAX_INSTRUCTION_LEN};

/// Why the execution of a decoded instruction ended early.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing that it touches is a device; the processor shall try again.
    Retry,
    /// It is not emulated.
    Unsupported,
    Exception(Exception),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Turns an early end into what the caller of the emulator sees: whether the instruction, or an iteration of it, was
/// carried out.
pub(super) fn finish(
    result: Result<(), Stop>,
    state: &CpuState,
    memory: &dyn GuestMemory,
) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(Stop::Retry) => Ok(false),
        Err(Stop::Exception(exception)) => Err(Failure::Exception(exception)),
        Err(Stop::Unsupported) => Err(unsupported(state, memory)),
    }
}

fn unsupported(state: &CpuState, memory: &dyn GuestMemory) -> Failure {
    let mut buffer = [0; MAX_INSTRUCTION_LEN];
    let (len, _) = fetch_bytes(state, memory, &mut buffer);
    Failure::Unsupported(bytes_for_log(&buffer[..len]))
}

fn bytes_for_log(bytes: &[u8]) -> InstructionBytes {
    bytes.iter().copied().take(MAX_INSTRUCTION_LEN).collect::<ArrayVec<_, MAX_INSTRUCTION_LEN>>()
}

impl CpuState {
    /// Whether the code is 64-bit code.
    pub fn is_64bit(&self) -> bool {
        self.long_mode() && self.cs.long
    }

    /// Width of the code in bits, as the decoder wants it.
    fn bitness(&self) -> u32 {
        match (self.is_64bit(), self.cs.big) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }

    /// RIP after an instruction of `len` bytes.
    pub(super) fn next_rip(&self, len: usize) -> u64 {
        let next = self.rip.wrapping_add(len as u64);
        if self.is_64bit() { next } else { next & 0xffff_ffff }
    }

    /// Moves past a completed instruction.
    pub(super) fn complete(&mut self, next_rip: u64) {
        self.rip = next_rip;
        self.rflags &= !RFlags::RESUME_FLAG.bits();
    }
}

/// Reads what lies at CS:RIP, at most an instruction's length, which may cross a page. Returns the number of
/// bytes: fewer than 15 where the segment ends, the next page faults, or RAM ends, and 0 where CS:RIP itself
/// is not RAM.
///
/// # Errors
/// When the fetch of the first byte gives an exception.
pub fn fetch(
    state: &CpuState,
    memory: &dyn GuestMemory,
    buffer: &mut [u8; MAX_INSTRUCTION_LEN],
) -> Result<usize, Exception> {
    match fetch_bytes(state, memory, buffer) {
        (0, Some(exception)) => Err(exception),
        (len, _) => Ok(len),
    }
}

/// The number of bytes, and the exception that the byte after them would raise.
fn fetch_bytes(
    state: &CpuState,
    memory: &dyn GuestMemory,
    buffer: &mut [u8; MAX_INSTRUCTION_LEN],
) -> (usize, Option<Exception>) {
    let (start, available) = if state.is_64bit() {
        (state.rip, MAX_INSTRUCTION_LEN)
    } else {
        let limit = u64::from(state.cs.limit);
        let left = match limit.checked_sub(state.rip & 0xffff_ffff) {
            Some(left) => left.saturating_add(1).min(MAX_INSTRUCTION_LEN as u64),
            None => 0,
        };
        (state.cs.base.wrapping_add(state.rip & 0xffff_ffff), left as usize)
    };
    let mut filled = 0;
    while filled < available {
        let linear = start.wrapping_add(filled as u64);
        let address = match translate(state, memory, linear, AccessType::Execute) {
            Ok(address) => address,
            Err(exception) => return (filled, Some(exception)),
        };
        let page_rest = (PAGE_SIZE - address.0 % PAGE_SIZE) as usize;
        let len = page_rest.min(available - filled);
        if memory.read(address, &mut buffer[filled..filled + len]).is_err() {
            return (filled, None);
        }
        filled += len;
    }
    // Past the segment's limit. (Past 15 bytes the decoder does not ask for more.)
    (filled, Some(Exception::general_protection(state)))
}

/// The instruction at CS:RIP.
pub(super) fn decode(state: &CpuState, memory: &dyn GuestMemory) -> Result<Instruction, Failure> {
    let mut buffer = [0; MAX_INSTRUCTION_LEN];
    let (len, stopped_by) = fetch_bytes(state, memory, &mut buffer);
    let bytes = &buffer[..len];
    let unsupported = || Failure::Unsupported(bytes_for_log(bytes));
    let mut decoder = Decoder::try_with_ip(state.bitness(), bytes, state.rip, DecoderOptions::NONE)
        .map_err(|_| unsupported())?;
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None if !instruction.is_invalid() => Ok(instruction),
        DecoderError::NoMoreBytes => Err(stopped_by.map_or_else(unsupported, Failure::Exception)),
        _ => Err(unsupported()),
    }
}

/// Length in bytes, 1 to 15, of the instruction at CS:RIP: for exits where the processor does not tell it.
///
/// # Errors
/// When the fetch gives an exception, or the bytes are no instruction ([`Failure::Unsupported`]).
pub fn instruction_length(state: &CpuState, memory: &dyn GuestMemory) -> Result<u8, Failure> {
    decode(state, memory).map(|instruction| instruction.len() as u8)
}

/// A move from or to a control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlMove {
    /// Number of the control register.
    pub control: u8,
    /// Whether it is written.
    pub write: bool,
    /// Number of the general register.
    pub gpr: u8,
}

/// The move from or to a control register at CS:RIP: for exits where the processor does not tell its operands.
/// `None` where by now it is another instruction.
///
/// # Errors
/// When the fetch gives an exception, or the bytes are no instruction ([`Failure::Unsupported`]).
pub fn control_move(state: &CpuState, memory: &dyn GuestMemory) -> Result<Option<ControlMove>, Failure> {
    let instruction = decode(state, memory)?;
    let (control, gpr, write) = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (instruction.op0_register(), instruction.op1_register(), true),
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            (instruction.op1_register(), instruction.op0_register(), false)
        }
        _ => return Ok(None),
    };
    Ok(Some(ControlMove { control: control.number() as u8, write, gpr: gpr.number() as u8 }))
}

pub(super) fn prepare() {
    /// NOP.
    const NOP: [u8; 1] = [0x90];
    let _ = Decoder::new(64, &NOP, DecoderOptions::NONE).decode();
}
