// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest finds in the registers after its slice is gone: a device that halted and that only a cold reset would
//! bring back.
//!
//! Linux's idxd gives no command to a halted device, but polls CMDSTS after Release Interrupt Handle without asking
//! first, and reads INTCAUSE until it is 0. All ones, as from a device that was pulled out, would keep it there for
//! ever. Commands end at once with the error of a halted device, for drivers that give them all the same.

use pasidon_kernel::vdev::parent::Remains;

use super::super::commands::error;
use super::super::registers::{CMD, cmd, intcause};
use super::shadow::{Access, Shadow};
use super::{BAR_REGISTERS, REGISTERS_SIZE, VECTOR_MISC};

/// The registers, as the guest left them but for the state.
pub(super) struct DsaRemains(Shadow);

impl DsaRemains {
    /// Of a vdev with these registers.
    pub fn of(shadow: &Shadow) -> Self {
        let mut shadow = shadow.clone();
        shadow.halt_for_good();
        shadow.command_status = error::HALTED.into();
        Self(shadow)
    }
}

impl Remains for DsaRemains {
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        match (bar, Access::new(offset, size, REGISTERS_SIZE)) {
            (BAR_REGISTERS, Some(access)) => self.0.read(access),
            _ => 0,
        }
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        if let (BAR_REGISTERS, Some(access)) = (bar, Access::new(offset, size, REGISTERS_SIZE)) {
            for (register, mask, value) in access.words(value) {
                if register != CMD {
                    self.0.write(register, mask, value);
                } else if mask == u32::MAX {
                    self.0.command_status = error::HALTED.into();
                    if value & cmd::REQUEST_INTERRUPT != 0 {
                        self.0.add_cause(intcause::CMD);
                        raise(VECTOR_MISC);
                    }
                }
            }
        }
    }
}
