// SPDX-License-Identifier: MIT OR Apache-2.0
//! The DMAR table: which remapping units there are and which devices each serves.
//!
//! The bytes come from firmware, so nothing here panics on any of them: a structure that does not fit ends
//! in a refusal that names its offset, one of an unknown type is passed over.
//! Source: Intel VT-d specification, "BIOS Considerations".

use alloc::format;
use alloc::vec::Vec;

use pasidon_kernel::base::addr::{HostPhys, PAGE_SIZE};
use pasidon_kernel::base::refusal::Refusal;

use crate::acpi::{self, Bytes};

/// ACPI signature.
const SIGNATURE: &str = "DMAR";
/// Offset of the host address width, less 1.
const HOST_ADDRESS_WIDTH: usize = 36;
/// Offset of the flags.
const FLAGS: usize = 37;
/// Flags: interrupt remapping is supported.
const FLAG_INTERRUPT_REMAPPING: u8 = 1 << 0;
/// Flags: the firmware asks not to use x2APIC.
const FLAG_X2APIC_OPT_OUT: u8 = 1 << 1;
/// Offset of the first structure.
const STRUCTURES: usize = 48;
/// Bytes of type and length of a structure.
const STRUCTURE_HEADER: usize = 4;
/// Bytes of a device scope before its path.
const SCOPE_HEADER: usize = 6;
/// DRHD and ATSR flags: all devices of the segment (that no other structure names).
const FLAG_ALL: u8 = 1 << 0;
/// SATC flags: the devices work only with an address translation cache of their own in use.
const FLAG_ATC_REQUIRED: u8 = 1 << 0;

/// Structure types.
mod kind {
    pub const DRHD: u16 = 0;
    pub const RMRR: u16 = 1;
    pub const ATSR: u16 = 2;
    pub const SATC: u16 = 5;
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dmar {
    /// Width of host-physical addresses, in bits.
    pub host_address_bits: u8,
    /// The platform supports interrupt remapping.
    pub interrupt_remapping: bool,
    /// The firmware asks not to turn x2APIC on.
    pub x2apic_opt_out: bool,
    /// Remapping units (DRHD).
    pub units: Vec<Drhd>,
    /// Memory that firmware-used devices reach (RMRR).
    pub reserved: Vec<Rmrr>,
    /// Root ports below which ATS works (ATSR).
    pub ats_roots: Vec<DeviceList>,
    /// Integrated devices with ATS (SATC).
    pub ats_devices: Vec<DeviceList>,
}

/// A remapping unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drhd {
    /// Where its registers are.
    pub registers: HostPhys,
    /// How long the window is, in bytes.
    pub registers_len: u64,
    /// The PCI segment it serves.
    pub segment: u16,
    /// It serves every device of the segment that no other unit names (INCLUDE_PCI_ALL).
    pub include_all: bool,
    /// The devices it serves otherwise.
    pub scopes: Vec<DeviceScope>,
}

/// A region that devices named here may be using on behalf of the firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rmrr {
    /// PCI segment.
    pub segment: u16,
    /// First byte.
    pub base: HostPhys,
    /// Last byte.
    pub limit: HostPhys,
    /// The devices.
    pub scopes: Vec<DeviceScope>,
}

/// A list of devices of one segment (ATSR, SATC).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceList {
    /// PCI segment.
    pub segment: u16,
    /// Every device (or root port) of the segment.
    pub all: bool,
    /// The firmware says that the devices work only with ATS on (ATC_REQUIRED, in a SATC).
    pub ats_required: bool,
    /// Those named.
    pub scopes: Vec<DeviceScope>,
}

/// What a scope names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScopeKind {
    /// One PCI function.
    Endpoint,
    /// A bridge and everything behind it.
    Bridge,
    /// An I/O APIC; the requester is the one it sends interrupts with.
    IoApic,
    /// An HPET that sends messages.
    Hpet,
    /// A device named in the ACPI namespace (ANDD).
    Acpi,
    /// Something newer.
    Other(u8),
}

/// A device, named by the path to it from a bus whose number the firmware fixed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceScope {
    /// What it is.
    pub kind: ScopeKind,
    /// Number of the I/O APIC or HPET, otherwise 0.
    pub enumeration: u8,
    /// Bus the path starts on.
    pub start_bus: u8,
    /// Device and function on each bus of the way; never empty.
    pub path: Vec<(u8, u8)>,
}

/// Reads the table from its first byte (the ACPI header) on.
///
/// # Errors
/// When a length in it is wrong, or it is another table.
pub fn parse(bytes: &[u8]) -> Result<Dmar, Refusal> {
    let table = acpi::table(bytes, SIGNATURE, STRUCTURES)?;
    let bytes = table.0;
    let flags = bytes[FLAGS];
    let mut dmar = Dmar {
        host_address_bits: bytes[HOST_ADDRESS_WIDTH].saturating_add(1),
        interrupt_remapping: flags & FLAG_INTERRUPT_REMAPPING != 0,
        x2apic_opt_out: flags & FLAG_X2APIC_OPT_OUT != 0,
        ..Dmar::default()
    };
    let mut at = STRUCTURES;
    while at < bytes.len() {
        let broken = || malformed(&format!("the structure at offset {at} does not fit"));
        let kind = table.u16(at).ok_or_else(broken)?;
        let len = usize::from(table.u16(at + 2).ok_or_else(broken)?);
        let structure = bytes
            .get(at..at + len)
            .filter(|structure| structure.len() >= STRUCTURE_HEADER)
            .ok_or_else(broken)?;
        dmar.add(kind, Bytes(structure)).ok_or_else(broken)?;
        at += len;
    }
    Ok(dmar)
}

impl Dmar {
    /// Adds one structure; `None` where it is too short for what it says.
    fn add(&mut self, kind: u16, structure: Bytes<'_>) -> Option<()> {
        match kind {
            kind::DRHD => {
                let pages_log2 = u32::from(structure.u8(5)? & 0xf);
                let registers = HostPhys(structure.u64(8)?);
                if registers.0 == 0 || !registers.is_aligned(PAGE_SIZE) {
                    return None;
                }
                self.units.push(Drhd {
                    registers,
                    registers_len: PAGE_SIZE << pages_log2,
                    segment: structure.u16(6)?,
                    include_all: structure.u8(4)? & FLAG_ALL != 0,
                    scopes: scopes(structure, 16)?,
                });
            }
            kind::RMRR => {
                let (base, limit) = (structure.u64(8)?, structure.u64(16)?);
                if limit < base {
                    return None;
                }
                self.reserved.push(Rmrr {
                    segment: structure.u16(6)?,
                    base: HostPhys(base),
                    limit: HostPhys(limit),
                    scopes: scopes(structure, 24)?,
                });
            }
            kind::ATSR | kind::SATC => {
                let list = DeviceList {
                    segment: structure.u16(6)?,
                    all: kind == kind::ATSR && structure.u8(4)? & FLAG_ALL != 0,
                    ats_required: kind == kind::SATC && structure.u8(4)? & FLAG_ATC_REQUIRED != 0,
                    scopes: scopes(structure, 8)?,
                };
                if kind == kind::ATSR {
                    self.ats_roots.push(list);
                } else {
                    self.ats_devices.push(list);
                }
            }
            // RHSA (proximity), ANDD (ACPI names) and what is newer say nothing that is used here.
            _ => {}
        }
        Some(())
    }
}

/// The device scopes from `at` to the end of a structure.
fn scopes(structure: Bytes<'_>, mut at: usize) -> Option<Vec<DeviceScope>> {
    let mut scopes = Vec::new();
    while at < structure.0.len() {
        let len = usize::from(structure.u8(at + 1)?);
        let scope = structure.0.get(at..at + len)?;
        let path = scope.get(SCOPE_HEADER..).filter(|path| !path.is_empty())?;
        let (steps, rest) = path.as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        scopes.push(DeviceScope {
            kind: match scope[0] {
                1 => ScopeKind::Endpoint,
                2 => ScopeKind::Bridge,
                3 => ScopeKind::IoApic,
                4 => ScopeKind::Hpet,
                5 => ScopeKind::Acpi,
                other => ScopeKind::Other(other),
            },
            enumeration: scope[4],
            start_bus: scope[5],
            path: steps.iter().map(|&[device, function]| (device, function)).collect(),
        });
        at += len;
    }
    Some(scopes)
}

fn malformed(why: &str) -> Refusal {
    acpi::malformed(SIGNATURE, why)
}

#[cfg(test)]
mod tests;
