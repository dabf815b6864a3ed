// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device accesses: what a data abort from the guest (exception class 0x24) reads or writes.
//!
//! **Principle.** The processor describes ordinary loads and stores in the syndrome (ISV), and then the
//! instruction is not looked at. For the others it is fetched and decoded ([`decode`]). What neither covers
//! gives the guest an external abort at the address it used, and one line in the log.
//! **Invariant.** An access that is refused has changed no register, and reached no device.
//!
//! Registers are little-endian, as the guest's ID registers say.
//!
//! Source: Arm DDI 0487 (Arm ARM), ESR_ELx, "ISS encoding for an exception from a Data Abort"; HPFAR_EL2.

pub mod decode;

use core::fmt;

use pasidon_kernel::vm::exit::{Access, AccessKind};

use decode::{Extension, Offset, Transfer};

/// The guest's general and SIMD registers, as the vCPU loop keeps them.
pub trait GuestRegisters {
    /// X0 to X30.
    fn x(&self, number: u8) -> u64;
    /// Sets one of them.
    fn set_x(&mut self, number: u8, value: u64);
    /// The stack pointer that the guest uses at this moment (SP_EL0 or SP_EL1, by its PSTATE).
    fn sp(&self) -> u64;
    /// Sets that.
    fn set_sp(&mut self, value: u64);
    /// V0 to V31.
    fn v(&self, number: u8) -> u128;
    /// Sets one of them.
    fn set_v(&mut self, number: u8, value: u128);
}

/// A stage-2 data abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataAbort {
    /// ESR_EL2.ISS.
    pub iss: u32,
    /// FAR_EL2: the virtual address.
    pub address: u64,
    /// The guest-physical address: page from HPFAR_EL2 ([`guest_physical`]).
    pub guest_physical: u64,
}

/// The guest-physical address of a stage-2 abort: FIPA of HPFAR_EL2, and the offset from FAR_EL2.
pub const fn guest_physical(hpfar: u64, far: u64) -> u64 {
    const FIPA: u64 = 0xfff_ffff_fff0;
    const PAGE_OFFSET: u64 = 0xfff;
    (hpfar & FIPA) << 8 | far & PAGE_OFFSET
}

/// ISS fields.
mod iss {
    /// The other fields describe the access.
    pub const ISV: u32 = 1 << 24;
    pub const SAS_SHIFT: u32 = 22;
    pub const SSE: u32 = 1 << 21;
    pub const SRT_SHIFT: u32 = 16;
    /// The register has 64 bits.
    pub const SF: u32 = 1 << 15;
    pub const CM: u32 = 1 << 8;
    pub const S1PTW: u32 = 1 << 7;
    pub const WNR: u32 = 1 << 6;
    pub const DFSC: u32 = 0x3f;
    /// Address size and translation faults of levels 0 to 3: nothing is mapped there.
    pub const DFSC_NOT_MAPPED_LAST: u32 = 0b0111;
}

/// Why an access was not made. The guest gets [`super::exception::Exception::DataAbort`] at the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Its translation tables are not in RAM.
    TableWalk,
    /// The page is mapped, but not so: DFSC says how. RAM and portals never fault so.
    Fault(u8),
    /// The instruction could not be read.
    NoInstruction,
    /// The instruction is none that devices take.
    Instruction(u32),
    /// The access goes over the end of a page, where something else may be.
    Straddles,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableWalk => f.write_str("its translation table is not in RAM"),
            Self::Fault(dfsc) => write!(f, "fault status {dfsc:#x}"),
            Self::NoInstruction => f.write_str("its instruction could not be read"),
            Self::Instruction(word) => write!(f, "instruction {word:#010x} is none that device memory takes"),
            Self::Straddles => f.write_str("it goes over the end of a page"),
        }
    }
}

const PAGE: u64 = pasidon_kernel::base::addr::PAGE_SIZE;
/// XZR, or the stack pointer.
const REGISTER_31: u8 = 31;

/// Makes the access: `device` answers each part of it (the value of a write is ignored), in ascending order.
/// `fetch` reads the instruction at ELR_EL2 as the guest would; it is called only where the syndrome is not
/// enough. Afterwards the guest goes on behind the instruction.
///
/// # Errors
/// When the fault is not that of an access to a device, or its instruction is none that can be carried out.
pub fn perform(
    abort: &DataAbort,
    registers: &mut dyn GuestRegisters,
    fetch: &mut dyn FnMut() -> Option<u32>,
    device: &mut dyn FnMut(Access) -> u64,
) -> Result<(), Refused> {
    let iss = abort.iss;
    let status = iss & iss::DFSC;
    if iss & iss::S1PTW != 0 {
        return Err(Refused::TableWalk);
    }
    if status > iss::DFSC_NOT_MAPPED_LAST {
        return Err(Refused::Fault(status as u8));
    }
    if iss & iss::CM != 0 {
        // Cache maintenance: devices are not cached.
        return Ok(());
    }
    if iss & iss::ISV != 0 {
        let transfer = described(iss);
        return transfer_all(&transfer, abort, registers, device);
    }
    let instruction = fetch().ok_or(Refused::NoInstruction)?;
    let transfer = decode::decode(instruction).ok_or(Refused::Instruction(instruction))?;
    if transfer.load == (iss & iss::WNR != 0) {
        // Another processor changed the instruction since.
        return Err(Refused::Instruction(instruction));
    }
    // The processor reports the first byte that faults; what is before it is somewhere else.
    const TAG: u64 = 0xff << 56;
    if (address(&transfer, registers) ^ abort.address) & !TAG != 0 {
        return Err(Refused::Straddles);
    }
    transfer_all(&transfer, abort, registers, device)?;
    if let Some(delta) = transfer.write_back {
        let value = base(&transfer, registers).wrapping_add_signed(delta);
        match transfer.base {
            REGISTER_31 => registers.set_sp(value),
            number => registers.set_x(number, value),
        }
    }
    Ok(())
}

/// The transfer that a syndrome with ISV describes. Address and base do not matter.
const fn described(iss: u32) -> Transfer {
    Transfer {
        load: iss & iss::WNR == 0,
        simd: false,
        size: 1 << (iss >> iss::SAS_SHIFT & 3),
        extension: match (iss & iss::SSE != 0, iss & iss::SF != 0) {
            (false, _) => Extension::Zero,
            (true, false) => Extension::Sign32,
            (true, true) => Extension::Sign64,
        },
        first: (iss >> iss::SRT_SHIFT & 0x1f) as u8,
        second: None,
        base: REGISTER_31,
        offset: Offset::Immediate(0),
        write_back: None,
    }
}

fn base(transfer: &Transfer, registers: &dyn GuestRegisters) -> u64 {
    match transfer.base {
        REGISTER_31 => registers.sp(),
        number => registers.x(number),
    }
}

fn general(registers: &dyn GuestRegisters, number: u8) -> u64 {
    if number == REGISTER_31 { 0 } else { registers.x(number) }
}

fn address(transfer: &Transfer, registers: &dyn GuestRegisters) -> u64 {
    let base = base(transfer, registers);
    match transfer.offset {
        Offset::Immediate(offset) => base.wrapping_add_signed(offset),
        Offset::Register { register, option, shift } => {
            let value = general(registers, register);
            let extended = match option {
                2 => u64::from(value as u32),
                6 => i64::from(value as u32 as i32).cast_unsigned(),
                _ => value,
            };
            base.wrapping_add(extended << shift)
        }
    }
}

fn transfer_all(
    transfer: &Transfer,
    abort: &DataAbort,
    registers: &mut dyn GuestRegisters,
    device: &mut dyn FnMut(Access) -> u64,
) -> Result<(), Refused> {
    let size = u64::from(transfer.size);
    let total = if transfer.second.is_some() { 2 * size } else { size };
    if abort.guest_physical % PAGE + total > PAGE {
        return Err(Refused::Straddles);
    }
    let numbers = core::iter::once(transfer.first).chain(transfer.second);
    for (number, offset) in numbers.zip([0, size]) {
        let at = abort.guest_physical + offset;
        if transfer.load {
            let value = load(device, at, transfer.size);
            set(transfer, registers, number, value);
        } else {
            let value = if transfer.simd { registers.v(number) } else { general(registers, number).into() };
            store(device, at, transfer.size, value);
        }
    }
    Ok(())
}

/// Devices take 8 bytes at most.
const WIDEST: u8 = 8;

fn load(device: &mut dyn FnMut(Access) -> u64, address: u64, size: u8) -> u128 {
    let mut read = |address, size| {
        let value = device(Access { address, size, kind: AccessKind::Read });
        u128::from(value & mask(size))
    };
    if size <= WIDEST {
        read(address, size)
    } else {
        read(address, WIDEST) | read(address + u64::from(WIDEST), WIDEST) << u64::BITS
    }
}

fn store(device: &mut dyn FnMut(Access) -> u64, address: u64, size: u8, value: u128) {
    let mut write = |address, size, value: u128| {
        device(Access { address, size, kind: AccessKind::Write(value as u64 & mask(size)) });
    };
    write(address, size.min(WIDEST), value);
    if size > WIDEST {
        write(address + u64::from(WIDEST), WIDEST, value >> u64::BITS);
    }
}

const fn mask(size: u8) -> u64 {
    pasidon_kernel::dev::bus::all_ones(size)
}

fn set(transfer: &Transfer, registers: &mut dyn GuestRegisters, number: u8, value: u128) {
    if transfer.simd {
        registers.set_v(number, value);
        return;
    }
    let value = value as u64;
    let unused = u64::BITS - 8 * u32::from(transfer.size);
    let extended = ((value << unused).cast_signed() >> unused).cast_unsigned();
    let value = match transfer.extension {
        Extension::Zero => value,
        Extension::Sign32 => extended & u64::from(u32::MAX),
        Extension::Sign64 => extended,
    };
    if number != REGISTER_31 {
        registers.set_x(number, value);
    }
}

#[cfg(test)]
mod tests;
