// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every other room is built with: numbers that cannot be mistaken for each other, refusals, tables
//! for people.

pub mod addr;
pub mod allowance;
pub mod calendar;
pub mod drained;
pub mod id;
pub mod nearest;
pub mod refusal;
pub(crate) mod size;
pub(crate) mod sync;
pub mod table;
