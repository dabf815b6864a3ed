// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt controllers that devices send messages to, where they are no part of the IOMMU.

pub mod its;
