// SPDX-License-Identifier: MIT OR Apache-2.0
//! The I/O APIC: 24 wired interrupts become interrupt messages.
//!
//! **Invariant.** A level-triggered pin sends one message and then waits (remote IRR) until the local
//! APIC reports the end of its vector; a line still high then sends the next. No interrupt is lost, and
//! a line that stays high costs one message per end-of-interrupt, not more.
//!
//! Source: Intel 82093AA data sheet, section 3.

use pasidon_kernel::dev::bus::all_ones;
use pasidon_kernel::vm::exit::{Action, Actions, MsiMessage};

/// Number of pins.
pub const PINS: usize = 24;

/// Memory offset of IOREGSEL.
const IOREGSEL: u64 = 0x00;
/// Memory offset of IOWIN.
const IOWIN: u64 = 0x10;

/// Register numbers behind IOREGSEL.
mod reg {
    pub const ID: u8 = 0;
    pub const VERSION: u8 = 1;
    pub const ARBITRATION: u8 = 2;
    pub const REDIRECTION: u8 = 0x10;
}

/// 82093AA, with its highest redirection entry.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

/// Redirection entry bits.
mod entry {
    pub const DELIVERY_MODE: u64 = 7 << 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const DELIVERY_STATUS: u64 = 1 << 12;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
    pub const WRITABLE: u64 = 0xff00_0000_0001_ffff & !READ_ONLY;
}

/// The I/O APIC of one VM.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// One bit per pin: the level of its line.
    lines: u32,
}

impl IoApic {
    /// After reset: all pins masked, all lines low.
    pub const fn new() -> Self {
        Self { select: 0, id: 0, entries: [entry::MASKED; PINS], lines: 0 }
    }

    /// Drives the line of pin `gsi`; a pin that does not exist is ignored.
    pub fn set_line(&mut self, gsi: u32, level: bool, actions: Actions<'_>) {
        let pin = gsi as usize;
        if pin >= PINS {
            return;
        }
        let bit = 1 << gsi;
        let rising = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.entries[pin] & entry::LEVEL != 0 {
            self.serve_level(pin, actions);
        } else if rising && self.entries[pin] & entry::MASKED == 0 {
            self.send(pin, actions);
        }
    }

    /// A local APIC ended the level-triggered `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8, actions: Actions<'_>) {
        for pin in 0..PINS {
            let e = &mut self.entries[pin];
            if *e as u8 == vector && *e & entry::LEVEL != 0 && *e & entry::REMOTE_IRR != 0 {
                *e &= !entry::REMOTE_IRR;
                self.serve_level(pin, actions);
            }
        }
    }

    fn serve_level(&mut self, pin: usize, actions: Actions<'_>) {
        let e = self.entries[pin];
        let ready = e & (entry::MASKED | entry::REMOTE_IRR) == 0;
        if ready && self.lines & 1 << pin != 0 {
            self.entries[pin] |= entry::REMOTE_IRR;
            self.send(pin, actions);
        }
    }

    /// The message of a pin, in the format of an MSI: trigger mode and assertion included.
    fn send(&self, pin: usize, actions: Actions<'_>) {
        const INTERRUPT_ADDRESS: u64 = 0xfee0_0000;
        const LEVEL_ASSERTED: u32 = 1 << 15 | 1 << 14;
        let e = self.entries[pin];
        let logical = if e & entry::LOGICAL != 0 { 1 << 2 } else { 0 };
        let level = if e & entry::LEVEL != 0 { LEVEL_ASSERTED } else { 0 };
        actions(Action::Message(MsiMessage {
            address: INTERRUPT_ADDRESS | (e >> 56) << 12 | logical,
            data: (e & (0xff | entry::DELIVERY_MODE)) as u32 | level,
        }));
    }

    /// Reads `size` bytes at `offset` of the register page.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => match self.select {
                reg::ID | reg::ARBITRATION => self.id,
                reg::VERSION => VERSION,
                _ => match self.selected_entry() {
                    Some((pin, high)) => (self.entries[pin] >> if high { 32 } else { 0 }) as u32,
                    None => 0,
                },
            },
            _ => 0,
        };
        u64::from(value) & all_ones(size)
    }

    /// Writes to the register page.
    pub fn write(&mut self, offset: u64, value: u64, actions: Actions<'_>) {
        let value = value as u32;
        match (offset, self.select) {
            (IOREGSEL, _) => self.select = value as u8,
            (IOWIN, reg::ID) => self.id = value & 0x0f00_0000,
            (IOWIN, _) => {
                if let Some((pin, high)) = self.selected_entry() {
                    self.write_entry(pin, high, value, actions);
                }
            }
            _ => {}
        }
    }

    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(reg::REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index & 1 != 0))
    }

    fn write_entry(&mut self, pin: usize, high: bool, value: u32, actions: Actions<'_>) {
        let old = self.entries[pin];
        let merged = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let mut new = merged & entry::WRITABLE | old & entry::READ_ONLY;
        if new & entry::LEVEL == 0 {
            // Software ends a stuck level interrupt by switching the pin to edge and back.
            new &= !entry::REMOTE_IRR;
        }
        self.entries[pin] = new;
        if new & entry::LEVEL != 0 {
            self.serve_level(pin, actions);
        }
    }
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn program(apic: &mut IoApic, pin: u8, value: u64) -> Vec<Action> {
        let mut seen = Vec::new();
        let mut sink = |a| seen.push(a);
        for (index, half) in [(1, value >> 32), (0, value)] {
            apic.write(IOREGSEL, u64::from(reg::REDIRECTION + 2 * pin + index), &mut sink);
            apic.write(IOWIN, half & 0xffff_ffff, &mut sink);
        }
        seen
    }

    fn line(apic: &mut IoApic, gsi: u32, level: bool) -> Vec<Action> {
        let mut seen = Vec::new();
        apic.set_line(gsi, level, &mut |a| seen.push(a));
        seen
    }

    fn eoi(apic: &mut IoApic, vector: u8) -> Vec<Action> {
        let mut seen = Vec::new();
        apic.end_of_interrupt(vector, &mut |a| seen.push(a));
        seen
    }

    fn message(address: u64, data: u32) -> Action {
        Action::Message(MsiMessage { address, data })
    }

    #[test]
    fn edge_sends_once_per_rise() {
        let mut apic = IoApic::new();
        program(&mut apic, 4, 0x31);
        assert_eq!(line(&mut apic, 4, true), [message(0xfee0_0000, 0x31)]);
        assert_eq!(line(&mut apic, 4, true), []);
        line(&mut apic, 4, false);
        assert_eq!(line(&mut apic, 4, true), [message(0xfee0_0000, 0x31)]);
    }

    #[test]
    fn level_waits_for_the_end_and_repeats_while_high() {
        let mut apic = IoApic::new();
        program(&mut apic, 4, 1 << 56 | entry::LEVEL | entry::LOGICAL | 0x31);
        let expected = message(0xfee0_1004, 0xc031);
        assert_eq!(line(&mut apic, 4, true), [expected]);
        line(&mut apic, 4, false);
        assert_eq!(line(&mut apic, 4, true), [], "still in service");
        assert_eq!(eoi(&mut apic, 0x30), []);
        assert_eq!(eoi(&mut apic, 0x31), [expected]);
        line(&mut apic, 4, false);
        assert_eq!(eoi(&mut apic, 0x31), []);
    }

    #[test]
    fn unmasking_a_high_level_line_sends() {
        let mut apic = IoApic::new();
        program(&mut apic, 4, entry::MASKED | entry::LEVEL | 0x31);
        assert_eq!(line(&mut apic, 4, true), []);
        assert_eq!(program(&mut apic, 4, entry::LEVEL | 0x31), [message(0xfee0_0000, 0xc031)]);
        program(&mut apic, 4, 0x31);
        assert_eq!(apic.entries[4] & entry::REMOTE_IRR, 0, "switching to edge ends it");
    }

    #[test]
    fn registers_read_as_the_data_sheet_says() {
        let mut apic = IoApic::new();
        apic.write(IOREGSEL, 1, &mut |_| {});
        assert_eq!(apic.read(IOWIN, 4), 0x0017_0011);
        apic.write(IOREGSEL, 0x10, &mut |_| {});
        assert_eq!(apic.read(IOWIN, 4), entry::MASKED);
        apic.write(IOREGSEL, 0x40, &mut |_| {});
        assert_eq!(apic.read(IOWIN, 4), 0);
    }

    proptest! {
        #[test]
        fn at_most_one_message_per_pin_and_event(
            ops in proptest::collection::vec((0u8..5, any::<u32>(), any::<u64>()), 0..300),
        ) {
            let mut apic = IoApic::new();
            for (op, select, value) in ops {
                let mut messages = 0;
                let mut sink = |_| messages += 1;
                match op {
                    0 => apic.set_line(select % 30, value & 1 != 0, &mut sink),
                    1 => apic.end_of_interrupt(select as u8, &mut sink),
                    2 => { apic.read(u64::from(select & 0x3f), value as u8); }
                    3 => apic.write(0, value, &mut sink),
                    _ => apic.write(IOWIN, value, &mut sink),
                }
                let at_most = if op == 1 { PINS } else { 1 };
                prop_assert!(messages <= at_most);
            }
        }
    }
}
