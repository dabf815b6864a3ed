// SPDX-License-Identifier: MIT OR Apache-2.0
//! Translated operands, and how they reach RAM or the bus.

use pasidon_kernel::base::addr::{GuestPhys, PAGE_SIZE};
use pasidon_kernel::memory::GuestMemory;
use pasidon_kernel::vm::exit::{Access, AccessKind, Exit};

use super::walk::WalkCache;
use super::{AccessType, CpuState, Devices, Exception, Fault};

/// Largest operand: a descriptor of MOVDIR64B.
pub(super) const MAX_OPERAND: usize = 64;
/// Largest access of the bus, in bytes.
const MAX_BUS_ACCESS: usize = 8;

/// The part of an operand within one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    address: GuestPhys,
    len: usize,
    /// It is RAM, which stays where it is as long as the VM runs.
    ram: bool,
}

impl Piece {
    const NONE: Self = Self { address: GuestPhys(0), len: 0, ram: false };
}

/// An operand whose translation succeeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// At most [`MAX_OPERAND`] bytes, so at most two pages. The second is empty where there is one.
    pieces: [Piece; 2],
    /// Some of it is not RAM.
    pub(super) device: bool,
}

/// RAM and devices, as the guest's accesses see them.
pub(super) struct Bus<'a, M: ?Sized> {
    pub(super) memory: &'a M,
    pub(super) walks: &'a mut WalkCache,
    pub(super) devices: Devices<'a>,
}

impl<M: GuestMemory + ?Sized> Bus<'_, M> {
    /// Translates `len` bytes (at most [`MAX_OPERAND`]) at `linear`.
    pub(super) fn resolve(
        &mut self,
        state: &CpuState,
        linear: u64,
        len: usize,
        access: AccessType,
    ) -> Result<Target, Exception> {
        let len = len.min(MAX_OPERAND);
        let first = len.min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let mut pieces = [self.piece(state, linear, first, access)?, Piece::NONE];
        let mut device = !pieces[0].ram;
        if first < len {
            pieces[1] = self.piece(state, linear.wrapping_add(first as u64), len - first, access)?;
            device |= !pieces[1].ram;
        }
        Ok(Target { pieces, device })
    }

    fn piece(
        &mut self,
        state: &CpuState,
        linear: u64,
        len: usize,
        access: AccessType,
    ) -> Result<Piece, Exception> {
        let address = self.walks.translate(state, self.memory, linear, access)?;
        Ok(Piece { address, len, ram: self.memory.is_ram(address, len) })
    }

    /// Fills `bytes` with the RAM at `linear`, in one access where it lies in one page. Where some of it is not RAM nothing
    /// was read, and this is what to read.
    pub(super) fn read_if_ram(
        &mut self,
        state: &CpuState,
        linear: u64,
        bytes: &mut [u8; MAX_OPERAND],
    ) -> Result<Option<Target>, Exception> {
        if linear % PAGE_SIZE <= PAGE_SIZE - MAX_OPERAND as u64 {
            let address = self.walks.translate(state, self.memory, linear, AccessType::Read)?;
            if self.memory.read(address, bytes).is_ok() {
                return Ok(None);
            }
        }
        let target = self.resolve(state, linear, MAX_OPERAND, AccessType::Read)?;
        if target.device {
            return Ok(Some(target));
        }
        self.read(&target, bytes);
        Ok(None)
    }

    /// The `len` bytes at `linear`, if they begin at the access that the processor translated for this instruction:
    /// that had the rights, and its accessed and dirty flags are set.
    pub(super) fn translated(
        &self,
        fault: Fault,
        linear: u64,
        len: usize,
        access: AccessType,
    ) -> Option<Target> {
        let offset = linear % PAGE_SIZE;
        let allowed = access == AccessType::Read || (access == AccessType::Write && fault.write);
        let same =
            fault.translated && fault.address % PAGE_SIZE == offset && offset + len as u64 <= PAGE_SIZE;
        (allowed && same).then(|| {
            let piece = Piece { address: GuestPhys(fault.address), len, ram: false };
            Target { pieces: [piece, Piece::NONE], device: true }
        })
    }

    /// Fills the front of `buffer` with the operand.
    pub(super) fn read(&mut self, target: &Target, buffer: &mut [u8]) {
        let mut rest = buffer;
        for piece in &target.pieces {
            let (bytes, after) = rest.split_at_mut(piece.len.min(rest.len()));
            if !piece.ram || self.memory.read(piece.address, bytes).is_err() {
                self.read_device(piece.address, bytes);
            }
            rest = after;
        }
    }

    /// Writes the front of `bytes` to the operand.
    pub(super) fn write(&mut self, target: &Target, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in &target.pieces {
            let (bytes, after) = rest.split_at(piece.len.min(rest.len()));
            if !piece.ram || self.memory.write(piece.address, bytes).is_err() {
                self.write_device(piece.address, bytes);
            }
            rest = after;
        }
    }

    /// Writes to an operand at a multiple of 64, which lies in one page: at once where that is a device.
    pub(super) fn store64(&mut self, target: &Target, bytes: &[u8; MAX_OPERAND]) {
        match target.pieces {
            [Piece { address, ram: false, len: MAX_OPERAND }, _] => {
                (self.devices)(&Exit::Store64 { address: address.0, bytes });
            }
            _ => self.write(target, bytes),
        }
    }

    /// An operand of up to 8 bytes, zero-extended.
    pub(super) fn read_value(&mut self, target: &Target) -> u64 {
        let mut bytes = [0; 8];
        self.read(target, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Writes the low bytes of `value`, as many as the operand has.
    pub(super) fn write_value(&mut self, target: &Target, value: u64) {
        self.write(target, &value.to_le_bytes());
    }

    /// An operand of up to 8 bytes that was RAM when it was resolved, zero-extended. What is RAM no longer
    /// reads as zeros: here the bus is that of the ports, where a memory address has no meaning.
    pub(super) fn read_ram(&self, target: &Target) -> u64 {
        let mut bytes = [0; 8];
        let mut rest = &mut bytes[..];
        for piece in &target.pieces {
            let (bytes, after) = rest.split_at_mut(piece.len.min(rest.len()));
            let _ = self.memory.read(piece.address, bytes);
            rest = after;
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low bytes of `value` to an operand that was RAM when it was resolved. What refuses the
    /// write (RAM no longer, or read-only) keeps what it has.
    pub(super) fn write_ram(&self, target: &Target, value: u64) {
        let bytes = value.to_le_bytes();
        let mut rest = &bytes[..];
        for piece in &target.pieces {
            let (bytes, after) = rest.split_at(piece.len.min(rest.len()));
            let _ = self.memory.write(piece.address, bytes);
            rest = after;
        }
    }

    fn read_device(&mut self, address: GuestPhys, buffer: &mut [u8]) {
        let (mut address, mut rest) = (address.0, buffer);
        while !rest.is_empty() {
            let size = step(address, rest.len());
            let access = Access { address, size: size as u8, kind: AccessKind::Read };
            let value = (self.devices)(&Exit::Mmio(access));
            let (bytes, after) = rest.split_at_mut(size);
            bytes.copy_from_slice(&value.to_le_bytes()[..size]);
            address = address.wrapping_add(size as u64);
            rest = after;
        }
    }

    fn write_device(&mut self, address: GuestPhys, bytes: &[u8]) {
        let (mut address, mut rest) = (address.0, bytes);
        while !rest.is_empty() {
            let size = step(address, rest.len());
            let (bytes, after) = rest.split_at(size);
            let mut value = [0; MAX_BUS_ACCESS];
            value[..size].copy_from_slice(bytes);
            let kind = AccessKind::Write(u64::from_le_bytes(value));
            (self.devices)(&Exit::Mmio(Access { address, size: size as u8, kind }));
            address = address.wrapping_add(size as u64);
            rest = after;
        }
    }
}

/// The largest access that is naturally aligned at `address` and fits in `left` (at least 1) bytes.
fn step(address: u64, left: usize) -> usize {
    let mut size = MAX_BUS_ACCESS;
    while size > 1 && (size > left || !address.is_multiple_of(size as u64)) {
        size /= 2;
    }
    size
}
