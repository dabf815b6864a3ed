// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes as people write them; [`bytes`](super::table::bytes) is the way back.

/// A word that ends with a unit: what stands before it, and the power of two that it stands for. K, M and G are powers of
/// 1024.
pub fn split_unit(word: &str) -> Option<(&str, u32)> {
    [('K', 10), ('M', 20), ('G', 30)]
        .iter()
        .find_map(|(unit, shift)| Some((word.strip_suffix(*unit)?, *shift)))
}
