// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's PCI Express: on bus 0 a host bridge and root ports, in the slot of each port one vdev.
//!
//! **Principle.** The guest may move BARs and windows as it likes, but a BAR is decoded only where it lies wholly in
//! a PCI window, in one of its port's windows, and clear of the BARs before it. PCI windows never hold RAM or another
//! device, so a portal (a page of the physical device) can appear nowhere else.
//! **Invariant.** The portals mapped in the guest, as told by [`Action::MapPortal`] and
//! [`Action::UnmapPortal`], are exactly those of the BARs decoded now. They never overlap. Before a slice
//! is reset or taken away, its portals are gone.
//!
//! Source: PCI Express Base 5.0, section 7.2.2 (ECAM) and chapter 7; PCI Local Bus 3.0, section 6.2.5.

mod config;
mod function;
mod hotplug;
mod msix;
mod port;
mod window;

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use crate::base::addr::{GuestPhys, HostPhys};
use crate::base::refusal::Refusal;
use crate::dev::bus::{all_ones, look_up};
use crate::irq::msi::Posting;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::VectorInfo;
use crate::vdev::parent::{QuiesceFailed, VdevRegisters};
use crate::vm::exit::{Action, Actions, MsiMessage};

use config::ConfigSpace;
use function::{Change, VdevFunction};
use port::{Port, PortChange};
use window::first_fit;

pub use window::PciWindow;

/// Functions of a device.
const FUNCTIONS: u8 = 8;
/// The most slots: the functions of devices 1 to 31 of bus 0 are their ports.
pub const SLOTS_MAX: u8 = 31 * FUNCTIONS;
/// The slot of a port, which a vdev is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u8);

impl Slot {
    /// Its number, from 1, which the port shows (Physical Slot Number): Linux has it in `/sys/bus/pci/slots`. The bus
    /// that the port leads to at the start has it, too; the vdev there is device 0, function 0.
    pub const fn number(self) -> u8 {
        self.0 + 1
    }

    /// Device 31:3 and function 2:0 of its port on bus 0.
    pub const fn port(self) -> u8 {
        self.0 + FUNCTIONS
    }

    fn index(self) -> usize {
        self.0.into()
    }
}

/// A BAR that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Decoded {
    start: u64,
    len: u64,
    slot: usize,
    bar: u8,
}

/// A portal that is mapped in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapped {
    guest: GuestPhys,
    host: HostPhys,
    len: u64,
}

/// The guest's PCI Express.
pub struct PciBus {
    windows: Vec<PciWindow>,
    bridge: ConfigSpace,
    /// By slot.
    ports: Vec<Port>,
    /// Ascending by start.
    decoded: Vec<Decoded>,
    /// Where in it the last access was: mostly the next one is there, too.
    last: usize,
    mapped: Vec<Mapped>,
    unclaimed: u64,
    /// Resets at which a slice did not stop.
    failed_resets: u64,
    /// The slot whose interrupts have changed with the last write.
    rerouted: Option<usize>,
}

impl PciBus {
    /// With so many empty slots, [`SLOTS_MAX`] at most. The windows must not overlap RAM or another device.
    pub fn new(windows: &[PciWindow], slots: u8) -> Self {
        let slots = slots.min(SLOTS_MAX);
        let port = |slot: Slot| {
            // Several are functions of one device, which says so.
            let several = slot.index() / usize::from(FUNCTIONS) * usize::from(FUNCTIONS) + 1 < slots.into();
            Port::new(slot.number(), several, &parts(windows, slot))
        };
        Self {
            windows: windows.to_vec(),
            bridge: ConfigSpace::host_bridge(),
            ports: (0..slots).map(Slot).map(port).collect(),
            decoded: Vec::new(),
            last: 0,
            mapped: Vec::new(),
            unclaimed: 0,
            failed_resets: 0,
            rerouted: None,
        }
    }

    /// Puts a vdev into the first free slot, its BARs assigned, memory decoding off; where there is none, into one with
    /// what is left of a vdev that has ended. The guest is told as hardware would: by the port's interrupt.
    ///
    /// # Errors
    /// When no slot is free, or a BAR finds no room in the slot's part of the windows; the model is dropped.
    pub fn add(&mut self, model: Box<dyn VdevRegisters>, actions: Actions<'_>) -> Result<Slot, Refusal> {
        let unused = |port: &Port| port.function().is_none();
        let ended = |port: &Port| port.function().is_some_and(VdevFunction::has_ended);
        let place =
            self.ports.iter().position(unused).or_else(|| self.ports.iter().position(ended)).ok_or_else(
                || {
                    let why = format!("all {} slots are taken", self.ports.len());
                    Refusal::new("vdev", why, "give the VM more `slots` in pasidon.toml, or fewer vdevs")
                },
            )?;
        let slot = Slot(place as u8);
        let windows = parts(&self.windows, slot);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let function = VdevFunction::new(model, |bar| {
            let home = first_fit(&windows, &taken, bar)?;
            taken.push((home, bar.size));
            Some(home)
        })?;
        if let Some(port) = self.ports.get_mut(place) {
            // What has ended has no portals that would have to go.
            port.put_in(function);
        }
        self.after(place, PortChange { decoding: true, link_down: false }, actions);
        Ok(slot)
    }

    /// Asks the guest to let go of a vdev, as whoever presses the slot's attention button does. Whether it will hear.
    pub fn ask(&mut self, slot: Slot, actions: Actions<'_>) -> bool {
        let Some(port) = self.ports.get_mut(slot.index()) else {
            return false;
        };
        let hears = port.ask();
        port.finish(actions);
        hears
    }

    /// Whether the guest has let go of a vdev after [`PciBus::ask`]: it has switched the slot's power off. Announced by
    /// [`Action::Attend`].
    pub fn has_let_go(&self, slot: Slot) -> bool {
        self.ports.get(slot.index()).is_some_and(Port::has_let_go)
    }

    /// Ends a vdev as far as the guest is concerned: its portals are unmapped, and the model comes back for its end.
    /// Where the guest has the slot's power off, the slot is empty then. Else the function stays, with what the model
    /// says remains, until the guest switches the power off. `None` if the slot has no vdev.
    pub fn end(&mut self, slot: Slot, actions: Actions<'_>) -> Option<Box<dyn VdevRegisters>> {
        let model = self.function(slot)?.end(actions)?;
        self.update_decoding(actions);
        if let Some(port) = self.ports.get_mut(slot.index()) {
            port.finish(actions);
        }
        Some(model)
    }

    /// Keeps the portals of a vdev unmapped, or has them where its BARs are again.
    pub fn withhold_portals(&mut self, slot: Slot, withhold: bool, actions: Actions<'_>) {
        if let Some(function) = self.function(slot) {
            function.withhold_portals(withhold);
        }
        self.update_decoding(actions);
    }

    /// The slots of vdevs that have not ended.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        (0u8..=u8::MAX)
            .zip(&self.ports)
            .filter(|(_, port)| port.function().is_some_and(|function| !function.has_ended()))
            .map(|(i, _)| Slot(i))
    }

    /// The model in a slot, for the lifecycle and the monitor.
    pub fn model(&mut self, slot: Slot) -> Option<&mut dyn VdevRegisters> {
        self.function(slot)?.model()
    }

    /// Why the function in a slot is without its slice: that did not stop when it was reset.
    pub fn failed(&self, slot: Slot) -> Option<&QuiesceFailed> {
        self.ports.get(slot.index())?.function()?.failed()
    }

    /// Accesses to portals that exited: each submission, where portals are trapped; where they are mapped, those while
    /// one was not, which a driver that behaves does not do.
    pub fn portal_traps(&self, slot: Slot) -> u64 {
        let function = self.ports.get(slot.index()).and_then(Port::function);
        function.map_or(0, |function| function.portal_traps())
    }

    /// Accesses to PCI windows where no BAR answered.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// The physical interrupt behind `vector` of a vdev came: what its model makes of it is sent, or kept pending.
    pub fn interrupt(&mut self, slot: Slot, vector: u16, actions: Actions<'_>) {
        if let Some(function) = self.function(slot) {
            function.interrupt(vector, actions);
            function.ask_for_attention(actions);
        }
    }

    /// Masks, unmasks or triggers vectors of a vdev, for the host: on top of what the guest does with them. What is posted
    /// to the guest does not come by here.
    ///
    /// # Errors
    /// When the slot has no vdev, or that no such vector; when one is to be triggered that the guest has not set up.
    pub fn control_vectors(
        &mut self,
        slot: Slot,
        which: Vectors,
        control: VectorControl,
        actions: Actions<'_>,
    ) -> Result<(), Refusal> {
        match self.function(slot) {
            Some(function) => function.control_vectors(which, control, actions),
            None => Err(Refusal::new(format!("{which}"), "there is no vdev in its slot", "see `vdevs`")),
        }
    }

    /// The vectors of a vdev, for the monitor.
    pub fn vectors(&self, slot: Slot) -> Vec<VectorInfo> {
        let function = self.ports.get(slot.index()).and_then(Port::function);
        function.map(VdevFunction::vectors).unwrap_or_default()
    }

    /// Something happened on the device that a vdev is to hear of ([`VdevRegisters::device_event`]).
    pub fn device_event(&mut self, slot: Slot, actions: Actions<'_>) {
        if let Some(function) = self.function(slot) {
            function.device_event(actions);
        }
    }

    /// After a write of the guest's: where it has changed which messages a function sends, has the physical interrupts
    /// behind them posted to it, or not. `posting` says for a message whether, and how, that is possible.
    pub fn route_interrupts(&mut self, posting: &mut dyn FnMut(MsiMessage) -> Option<Posting>) {
        if let Some(place) = self.rerouted.take()
            && let Some(function) = self.ports.get_mut(place).and_then(Port::function_mut)
        {
            function.route_interrupts(posting);
        }
    }

    /// Reads configuration space: `offset` is bus 27:20, device 19:15, function 14:12, register 11:0.
    pub fn ecam_read(&mut self, offset: u64, size: u8) -> u64 {
        let register = offset & REGISTER;
        let value = match self.target(offset) {
            Target::Bridge => self.bridge.read(register, size),
            Target::Port(place) => self.ports.get(place).map_or(u64::MAX, |port| port.read(register, size)),
            Target::Function(place) => {
                let function = self.ports.get_mut(place).and_then(Port::reachable);
                function.map_or(u64::MAX, |function| function.config_read(register, size))
            }
            Target::Nobody => u64::MAX,
        };
        value & all_ones(size)
    }

    /// Writes configuration space.
    pub fn ecam_write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>) {
        let register = offset & REGISTER;
        match self.target(offset) {
            Target::Port(place) => {
                if let Some(port) = self.ports.get_mut(place) {
                    let change = port.write(register, size, value);
                    self.after(place, change, actions);
                }
            }
            Target::Function(place) => self.function_write(place, register, size, value, actions),
            Target::Bridge | Target::Nobody => {}
        }
    }

    fn function_write(&mut self, place: usize, register: u64, size: u8, value: u64, actions: Actions<'_>) {
        let Some(function) = self.ports.get_mut(place).and_then(Port::reachable) else {
            return;
        };
        match function.config_write(register, size, value, actions) {
            Change::Nothing => {}
            Change::Decoding => self.update_decoding(actions),
            Change::Reset => self.reset(place, actions),
        }
        self.settle(place, actions);
    }

    /// Whom an access to configuration space is for. A bus that several ports lead to is the first one's.
    fn target(&self, offset: u64) -> Target {
        let (bus, place) = (offset >> 20, (offset >> 12) as u8);
        let Ok(bus) = u8::try_from(bus) else {
            return Target::Nobody;
        };
        if bus == 0 {
            return match place.checked_sub(FUNCTIONS) {
                Some(port) => Target::Port(port.into()),
                None if place == 0 => Target::Bridge,
                None => Target::Nobody,
            };
        }
        match self.ports.iter().position(|port| port.leads_to(bus)) {
            // On a link there is device 0 only.
            Some(port) if place == 0 && self.ports.get(port).is_some_and(|port| port.secondary() == bus) => {
                Target::Function(port)
            }
            _ => Target::Nobody,
        }
    }

    /// Draws the consequences of a change in a port or its slot.
    fn after(&mut self, place: usize, change: PortChange, actions: Actions<'_>) {
        if change.link_down {
            self.reset(place, actions);
        } else if change.decoding {
            self.update_decoding(actions);
        }
        if let Some(port) = self.ports.get_mut(place) {
            port.finish(actions);
        }
        self.settle(place, actions);
    }

    /// To be called after what may have begun something on the device, or changed what a function sends.
    fn settle(&mut self, place: usize, actions: Actions<'_>) {
        if let Some(function) = self.ports.get_mut(place).and_then(Port::function_mut) {
            function.ask_for_attention(actions);
            if function.interrupts_changed() {
                self.rerouted = Some(place);
            }
        }
    }

    /// Resets the function in a slot, by itself or with its link.
    fn reset(&mut self, place: usize, actions: Actions<'_>) {
        if let Some(function) = self.ports.get_mut(place).and_then(Port::function_mut) {
            function.reset_registers();
            function.take_interrupts_back();
        }
        // The portals go first: nothing is submitted while the slice is reset.
        self.update_decoding(actions);
        let function = self.ports.get_mut(place).and_then(Port::function_mut);
        if let Some(Err(failed)) = function.map(VdevFunction::reset_model) {
            self.failed_resets = self.failed_resets.saturating_add(1);
            // The guest can do this for ever: lines at 1, 2, 4, 8, …
            if self.failed_resets.is_power_of_two() {
                log::error!(
                    "vdev in slot {}: did not stop at a reset: {} ({} so far)",
                    place + 1,
                    failed.why,
                    self.failed_resets
                );
            }
        }
    }

    fn decode(&mut self, address: u64, size: u8) -> Option<(usize, &mut VdevFunction, u8, u64)> {
        let holds = |d: &Decoded| {
            let offset = address.checked_sub(d.start);
            let end = offset.and_then(|offset| offset.checked_add(u64::from(size.max(1))));
            end.is_some_and(|end| end <= d.len)
        };
        let hit = look_up(&self.decoded, &mut self.last, |d| d.start <= address, holds);
        let Some(Decoded { start, slot, bar, .. }) = hit.copied() else {
            self.unclaimed = self.unclaimed.saturating_add(1);
            return None;
        };
        let function = self.ports.get_mut(slot)?.function_mut()?;
        Some((slot, function, bar, address - start))
    }

    /// Reads from a PCI window; all ones where no BAR answers.
    pub fn mmio_read(&mut self, address: u64, size: u8) -> u64 {
        match self.decode(address, size) {
            Some((_, function, bar, offset)) => function.bar_read(bar, offset, size),
            None => all_ones(size),
        }
    }

    /// Writes to a PCI window.
    pub fn mmio_write(&mut self, address: u64, size: u8, value: u64, actions: Actions<'_>) {
        if let Some((place, function, bar, offset)) = self.decode(address, size) {
            function.bar_write(bar, offset, size, value, actions);
            self.settle(place, actions);
        }
    }

    /// A store of 64 bytes at once to a PCI window, at a multiple of 64. It reaches the vdev's model as one
    /// ([`VdevRegisters::submit`]), or nothing: registers are at most 8 bytes wide.
    pub fn mmio_store64(&mut self, address: u64, bytes: &[u8; 64], actions: Actions<'_>) {
        const LEN: u8 = 64;
        if !address.is_multiple_of(LEN.into()) {
            return;
        }
        if let Some((_, function, bar, offset)) = self.decode(address, LEN) {
            function.bar_store64(bar, offset, bytes, actions);
            function.ask_for_attention(actions);
        }
    }

    fn function(&mut self, slot: Slot) -> Option<&mut VdevFunction> {
        self.ports.get_mut(slot.index())?.function_mut()
    }

    /// Finds out anew which BARs answer, and moves the portals after them.
    fn update_decoding(&mut self, actions: Actions<'_>) {
        let mut decoded: Vec<Decoded> = Vec::new();
        for (slot, port) in self.ports.iter().enumerate() {
            for (bar, start, len) in port.function().into_iter().flat_map(VdevFunction::claims) {
                let in_window =
                    self.windows.iter().any(|w| w.contains(start, len)) && port.passes(start, len);
                let at = decoded.partition_point(|d| d.start < start);
                let free_below = at.checked_sub(1).is_none_or(|i| decoded[i].start + decoded[i].len <= start);
                let free_above = decoded.get(at).is_none_or(|d| start.saturating_add(len) <= d.start);
                if in_window && free_below && free_above {
                    decoded.insert(at, Decoded { start, len, slot, bar });
                }
            }
        }
        self.decoded = decoded;

        let mut wanted = Vec::new();
        for d in &self.decoded {
            let function = self.ports.get(d.slot).and_then(Port::function);
            let portals = function.into_iter().flat_map(VdevFunction::portals);
            wanted.extend(portals.filter(|p| p.bar == d.bar).map(|p| Mapped {
                guest: GuestPhys(d.start + p.offset),
                host: p.host,
                len: p.len,
            }));
        }
        let before = core::mem::replace(&mut self.mapped, wanted);
        for gone in before.iter().filter(|m| !self.mapped.contains(m)) {
            actions(Action::UnmapPortal { guest: gone.guest, len: gone.len });
        }
        for new in self.mapped.iter().filter(|m| !before.contains(m)) {
            actions(Action::MapPortal { guest: new.guest, host: new.host, len: new.len });
        }
    }
}

/// The register of an ECAM offset.
const REGISTER: u64 = 0xfff;

/// Whom an access to configuration space is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// The host bridge.
    Bridge,
    /// Where a port would be on bus 0.
    Port(usize),
    /// What is in the slot of a port.
    Function(usize),
    Nobody,
}

/// A slot's parts of the windows: what firmware gives its port.
fn parts(windows: &[PciWindow], slot: Slot) -> Vec<PciWindow> {
    windows.iter().map(|window| window.part(slot.number())).collect()
}
