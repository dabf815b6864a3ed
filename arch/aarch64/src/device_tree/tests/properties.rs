// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever the bytes are: nothing panics, and the tables are well-formed.

use super::*;
use proptest::prelude::*;

/// Reads everything, as those do who the tables are for.
fn read_all(bytes: &[u8]) {
    let tables = Tables(tables(bytes));
    tables.get("MADT").map(firmware_tables::madt);
    tables.get("MCFG").map(mcfg);
    tables.get("FADT").map(firmware_tables::psci);
    tables.get("GTDT").map(firmware_tables::gtdt);
    tables.get("SPCR").map(firmware_tables::spcr);
    // What is written is well-formed, whatever it says: only an SMMU's address may be one that cannot be.
    if let Some(Err(refusal)) = tables.get("IORT").map(iort::parse) {
        let base = Tree::read(bytes).ok().and_then(|tree| {
            let smmu = tree.all(&["arm,smmu-v3"]).next()?;
            tree.reg(smmu, 0).ok()?
        });
        assert!(base.is_some_and(|(base, _)| base == 0 || base % 0x1000 != 0), "{refusal}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
    }

    /// Damage where a header and names stay what they were, so that it gets far.
    #[test]
    fn no_damage_is_too_bad(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
            0u32, 1, 2, 3, 4, 9, 0x20, 0xff, 0x1_0000, GIC, SMMU, ITS_PHANDLE, 0x7fff_ffff, 0xffff_fff0, u32::MAX,
        ])), 0..4),
    ) {
        let mut bytes = virt().bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, word) in words {
            let at = at.index(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        read_all(&bytes);
    }

    /// A sound tree in which properties have any values.
    #[test]
    fn no_values_are_too_bad(
        changes in prop::collection::vec((
            prop::sample::select(vec![
                "/", "/pcie@10000000", "/smmuv3@9050000", "/intc@8000000", "/intc@8000000/its@8080000", "/timer",
                "/pl011@9000000", "/cpus", "/cpus/cpu@1", "/chosen", "/aliases",
            ]),
            prop::sample::select(vec![
                "reg", "ranges", "#address-cells", "#size-cells", "#interrupt-cells", "interrupts",
                "interrupts-extended", "interrupt-names", "interrupt-parent", "iommu-map", "msi-map", "msi-map-mask",
                "msi-parent", "bus-range", "linux,pci-domain", "#redistributor-regions", "redistributor-stride",
                "stdout-path", "compatible", "status", "phandle",
            ]),
            prop::collection::vec(prop::sample::select(vec![
                0u32, 1, 2, 3, 4, 9, 0x20, 0x1_0000, GIC, SMMU, ITS_PHANDLE, 0x8000_0000, u32::MAX - 1, u32::MAX,
            ]), 0..12),
        ), 1..5),
    ) {
        let changed = changes.into_iter().fold(virt(), |tree, (path, name, value)| tree.set(path, name, cells(&value)));
        read_all(&changed.bytes());
    }
}
