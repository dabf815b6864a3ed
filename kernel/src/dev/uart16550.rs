// SPDX-License-Identifier: MIT OR Apache-2.0
//! A 16550A serial port, as far as an operating system can tell.
//!
//! **Principle.** The line is infinitely fast: a byte written to THR is on the console at once, so the
//! transmitter is always empty. Input waits in a bounded queue whose end the guest cannot see; who
//! pushes into a full queue is told and keeps the byte, so that nothing is lost.
//! **Invariant.** The interrupt line is high exactly while IIR would name a cause.
//!
//! Source: PC16550D data sheet (National Semiconductor, 1995), register summary and section 8.

use alloc::collections::VecDeque;

use bitflags::bitflags;

use crate::dev::Received;
use crate::dev::bus::all_ones;
use crate::vm::exit::{Action, Actions, Device};

/// Number of byte registers.
pub const REGISTERS: u64 = 8;

/// Bytes of input that wait for the guest at most.
const INPUT_DEPTH: usize = 4096;

/// Register offsets. RBR and THR share 0, IIR and FCR share 2; DLL and DLM replace 0 and 1 while
/// LCR.DLAB is set.
mod reg {
    pub const DATA: u64 = 0;
    pub const IER: u64 = 1;
    pub const IIR_FCR: u64 = 2;
    pub const LCR: u64 = 3;
    pub const MCR: u64 = 4;
    pub const LSR: u64 = 5;
    pub const MSR: u64 = 6;
    pub const SCR: u64 = 7;
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Ier: u8 {
        const RECEIVED_DATA = 1;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Lsr: u8 {
        const DATA_READY = 1;
        const BREAK = 1 << 4;
        const THR_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
        const ERROR_IN_FIFO = 1 << 7;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Mcr: u8 {
        const DTR = 1;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Msr: u8 {
        const DELTA_CTS = 1;
        const DELTA_DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

impl Msr {
    const DELTAS: Self =
        Self::DELTA_CTS.union(Self::DELTA_DSR).union(Self::TRAILING_RI).union(Self::DELTA_DCD);
}

const LCR_DLAB: u8 = 1 << 7;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// IIR bits 7:6 while the FIFOs are on: how software knows a 16550A.
const IIR_FIFOS: u8 = 0xc0;

/// Causes as IIR bits 3:0 name them, highest priority first.
mod iir {
    pub const LINE_STATUS: u8 = 0x6;
    pub const RECEIVED_DATA: u8 = 0x4;
    pub const CHARACTER_TIMEOUT: u8 = 0xc;
    pub const TRANSMITTER_EMPTY: u8 = 0x2;
    pub const MODEM_STATUS: u8 = 0x0;
    pub const NONE: u8 = 0x1;
}

/// A 16550A on a wired interrupt.
#[derive(Debug)]
pub struct Uart16550 {
    gsi: u32,
    input: VecDeque<Received>,
    /// How many of them are BREAKs.
    breaks: usize,
    /// The BREAK at the head of the queue has been reported by LSR.
    break_seen: bool,
    ier: Ier,
    fcr: u8,
    lcr: u8,
    mcr: Mcr,
    msr_deltas: Msr,
    scr: u8,
    divisor: [u8; 2],
    /// THR became empty and neither a write nor a read of IIR has acknowledged it yet.
    transmitter_empty: bool,
    line: bool,
}

impl Uart16550 {
    /// A port after reset, raising global system interrupt `gsi`.
    pub fn new(gsi: u32) -> Self {
        Self {
            gsi,
            input: VecDeque::with_capacity(INPUT_DEPTH),
            breaks: 0,
            break_seen: false,
            ier: Ier::empty(),
            fcr: 0,
            lcr: 0,
            mcr: Mcr::empty(),
            msr_deltas: Msr::empty(),
            scr: 0,
            divisor: [0; 2],
            transmitter_empty: false,
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
        if self.input.len() >= INPUT_DEPTH {
            return false;
        }
        self.breaks += usize::from(received == Received::Break);
        self.input.push_back(received);
        true
    }

    /// RBR: a BREAK reads as zero.
    fn take_input(&mut self) -> u8 {
        let taken = self.input.pop_front();
        if taken == Some(Received::Break) {
            self.breaks -= 1;
            self.break_seen = false;
        }
        match taken {
            Some(Received::Byte(byte)) => byte,
            _ => 0,
        }
    }

    /// A BREAK is at the head of the queue that LSR has not reported.
    fn break_pending(&self) -> bool {
        self.breaks > 0 && !self.break_seen && self.input.front() == Some(&Received::Break)
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn fifos_on(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    /// Receive FIFO trigger level, FCR bits 7:6.
    fn trigger_level(&self) -> usize {
        match self.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn cause(&self) -> u8 {
        if self.ier.contains(Ier::LINE_STATUS) && self.break_pending() {
            iir::LINE_STATUS
        } else if self.ier.contains(Ier::RECEIVED_DATA) && !self.input.is_empty() {
            if self.fifos_on() && self.input.len() < self.trigger_level() {
                iir::CHARACTER_TIMEOUT
            } else {
                iir::RECEIVED_DATA
            }
        } else if self.ier.contains(Ier::TRANSMITTER_EMPTY) && self.transmitter_empty {
            iir::TRANSMITTER_EMPTY
        } else if self.ier.contains(Ier::MODEM_STATUS) && !self.msr_deltas.is_empty() {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn update_line(&mut self, actions: Actions<'_>) {
        let level = self.cause() != iir::NONE;
        if level != self.line {
            self.line = level;
            actions(Action::Line { gsi: self.gsi, level });
        }
    }

    /// Modem inputs: a present, ready peer, or in loopback the port's own outputs.
    fn modem_inputs(mcr: Mcr) -> Msr {
        if !mcr.contains(Mcr::LOOP) {
            return Msr::CTS | Msr::DSR | Msr::DCD;
        }
        let mut inputs = Msr::empty();
        inputs.set(Msr::CTS, mcr.contains(Mcr::RTS));
        inputs.set(Msr::DSR, mcr.contains(Mcr::DTR));
        inputs.set(Msr::RI, mcr.contains(Mcr::OUT1));
        inputs.set(Msr::DCD, mcr.contains(Mcr::OUT2));
        inputs
    }

    fn write_mcr(&mut self, value: u8) {
        let before = Self::modem_inputs(self.mcr);
        self.mcr = Mcr::from_bits_truncate(value);
        let after = Self::modem_inputs(self.mcr);
        let changed = before ^ after;
        let trailing_ri = before.contains(Msr::RI) && !after.contains(Msr::RI);
        for (delta, set) in [
            (Msr::DELTA_CTS, changed.contains(Msr::CTS)),
            (Msr::DELTA_DSR, changed.contains(Msr::DSR)),
            (Msr::TRAILING_RI, trailing_ri),
            (Msr::DELTA_DCD, changed.contains(Msr::DCD)),
        ] {
            if set {
                self.msr_deltas |= delta;
            }
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            reg::DATA if self.dlab() => self.divisor[0],
            reg::IER if self.dlab() => self.divisor[1],
            reg::DATA => self.take_input(),
            reg::IER => self.ier.bits(),
            reg::IIR_FCR => {
                let cause = self.cause();
                if cause == iir::TRANSMITTER_EMPTY {
                    self.transmitter_empty = false;
                }
                cause | if self.fifos_on() { IIR_FIFOS } else { 0 }
            }
            reg::LCR => self.lcr,
            reg::MCR => self.mcr.bits(),
            reg::LSR => {
                let mut lsr = Lsr::THR_EMPTY | Lsr::TRANSMITTER_EMPTY;
                lsr.set(Lsr::DATA_READY, !self.input.is_empty());
                lsr.set(Lsr::ERROR_IN_FIFO, self.fifos_on() && self.breaks > 0);
                if self.break_pending() {
                    lsr |= Lsr::BREAK;
                    self.break_seen = true;
                }
                lsr.bits()
            }
            reg::MSR => {
                let msr = Self::modem_inputs(self.mcr) | self.msr_deltas;
                self.msr_deltas -= Msr::DELTAS;
                msr.bits()
            }
            reg::SCR => self.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8, actions: Actions<'_>) {
        match offset {
            reg::DATA if self.dlab() => self.divisor[0] = value,
            reg::IER if self.dlab() => self.divisor[1] = value,
            reg::DATA => {
                if !self.mcr.contains(Mcr::LOOP) {
                    actions(Action::Console(value));
                } else {
                    // More than fits is lost, as in a FIFO.
                    let _ = self.receive(Received::Byte(value));
                }
                self.transmitter_empty = true;
            }
            reg::IER => {
                let ier = Ier::from_bits_truncate(value);
                // Enabling the interrupt while THR is empty raises it: that is how drivers start to send.
                if ier.contains(Ier::TRANSMITTER_EMPTY) && !self.ier.contains(Ier::TRANSMITTER_EMPTY) {
                    self.transmitter_empty = true;
                }
                self.ier = ier;
            }
            reg::IIR_FCR => {
                let toggled = (self.fcr ^ value) & FCR_ENABLE != 0;
                // Loopback bytes only: what people typed waits on the line, not in the FIFO.
                if self.mcr.contains(Mcr::LOOP) && (toggled || value & FCR_CLEAR_RECEIVER != 0) {
                    self.input.clear();
                    (self.breaks, self.break_seen) = (0, false);
                }
                self.fcr = value;
            }
            reg::LCR => self.lcr = value,
            reg::MCR => self.write_mcr(value),
            reg::SCR => self.scr = value,
            // LSR and MSR are read-only in operation.
            _ => {}
        }
    }
}

impl Device for Uart16550 {
    fn read(&mut self, offset: u64, size: u8, actions: Actions<'_>) -> u64 {
        // Registers are bytes; a wider access is as many byte accesses.
        let mut value = u64::from(self.read_register(offset));
        for i in 1..u64::from(size.min(8)) {
            value |= u64::from(self.read_register(offset.saturating_add(i))) << (8 * i);
        }
        self.update_line(actions);
        value & all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>) {
        for i in 0..u64::from(size.min(8)) {
            self.write_register(offset.saturating_add(i), (value >> (8 * i)) as u8, &mut *actions);
        }
        self.update_line(actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Runs one access and returns what came out.
    fn out(uart: &mut Uart16550, offset: u64, value: u8) -> Vec<Action> {
        let mut seen = Vec::new();
        uart.write(offset, 1, u64::from(value), &mut |a| seen.push(a));
        seen
    }

    fn inp(uart: &mut Uart16550, offset: u64) -> (u8, Vec<Action>) {
        let mut seen = Vec::new();
        let value = uart.read(offset, 1, &mut |a| seen.push(a)) as u8;
        (value, seen)
    }

    const HIGH: Action = Action::Line { gsi: 4, level: true };
    const LOW: Action = Action::Line { gsi: 4, level: false };

    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::IER, 0);
        assert_eq!(inp(&mut uart, reg::IER).0 & 0x0f, 0);
        out(&mut uart, reg::IER, 0xff);
        assert_eq!(inp(&mut uart, reg::IER).0, 0x0f, "no UUE bit: not an XScale port");
        out(&mut uart, reg::IER, 0);
        out(&mut uart, reg::MCR, 0x1a); // loop, RTS, OUT2
        assert_eq!(inp(&mut uart, reg::MSR).0 & 0xf0, 0x90);
        out(&mut uart, reg::MCR, 0);
        out(&mut uart, reg::IIR_FCR, FCR_ENABLE | 0x20);
        assert_eq!(inp(&mut uart, reg::IIR_FCR).0, 0xc1, "16550A without a 64-byte FIFO");
        out(&mut uart, reg::LCR, 0xbf);
        assert_ne!(inp(&mut uart, reg::IIR_FCR).0, 0, "no EFR: not a 16650");
    }

    #[test]
    fn transmitter_interrupt_comes_again_each_time_it_is_enabled() {
        let mut uart = Uart16550::new(4);
        for _ in 0..2 {
            assert_eq!(out(&mut uart, reg::IER, 2), [HIGH]);
            assert_eq!(inp(&mut uart, reg::IIR_FCR), (iir::TRANSMITTER_EMPTY, alloc::vec![LOW]));
            assert_eq!(inp(&mut uart, reg::IIR_FCR).0, iir::NONE);
            out(&mut uart, reg::IER, 0);
        }
    }

    #[test]
    fn a_byte_written_is_printed_and_asks_for_more() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::IER, 2);
        inp(&mut uart, reg::IIR_FCR);
        assert_eq!(out(&mut uart, reg::DATA, b'x'), [Action::Console(b'x'), HIGH]);
        assert_eq!(inp(&mut uart, reg::LSR).0, 0x60);
    }

    #[test]
    fn input_raises_the_line_until_it_is_read() {
        let mut uart = Uart16550::new(4);
        let mut seen = Vec::new();
        assert!(uart.push_input(Received::Byte(b'a'), &mut |a| seen.push(a)));
        assert!(seen.is_empty(), "interrupt not enabled yet");
        assert_eq!(out(&mut uart, reg::IER, 1), [HIGH]);
        out(&mut uart, reg::IIR_FCR, 0xc1);
        assert_eq!(inp(&mut uart, reg::IIR_FCR).0, 0xcc, "below the trigger level: time-out");
        assert_eq!(inp(&mut uart, reg::LSR).0 & 1, 1);
        assert_eq!(inp(&mut uart, reg::DATA), (b'a', alloc::vec![LOW]));
        assert_eq!(inp(&mut uart, reg::LSR).0 & 1, 0);
    }

    #[test]
    fn a_full_queue_says_so_and_loses_nothing() {
        let mut uart = Uart16550::new(4);
        let mut none = |_| {};
        for i in 0..INPUT_DEPTH {
            assert!(uart.push_input(Received::Byte(i as u8), &mut none));
        }
        assert!(!uart.push_input(Received::Byte(0xee), &mut none));
        for i in 0..INPUT_DEPTH {
            assert_eq!(inp(&mut uart, reg::DATA).0, i as u8);
        }
    }

    #[test]
    fn loopback_returns_what_was_sent_and_prints_nothing() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::MCR, 0x10);
        assert_eq!(out(&mut uart, reg::DATA, b'z'), []);
        assert_eq!(inp(&mut uart, reg::DATA).0, b'z');
    }

    #[test]
    fn modem_status_interrupt_is_cleared_by_reading_msr() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::IER, 8);
        assert_eq!(out(&mut uart, reg::MCR, 0x10), [HIGH]);
        assert_eq!(inp(&mut uart, reg::IIR_FCR).0, iir::MODEM_STATUS);
        assert_eq!(inp(&mut uart, reg::MSR), (0x0b, alloc::vec![LOW]));
        assert_eq!(inp(&mut uart, reg::MSR).0, 0);
    }

    /// As Linux reads it: the status of each character before the character.
    #[test]
    fn a_break_is_reported_with_its_own_character() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::IIR_FCR, 1);
        out(&mut uart, reg::IER, 1 | 4);
        for received in [Received::Byte(b'a'), Received::Break, Received::Byte(b'h')] {
            assert!(uart.push_input(received, &mut |_| {}));
        }
        assert_eq!(inp(&mut uart, reg::IIR_FCR).0 & 0xf, 0x4, "data come first");
        assert_eq!(inp(&mut uart, reg::LSR).0, 0xe1, "an error further back in the FIFO");
        assert_eq!(inp(&mut uart, reg::DATA).0, b'a');
        assert_eq!(inp(&mut uart, reg::IIR_FCR).0 & 0xf, 0x6, "line status");
        assert_eq!(inp(&mut uart, reg::LSR).0, 0xf1);
        assert_eq!(inp(&mut uart, reg::LSR).0, 0xe1, "reported once");
        assert_eq!(inp(&mut uart, reg::DATA).0, 0);
        assert_eq!(inp(&mut uart, reg::LSR).0, 0x61);
        assert_eq!(inp(&mut uart, reg::DATA).0, b'h');
        assert_eq!(inp(&mut uart, reg::LSR).0, 0x60);
    }

    #[test]
    fn divisor_latch_does_not_print() {
        let mut uart = Uart16550::new(4);
        out(&mut uart, reg::LCR, 0x83);
        assert_eq!(out(&mut uart, reg::DATA, 1), []);
        out(&mut uart, reg::IER, 2);
        assert_eq!((inp(&mut uart, 0).0, inp(&mut uart, 1).0), (1, 2));
        out(&mut uart, reg::LCR, 3);
        assert_eq!(inp(&mut uart, reg::IER).0, 0);
    }

    proptest! {
        #[test]
        fn the_line_is_high_exactly_while_there_is_a_cause(
            ops in proptest::collection::vec((any::<u64>(), 0u8..16, any::<u64>(), 0u8..3), 0..200),
        ) {
            let mut uart = Uart16550::new(4);
            let mut level = false;
            for (offset, size, value, kind) in ops {
                let mut follow = |a: Action| if let Action::Line { level: l, .. } = a {
                    assert_ne!(l, level, "only changes are reported");
                    level = l;
                };
                let offset = if kind == 2 { offset } else { offset % 9 };
                match kind {
                    0 => {
                        let received = if value % 8 == 0 { Received::Break } else { Received::Byte(value as u8) };
                        uart.push_input(received, &mut follow);
                        uart.read(offset, size, &mut follow);
                    }
                    _ => uart.write(offset, size, value, &mut follow),
                }
                prop_assert_eq!(level, uart.cause() != iir::NONE);
            }
        }
    }
}
