// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists of what a device can do, in words: for the monitor, and for refusals.

use alloc::vec::Vec;

/// The names of the features that are there.
pub fn present(features: impl IntoIterator<Item = (bool, &'static str)>) -> Vec<&'static str> {
    named(features, true)
}

/// The names of the features that are not there.
pub fn missing(features: impl IntoIterator<Item = (bool, &'static str)>) -> Vec<&'static str> {
    named(features, false)
}

fn named(features: impl IntoIterator<Item = (bool, &'static str)>, wanted: bool) -> Vec<&'static str> {
    features.into_iter().filter_map(|(there, name)| (there == wanted).then_some(name)).collect()
}
