// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an inventory says of the IOMMUs of a machine, whatever their make.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pasidon_kernel::base::refusal::Refusal;

/// What was found without changing anything.
#[derive(Default, Debug)]
pub struct Survey {
    /// What the firmware's table says of the machine as a whole.
    pub table: Vec<(&'static str, String)>,
    /// Names and values of each unit, in the order of the table; the first is its name. One whose registers could not be
    /// reached says so.
    pub units: Vec<Vec<(&'static str, String)>>,
    /// Why the units could not be driven.
    pub refused: Vec<Refusal>,
}

/// Names in a row.
pub(super) fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_string() } else { names.join(", ") }
}
