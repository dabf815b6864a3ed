// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's PCI bus 0: a host bridge, and one function per vdev.
//!
//! **Principle.** The guest may move BARs as it likes, but a BAR is decoded only where it lies wholly in
//! a PCI window and clear of the BARs before it. Windows never hold RAM or another device, so a portal
//! (a page of the physical device) can appear nowhere else.
//! **Invariant.** The portals mapped in the guest, as told by [`Action::MapPortal`] and
//! [`Action::UnmapPortal`], are exactly those of the BARs decoded now. They never overlap. Before a slice
//! is reset or taken away, its portals are gone.
//!
//! Source: PCI Express Base 5.0, section 7.2.2 (ECAM) and chapter 7; PCI Local Bus 3.0, section 6.2.5.

mod config;
mod function;
mod msix;

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use crate::base::addr::{GuestPhys, HostPhys};
use crate::base::refusal::Refusal;
use crate::dev::bus::{all_ones, look_up};
use crate::irq::msi::Posting;
use crate::vdev::parent::{Bar, QuiesceFailed, VdevRegisters};
use crate::vm::exit::{Action, Actions, MsiMessage};

use config::ConfigSpace;
use function::{Change, VdevFunction};

/// Device numbers on a bus; 0 is the host bridge.
const DEVICES: usize = 32;
/// Header type, and its bit of a device with several functions.
const HEADER_TYPE: u64 = 0x0e;
const MULTIFUNCTION: u64 = 1 << 7;
/// Functions of a device.
const FUNCTIONS: usize = 8;

/// A vdev's place on the bus: a function of one of the devices 1..=31. Those that are function 0 of a device come first:
/// more than 31 vdevs are functions of devices that have one already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u8);

impl Slot {
    /// The device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function's number in it.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }

    /// Device 31:3, function 2:0: what it is known by on its bus.
    pub const fn routing_id(self) -> u8 {
        self.0
    }
}

/// The places that are that function of their device.
fn places(function: usize) -> impl Iterator<Item = usize> {
    (1..DEVICES).map(move |device| device << 3 | function)
}

/// A range of guest-physical addresses that the platform leaves to BARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciWindow {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether prefetchable BARs are put here after reset, or the others.
    pub prefetchable: bool,
}

impl PciWindow {
    /// For BARs that are not prefetchable.
    pub const fn fixed(start: u64, len: u64) -> Self {
        Self { start, len, prefetchable: false }
    }

    /// For prefetchable BARs.
    pub const fn prefetchable(start: u64, len: u64) -> Self {
        Self { start, len, prefetchable: true }
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

/// The guest's PCI bus.
pub struct PciBus {
    windows: Vec<PciWindow>,
    bridge: ConfigSpace,
    /// By device and function; the first device's stay empty.
    functions: Vec<Option<Box<VdevFunction>>>,
    /// Ascending by start.
    decoded: Vec<Decoded>,
    /// Where in it the last access was: mostly the next one is there, too.
    last: usize,
    mapped: Vec<Mapped>,
    unclaimed: u64,
    /// Function-level resets at which a slice did not stop.
    failed_resets: u64,
    /// The device whose interrupts have changed with the last write.
    rerouted: Option<usize>,
}

impl PciBus {
    /// A bus with a host bridge only. The windows must not overlap RAM or another device.
    pub fn new(windows: &[PciWindow]) -> Self {
        Self {
            windows: windows.to_vec(),
            bridge: ConfigSpace::host_bridge(),
            functions: (0..DEVICES * FUNCTIONS).map(|_| None).collect(),
            decoded: Vec::new(),
            last: 0,
            mapped: Vec::new(),
            unclaimed: 0,
            failed_resets: 0,
            rerouted: None,
        }
    }

    /// Puts a vdev into the first free slot, its BARs assigned, memory decoding off; where there is none, into that
    /// of a vdev that has ended, before a further function of a device: drivers look for these only where the device said
    /// from the start that it has them.
    ///
    /// # Errors
    /// When no slot is free, or a BAR finds no room in the windows; the model is dropped.
    pub fn add(&mut self, model: Box<dyn VdevRegisters>) -> Result<Slot, Refusal> {
        let ended = |i: &usize| self.functions[*i].as_ref().is_some_and(|function| function.has_ended());
        let unused = |i: &usize| self.functions[*i].is_none();
        let free = (0..FUNCTIONS)
            .find_map(|function| places(function).find(unused).or_else(|| places(function).find(ended)))
            .ok_or_else(|| {
                let all = (DEVICES - 1) * FUNCTIONS;
                let why = format!("all {all} places of the PCI bus are taken");
                Refusal::new("vdev", why, "give the VM fewer vdevs")
            })?;
        // One that has ended has no portals that would have to go.
        self.functions[free] = None;
        self.decoded.retain(|decoded| decoded.slot != free);
        let mut taken: Vec<(u64, u64)> =
            self.functions.iter().flatten().flat_map(|function| function.homes()).collect();
        let windows = &self.windows;
        let function = VdevFunction::new(model, |bar| {
            let home = first_fit(windows, &taken, bar)?;
            taken.push((home, bar.size));
            Some(home)
        })?;
        self.functions[free] = Some(Box::new(function));
        Ok(Slot(free as u8))
    }

    /// Ends a vdev as far as the guest is concerned: its portals are unmapped, and the model comes back for its end.
    /// The function stays, with what the model says remains. `None` if the slot has no vdev.
    pub fn end(&mut self, slot: Slot, actions: Actions<'_>) -> Option<Box<dyn VdevRegisters>> {
        let model = self.function(slot)?.end(actions)?;
        self.update_decoding(actions);
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
            .zip(&self.functions)
            .filter(|(_, f)| f.as_ref().is_some_and(|function| !function.has_ended()))
            .map(|(i, _)| Slot(i))
    }

    /// The model in a slot, for the lifecycle and the monitor.
    pub fn model(&mut self, slot: Slot) -> Option<&mut dyn VdevRegisters> {
        self.function(slot)?.model()
    }

    /// Why the function in a slot is without its slice: that did not stop when it was reset.
    pub fn failed(&self, slot: Slot) -> Option<&QuiesceFailed> {
        self.functions.get(usize::from(slot.0))?.as_ref()?.failed()
    }

    /// Accesses to portals that exited: each submission, where portals are trapped; where they are mapped, those while
    /// one was not, which a driver that behaves does not do.
    pub fn portal_traps(&self, slot: Slot) -> u64 {
        let function = self.functions.get(usize::from(slot.0)).and_then(Option::as_ref);
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

    /// Something happened on the device that a vdev is to hear of ([`VdevRegisters::device_event`]).
    pub fn device_event(&mut self, slot: Slot, actions: Actions<'_>) {
        if let Some(function) = self.function(slot) {
            function.device_event(actions);
        }
    }

    /// After a write of the guest's: where it has changed which messages a function sends, has the physical interrupts
    /// behind them posted to it, or not. `posting` says for a message whether, and how, that is possible.
    pub fn route_interrupts(&mut self, posting: &mut dyn FnMut(MsiMessage) -> Option<Posting>) {
        if let Some(device) = self.rerouted.take()
            && let Some(Some(function)) = self.functions.get_mut(device)
        {
            function.route_interrupts(posting);
        }
    }

    /// Reads configuration space: `offset` is bus 27:20, device 19:15, function 14:12, register 11:0.
    pub fn ecam_read(&mut self, offset: u64, size: u8) -> u64 {
        let (place, register) = match ecam_target(offset) {
            Some(target) => target,
            None => return all_ones(size),
        };
        let value = match self.functions.get(place) {
            _ if place == 0 => self.bridge.read(register, size),
            Some(Some(function)) => {
                function.config_read(register, size) | self.multifunction(place, register, size)
            }
            _ => all_ones(size),
        };
        value & all_ones(size)
    }

    /// The bit of the header type that says that a device has more functions than this one, as it lies in a read.
    fn multifunction(&self, place: usize, register: u64, size: u8) -> u64 {
        let first = place & !(FUNCTIONS - 1);
        let more = self.functions[first..first + FUNCTIONS].iter().skip(1).any(Option::is_some);
        match HEADER_TYPE.checked_sub(register) {
            Some(byte) if more && byte < size.into() => MULTIFUNCTION << (8 * byte),
            _ => 0,
        }
    }

    /// Writes configuration space.
    pub fn ecam_write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>) {
        let Some((device, register)) = ecam_target(offset) else {
            return;
        };
        let Some(Some(function)) = self.functions.get_mut(device) else {
            return;
        };
        match function.config_write(register, size, value, actions) {
            Change::Nothing => {}
            Change::Decoding => self.update_decoding(actions),
            Change::Reset => self.function_level_reset(device, actions),
        }
        if let Some(Some(function)) = self.functions.get_mut(device) {
            function.ask_for_attention(actions);
            if function.interrupts_changed() {
                self.rerouted = Some(device);
            }
        }
    }

    fn function_level_reset(&mut self, device: usize, actions: Actions<'_>) {
        if let Some(function) = &mut self.functions[device] {
            function.reset_registers();
            function.take_interrupts_back();
        }
        // The portals go first: nothing is submitted while the slice is reset.
        self.update_decoding(actions);
        if let Some(Err(failed)) = self.functions[device].as_mut().map(|function| function.reset_model()) {
            self.failed_resets = self.failed_resets.saturating_add(1);
            // The guest can do this for ever: lines at 1, 2, 4, 8, …
            if self.failed_resets.is_power_of_two() {
                log::error!(
                    "vdev in slot {device}: did not stop at function-level reset: {} ({} so far)",
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
        let function = self.functions.get_mut(slot)?.as_mut()?;
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
        if let Some((device, function, bar, offset)) = self.decode(address, size) {
            function.bar_write(bar, offset, size, value, actions);
            function.ask_for_attention(actions);
            if function.interrupts_changed() {
                self.rerouted = Some(device);
            }
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
        self.functions.get_mut(usize::from(slot.0))?.as_deref_mut()
    }

    /// Finds out anew which BARs answer, and moves the portals after them.
    fn update_decoding(&mut self, actions: Actions<'_>) {
        let mut decoded: Vec<Decoded> = Vec::new();
        for (slot, function) in self.functions.iter().enumerate() {
            for (bar, start, len) in function.iter().flat_map(|function| function.claims()) {
                let in_window = self.windows.iter().any(|w| contains(w, start, len));
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
            let portals = self.functions[d.slot].iter().flat_map(|function| function.portals());
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

/// Place and register of an ECAM offset; `None` where no function can be.
fn ecam_target(offset: u64) -> Option<(usize, u64)> {
    (offset >> 20 == 0).then_some(((offset >> 12) as usize & 0xff, offset & 0xfff))
}

fn contains(window: &PciWindow, start: u64, len: u64) -> bool {
    start.checked_sub(window.start).and_then(|o| o.checked_add(len)).is_some_and(|end| end <= window.len)
}

/// The lowest aligned address in a fitting window that is clear of `taken` ranges (start, length).
fn first_fit(windows: &[PciWindow], taken: &[(u64, u64)], bar: &Bar) -> Option<u64> {
    let fitting = windows.iter().filter(|w| w.prefetchable == bar.prefetchable);
    for window in fitting {
        let mut at = window.start.checked_next_multiple_of(bar.size)?;
        while contains(window, at, bar.size) {
            let conflict = taken.iter().find(|(start, len)| at < start + len && *start < at + bar.size);
            match conflict {
                None => return Some(at),
                Some((start, len)) => at = (start + len).checked_next_multiple_of(bar.size)?,
            }
        }
    }
    None
}
