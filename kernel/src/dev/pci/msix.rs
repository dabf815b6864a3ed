// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MSI-X table and pending-bit array of one function.
//!
//! **Invariant.** An interrupt raised while MSI-X is enabled is sent at once or its pending bit is set; a
//! pending bit leads to exactly one message, at the moment when nothing masks it any more: the guest, or the host
//! ([`crate::irq::vectors`]). The guest finds the bit in the array whoever masks.
//!
//! Source: PCI Express Base 5.0, sections 6.1.4 and 7.7.2.

use alloc::vec::Vec;

use crate::irq::vectors::VectorControl;
use crate::monitor::info::VectorInfo;
use crate::vm::exit::{Action, Actions, MsiMessage};

/// Bytes of a table entry.
pub(super) const ENTRY_LEN: u64 = 16;
/// Most vectors a function can have.
pub(super) const VECTORS_MAX: u16 = 2048;

/// Dwords of a table entry.
mod dword {
    pub const ADDRESS_LOW: u64 = 0;
    pub const ADDRESS_HIGH: u64 = 1;
    pub const DATA: u64 = 2;
    pub const CONTROL: u64 = 3;
}

/// Vector control: the mask bit.
const MASKED: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    /// What others were told last that it sends.
    sends: Option<MsiMessage>,
    host: HostSide,
}

/// What the host has of an entry. A reset of the function leaves it.
#[derive(Clone, Copy, Default, Debug)]
struct HostSide {
    masked: bool,
    /// Each message masks it.
    automask: bool,
    /// Messages sent.
    delivered: u64,
    /// Interrupts that something masked.
    pended: u64,
    /// Interrupts that were the host's own.
    triggered: u64,
}

impl Entry {
    /// As after reset, for who was told that it sends `sends`.
    const fn reset(sends: Option<MsiMessage>, host: HostSide) -> Self {
        Self { message: MsiMessage { address: 0, data: 0 }, masked: true, sends, host }
    }

    fn is_masked(&self) -> bool {
        self.masked || self.host.masked
    }

    /// Whether the guest has given it a message: at address 0 is no interrupt controller.
    fn is_programmed(&self) -> bool {
        self.message.address != 0
    }

    fn send(&mut self, actions: Actions<'_>) {
        self.host.delivered = self.host.delivered.saturating_add(1);
        self.host.masked |= self.host.automask;
        actions(Action::Message(self.message));
    }
}

/// Whether the function as a whole may send: MSI-X enabled, not masked, and a bus master.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gate {
    pub enabled: bool,
    pub open: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Msix {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    /// What entries send may have changed.
    changed: bool,
}

/// Length of the pending-bit array of `vectors` vectors, in bytes.
pub(super) fn pba_len(vectors: u16) -> u64 {
    u64::from(vectors).div_ceil(64) * 8
}

impl Msix {
    pub(super) fn new(vectors: u16) -> Self {
        Self {
            entries: alloc::vec![Entry::reset(None, HostSide::default()); usize::from(vectors)],
            pending: alloc::vec![0; usize::from(vectors).div_ceil(64)],
            changed: false,
        }
    }

    /// As after a reset of the function.
    pub(super) fn reset(&mut self) {
        self.entries.iter_mut().for_each(|entry| *entry = Entry::reset(entry.sends, entry.host));
        self.pending.fill(0);
        self.changed = true;
    }

    /// The gate has changed.
    pub(super) fn note_gate(&mut self) {
        self.changed = true;
    }

    /// Whether [`Msix::tell`] has something to tell.
    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Tells which vectors send something else than at the last call, and what: nothing while they are masked.
    pub(super) fn tell(&mut self, gate: Gate, told: &mut dyn FnMut(u16, Option<MsiMessage>)) {
        self.changed = false;
        let open = gate.enabled && gate.open;
        for (vector, entry) in (0..).zip(&mut self.entries) {
            let sends = (open && !entry.masked).then_some(entry.message);
            if sends != entry.sends {
                entry.sends = sends;
                told(vector, sends);
            }
        }
    }

    /// Length of the table in bytes.
    pub(super) fn table_len(&self) -> u64 {
        self.entries.len() as u64 * ENTRY_LEN
    }

    /// An interrupt of the function. Without MSI-X enabled there is no way to send or keep it.
    pub(super) fn raise(&mut self, vector: u16, gate: Gate, actions: Actions<'_>) {
        let index = usize::from(vector);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if !gate.enabled {
            return;
        }
        if gate.open && !entry.is_masked() {
            entry.send(actions);
        } else if let Some(word) = self.pending.get_mut(index / 64) {
            entry.host.pended = entry.host.pended.saturating_add(1);
            *word |= 1 << (index % 64);
        }
    }

    /// The host's side of one vector; what it lets through is sent. Nothing where there is no such vector.
    pub(super) fn control(&mut self, vector: u16, control: VectorControl, gate: Gate, actions: Actions<'_>) {
        let Some(Entry { host, .. }) = self.entries.get_mut(usize::from(vector)) else {
            return;
        };
        match control {
            VectorControl::Mask => host.masked = true,
            VectorControl::Unmask => {
                host.masked = false;
                self.flush(gate, actions);
            }
            VectorControl::Automask(on) => host.automask = on,
            VectorControl::Trigger => {
                host.triggered = host.triggered.saturating_add(1);
                self.raise(vector, gate, actions);
            }
        }
    }

    /// Whether the guest has given a vector a message.
    pub(super) fn is_programmed(&self, vector: u16) -> bool {
        self.entries.get(usize::from(vector)).is_some_and(Entry::is_programmed)
    }

    /// The host lets go of its vectors, for good: what it held back is sent.
    pub(super) fn release(&mut self, gate: Gate, actions: Actions<'_>) {
        self.entries.iter_mut().for_each(|Entry { host, .. }| (host.masked, host.automask) = (false, false));
        self.flush(gate, actions);
    }

    fn is_pending(&self, index: usize) -> bool {
        self.pending.get(index / 64).is_some_and(|word| *word & 1 << (index % 64) != 0)
    }

    /// Each vector, for the monitor.
    pub(super) fn describe(&self, gate: Gate) -> Vec<VectorInfo> {
        let info = |(index, entry): (usize, &Entry)| VectorInfo {
            vector: index as u16,
            guest: match (gate, entry) {
                (Gate { enabled: false, .. }, _) => "off",
                (_, entry) if !entry.is_programmed() => "unused",
                (Gate { open: true, .. }, Entry { masked: false, .. }) => "open",
                _ => "masked",
            }
            .into(),
            masked: entry.host.masked,
            automask: entry.host.automask,
            pending: self.is_pending(index),
            delivered: entry.host.delivered,
            pended: entry.host.pended,
            triggered: entry.host.triggered,
        };
        self.entries.iter().enumerate().map(info).collect()
    }

    /// Sends what is pending and no longer masked.
    pub(super) fn flush(&mut self, gate: Gate, actions: Actions<'_>) {
        if !gate.enabled || !gate.open {
            return;
        }
        for (entries, word) in self.entries.chunks_mut(64).zip(&mut self.pending) {
            for (bit, entry) in entries.iter_mut().enumerate() {
                if *word & 1 << bit != 0 && !entry.is_masked() {
                    *word &= !(1 << bit);
                    entry.send(actions);
                }
            }
        }
    }

    fn dword(&self, offset: u64) -> u32 {
        let entry = usize::try_from(offset / ENTRY_LEN).ok().and_then(|i| self.entries.get(i));
        let Some(entry) = entry else { return 0 };
        match offset % ENTRY_LEN / 4 {
            dword::ADDRESS_LOW => entry.message.address as u32,
            dword::ADDRESS_HIGH => (entry.message.address >> 32) as u32,
            dword::DATA => entry.message.data,
            _ => u32::from(entry.masked),
        }
    }

    fn set_dword(&mut self, offset: u64, value: u32) {
        let entry = usize::try_from(offset / ENTRY_LEN).ok().and_then(|i| self.entries.get_mut(i));
        let Some(entry) = entry else { return };
        self.changed = true;
        let message = &mut entry.message;
        match offset % ENTRY_LEN / 4 {
            dword::ADDRESS_LOW => message.address = message.address & !0xffff_ffff | u64::from(value & !3),
            dword::ADDRESS_HIGH => {
                message.address = message.address & 0xffff_ffff | u64::from(value) << 32;
            }
            dword::DATA => message.data = value,
            dword::CONTROL => entry.masked = value & MASKED != 0,
            _ => {}
        }
    }

    /// Reads from the table. Only aligned accesses of 4 or 8 bytes are defined; others read as zero.
    pub(super) fn read_table(&self, offset: u64, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => u64::from(self.dword(offset)),
            8 if offset.is_multiple_of(8) => {
                u64::from(self.dword(offset + 4)) << 32 | u64::from(self.dword(offset))
            }
            _ => 0,
        }
    }

    /// Writes to the table, likewise.
    pub(super) fn write_table(
        &mut self,
        offset: u64,
        size: u8,
        value: u64,
        gate: Gate,
        actions: Actions<'_>,
    ) {
        match size {
            4 if offset.is_multiple_of(4) => self.set_dword(offset, value as u32),
            8 if offset.is_multiple_of(8) => {
                self.set_dword(offset, value as u32);
                self.set_dword(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        self.flush(gate, actions);
    }

    /// Reads from the pending-bit array, likewise.
    pub(super) fn read_pba(&self, offset: u64, size: u8) -> u64 {
        let word = usize::try_from(offset / 8).ok().and_then(|i| self.pending.get(i)).copied().unwrap_or(0);
        match size {
            4 if offset.is_multiple_of(4) => word >> (offset % 8 * 8) & 0xffff_ffff,
            8 if offset.is_multiple_of(8) => word,
            _ => 0,
        }
    }
}
