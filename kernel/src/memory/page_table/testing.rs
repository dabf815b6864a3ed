// SPDX-License-Identifier: MIT OR Apache-2.0
//! For the tests of whoever brings a [`Format`]: a memory with a walker that never stops, and a plain map to compare
//! with.
//!
//! **Principle.** The walker caches all that it may: what could be reached once, it knows until it is made to forget.
//! So the memory sees each thing that must not happen at the write, or at the free, by which it happens.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

use spin::Mutex;

use super::{ENTRIES, Entry, Format, Geometry, Memory, PageTable, span};
use crate::base::addr::{HostPhys, PAGE_SIZE};
use crate::base::refusal::Refusal;

/// Where allocation starts. Addresses are never used twice, so that a use after a free is seen.
const FIRST_PAGE: u64 = 0x10_0000;

#[derive(Debug, Default)]
struct Inner {
    pages: BTreeMap<u64, Vec<u64>>,
    allocated: u64,
    /// Pages that may still be allocated.
    left: usize,
    /// What the walker knows: tables, with their level.
    known: BTreeMap<u64, u8>,
    /// Entries that were taken away, and that it may still hold.
    stale: BTreeSet<(u64, usize)>,
    /// Pages with words that it may not see yet.
    unpublished: BTreeSet<u64>,
}

/// Memory whose tables are walked all the time by somebody who takes entries of `F`.
#[derive(Debug)]
pub struct Walked<F> {
    geometry: Geometry<F>,
    inner: Mutex<Inner>,
}

/// The memory, and the format that it watches.
#[derive(Debug)]
pub struct Watched<'a, F>(&'a Walked<F>);

impl<F> Clone for Watched<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Watched<'_, F> {}

impl<F: Format> Walked<F> {
    /// Nothing in it yet.
    pub fn new(geometry: Geometry<F>) -> Self {
        Self { geometry, inner: Mutex::new(Inner { left: usize::MAX, ..Inner::default() }) }
    }

    /// An empty table in it.
    pub fn table(&self) -> PageTable<Watched<'_, F>, Watched<'_, F>> {
        let Geometry { levels, address_bits, host_bits, leaf_levels, .. } = self.geometry;
        let geometry = Geometry { levels, address_bits, host_bits, leaf_levels, format: Watched(self) };
        let table = PageTable::new(Watched(self), geometry).expect("a root");
        self.inner.lock().known.insert(table.top().root.0, levels);
        table
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.inner.lock().pages.len()
    }

    /// How many pages may still be allocated.
    pub fn limit(&self, pages: usize) {
        self.inner.lock().left = pages;
    }

    /// The walker forgets what it cannot find any more below `root`.
    pub fn forget(&self, root: HostPhys) {
        let mut inner = self.inner.lock();
        inner.known.clear();
        inner.stale.clear();
        self.learn(&mut inner, root.0, self.geometry.levels);
    }

    /// The walker finds a table, and all that it leads to.
    fn learn(&self, inner: &mut Inner, table: u64, level: u8) {
        assert!(!inner.unpublished.contains(&table), "a walker may see {table:#x} as it was before");
        inner.known.insert(table, level);
        for entry in inner.pages[&table].clone() {
            if let Entry::Table(lower) = self.geometry.format.decode(entry, level) {
                self.learn(inner, lower.0, level - 1);
            }
        }
    }

    /// A walker sees every change.
    pub fn assert_published(&self) {
        assert!(self.inner.lock().unpublished.is_empty(), "a change is not published");
    }

    /// Where each page leads: all of it.
    fn contents(&self, root: HostPhys) -> BTreeMap<u64, (u64, F::Attributes)> {
        self.assert_published();
        let inner = self.inner.lock();
        let mut contents = BTreeMap::new();
        let mut below = vec![(root.0, self.geometry.levels, 0)];
        while let Some((table, level, start)) = below.pop() {
            let words = &inner.pages[&table];
            assert!(table == root.0 || words.iter().any(|entry| *entry != 0), "{table:#x} maps nothing");
            for (slot, entry) in (0..).zip(words) {
                let at = start + slot * span(level);
                match self.geometry.format.decode(*entry, level) {
                    Entry::Nothing => {}
                    Entry::Table(lower) => below.push((lower.0, level - 1, at)),
                    Entry::Leaf(to, attributes) => {
                        let attributes = attributes.expect("rights that somebody gave");
                        assert!(level <= self.geometry.leaf_levels && to.is_aligned(span(level)));
                        let pages = (0..span(level)).step_by(PAGE_SIZE as usize);
                        contents.extend(pages.map(|offset| (at + offset, (to.0 + offset, attributes))));
                    }
                }
            }
        }
        contents
    }
}

impl<F: Format> Format for Watched<'_, F> {
    type Attributes = F::Attributes;

    const NAME: &'static str = F::NAME;
    const BREAK_BEFORE_MAKE: bool = F::BREAK_BEFORE_MAKE;

    fn leaf(&self, to: HostPhys, attributes: Self::Attributes, level: u8) -> u64 {
        self.0.geometry.format.leaf(to, attributes, level)
    }

    fn table(&self, lower: HostPhys) -> u64 {
        self.0.geometry.format.table(lower)
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Self::Attributes> {
        self.0.geometry.format.decode(entry, level)
    }

    fn publish(&self) {
        self.0.inner.lock().unpublished.clear();
    }
}

impl<F: Format> Memory for Watched<'_, F> {
    fn alloc_table(&mut self) -> Result<HostPhys, Refusal> {
        let mut inner = self.0.inner.lock();
        inner.left = inner
            .left
            .checked_sub(1)
            .ok_or_else(|| Refusal::new(F::NAME, "no page left", "raise the limit"))?;
        let page = (FIRST_PAGE + inner.allocated) * PAGE_SIZE;
        inner.allocated += 1;
        inner.pages.insert(page, vec![0; ENTRIES]);
        inner.unpublished.insert(page);
        Ok(HostPhys(page))
    }

    fn free_table(&mut self, table: HostPhys) {
        let mut inner = self.0.inner.lock();
        assert!(!inner.known.contains_key(&table.0), "a walker may still use {table}, which is freed");
        assert!(inner.pages.remove(&table.0).is_some(), "{table} is not allocated");
        inner.unpublished.remove(&table.0);
        inner.left = inner.left.saturating_add(1);
    }

    fn read(&self, table: HostPhys, index: usize) -> u64 {
        self.0.inner.lock().pages[&table.0][index]
    }

    fn write(&mut self, table: HostPhys, index: usize, entry: u64) {
        let format = self.0.geometry.format;
        let mut inner = self.0.inner.lock();
        let place = &mut inner.pages.get_mut(&table.0).expect("an allocated page")[index];
        let before = core::mem::replace(place, entry);
        inner.unpublished.insert(table.0);
        let Some(&level) = inner.known.get(&table.0) else {
            return;
        };
        let [old, new] = [before, entry].map(|entry| format.decode(entry, level));
        if !matches!(old, Entry::Nothing) && before != entry {
            inner.stale.insert((table.0, index));
        }
        if !matches!(new, Entry::Nothing) && before != entry && F::BREAK_BEFORE_MAKE {
            assert!(
                !inner.stale.contains(&(table.0, index)),
                "{before:#x} becomes {entry:#x} without a break"
            );
        }
        if let Entry::Table(lower) = new {
            self.0.learn(&mut inner, lower.0, level - 1);
        }
    }
}

/// Takes steps, which any numbers are, on a fresh table and on a plain map from pages to pages. `choices`: what leaves
/// may say. Panics where the two differ, and where something is done that a walker must not see.
pub fn equals_a_plain_map<F>(geometry: Geometry<F>, choices: &[F::Attributes], steps: &[[u64; 6]])
where
    F: Format,
    F::Attributes: PartialEq + Debug,
{
    let walked = Walked::new(geometry);
    let mut table = walked.table();
    let root = table.top().root;
    let mut expected: BTreeMap<u64, (u64, F::Attributes)> = BTreeMap::new();
    // In the first, the second and the last GiB; near the borders of large pages.
    let place = |gib: u64, page: u64, bits: u8| {
        let gib = [0, 1, (1 << (bits - 30)) - 2][(gib % 3) as usize];
        let page = [0, page / 4 % 4, 508 + page / 4 % 8, page / 4 % 1600][(page % 4) as usize];
        gib * span(3) + page * PAGE_SIZE
    };
    for &[change, at, to, pages, choice, left] in steps {
        let attributes = choices[(choice % choices.len() as u64) as usize];
        let len = [1 + pages / 4 % 3, 512, 1 + pages / 4 % 1199, 1 + pages / 4 % 520][(pages % 4) as usize]
            * PAGE_SIZE;
        let at = place(change / 8, at, geometry.address_bits);
        let to = place(choice / 8, to, geometry.host_bits);
        let inside = expected.range(at..at + len).map(|(at, _)| *at).collect::<Vec<_>>();
        let splits = [at, at + len].iter().any(|border| {
            table.lookup(*border).is_some_and(|mapped| !border.is_multiple_of(span(mapped.level)))
        });
        let used = walked.used();
        // Some steps are short of memory.
        let short = left % 4 == 0;
        walked.limit(if short { (left / 4 % 5) as usize } else { usize::MAX });
        let may_fail = short || splits && F::BREAK_BEFORE_MAKE;
        let removed = match change % 8 {
            0..=2 => {
                let small = change % 8 == 2;
                let result = if small {
                    table.map_small(at, HostPhys(to), len, attributes)
                } else {
                    table.map(at, HostPhys(to), len, attributes)
                };
                assert!(result.is_err() || inside.is_empty(), "mapped over what was there");
                match result {
                    Ok(()) => {
                        let pages = (0..len).step_by(PAGE_SIZE as usize);
                        expected.extend(pages.map(|offset| (at + offset, (to + offset, attributes))));
                        let level = table.lookup(at).expect("it was mapped").level;
                        assert!(!small || level == 1);
                    }
                    Err(refusal) => {
                        assert!(short || !inside.is_empty(), "{refusal}");
                        assert_eq!(walked.used(), used, "a refusal leaves nothing behind");
                    }
                }
                None
            }
            3..=5 => {
                let removed = table.unmap(at, len);
                if removed.is_ok() {
                    expected.retain(|page, _| !(at..at + len).contains(page));
                }
                Some(removed)
            }
            _ => {
                let removed = table.protect(at, len, attributes);
                for page in inside.iter().filter(|_| removed.is_ok()) {
                    expected.entry(*page).and_modify(|(_, said)| *said = attributes);
                }
                Some(if F::BREAK_BEFORE_MAKE {
                    assert!(removed.is_err(), "a break is wanted");
                    Ok(super::Removed::default())
                } else {
                    removed
                })
            }
        };
        match removed {
            Some(Ok(removed)) if change % 8 < 6 || !F::BREAK_BEFORE_MAKE => {
                assert_eq!(removed.changed, !inside.is_empty());
                assert!(removed.changed || removed.pages.is_empty());
                if removed.changed {
                    walked.forget(root);
                }
                table.free(removed.pages);
            }
            Some(Err(refusal)) => assert!(may_fail, "{refusal}"),
            _ => {}
        }
        assert!(walked.contents(root) == expected, "not as it should be after {:?}", (change, at, len));
        for probe in [at, at.wrapping_sub(1), at + len, at + len / 2 + 1] {
            let page = probe & !(PAGE_SIZE - 1);
            let wanted = expected.get(&page).map(|(to, said)| (to + probe % PAGE_SIZE, Some(*said)));
            let found = table.lookup(probe).map(|mapped| (mapped.to.0, mapped.attributes));
            assert_eq!(found, wanted, "at {probe:#x}");
        }
    }
    walked.limit(usize::MAX);
    if expected.is_empty() {
        assert_eq!(walked.used(), 1, "an empty table is its root");
    }
    let everything = table.unmap(0, geometry.end()).expect("all of it");
    walked.forget(root);
    table.free(everything.pages);
    assert_eq!(walked.used(), 1);
    walked.inner.lock().known.clear();
    table.destroy();
    assert_eq!(walked.used(), 0);
}
