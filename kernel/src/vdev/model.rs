// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model of a vdev, shared between the guest's bus and the lifecycle.
//!
//! **Principle.** The bus serves the guest's accesses through [`SharedModel::guest_side`]; the lifecycle keeps the
//! right to end the model. When the vdev ends, the bus has let go of it first and serves what remains of the
//! registers; a side that is left over reads as all ones.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use spin::Mutex;

use crate::dev::bus::all_ones;
use crate::irq::msi::Posting;
use crate::vdev::interrupt::Interrupts;
use crate::vdev::parent::{
    InterruptBinding, Paused, PciIdentity, Portal, QuiesceFailed, Remains, VdevModel, VdevRegisters,
};

/// A model, until the vdev ends.
pub struct SharedModel {
    identity: PciIdentity,
    portals: Vec<Portal>,
    interrupts: Vec<InterruptBinding>,
    model: Mutex<Option<Box<dyn VdevModel>>>,
    /// What it said of a pause at the end of the last call.
    paused: AtomicU8,
}

impl SharedModel {
    /// A model that has just been created.
    pub fn new(model: Box<dyn VdevModel>) -> Arc<Self> {
        Arc::new(Self {
            identity: model.identity(),
            portals: model.portals(),
            interrupts: model.interrupts(),
            model: Mutex::new(Some(model)),
            paused: AtomicU8::new(Paused::number(None)),
        })
    }

    /// What the guest's bus gets of it.
    pub fn guest_side(self: &Arc<Self>) -> Box<dyn VdevRegisters> {
        Box::new(GuestSide { model: self.clone(), interrupts: None })
    }

    /// The same for a vdev whose guest may have these posted.
    pub(super) fn guest_side_of(self: &Arc<Self>, interrupts: &Arc<Interrupts>) -> Box<dyn VdevRegisters> {
        Box::new(GuestSide { model: self.clone(), interrupts: Some(interrupts.clone()) })
    }

    /// How it presents itself on the guest's bus.
    pub fn identity(&self) -> &PciIdentity {
        &self.identity
    }

    /// Windows the guest reaches directly.
    pub fn portals(&self) -> &[Portal] {
        &self.portals
    }

    /// Its physical interrupts.
    pub fn interrupts(&self) -> &[InterruptBinding] {
        &self.interrupts
    }

    /// Calls the model, unless the vdev has ended.
    pub fn with<R>(&self, call: impl FnOnce(&mut dyn VdevModel) -> R) -> Option<R> {
        self.model.lock().as_mut().map(|model| {
            let result = call(model.as_mut());
            self.paused.store(Paused::number(model.paused()), Ordering::Release);
            result
        })
    }

    /// What the model says about itself; nothing while it is busy.
    pub(super) fn describe(&self) -> Vec<(&'static str, String)> {
        self.model.try_lock().and_then(|model| model.as_deref().map(VdevModel::describe)).unwrap_or_default()
    }

    /// What it has under way while its VM is paused, as of the last call; `None` while it is not. Waits for no model.
    pub(super) fn paused(&self) -> Option<Paused> {
        Paused::from_number(self.paused.load(Ordering::Acquire))
    }

    pub(super) fn take(&self) -> Option<Box<dyn VdevModel>> {
        self.model.lock().take()
    }
}

impl fmt::Debug for SharedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedModel").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What the guest's bus holds: everything of a model but its beginning and its end.
struct GuestSide {
    model: Arc<SharedModel>,
    interrupts: Option<Arc<Interrupts>>,
}

const ENDED: &str = "the vdev has ended";

impl VdevRegisters for GuestSide {
    fn identity(&self) -> PciIdentity {
        self.model.identity.clone()
    }

    fn portals(&self) -> Vec<Portal> {
        self.model.portals.clone()
    }

    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        self.model.with(|model| model.read(bar, offset, size)).unwrap_or(all_ones(size))
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        self.model.with(|model| model.write(bar, offset, size, value, raise));
    }

    fn submit(&mut self, bar: u8, offset: u64, descriptor: &[u8; 64], raise: &mut dyn FnMut(u16)) {
        self.model.with(|model| model.submit(bar, offset, descriptor, raise));
    }

    fn interrupt(&mut self, vector: u16, raise: &mut dyn FnMut(u16)) {
        self.model.with(|model| model.interrupt(vector, raise));
    }

    fn set_bus_master(&mut self, enabled: bool, raise: &mut dyn FnMut(u16)) {
        self.model.with(|model| model.set_bus_master(enabled, raise));
    }

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        self.model.with(|model| model.reset()).unwrap_or(Err(QuiesceFailed { why: ENDED.to_string() }))
    }

    fn is_waiting(&self) -> bool {
        self.model.with(|model| model.is_waiting()).unwrap_or(false)
    }

    fn device_event(&mut self, raise: &mut dyn FnMut(u16)) {
        self.model.with(|model| model.device_event(raise));
    }

    fn route_interrupt(&mut self, vector: u16, to: Option<&Posting>) {
        if let Some(interrupts) = &self.interrupts {
            interrupts.redirect(vector, to);
        }
    }

    fn remains(&mut self, raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        self.model.with(|model| model.remains(raise)).unwrap_or_else(|| Box::new(Nothing))
    }
}

/// Where the model went before the bus let go: nothing answers.
struct Nothing;

impl Remains for Nothing {
    fn read(&mut self, _bar: u8, _offset: u64, size: u8) -> u64 {
        all_ones(size)
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _raise: &mut dyn FnMut(u16)) {}
}
