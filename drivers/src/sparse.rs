// SPDX-License-Identifier: MIT OR Apache-2.0
//! A map from small numbers, whose operations cost the same however much is in it.
//!
//! **Principle.** A directory of leaves, as in the hardware's own tables: two steps to any entry, where a tree
//! would take more the more there are. What is attached for one VM then costs another nothing.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Entries of a leaf.
const LEAF: usize = 64;

type Leaf<T> = [Option<T>; LEAF];

/// A map from numbers below about a million.
#[derive(Debug)]
pub struct Sparse<T> {
    leaves: Vec<Option<Box<Leaf<T>>>>,
    len: usize,
}

impl<T> Default for Sparse<T> {
    fn default() -> Self {
        Self { leaves: Vec::new(), len: 0 }
    }
}

impl<T> Sparse<T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of a number.
    pub fn get(&self, key: usize) -> Option<&T> {
        self.leaves.get(key / LEAF)?.as_ref()?[key % LEAF].as_ref()
    }

    /// The entry of a number, to be changed.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.leaves.get_mut(key / LEAF)?.as_mut()?[key % LEAF].as_mut()
    }

    /// Puts an entry in and gives it back; the one that was there before goes.
    pub fn insert(&mut self, key: usize, value: T) -> &mut T {
        let slot = key / LEAF;
        if self.leaves.len() <= slot {
            self.leaves.resize_with(slot + 1, || None);
        }
        let leaf = self.leaves[slot].get_or_insert_with(|| Box::new([const { None }; LEAF]));
        let entry = &mut leaf[key % LEAF];
        self.len += usize::from(entry.is_none());
        entry.insert(value)
    }

    /// Takes an entry out. Its leaf stays for the next.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        let taken = self.leaves.get_mut(key / LEAF)?.as_mut()?[key % LEAF].take();
        self.len -= usize::from(taken.is_some());
        taken
    }

    /// All entries, by ascending number.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.leaves.iter().flatten().flat_map(|leaf| leaf.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((any::<bool>(), 0usize..300, any::<u8>()), 0..200)) {
            let mut sparse = Sparse::default();
            let mut map = BTreeMap::new();
            for (insert, key, value) in steps {
                if insert {
                    prop_assert_eq!(*sparse.insert(key, value), value);
                    map.insert(key, value);
                } else {
                    prop_assert_eq!(sparse.remove(key), map.remove(&key));
                }
                prop_assert_eq!(sparse.get(key), map.get(&key));
                prop_assert_eq!(sparse.get_mut(key), map.get_mut(&key));
                prop_assert_eq!((sparse.len(), sparse.is_empty()), (map.len(), map.is_empty()));
            }
            prop_assert!(sparse.values().eq(map.values()));
            prop_assert_eq!(sparse.get(1 << 40), None);
        }
    }
}
