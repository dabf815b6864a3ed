// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a unit must be able to do, and what all units of a machine have in common.

use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;

use super::dmar::Dmar;
use super::registers::{Capability, ExtendedCapability};
use super::second_stage::{Geometry, SecondStageEntries};
use crate::features;

/// Narrowest address width believed.
const WIDTH_FLOOR: u8 = 32;
/// Widest host-physical address an entry can hold.
const HOST_WIDTH_LIMIT: u8 = 52;

/// Names what the driver cannot do without.
pub(super) fn missing(
    capability: Capability,
    extended: ExtendedCapability,
    x2apic: bool,
) -> Vec<&'static str> {
    features::missing([
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
    ])
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
