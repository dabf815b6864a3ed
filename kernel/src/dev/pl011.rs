// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PL011 serial port, as far as an operating system can tell.
//!
//! **Principle.** The line is infinitely fast: a byte written to DR is on the console at once, so the
//! transmit FIFO is always empty. Input waits in a bounded queue whose end the guest cannot see; who
//! pushes into a full queue is told and keeps the byte, so that nothing is lost. The port transmits
//! whether it is enabled or not, as firmware would have left it: an early console does not enable it.
//! **Invariant.** The interrupt line is high exactly while UARTMIS is not zero, and input that waits raises
//! an interrupt again after each byte read, so that a driver that clears interrupts before it looks loses
//! none.
//!
//! Source: PrimeCell UART (PL011) Technical Reference Manual, revision r1p5, chapter 3.

use alloc::collections::VecDeque;

use bitflags::bitflags;

use crate::dev::Received;
use crate::dev::bus::all_ones;
use crate::vm::exit::{Action, Actions, Device};

/// Bytes of input that wait for the guest at most.
const INPUT_DEPTH: usize = 4096;
/// Entries of the receive FIFO of hardware, for its trigger levels.
const FIFO_DEPTH: usize = 32;

/// Register offsets.
mod reg {
    pub const DR: u64 = 0x00;
    pub const RSR_ECR: u64 = 0x04;
    pub const FR: u64 = 0x18;
    pub const ILPR: u64 = 0x20;
    pub const IBRD: u64 = 0x24;
    pub const FBRD: u64 = 0x28;
    pub const LCR_H: u64 = 0x2c;
    pub const CR: u64 = 0x30;
    pub const IFLS: u64 = 0x34;
    pub const IMSC: u64 = 0x38;
    pub const RIS: u64 = 0x3c;
    pub const MIS: u64 = 0x40;
    pub const ICR: u64 = 0x44;
    pub const DMACR: u64 = 0x48;
    /// UARTPeriphID0..3, UARTPCellID0..3.
    pub const ID: u64 = 0xfe0;
    pub const ID_END: u64 = 0x1000;
}

/// Peripheral identification: part 011, designer Arm, revision r1p5; PrimeCell identification.
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

bitflags! {
    /// UARTIMSC, UARTRIS, UARTMIS and UARTICR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Interrupts: u16 {
        const RECEIVE = 1 << 4;
        const TRANSMIT = 1 << 5;
        const RECEIVE_TIMEOUT = 1 << 6;
        const BREAK_ERROR = 1 << 9;
        /// Modem lines and other line errors: they can be enabled, and never happen.
        const OTHERS = 0x58f;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Flags: u16 {
        const CTS = 1;
        const DSR = 1 << 1;
        const DCD = 1 << 2;
        const RECEIVE_FIFO_EMPTY = 1 << 4;
        const TRANSMIT_FIFO_EMPTY = 1 << 7;
    }
}

/// UARTDR, in what is read: the character is a BREAK.
const DR_BREAK: u16 = 1 << 10;
/// UARTRSR: the same of the last character read.
const RSR_BREAK: u16 = 1 << 2;
const LCR_H_FIFO_ENABLE: u16 = 1 << 4;
const CR_LOOPBACK: u16 = 1 << 7;
/// UARTCR after reset: transmit and receive enabled, the port itself not.
const CR_RESET: u16 = 0x300;
/// UARTIFLS after reset: both FIFOs at half.
const IFLS_RESET: u16 = 0x12;

/// A PL011 on a wired interrupt.
#[derive(Debug)]
pub struct Pl011 {
    gsi: u32,
    input: VecDeque<Received>,
    /// A BREAK came since the interrupt was cleared.
    broken: bool,
    /// UARTRSR: the last character read was a BREAK.
    read_break: bool,
    mask: Interrupts,
    /// A byte was sent since the interrupt was cleared.
    transmitted: bool,
    /// The receive interrupts were cleared since the input last changed.
    seen: Interrupts,
    lcr_h: u16,
    cr: u16,
    ifls: u16,
    ilpr: u16,
    ibrd: u16,
    fbrd: u16,
    dmacr: u16,
    line: bool,
}

impl Pl011 {
    /// A port after reset, raising global system interrupt `gsi`.
    pub fn new(gsi: u32) -> Self {
        Self {
            gsi,
            input: VecDeque::with_capacity(INPUT_DEPTH),
            broken: false,
            read_break: false,
            mask: Interrupts::empty(),
            transmitted: false,
            seen: Interrupts::empty(),
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            dmacr: 0,
            line: false,
        }
    }

    /// A byte typed for the guest, or a BREAK. `false`: the queue is full and it was not taken.
    pub fn push_input(&mut self, received: Received, actions: Actions<'_>) -> bool {
        let taken = self.receive(received);
        self.update_line(actions);
        taken
    }

    fn receive(&mut self, received: Received) -> bool {
        let taken = self.input.len() < INPUT_DEPTH;
        if taken {
            self.broken |= received == Received::Break;
            self.input.push_back(received);
            self.seen = Interrupts::empty();
        }
        taken
    }

    /// Bytes of input that raise the receive interrupt: UARTIFLS bits 5:3.
    fn trigger_level(&self) -> usize {
        if self.lcr_h & LCR_H_FIFO_ENABLE == 0 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            2 => FIFO_DEPTH / 2,
            3 => FIFO_DEPTH * 3 / 4,
            _ => FIFO_DEPTH * 7 / 8,
        }
    }

    /// UARTRIS.
    fn raw(&self) -> Interrupts {
        let mut raw = Interrupts::empty();
        raw.set(Interrupts::RECEIVE, self.input.len() >= self.trigger_level());
        raw.set(Interrupts::RECEIVE_TIMEOUT, !self.input.is_empty());
        raw -= self.seen;
        raw.set(Interrupts::TRANSMIT, self.transmitted);
        raw.set(Interrupts::BREAK_ERROR, self.broken);
        raw
    }

    fn update_line(&mut self, actions: Actions<'_>) {
        let level = !(self.raw() & self.mask).is_empty();
        if level != self.line {
            self.line = level;
            actions(Action::Line { gsi: self.gsi, level });
        }
    }

    fn read_register(&mut self, offset: u64) -> u16 {
        match offset {
            reg::DR => {
                let taken = self.input.pop_front();
                self.seen = Interrupts::empty();
                self.read_break = taken == Some(Received::Break);
                match taken {
                    Some(Received::Byte(byte)) => byte.into(),
                    Some(Received::Break) => DR_BREAK,
                    Some(Received::Damaged) | None => 0,
                }
            }
            reg::RSR_ECR if self.read_break => RSR_BREAK,
            reg::FR => {
                // A present, ready peer.
                let mut flags = Flags::CTS | Flags::DSR | Flags::DCD | Flags::TRANSMIT_FIFO_EMPTY;
                flags.set(Flags::RECEIVE_FIFO_EMPTY, self.input.is_empty());
                flags.bits()
            }
            reg::ILPR => self.ilpr,
            reg::IBRD => self.ibrd,
            reg::FBRD => self.fbrd,
            reg::LCR_H => self.lcr_h,
            reg::CR => self.cr,
            reg::IFLS => self.ifls,
            reg::IMSC => self.mask.bits(),
            reg::RIS => self.raw().bits(),
            reg::MIS => (self.raw() & self.mask).bits(),
            reg::DMACR => self.dmacr,
            reg::ID..reg::ID_END if offset.is_multiple_of(4) => {
                let index = (offset - reg::ID) / 4;
                ID.get(index as usize).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u16, actions: Actions<'_>) {
        match offset {
            reg::DR => {
                if self.cr & CR_LOOPBACK == 0 {
                    actions(Action::Console(value as u8));
                } else {
                    self.receive(Received::Byte(value as u8));
                }
                self.transmitted = true;
            }
            // UARTECR: any write clears the errors.
            reg::RSR_ECR => self.read_break = false,
            reg::ILPR => self.ilpr = value & 0xff,
            reg::IBRD => self.ibrd = value,
            reg::FBRD => self.fbrd = value & 0x3f,
            reg::LCR_H => self.lcr_h = value & 0xff,
            reg::CR => self.cr = value,
            reg::IFLS => self.ifls = value & 0x3f,
            reg::IMSC => self.mask = Interrupts::from_bits_truncate(value),
            reg::ICR => {
                let cleared = Interrupts::from_bits_truncate(value);
                self.transmitted &= !cleared.contains(Interrupts::TRANSMIT);
                self.broken &= !cleared.contains(Interrupts::BREAK_ERROR);
                self.seen |= cleared & (Interrupts::RECEIVE | Interrupts::RECEIVE_TIMEOUT);
            }
            // There is nobody who would do the transfers.
            reg::DMACR => self.dmacr = value & 7,
            _ => {}
        }
    }
}

impl Device for Pl011 {
    /// Registers are 16 bits wide and 4 bytes apart: any access at a register's own offset reaches it.
    fn read(&mut self, offset: u64, size: u8, actions: Actions<'_>) -> u64 {
        let value = u64::from(self.read_register(offset));
        self.update_line(actions);
        value & all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>) {
        let value = value & all_ones(size);
        self.write_register(offset, value as u16, &mut *actions);
        self.update_line(actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const HIGH: Action = Action::Line { gsi: 33, level: true };
    const LOW: Action = Action::Line { gsi: 33, level: false };

    struct Rig {
        port: Pl011,
        seen: Vec<Action>,
    }

    impl Rig {
        fn new() -> Self {
            Self { port: Pl011::new(33), seen: Vec::new() }
        }

        fn write(&mut self, offset: u64, value: u16) {
            let Self { port, seen } = self;
            port.write(offset, 4, value.into(), &mut |a| seen.push(a));
        }

        fn read(&mut self, offset: u64) -> u16 {
            let Self { port, seen } = self;
            port.read(offset, 4, &mut |a| seen.push(a)) as u16
        }

        fn type_in(&mut self, bytes: &[u8]) {
            let Self { port, seen } = self;
            for byte in bytes {
                assert!(port.push_input(Received::Byte(*byte), &mut |a| seen.push(a)));
            }
        }

        fn actions(&mut self) -> Vec<Action> {
            core::mem::take(&mut self.seen)
        }

        /// What a driver does when it takes the port into use: clears, drains, then enables.
        fn open(&mut self) {
            self.write(reg::LCR_H, 0x70);
            self.write(reg::ICR, 0x7ff);
            while self.read(reg::FR) & 0x10 == 0 {
                self.read(reg::DR);
            }
            self.write(reg::IMSC, 0x50);
        }
    }

    #[test]
    fn it_is_found_as_a_pl011() {
        let mut rig = Rig::new();
        let mut id = |base: u64| (0..4).fold(0, |id, i| id | u32::from(rig.read(base + 4 * i)) << (8 * i));
        assert_eq!(id(0xfe0) & 0xf_ffff, 0x4_1011);
        assert_eq!(id(0xff0), 0xb105_f00d);
    }

    #[test]
    fn an_early_console_prints_without_enabling_anything() {
        let mut rig = Rig::new();
        for byte in b"hi" {
            assert_eq!(rig.read(reg::FR) & 0x28, 0, "neither full nor busy");
            rig.write(reg::DR, (*byte).into());
        }
        assert_eq!(rig.actions(), [Action::Console(b'h'), Action::Console(b'i')]);
    }

    #[test]
    fn input_interrupts_until_it_is_read() {
        let mut rig = Rig::new();
        rig.open();
        rig.type_in(b"ab");
        assert_eq!(rig.actions(), [HIGH]);
        assert_eq!(rig.read(reg::MIS), 0x40, "below the trigger level: time-out");
        assert_eq!(rig.read(reg::DR), u16::from(b'a'));
        assert_eq!(rig.actions(), []);
        assert_eq!(rig.read(reg::DR), u16::from(b'b'));
        assert_eq!((rig.actions().as_slice(), rig.read(reg::FR) & 0x10), ([LOW].as_slice(), 0x10));
        rig.type_in(&[b'x'; 16]);
        assert_eq!(rig.read(reg::MIS), 0x50);
        // A driver that clears first and looks then still finds the rest.
        rig.write(reg::ICR, 0x50);
        assert_eq!(rig.actions(), [HIGH, LOW]);
        rig.read(reg::DR);
        assert_eq!((rig.actions().as_slice(), rig.read(reg::RIS)), ([HIGH].as_slice(), 0x40));
    }

    #[test]
    fn the_transmit_interrupt_follows_a_byte_and_is_cleared() {
        let mut rig = Rig::new();
        rig.write(reg::IMSC, 0x20);
        assert_eq!(rig.actions(), [], "nothing was sent yet");
        rig.write(reg::DR, b'x'.into());
        assert_eq!(rig.actions(), [Action::Console(b'x'), HIGH]);
        rig.write(reg::ICR, 0x20);
        assert_eq!(rig.actions(), [LOW]);
    }

    #[test]
    fn a_break_is_a_character_of_its_own() {
        let mut rig = Rig::new();
        rig.open();
        rig.write(reg::IMSC, 0x250);
        rig.type_in(b"a");
        assert!(rig.port.push_input(Received::Break, &mut |_| {}));
        rig.type_in(b"h");
        assert_eq!(rig.read(reg::MIS), 0x240);
        assert_eq!(rig.read(reg::DR), u16::from(b'a'));
        assert_eq!(rig.read(reg::RSR_ECR), 0);
        assert_eq!((rig.read(reg::DR), rig.read(reg::RSR_ECR)), (0x400, 4));
        rig.write(reg::RSR_ECR, 0);
        assert_eq!(rig.read(reg::RSR_ECR), 0);
        assert_eq!(rig.read(reg::DR), u16::from(b'h'));
        assert_eq!(rig.read(reg::MIS), 0x200);
        rig.write(reg::ICR, 0x200);
        assert_eq!(rig.read(reg::MIS), 0);
    }

    #[test]
    fn a_full_queue_says_so_and_loses_nothing() {
        let mut rig = Rig::new();
        rig.type_in(&[7; INPUT_DEPTH]);
        assert!(!rig.port.push_input(Received::Byte(8), &mut |_| {}));
        for _ in 0..INPUT_DEPTH {
            assert_eq!(rig.read(reg::DR), 7);
        }
        assert_eq!(rig.read(reg::FR) & 0x10, 0x10);
    }

    #[test]
    fn loopback_returns_what_was_sent_and_prints_nothing() {
        let mut rig = Rig::new();
        rig.write(reg::CR, 0x381);
        rig.write(reg::DR, b'z'.into());
        assert_eq!((rig.actions().as_slice(), rig.read(reg::DR)), ([].as_slice(), u16::from(b'z')));
    }

    proptest! {
        #[test]
        fn the_line_is_high_exactly_while_an_interrupt_is_unmasked(
            ops in proptest::collection::vec((0u64..0x60, 0u8..9, any::<u64>(), 0u8..3), 0..200),
        ) {
            let mut port = Pl011::new(33);
            let mut level = false;
            for (offset, size, value, kind) in ops {
                let mut follow = |a: Action| if let Action::Line { level: l, .. } = a {
                    assert_ne!(l, level, "only changes are reported");
                    level = l;
                };
                match kind {
                    0 => {
                        let received = if value % 8 == 0 { Received::Break } else { Received::Byte(value as u8) };
                        port.push_input(received, &mut follow);
                    }
                    1 => { port.read(offset, size, &mut follow); }
                    _ => port.write(offset & !3, size, value, &mut follow),
                }
                prop_assert_eq!(level, port.read(reg::MIS, 4, &mut |_| {}) != 0);
            }
        }
    }
}
