// SPDX-License-Identifier: MIT OR Apache-2.0
//! Capability lists and the capabilities the hypervisor uses: PCI Express, MSI-X, PASID, ATS, PRI.

use super::{ConfigSpace, Function};

const STATUS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITIES_POINTER: u16 = 0x34;
const FIRST_EXTENDED: u16 = 0x100;
/// More capabilities than fit in 256 bytes: the bound of the walk.
const MAX_CAPABILITIES: usize = 48;
/// More capabilities than fit in 4096 - 256 bytes.
const MAX_EXTENDED_CAPABILITIES: usize = 960;

const CAP_PCI_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;
const EXT_CAP_ATS: u16 = 0x0f;
const EXT_CAP_PRI: u16 = 0x13;
const EXT_CAP_PASID: u16 = 0x1b;

const PCIE_DEVICE_CAPABILITIES: u16 = 0x04;
const PCIE_DEVICE_CONTROL: u16 = 0x08;
const DEVICE_CAPABILITY_FLR: u32 = 1 << 28;
const DEVICE_CONTROL_NO_SNOOP: u32 = 1 << 11;
const DEVICE_CONTROL_INITIATE_FLR: u32 = 1 << 15;
const DEVICE_CONTROL_MASK: u32 = 0xffff;
const DEVICE_STATUS_TRANSACTIONS_PENDING: u32 = 1 << 21;

const MSIX_TABLE: u16 = 0x04;
const MSIX_PBA: u16 = 0x08;
const MSIX_TABLE_SIZE_MASK: u32 = 0x7ff;
const MSIX_BIR_MASK: u32 = 7;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;
const MSIX_ENABLE: u32 = 1 << 31;

const PASID_CAPABILITY_CONTROL: u16 = 0x04;
const PASID_WIDTH_SHIFT: u32 = 8;
const PASID_WIDTH_MASK: u32 = 0x1f;
const PASID_CONTROL_SHIFT: u32 = 16;
const PASID_ENABLE: u32 = 1 << PASID_CONTROL_SHIFT;
const PASID_CONTROL_MASK: u32 = 7 << PASID_CONTROL_SHIFT;

const ATS_CAPABILITY_CONTROL: u16 = 0x04;
const ATS_ENABLE: u32 = 1 << 31;

const PRI_CONTROL_STATUS: u16 = 0x04;
const PRI_ENABLE: u32 = 1 << 0;
const PRI_CONTROL_MASK: u32 = 0xffff;

/// Where the MSI-X structures of a function are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixLocation {
    /// Offset of the capability in configuration space.
    pub capability: u16,
    /// Number of entries, 1..=2048.
    pub entries: u16,
    /// BAR of the table.
    pub table_bar: u8,
    /// Offset of the table in that BAR.
    pub table: u32,
    /// BAR of the pending bits.
    pub pba_bar: u8,
    /// Offset of the pending bits in that BAR.
    pub pba: u32,
}

/// The PASID capability of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidCapability {
    /// Offset of the capability in configuration space.
    pub capability: u16,
    /// Width of the PASIDs the function can send, in bits, 1..=20.
    pub bits: u8,
}

impl<C: ConfigSpace> Function<C> {
    /// Offset of the first capability with this ID.
    pub fn capability(&self, id: u8) -> Option<u16> {
        if self.read32(super::COMMAND_STATUS) & STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = self.read32(CAPABILITIES_POINTER) as u16 & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 {
                return None;
            }
            let header = self.read32(at);
            if header as u8 == id {
                return Some(at);
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        None
    }

    /// Offset of the first extended capability with this ID.
    pub fn extended_capability(&self, id: u16) -> Option<u16> {
        let mut at = FIRST_EXTENDED;
        for _ in 0..MAX_EXTENDED_CAPABILITIES {
            let header = self.read32(at);
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header as u16 == id {
                return Some(at);
            }
            at = (header >> 20) as u16 & 0xffc;
            if at < FIRST_EXTENDED {
                return None;
            }
        }
        None
    }

    /// Offset of the device control register, and whether the function can be reset by itself.
    pub(super) fn device_control(&self) -> (Option<u16>, bool) {
        match self.capability(CAP_PCI_EXPRESS) {
            Some(at) => {
                let capabilities = self.read32(at + PCIE_DEVICE_CAPABILITIES);
                (Some(at + PCIE_DEVICE_CONTROL), capabilities & DEVICE_CAPABILITY_FLR != 0)
            }
            None => (None, false),
        }
    }

    pub(super) fn transactions_pending(&self, device_control: u16) -> bool {
        self.read32(device_control) & DEVICE_STATUS_TRANSACTIONS_PENDING != 0
    }

    pub(super) fn initiate_reset(&self, device_control: u16) {
        let control = self.read32(device_control) & DEVICE_CONTROL_MASK;
        self.write32(device_control, control | DEVICE_CONTROL_INITIATE_FLR);
    }

    /// Takes the right from it to send requests that pass by the processors' caches. Whether it is gone. A function
    /// that is not PCI Express never has it.
    pub(super) fn disable_no_snoop(&self) -> bool {
        let (Some(control), _) = self.device_control() else {
            return true;
        };
        let value = self.read32(control) & DEVICE_CONTROL_MASK;
        self.write32(control, value & !DEVICE_CONTROL_NO_SNOOP);
        self.read32(control) & DEVICE_CONTROL_NO_SNOOP == 0
    }

    /// Where its MSI-X structures are; `None` where it has none.
    pub fn msix(&self) -> Option<MsixLocation> {
        let capability = self.capability(CAP_MSIX)?;
        let table = self.read32(capability + MSIX_TABLE);
        let pba = self.read32(capability + MSIX_PBA);
        Some(MsixLocation {
            capability,
            entries: ((self.read32(capability) >> 16 & MSIX_TABLE_SIZE_MASK) + 1) as u16,
            table_bar: (table & MSIX_BIR_MASK) as u8,
            table: table & !MSIX_BIR_MASK,
            pba_bar: (pba & MSIX_BIR_MASK) as u8,
            pba: pba & !MSIX_BIR_MASK,
        })
    }

    /// Switches MSI-X on, with the masks of the single entries in force.
    pub fn enable_msix(&self, location: &MsixLocation) {
        let control = self.read32(location.capability);
        self.write32(location.capability, (control & !MSIX_FUNCTION_MASK) | MSIX_ENABLE);
    }

    /// Its PASID capability; `None` where it has none.
    pub fn pasid(&self) -> Option<PasidCapability> {
        let capability = self.extended_capability(EXT_CAP_PASID)?;
        let bits = self.read32(capability + PASID_CAPABILITY_CONTROL) >> PASID_WIDTH_SHIFT & PASID_WIDTH_MASK;
        Some(PasidCapability { capability, bits: bits as u8 })
    }

    /// Lets the function tag its requests; neither execute nor privileged requests are allowed.
    pub fn enable_pasid(&self, pasid: &PasidCapability) {
        let at = pasid.capability + PASID_CAPABILITY_CONTROL;
        self.write32(at, (self.read32(at) & !PASID_CONTROL_MASK) | PASID_ENABLE);
    }

    /// Switches address translation by the function itself, and page requests, off. Requests then go to
    /// the IOMMU untranslated and the function caches no translation.
    pub fn disable_ats_and_pri(&self) {
        if let Some(ats) = self.extended_capability(EXT_CAP_ATS) {
            let at = ats + ATS_CAPABILITY_CONTROL;
            self.write32(at, self.read32(at) & !ATS_ENABLE);
        }
        if let Some(pri) = self.extended_capability(EXT_CAP_PRI) {
            let at = pri + PRI_CONTROL_STATUS;
            // The status half has write-1-to-clear bits.
            self.write32(at, self.read32(at) & PRI_CONTROL_MASK & !PRI_ENABLE);
        }
    }
}
