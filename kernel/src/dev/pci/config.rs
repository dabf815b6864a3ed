// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration space of one function: bytes, and which of their bits software may change.
//!
//! **Principle.** A register is its reset value and a mask of writable bits. That is enough for sizing a
//! BAR as well: the address bits below its size are not writable, so ones written to them do not stay.
//!
//! Source: PCI Local Bus 3.0, section 6.1; PCI Express Base 5.0, sections 7.5.3 (PCI Express capability)
//! and 7.7.2 (MSI-X capability). What a root port has is in `port.rs`.

use crate::vdev::parent::{Bar, PciIdentity};

/// Bytes of the part that holds registers. What is above reads as zero: no further capabilities, and no extended ones.
const LEN: usize = 0x90;

/// Register offsets.
pub(super) mod reg {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const CACHE_LINE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    /// PCI Express capability.
    pub const EXPRESS: usize = 0x40;
    pub const DEVICE_CAPABILITIES: usize = EXPRESS + 4;
    pub const DEVICE_CONTROL: usize = EXPRESS + 8;
    pub const LINK_CAPABILITIES: usize = EXPRESS + 0x0c;
    pub const LINK_CONTROL: usize = EXPRESS + 0x10;
    pub const LINK_STATUS: usize = EXPRESS + 0x12;
    pub const LINK_CAPABILITIES_2: usize = EXPRESS + 0x2c;
    pub const LINK_CONTROL_2: usize = EXPRESS + 0x30;
    /// MSI-X capability.
    pub const MSIX: usize = 0x80;
    pub const MSIX_CONTROL: usize = MSIX + 2;
    pub const MSIX_TABLE: usize = MSIX + 4;
    pub const MSIX_PBA: usize = MSIX + 8;
}

/// Command register bits.
mod command {
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const PARITY: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
    pub const WRITABLE: u16 = MEMORY | BUS_MASTER | PARITY | SERR | INTX_DISABLE;
}

const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Capability IDs.
const CAPABILITY_EXPRESS: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;
/// PCI Express capability version 2, device type 0: endpoint.
const EXPRESS_ENDPOINT: u16 = 2;
/// Role-based error reporting.
pub(super) const ROLE_BASED_ERRORS: u32 = 1 << 15;
const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
/// Relaxed ordering and no-snoop enabled, read requests up to 512 bytes.
const DEVICE_CONTROL_RESET: u16 = 1 << 4 | 1 << 11 | 2 << 12;
const DEVICE_CONTROL_WRITABLE: u16 = 0x7fff;
/// Device control, bit 15: initiate function-level reset. In its upper byte.
const INITIATE_RESET: u8 = 1 << 7;

/// A link of one lane at 2.5 GT/s, the least there can be: nothing goes over it.
const LINK: u16 = 1 << 4 | 1;
/// Link capabilities: without power states of its own, in the way of newer links (ASPM Optionality Compliance).
const ASPM_OPTIONAL: u32 = 1 << 22;
/// Link control: ASPM, common clock, extended synch.
pub(super) const LINK_CONTROL_WRITABLE: u16 = 0x00c3;
/// Link status: both ends have the slot's clock.
const SLOT_CLOCK: u16 = 1 << 12;
/// Link capabilities 2: the speed 2.5 GT/s, and that as the target in link control 2.
const SPEEDS: u32 = 1 << 1;
const TARGET_SPEED: u16 = 1;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

/// BAR type bits: 64-bit memory, prefetchable.
const BAR_MEMORY_64: u32 = 2 << 1;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const BAR_TYPE_MASK: u64 = 0xf;

/// Reset values and writable bits of one function.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
}

impl ConfigSpace {
    /// The bridge between processor and PCI bus: there because bus 0 starts with one; it has no registers.
    /// The ID is that of a generic ECAM host bridge, which no driver binds to.
    pub(super) fn host_bridge() -> Self {
        const VENDOR: u16 = 0x1b36;
        const DEVICE: u16 = 0x0008;
        const CLASS_HOST_BRIDGE: u32 = 0x06_0000;
        Self::new(VENDOR, DEVICE, CLASS_HOST_BRIDGE)
    }

    /// A function that says who it is, and nothing else.
    pub(super) fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN] };
        config.set(reg::VENDOR, vendor.to_le_bytes());
        config.set(reg::DEVICE, device.to_le_bytes());
        let [interface, sub, base, _] = class.to_le_bytes();
        config.set(reg::CLASS, [interface, sub, base]);
        config
    }

    /// What functions of both header types have: command and status register, and a PCI Express capability with a link,
    /// behind which `next` is the next one.
    pub(super) fn add_express(&mut self, kind: u16, next: u8, device_capabilities: u32, link: u32) {
        self.allow(reg::COMMAND, command::WRITABLE.to_le_bytes());
        self.set(reg::STATUS, STATUS_CAPABILITIES.to_le_bytes());
        self.allow(reg::CACHE_LINE, [0xff]);
        self.set(reg::CAPABILITIES, [reg::EXPRESS as u8]);
        self.allow(reg::INTERRUPT_LINE, [0xff]);
        self.set(reg::EXPRESS, [CAPABILITY_EXPRESS, next]);
        self.set(reg::EXPRESS + 2, kind.to_le_bytes());
        self.set(reg::DEVICE_CAPABILITIES, device_capabilities.to_le_bytes());
        self.set(reg::DEVICE_CONTROL, DEVICE_CONTROL_RESET.to_le_bytes());
        self.allow(reg::DEVICE_CONTROL, DEVICE_CONTROL_WRITABLE.to_le_bytes());
        self.set(reg::LINK_CAPABILITIES, (u32::from(LINK) | ASPM_OPTIONAL | link).to_le_bytes());
        self.allow(reg::LINK_CONTROL, LINK_CONTROL_WRITABLE.to_le_bytes());
        self.set(reg::LINK_STATUS, (LINK | SLOT_CLOCK).to_le_bytes());
        self.set(reg::LINK_CAPABILITIES_2, SPEEDS.to_le_bytes());
        self.set(reg::LINK_CONTROL_2, TARGET_SPEED.to_le_bytes());
    }

    /// A type 0 function after reset, its BARs at `homes`.
    pub(super) fn endpoint(identity: &PciIdentity, homes: impl Iterator<Item = (Bar, u64)>) -> Self {
        let mut config = Self::new(identity.vendor, identity.device, identity.class);
        let msix = if identity.msix_vectors > 0 { reg::MSIX as u8 } else { 0 };
        config.add_express(EXPRESS_ENDPOINT, msix, ROLE_BASED_ERRORS | FUNCTION_LEVEL_RESET, 0);
        config.set(reg::REVISION, [identity.revision]);
        config.set(reg::SUBSYSTEM_VENDOR, identity.subsystem.0.to_le_bytes());
        config.set(reg::SUBSYSTEM, identity.subsystem.1.to_le_bytes());
        for (bar, home) in homes {
            let kind = BAR_MEMORY_64 | if bar.prefetchable { BAR_PREFETCHABLE } else { 0 };
            let at = bar_offset(bar.index);
            config.set(at, (home | u64::from(kind)).to_le_bytes());
            config.allow(at, (!(bar.size.saturating_sub(1)) & !BAR_TYPE_MASK).to_le_bytes());
        }
        if let Some(last) = identity.msix_vectors.checked_sub(1) {
            let bir = u32::from(identity.msix_bar);
            config.set(reg::MSIX, [CAPABILITY_MSIX, 0]);
            config.set(reg::MSIX_CONTROL, last.to_le_bytes());
            config.allow(reg::MSIX_CONTROL, (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
            config.set(reg::MSIX_TABLE, (identity.msix_table | bir).to_le_bytes());
            config.set(reg::MSIX_PBA, (identity.msix_pba | bir).to_le_bytes());
        }
        config
    }

    pub(super) fn set<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        self.bytes[at..at + N].copy_from_slice(&value);
    }

    pub(super) fn allow<const N: usize>(&mut self, at: usize, bits: [u8; N]) {
        self.writable[at..at + N].copy_from_slice(&bits);
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at + 2)) << 16 | u32::from(self.u16(at))
    }

    /// Reads `size` bytes at `offset` of the function's 4 KiB.
    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let byte = usize::try_from(offset.saturating_add(i)).ok().and_then(|at| self.bytes.get(at));
            value | u64::from(byte.copied().unwrap_or(0)) << (8 * i)
        })
    }

    /// Writes the writable bits. Says whether the write asks for a function-level reset.
    pub(super) fn write(&mut self, offset: u64, size: u8, value: u64) -> bool {
        let mut reset = false;
        for i in 0..u64::from(size.min(8)) {
            let Ok(at) = usize::try_from(offset.saturating_add(i)) else {
                break;
            };
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else {
                break;
            };
            let new = (value >> (8 * i)) as u8;
            *byte = *byte & !mask | new & mask;
            reset |= at == reg::DEVICE_CONTROL + 1 && new & INITIATE_RESET != 0 && mask != &0;
        }
        reset
    }

    /// What a write puts at the 16-bit register `at`: zeros where it writes nothing.
    pub(super) fn written(at: usize, offset: u64, size: u8, value: u64) -> u16 {
        let byte = |at: u64| {
            let byte = at.checked_sub(offset).filter(|byte| *byte < size.min(8).into());
            byte.map_or(0, |byte| (value >> (8 * byte)) as u8)
        };
        u16::from_le_bytes([byte(at as u64), byte(at as u64 + 1)])
    }

    pub(super) fn memory_enabled(&self) -> bool {
        self.u16(reg::COMMAND) & command::MEMORY != 0
    }

    pub(super) fn bus_master(&self) -> bool {
        self.u16(reg::COMMAND) & command::BUS_MASTER != 0
    }

    pub(super) fn msix_enabled(&self) -> bool {
        self.u16(reg::MSIX_CONTROL) & MSIX_ENABLE != 0
    }

    pub(super) fn msix_function_masked(&self) -> bool {
        self.u16(reg::MSIX_CONTROL) & MSIX_FUNCTION_MASK != 0
    }

    /// The address in a 64-bit BAR.
    pub(super) fn bar(&self, index: u8) -> u64 {
        self.read(bar_offset(index) as u64, 8) & !BAR_TYPE_MASK
    }
}

fn bar_offset(index: u8) -> usize {
    reg::BAR0 + 4 * usize::from(index)
}
