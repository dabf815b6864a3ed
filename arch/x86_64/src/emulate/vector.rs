// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves between a vector register and memory that is a device: what `memcpy` and `memset` of a C library are made of.
//!
//! **Principle.** A move is a piece of memory, a place in the register, and what becomes of the rest of it. SSE leaves
//! what lies above bit 127, VEX and EVEX clear it. Masked moves, arithmetic on an operand in memory and MMX are not
//! done: nobody uses them on registers of a device.
//!
//! Source: Intel SDM volume 2, the pages of the instructions, and 2.4 "Instruction Exception Specification".

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::xcontrol::XCr0Flags;

use super::access::Bus;
use super::decode::{Decoded, Stop};
use super::{AccessType, CpuState, Exception, VECTOR_LEN, Vector, VectorRegisters};

/// Bytes of an XMM register; SSE leaves what is above.
const XMM_LEN: usize = 16;

/// A move between a register and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    /// Where the memory operand lies in the register, in bytes.
    at: usize,
    /// A load keeps what the XMM register (VEX: the one that is named as the source) has beside it; otherwise that
    /// becomes zero.
    merges: bool,
    /// The address must be a multiple of the operand's size.
    aligned: bool,
}

impl Move {
    const WHOLE: Self = Self { at: 0, merges: false, aligned: false };
    const ALIGNED: Self = Self { aligned: true, ..Self::WHOLE };

    const fn half(at: usize) -> Self {
        Self { at, merges: true, aligned: false }
    }

    /// `None` for every other instruction.
    pub(super) fn new(instruction: &Instruction) -> Option<Self> {
        Some(match instruction.mnemonic() {
            Mnemonic::Movdqu | Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Lddqu => Self::WHOLE,
            Mnemonic::Vmovdqu | Mnemonic::Vmovups | Mnemonic::Vmovupd | Mnemonic::Vlddqu => Self::WHOLE,
            Mnemonic::Vmovdqu8 | Mnemonic::Vmovdqu16 | Mnemonic::Vmovdqu32 | Mnemonic::Vmovdqu64 => {
                Self::WHOLE
            }
            Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movss => Self::WHOLE,
            Mnemonic::Vmovd | Mnemonic::Vmovq | Mnemonic::Vmovss | Mnemonic::Vmovsd => Self::WHOLE,
            // The string instruction of this name was recognized before.
            Mnemonic::Movsd => Self::WHOLE,
            Mnemonic::Movdqa | Mnemonic::Movaps | Mnemonic::Movapd => Self::ALIGNED,
            Mnemonic::Movntdq | Mnemonic::Movntps | Mnemonic::Movntpd | Mnemonic::Movntdqa => Self::ALIGNED,
            Mnemonic::Vmovdqa | Mnemonic::Vmovaps | Mnemonic::Vmovapd => Self::ALIGNED,
            Mnemonic::Vmovdqa32 | Mnemonic::Vmovdqa64 => Self::ALIGNED,
            Mnemonic::Vmovntdq | Mnemonic::Vmovntps | Mnemonic::Vmovntpd | Mnemonic::Vmovntdqa => {
                Self::ALIGNED
            }
            Mnemonic::Movlps | Mnemonic::Movlpd | Mnemonic::Vmovlps | Mnemonic::Vmovlpd => Self::half(0),
            Mnemonic::Movhps | Mnemonic::Movhpd | Mnemonic::Vmovhps | Mnemonic::Vmovhpd => Self::half(8),
            _ => return None,
        })
    }
}

/// Carries out what was `decoded`, which is `this` move; changes `state` and `vectors` on success only.
pub(super) fn run<M: GuestMemory + ?Sized>(
    state: &mut CpuState,
    mut bus: Bus<'_, M>,
    vectors: &mut dyn VectorRegisters,
    decoded: &Decoded,
    this: Move,
) -> Result<(), Stop> {
    let Decoded { instruction, operand } = decoded;
    let stores = instruction.op0_kind() == OpKind::Memory;
    let last = instruction.op_count().saturating_sub(1);
    if !stores && instruction.op_kind(last) != OpKind::Memory {
        // Between registers: the guest patched its code meanwhile.
        return Err(Stop::Retry);
    }
    if instruction.op_mask() != Register::None {
        return Err(Stop::Unsupported);
    }
    let register = number(instruction.op_register(if stores { last } else { 0 }))?;
    usable(state, vectors.xcr0(), instruction)?;

    let size = instruction.memory_size().size();
    if size == 0 || this.at + size > VECTOR_LEN {
        return Err(Stop::Unsupported);
    }
    let operand = operand.as_ref().ok_or(Stop::Unsupported)?;
    let linear = state.linear(operand.segment, operand.offset(state, 0), size)?;
    if this.aligned && !linear.is_multiple_of(size as u64) {
        return Err(Exception::general_protection(state).into());
    }
    let access = if stores { AccessType::Write } else { AccessType::Read };
    let target = bus.resolve(state, linear, size, access)?;
    if !target.device {
        return Err(Stop::Retry);
    }

    let place = this.at..this.at + size;
    let old = vectors.read(register);
    if stores {
        bus.write(&target, &old[place]);
    } else {
        let mut new: Vector = [0; VECTOR_LEN];
        if this.merges {
            let beside = match last {
                // VEX and EVEX name the source of the rest.
                2 => vectors.read(number(instruction.op1_register())?),
                _ => old,
            };
            new[..XMM_LEN].copy_from_slice(&beside[..XMM_LEN]);
        }
        bus.read(&target, &mut new[place]);
        if instruction.code().encoding() == EncodingKind::Legacy {
            new[XMM_LEN..].copy_from_slice(&old[XMM_LEN..]);
        }
        vectors.write(register, &new);
    }
    state.complete(state.next_rip(instruction.len()));
    Ok(())
}

/// The number of an XMM, YMM or ZMM register.
fn number(register: Register) -> Result<usize, Stop> {
    if register.is_xmm() || register.is_ymm() || register.is_zmm() {
        Ok(register.number())
    } else {
        Err(Stop::Unsupported)
    }
}

/// Whether the guest has turned on what the instruction needs. The processor checked that before the exit; the guest
/// may have changed its code since.
fn usable(state: &CpuState, xcr0: u64, instruction: &Instruction) -> Result<(), Exception> {
    let cr4 = Cr4Flags::from_bits_truncate(state.cr4);
    let cr0 = Cr0Flags::from_bits_truncate(state.cr0);
    let avx = XCr0Flags::SSE | XCr0Flags::AVX;
    let avx512 = avx | XCr0Flags::OPMASK | XCr0Flags::ZMM_HI256 | XCr0Flags::HI16_ZMM;
    let enabled = |components: XCr0Flags| {
        cr4.contains(Cr4Flags::OSXSAVE) && XCr0Flags::from_bits_truncate(xcr0).contains(components)
    };
    let defined = match instruction.code().encoding() {
        EncodingKind::Legacy => {
            cr4.contains(Cr4Flags::OSFXSR) && !cr0.contains(Cr0Flags::EMULATE_COPROCESSOR)
        }
        EncodingKind::VEX => enabled(avx),
        _ => enabled(avx512),
    };
    if !defined {
        return Err(Exception::undefined());
    }
    if cr0.contains(Cr0Flags::TASK_SWITCHED) {
        return Err(Exception::device_not_available());
    }
    Ok(())
}
