// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest sees of its work queue: a small DSA of its own with one queue, one group, one engine.
//!
//! **Principle.** Registers and configuration tables are a shadow (`shadow`); a command of the guest
//! becomes, in `commands`, at most a command on the leased queue.
//! Nothing the guest writes is copied to the device but two limits, and these are clamped.
//!
//! The guest sees 8086:0b25, which every Linux since 5.18 knows, whatever the physical part is.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::allowance::{Allowance, Withheld};
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::vdev::parent::{
    Attached, Bar, DeviceQuiesced, InterruptBinding, Paused, PciIdentity, Portal, QuiesceFailed, Remains,
    UntranslatedMemory, VdevModel, VdevRegisters,
};

use self::commands::Pending;
use self::remains::DsaRemains;
use self::shadow::{Access, Shadow};
use self::submit::Merge;
use super::Silicon;
use super::commands::error;
use super::descriptor::DESCRIPTOR_BYTES;
use super::device::OPERATION_BATCH;
use super::lease::Lease;
use super::registers::{GenCap, portal};

mod commands;
mod remains;
mod shadow;
mod submit;

const BAR_REGISTERS: u8 = 0;
const BAR_PORTALS: u8 = 2;
const REGISTERS_SIZE: u64 = 0x1_0000;
const PORTALS_SIZE: u64 = portal::STRIDE;
/// Base class 8 (system peripheral), subclass 0x80 (other).
const CLASS_SYSTEM_PERIPHERAL_OTHER: u32 = 0x08_8000;
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PBA: u32 = 0x3000;

/// Vector of the guest's device events (command completion, error).
const VECTOR_MISC: u16 = 0;
/// Both.
const VECTORS: u16 = 2;

/// The model of one vdev.
pub(super) struct DsaVdev<L: Lease> {
    lease: L,
    shadow: Shadow,
    bus_master: bool,
    /// The guest's command that has not ended.
    pending: Option<Pending>,
    /// What is under way while the VM is paused.
    paused: Option<Paused>,
    /// The guest's command has ended, and the interrupt it asked for has not been raised.
    completion_due: bool,
    /// Whether the hypervisor knows that it has to look.
    attended: bool,
    /// Commands the guest gave.
    commands: u64,
    /// Lines that the guest may still cause.
    lines: Allowance,
    /// What it has stored of a descriptor, piece by piece.
    merge: Merge,
}

impl<L: Lease> DsaVdev<L> {
    pub(super) fn new(lease: L, entries: Option<u16>) -> Self {
        let most = lease.entries();
        let size = entries.map_or(most, |entries| entries.min(most));
        let device = lease.device();
        let lines = Allowance::new(device.host.now_ns());
        let mut operations = device.operations;
        if !lease.takes_batches() {
            operations[0] &= !OPERATION_BATCH;
        }
        let mut general = device.capabilities.general;
        if device.untranslated {
            // It is done in pieces, each of which would have to know of the others.
            general.0 &= !GenCap::OVERLAPPING_COPY;
        }
        let shadow = Shadow::new(
            size,
            device.limits(),
            operations,
            general,
            device.capabilities.groups.read_buffers(),
        );
        Self {
            lease,
            shadow,
            bus_master: false,
            pending: None,
            paused: None,
            completion_due: false,
            attended: false,
            commands: 0,
            lines,
            merge: Merge::new(),
        }
    }

    fn title(&self) -> String {
        alloc::format!("{} {}", self.lease.device().name, self.lease.name())
    }

    fn check_unattached(&self) -> Result<(), Refusal> {
        match (self.lease.is_attached(), self.lease.pasid()) {
            (false, _) => Ok(()),
            (true, Some(present)) => Err(Refusal::new(
                self.title(),
                alloc::format!("PASID {present} is attached already"),
                "detach it first",
            )),
            (true, None) => {
                Err(Refusal::new(self.title(), "memory is attached already", "end the vdev first"))
            }
        }
    }

    /// A line about the device that the guest caused. It can do so as fast as it writes registers, so all such
    /// lines go through one allowance.
    fn tell(&mut self, what: fmt::Arguments<'_>) {
        let device = self.lease.device();
        if let Some(withheld) = self.lines.take(device.host.now_ns()) {
            log::error!("parent {}: {what}{}", device.name, Withheld(withheld));
        }
    }

    /// Takes note of a reset of the whole device, or of its halt: the guest finds its own halted and in
    /// need of a software reset, and is interrupted if it wants to be.
    fn notice_halt(&mut self, raise: &mut dyn FnMut(u16)) {
        let lost = self.lease.lost_by_reset();
        let halted = lost || self.lease.device().is_halted();
        if halted {
            self.abandon(Err(error::HALTED));
        }
        if self.shadow.is_enabled() && halted {
            self.shadow.halt();
            if self.shadow.halt_interrupts() {
                raise(VECTOR_MISC);
            }
        }
    }

    /// Has the physical queue stopped at once; what the guest asks of it next waits for that.
    fn stop(&mut self) {
        self.abandon(Err(error::HARDWARE));
        self.note_attention();
        self.lease.stop();
    }

    /// Tells the device's driver whether somebody has to look after the guest's command.
    fn note_attention(&mut self) {
        let wanted = match self.paused {
            // A command of the guest's waits with what is held.
            Some(paused) => paused == Paused::Draining,
            None => self.pending.is_some() || self.completion_due,
        };
        if wanted != self.attended {
            self.attended = wanted;
            let count = &self.lease.device().attended;
            if wanted {
                count.fetch_add(1, Ordering::AcqRel);
            } else {
                count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Looks how far a pause is.
    fn go_on_pausing(&mut self) {
        if self.paused.is_some() {
            self.paused = Some(self.lease.paused(self.pending.is_some()));
            self.note_attention();
        }
    }

    fn quiesce_within(&mut self, patience_ns: u64) -> Result<DeviceQuiesced, QuiesceFailed> {
        self.paused = None;
        self.abandon(Err(error::HARDWARE));
        self.completion_due = false;
        self.note_attention();
        self.lease.quiesce(patience_ns).map_err(|why| QuiesceFailed { why })?;
        self.shadow.function_reset();
        Ok(DeviceQuiesced::confirmed_by_device())
    }

    /// Bus mastering off. A DSA whose configuration changes while it is enabled halts; Linux cannot bring a halted one
    /// back, and turns bus mastering off and on whenever devices sleep or a driver in user space dies. So the halt
    /// lasts only until bus mastering is back. What was in flight is dropped.
    fn suspend(&mut self, raise: &mut dyn FnMut(u16)) {
        if !self.shadow.is_enabled() {
            return;
        }
        // Also true of a queue that is being enabled again: the guest sees it enabled.
        self.shadow.suspend();
        self.stop();
        if self.shadow.halt_interrupts() || self.shadow.error_interrupts() {
            raise(VECTOR_MISC);
        }
    }

    /// Bus mastering on: goes on as before it went off, unless the whole device was reset or halted meanwhile, or the
    /// guest configured its queue so that it cannot be enabled. Then the guest's stays halted.
    fn go_on_as_master(&mut self) {
        if !self.shadow.is_suspended() {
            return;
        }
        let lost = self.lease.lost_by_reset() || self.lease.device().is_halted();
        if lost {
            self.shadow.halt();
        } else if self.shadow.resume() {
            self.enable_again();
            self.note_attention();
        }
    }

    /// Takes over what the event handler left for this queue.
    fn collect_error(&mut self) -> bool {
        let (record, lost) = self.lease.errors().take();
        if let Some(record) = &record {
            self.shadow.record_error(record.for_guest());
        }
        if lost {
            self.shadow.note_lost_errors();
        }
        record.is_some()
    }
}

impl<L: Lease> Drop for DsaVdev<L> {
    fn drop(&mut self) {
        self.pending = None;
        self.completion_due = false;
        self.note_attention();
    }
}

impl<L: Lease> VdevRegisters for DsaVdev<L> {
    fn identity(&self) -> PciIdentity {
        PciIdentity {
            vendor: Silicon::VENDOR,
            device: Silicon::DEVICE_SAPPHIRE_RAPIDS,
            subsystem: (Silicon::VENDOR, 0),
            revision: 0,
            class: CLASS_SYSTEM_PERIPHERAL_OTHER,
            bars: Vec::from([
                Bar { index: BAR_REGISTERS, size: REGISTERS_SIZE, prefetchable: true },
                Bar { index: BAR_PORTALS, size: PORTALS_SIZE, prefetchable: true },
            ]),
            msix_vectors: VECTORS,
            msix_bar: BAR_REGISTERS,
            msix_table: MSIX_TABLE,
            msix_pba: MSIX_PBA,
        }
    }

    fn portals(&self) -> Vec<Portal> {
        // The same physical page behind both of the guest's MSI-X portals: for a dedicated queue the
        // limited and the unlimited one do the same. The IMS portals of the guest lead nowhere.
        let portal = |host: HostPhys| {
            [portal::UNLIMITED_MSIX, portal::LIMITED_MSIX].map(|offset| Portal {
                bar: BAR_PORTALS,
                offset,
                host,
                len: PAGE_SIZE,
            })
        };
        self.lease.portal().map(portal).into_iter().flatten().collect()
    }

    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        match (bar, Access::new(offset, size, REGISTERS_SIZE)) {
            (BAR_REGISTERS, Some(access)) => {
                self.collect_error();
                if self.pending.is_some() {
                    self.proceed();
                    self.note_attention();
                }
                self.shadow.read(access)
            }
            // Portals read as zero.
            _ => 0,
        }
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64, raise: &mut dyn FnMut(u16)) {
        match (bar, Access::new(offset, size, REGISTERS_SIZE)) {
            (BAR_REGISTERS, Some(access)) => {
                for (register, mask, value) in access.words(value) {
                    self.write_register(register, mask, value, raise);
                }
            }
            (BAR_PORTALS, _) if self.lease.device().options.merge_stores => {
                if let Some((slot, descriptor)) = self.merge.store(offset, size, value) {
                    self.submit_descriptor(slot, &descriptor, raise);
                }
            }
            _ => {}
        }
    }

    fn submit(
        &mut self,
        bar: u8,
        offset: u64,
        descriptor: &[u8; DESCRIPTOR_BYTES],
        raise: &mut dyn FnMut(u16),
    ) {
        if bar == BAR_PORTALS {
            self.submit_descriptor(offset, descriptor, raise);
        }
    }

    fn interrupt(&mut self, vector: u16, raise: &mut dyn FnMut(u16)) {
        if self.lease.share().is_none() {
            raise(vector);
            return;
        }
        self.complete(raise);
        if self.pending.is_some() {
            self.proceed();
            self.raise_completion(raise);
        }
    }

    fn set_bus_master(&mut self, enabled: bool, raise: &mut dyn FnMut(u16)) {
        let before = core::mem::replace(&mut self.bus_master, enabled);
        match (before, enabled) {
            (true, false) => self.suspend(raise),
            (false, true) => self.go_on_as_master(),
            _ => {}
        }
    }

    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        self.stop();
        self.completion_due = false;
        self.note_attention();
        self.bus_master = false;
        self.lease.errors().clear();
        self.shadow.function_reset();
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        self.attended || self.lease.is_waiting()
    }

    fn device_event(&mut self, raise: &mut dyn FnMut(u16)) {
        self.notice_halt(raise);
        self.complete(raise);
        self.proceed();
        self.raise_completion(raise);
        if self.collect_error() && self.shadow.error_interrupts() {
            raise(VECTOR_MISC);
        }
        self.go_on_pausing();
    }

    fn remains(&mut self, raise: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        // Whoever waits for the interrupt of a command would wait for ever.
        self.abandon(Err(error::HALTED));
        self.raise_completion(raise);
        Box::new(DsaRemains::of(&self.shadow))
    }
}

impl<L: Lease> VdevModel for DsaVdev<L> {
    fn interrupts(&self) -> Vec<InterruptBinding> {
        Vec::from([self.lease.interrupt()])
    }

    fn window(&self) -> Option<HostPhys> {
        self.lease.window()
    }

    fn attach(&mut self, attached: Attached) -> Result<(), Refusal> {
        self.check_unattached()?;
        let device = self.lease.device();
        let pasid = attached.pasid;
        if device.untranslated || pasid.value() >> device.pasid_bits() != 0 {
            return Err(Refusal::new(
                self.title(),
                alloc::format!("PASID {pasid} does not fit the device's {} bits", device.pasid_bits()),
                "use a smaller PASID",
            ));
        }
        self.lease.attach(&attached);
        Ok(())
    }

    fn attach_untranslated(&mut self, memory: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        self.check_unattached()?;
        self.lease.attach_untranslated(memory).map_err(|refusal| refusal.within(&self.lease.device().name))
    }

    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        let patience = self.lease.device().options.command_deadline_ns;
        self.quiesce_within(patience)
    }

    fn try_quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        self.quiesce_within(0)
    }

    fn pause(&mut self) {
        if self.paused.is_none() {
            self.lease.pause();
            // Until somebody has looked, and the guest has been told of what has ended.
            self.paused = Some(Paused::Draining);
            self.note_attention();
        }
    }

    fn paused(&self) -> Option<Paused> {
        self.paused
    }

    fn resume(&mut self) -> Result<(), String> {
        self.lease.resume()?;
        self.paused = None;
        self.note_attention();
        Ok(())
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let state = match self.lease.is_enabled() {
            Some(true) => "enabled",
            Some(false) => "disabled",
            None => "waits for the device",
        };
        let mut lines = Vec::from([
            ("queue", alloc::format!("{} ({state})", self.lease.queue())),
            ("entries", self.shadow.size().to_string()),
            ("device", self.shadow.state().to_string()),
            ("pasid", self.lease.pasid().map_or_else(|| "none".to_string(), |pasid| pasid.to_string())),
            ("commands", self.commands.to_string()),
        ]);
        lines.extend(self.lease.describe());
        lines
    }
}
