// SPDX-License-Identifier: MIT OR Apache-2.0
//! IOMMUs.

pub mod smmuv3;
pub mod vtd;

mod acpi;
