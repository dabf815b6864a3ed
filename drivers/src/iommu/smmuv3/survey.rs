// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be told of the SMMUs without changing anything, for the inventory.
//!
//! **Invariant.** Nothing is written, and nothing that is read changes by it. What is refused is refused by the checks
//! that [`Smmu::new`](super::Smmu::new) makes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::capabilities::{check_table, check_unit, describe, needed, unit_name};
use super::registers::{Control, GBPA_ABORT, Identification, REGISTERS_LEN, offset};
use crate::features;
use crate::iommu::survey::{Survey, list};
use crate::iort::{Iort, SmmuNode};
use crate::registers::{MapRegisters, Registers};

/// Looks at every unit.
pub fn survey<R: Registers>(iort: &Iort, map_registers: MapRegisters<'_, R>) -> Survey {
    let mut survey = Survey { table: table(iort), ..Survey::default() };
    survey.refused.extend(check_table(iort).err());
    for node in &iort.units {
        let mut facts = Vec::from([
            ("unit", unit_name(node.registers)),
            ("registers", format!("{REGISTERS_LEN:#x} bytes at {}", node.registers)),
        ]);
        match map_registers(node.registers, REGISTERS_LEN) {
            Ok(registers) => {
                let unit = Identification::read(&registers);
                facts.extend(said(&registers, node, unit));
                survey.refused.extend(check_unit(node, unit).err());
            }
            Err(refusal) => facts.push(("not read", refusal.why)),
        }
        survey.units.push(facts);
    }
    survey
}

fn table(iort: &Iort) -> Vec<(&'static str, String)> {
    let roots = iort.root_complexes.iter().map(|root| {
        let ats = if root.ats { "with" } else { "without" };
        format!("segment {:04x} {ats} ATS", root.segment)
    });
    Vec::from([
        (
            "nodes",
            format!(
                "{} SMMUv3, {} older SMMUs, {} ITS groups, {} reserved ranges (RMR)",
                iort.units.len(),
                iort.older_units,
                iort.its_groups.len(),
                iort.reserved.len()
            ),
        ),
        ("root complexes", roots.collect::<Vec<_>>().join(", ")),
    ])
}

/// What a unit says of itself.
fn said<R: Registers>(registers: &R, node: &SmmuNode, unit: Identification) -> Vec<(&'static str, String)> {
    let needed = needed(node, unit);
    let control = Control::from_bits_truncate(registers.read32(offset::CR0));
    let on = features::present([
        (control.contains(Control::TRANSLATION), "translation"),
        (control.contains(Control::COMMAND_QUEUE), "command queue"),
        (control.contains(Control::EVENT_QUEUE), "event queue"),
    ]);
    let aborts = registers.read32(offset::GBPA) & GBPA_ABORT != 0;
    let mut facts = Vec::from([
        ("IDR0, IDR1, IDR5", format!("{:#010x}, {:#010x}, {:#010x}", unit.idr0, unit.idr1, unit.idr5)),
        ("has", list(&features::present(needed))),
        ("lacks", list(&features::missing(needed))),
    ]);
    facts.extend(describe(unit));
    facts.push(("left on", list(&on)));
    facts.push(("while off", if aborts { "all DMA is ended" } else { "all DMA passes" }.to_string()));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iort;
    use crate::testing::ReadOnly;

    /// An IORT with one SMMUv3 at 0x905_0000.
    fn table() -> Vec<u8> {
        let mut node = alloc::vec![0u8; 68];
        node[0] = 4;
        node[1..3].copy_from_slice(&68u16.to_le_bytes());
        node[16..24].copy_from_slice(&0x905_0000u64.to_le_bytes());
        let mut bytes = alloc::vec![0u8; 48];
        bytes[..4].copy_from_slice(b"IORT");
        bytes[36..40].copy_from_slice(&1u32.to_le_bytes());
        bytes[40..44].copy_from_slice(&48u32.to_le_bytes());
        bytes.extend(node);
        let len = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        bytes
    }

    #[test]
    fn units_are_described_and_refused_as_at_the_start() {
        let iort = iort::parse(&table()).unwrap();
        // Upstream QEMU's: no substreams, GBPA lets all pass.
        let mut map = |_, _| {
            Ok(ReadOnly::new(&[
                (offset::IDR0, 0x0d44_101b),
                (offset::IDR1, 0x0273_0010),
                (offset::IDR5, 0x74),
                (offset::CR0, 1),
                (offset::GBPA, 0),
            ]))
        };
        let survey = survey(&iort, &mut map);
        let [refusal] = survey.refused.as_slice() else { panic!("{survey:?}") };
        assert_eq!(refusal.why, "the SMMU lacks SubstreamIDs (IDR1.SSIDSIZE)");
        let facts: Vec<_> = survey.units[0].iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert!(facts.contains(&("lacks", "SubstreamIDs (IDR1.SSIDSIZE)")), "{facts:?}");
        assert!(facts.contains(&("left on", "translation")), "{facts:?}");
        assert!(facts.contains(&("while off", "all DMA passes")), "{facts:?}");
    }
}
