// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats that are easy to read; those of the hardware are tested where they are.

use proptest::prelude::*;

use super::testing::{Walked, equals_a_plain_map};
use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bit 0: valid; bit 1: leaf; bits 4 and 5: rights. `BREAK`: whether it wants a break before another entry.
#[derive(Clone, Copy, Debug)]
struct Plain<const BREAK: bool>;

impl<const BREAK: bool> Format for Plain<BREAK> {
    type Attributes = u8;

    const NAME: &'static str = "plain";
    const BREAK_BEFORE_MAKE: bool = BREAK;

    fn leaf(&self, to: HostPhys, rights: u8, _level: u8) -> u64 {
        to.0 | u64::from(rights) << 4 | 0b11
    }

    fn table(&self, lower: HostPhys) -> u64 {
        lower.0 | 0b01
    }

    fn decode(&self, entry: u64, _level: u8) -> Entry<u8> {
        let address = HostPhys(entry & !(PAGE_SIZE - 1));
        match entry & 0b11 {
            0b01 => Entry::Table(address),
            0b11 => Entry::Leaf(address, Some((entry >> 4 & 3) as u8)),
            _ => Entry::Nothing,
        }
    }
}

fn geometry<const BREAK: bool>(levels: u8, leaf_levels: u8) -> Geometry<Plain<BREAK>> {
    let address_bits = if levels == 3 { 39 } else { 48 };
    Geometry { levels, address_bits, host_bits: 46, leaf_levels, format: Plain }
}

#[test]
fn the_largest_leaves_that_fit_are_used() {
    let pages = Walked::new(geometry::<false>(4, 3));
    let mut table = pages.table();
    let start = GIB - 2 * MIB - PAGE_SIZE;
    table.map(start, HostPhys(8 * GIB + start), 2 * GIB, 0).unwrap();
    let level = |at| table.lookup(at).unwrap().level;
    assert_eq!(level(start), 1);
    assert_eq!(level(start + PAGE_SIZE), 2);
    assert_eq!(level(GIB), 3);
    assert_eq!(level(start + 2 * GIB - 1), 1, "the last page of the rest");
    // The root, and where the range begins and ends one table of each level; that of 1 GiB is the same.
    assert_eq!(pages.used(), 6);
}

#[test]
fn an_offset_between_the_addresses_limits_the_leaves() {
    for (offset, leaf_levels, level) in
        [(2 * MIB, 3, 2), (PAGE_SIZE, 3, 1), (GIB, 3, 3), (GIB, 2, 2), (GIB, 1, 1)]
    {
        let pages = Walked::new(geometry::<true>(3, leaf_levels));
        let mut table = pages.table();
        table.map(GIB, HostPhys(8 * GIB + offset), GIB, 0).unwrap();
        assert_eq!(table.lookup(GIB).unwrap().level, level);
    }
}

#[test]
fn a_split_keeps_the_rest() {
    let pages = Walked::new(geometry::<false>(4, 3));
    let mut table = pages.table();
    table.map(0, HostPhys(8 * GIB), GIB, 2).unwrap();
    let removed = table.unmap(5 * MIB, PAGE_SIZE).unwrap();
    assert!(removed.changed && removed.pages.is_empty());
    let lookup = |table: &PageTable<_, _>, at| {
        table.lookup(at).map(|mapped: Mapped<u8>| (mapped.to.0, mapped.attributes, mapped.level))
    };
    assert_eq!(lookup(&table, 5 * MIB), None);
    let next = 5 * MIB + PAGE_SIZE;
    assert_eq!(lookup(&table, next), Some((8 * GIB + next, Some(2), 1)));
    assert_eq!(lookup(&table, 0), Some((8 * GIB, Some(2), 2)));
    assert_eq!(lookup(&table, GIB - 1), Some((9 * GIB - 1, Some(2), 2)));
    let removed = table.unmap(0, GIB).unwrap();
    assert_eq!(removed.pages.len(), 3, "4 KiB, 2 MiB and 1 GiB tables");
    assert_eq!(pages.used(), 4, "the root, and what the caller has to free");
    assert!(!table.unmap(0, GIB).unwrap().changed);
}

#[test]
fn a_leaf_in_use_stays_whole_where_a_break_is_wanted() {
    let pages = Walked::new(geometry::<true>(4, 2));
    let mut table = pages.table();
    table.map(0, HostPhys(8 * GIB), 2 * MIB, 0).unwrap();
    table.map_small(2 * MIB, HostPhys(GIB), 2 * MIB, 0).unwrap();
    for (at, len) in [(0, MIB), (MIB, MIB), (MIB, 3 * MIB)] {
        let refusal = table.unmap(at, len).unwrap_err();
        assert!(refusal.why.contains("in use as a whole"), "{refusal}");
    }
    assert!(table.protect(0, 2 * MIB, 1).is_err());
    assert_eq!(table.lookup(MIB).unwrap().to, HostPhys(8 * GIB + MIB));
    assert!(table.unmap(3 * MIB, PAGE_SIZE).unwrap().changed, "it was mapped by small pages");
}

#[test]
fn nothing_is_mapped_twice_or_out_of_reach() {
    let pages = Walked::new(geometry::<false>(3, 2));
    let mut table = pages.table();
    table.map(2 * MIB, HostPhys(0), 2 * MIB, 0).unwrap();
    let end = 1 << 39;
    for (at, to, len) in [
        (0, 0, 0),
        (1, 0, PAGE_SIZE),
        (0, 1, PAGE_SIZE),
        (0, 0, 1),
        (0, 0, 4 * MIB),
        (3 * MIB, 0, PAGE_SIZE),
        (end, 0, PAGE_SIZE),
        (end - PAGE_SIZE, 0, 2 * PAGE_SIZE),
        (!(PAGE_SIZE - 1), 0, PAGE_SIZE),
        (0, 1 << 46, PAGE_SIZE),
        (0, !(PAGE_SIZE - 1), PAGE_SIZE),
    ] {
        assert!(table.map(at, HostPhys(to), len, 0).is_err(), "{at:#x} {to:#x} {len:#x}");
    }
    assert!(table.unmap(end, PAGE_SIZE).is_err());
    assert_eq!(table.lookup(end), None);
    assert_eq!(table.lookup(u64::MAX), None);
    assert_eq!(pages.used(), 2);
}

#[test]
fn a_split_that_fails_half_way_is_published() {
    let pages = Walked::new(geometry::<false>(3, 3));
    let mut table = pages.table();
    table.map(0, HostPhys(0), 1 << 30, 0).unwrap();
    // The leaf of 1 GiB can be split, that of 2 MiB below it cannot.
    pages.limit(1);
    assert!(table.unmap(PAGE_SIZE, PAGE_SIZE).is_err());
    pages.assert_published();
    assert_eq!(table.lookup(0).map(|mapped| mapped.level), Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_table_equals_a_plain_map(
        steps in prop::collection::vec(any::<[u64; 6]>(), 1..24),
        levels in 3u8..=5,
        leaf_levels in 1u8..=3,
    ) {
        equals_a_plain_map(geometry::<false>(levels, leaf_levels), &[0, 1, 2], &steps);
        equals_a_plain_map(geometry::<true>(levels, leaf_levels), &[0, 1, 2], &steps);
    }
}
