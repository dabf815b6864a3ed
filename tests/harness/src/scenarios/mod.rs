// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scenarios, in the order they run: the platform first, then what stands on it.

mod platform;

use crate::scenario::Scenario;

/// Every scenario.
pub const ALL: &[Scenario] = &[platform::BOOT, platform::DMATEST, platform::FAULT];
