// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be told of the remapping units without changing anything, for the inventory.
//!
//! **Invariant.** Nothing is written, and nothing that is read changes by it. What is refused is refused by the checks
//! that [`Vtd::new`](super::Vtd::new) makes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::capabilities::{check_table, check_unit, common_geometry, describe, needed, unit_name};
use super::dmar::{Dmar, Drhd, ScopeKind};
use super::registers::{Capability, ExtendedCapability, Global, offset, status};
use super::scope::{Bridges, Coverage};
use crate::features;
use crate::iommu::survey::{Survey, list};
use crate::iommu::unit::Topology;
use crate::registers::{MapRegisters, Registers};

/// Looks at every unit. `x2apic` as in [`Vtd::new`](super::Vtd::new).
pub fn survey<R: Registers>(
    dmar: &Dmar,
    x2apic: bool,
    bridges: Bridges<'_>,
    map_registers: MapRegisters<'_, R>,
) -> Survey {
    let mut survey = Survey { table: table(dmar, bridges), ..Survey::default() };
    survey.refused.extend(check_table(dmar).err());
    let mut abilities = Vec::new();
    for unit in &dmar.units {
        let registers = match map_registers(unit.registers, unit.registers_len) {
            Ok(registers) => registers,
            Err(refusal) => {
                survey.units.push(place(unit).into_iter().chain([("not read", refusal.why)]).collect());
                continue;
            }
        };
        let capability = Capability(registers.read64(offset::CAP));
        let extended = ExtendedCapability(registers.read64(offset::ECAP));
        let mut facts = place(unit);
        facts.extend(said(&registers, capability, extended));
        survey.units.push(facts);
        match check_unit(unit, capability, extended, x2apic) {
            Ok(()) => abilities.push((capability, extended)),
            Err(refusal) => survey.refused.push(refusal),
        }
    }
    // What the units have in common is of interest where each alone would do.
    if abilities.len() == dmar.units.len() {
        survey.refused.extend(common_geometry(dmar, &abilities).err());
    }
    survey
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_string()
}

fn table(dmar: &Dmar, bridges: Bridges<'_>) -> Vec<(&'static str, String)> {
    let mut facts = Vec::from([
        ("address width", format!("{} bits", dmar.host_address_bits)),
        ("interrupt remapping", yes_no(dmar.interrupt_remapping)),
        ("x2APIC opt-out", yes_no(dmar.x2apic_opt_out)),
        (
            "structures",
            format!(
                "{} DRHD, {} RMRR, {} ATSR, {} SATC",
                dmar.units.len(),
                dmar.reserved.len(),
                dmar.ats_roots.len(),
                dmar.ats_devices.len()
            ),
        ),
    ]);
    facts.extend(Coverage::new(dmar, bridges).describe());
    facts
}

/// Where a unit is, and whom it serves.
fn place(unit: &Drhd) -> Vec<(&'static str, String)> {
    let of = |kind: ScopeKind| unit.scopes.iter().filter(|scope| scope.kind == kind).count();
    let mut served = format!("segment {:04x}: ", unit.segment);
    if unit.include_all {
        served.push_str("all that no other unit names, ");
    }
    served.push_str(&format!(
        "{} endpoints, {} bridges, {} I/O APICs, {} HPETs by name",
        of(ScopeKind::Endpoint),
        of(ScopeKind::Bridge),
        of(ScopeKind::IoApic),
        of(ScopeKind::Hpet)
    ));
    Vec::from([
        ("unit", unit_name(unit.registers)),
        ("registers", format!("{:#x} bytes at {}", unit.registers_len, unit.registers)),
        ("serves", served),
    ])
}

/// What a unit says of itself.
fn said<R: Registers>(
    registers: &R,
    capability: Capability,
    extended: ExtendedCapability,
) -> Vec<(&'static str, String)> {
    let version = registers.read32(offset::VER);
    let needed = needed(capability, extended, true);
    let state = status(registers);
    let on = features::present([
        (state.contains(Global::TRANSLATION), "translation"),
        (state.contains(Global::QUEUED_INVALIDATION), "queued invalidation"),
        (state.contains(Global::INTERRUPT_REMAPPING), "interrupt remapping"),
        (state.contains(Global::COMPATIBILITY_FORMAT), "compatibility-format interrupts"),
    ]);
    let mut facts = Vec::from([
        ("version", format!("{}.{}", version >> 4 & 0xf, version & 0xf)),
        ("CAP", format!("{:#018x}", capability.0)),
        ("ECAP", format!("{:#018x}", extended.0)),
        ("has", list(&features::present(needed))),
        ("lacks", list(&features::missing(needed))),
    ]);
    facts.extend(describe(capability, extended));
    facts.push(("left on", list(&on)));
    facts
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use pasidon_kernel::base::addr::HostPhys;
    use pasidon_kernel::base::refusal::Refusal;

    use super::*;
    use crate::testing::ReadOnly;

    /// QEMU 10.0 with second-stage scalable mode, PASIDs and interrupt remapping, with and without EIM.
    const CAP: u64 = 0x00d2_008c_222f_0606;
    const ECAP: u64 = 0x0000_4900_80f0_0f5a;
    const ECAP_LEGACY: u64 = 0x00f0_0f4a;

    fn machine(units: usize) -> Dmar {
        let unit = |number: usize| Drhd {
            registers: HostPhys(0xfed9_0000 + 0x1000 * number as u64),
            registers_len: 0x1000,
            segment: 0,
            include_all: number == 0,
            scopes: vec![],
        };
        Dmar { interrupt_remapping: true, units: (0..units).map(unit).collect(), ..Dmar::default() }
    }

    fn looked(dmar: &Dmar, extended: &[u64]) -> Survey {
        let mut units = extended.iter();
        survey(dmar, true, &|_| None, &mut |_, _| match units.next() {
            Some(extended) => Ok(ReadOnly::new(&[
                (offset::VER, 0x10),
                (offset::CAP, CAP),
                (offset::ECAP, *extended),
                (offset::GSTS, 1 << 31),
            ])),
            None => Err(Refusal::new("registers", "not there", "none")),
        })
    }

    fn fact<'s>(survey: &'s Survey, unit: usize, name: &str) -> &'s str {
        survey.units[unit].iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    #[test]
    fn units_are_described_and_refused_as_at_the_start() {
        let good = looked(&machine(1), &[ECAP]);
        assert_eq!(good.refused, []);
        assert_eq!((fact(&good, 0, "lacks"), fact(&good, 0, "left on")), ("nothing", "translation"));
        let two = looked(&machine(2), &[ECAP, ECAP_LEGACY]);
        assert!(fact(&two, 1, "lacks").starts_with("scalable mode (ECAP.SMTS)"), "{two:?}");
        let [refusal] = two.refused.as_slice() else { panic!("{two:?}") };
        assert!(refusal.what.ends_with("fed91000") && refusal.why.contains("EIM"), "{refusal}");
    }

    /// What Linux logged of a server with Sapphire Rapids (intel/intel-device-plugins-for-kubernetes, issue 1836), whose
    /// DSA it could not use with PASIDs either.
    #[test]
    fn a_sapphire_rapids_without_pasids_is_refused_for_that_alone() {
        let unit = (Capability(0x19ed_008c_4078_0c66), ExtendedCapability(0x0003_ee9e_86f0_50df));
        assert_eq!(features::missing(needed(unit.0, unit.1, true)), ["PASIDs (ECAP.PASID)"]);
        let geometry = common_geometry(&machine(1), &[unit]).unwrap();
        assert_eq!((geometry.levels, geometry.leaf_levels), (4, 3));
        assert!(unit.1.page_walk_coherent() && unit.1.pasid_bits() == 20);
        assert!(describe(unit.0, unit.1)[1].1.ends_with("posted interrupts"));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let survey = looked(&machine(2), &[ECAP]);
        assert_eq!((survey.units.len(), survey.refused.len()), (2, 0));
        assert_eq!((fact(&survey, 1, "CAP"), fact(&survey, 1, "not read")), ("", "not there"));
        let none = looked(&Dmar { interrupt_remapping: false, ..machine(0) }, &[]);
        assert_eq!(none.refused.len(), 2, "{none:?}");
    }
}
