// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors of guests that want what is not theirs, and what they meet.

use super::pasidon::check;
use crate::line::Console;
use crate::machine::Machine;
use anyhow::{Context, Result};

/// Where a guest's 256 MiB end, from where they start: above lies memory of the machine that is somebody else's.
pub const END: u64 = 0x1000_0000;

/// A descriptor, as options of `dsa-user poke`, and what the guest finds.
pub type Attempt<'a> = (&'a str, &'a str);

/// What no way of sharing a queue lets through to the device.
pub const NEVER: [Attempt<'static>; 6] = [
    // An address beyond all memory, whose end would be at the beginning.
    ("--dst=0xfffffffffffff000", "status=0x83"),
    // A list of descriptors.
    ("--operation=0x01 --len=2", "status=0x10"),
    // No operation at all.
    ("--operation=0x3f", "status=0x10"),
    // Block on fault; a flag that is some later device's.
    ("--flags=0x2", "status=0x11"),
    ("--flags=0x800000", "status=0x11"),
    // More than the queue allows at once.
    ("--set=4=0xffffffff", "status=0x13"),
];

/// Submits each of these, one after the other.
///
/// # Errors
/// When a guest finds something else.
pub fn submit_all(machine: &Machine, console: Console<'_>, attempts: &[Attempt<'_>]) -> Result<()> {
    attempts.iter().try_for_each(|(options, wanted)| submit(machine, console, options, wanted))
}

/// Submits one.
///
/// # Errors
/// When the guest finds something else.
pub fn submit(machine: &Machine, console: Console<'_>, options: &str, wanted: &str) -> Result<()> {
    let said = check(machine, console, &format!("dsa-user poke {options}"), wanted);
    said.map(drop).with_context(|| format!("a hostile descriptor: {options}"))
}
