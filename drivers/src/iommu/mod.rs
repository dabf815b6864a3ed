// SPDX-License-Identifier: MIT OR Apache-2.0
//! IOMMUs.

pub mod vtd;
