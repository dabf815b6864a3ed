// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page tables against a plain list of pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::smmuv3::stage1::Stage1Entries;
use super::super::vtd::second_stage::SecondStageEntries;
use super::*;
use crate::testing::ModelMemory;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const VTD: SecondStageEntries = SecondStageEntries { snoop: true };
const SMMU: Stage1Entries = Stage1Entries { doorbell: false };

fn geometry<F>(format: F, levels: u8, leaf_levels: u8) -> Geometry<F> {
    Geometry { levels, address_bits: if levels == 4 { 48 } else { 39 }, host_bits: 46, leaf_levels, format }
}

/// Where an address leads, and at which level its leaf is.
fn lookup<F: Format>(
    memory: &TableMemory<ModelMemory>,
    table: &PageTable<F>,
    iova: u64,
) -> Option<(u64, bool, u8)> {
    let mut at = table.root;
    for level in (1..=table.geometry.levels).rev() {
        let entry = memory.read(at, index(iova, level));
        if !F::is_present(entry) {
            return None;
        }
        if F::is_leaf(entry, level) {
            let host = (entry & ADDRESS) + (iova & (span(level) - 1));
            return Some((host, F::is_writable(entry), level));
        }
        at = child(entry);
    }
    None
}

type Fresh<F> = (Arc<ModelMemory>, TableMemory<ModelMemory>, PageTable<F>);

fn fresh<F: Format>(format: F, levels: u8, leaf_levels: u8) -> Fresh<F> {
    let pages = Arc::new(ModelMemory::new());
    let memory = TableMemory::new(Arc::clone(&pages), true);
    let table = PageTable::new(&memory, geometry(format, levels, leaf_levels)).unwrap();
    (pages, memory, table)
}

#[test]
fn the_largest_leaves_that_fit_are_used() {
    let (pages, memory, table) = fresh(VTD, 4, 3);
    let start = GIB - 2 * MIB - PAGE_SIZE;
    table.map(&memory, Iova(start), HostPhys(8 * GIB + start), 2 * GIB, true).unwrap();
    let level = |iova| lookup(&memory, &table, iova).unwrap().2;
    assert_eq!(level(start), 1);
    assert_eq!(level(start + PAGE_SIZE), 2);
    assert_eq!(level(GIB), 3);
    assert_eq!(level(start + 2 * GIB - 1), 1, "the last page of the rest");
    table.destroy(&memory);
    assert_eq!(pages.used(), 0);
}

#[test]
fn an_offset_between_the_addresses_limits_the_leaves() {
    for (offset, leaf_levels, level) in
        [(2 * MIB, 3, 2), (PAGE_SIZE, 3, 1), (GIB, 3, 3), (GIB, 2, 2), (GIB, 1, 1)]
    {
        let (_, memory, table) = fresh(SMMU, 3, leaf_levels);
        table.map(&memory, Iova(GIB), HostPhys(8 * GIB + offset), GIB, true).unwrap();
        assert_eq!(lookup(&memory, &table, GIB).unwrap().2, level);
    }
}

#[test]
fn a_split_keeps_the_rest() {
    let (pages, memory, table) = fresh(VTD, 4, 3);
    table.map(&memory, Iova(0), HostPhys(8 * GIB), GIB, false).unwrap();
    let removed = table.unmap(&memory, Iova(5 * MIB), PAGE_SIZE).unwrap();
    assert!(removed.changed && removed.pages.is_empty());
    assert_eq!(lookup(&memory, &table, 5 * MIB), None);
    assert_eq!(lookup(&memory, &table, 5 * MIB + PAGE_SIZE), Some((8 * GIB + 5 * MIB + PAGE_SIZE, false, 1)));
    assert_eq!(lookup(&memory, &table, 0), Some((8 * GIB, false, 2)));
    assert_eq!(lookup(&memory, &table, GIB - 1), Some((9 * GIB - 1, false, 2)));
    let removed = table.unmap(&memory, Iova(0), GIB).unwrap();
    assert_eq!(removed.pages.len(), 3, "4 KiB, 2 MiB and 1 GiB tables");
    assert_eq!(pages.used(), 4, "the root, and what the caller has to free");
    assert!(!table.unmap(&memory, Iova(0), GIB).unwrap().changed);
}

/// One step of the property test, in pages.
#[derive(Clone, Debug)]
enum Step {
    Map { iova: u64, host: u64, pages: u64, writable: bool },
    Unmap { iova: u64, pages: u64 },
}

/// Addresses near the borders of large pages, lengths from a page to more than 2 MiB.
fn step() -> impl Strategy<Value = Step> {
    let place = || (0u64..3, prop_oneof![Just(0), 0u64..4, 508u64..516, 0u64..1600]);
    let address = move || place().prop_map(|(gib, page)| gib * (GIB / PAGE_SIZE) + page);
    let pages = || prop_oneof![1u64..4, Just(512), 1u64..1200];
    prop_oneof![
        (address(), address(), pages(), any::<bool>()).prop_map(|(iova, host, pages, writable)| Step::Map {
            iova,
            host,
            pages,
            writable
        }),
        (address(), pages()).prop_map(|(iova, pages)| Step::Unmap { iova, pages }),
    ]
}

/// Whether an address is inside a leaf that starts before it.
fn splits<F: Format>(memory: &TableMemory<ModelMemory>, table: &PageTable<F>, at: u64) -> bool {
    lookup(memory, table, at).is_some_and(|(_, _, level)| at & (span(level) - 1) != 0)
}

/// Takes the steps on a fresh table and on a list of pages.
fn compare<F: Format>(format: F, steps: &[Step], levels: u8, leaf_levels: u8) -> Result<(), TestCaseError> {
    let (pages, memory, table) = fresh(format, levels, leaf_levels);
    let mut expected: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    for step in steps.iter().cloned() {
        match step {
            Step::Map { iova, host, pages, writable } => {
                let (start, to) = (Iova(iova * PAGE_SIZE), HostPhys(host * PAGE_SIZE));
                let result = table.map(&memory, start, to, pages * PAGE_SIZE, writable);
                let free = expected.range(iova..iova + pages).next().is_none();
                prop_assert_eq!(result.is_ok(), free);
                if free {
                    expected.extend((0..pages).map(|at| (iova + at, ((host + at) * PAGE_SIZE, writable))));
                }
            }
            Step::Unmap { iova, pages } => {
                let borders = [iova, iova + pages].map(|page| page * PAGE_SIZE);
                let whole = F::SPLITS || !borders.iter().any(|&at| splits(&memory, &table, at));
                let result = table.unmap(&memory, Iova(borders[0]), pages * PAGE_SIZE);
                prop_assert_eq!(result.is_ok(), whole);
                if let Ok(removed) = result {
                    let before = expected.len();
                    expected.retain(|page, _| !(iova..iova + pages).contains(page));
                    prop_assert_eq!(removed.changed, expected.len() != before);
                    for page in removed.pages {
                        memory.free(page, 1);
                    }
                }
            }
        }
        for page in (0..3).flat_map(|gib| (0..2816).map(move |at| gib * (GIB / PAGE_SIZE) + at)) {
            let found = lookup(&memory, &table, page * PAGE_SIZE).map(|(host, writable, _)| (host, writable));
            prop_assert_eq!(found, expected.get(&page).copied(), "page {:#x}", page);
        }
    }
    if expected.is_empty() {
        prop_assert_eq!(pages.used(), 1, "an empty table is its root");
    }
    table.destroy(&memory);
    prop_assert_eq!(pages.used(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tables_say_what_was_asked_for(
        steps in proptest::collection::vec(step(), 1..24),
        levels in 3u8..=4,
        leaf_levels in 1u8..=3,
    ) {
        compare(VTD, &steps, levels, leaf_levels)?;
        compare(SMMU, &steps, levels, leaf_levels)?;
    }
}
