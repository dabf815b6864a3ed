// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot of a port: presence, power, indicators, attention button, and the port's own interrupt.
//!
//! **Principle.** The slot is one that a person would stand before: a card is put in, the button is pressed, the light
//! says what software makes of it. Software has the power; without power there is no link, and the function does not
//! answer. Commands take effect at once, so there is nothing to say when they have (No Command Completed Support).
//! **Invariant.** What a guest writes here reaches nothing but its own slot. A message is sent at the moment when an
//! event that is enabled, with everything that lets it out, comes to be, and not again before one of these was away.
//!
//! Source: PCI Express Base 5.0, sections 6.7 (6.7.3.4 for interrupts), 7.5.3.9 to 7.5.3.11 and 7.7.1.

use super::config::{ConfigSpace, reg};
use crate::vm::exit::MsiMessage;

/// Registers of the slot, in the PCI Express capability.
const CAPABILITIES: usize = reg::EXPRESS + 0x14;
const CONTROL: usize = reg::EXPRESS + 0x18;
const STATUS: usize = reg::EXPRESS + 0x1a;
/// MSI capability, with 64-bit addresses.
pub(super) const MSI: usize = 0x80;
const MSI_CONTROL: usize = MSI + 2;
const MSI_ADDRESS: usize = MSI + 4;
const MSI_DATA: usize = MSI + 12;

/// Slot capabilities.
mod capability {
    pub const ATTENTION_BUTTON: u32 = 1 << 0;
    pub const POWER_CONTROLLER: u32 = 1 << 1;
    pub const ATTENTION_INDICATOR: u32 = 1 << 3;
    pub const POWER_INDICATOR: u32 = 1 << 4;
    pub const SURPRISE: u32 = 1 << 5;
    pub const HOT_PLUG: u32 = 1 << 6;
    pub const NO_COMMAND_COMPLETED: u32 = 1 << 18;
    pub const NUMBER_SHIFT: u32 = 19;
}

/// Slot control.
mod control {
    /// Enables of the events that have the same bit in the status.
    pub const SAME_BIT: u16 = 0x1f;
    pub const INTERRUPT: u16 = 1 << 5;
    pub const ATTENTION_OFF: u16 = 3 << 6;
    pub const POWER_LIGHT: u16 = 3 << 8;
    pub const POWER_LIGHT_ON: u16 = 1 << 8;
    pub const POWER_LIGHT_BLINKS: u16 = 2 << 8;
    pub const POWER_LIGHT_OFF: u16 = 3 << 8;
    pub const POWER_OFF: u16 = 1 << 10;
    pub const LINK_EVENTS: u16 = 1 << 12;
    /// All but the latch, the interlock, the power limit, and in-band detection, which are not there.
    pub const WRITABLE: u16 = 0x17fb;
}

/// Slot status.
mod status {
    pub const BUTTON: u16 = 1 << 0;
    pub const PRESENCE_CHANGED: u16 = 1 << 3;
    pub const PRESENT: u16 = 1 << 6;
    pub const LINK_CHANGED: u16 = 1 << 8;
    /// What software clears by writing ones.
    pub const EVENTS: u16 = 0x1f | LINK_CHANGED;
}

/// Link status: Data Link Layer Link Active.
const LINK_ACTIVE: u16 = 1 << 13;

const CAPABILITY_MSI: u8 = 5;
const MSI_64_BIT: u16 = 1 << 7;
const MSI_ENABLE: u16 = 1 << 0;
/// The enable bit, and how many messages software has room for: one is sent whatever it says.
const MSI_CONTROL_WRITABLE: u16 = MSI_ENABLE | 7 << 4;

/// The state of a slot beside its registers.
#[derive(Clone, Debug, Default)]
pub(super) struct HotPlug {
    /// All that a message needs was there when it was last looked.
    notified: bool,
}

impl HotPlug {
    /// The registers of an empty slot with that number, as firmware leaves it: with power, so that software that knows
    /// nothing of slots finds what is put in, and with the lights off.
    pub(super) fn new(config: &mut ConfigSpace, number: u16) -> Self {
        let capabilities = capability::ATTENTION_BUTTON
            | capability::POWER_CONTROLLER
            | capability::ATTENTION_INDICATOR
            | capability::POWER_INDICATOR
            | capability::SURPRISE
            | capability::HOT_PLUG
            | capability::NO_COMMAND_COMPLETED
            | u32::from(number) << capability::NUMBER_SHIFT;
        config.set(CAPABILITIES, capabilities.to_le_bytes());
        config.set(CONTROL, (control::ATTENTION_OFF | control::POWER_LIGHT_OFF).to_le_bytes());
        config.allow(CONTROL, control::WRITABLE.to_le_bytes());
        config.set(MSI, [CAPABILITY_MSI, 0]);
        config.set(MSI_CONTROL, MSI_64_BIT.to_le_bytes());
        config.allow(MSI_CONTROL, MSI_CONTROL_WRITABLE.to_le_bytes());
        config.allow(MSI_ADDRESS, (!3u64).to_le_bytes());
        config.allow(MSI_DATA, u16::MAX.to_le_bytes());
        Self::default()
    }

    /// After a write of the guest's: clears the events that it acknowledges.
    pub(super) fn acknowledge(config: &mut ConfigSpace, offset: u64, size: u8, value: u64) {
        let cleared = ConfigSpace::written(STATUS, offset, size, value) & status::EVENTS;
        set(config, STATUS, cleared, false);
    }

    /// Whether software gives the slot power.
    pub(super) fn has_power(config: &ConfigSpace) -> bool {
        config.u16(CONTROL) & control::POWER_OFF == 0
    }

    /// Says what is in the slot, and whether there is a link to it.
    pub(super) fn observe(config: &mut ConfigSpace, present: bool, link: bool) {
        if (config.u16(STATUS) & status::PRESENT != 0) != present {
            set(config, STATUS, status::PRESENT, present);
            set(config, STATUS, status::PRESENCE_CHANGED, true);
        }
        if Self::has_link(config) != link {
            set(config, reg::LINK_STATUS, LINK_ACTIVE, link);
            set(config, STATUS, status::LINK_CHANGED, true);
        }
    }

    /// Whether there was a link when it was last said.
    pub(super) fn has_link(config: &ConfigSpace) -> bool {
        config.u16(reg::LINK_STATUS) & LINK_ACTIVE != 0
    }

    /// As firmware does with what it finds at the start: the light is on, and no event is left to be told.
    pub(super) fn settle(config: &mut ConfigSpace) {
        set(config, CONTROL, control::POWER_LIGHT, false);
        set(config, CONTROL, control::POWER_LIGHT_ON, true);
        set(config, STATUS, status::EVENTS, false);
    }

    /// Presses the attention button, where software listens. Whether it does.
    pub(super) fn press(config: &mut ConfigSpace) -> bool {
        let both = control::INTERRUPT | status::BUTTON;
        let listens = config.u16(CONTROL) & both == both && config.u16(MSI_CONTROL) & MSI_ENABLE != 0;
        if listens {
            set(config, STATUS, status::BUTTON, true);
        }
        listens
    }

    /// Whether the light blinks: software is at work, and would take a press for second thoughts (6.7.1.5).
    pub(super) fn blinks(config: &ConfigSpace) -> bool {
        config.u16(CONTROL) & control::POWER_LIGHT == control::POWER_LIGHT_BLINKS
    }

    /// The message that is to be sent now, if any. To be asked whenever something may have changed.
    pub(super) fn message(&mut self, config: &ConfigSpace) -> Option<MsiMessage> {
        let enabled = config.u16(CONTROL);
        let link_events = if enabled & control::LINK_EVENTS != 0 { status::LINK_CHANGED } else { 0 };
        let events = config.u16(STATUS) & (enabled & control::SAME_BIT | link_events);
        let out = enabled & control::INTERRUPT != 0
            && config.u16(MSI_CONTROL) & MSI_ENABLE != 0
            && config.bus_master();
        let before = core::mem::replace(&mut self.notified, out && events != 0);
        (self.notified && !before).then(|| MsiMessage {
            address: u64::from(config.u32(MSI_ADDRESS + 4)) << 32 | u64::from(config.u32(MSI_ADDRESS)),
            data: config.u16(MSI_DATA).into(),
        })
    }
}

fn set(config: &mut ConfigSpace, at: usize, bits: u16, on: bool) {
    let value = config.u16(at);
    let value = if on { value | bits } else { value & !bits };
    config.set(at, value.to_le_bytes());
}
