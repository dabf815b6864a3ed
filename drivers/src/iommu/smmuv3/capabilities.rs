// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a unit must be able to do, and what all units of a machine have in common.

use alloc::vec::Vec;

use pasidon_kernel::dma::pasid::Pasid;

use super::registers::Identification;
use super::stage1::{ADDRESS_BITS, Geometry, LEVELS, Stage1Entries};
use crate::features;

/// Widest SubstreamIDs used where the table of context descriptors has one level and lies in one piece.
const LINEAR_SUBSTREAM_BITS: u32 = 10;
/// Highest level that may hold a leaf: 1 GiB.
const LEAF_LEVELS: u8 = 3;

/// Names what the driver cannot do without.
pub(super) fn missing(unit: Identification, coherent: bool) -> Vec<&'static str> {
    features::missing([
        (unit.stage1(), "stage-1 translation (IDR0.S1P)"),
        (unit.aarch64_tables(), "AArch64 tables (IDR0.TTF)"),
        (unit.little_endian(), "little-endian tables (IDR0.TTENDIAN)"),
        (coherent, "coherent tables and queues (IDR0.COHACC)"),
        (unit.terminates(), "faults that end an access (IDR0.STALL_MODEL)"),
        (unit.substream_bits() != 0, "SubstreamIDs (IDR1.SSIDSIZE)"),
        (!unit.preset(), "tables and queues of the driver's own (IDR1.TABLES_PRESET, QUEUES_PRESET)"),
        (unit.command_queue_log2() != 0, "a command queue of two commands or more (IDR1.CMDQS)"),
        (unit.granule_4k(), "the 4 KiB granule (IDR5.GRAN4K)"),
    ])
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
