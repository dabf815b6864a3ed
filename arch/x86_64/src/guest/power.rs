// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers by which a guest switches itself off or starts again: ACPI's, and the two older ones that every PC
//! has and that kernels fall back to.
//!
//! Source: ACPI specification 6.5, 4.8.3.6 and 4.8.3.7; Intel 300 Series PCH datasheet volume 2, "Reset Control
//! Register" (CF9h); IBM PC AT Technical Reference, keyboard controller command FEh.

use pasidon_kernel::vm::exit::{Action, Actions};

use super::acpi::{RESET_VALUE, SLEEP_TYPE_S5};
use super::layout;

/// SLEEP_CONTROL_REG: SLP_EN and the shift of SLP_TYPx.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
/// Reset control: the bit whose change to 1 resets, and all bits that can be written.
const RESET_CPU: u8 = 1 << 2;
const RESET_CONTROL_WRITABLE: u8 = 0x0e;
/// Command to the keyboard controller: pulse the line that resets the processor.
const PULSE_RESET: u8 = 0xfe;

/// These registers.
#[derive(Clone, Copy, Default, Debug)]
pub struct Power {
    reset_control: u8,
}

impl Power {
    /// Reads the register at `port`.
    pub fn read(self, port: u16) -> u8 {
        match port {
            layout::RESET_CONTROL_PORT => self.reset_control,
            // There is no keyboard controller but for its reset line.
            layout::KEYBOARD_COMMAND_PORT => u8::MAX,
            _ => 0,
        }
    }

    /// Writes the register at `port`.
    pub fn write(&mut self, port: u16, value: u8, actions: Actions<'_>) {
        const SLEEP_CONTROL: u16 = layout::POWER_PORT + layout::POWER_SLEEP_CONTROL;
        const RESET: u16 = layout::POWER_PORT + layout::POWER_RESET;
        match port {
            SLEEP_CONTROL => {
                let kind = (value >> SLEEP_TYPE_SHIFT) & 7;
                if value & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_S5 {
                    actions(Action::PowerOff);
                }
            }
            RESET if value == RESET_VALUE => actions(Action::Reset),
            layout::RESET_CONTROL_PORT => {
                let risen = value & !self.reset_control & RESET_CPU != 0;
                self.reset_control = value & RESET_CONTROL_WRITABLE;
                if risen {
                    actions(Action::Reset);
                }
            }
            layout::KEYBOARD_COMMAND_PORT if value == PULSE_RESET => actions(Action::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of writing these values to a port one after the other.
    fn written(port: u16, values: &[u8]) -> Vec<Action> {
        let mut power = Power::default();
        let mut seen = Vec::new();
        for value in values {
            power.write(port, *value, &mut |action| seen.push(action));
        }
        seen
    }

    #[test]
    fn sleep_type_5_switches_off_and_the_acpi_register_resets() {
        assert_eq!(written(0x600, &[0x14]), [], "without SLP_EN nothing happens");
        assert_eq!(written(0x600, &[0x34]), [Action::PowerOff]);
        assert_eq!(written(0x602, &[0, 2, 1]), [Action::Reset]);
    }

    #[test]
    fn the_reset_control_register_resets_when_its_bit_rises() {
        // As Linux does it for reboot=pci: the kind first, then the bit.
        assert_eq!(written(0xcf9, &[0x02]), []);
        assert_eq!(written(0xcf9, &[0x02, 0x0e]), [Action::Reset]);
        assert_eq!(written(0xcf9, &[0x06, 0x06]), [Action::Reset], "and only then");
        assert_eq!(written(0xcf9, &[0x06, 0x02, 0x06]), [Action::Reset; 2]);
        let mut power = Power::default();
        power.write(0xcf9, 0xfb, &mut |_| {});
        assert_eq!(power.read(0xcf9), 0x0a);
    }

    #[test]
    fn the_keyboard_controller_has_a_reset_line_and_nothing_else() {
        assert_eq!(written(0x64, &[0x60, 0x20, 0xff]), []);
        assert_eq!(written(0x64, &[0xfe]), [Action::Reset]);
        assert_eq!(Power::default().read(0x64), 0xff, "nobody is there to talk to");
    }
}
