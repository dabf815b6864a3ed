// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and writes of distributor and redistributor.
//!
//! **Principle.** What is not here reads as zero and ignores writes, and so does every access of a size that its
//! register does not take: the architecture allows both, and neither can be told from a smaller implementation.
//!
//! Source: Arm IHI 0069, sections 12.1.3 and 12.8 to 12.11.

use super::registers::{
    Bank, GICR_TYPER_LAST, IIDR_VALUE, PIDR2, PIDR2_GICV3, ctlr, decode, gicd, gicr, typer, waker,
};
use super::{Gic, Irq, PRIORITY_MASK, PRIVATE, withdraw};
use crate::guest::layout::{self, intid};

/// A window of the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// Distributor.
    Distributor,
    /// All redistributors.
    Redistributors,
}

/// Which INTIDs a register block is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// The distributor: shared ones. The vCPU is the one that asks.
    Shared(u16),
    /// A redistributor: the private ones of that vCPU.
    Private(u16),
}

impl Owner {
    /// The vCPU whose interrupt `number` is, if it has a field here.
    fn vcpu(self, number: u32) -> Option<u16> {
        match self {
            Self::Shared(asking) => (PRIVATE..intid::COUNT).contains(&number).then_some(asking),
            Self::Private(vcpu) => (number < PRIVATE).then_some(vcpu),
        }
    }
}

impl Gic {
    /// `vcpu`, whose list registers were taken back, reads `size` bytes (1, 2, 4 or 8) at `offset` of a window.
    pub fn read(&self, vcpu: u16, window: Window, offset: u64, size: u8) -> u64 {
        match window {
            Window::Distributor => self.read_distributor(vcpu, offset, size),
            Window::Redistributors => self.read_redistributor(offset, size),
        }
    }

    /// Likewise, writes the low `size` bytes of `value`.
    pub fn write(&mut self, vcpu: u16, window: Window, offset: u64, size: u8, value: u64) {
        match window {
            Window::Distributor => self.write_distributor(vcpu, offset, size, value),
            Window::Redistributors => self.write_redistributor(offset, size, value),
        }
    }

    fn read_distributor(&self, vcpu: u16, offset: u64, size: u8) -> u64 {
        if (gicd::IROUTER..gicd::IROUTER_END).contains(&offset) {
            return match size {
                8 if offset.is_multiple_of(8) => self.route(offset),
                4 if offset.is_multiple_of(4) => self.route(offset) >> (offset % 8 * 8) & u64::from(u32::MAX),
                _ => 0,
            };
        }
        if let Some((bank, first, count)) = decode(offset, size) {
            return self.read_bank(Owner::Shared(vcpu), bank, first, count);
        }
        let value = match (offset, size) {
            (gicd::CTLR, 4) => self.ctlr | ctlr::ARE | ctlr::DS,
            (gicd::TYPER, 4) => {
                const LINES: u32 = intid::COUNT / 32 - 1;
                const ID_BITS: u32 = (intid::COUNT - 1).ilog2() + 1;
                LINES | typer::MBIS | (ID_BITS - 1) << typer::ID_BITS_SHIFT | typer::NO_1_OF_N
            }
            (gicd::IIDR, 4) => IIDR_VALUE,
            (PIDR2, 4) => PIDR2_GICV3,
            _ => 0,
        };
        value.into()
    }

    fn write_distributor(&mut self, vcpu: u16, offset: u64, size: u8, value: u64) {
        if (gicd::IROUTER..gicd::IROUTER_END).contains(&offset) {
            let old = self.route(offset);
            return match size {
                8 if offset.is_multiple_of(8) => self.set_route(offset, value),
                4 if offset.is_multiple_of(8) => {
                    self.set_route(offset, old & !0xffff_ffff | value & 0xffff_ffff)
                }
                4 if offset.is_multiple_of(4) => self.set_route(offset, old & 0xffff_ffff | value << 32),
                _ => {}
            };
        }
        if let Some((bank, first, count)) = decode(offset, size) {
            return self.write_bank(Owner::Shared(vcpu), bank, first, count, value);
        }
        match (offset, size) {
            (gicd::CTLR, 4) => {
                self.ctlr = value as u32 & ctlr::WRITABLE;
                (0..self.vcpus()).for_each(|vcpu| self.wakes.insert(vcpu));
            }
            (gicd::SETSPI_NSR, 2 | 4) => self.set_spi(value as u32 & 0x3ff, true),
            (gicd::CLRSPI_NSR, 2 | 4) => self.set_spi(value as u32 & 0x3ff, false),
            _ => {}
        }
    }

    /// The vCPU whose redistributor an offset is in, and the offset there.
    fn redistributor(&self, offset: u64) -> Option<(u16, u64)> {
        let vcpu = u16::try_from(offset / layout::GICR_STRIDE).ok()?;
        (vcpu < self.vcpus()).then_some((vcpu, offset % layout::GICR_STRIDE))
    }

    fn read_redistributor(&self, offset: u64, size: u8) -> u64 {
        let Some((vcpu, offset)) = self.redistributor(offset) else {
            return 0;
        };
        if let Some(offset) = offset.checked_sub(gicr::SGI_BASE) {
            let found = decode(offset, size);
            return found
                .map_or(0, |(bank, first, count)| self.read_bank(Owner::Private(vcpu), bank, first, count));
        }
        let last = if vcpu + 1 == self.vcpus() { GICR_TYPER_LAST } else { 0 };
        // Affinity in 63:32, processor number in 23:8.
        let typer = u64::from(vcpu) << 32 | u64::from(vcpu) << 8 | last;
        match (offset, size) {
            (gicr::TYPER, 8) => typer,
            (gicr::TYPER, 4) => typer & u64::from(u32::MAX),
            (gicr::TYPER_HIGH, 4) => typer >> 32,
            (gicr::IIDR, 4) => IIDR_VALUE.into(),
            (gicr::WAKER, 4) if self.asleep(vcpu) => (waker::PROCESSOR_SLEEP | waker::CHILDREN_ASLEEP).into(),
            (PIDR2, 4) => PIDR2_GICV3.into(),
            // GICR_CTLR: there are no LPIs to enable, and no write is ever pending.
            (gicr::CTLR, 4) => 0,
            _ => 0,
        }
    }

    fn write_redistributor(&mut self, offset: u64, size: u8, value: u64) {
        let Some((vcpu, offset)) = self.redistributor(offset) else {
            return;
        };
        if let Some(offset) = offset.checked_sub(gicr::SGI_BASE) {
            if let Some((bank, first, count)) = decode(offset, size) {
                self.write_bank(Owner::Private(vcpu), bank, first, count, value);
            }
        } else if (offset, size) == (gicr::WAKER, 4)
            && let Some(redistributor) = self.vcpus.get_mut(usize::from(vcpu))
        {
            redistributor.asleep = value as u32 & waker::PROCESSOR_SLEEP != 0;
            self.wakes.insert(vcpu);
        }
    }

    pub(super) fn asleep(&self, vcpu: u16) -> bool {
        self.vcpus.get(usize::from(vcpu)).is_some_and(|r| r.asleep)
    }

    /// The SPI of a GICD_IROUTER offset.
    fn routed(offset: u64) -> Option<usize> {
        let number = (offset - gicd::IROUTER) / 8;
        usize::try_from(number.checked_sub(intid::SPI.into())?).ok()
    }

    fn route(&self, offset: u64) -> u64 {
        let spi = Self::routed(offset).and_then(|index| self.spis.get(index));
        spi.map_or(0, |spi| spi.route)
    }

    fn set_route(&mut self, offset: u64, value: u64) {
        /// Aff3 and Aff2 to Aff0; 1-of-N routing is not supported.
        const WRITABLE: u64 = 0xff_00ff_ffff;
        let Some(index) = Self::routed(offset) else { return };
        if let Some(spi) = self.spis.get_mut(index) {
            spi.route = value & WRITABLE;
            self.touch(0, index as u32 + intid::SPI);
        }
    }

    fn read_bank(&self, owner: Owner, bank: Bank, first: u32, count: u32) -> u64 {
        let mut value = 0;
        for field in 0..count {
            let number = first + field;
            let irq = owner.vcpu(number).and_then(|vcpu| self.irq(vcpu, number));
            if let Some(irq) = irq {
                value |= u64::from(field_of(irq, bank)) << (field * bank.width());
            }
        }
        value
    }

    fn write_bank(&mut self, owner: Owner, bank: Bank, first: u32, count: u32, value: u64) {
        let width = bank.width();
        for index in 0..count {
            let number = first + index;
            let field = value >> (index * width) as u8 & ((1 << width) - 1);
            let one_bit = width == 1 && bank != Bank::Group;
            let Some(vcpu) = owner.vcpu(number).filter(|_| !one_bit || field != 0) else {
                continue;
            };
            match bank {
                Bank::ClearActive => self.deactivate(vcpu, number),
                // SGIs are edge-triggered and PPIs level-triggered, for good.
                Bank::Config if number < PRIVATE => {}
                _ => self.change(vcpu, number, |irq| set_field(irq, bank, field as u8, vcpu)),
            }
        }
    }
}

fn field_of(irq: &Irq, bank: Bank) -> u8 {
    match bank {
        Bank::Group => irq.group1.into(),
        Bank::SetEnable | Bank::ClearEnable => irq.enabled.into(),
        Bank::SetPending | Bank::ClearPending => irq.pending_anywhere().into(),
        Bank::SetActive | Bank::ClearActive => irq.active.into(),
        Bank::Priority => irq.priority,
        Bank::Config => u8::from(irq.edge) << 1,
    }
}

/// Writes a field; those of one bit are set (except for the group, which is written).
fn set_field(irq: &mut Irq, bank: Bank, value: u8, vcpu: u16) {
    match bank {
        Bank::Group => irq.group1 = value != 0,
        Bank::SetEnable => irq.enabled = true,
        Bank::ClearEnable => irq.enabled = false,
        Bank::SetPending => irq.latch = true,
        Bank::ClearPending => {
            irq.latch = false;
            withdraw(irq, true);
        }
        Bank::SetActive => {
            if !irq.active {
                irq.active = true;
                irq.active_on = vcpu;
            }
        }
        Bank::ClearActive => irq.active = false,
        Bank::Priority => irq.priority = value & PRIORITY_MASK,
        Bank::Config => irq.edge = value & 2 != 0,
    }
}
