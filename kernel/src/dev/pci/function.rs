// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vdev as a PCI function: its model behind a configuration space, BARs and MSI-X.
//!
//! **Principle.** The model knows its own registers only. What PCI adds is here, once for all vdevs, and
//! is checked once when the function is made: afterwards every offset that reaches the model lies in the
//! BAR it is said to lie in.
//!
//! A function whose slice ended, or did not stop at a reset, stays on the bus with what the model says remains of its
//! registers, and without portals: a driver that polls all ones for the end of a command would poll for ever.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use super::config::ConfigSpace;
use super::msix::{self, Gate, Msix};
use crate::base::addr::PAGE_SIZE;
use crate::base::refusal::Refusal;
use crate::dev::bus::all_ones;
use crate::irq::msi::Posting;
use crate::irq::vectors::{VectorControl, Vectors};
use crate::monitor::info::VectorInfo;
use crate::vdev::parent::{Bar, PciIdentity, Portal, QuiesceFailed, Remains, VdevRegisters};
use crate::vm::exit::{Action, Actions, MsiMessage};

/// Largest BAR: more would not fit any window.
const BAR_SIZE_MAX: u64 = 1 << 40;
/// No BAR.
const NO_BARS: usize = 3;

/// What a configuration write changed beyond the registers themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Nothing,
    /// Which addresses the function answers may have changed.
    Decoding,
    /// A function-level reset was asked for; it has not been done.
    Reset,
}

/// One vdev on the guest's PCI bus.
pub(super) struct VdevFunction {
    /// `None` after the end of the vdev.
    model: Option<Box<dyn VdevRegisters>>,
    /// What answers instead of the model: after the end, or after a reset at which the slice did not stop.
    remains: Option<Box<dyn Remains>>,
    identity: PciIdentity,
    portals: Vec<Portal>,
    /// The guest does not reach the portals, wherever its BARs are.
    withheld: bool,
    /// Address of each BAR after reset, in the order of `identity.bars`.
    homes: Vec<u64>,
    config: ConfigSpace,
    msix: Msix,
    /// The port that it is behind lets it send.
    sends: bool,
    /// The slice did not stop when it was reset last.
    failed: Option<QuiesceFailed>,
    portal_traps: u64,
}

/// The model's own faults, found before the guest can meet them.
fn check(identity: &PciIdentity, portals: &[Portal]) -> Result<(), Refusal> {
    let wrong = |why: alloc::string::String| {
        Err(Refusal::new("vdev model", why, "this is an error of the parent's driver"))
    };
    let bars = &identity.bars;
    for (i, bar) in bars.iter().enumerate() {
        let size_fits = bar.size.is_power_of_two() && (PAGE_SIZE..=BAR_SIZE_MAX).contains(&bar.size);
        let repeated = bars.iter().take(i).any(|b| b.index == bar.index);
        if bars.len() > NO_BARS || !matches!(bar.index, 0 | 2 | 4) || repeated || !size_fits {
            return wrong(format!("BAR {} of {:#x} bytes cannot be", bar.index, bar.size));
        }
    }
    let size_of = |index: u8| bars.iter().find(|b| b.index == index).map_or(0, |b| b.size);
    let table = u64::from(identity.msix_table);
    let pba = u64::from(identity.msix_pba);
    let table_end = table + u64::from(identity.msix_vectors) * msix::ENTRY_LEN;
    let pba_end = pba + msix::pba_len(identity.msix_vectors);
    if identity.msix_vectors > 0 {
        let size = size_of(identity.msix_bar);
        let aligned = table.is_multiple_of(8) && pba.is_multiple_of(8);
        let apart = table_end <= pba || pba_end <= table;
        let few = identity.msix_vectors <= msix::VECTORS_MAX;
        if !few || !aligned || !apart || table_end > size || pba_end > size {
            return wrong(format!("{} MSI-X vectors do not fit their BAR", identity.msix_vectors));
        }
    }
    for portal in portals {
        let aligned = [portal.offset, portal.len, portal.host.0].iter().all(|v| v.is_multiple_of(PAGE_SIZE));
        let end = portal.offset.checked_add(portal.len);
        let inside = end.is_some_and(|e| e <= size_of(portal.bar)) && portal.len > 0;
        let touches = |start: u64, last: u64| {
            let same_bar = identity.msix_vectors > 0 && portal.bar == identity.msix_bar;
            same_bar && portal.offset < last && end.is_some_and(|e| start < e)
        };
        if !aligned || !inside || touches(table, table_end) || touches(pba, pba_end) {
            return wrong(format!("portal at {:#x} of BAR {} cannot be", portal.offset, portal.bar));
        }
    }
    Ok(())
}

impl VdevFunction {
    /// Checks the model. `homes` gives a BAR its address after reset.
    pub(super) fn new(
        model: Box<dyn VdevRegisters>,
        mut homes: impl FnMut(&Bar) -> Option<u64>,
    ) -> Result<Self, Refusal> {
        let identity = model.identity();
        let portals = model.portals();
        check(&identity, &portals)?;
        let mut addresses = Vec::new();
        for bar in &identity.bars {
            addresses.push(homes(bar).ok_or_else(|| {
                Refusal::new(
                    "vdev",
                    format!("no room for BAR {} of {:#x} bytes in the PCI windows", bar.index, bar.size),
                    "give the VM fewer vdevs",
                )
            })?);
        }
        let config = ConfigSpace::endpoint(&identity, identity.bars.iter().copied().zip(addresses.clone()));
        let msix = Msix::new(identity.msix_vectors);
        Ok(Self {
            model: Some(model),
            remains: None,
            identity,
            portals,
            withheld: false,
            homes: addresses,
            config,
            msix,
            sends: false,
            failed: None,
            portal_traps: 0,
        })
    }

    /// Lets go of the model, which comes back for the end of the vdev. The caller has the portals unmapped. `None`
    /// where that was done before.
    pub(super) fn end(&mut self, actions: Actions<'_>) -> Option<Box<dyn VdevRegisters>> {
        self.take_interrupts_back();
        let mut model = self.model.take()?;
        // A driver that waits for an interrupt is not to wait for ever.
        self.msix.release(self.gate(), actions);
        if self.remains.is_none() {
            let (gate, msix) = (self.gate(), &mut self.msix);
            self.remains = Some(model.remains(&mut |vector| msix.raise(vector, gate, actions)));
        }
        Some(model)
    }

    /// Whether the vdev has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.model.is_none()
    }

    pub(super) fn model(&mut self) -> Option<&mut dyn VdevRegisters> {
        match &mut self.model {
            Some(model) => Some(model.as_mut()),
            None => None,
        }
    }

    /// To be called after what may have begun something on the device.
    pub(super) fn ask_for_attention(&self, actions: Actions<'_>) {
        if self.model.as_ref().is_some_and(|model| model.is_waiting()) {
            actions(Action::Attend);
        }
    }

    pub(super) fn failed(&self) -> Option<&QuiesceFailed> {
        self.failed.as_ref()
    }

    /// Stores of 64 bytes that exited, and other accesses to portal pages that did although the guest reaches them
    /// directly: those while the portal was not mapped.
    pub(super) fn portal_traps(&self) -> u64 {
        self.portal_traps
    }

    /// The ranges that the BARs claim now: BAR index, start and length.
    pub(super) fn claims(&self) -> impl Iterator<Item = (u8, u64, u64)> {
        let on = self.config.memory_enabled();
        self.identity.bars.iter().filter(move |_| on).map(|b| (b.index, self.config.bar(b.index), b.size))
    }

    /// What is to be mapped where the BARs answer: nothing where the slice is not the guest's to use.
    pub(super) fn portals(&self) -> &[Portal] {
        if self.withheld || self.remains.is_some() { &[] } else { &self.portals }
    }

    pub(super) fn withhold_portals(&mut self, withhold: bool) {
        self.withheld = withhold;
    }

    fn gate(&self) -> Gate {
        Gate {
            enabled: self.config.msix_enabled(),
            open: !self.config.msix_function_masked() && self.is_master(),
        }
    }

    fn is_master(&self) -> bool {
        self.sends && self.config.bus_master()
    }

    pub(super) fn config_read(&self, offset: u64, size: u8) -> u64 {
        self.config.read(offset, size)
    }

    pub(super) fn config_write(&mut self, offset: u64, size: u8, value: u64, actions: Actions<'_>) -> Change {
        let claims = |f: &Self| f.claims().collect::<Vec<_>>();
        let before = claims(self);
        let reset = self.watched(actions, |function| function.config.write(offset, size, value));
        match reset {
            true => Change::Reset,
            false if claims(self) == before => Change::Nothing,
            false => Change::Decoding,
        }
    }

    /// Whether the port that it is behind lets it send: without, it is no bus master, whatever its own register says.
    pub(super) fn let_send(&mut self, sends: bool, actions: Actions<'_>) {
        self.watched(actions, |function| function.sends = sends);
    }

    /// Does what may change whether it may send, and draws the consequences.
    fn watched<T>(&mut self, actions: Actions<'_>, change: impl FnOnce(&mut Self) -> T) -> T {
        let (master_before, gate_before) = (self.is_master(), self.gate());
        let changed = change(self);
        let (master, gate) = (self.is_master(), self.gate());
        if gate != gate_before {
            self.msix.note_gate();
            if !gate.open {
                self.take_interrupts_back();
            }
        }
        if let (Some(model), None) = (&mut self.model, &self.remains)
            && master != master_before
        {
            let msix = &mut self.msix;
            model.set_bus_master(master, &mut |vector| msix.raise(vector, gate, actions));
        }
        self.msix.flush(gate, actions);
        changed
    }

    /// Registers back to their start, so that the function claims no address. The caller has the portals
    /// unmapped before it calls [`VdevFunction::reset_model`].
    pub(super) fn reset_registers(&mut self) {
        let homes = self.identity.bars.iter().copied().zip(self.homes.iter().copied());
        self.config = ConfigSpace::endpoint(&self.identity, homes);
        self.msix.reset();
    }

    /// Nothing is posted to the guest any more. To be called before what its slice still raises must not reach it.
    pub(super) fn take_interrupts_back(&mut self) {
        if let Some(model) = &mut self.model {
            let closed = Gate { enabled: false, open: false };
            self.msix.tell(closed, &mut |vector, _| model.route_interrupt(vector, None));
            self.msix.note_gate();
        }
    }

    /// Whether [`VdevFunction::route_interrupts`] has something to do.
    pub(super) fn interrupts_changed(&self) -> bool {
        self.msix.has_changed()
    }

    /// Has physical interrupts posted to the guest, where `posting` has a way for what it programmed.
    pub(super) fn route_interrupts(&mut self, posting: &mut dyn FnMut(MsiMessage) -> Option<Posting>) {
        // One whose slice is not the guest's raises nothing.
        let gate = Gate { enabled: self.remains.is_none() && self.gate().enabled, ..self.gate() };
        let Some(model) = self.model.as_mut() else { return };
        self.msix.tell(gate, &mut |vector, sends| {
            model.route_interrupt(vector, sends.and_then(&mut *posting).as_ref());
        });
    }

    /// The slice back to its start. Of one that does not stop the guest has what remains, until a later reset stops
    /// it.
    pub(super) fn reset_model(&mut self) -> Result<(), QuiesceFailed> {
        let Some(model) = &mut self.model else {
            return Ok(());
        };
        match model.reset() {
            Ok(()) => {
                // The registers are at their start already: the model hears that it is no bus master.
                model.set_bus_master(false, &mut |_| {});
                self.failed = None;
                self.remains = None;
                Ok(())
            }
            Err(failed) => {
                // MSI-X is off after the reset, so nothing can be raised.
                self.remains = Some(model.remains(&mut |_| {}));
                self.failed = Some(failed.clone());
                Err(failed)
            }
        }
    }

    /// The physical interrupt behind `vector` came.
    pub(super) fn interrupt(&mut self, vector: u16, actions: Actions<'_>) {
        let gate = self.gate();
        if let (None, Some(model)) = (&self.remains, &mut self.model) {
            let msix = &mut self.msix;
            model.interrupt(vector, &mut |vector| msix.raise(vector, gate, actions));
        }
    }

    /// The host's side of its vectors ([`super::PciBus::control_vectors`]).
    pub(super) fn control_vectors(
        &mut self,
        which: Vectors,
        control: VectorControl,
        actions: Actions<'_>,
    ) -> Result<(), Refusal> {
        let gate = self.gate();
        let all = (0..self.identity.msix_vectors).filter(|vector| which.contain(*vector));
        let mut vectors: Vec<u16> = all.collect();
        if vectors.is_empty() {
            let remedy = match self.identity.msix_vectors {
                0 => "it has none".into(),
                count => format!("it has 0 to {}", count - 1),
            };
            return Err(Refusal::new(format!("{which}"), "there is no such vector", remedy));
        }
        if control == VectorControl::Trigger {
            let refuse = |why: &str| {
                Err(Refusal::new(format!("{which}"), why, "wait until its guest's driver has set it up"))
            };
            if !gate.enabled {
                return refuse("the guest has MSI-X off");
            }
            vectors.retain(|vector| self.msix.is_programmed(*vector));
            if vectors.is_empty() {
                return refuse("the guest has programmed no message");
            }
        }
        for vector in vectors {
            self.msix.control(vector, control, gate, actions);
        }
        Ok(())
    }

    /// Its vectors, for the monitor.
    pub(super) fn vectors(&self) -> Vec<VectorInfo> {
        self.msix.describe(self.gate())
    }

    /// Something happened on the device: the interrupts are the model's own.
    pub(super) fn device_event(&mut self, actions: Actions<'_>) {
        let (gate, told) = (self.gate(), self.remains.is_none());
        if let Some(model) = &mut self.model {
            let msix = &mut self.msix;
            model.device_event(&mut |vector| {
                if told {
                    msix.raise(vector, gate, actions);
                }
            });
        }
    }

    fn in_portal(&self, bar: u8, offset: u64, size: u8) -> bool {
        let end = offset.saturating_add(u64::from(size));
        self.portals().iter().any(|p| p.bar == bar && p.offset < end && offset < p.offset + p.len)
    }

    /// Offset in the MSI-X table or the PBA, where the BAR offset lies in one.
    fn in_msix(&self, bar: u8, offset: u64) -> Option<Structure> {
        if bar != self.identity.msix_bar {
            return None;
        }
        let within = |start: u32, len: u64| offset.checked_sub(u64::from(start)).filter(|o| *o < len);
        let table = within(self.identity.msix_table, self.msix.table_len()).map(Structure::Table);
        let pba_len = msix::pba_len(self.identity.msix_vectors);
        table.or_else(|| within(self.identity.msix_pba, pba_len).map(Structure::PendingBits))
    }

    fn touches_msix(&self, bar: u8, offset: u64, len: u64) -> bool {
        let identity = &self.identity;
        let touches = |start: u32, of: u64| {
            let start = u64::from(start);
            offset < start + of && start < offset.saturating_add(len)
        };
        bar == identity.msix_bar
            && (touches(identity.msix_table, self.msix.table_len())
                || touches(identity.msix_pba, msix::pba_len(identity.msix_vectors)))
    }

    pub(super) fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if self.in_portal(bar, offset, size) {
            self.portal_traps = self.portal_traps.saturating_add(1);
            return all_ones(size);
        }
        let value = match self.in_msix(bar, offset) {
            Some(Structure::Table(at)) => self.msix.read_table(at, size),
            Some(Structure::PendingBits(at)) => self.msix.read_pba(at, size),
            None => match (&mut self.remains, &mut self.model) {
                (Some(remains), _) => remains.read(bar, offset, size),
                (None, Some(model)) => model.read(bar, offset, size),
                (None, None) => all_ones(size),
            },
        };
        value & all_ones(size)
    }

    pub(super) fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64, actions: Actions<'_>) {
        if self.in_portal(bar, offset, size) {
            self.portal_traps = self.portal_traps.saturating_add(1);
            return;
        }
        let value = value & all_ones(size);
        let gate = self.gate();
        match self.in_msix(bar, offset) {
            Some(Structure::Table(at)) => self.msix.write_table(at, size, value, gate, actions),
            // The PBA is read-only.
            Some(Structure::PendingBits(_)) => {}
            None => {
                let msix = &mut self.msix;
                let raise = &mut |vector| msix.raise(vector, gate, actions);
                match (&mut self.remains, &mut self.model) {
                    (Some(remains), _) => remains.write(bar, offset, size, value, raise),
                    (None, Some(model)) => model.write(bar, offset, size, value, raise),
                    (None, None) => {}
                }
            }
        }
    }

    /// A store of 64 bytes at once. MSI-X structures take none: what comes of accesses other than of 4 and 8 bytes is
    /// undefined (PCI Express Base 5.0, 6.1.4.2). Nor does what remains of a slice.
    pub(super) fn bar_store64(&mut self, bar: u8, offset: u64, bytes: &[u8; 64], actions: Actions<'_>) {
        const LEN: u8 = 64;
        if self.in_portal(bar, offset, LEN) {
            self.portal_traps = self.portal_traps.saturating_add(1);
            return;
        }
        if self.touches_msix(bar, offset, LEN.into()) {
            return;
        }
        let gate = self.gate();
        if let (None, Some(model)) = (&self.remains, &mut self.model) {
            let msix = &mut self.msix;
            self.portal_traps = self.portal_traps.saturating_add(1);
            model.submit(bar, offset, bytes, &mut |vector| msix.raise(vector, gate, actions));
        }
    }
}

/// Which MSI-X structure, and the offset in it.
enum Structure {
    Table(u64),
    PendingBits(u64),
}
