// SPDX-License-Identifier: MIT OR Apache-2.0
//! A root port: the bridge from bus 0 to the bus of one slot, and what is in the slot.
//!
//! **Principle.** It is what its registers say, as a bridge on silicon is: requests to configuration space go on by bus
//! number, accesses to memory by window, and what comes back, DMA and messages, only while it is a bus master. None of
//! these registers can lead anywhere but to the function in the slot.
//! **Invariant.** A function behind a link that is down is as after a reset, answers nothing and sends nothing.
//!
//! Source: PCI Express Base 5.0, sections 7.5.1.3 (type 1 header) and 7.5.3; PCI-to-PCI Bridge Architecture 1.2,
//! chapters 3 and 4.

use alloc::boxed::Box;

use super::config::{ConfigSpace, LINK_CONTROL_WRITABLE, ROLE_BASED_ERRORS, reg};
use super::function::VdevFunction;
use super::hotplug::{self, HotPlug};
use super::window::PciWindow;
use crate::vm::exit::{Action, Actions};

/// Registers of a type 1 header.
const SECONDARY_BUS: usize = 0x19;
const SUBORDINATE_BUS: usize = 0x1a;
const MEMORY_BASE: usize = 0x20;
const MEMORY_LIMIT: usize = 0x22;
const PREFETCHABLE_BASE: usize = 0x24;
const PREFETCHABLE_LIMIT: usize = 0x26;
const PREFETCHABLE_BASE_HIGH: usize = 0x28;
const PREFETCHABLE_LIMIT_HIGH: usize = 0x2c;
const BRIDGE_CONTROL: usize = 0x3e;
const ROOT_CONTROL: usize = reg::EXPRESS + 0x1c;

/// The generic root port that systems know without a driver of its own.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x000c;
const CLASS_BRIDGE: u32 = 0x06_0400;
const TYPE_1: u8 = 1;
const MULTIFUNCTION: u8 = 1 << 7;
/// PCI Express capability version 2, device type 4: root port, with a slot.
const EXPRESS_ROOT_PORT: u16 = 1 << 8 | 4 << 4 | 2;
/// Link capabilities: it says whether the link is active. The port's number is above.
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
const PORT_NUMBER_SHIFT: u32 = 24;
/// Link control.
const LINK_DISABLE: u16 = 1 << 4;
/// System errors and power management events, which do not occur.
const ROOT_CONTROL_WRITABLE: u16 = 0xf;
/// Parity response, system errors, secondary bus reset.
const BRIDGE_CONTROL_WRITABLE: u16 = 0x43;
const SECONDARY_BUS_RESET: u16 = 1 << 6;
/// Address bits 31:20 of a window, of which it has whole MiB.
const WINDOW_BITS: u16 = 0xfff0;
const WINDOW_GRAIN: u64 = 1 << 20;
/// The lowest bits of the prefetchable window: it has 64 bits.
const WINDOW_64_BIT: u16 = 1;

/// How far the end of what is in a slot is agreed upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stay {
    /// Nobody wants it to go.
    Settled,
    /// The guest was asked to let go of it.
    Asked,
    /// It has: the slot was without power since.
    LetGo,
}

/// What a write to a port, or a change in its slot, leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PortChange {
    /// Which addresses are answered behind it may be different.
    pub decoding: bool,
    /// The link is down now: the function is to be reset.
    pub link_down: bool,
}

/// A root port with its slot.
pub(super) struct Port {
    config: ConfigSpace,
    hot_plug: HotPlug,
    function: Option<Box<VdevFunction>>,
    stay: Stay,
}

impl Port {
    /// A port with an empty slot, as firmware leaves it: it leads to bus `number`, also the slot's number, and to these
    /// windows, but passes nothing on before software turns it on. `several`: its device has further functions.
    pub(super) fn new(number: u8, several: bool, windows: &[PciWindow]) -> Self {
        let mut config = ConfigSpace::new(VENDOR, DEVICE, CLASS_BRIDGE);
        let link = LINK_ACTIVE_REPORTING | u32::from(number) << PORT_NUMBER_SHIFT;
        config.add_express(EXPRESS_ROOT_PORT, hotplug::MSI as u8, ROLE_BASED_ERRORS, link);
        config.allow(reg::LINK_CONTROL, (LINK_CONTROL_WRITABLE | LINK_DISABLE).to_le_bytes());
        config.allow(ROOT_CONTROL, ROOT_CONTROL_WRITABLE.to_le_bytes());
        config.set(reg::HEADER_TYPE, [TYPE_1 | if several { MULTIFUNCTION } else { 0 }]);
        // Primary, secondary and subordinate bus.
        config.set(SECONDARY_BUS, [number, number]);
        config.allow(SECONDARY_BUS - 1, [0xff; 3]);
        for at in [MEMORY_BASE, MEMORY_LIMIT, PREFETCHABLE_BASE, PREFETCHABLE_LIMIT] {
            config.allow(at, WINDOW_BITS.to_le_bytes());
        }
        for at in [PREFETCHABLE_BASE_HIGH, PREFETCHABLE_LIMIT_HIGH] {
            config.allow(at, [0xff; 4]);
        }
        config.allow(BRIDGE_CONTROL, BRIDGE_CONTROL_WRITABLE.to_le_bytes());
        // Closed where it is given nothing: the base above the limit.
        config.set(MEMORY_BASE, WINDOW_BITS.to_le_bytes());
        config.set(PREFETCHABLE_BASE, (WINDOW_BITS | WINDOW_64_BIT).to_le_bytes());
        config.set(PREFETCHABLE_LIMIT, WINDOW_64_BIT.to_le_bytes());
        for window in windows.iter().filter(|window| window.len >= WINDOW_GRAIN) {
            let last = window.start + (window.len - 1);
            let bits = |address: u64| (address >> 16) as u16 & WINDOW_BITS;
            if window.prefetchable {
                config.set(PREFETCHABLE_BASE, (bits(window.start) | WINDOW_64_BIT).to_le_bytes());
                config.set(PREFETCHABLE_LIMIT, (bits(last) | WINDOW_64_BIT).to_le_bytes());
                config.set(PREFETCHABLE_BASE_HIGH, ((window.start >> 32) as u32).to_le_bytes());
                config.set(PREFETCHABLE_LIMIT_HIGH, ((last >> 32) as u32).to_le_bytes());
            } else {
                config.set(MEMORY_BASE, bits(window.start).to_le_bytes());
                config.set(MEMORY_LIMIT, bits(last).to_le_bytes());
            }
        }
        let hot_plug = HotPlug::new(&mut config, number.into());
        Self { config, hot_plug, function: None, stay: Stay::Settled }
    }

    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        self.config.read(offset, size)
    }

    /// A write to the port's own registers.
    pub(super) fn write(&mut self, offset: u64, size: u8, value: u64) -> PortChange {
        let passes = |port: &Self| (port.config.memory_enabled(), port.memory(), port.prefetchable());
        let before = passes(self);
        self.config.write(offset, size, value);
        HotPlug::acknowledge(&mut self.config, offset, size, value);
        let change = self.look();
        PortChange { decoding: passes(self) != before, ..change }
    }

    /// Brings the slot's registers up to date with what is in it and what software wants.
    fn look(&mut self) -> PortChange {
        let before = HotPlug::has_link(&self.config);
        let present = self.function.is_some();
        let held_down = self.config.u16(reg::LINK_CONTROL) & LINK_DISABLE != 0
            || self.config.u16(BRIDGE_CONTROL) & SECONDARY_BUS_RESET != 0;
        let link = present && HotPlug::has_power(&self.config) && !held_down;
        HotPlug::observe(&mut self.config, present, link);
        PortChange { decoding: link != before, link_down: before && !link }
    }

    /// What is left to do when a function that lost its link has been reset: the port lets the function send, or not;
    /// says what the guest let go of, and the messages that it has for the guest.
    pub(super) fn finish(&mut self, actions: Actions<'_>) {
        let sends = self.config.bus_master() && HotPlug::has_link(&self.config);
        if let Some(function) = &mut self.function {
            function.let_send(sends, actions);
        }
        if !HotPlug::has_power(&self.config) {
            if self.function.as_ref().is_some_and(|function| function.has_ended()) {
                // What remained of it is not needed any more.
                self.take_out();
            } else if self.stay == Stay::Asked {
                self.stay = Stay::LetGo;
                actions(Action::Attend);
            }
        }
        if let Some(message) = self.hot_plug.message(&self.config) {
            actions(Action::Message(message));
        }
    }

    /// What is in the slot.
    pub(super) fn function(&self) -> Option<&VdevFunction> {
        self.function.as_deref()
    }

    pub(super) fn function_mut(&mut self) -> Option<&mut VdevFunction> {
        self.function.as_deref_mut()
    }

    /// The same, where accesses reach it.
    pub(super) fn reachable(&mut self) -> Option<&mut VdevFunction> {
        if HotPlug::has_link(&self.config) { self.function_mut() } else { None }
    }

    /// Puts a function in, instead of what is left of another. Where software has the power off, the button is pressed
    /// as well. Where nobody has turned the port on, it is firmware that finds the function.
    pub(super) fn put_in(&mut self, function: VdevFunction) {
        self.take_out();
        self.function = Some(Box::new(function));
        if !HotPlug::has_power(&self.config) {
            HotPlug::press(&mut self.config);
        }
        self.look();
        if !self.config.memory_enabled() && !self.config.bus_master() {
            HotPlug::settle(&mut self.config);
        }
    }

    fn take_out(&mut self) {
        self.function = None;
        self.stay = Stay::Settled;
        self.look();
    }

    /// Asks the guest to let go of what is in the slot. Whether it will hear; one that has the power off has let go.
    pub(super) fn ask(&mut self) -> bool {
        let config = &mut self.config;
        let hears = HotPlug::has_power(config) && (HotPlug::blinks(config) || HotPlug::press(config));
        if hears && self.stay == Stay::Settled {
            self.stay = Stay::Asked;
        }
        hears
    }

    /// Whether the guest has let go of it after [`Port::ask`].
    pub(super) fn has_let_go(&self) -> bool {
        self.stay == Stay::LetGo
    }

    /// Whether a request to configuration space on that bus is passed on.
    pub(super) fn leads_to(&self, bus: u8) -> bool {
        self.secondary() <= bus && bus <= self.config.read(SUBORDINATE_BUS as u64, 1) as u8
    }

    /// The bus that the slot is on.
    pub(super) fn secondary(&self) -> u8 {
        self.config.read(SECONDARY_BUS as u64, 1) as u8
    }

    /// Whether accesses to this memory are passed on to the slot.
    pub(super) fn passes(&self, start: u64, len: u64) -> bool {
        let windows = [self.memory(), self.prefetchable()];
        self.config.memory_enabled()
            && HotPlug::has_link(&self.config)
            && windows.iter().flatten().any(|window| window.contains(start, len))
    }

    fn memory(&self) -> Option<PciWindow> {
        let address = |at| u64::from(self.config.u16(at) & WINDOW_BITS) << 16;
        window(address(MEMORY_BASE), address(MEMORY_LIMIT))
    }

    fn prefetchable(&self) -> Option<PciWindow> {
        let address = |at, high| {
            u64::from(self.config.u32(high)) << 32 | u64::from(self.config.u16(at) & WINDOW_BITS) << 16
        };
        let base = address(PREFETCHABLE_BASE, PREFETCHABLE_BASE_HIGH);
        window(base, address(PREFETCHABLE_LIMIT, PREFETCHABLE_LIMIT_HIGH))
    }
}

/// From the first MiB to the last; closed where that lies before.
fn window(base: u64, limit: u64) -> Option<PciWindow> {
    let len = limit.checked_sub(base)?.saturating_add(WINDOW_GRAIN);
    Some(PciWindow::fixed(base, len))
}
