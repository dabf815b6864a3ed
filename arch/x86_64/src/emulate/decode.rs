// SPDX-License-Identifier: MIT OR Apache-2.0
//! From CS:RIP to a decoded instruction.
//!
//! More than 15 bytes, which the processor answers with #GP(0), are told as unsupported here.
//!
//! Source: Intel SDM volume 3A, 3.4 (segments).

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use pasidon_kernel::base::addr::{GuestPhys, PAGE_SIZE};
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::rflags::RFlags;

use super::address::MemoryOperand;
use super::walk::{WalkCache, translate};
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
pub(super) fn finish<M: GuestMemory + ?Sized>(
    result: Result<(), Stop>,
    state: &CpuState,
    memory: &M,
) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(Stop::Retry) => Ok(false),
        Err(Stop::Exception(exception)) => Err(Failure::Exception(exception)),
        Err(Stop::Unsupported) => Err(unsupported(state, memory)),
    }
}

fn unsupported<M: GuestMemory + ?Sized>(state: &CpuState, memory: &M) -> Failure {
    Failure::Unsupported(Fetched::new(state, memory).to_bytes())
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

/// Reads what lies at CS:RIP, at most an instruction's length, which may cross a page: fewer than 15 bytes where the
/// segment ends, the next page faults, or RAM ends, and none where CS:RIP itself is not RAM.
///
/// # Errors
/// When the fetch of the first byte gives an exception.
pub fn fetch<M: GuestMemory + ?Sized>(state: &CpuState, memory: &M) -> Result<InstructionBytes, Exception> {
    let fetched = Fetched::new(state, memory);
    match fetched.stopped_by {
        Some(exception) if fetched.len == 0 => Err(exception),
        _ => Ok(fetched.to_bytes()),
    }
}

/// What lies at CS:RIP.
struct Fetched {
    /// Zeros behind `len`.
    bytes: [u8; 16],
    /// 15 at most.
    len: usize,
    /// What the fetch of the byte behind them would raise.
    stopped_by: Option<Exception>,
}

impl Fetched {
    fn new<M: GuestMemory + ?Sized>(state: &CpuState, memory: &M) -> Self {
        Self::with(state, memory, |linear| translate(state, memory, linear, AccessType::Execute))
    }

    fn with<M: GuestMemory + ?Sized>(
        state: &CpuState,
        memory: &M,
        mut translate: impl FnMut(u64) -> Result<GuestPhys, Exception>,
    ) -> Self {
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
        let mut fetched = Self { bytes: [0; 16], len: 0, stopped_by: None };
        if available == MAX_INSTRUCTION_LEN
            && start % PAGE_SIZE <= PAGE_SIZE - fetched.bytes.len() as u64
            && let Ok(address) = translate(start)
            && memory.read(address, &mut fetched.bytes).is_ok()
        {
            // All at once, as mostly.
            fetched.bytes[MAX_INSTRUCTION_LEN] = 0;
            fetched.len = MAX_INSTRUCTION_LEN;
        }
        while fetched.len < available {
            let linear = start.wrapping_add(fetched.len as u64);
            let address = match translate(linear) {
                Ok(address) => address,
                Err(exception) => {
                    fetched.stopped_by = Some(exception);
                    return fetched;
                }
            };
            let page_rest = (PAGE_SIZE - address.0 % PAGE_SIZE) as usize;
            let end = fetched.len + page_rest.min(available - fetched.len);
            if memory.read(address, &mut fetched.bytes[fetched.len..end]).is_err() {
                return fetched;
            }
            fetched.len = end;
        }
        // Past the segment's limit. (Past 15 bytes the decoder does not ask for more.)
        fetched.stopped_by = Some(Exception::general_protection(state));
        fetched
    }

    fn to_bytes(&self) -> InstructionBytes {
        self.bytes[..self.len].iter().copied().take(MAX_INSTRUCTION_LEN).collect()
    }

    fn decode(&self, state: &CpuState) -> Result<Instruction, Failure> {
        let unsupported = || Failure::Unsupported(self.to_bytes());
        let bytes = &self.bytes[..self.len];
        let mut decoder = Decoder::try_with_ip(state.bitness(), bytes, state.rip, DecoderOptions::NONE)
            .map_err(|_| unsupported())?;
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None if !instruction.is_invalid() => Ok(instruction),
            DecoderError::NoMoreBytes => Err(self.stopped_by.map_or_else(unsupported, Failure::Exception)),
            _ => Err(unsupported()),
        }
    }
}

/// Instructions that were decoded before: a driver reads and writes its device with the same few all the time. One
/// counts as the same where address, mode and bytes are, so there is nothing to invalidate.
#[derive(Debug)]
pub(super) struct DecodeCache([Entry; Self::ENTRIES]);

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded {
    pub(super) instruction: Instruction,
    /// Its memory operand; `None` for one that is not emulated.
    pub(super) operand: Option<MemoryOperand>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    rip: u64,
    bitness: u32,
    /// Its bytes, zeros behind them.
    bytes: u128,
    /// Ones where its bytes are.
    mask: u128,
    decoded: Decoded,
}

impl DecodeCache {
    const ENTRIES: usize = 16;

    /// An empty one.
    pub(super) fn new() -> Self {
        // Its mask fits all bytes, but no decoder has that bitness.
        let decoded = Decoded { instruction: Instruction::default(), operand: None };
        Self([Entry { rip: 0, bitness: 0, bytes: 0, mask: 0, decoded }; Self::ENTRIES])
    }

    /// The instruction at CS:RIP.
    pub(super) fn decode<M: GuestMemory + ?Sized>(
        &mut self,
        state: &CpuState,
        memory: &M,
        walks: &mut WalkCache,
    ) -> Result<&Decoded, Failure> {
        let fetched = Fetched::with(state, memory, |linear| {
            walks.translate(state, memory, linear, AccessType::Execute)
        });
        let (bitness, bytes) = (state.bitness(), u128::from_le_bytes(fetched.bytes));
        // Instructions are three to four bytes long on average.
        let entry = &mut self.0[(state.rip >> 2) as usize % Self::ENTRIES];
        let known = (entry.rip, entry.bitness, entry.bytes) == (state.rip, bitness, bytes & entry.mask)
            && entry.decoded.instruction.len() <= fetched.len;
        if !known {
            entry.renew(state, &fetched)?;
        }
        Ok(&entry.decoded)
    }
}

impl Entry {
    #[cold]
    fn renew(&mut self, state: &CpuState, fetched: &Fetched) -> Result<(), Failure> {
        let instruction = fetched.decode(state)?;
        let mask = (1 << (8 * instruction.len())) - 1;
        let operand = MemoryOperand::new(&instruction, state.is_64bit());
        let decoded = Decoded { instruction, operand };
        let bytes = u128::from_le_bytes(fetched.bytes) & mask;
        *self = Self { rip: state.rip, bitness: state.bitness(), bytes, mask, decoded };
        Ok(())
    }
}

/// The instruction at CS:RIP.
fn decode<M: GuestMemory + ?Sized>(state: &CpuState, memory: &M) -> Result<Instruction, Failure> {
    Fetched::new(state, memory).decode(state)
}

/// Length in bytes, 1 to 15, of the instruction at CS:RIP: for exits where the processor does not tell it.
///
/// # Errors
/// When the fetch gives an exception, or the bytes are no instruction ([`Failure::Unsupported`]).
pub fn instruction_length<M: GuestMemory + ?Sized>(state: &CpuState, memory: &M) -> Result<u8, Failure> {
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
pub fn control_move<M: GuestMemory + ?Sized>(
    state: &CpuState,
    memory: &M,
) -> Result<Option<ControlMove>, Failure> {
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
