// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the device says it can do, checked once so that no later offset or index can be out of range.

use alloc::string::String;

use super::commands::code;
use super::registers::{
    CMDCAP, ENGCAP, GENCAP, GRPCAP, GenCap, GrpCap, OFFSETS, OFFSETS_UNIT, OPCAP, VERSION, WQCAP, WqCap,
    grpcfg, msix_entry, msixperm, wqcfg,
};
use crate::pci::MsixLocation;
use crate::registers::Registers;

const MSIXPERM_FIELD: u32 = 32;
const WQCFG_FIELD: u32 = 16;
const IMS_FIELD: u32 = 48;
const OFFSET_FIELD_MASK: u64 = 0xffff;
/// Where the fixed registers end.
const FIXED_REGISTERS_END: usize = 0x100;
/// Words of OPCAP.
pub(super) const OPCAP_WORDS: usize = 4;

/// Capabilities of a device.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// 15:8 major, 7:0 minor.
    pub version: u32,
    /// General.
    pub general: GenCap,
    /// Work queues.
    pub work_queues: WqCap,
    /// Groups.
    pub groups: GrpCap,
    /// Number of engines.
    pub engines: u8,
    /// Operations.
    pub operations: [u64; OPCAP_WORDS],
    /// Commands, where the device says.
    pub commands: Option<u32>,
    /// Offset of the group configuration table.
    pub grpcfg: usize,
    /// Offset of the work queue configuration table.
    pub wqcfg: usize,
    /// Offset of the MSI-X permission table.
    pub msixperm: usize,
    /// Offset of the MSI-X table.
    pub msix_table: usize,
    /// Entries of the MSI-X table.
    pub msix_entries: u16,
    /// Offset of the interrupt message storage.
    pub ims: usize,
}

impl Capabilities {
    /// Whether the registers that [`Capabilities::read`] reads fit into a window of so many bytes.
    pub(super) fn check_window(window: usize) -> Result<(), String> {
        if window < FIXED_REGISTERS_END {
            return Err(alloc::format!("BAR0 of {window:#x} bytes is too small for the registers"));
        }
        Ok(())
    }

    /// Reads them; the error says why they cannot be believed. Nothing that is read changes by it.
    pub(super) fn read<R: Registers>(registers: &R, msix: &MsixLocation) -> Result<Self, String> {
        let version = registers.read32(VERSION);
        if version == u32::MAX {
            return Err("registers read as all ones: the device does not answer".into());
        }
        if version >> 8 & 0xff == 0 {
            return Err(alloc::format!("unknown version {version:#x}"));
        }
        let general = GenCap(registers.read64(GENCAP));
        let offsets = registers.read64(OFFSETS);
        let table = |shift: u32| (offsets >> shift & OFFSET_FIELD_MASK) as usize * OFFSETS_UNIT;
        Ok(Self {
            version,
            general,
            work_queues: WqCap(registers.read64(WQCAP)),
            groups: GrpCap(registers.read64(GRPCAP)),
            engines: registers.read64(ENGCAP) as u8,
            operations: core::array::from_fn(|word| registers.read64(OPCAP + word * 8)),
            commands: general.command_capabilities().then(|| registers.read32(CMDCAP)),
            grpcfg: table(0),
            wqcfg: table(WQCFG_FIELD),
            msixperm: table(MSIXPERM_FIELD),
            msix_table: msix.table as usize,
            msix_entries: msix.entries,
            ims: table(IMS_FIELD),
        })
    }

    /// Whether the driver can do with them; the error says what does not fit. `window`: size of BAR0 in bytes, where
    /// that is known.
    pub(super) fn check(&self, window: Option<usize>, msix: &MsixLocation) -> Result<(), String> {
        if !self.general.configurable() {
            return Err("its work queues cannot be configured (GENCAP.CONFIG_EN is 0)".into());
        }
        if !self.work_queues.dedicated() {
            return Err("it has no dedicated work queues (WQCAP)".into());
        }
        if self.work_queues.queues() == 0 || self.groups.groups() == 0 || self.engines == 0 {
            return Err("it has no work queue, group or engine".into());
        }
        if msix.table_bar != 0 {
            return Err(alloc::format!("its MSI-X table is in BAR{}, not BAR0", msix.table_bar));
        }
        let queues = usize::from(self.work_queues.queues());
        let entries = usize::from(self.msix_entries);
        let ims = usize::from(self.general.ims_entries());
        let tables = [
            ("GRPCFG", self.grpcfg, usize::from(self.groups.groups()) * grpcfg::STRIDE),
            ("WQCFG", self.wqcfg, queues * self.work_queues.wqcfg_stride()),
            ("MSIXPERM", self.msixperm, entries * msixperm::STRIDE),
            ("MSI-X", self.msix_table, entries * msix_entry::STRIDE),
            ("IMS", self.ims, ims * msix_entry::STRIDE),
        ];
        for (name, start, len) in tables.into_iter().filter(|(.., len)| *len > 0) {
            if start < FIXED_REGISTERS_END || window.is_some_and(|window| start + len > window) {
                return Err(alloc::format!("its {name} table at {start:#x} does not lie in BAR0"));
            }
        }
        Ok(())
    }

    /// Whether the device knows a command, by code.
    pub fn has_command(&self, code: u32) -> bool {
        self.commands.is_some_and(|commands| commands >> code & 1 != 0)
    }

    /// Offset of one queue's configuration.
    pub(super) fn wqcfg_of(&self, wq: u8) -> usize {
        self.wqcfg + usize::from(wq) * self.work_queues.wqcfg_stride()
    }

    /// Offset of one entry of the MSI-X permission table.
    pub(super) fn msixperm_of(&self, entry: u16) -> usize {
        self.msixperm + usize::from(entry) * msixperm::STRIDE
    }

    /// Whether queues can be shared, and what one who shares has in flight can be dropped. Where the device does not say
    /// which commands it has, it has all of the first version.
    pub(super) fn can_share(&self) -> bool {
        self.work_queues.shared() && (self.commands.is_none() || self.has_command(code::ABORT_PASID))
    }

    /// Entries of interrupts: of the MSI-X table first, then of the IMS.
    pub(super) fn interrupt_entries(&self) -> u16 {
        self.msix_entries.saturating_add(self.general.ims_entries())
    }

    /// The entry's place in the IMS, where it is one of it.
    pub(super) fn ims_index(&self, entry: u16) -> Option<u16> {
        entry.checked_sub(self.msix_entries).filter(|index| *index < self.general.ims_entries())
    }

    /// Offset of an interrupt entry: both tables have the same layout, but for the control word.
    pub(super) fn interrupt_entry_of(&self, entry: u16) -> usize {
        let (table, index) = match self.ims_index(entry) {
            Some(index) => (self.ims, index),
            None => (self.msix_table, entry),
        };
        table + usize::from(index) * msix_entry::STRIDE
    }

    /// Whether OPCFG exists in WQCFG.
    pub(super) fn has_opcfg(&self) -> bool {
        self.work_queues.operation_config() && self.work_queues.wqcfg_stride() > wqcfg::OPCFG
    }
}
