// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a unit must be able to do, and what all units of a machine have in common.

use alloc::format;
use alloc::string::String;

use pasidon_kernel::base::addr::HostPhys;
use pasidon_kernel::base::refusal::Refusal;
use pasidon_kernel::dma::pasid::Pasid;

use super::registers::Identification;
use super::stage1::{ADDRESS_BITS, Geometry, LEVELS, Stage1Entries};
use crate::features;
use crate::iommu::survey::list;
use crate::iort::{Iort, SmmuNode};

/// Widest SubstreamIDs used where the table of context descriptors has one level and lies in one piece.
const LINEAR_SUBSTREAM_BITS: u32 = 10;
/// Highest level that may hold a leaf: 1 GiB.
const LEAF_LEVELS: u8 = 3;

/// How people call a unit: by the address of its registers.
pub(super) fn unit_name(base: HostPhys) -> String {
    format!("smmuv3 {base}")
}

/// Whether the table names a unit.
///
/// # Errors
/// When it names none.
pub(super) fn check_table(iort: &Iort) -> Result<(), Refusal> {
    if iort.units.is_empty() {
        return Err(Refusal::new(
            "smmuv3",
            "the IORT names no SMMUv3",
            "use a machine with one, or in QEMU -M virt,iommu=smmuv3",
        ));
    }
    Ok(())
}

/// Whether the driver can drive a unit.
///
/// # Errors
/// When it lacks what the driver needs, each with its name.
pub(super) fn check_unit(node: &SmmuNode, unit: Identification) -> Result<(), Refusal> {
    let missing = features::missing(needed(node, unit));
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        unit_name(node.registers),
        format!("the SMMU lacks {}", missing.join(", ")),
        "use a machine whose SMMU has them, or in QEMU the one of this project's platform",
    ))
}

/// Whether a unit looks into the processors' caches.
pub(super) fn coherent(node: &SmmuNode, unit: Identification) -> bool {
    node.coherent_override || unit.coherent()
}

/// What the driver cannot do without, and whether it is there.
pub(super) fn needed(node: &SmmuNode, unit: Identification) -> [(bool, &'static str); 9] {
    [
        (unit.stage1(), "stage-1 translation (IDR0.S1P)"),
        (unit.aarch64_tables(), "AArch64 tables (IDR0.TTF)"),
        (unit.little_endian(), "little-endian tables (IDR0.TTENDIAN)"),
        (coherent(node, unit), "coherent tables and queues (IDR0.COHACC)"),
        (unit.terminates(), "faults that end an access (IDR0.STALL_MODEL)"),
        (unit.substream_bits() != 0, "SubstreamIDs (IDR1.SSIDSIZE)"),
        (!unit.preset(), "tables and queues of the driver's own (IDR1.TABLES_PRESET, QUEUES_PRESET)"),
        (unit.command_queue_log2() != 0, "a command queue of two commands or more (IDR1.CMDQS)"),
        (unit.granule_4k(), "the 4 KiB granule (IDR5.GRAN4K)"),
    ]
}

/// What a unit can do beside what is [`needed`], as names and values.
pub(super) fn describe(unit: Identification) -> [(&'static str, String); 2] {
    let features = features::present([
        (unit.two_level_streams(), "two-level stream tables"),
        (unit.two_level_contexts(), "two-level context descriptors"),
        (unit.ats(), "device TLBs"),
        (unit.messages(), "message interrupts"),
    ]);
    [
        (
            "widths",
            format!(
                "PASID {}, stream {}, address {}, ASID {} bits",
                substream_bits(unit),
                unit.stream_bits(),
                unit.output_bits(),
                unit.asid_bits()
            ),
        ),
        ("features", list(&features)),
    ]
}

/// Width of the SubstreamIDs that a device gets, in bits.
pub(super) fn substream_bits(unit: Identification) -> u32 {
    let form = if unit.two_level_contexts() { Pasid::BITS } else { LINEAR_SUBSTREAM_BITS };
    unit.substream_bits().min(form)
}

/// The form of tables that all units take.
pub(super) fn geometry(units: impl Iterator<Item = Identification>) -> Geometry {
    Geometry {
        levels: LEVELS,
        address_bits: ADDRESS_BITS,
        host_bits: units.map(Identification::output_bits).min().unwrap_or(0),
        leaf_levels: LEAF_LEVELS,
        format: Stage1Entries { doorbell: false },
    }
}
