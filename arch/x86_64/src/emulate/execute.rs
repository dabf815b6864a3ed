// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions with a memory operand that is a device, all but the string instructions.
//!
//! An instruction changes general registers and flags only, and those only where it completes.
//!
//! Source: Intel SDM volume 2.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use pasidon_kernel::memory::GuestMemory;
use x86_64::registers::control::Cr4Flags;
use x86_64::registers::rflags::RFlags;

use super::access::{Bus, MAX_OPERAND, Target};
use super::address::MemoryOperand;
use super::alu::{self, Binary, Bit};
use super::decode::{Decoded, Stop};
use super::registers::{RAX, RBX, RCX, RDX, RSP, Slot, mask, sign_extend};
use super::{AccessType, CpuState, Exception, Fault, condition};

/// Carries out what was `decoded`; changes `state` on success only.
pub(super) fn run<M: GuestMemory + ?Sized>(
    state: &mut CpuState,
    bus: Bus<'_, M>,
    decoded: &Decoded,
    fault: Fault,
) -> Result<(), Stop> {
    let Decoded { instruction, operand } = decoded;
    let mut execution = Execution {
        next_rip: state.next_rip(instruction.len()),
        cpu: state,
        bus,
        instruction,
        operand: operand.as_ref(),
        fault,
        moves: false,
        device: false,
    };
    let result = execution.run();
    let Execution { cpu, next_rip, .. } = execution;
    if result.is_ok() {
        cpu.complete(next_rip);
    }
    result
}

/// Where an operand is.
enum Place {
    Register(Slot),
    /// Sign-extended to 64 bits.
    Immediate(u64),
    /// With its size in bytes: 1, 2, 4 or 8.
    Memory(Target, usize),
}

impl Place {
    const fn size(&self) -> usize {
        match self {
            Self::Register(slot) => slot.size,
            Self::Immediate(_) => 8,
            Self::Memory(_, size) => *size,
        }
    }
}

struct Execution<'a, 'bus, M: ?Sized> {
    cpu: &'a mut CpuState,
    next_rip: u64,
    bus: Bus<'bus, M>,
    instruction: &'a Instruction,
    operand: Option<&'a MemoryOperand>,
    /// The access that exited.
    fault: Fault,
    /// It is a plain move: of its two operands one at most is in memory, and that one is what exited.
    moves: bool,
    /// An operand that was resolved is a device.
    device: bool,
}

impl<M: GuestMemory + ?Sized> Execution<'_, '_, M> {
    fn run(&mut self) -> Result<(), Stop> {
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri | Mnemonic::Movzx => self.mov(|v, _| v),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.mov(sign_extend),
            Mnemonic::Movbe => self.mov(|v, size| v.swap_bytes() >> (64 - size * 8)),
            Mnemonic::Xchg => self.xchg(),
            Mnemonic::Xadd => self.xadd(),
            Mnemonic::Cmpxchg => self.cmpxchg(),
            Mnemonic::Cmpxchg8b => self.cmpxchg8b(),
            Mnemonic::Add => self.binary(Binary::Add, true),
            Mnemonic::Or => self.binary(Binary::Or, true),
            Mnemonic::Adc => self.binary(Binary::Adc, true),
            Mnemonic::Sbb => self.binary(Binary::Sbb, true),
            Mnemonic::And => self.binary(Binary::And, true),
            Mnemonic::Sub => self.binary(Binary::Sub, true),
            Mnemonic::Xor => self.binary(Binary::Xor, true),
            Mnemonic::Cmp => self.binary(Binary::Sub, false),
            Mnemonic::Test => self.binary(Binary::And, false),
            Mnemonic::Not => self.unary(|v, _, flags| (!v, flags)),
            Mnemonic::Neg => self.unary(|v, size, flags| alu::binary(Binary::Sub, 0, v, size, flags)),
            Mnemonic::Inc => self.unary(|v, size, flags| alu::step(false, v, size, flags)),
            Mnemonic::Dec => self.unary(|v, size, flags| alu::step(true, v, size, flags)),
            Mnemonic::Bt => self.bit(Bit::Test),
            Mnemonic::Bts => self.bit(Bit::Set),
            Mnemonic::Btr => self.bit(Bit::Reset),
            Mnemonic::Btc => self.bit(Bit::Complement),
            Mnemonic::Smsw => self.smsw(),
            Mnemonic::Push => self.push(),
            Mnemonic::Pop => self.pop(),
            Mnemonic::Call if self.instruction.is_call_near_indirect() => self.call(),
            Mnemonic::Jmp if self.instruction.is_jmp_near_indirect() => self.jmp(),
            Mnemonic::Movdir64b => self.movdir64b(),
            Mnemonic::Enqcmd => self.enqcmd(),
            Mnemonic::Enqcmds if self.cpu.cpl != 0 => Err(Exception::general_protection(self.cpu).into()),
            Mnemonic::Enqcmds => self.enqcmd(),
            // A device has no lines in a cache.
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb | Mnemonic::Cldemote => Ok(()),
            Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2 => Ok(()),
            mnemonic if condition::is_setcc(mnemonic) => self.setcc(),
            mnemonic if condition::is_cmovcc(mnemonic) => self.cmovcc(),
            _ if touches_no_memory(self.instruction) => Err(Stop::Retry),
            _ => Err(Stop::Unsupported),
        }
    }

    /// Operand `n`, translated for `access` where it is memory.
    fn operand(&mut self, n: u32, access: AccessType) -> Result<Place, Stop> {
        match self.instruction.op_kind(n) {
            OpKind::Register => {
                let slot = Slot::of(self.instruction.op_register(n)).ok_or(Stop::Unsupported)?;
                Ok(Place::Register(slot))
            }
            OpKind::Memory => {
                let size = self.instruction.memory_size().size();
                if !matches!(size, 1 | 2 | 4 | 8) {
                    return Err(Stop::Unsupported);
                }
                Ok(Place::Memory(self.memory_operand(0, size, access)?, size))
            }
            _ => match self.instruction.try_immediate(n) {
                Ok(value) => Ok(Place::Immediate(value)),
                Err(_) => Err(Stop::Unsupported),
            },
        }
    }

    /// The memory operand, `distance` bytes further than the instruction says.
    fn memory_operand(&mut self, distance: u64, size: usize, access: AccessType) -> Result<Target, Stop> {
        let operand = self.operand.ok_or(Stop::Unsupported)?;
        self.resolve(operand.segment, operand.offset(self.cpu, distance), size, access)
    }

    fn resolve(
        &mut self,
        segment: Register,
        offset: u64,
        size: usize,
        access: AccessType,
    ) -> Result<Target, Stop> {
        let linear = self.cpu.linear(segment, offset, size)?;
        self.translate(linear, size, access, self.moves)
    }

    /// `exits`: if what exited is of this instruction, this operand is it.
    fn translate(
        &mut self,
        linear: u64,
        size: usize,
        access: AccessType,
        exits: bool,
    ) -> Result<Target, Stop> {
        let translated = exits.then(|| self.bus.translated(self.fault, linear, size, access)).flatten();
        let target = match translated {
            Some(target) => target,
            None => self.bus.resolve(self.cpu, linear, size, access)?,
        };
        self.device |= target.device;
        Ok(target)
    }

    /// Between the last translation and the first access.
    fn ready(&self) -> Result<(), Stop> {
        if self.device { Ok(()) } else { Err(Stop::Retry) }
    }

    fn load(&mut self, place: &Place) -> u64 {
        match place {
            Place::Register(slot) => self.cpu.read(*slot),
            Place::Immediate(value) => *value,
            Place::Memory(target, _) => self.bus.read_value(target),
        }
    }

    fn store(&mut self, place: &Place, value: u64) {
        match place {
            Place::Register(slot) => self.cpu.write(*slot, value),
            Place::Memory(target, _) => self.bus.write_value(target, value),
            // No instruction has an immediate as its destination.
            Place::Immediate(_) => {}
        }
    }

    /// A copy, changed on its way by `convert`, which gets the source's size.
    fn mov(&mut self, convert: fn(u64, usize) -> u64) -> Result<(), Stop> {
        self.moves = true;
        let destination = self.operand(0, AccessType::Write)?;
        let source = self.operand(1, AccessType::Read)?;
        self.ready()?;
        let value = self.load(&source);
        self.store(&destination, convert(value, source.size()));
        Ok(())
    }

    fn xchg(&mut self) -> Result<(), Stop> {
        let a = self.operand(0, AccessType::Write)?;
        let b = self.operand(1, AccessType::Write)?;
        self.ready()?;
        let (old_a, old_b) = (self.load(&a), self.load(&b));
        self.store(&a, old_b);
        self.store(&b, old_a);
        Ok(())
    }

    fn xadd(&mut self) -> Result<(), Stop> {
        let destination = self.operand(0, AccessType::Write)?;
        let source = self.operand(1, AccessType::Write)?;
        self.ready()?;
        let (old, addend) = (self.load(&destination), self.load(&source));
        let (sum, flags) = alu::binary(Binary::Add, old, addend, destination.size(), self.cpu.rflags);
        self.store(&source, old);
        self.store(&destination, sum);
        self.cpu.rflags = flags;
        Ok(())
    }

    /// Writes its destination in both cases, as the processor does.
    fn cmpxchg(&mut self) -> Result<(), Stop> {
        let destination = self.operand(0, AccessType::Write)?;
        let source = self.operand(1, AccessType::Read)?;
        self.ready()?;
        let size = destination.size();
        let accumulator = Slot::new(RAX, size);
        let (expected, old) = (self.cpu.read(accumulator), self.load(&destination));
        (_, self.cpu.rflags) = alu::binary(Binary::Sub, expected, old, size, self.cpu.rflags);
        if expected == old {
            let new = self.load(&source);
            self.store(&destination, new);
        } else {
            self.store(&destination, old);
            self.cpu.write(accumulator, old);
        }
        Ok(())
    }

    fn cmpxchg8b(&mut self) -> Result<(), Stop> {
        let destination = self.operand(0, AccessType::Write)?;
        self.ready()?;
        let half = |cpu: &CpuState, index| cpu.read(Slot::new(index, 4));
        let expected = half(self.cpu, RDX) << 32 | half(self.cpu, RAX);
        let new = half(self.cpu, RCX) << 32 | half(self.cpu, RBX);
        let old = self.load(&destination);
        let equal = old == expected;
        self.store(&destination, if equal { new } else { old });
        if !equal {
            self.cpu.write(Slot::new(RAX, 4), old);
            self.cpu.write(Slot::new(RDX, 4), old >> 32);
        }
        self.cpu.rflags = alu::with_flag(self.cpu.rflags, RFlags::ZERO_FLAG, equal);
        Ok(())
    }

    fn binary(&mut self, operation: Binary, stores: bool) -> Result<(), Stop> {
        let access = if stores { AccessType::Write } else { AccessType::Read };
        let destination = self.operand(0, access)?;
        let source = self.operand(1, AccessType::Read)?;
        self.ready()?;
        let (a, b) = (self.load(&destination), self.load(&source));
        let (result, flags) = alu::binary(operation, a, b, destination.size(), self.cpu.rflags);
        if stores {
            self.store(&destination, result);
        }
        self.cpu.rflags = flags;
        Ok(())
    }

    /// `operation` gets the value, its size and RFLAGS, and returns the new value and RFLAGS.
    fn unary(&mut self, operation: fn(u64, usize, u64) -> (u64, u64)) -> Result<(), Stop> {
        let place = self.operand(0, AccessType::Write)?;
        self.ready()?;
        let (result, flags) = operation(self.load(&place), place.size(), self.cpu.rflags);
        self.store(&place, result);
        self.cpu.rflags = flags;
        Ok(())
    }

    fn bit(&mut self, operation: Bit) -> Result<(), Stop> {
        if self.instruction.op0_kind() != OpKind::Memory {
            return Err(Stop::Retry);
        }
        let size = self.instruction.memory_size().size();
        if !matches!(size, 2 | 4 | 8) {
            return Err(Stop::Unsupported);
        }
        let source = self.operand(1, AccessType::Read)?;
        let index = self.load(&source);
        // An index in a register is signed and reaches beyond the operand.
        let distance = match source {
            Place::Register(_) => {
                let bits_log2 = size.ilog2() + 3;
                let operands = sign_extend(index, size) as i64 >> bits_log2;
                (operands as u64).wrapping_mul(size as u64)
            }
            _ => 0,
        };
        let access = if operation == Bit::Test { AccessType::Read } else { AccessType::Write };
        let target = self.memory_operand(distance, size, access)?;
        self.ready()?;
        let value = self.bus.read_value(&target);
        let (result, flags) = alu::bit(operation, value, index, size, self.cpu.rflags);
        if operation != Bit::Test {
            self.bus.write_value(&target, result);
        }
        self.cpu.rflags = flags;
        Ok(())
    }

    fn stack_pointer(&self) -> Slot {
        Slot::new(RSP, self.cpu.stack_pointer_size())
    }

    /// Resolves `size` bytes below the stack pointer; returns them with the new stack pointer.
    fn below_stack(&mut self, size: usize) -> Result<(Target, u64), Stop> {
        let slot = self.stack_pointer();
        let top = self.cpu.read(slot).wrapping_sub(size as u64) & mask(slot.size);
        Ok((self.resolve(Register::SS, top, size, AccessType::Write)?, top))
    }

    /// Bytes that the instruction moves to or from the stack.
    fn stack_operand_size(&self) -> Result<usize, Stop> {
        match self.instruction.stack_pointer_increment().unsigned_abs() {
            size @ (2 | 4 | 8) => Ok(size as usize),
            _ => Err(Stop::Unsupported),
        }
    }

    fn push(&mut self) -> Result<(), Stop> {
        let source = self.operand(0, AccessType::Read)?;
        let size = self.stack_operand_size()?;
        let (stack, top) = self.below_stack(size)?;
        self.ready()?;
        let value = self.load(&source);
        self.bus.write_value(&stack, value);
        self.cpu.write(self.stack_pointer(), top);
        Ok(())
    }

    fn pop(&mut self) -> Result<(), Stop> {
        let size = self.stack_operand_size()?;
        let slot = self.stack_pointer();
        let top = self.cpu.read(slot);
        let stack = self.resolve(Register::SS, top, size, AccessType::Read)?;
        // A destination relative to the stack pointer uses the new one.
        let before = self.cpu.gpr;
        self.cpu.write(slot, top.wrapping_add(size as u64));
        let destination = self.operand(0, AccessType::Write);
        let destination = destination.and_then(|destination| self.ready().map(|()| destination));
        let destination = destination.inspect_err(|_| self.cpu.gpr = before)?;
        let value = self.bus.read_value(&stack);
        self.store(&destination, value);
        Ok(())
    }

    /// Makes `target` the next instruction.
    fn jump(&mut self, target: u64) -> Result<(), Stop> {
        let valid = if self.cpu.is_64bit() {
            self.cpu.is_canonical(target)
        } else {
            target <= u64::from(self.cpu.cs.limit)
        };
        if !valid {
            return Err(Exception::general_protection(self.cpu).into());
        }
        self.next_rip = target;
        Ok(())
    }

    fn jmp(&mut self) -> Result<(), Stop> {
        let source = self.operand(0, AccessType::Read)?;
        self.ready()?;
        let target = self.load(&source);
        self.jump(target)
    }

    fn call(&mut self) -> Result<(), Stop> {
        let source = self.operand(0, AccessType::Read)?;
        let size = self.stack_operand_size()?;
        let (stack, top) = self.below_stack(size)?;
        self.ready()?;
        let return_address = self.next_rip;
        let target = self.load(&source);
        self.jump(target)?;
        self.bus.write_value(&stack, return_address);
        self.cpu.write(self.stack_pointer(), top);
        Ok(())
    }

    /// The linear address of what MOVDIR64B and ENQCMD write to: at ES and the register that is operand 0.
    fn descriptor_address(&self) -> Result<u64, Stop> {
        let register = Slot::of(self.instruction.op0_register()).ok_or(Stop::Unsupported)?;
        let linear = self.cpu.linear(Register::ES, self.cpu.read(register), MAX_OPERAND)?;
        if !linear.is_multiple_of(MAX_OPERAND as u64) {
            return Err(Exception::general_protection(self.cpu).into());
        }
        Ok(linear)
    }

    /// What is there. It is the only operand that is written.
    fn descriptor_destination(&mut self, linear: u64) -> Result<Target, Stop> {
        self.translate(linear, MAX_OPERAND, AccessType::Write, true)
    }

    fn movdir64b(&mut self) -> Result<(), Stop> {
        let linear = self.descriptor_address()?;
        let operand = self.operand.ok_or(Stop::Unsupported)?;
        let source = self.cpu.linear(operand.segment, operand.offset(self.cpu, 0), MAX_OPERAND)?;
        let mut descriptor = [0; MAX_OPERAND];
        // RAM is read before the destination is translated, which nobody sees.
        let device = self.bus.read_if_ram(self.cpu, source, &mut descriptor)?;
        let destination = self.descriptor_destination(linear)?;
        if let Some(device) = device {
            self.device = true;
            self.bus.read(&device, &mut descriptor);
        }
        self.ready()?;
        self.bus.store64(&destination, &descriptor);
        Ok(())
    }

    /// No shared queue of a device is reached this way, so none accepts the command: ZF says "retry".
    fn enqcmd(&mut self) -> Result<(), Stop> {
        let linear = self.descriptor_address()?;
        self.memory_operand(0, MAX_OPERAND, AccessType::Read)?;
        self.descriptor_destination(linear)?;
        self.ready()?;
        self.cpu.rflags = alu::with_flag(alu::without_status(self.cpu.rflags), RFlags::ZERO_FLAG, true);
        Ok(())
    }

    /// Stores the low half of CR0, whatever the operand size says.
    fn smsw(&mut self) -> Result<(), Stop> {
        const SIZE: usize = 2;
        if self.instruction.op0_kind() != OpKind::Memory {
            return Err(Stop::Retry);
        }
        if self.cpu.cpl != 0 && self.cpu.cr4 & Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION.bits() != 0 {
            return Err(Exception::general_protection(self.cpu).into());
        }
        let destination = self.memory_operand(0, SIZE, AccessType::Write)?;
        self.ready()?;
        let value = self.cpu.cr0;
        self.bus.write_value(&destination, value);
        Ok(())
    }

    fn setcc(&mut self) -> Result<(), Stop> {
        let destination = self.operand(0, AccessType::Write)?;
        self.ready()?;
        self.store(&destination, condition::holds(self.instruction.condition_code(), self.cpu.rflags).into());
        Ok(())
    }

    /// Reads its source in both cases, and clears the upper half of a 32-bit destination in both.
    fn cmovcc(&mut self) -> Result<(), Stop> {
        let destination = self.operand(0, AccessType::Write)?;
        let source = self.operand(1, AccessType::Read)?;
        self.ready()?;
        let (old, new) = (self.load(&destination), self.load(&source));
        self.store(
            &destination,
            if condition::holds(self.instruction.condition_code(), self.cpu.rflags) { new } else { old },
        );
        Ok(())
    }
}

/// Whether the instruction certainly reads and writes no memory, not even a stack or a descriptor table. It
/// cannot have caused the exit: the guest patched its code meanwhile. Only what kernels patch in is named.
fn touches_no_memory(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Lea)
        || instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
}
