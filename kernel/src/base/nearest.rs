// SPDX-License-Identifier: MIT OR Apache-2.0
//! "Did you mean …?": the known word nearest to a mistyped one, for configuration keys and monitor
//! commands alike.
//!
//! Distance is the optimal string alignment distance (insertions, deletions, substitutions and swaps of
//! neighbours each cost one). `strsim` offers it too, but needs `std`.

use alloc::vec;
use alloc::vec::Vec;

/// Words longer than this are not compared: the work grows with the product of the lengths, and nobody
/// mistypes a word that long.
const MAX_WORD: usize = 64;

/// The candidate nearest to `word`, if one is near enough to be meant: at most one edit per three
/// characters of the longer word, and at least one. The first wins among equals.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(MAX_WORD + 1).collect();
    if word.len() > MAX_WORD {
        return None;
    }
    let mut best: Option<(usize, &'a str)> = None;
    for candidate in candidates {
        let letters: Vec<char> = candidate.chars().take(MAX_WORD).collect();
        let distance = distance(&word, &letters);
        let allowed = (word.len().max(letters.len()) / 3).max(1);
        if distance <= allowed && best.is_none_or(|(shortest, _)| distance < shortest) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Number of edits between two words. Keeps three rows of the usual table.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut two_back: Vec<usize> = vec![0; to.len() + 1];
    let mut back: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1; to.len() + 1];
        for (j, b) in to.iter().enumerate() {
            let substituted = back[j] + usize::from(a != b);
            let mut cost = substituted.min(back[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                cost = cost.min(two_back[j - 1] + 1);
            }
            row[j + 1] = cost;
        }
        two_back = core::mem::replace(&mut back, row);
    }
    back[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 5] = ["name", "memory", "kernel", "initrd", "cmdline"];

    #[test]
    fn typing_errors_find_their_word() {
        for (typed, meant) in [
            ("memroy", "memory"),
            ("memor", "memory"),
            ("kernal", "kernel"),
            ("initramfs", "initrd"),
            ("nmae", "name"),
        ] {
            let found = nearest(typed, KEYS);
            if typed == "initramfs" {
                assert_eq!(found, None, "four edits of nine letters are another word");
            } else {
                assert_eq!(found, Some(meant));
            }
        }
    }

    #[test]
    fn foreign_words_find_nothing() {
        assert_eq!(nearest("colour", KEYS), None);
        assert_eq!(nearest(&"m".repeat(100_000), KEYS), None);
        assert_eq!(nearest("", KEYS), None);
    }

    #[test]
    fn distance_counts_each_kind_of_edit_once() {
        let count =
            |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(count("abc", "abc"), 0);
        assert_eq!(count("abc", "ab"), 1);
        assert_eq!(count("abc", "abxc"), 1);
        assert_eq!(count("abc", "axc"), 1);
        assert_eq!(count("abc", "acb"), 1);
        assert_eq!(count("", "abc"), 3);
    }
}
