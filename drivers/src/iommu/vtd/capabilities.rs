// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a unit must be able to do, and what all units of a machine have in common.

use alloc::format;
use alloc::string::String;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;

use super::dmar::{Dmar, Drhd};
use super::registers::{Capability, ExtendedCapability, offset};
use super::second_stage::{Geometry, SecondStageEntries};
use crate::features;
use crate::iommu::survey::list;

/// Narrowest address width believed.
const WIDTH_FLOOR: u8 = 32;
/// Widest host-physical address an entry can hold.
const HOST_WIDTH_LIMIT: u8 = 52;

/// How people call a unit: by the address of its registers.
pub(super) fn unit_name(base: HostPhys) -> String {
    format!("vtd {base}")
}

/// Whether the table allows what the driver needs.
///
/// # Errors
/// When the firmware has interrupt remapping off.
pub(super) fn check_table(dmar: &Dmar) -> Result<(), Refusal> {
    if dmar.interrupt_remapping {
        return Ok(());
    }
    Err(Refusal::new(
        "vtd",
        "the DMAR table says that interrupt remapping is off",
        "turn interrupt remapping (VT-d) on in the firmware, or in QEMU use intremap=on",
    ))
}

/// Whether the driver can drive a unit. `x2apic`: interrupt destinations are 32-bit APIC identifiers.
///
/// # Errors
/// When it lacks what the driver needs, each with its name, or the table gives it too few registers.
pub(super) fn check_unit(
    description: &Drhd,
    capability: Capability,
    extended: ExtendedCapability,
    x2apic: bool,
) -> Result<(), Refusal> {
    let missing = features::missing(needed(capability, extended, x2apic));
    if !missing.is_empty() {
        return Err(Refusal::new(
            unit_name(description.registers),
            format!("the IOMMU lacks {}", missing.join(", ")),
            "look for it in the firmware's settings for VT-d, and turn PCI ENQCMD/ENQCMDS on there; QEMU's intel-iommu needs \
             scalable-mode=on,pasid-bits=20,intremap=on,eim=on, in versions that do not know these \
             x-scalable-mode=on,x-pasid-mode=on,intremap=on,eim=on",
        ));
    }
    let records_end = capability.fault_records_offset() + capability.fault_records() * 16;
    if description.registers_len < records_end.max(offset::FIXED_END) as u64 {
        return Err(Refusal::new(
            unit_name(description.registers),
            format!(
                "DMAR gives it {:#x} bytes of registers, its fault records end at {records_end:#x}",
                description.registers_len
            ),
            "update the firmware",
        ));
    }
    Ok(())
}

/// What the driver cannot do without, and whether it is there.
pub(super) fn needed(
    capability: Capability,
    extended: ExtendedCapability,
    x2apic: bool,
) -> [(bool, &'static str); 7] {
    [
        (extended.scalable_mode(), "scalable mode (ECAP.SMTS)"),
        (extended.second_stage(), "second-stage translation (ECAP.SLTS)"),
        (extended.pasid(), "PASIDs (ECAP.PASID)"),
        (extended.queued_invalidation(), "queued invalidation (ECAP.QI)"),
        (extended.interrupt_remapping(), "interrupt remapping (ECAP.IR)"),
        (!x2apic || extended.extended_interrupt_mode(), "x2APIC interrupt destinations (ECAP.EIM)"),
        (
            capability.second_stage_levels(3) || capability.second_stage_levels(4),
            "page tables of 3 or 4 levels (CAP.SAGAW)",
        ),
    ]
}

/// What a unit can do beside what is [`needed`], as names and values.
pub(super) fn describe(capability: Capability, extended: ExtendedCapability) -> [(&'static str, String); 3] {
    let features = features::present([
        (capability.caching_mode(), "caching mode"),
        (capability.write_buffer_flush(), "write buffer"),
        (extended.coherent(), "tables snooped"),
        (extended.page_walk_coherent(), "page walks snooped"),
        (extended.snoop_control(), "snoop control"),
        (extended.device_tlb(), "device TLBs"),
        (extended.extended_interrupt_mode(), "x2APIC destinations"),
        (capability.posted_interrupts(), "posted interrupts"),
    ]);
    [
        (
            "widths",
            format!(
                "PASID {}, address {}, domain {} bits",
                extended.pasid_bits(),
                capability.address_bits(),
                capability.domain_bits()
            ),
        ),
        ("features", list(&features)),
        ("fault records", format!("{}", capability.fault_records())),
    ]
}

/// The page-table form that all units take, by what each can do.
pub(super) fn common_geometry(
    dmar: &Dmar,
    units: &[(Capability, ExtendedCapability)],
) -> Result<Geometry, Refusal> {
    if units.is_empty() {
        return Err(Refusal::new(
            "vtd",
            "the DMAR table names no remapping unit",
            "turn VT-d on in the firmware, or in QEMU use -device intel-iommu",
        ));
    }
    let every = |has: fn(Capability) -> bool| units.iter().all(|(capability, _)| has(*capability));
    let (levels, level_bits) = if every(|capability| capability.second_stage_levels(4)) {
        (4, 48)
    } else if every(|capability| capability.second_stage_levels(3)) {
        (3, 39)
    } else {
        return Err(Refusal::new(
            "vtd",
            "the remapping units have no depth of page tables in common (CAP.SAGAW)",
            "share devices of one unit only; this machine is not supported yet",
        ));
    };
    let leaf_levels = if !every(Capability::second_stage_2m) {
        1
    } else if !every(Capability::second_stage_1g) {
        2
    } else {
        3
    };
    let width = units.iter().map(|(capability, _)| capability.address_bits()).min();
    let snoop = units.iter().all(|(_, extended)| extended.snoop_control());
    Ok(Geometry {
        levels,
        address_bits: width.map_or(level_bits, |width| width.clamp(WIDTH_FLOOR, level_bits)),
        host_bits: dmar.host_address_bits.clamp(WIDTH_FLOOR, HOST_WIDTH_LIMIT),
        leaf_levels,
        format: SecondStageEntries { snoop },
    })
}
